//! Checkers that look on while a cluster runs.
//!
//! Raft      The safety properties at every message and every applied entry
//!           ([`raft_watch`](crate::raft_watch)).
//! Leaders   Who sends appends, heartbeats or hand-overs acts as leader of its term; there
//!           is at most one in each term of a region.
//! Crashes   What a crash leaves applied is in the raft engine, too, unless a snapshot is
//!           being installed or the peer is destroyed.
//! Replicas  Now and then a region's replicas are summed up: equal applied index, equal
//!           data.
//! Starts    The peers of a store have the memberships that they had shown before it ended, or
//!           later ones (crash rule 2).

use std::collections::BTreeMap;

use strata_proto::eraftpb::MessageType;
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_raftstore::{ApplyTask, ApplyWork, Directory};
use strata_storage::{
    Engines, MemEngine, read_all_region_states, read_apply_state, read_raft_state,
    read_region_state,
};

use crate::counters::LeaderChanges;
use crate::effects::INJECTED;
use crate::raft_watch::RaftWatch;
use crate::violation::Violation;

/// Remembers what must stay true, and what was found broken.
#[derive(Debug, Default)]
pub struct Watch {
    /// Leader of each region and term.
    leaders: BTreeMap<(u64, u64), u64>,
    /// Who led each region last.
    pub(crate) changes: LeaderChanges,
    /// By store and region: the peer and `conf_ver` that were shown when the store ended.
    shown: BTreeMap<(u64, u64), (u64, u64)>,
    raft: RaftWatch,
    /// By region and applied index: the store whose replica was summed up first, and the sum.
    sums: BTreeMap<u64, BTreeMap<u64, (u64, u32)>>,
    violations: Vec<Violation>,
}

