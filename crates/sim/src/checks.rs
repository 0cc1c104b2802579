//! What must hold when a row has ended: the checkers that all rows share.
//!
//! Rest          Faults have ended: every region has one leader, and every replica has
//!               applied the leader's whole log.
//! Answered      Every request that a running store has taken was answered.
//! Acknowledged  Every key is read; an acknowledged write is in the value, or another
//!               write may have replaced it.
//! Linearizable  The whole history with those reads has an order, key by key.
//! Replicas      Replicas hold the same data, byte for byte, at equal applied index.
//! Logs          Behind its truncation point a log is whole, it is the same on every
//!               replica, and it is within its limits.
//!
//! What was seen while the cluster ran (`watch`) is added.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use strata_proto::metapb::{Peer, PeerRole};
use strata_raftstore::Answer;

use crate::acknowledged::check_acknowledged;
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::linearizability;
use crate::operation::ClientOperation;
use crate::replicas::{check_log_limits, check_logs, check_replicas};
use crate::violation::Violation;

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
        self.run_for(round * 2);
        if !self.run_until(REST_MAX, |cluster| cluster.unrest().is_none()) {
            let why = self.unrest().unwrap_or_default();
            found.push(Violation::NoProgress(why));
        }
        found.extend(check_log_limits(self));
        found.extend(check_replicas(self));
        found.extend(self.check_memberships());
        found.extend(check_logs(self));
        found.extend(self.watch.violations().iter().cloned());
        if found.is_empty() {
            Ok(self.report(acknowledged))
        } else {
            Err(found)
        }
    }

    fn report(&self, acknowledged: u64) -> RunReport {
        RunReport {
            length: self.now(),
            operations: self.history.len(),
            keys: self.history.by_key().len(),
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
        let keys: BTreeSet<Bytes> = self
            .history
            .operations()
            .map(|operation| operation.key.clone())
            .collect();
        let mut values = BTreeMap::new();
        for key in keys {
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
