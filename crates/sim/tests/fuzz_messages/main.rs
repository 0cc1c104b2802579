//! Raft messages that no network loses: repeated long after, to live stores, and forged.
//!
//! Repeated  What a store has sent once may arrive at any time, any number of times. A cluster
//!           whose messages come again seconds later, while its peers move and its stores
//!           lose their power, keeps every promise: all checkers are asked.
//! Forged    A message that no store has sent may ruin its region; it must not stop a store.
//!           Real messages of a working cluster, with some fields changed, go to live stores.
//!           A store may end itself only where it has committed an entry that it cannot read,
//!           and says so; it never panics, and it can start from what is then on its disk.
//!
//! `FUZZ_CASES=N` runs more seeds.

#[path = "../common/mod.rs"]
mod common;
mod forge;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use common::peers::{change_peers, region_at_leader, swap_roles};
use common::{SECOND, ms};
use forge::{forge, forge_snapshot, invite};
use strata_fuzz::{Mutator, run};
use strata_proto::raft_serverpb::RaftMessage;
use strata_raftstore::StoreOptions;
use strata_sim::{
    Cluster, ClusterOptions, Crash, FaultKind, Mix, Scenario, Verdict, Violation, Workload,
};

/// Messages that are kept to be repeated or changed.
const KEPT_MAX: usize = 2_000;

/// Real messages with the store that each was sent to, the oldest first.
type Kept = Rc<RefCell<VecDeque<(u64, RaftMessage)>>>;

/// Keeps one in `share` of the messages that a cluster's stores send.
fn keep_messages(cluster: &mut Cluster, share: u64) -> Kept {
    let kept = Kept::default();
    let into = kept.clone();
    let mut count = 0;
    cluster.network.add_filter(move |envelope| {
        count += 1;
        if count % share == 0 {
            let mut kept = into.borrow_mut();
            if kept.len() >= KEPT_MAX {
                kept.pop_front();
            }
            kept.push_back((envelope.to, envelope.message.clone()));
        }
        Verdict::Pass
    });
    kept
}

/// A cluster in which logs are compacted soon, so that snapshots fly as well.
fn store_options() -> StoreOptions {
    StoreOptions {
        log_gc_count_limit: 20,
        log_gc_threshold: 5,
        log_gc_tick_interval: ms(100),
        peer_stale_time: Duration::from_secs(1),
        ..StoreOptions::default()
    }
}

#[test]
fn repeated_messages_break_no_promise() {
    let mut repeated = 0;
    run("repeated messages", 60, |mutator| {
        let seed = mutator.number();
        let scenario = Scenario {
            stores: 3,
            clients: 3,
            rounds: 2,
            mix: Mix::all(),
            unreliable: true,
            crashes: true,
            faults: vec![
                FaultKind::Partition,
                FaultKind::PowerCut,
                FaultKind::Transfer,
            ],
            store: store_options(),
            ..Scenario::new(seed)
        };
        let mut kept = None;
        let mut cluster = scenario.play_with(|cluster| {
            let kept = kept.get_or_insert_with(|| keep_messages(cluster, 3));
            for _ in 0..20 {
                cluster.run_for(ms(100));
                let kept = kept.borrow();
                for _ in 0..30.min(kept.len()) {
                    // Any age: the first ones are of terms that have ended long ago.
                    let at = rand::Rng::random_range(mutator.rng(), 0..kept.len());
                    let (to, message) = &kept[at];
                    cluster.inject(*to, message.clone());
                    repeated += 1;
                }
            }
        });
        cluster.finish_clean();
    });
    assert!(repeated > 500, "only {repeated} messages were repeated");
}

/// What a store may say when it ends itself over an entry that its region has committed.
fn is_unreadable_entry(violation: &Violation) -> bool {
    match violation {
        Violation::StoreStopped { reason, .. } => {
            reason.contains("cannot be decoded") || reason.contains("needs a newer version")
        }
        Violation::RunStopped(_) => false,
        // What clients and other stores saw of a forged message is not judged here.
        _ => true,
    }
}

