//! What must hold when a row has ended: the checkers that all rows share.
//!
//! Leaders       Faults have ended: within a bounded number of ticks every region has a leader.
//! Rest          Clients have ended: every region has one leader, and every replica has
//!               applied the leader's whole log.
//! Answered      Every request that a running store has taken was answered.
//! Acknowledged  Every key is read; an acknowledged write is in the value, or another
//!               write may have replaced it.
//! Linearizable  The whole history with those reads has an order: key by key, and over the
//!               keys that scans, batches and removals touch in one step.
//! Replicas      Replicas hold the same data, byte for byte, at equal applied index.
//! Logs          Behind its truncation point a log is whole, it is the same on every
//!               replica, and it is within its limits.
//! Released      What was truncated is deleted, and the files of snapshots are, too.
//!
//! What was seen while the cluster ran (`watch`) is added.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use strata_proto::metapb::{Peer, PeerRole};
use strata_raftstore::Answer;

use crate::acknowledged::check_acknowledged;
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::linearizability;
use crate::operation::ClientOperation;
use crate::replicas::{check_log_limits, check_logs, check_released, check_replicas};
use crate::snapshots::LOG_GC_WAIT;
use crate::violation::Violation;

/// Ticks within which every region of a healed cluster has a leader: some election timeouts,
/// for votes may be split, and withheld for one timeout after a start.
const LEADER_TICKS_MAX: u32 = 160;
/// Files of snapshots are looked at where they are removed at least this often.
const FILES_INTERVAL_MAX: Duration = Duration::from_secs(3);
/// How long clients of a healed cluster may take for their last operation.
const CLIENTS_MAX: Duration = Duration::from_secs(30);
/// How long a healed cluster without clients may take to come to rest.
const REST_MAX: Duration = Duration::from_secs(5);
/// How long a store at rest may still hold a request: longer than any deadline.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What a row has done, for a closing line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunReport {
    /// True time.
    pub length: Duration,
    /// Operations of the history.
    pub operations: usize,
    /// Keys of the history.
    pub keys: usize,
    /// Writes and reads that were acknowledged.
    pub acknowledged: u64,
    /// Raft messages sent.
    pub messages: u64,
    /// Terms in which some peer led, over all regions.
    pub terms_led: usize,
    /// Snapshots installed.
    pub snapshots: u64,
    /// Deletions of compacted entries.
    pub compactions: u64,
    /// Messages and acknowledgements aside: what the run has reached.
    pub counters: Counters,
    /// Events of the trace.
    pub events: u64,
    /// Hash of the trace.
    pub hash: u64,
}

impl Cluster {
    /// Heals, stops the clients, waits for rest and checks everything.
    ///
    /// # Errors
    /// All violations that were found, the most telling first.
    pub fn finish(&mut self) -> Result<RunReport, Vec<Violation>> {
        self.stop_clients();
        self.heal();
        let mut found = Vec::new();
        let leaders_max = self.options.store.tick_interval * LEADER_TICKS_MAX;
        if !self.run_until(leaders_max, |cluster| cluster.leaderless().is_none()) {
            let region = self.leaderless().unwrap_or_default();
            found.push(Violation::NoProgress(format!(
                "region {region} has no leader {LEADER_TICKS_MAX} ticks after all was healed"
            )));
        }
        if !self.run_until(CLIENTS_MAX, Cluster::clients_are_idle) {
            found.push(Violation::NoProgress(
                "a client waits for its last answer".to_owned(),
            ));
        }
        let acknowledged = self.acknowledged();
        match self.read_everything() {
            Ok(values) => {
                found.extend(check_acknowledged(&self.history, &values));
                if let Err(fault) = linearizability::check(&self.history) {
                    found.push(fault.into());
                }
            }
            Err(violation) => found.push(violation),
        }
        if !self.run_until(REST_MAX, |cluster| cluster.unrest().is_none()) {
            let why = self.unrest().unwrap_or_default();
            found.push(Violation::NoProgress(why));
        }
        if !self.run_until(ANSWER_MAX, |cluster| cluster.unanswered.is_empty()) {
            let never = self.unanswered.iter();
            found.extend(never.map(|(call, store)| Violation::NeverAnswered {
                store_id: *store,
                call: *call,
            }));
        }
        // Leaders hear where their followers are, look at their logs once more, and replicas
        // follow.
        let store = &self.options.store;
        let round =
            store.tick_interval * (store.heartbeat_ticks as u32 + 1) + store.log_gc_tick_interval;
        // A log that waited may ask once more.
        self.run_for(round * 2 + LOG_GC_WAIT * 2);
        if !self.run_until(REST_MAX, |cluster| cluster.unrest().is_none()) {
            let why = self.unrest().unwrap_or_default();
            found.push(Violation::NoProgress(why));
        }
        found.extend(check_log_limits(self));
        found.extend(check_replicas(self));
        found.extend(self.check_memberships());
        found.extend(check_logs(self));
        found.extend(self.check_all_released());
        // What was seen while the cluster ran is the cause of what is wrong at its end.
        found.splice(0..0, self.watch.violations().iter().cloned());
        if found.is_empty() {
            Ok(self.report(acknowledged))
        } else {
            Err(found)
        }
    }

