//! Log compaction: the leader decides, every replica truncates, a worker deletes.
//!
//! Tick      Every `log_gc_tick_interval` a leader looks at its log ([`compact_to`]) and
//!           proposes a CompactLog entry if enough may go.
//! Apply     The truncated index and its term go into the same batch as the applied index
//!           (`apply_admin`).
//! Applied   The shard frees the entries from its cache and lets the log gc worker delete
//!           them from the raft engine, once the kv engine holds the truncated index
//!           durably (crash rule 6).
//!
//! Policy
//! * What every member has goes, once there is enough of it to be worth an entry.
//! * Beyond the limits of count or bytes, a member that was not heard from for two election
//!   timeouts holds nothing; a live one that lags holds the log up to twice the limits.
//! * A snapshot that is made or sent holds what lies behind its index, up to four times the
//!   limit of bytes: without it the receiver would need the next one at once. Once every
//!   follower has come past it, it holds nothing.
//!
//! Invariant: truncated <= applied, on every replica; a CompactLog that does not move the
//! truncated index forward changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use strata_proto::raft_cmdpb::{AdminCmdType, AdminRequest, CompactLogRequest};
use strata_proto::stratapb::EntryCommand;
use strata_raft::{Storage as _, planted};
use strata_storage::Engine;

use crate::job::RegionJob;
use crate::options::StoreOptions;
use crate::peer::Peer;
use crate::shard::StepContext;

/// How much longer a live follower that lags holds the log, in limits.
const SLOW_FOLLOWER_LIMITS: u64 = 2;
/// Up to how many limits of bytes a running snapshot holds the log.
const SNAPSHOT_LIMITS: u64 = 4;
/// Election timeouts after which a silent follower holds nothing.
const SILENT_ELECTION_TIMEOUTS: u32 = 2;

/// What a peer remembers for compaction.
#[derive(Debug, Default)]
pub(crate) struct LogGc {
    /// When the policy is asked next.
    next_at: Option<Duration>,
    /// When each follower was last heard from.
    heard: BTreeMap<u64, Duration>,
    /// A deletion is with the worker.
    outstanding: bool,
    /// Entries up to this index are deleted, or being deleted.
    asked_to: u64,
}

impl LogGc {
    /// For a log that begins behind `truncated`. What a crash has left in front of it goes
    /// with the next compaction.
    pub(crate) fn new(truncated: u64) -> Self {
        LogGc {
            asked_to: truncated,
            ..LogGc::default()
        }
    }

    /// When a leader asks the policy next; `None`: with the next tick.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.next_at
    }

    /// Whether it holds what only a leader needs.
    pub(crate) fn has_led(&self) -> bool {
        !self.heard.is_empty() || self.next_at.is_some()
    }

    /// A message of another peer has come.
    pub(crate) fn heard_from(&mut self, peer_id: u64, now: Duration) {
        self.heard.insert(peer_id, now);
    }
}

/// One follower, as far as the policy looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FollowerLog {
    /// Its log matches the leader's up to here.
    pub matched: u64,
    /// It was heard from lately.
    pub live: bool,
}

/// A leader's log, as far as the policy looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogFacts {
    pub truncated: u64,
    pub applied: u64,
    pub last: u64,
    /// Encoded bytes of the log.
    pub bytes: u64,
    pub followers: Vec<FollowerLog>,
    /// Lowest index of a snapshot that is made, sent or waited for.
    pub snapshot: Option<u64>,
}

/// The limits of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLimits {
    /// Entries.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Fewer entries than this are not worth a compaction.
    pub threshold: u64,
}