fn working_cluster(seed: u64) -> Cluster {
    let options = ClusterOptions {
        replicas: 3,
        store: store_options(),
        // With more than three of them a store lacks some regions, and may be told of them.
        ..ClusterOptions::new(3 + seed % 3, seed)
    };
    let mut cluster = Cluster::new(options);
    for client in 0..3u8 {
        let keys = (0..4u8).map(|key| vec![b'a' + 5 * client, b'/', key].into());
        cluster.add_client(Workload::new(vec![keys.collect()], Mix::all()));
    }
    cluster
}

/// What the forged messages of all runs have set off.
#[derive(Debug, Default)]
struct Effects {
    received: u64,
    refused: u64,
    created: u64,
    destroyed: u64,
    elections: u64,
    memberships: u64,
    installs: u64,
    stopped: u64,
}

impl Effects {
    fn add(&mut self, cluster: &Cluster, id: u64) {
        let Some(core) = &cluster.store(id).core else {
            self.stopped += 1;
            return;
        };
        let metrics = core.metrics();
        self.received += metrics.messages_received.get();
        self.refused += metrics.messages_dropped_refused.get();
        self.created += metrics.peers_created.get();
        self.destroyed += metrics.peers_destroyed.get();
        self.elections += metrics.elections_won.get();
        self.memberships += metrics.peer_changes.get();
        self.installs += metrics.snapshots_begun.get();
    }
}

/// Sends forged messages to a cluster, between pieces of its work.
fn attack(cluster: &mut Cluster, mutator: &mut Mutator, kept: &Kept) {
    for turn in 0..12 {
        if turn % 3 == 0 {
            let region_id = cluster.regions()[turn % cluster.regions().len()].id;
            if let Some((leader, region)) = region_at_leader(cluster, region_id) {
                let changes = swap_roles(&region, leader, turn);
                change_peers(cluster, leader, region_id, changes);
            }
        }
        for _ in 0..40 {
            let kept = kept.borrow();
            let newest = kept.len().saturating_sub(200);
            let from = if mutator.one_in(4) { 0 } else { newest };
            let at = rand::Rng::random_range(mutator.rng(), from..kept.len());
            let (to, message) = &kept[at];
            if let Some(forged) = forge(mutator, message) {
                cluster.inject(*to, forged);
            }
            if mutator.one_in(10)
                && let Some(forged) = invite(mutator, message)
                && let Some(to) = forged.to_peer
            {
                cluster.inject(to.store_id, forged);
            }
        }
        let snapshot = forge_snapshot(cluster, mutator, &kept.borrow());
        if let Some((to, message)) = snapshot {
            cluster.inject(to, message);
        }
        cluster.run_for(ms(60));
    }
}

#[test]
fn forged_messages_stop_no_store() {
    let mut effects = Effects::default();
    run("forged messages", 60, |mutator| {
        let mut cluster = working_cluster(mutator.number());
        let kept = keep_messages(&mut cluster, 2);
        // One store is away for long enough to need snapshots.
        cluster.network.isolate(3, &cluster.store_ids());
        cluster.run_for(2 * SECOND);
        cluster.network.heal();
        cluster.run_for(ms(300));
        attack(&mut cluster, mutator, &kept);
        for id in cluster.store_ids() {
            effects.add(&cluster, id);
            if cluster.store(id).core.is_some() {
                cluster.crash_store(id, Crash::Power);
            }
        }
        for id in cluster.store_ids() {
            cluster.start_store(id);
        }
        cluster.run_for(ms(500));
        for violation in cluster.watch.violations() {
            assert!(is_unreadable_entry(violation), "{violation}");
        }
    });
    println!("{effects:?}");
    if strata_fuzz::is_whole_run() {
        let shares = [
            effects.created,
            effects.destroyed,
            effects.installs,
            effects.memberships,
        ];
        assert!(shares.iter().all(|count| *count > 20), "{effects:?}");
        assert!(effects.received > 10 * effects.refused, "{effects:?}");
    }
}