    /// Gives the workers time to remove files, where they do so often, and checks what is
    /// left.
    fn check_all_released(&mut self) -> Vec<Violation> {
        let interval = self.options.store.snapshot_gc_interval;
        let mut left = check_released(self);
        if interval <= FILES_INTERVAL_MAX {
            for _ in 0..4 {
                if left.is_empty() {
                    break;
                }
                self.run_for(interval);
                left = check_released(self);
            }
            return left;
        }
        // The files may stay longer than a run lasts.
        left.retain(|one| matches!(one, Violation::NotReleased { file: false, .. }));
        left
    }

    fn report(&self, acknowledged: u64) -> RunReport {
        RunReport {
            length: self.now(),
            operations: self.history.len(),
            keys: self.history.keys().len(),
            acknowledged,
            messages: self.network.counts().0,
            terms_led: self.watch.terms_led(),
            snapshots: self.installed,
            compactions: self.compacted,
            counters: self.counters(),
            events: self.trace.count(),
            hash: self.trace.hash(),
        }
    }

    /// What the run has reached so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.leader_changes += self.watch.changes.count;
        for core in self.stores.values().filter_map(|store| store.core.as_ref()) {
            counters.add_metrics(&core.metrics().snapshot());
        }
        counters
    }

    /// [`Cluster::finish`], for tests.
    ///
    /// # Panics
    /// With all violations and the last events, if there is a violation.
    pub fn finish_clean(&mut self) -> RunReport {
        match self.finish() {
            Ok(report) => report,
            Err(violations) => {
                let lines: Vec<String> = violations.iter().map(|v| v.to_string()).collect();
                panic!(
                    "{}\n\nlast events:\n{}\nseed {}: {} violations: {}",
                    lines.join("\n"),
                    self.trace,
                    self.options.seed,
                    lines.len(),
                    lines[0]
                );
            }
        }
    }

    /// Reads every key that is in the history.
    fn read_everything(&mut self) -> Result<BTreeMap<Bytes, Option<Bytes>>, Violation> {
        let mut values = BTreeMap::new();
        for key in self.history.keys() {
            let operation = match key.strip_prefix(b"system:") {
                Some(record) => ClientOperation::SystemGet(Bytes::copy_from_slice(record)),
                None => ClientOperation::Get(key.clone()),
            };
            match self.execute(operation, CLIENTS_MAX) {
                Some(Answer::Value(value)) => {
                    values.insert(key, value);
                }
                answer => {
                    let key = key.escape_ascii();
                    let detail = format!("key \"{key}\" cannot be read: {answer:?}");
                    return Err(Violation::NoProgress(detail));
                }
            }
        }
        Ok(values)
    }

    /// A region without a leader, if there is one. A leader is one that leads in the highest
    /// term that any member knows, and that a majority of the members follow.
    fn leaderless(&self) -> Option<u64> {
        let led = |id: &u64| {
            let cores = self.stores.values().filter(|store| !store.out);
            let cores = cores.filter_map(|store| store.core.as_ref());
            let entries: Vec<_> = cores
                .filter_map(|core| core.directory().entry(*id))
                .collect();
            let known = entries.iter().map(|entry| entry.view.numbers());
            let highest = known.clone().map(|numbers| numbers.term).max();
            let leader = entries
                .iter()
                .find(|entry| entry.leads() && Some(entry.view.term()) == highest)
                .map(|entry| entry.peer.id);
            let following = known
                .filter(|numbers| Some(numbers.term) == highest && Some(numbers.leader) == leader)
                .count();
            leader.is_some() && following > self.present_region(*id).peers.len() / 2
        };
        let mut ids = self.regions.iter().map(|region| region.id);
        ids.find(|id| !led(id))
    }

    /// Why the cluster is not at rest, if it is not.
    #[must_use]
    pub fn unrest(&self) -> Option<String> {
        self.regions
            .iter()
            .find_map(|region| self.unrest_of(region))
    }

    fn unrest_of(&self, region: &strata_proto::metapb::Region) -> Option<String> {
        let id = region.id;
        let Some(leader) = self.leader_of(id) else {
            return Some(format!("region {id} has no leader"));
        };
        let present = self.present_region(id);
        let joint = |peer: &Peer| !matches!(peer.role(), PeerRole::Voter | PeerRole::Learner);
        if present.peers.iter().any(joint) {
            return Some(format!("region {id} is in a joint membership"));
        }
        let mut expected = None;
        let members = present.peers.iter().map(|peer| peer.store_id);
        let taking_part = members.filter(|store| !self.store(*store).is_out());
        for store in std::iter::once(leader).chain(taking_part) {
            let Some(core) = &self.store(store).core else {
                return Some(format!("store {store} is down"));
            };
            let Some(entry) = core.directory().entry(id) else {
                return Some(format!("store {store} has no peer of region {id}"));
            };
            let numbers = entry.view.numbers();
            let state = (numbers.term, numbers.leader, numbers.last, numbers.last);
            let own = (numbers.term, numbers.leader, numbers.last, numbers.applied);
            let wanted = *expected.get_or_insert(state);
            if wanted != own {
                return Some(format!(
                    "region {id} on store {store}: (term, leader, last, applied) is {own:?} \
                     and shall be {wanted:?}"
                ));
            }
        }
        None
    }
}