impl Watch {
    /// Notes a violation.
    pub fn report(&mut self, violation: Violation) {
        // One is enough for a run to fail; many would only hide the first.
        const KEPT_MAX: usize = 16;
        // A store that stops is more than what it did before.
        let stop = matches!(violation, Violation::StoreStopped { .. });
        let of_its_sort = |one: &&Violation| matches!(one, Violation::StoreStopped { .. }) == stop;
        if self.violations.iter().filter(of_its_sort).count() < KEPT_MAX {
            self.violations.push(violation);
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Number of terms in which a region was led, over all regions.
    #[must_use]
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// Looks at a message that leaves a store.
    pub fn on_send(&mut self, envelope: &RaftMessage) {
        if let Some(violation) = self.raft.on_send(envelope) {
            self.report(violation);
        }
        self.look_at_leader(envelope);
    }

    /// Looks at what an apply shard of a store is given, whose peers' terms `term_of` tells.
    pub fn on_apply(
        &mut self,
        store: (u64, u64),
        work: &ApplyWork,
        term_of: impl Fn(u64) -> Option<u64>,
    ) {
        for task in &work.tasks {
            match task {
                ApplyTask::Entries(task) => {
                    // A peer that is gone from the directory is about to be destroyed.
                    let term = term_of(task.region_id).unwrap_or(u64::MAX);
                    let found = self
                        .raft
                        .on_apply(store, task.region_id, term, &task.entries);
                    if let Some(violation) = found {
                        self.report(violation);
                    }
                }
                ApplyTask::BeginInstall { region, .. } => {
                    self.raft.on_replaced(store.0, region.id);
                }
                ApplyTask::AddRegion { region, .. } => {
                    self.raft.on_replaced(store.0, region.id);
                }
                ApplyTask::Destroy { region_id, .. } => {
                    self.raft.on_replaced(store.0, *region_id);
                }
            }
        }
    }

    /// Looks at the sum of a replica.
    pub fn on_sum(&mut self, region_id: u64, store_id: u64, index: u64, sum: u32) {
        /// Indices that are remembered of a region: replicas are seldom farther apart.
        const KEPT_MAX: usize = 64;
        let sums = self.sums.entry(region_id).or_default();
        let (first, expected) = *sums.entry(index).or_insert((store_id, sum));
        if sums.len() > KEPT_MAX {
            sums.pop_first();
        }
        if expected != sum {
            self.report(Violation::ReplicasDiffer {
                region_id,
                first,
                second: store_id,
                index,
                detail: format!("their data sum up to {expected:08x} and {sum:08x}"),
            });
        }
    }

    fn look_at_leader(&mut self, envelope: &RaftMessage) {
        let Some(message) = &envelope.message else {
            return;
        };
        let leads = matches!(
            message.msg_type(),
            MessageType::MsgAppend
                | MessageType::MsgHeartbeat
                | MessageType::MsgSnapshot
                | MessageType::MsgTimeoutNow
        );
        if !leads {
            return;
        }
        let (region_id, term) = (envelope.region_id, message.term);
        let changes = &mut self.changes;
        let first = *self.leaders.entry((region_id, term)).or_insert_with(|| {
            changes.on_leader(region_id, term, message.from);
            message.from
        });
        if first != message.from {
            let second = message.from;
            self.report(Violation::TwoLeaders {
                region_id,
                term,
                first,
                second,
            });
        }
    }

    /// Looks at the engines that a crash has left.
    pub fn on_crash(&mut self, store_id: u64, engines: &Engines<MemEngine>) {
        let states = match read_all_region_states(&engines.kv) {
            Ok(states) => states,
            Err(error) => return self.damaged(store_id, &error),
        };
        for region_id in states
            .iter()
            // Between the two batches of an install the kv engine is ahead (crash rule 3),
            // and what a destroyed peer has left is cleared behind its log (crash rule 5).
            .filter(|state| state.state() == PeerState::Normal)
            .filter_map(|state| state.region.as_ref())
            .map(|r| r.id)
        {
            let applied = read_apply_state(&engines.kv, region_id);
            let log = read_raft_state(&engines.raft, region_id);
            match (applied, log) {
                (Ok(applied), Ok(log)) => {
                    let applied = applied.map_or(0, |state| state.applied_index);
                    let last = log.map_or(0, |state| state.last_index);
                    if applied > last {
                        self.report(Violation::AppliedBeyondLog {
                            region_id,
                            store_id,
                            applied,
                            last,
                        });
                    }
                }
                (Err(error), _) | (_, Err(error)) => self.damaged(store_id, &error),
            }
        }
    }

    /// Notes what a store has shown of its regions, now that it ends.
    pub fn on_end(&mut self, store_id: u64, directory: &Directory) {
        self.forget(store_id);
        for entry in directory.iter() {
            let epoch = entry.region.region_epoch.unwrap_or_default();
            let shown = (entry.peer.id, epoch.conf_ver);
            self.shown.insert((store_id, entry.region.id), shown);
        }
    }

    /// Forgets what a store has shown: it gets a new folder.
    pub fn forget(&mut self, store_id: u64) {
        self.shown.retain(|(id, _), _| *id != store_id);
    }

    /// Looks at the regions with which a store starts again.
    pub fn on_start(&mut self, store_id: u64, directory: &Directory, engines: &Engines<MemEngine>) {
        let shown: Vec<_> = self
            .shown
            .range((store_id, 0)..=(store_id, u64::MAX))
            .map(|((_, region_id), shown)| (*region_id, *shown))
            .collect();
        for (region_id, (peer_id, conf_ver)) in shown {
            let found = match directory.get(region_id) {
                // Another peer came after the one that was shown.
                Some(entry) if entry.peer.id != peer_id => continue,
                Some(entry) => entry.region.region_epoch.unwrap_or_default().conf_ver,
                None => match read_region_state(&engines.kv, region_id) {
                    Ok(Some(state)) if state.state() == PeerState::Tombstone => continue,
                    Ok(_) => 0,
                    Err(error) => return self.damaged(store_id, &error),
                },
            };
            if found < conf_ver {
                self.report(Violation::MembershipTakenBack {
                    region_id,
                    store_id,
                    shown: conf_ver,
                    found,
                });
            }
        }
    }

    /// Notes that what a store has on its disk cannot be read.
    pub fn damaged(&mut self, store_id: u64, error: &strata_storage::Error) {
        let reason = error.to_string();
        // A fault that was meant for the store has met the checker.
        if !reason.contains(INJECTED) {
            self.report(Violation::StoreStopped { store_id, reason });
        }
    }
}