/// The index up to which the log shall go, if that is worth it. Below the applied index
/// and above the truncated one.
pub(crate) fn compact_to(limits: &LogLimits, facts: &LogFacts) -> Option<u64> {
    let count = facts.last.saturating_sub(facts.truncated);
    let held_by_all = facts.followers.iter().map(|follower| follower.matched);
    let mut target = held_by_all.fold(facts.applied, u64::min);
    let over = count > limits.count || facts.bytes > limits.bytes;
    if over {
        // As many entries as fit into the extended limits, taking all for equally large.
        let average = (facts.bytes / count.max(1)).max(1);
        let window = (SLOW_FOLLOWER_LIMITS * limits.count)
            .min(SLOW_FOLLOWER_LIMITS * limits.bytes / average);
        let horizon = facts.last.saturating_sub(window);
        let holding = facts
            .followers
            .iter()
            .filter(|follower| follower.live && follower.matched >= horizon)
            .map(|follower| follower.matched);
        target = holding.fold(facts.applied, u64::min);
    }
    // One that no follower is behind is on its way to nobody.
    let wanted = facts
        .snapshot
        .filter(|index| facts.followers.iter().any(|f| f.matched < *index));
    if facts.bytes <= SNAPSHOT_LIMITS * limits.bytes {
        target = target.min(wanted.unwrap_or(u64::MAX));
    }
    // A compaction is an entry itself: for the sake of one alone there would be the next.
    let worth = match over {
        true => 1,
        false => limits.threshold.max(2),
    };
    (target >= facts.truncated + worth).then_some(target)
}

impl<E: Engine> Peer<E> {
    /// Proposes a compaction if it is time and there is enough to compact.
    pub(crate) fn maybe_compact_log(&mut self, context: &mut StepContext<'_>) {
        let now = context.now.monotonic;
        if !self.leads() {
            if self.log_gc.has_led() {
                self.log_gc.next_at = None;
                self.log_gc.heard.clear();
            }
            return;
        }
        let interval = context.options.log_gc_tick_interval;
        let due = *self.log_gc.next_at.get_or_insert(now + interval);
        if now < due {
            return;
        }
        self.log_gc.next_at = Some(now + interval);
        let facts = self.log_facts(context.options, now);
        let Some(index) = compact_to(&log_limits(context.options), &facts) else {
            return;
        };
        let Ok(term) = self.raft.storage().term(index) else {
            return;
        };
        let command = EntryCommand {
            leader_clock_ms: context.now.wall_ms,
            region_epoch: self.region.region_epoch,
            commands: Vec::new(),
            admin: Some(AdminRequest {
                cmd_type: AdminCmdType::CompactLog.into(),
                compact_log: Some(CompactLogRequest {
                    compact_index: index,
                    compact_term: term,
                    ..CompactLogRequest::default()
                }),
                ..AdminRequest::default()
            }),
        };
        // No room, or a hand-over: the next tick asks again.
        if self
            .raft
            .propose(bytes::Bytes::new(), command.encode_to_vec().into())
            .is_ok()
        {
            context.metrics.log_compactions_proposed.increment();
            if planted!(CompactAboveApplied) {
                // Planted: entries go when their compaction is applied, up to what is applied.
                let (region_id, to_index) = (self.region.id, self.raft.storage().last().index);
                let job = RegionJob::GcLog {
                    region_id,
                    to_index,
                };
                context.out.jobs.push(job);
            }
        }
    }

    fn log_facts(&self, options: &StoreOptions, now: Duration) -> LogFacts {
        let storage = self.raft.storage();
        let patience = options.election_timeout() * SILENT_ELECTION_TIMEOUTS;
        let status = self.raft.status();
        let followers = status
            .progress
            .iter()
            .filter(|(id, _)| *id != self.peer.id)
            .map(|(id, progress)| FollowerLog {
                matched: progress.matched,
                live: self
                    .log_gc
                    .heard
                    .get(id)
                    .is_some_and(|heard| now < *heard + patience),
            })
            .collect();
        LogFacts {
            truncated: storage.truncated().index,
            applied: storage.applied_index(),
            last: storage.last().index,
            bytes: storage.log_bytes(),
            followers,
            snapshot: self.snapshot_holds(options, now),
        }
    }

    /// The apply state has moved: entries that it truncated are to be deleted.
    pub(crate) fn ask_log_gc(&mut self, context: &mut StepContext<'_>) {
        let to_index = self.raft.storage().truncated().index;
        if self.log_gc.outstanding || to_index <= self.log_gc.asked_to {
            return;
        }
        self.log_gc.outstanding = true;
        self.log_gc.asked_to = to_index;
        context.out.jobs.push(RegionJob::GcLog {
            region_id: self.region.id,
            to_index,
        });
    }

