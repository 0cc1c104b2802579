//! What a run has reached, as numbers: a swarm that never loses a leader proves little.
//!
//! Most are read off the stores' own metrics when a life ends; the rest is what only the
//! simulator sees: answers on their way, engines at a crash, messages of leaders.

use std::collections::BTreeMap;

use strata_raftstore::{Answer, CommandOutcome, Directory, Error};
use strata_storage::{Engines, MemEngine, read_apply_state, read_raft_state};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident $words:literal,)*) => {
        /// How often a run has reached each of the places where bugs like to live.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Words and value of every counter, in a fixed order.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($words, self.$name),)*]
            }

            /// Adds another run's.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Regions that were led by another peer than in the term before.
    leader_changes "leader changes",
    /// Reads served under a lease.
    lease_reads "lease reads",
    /// Reads that a leader served after a read index.
    read_index_reads "ReadIndex reads",
    /// Reads that a follower served after a read index.
    follower_reads "follower reads",
    /// Appends that replaced entries of an earlier leader.
    log_conflicts "conflicting log overwritten",
    /// Log batches that were synced while no shard of the store waited for one.
    quiet_syncs "synced logs that no shard waited for",
    /// Snapshots installed.
    snapshots_installed "snapshots installed",
    /// Streams of snapshots that went on where an earlier one had ended.
    snapshots_resumed "snapshots resumed",
    /// Crashes, of any kind, of a store that was installing a snapshot.
    crash_while_installing "crashes while installing a snapshot",
    /// Power cuts that left less in the kv engine than was applied: replayed from the log.
    crash_kv_behind "crashes with kv behind",
    /// Power cuts that left more applied in the kv engine than the raft engine's tail knows
    /// to be committed.
    crash_kv_ahead "crashes with kv ahead of the raft engine's tail",
    /// Operations of sessions that were answered from the table, on all replicas.
    duplicates_suppressed "duplicates suppressed by a session",
    /// Sessions that were removed by the region's clock, on all replicas.
    sessions_expired "session expired",
    /// Sessions that were removed because a region had too many, on all replicas.
    sessions_evicted "sessions evicted by their number",
    /// Changes of members that were acknowledged while some link between members was cut.
    conf_changes_in_partition "conf changes during a partition",
    /// Requests that had waited in a store when their deadline passed, and were dropped.
    deadline_drops "requests dropped at their deadline",
    /// Compare-and-swaps that met another value.
    swaps_failed "CAS failed",
    /// Deletions of entries that some member of the region, other than one that is gone for
    /// good, did not have.
    compacted_past_follower "log compacted past a follower",
    /// Requests for votes that were not heard because a leader may hold a lease.
    votes_withheld "votes withheld by a lease",
    /// Requests and answers that never arrived at their store or client.
    lost_to_clients "requests and answers lost",
    /// Faults that struck: those that found nothing to break are not counted, and neither are
    /// hand-overs and changes of members.
    faults "faults",
}

impl Counters {
    /// Adds what a store has counted in one life.
    pub(crate) fn add_metrics(&mut self, metrics: &[(&'static str, u64)]) {
        let mut replica_reads = 0;
        for (name, value) in metrics {
            let counter = match *name {
                "reads_lease" => &mut self.lease_reads,
                "reads_index" => &mut self.read_index_reads,
                "reads_replica" => {
                    replica_reads = *value;
                    &mut self.follower_reads
                }
                "log_conflicts" => &mut self.log_conflicts,
                "snapshots_installed" => &mut self.snapshots_installed,
                "session_repeats" => &mut self.duplicates_suppressed,
                "sessions_expired" => &mut self.sessions_expired,
                "sessions_evicted" => &mut self.sessions_evicted,
                "votes_withheld" => &mut self.votes_withheld,
                _ => continue,
            };
            *counter += value;
        }
        self.read_index_reads -= replica_reads;
    }

    /// Looks at an answer on its way to a client, to a request that had waited or not.
    pub(crate) fn add_answer(&mut self, result: &Result<Answer, Error>, waited: bool) {
        match result {
            Err(Error::DeadlineExceeded) => self.deadline_drops += u64::from(waited),
            Ok(Answer::Written(outcomes)) => {
                let failed = |outcome: &&CommandOutcome| {
                    matches!(
                        outcome,
                        CommandOutcome::CompareAndSwap {
                            succeeded: false,
                            ..
                        }
                    )
                };
                self.swaps_failed += outcomes.iter().filter(failed).count() as u64;
            }
            _ => {}
        }
    }

    /// Looks at the engines that a power cut has left. `shown` holds what was applied of
    /// each region before it.
    pub(crate) fn add_crash(&mut self, engines: &Engines<MemEngine>, shown: &[(u64, u64)]) {
        let (mut behind, mut ahead) = (false, false);
        for (region_id, shown) in shown {
            let applied = read_apply_state(&engines.kv, *region_id).ok().flatten();
            let log = read_raft_state(&engines.raft, *region_id).ok().flatten();
            let applied = applied.map_or(0, |state| state.applied_index);
            let log = log.and_then(|state| state.hard_state);
            behind |= applied < *shown;
            ahead |= log.is_some_and(|hard_state| applied > hard_state.commit);
        }
        self.crash_kv_behind += u64::from(behind);
        self.crash_kv_ahead += u64::from(ahead);
    }
}

/// What is applied of each region of a store.
pub(crate) fn applied_of(directory: &Directory) -> Vec<(u64, u64)> {
    let applied = |entry: &std::sync::Arc<strata_raftstore::DirectoryEntry>| {
        (entry.region.id, entry.view.numbers().applied)
    };
    directory.iter().map(applied).collect()
}

/// Who led each region last, to tell changes.
#[derive(Debug, Default)]
pub(crate) struct LeaderChanges {
    last: BTreeMap<u64, (u64, u64)>,
    pub(crate) count: u64,
}

impl LeaderChanges {
    /// A peer acts as leader of a term that nobody was seen to lead before.
    pub(crate) fn on_leader(&mut self, region_id: u64, term: u64, peer_id: u64) {
        let last = self.last.entry(region_id).or_insert((term, peer_id));
        if term > last.0 {
            self.count += u64::from(last.1 != peer_id);
            *last = (term, peer_id);
        }
    }
}