    /// The worker has deleted entries. Its answer to a peer that was destroyed meanwhile comes
    /// to the region's next one.
    pub(crate) fn on_log_gone(&mut self, context: &mut StepContext<'_>, index: u64) {
        if !self.log_gc.outstanding {
            return;
        }
        let truncated = self.raft.storage().truncated().index;
        assert!(
            index <= truncated,
            "region {}: log deleted up to {index}, truncated is {truncated}",
            self.region.id
        );
        self.log_gc.outstanding = false;
        context.metrics.logs_deleted.increment();
        self.ask_log_gc(context);
    }
}

fn log_limits(options: &StoreOptions) -> LogLimits {
    LogLimits {
        count: options.log_gc_count_limit,
        bytes: options.log_gc_size_limit,
        threshold: options.log_gc_threshold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LogLimits = LogLimits {
        count: 1_000,
        bytes: 100_000,
        threshold: 50,
    };

    fn follower(matched: u64, live: bool) -> FollowerLog {
        FollowerLog { matched, live }
    }

    /// A log of entries of ten bytes that is applied to its end.
    fn log(truncated: u64, last: u64, followers: &[FollowerLog]) -> LogFacts {
        LogFacts {
            truncated,
            applied: last,
            last,
            bytes: (last - truncated) * 10,
            followers: followers.to_vec(),
            snapshot: None,
        }
    }

    #[test]
    fn compaction_is_no_reason_for_the_next_one() {
        let limits = LogLimits {
            threshold: 1,
            ..LIMITS
        };
        let both = |last| [follower(last, true), follower(last, true)];
        assert_eq!(compact_to(&limits, &log(10, 12, &both(12))), Some(12));
        // What is left is the entry that truncated the log.
        assert_eq!(compact_to(&limits, &log(12, 13, &both(13))), None);
    }

    #[test]
    fn what_all_have_goes_once_it_is_worth_it() {
        let both = [follower(60, true), follower(80, true)];
        assert_eq!(compact_to(&LIMITS, &log(10, 90, &both)), Some(60));
        assert_eq!(compact_to(&LIMITS, &log(11, 90, &both)), None);
        assert_eq!(compact_to(&LIMITS, &log(10, 90, &[])), Some(90));
        let behind = LogFacts {
            applied: 30,
            ..log(10, 90, &both)
        };
        assert_eq!(
            compact_to(&LIMITS, &behind),
            None,
            "not above what is applied"
        );
    }

    #[test]
    fn silent_follower_holds_the_log_up_to_the_limits_only() {
        let one_silent = [follower(900, true), follower(20, false)];
        assert_eq!(compact_to(&LIMITS, &log(10, 1_010, &one_silent)), None);
        assert_eq!(compact_to(&LIMITS, &log(10, 1_011, &one_silent)), Some(900));
    }

    #[test]
    fn live_slow_follower_holds_the_log_up_to_twice_the_limits() {
        let slow = [follower(2_000, true), follower(20, true)];
        assert_eq!(compact_to(&LIMITS, &log(10, 2_000, &slow)), Some(20));
        assert_eq!(compact_to(&LIMITS, &log(20, 2_020, &slow)), None);
        assert_eq!(compact_to(&LIMITS, &log(20, 2_021, &slow)), Some(2_000));
    }

    #[test]
    fn bytes_count_as_the_number_of_entries_does() {
        let slow = [follower(100, true), follower(20, true)];
        let heavy = |bytes| LogFacts {
            bytes,
            ..log(20, 120, &slow)
        };
        assert_eq!(compact_to(&LIMITS, &heavy(200_000)), None);
        assert_eq!(compact_to(&LIMITS, &heavy(210_000)), Some(100));
    }

    #[test]
    fn running_snapshot_holds_what_is_behind_it_up_to_four_times_the_bytes() {
        let gone = [follower(3, false)];
        let sending = |bytes| LogFacts {
            bytes,
            snapshot: Some(400),
            ..log(10, 3_000, &gone)
        };
        assert_eq!(compact_to(&LIMITS, &sending(400_000)), Some(400));
        assert_eq!(compact_to(&LIMITS, &sending(400_001)), Some(3_000));
    }

    /// Two followers took what they needed from the log while a snapshot was made for one.
    #[test]
    fn snapshot_that_nobody_is_behind_holds_nothing() {
        let arrived = [follower(100, true), follower(100, true)];
        let made = LogFacts {
            snapshot: Some(59),
            ..log(10, 100, &arrived)
        };
        assert_eq!(compact_to(&LIMITS, &made), Some(100));
    }
}
