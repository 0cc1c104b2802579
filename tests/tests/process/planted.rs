//! Planted faults: each of the checkers that process tests end in can fail.

use nix::sys::signal::Signal;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;
use strata_proto::stratapb::RawSpace;
use strata_sim::history::{Action, Outcome};
use strata_storage::{
    Cf, Claim, DataFolder, Durability, Engine, EngineOptions, ReadView, WriteBatch, keys,
};
use strata_tests::{
    Cluster, ClusterOptions, Load, LoadOptions, Recorded, SyncRecord, cut_to_synced, strata,
};

/// What the checks say of a run that ended well: nothing. `run` must be so before a fault
/// is planted, else the test shows nothing.
fn judge_registers(recorded: &Recorded) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| recorded.assert_linearizable())).map_err(|cause| {
        let text = cause.downcast_ref::<String>();
        text.cloned().unwrap_or_default()
    })
}

async fn small_run(cluster: &Cluster) -> Recorded {
    let options = LoadOptions {
        registers: 6,
        ..LoadOptions::default()
    };
    let load = Load::start(&cluster.endpoints(), options).await;
    load.wait_for(600).await;
    let mut recorded = load.stop().await;
    let client = cluster.client().await;
    recorded.acknowledged.assert_present(&client).await;
    recorded.read_registers(&client).await;
    assert_eq!(judge_registers(&recorded), Ok(()));
    recorded
}

/// A history in which one read, long after, saw a value that was overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_stale_read_is_found() {
    let cluster = Cluster::start().await;
    let mut recorded = small_run(&cluster).await;
    let history = &mut recorded.history;
    let registers = history.by_key().into_iter();
    let (key, oldest) = registers
        .filter_map(|(key, operations)| {
            // Values are written once each, and the last operation is the read at the end.
            let puts: Vec<_> = operations
                .iter()
                .filter(|of| of.returned.is_some())
                .filter_map(|of| match &of.first().action {
                    Action::Put(value) => Some(value.clone()),
                    _ => None,
                })
                .collect();
            (puts.len() > 3).then(|| (key, puts[0].clone()))
        })
        .next()
        .expect("a register that was written several times");
    let stale = history.invoke(0, key, Action::Get, 0);
    history.complete(stale, Outcome::Value(Some(oldest)), 0);
    let verdict = judge_registers(&recorded).unwrap_err();
    assert!(verdict.contains("not linearizable"), "{verdict}");
}

/// Acknowledged data is taken from every replica, behind the harness's back.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_removed_write_is_found() {
    let cluster = Cluster::start().await;
    let recorded = small_run(&cluster).await;
    let client = cluster.client().await;
    let victim = recorded.acknowledged.first().expect("a write").clone();
    client.delete(&victim).await.unwrap();
    assert_eq!(
        recorded.acknowledged.missing(&client).await.unwrap(),
        std::slice::from_ref(&victim)
    );
    client.put(&victim, "another value").await.unwrap();
    assert_eq!(
        recorded.acknowledged.missing(&client).await.unwrap(),
        [victim]
    );
}

/// One key is dropped from the data of one replica while all nodes are down; clients that
/// read from leaders may never notice.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_diverged_replica_is_found() {
    let mut cluster = Cluster::start().await;
    let recorded = small_run(&cluster).await;
    let victim = recorded.acknowledged.first().expect("a write").clone();
    let client = cluster.client().await;
    let info = cluster.region_of(&client, &victim).await;
    let leader = info.leader.expect("a leader was waited for").store_id;
    let follower = cluster.ids().into_iter().find(|id| *id != leader);
    let follower = follower.expect("there are three nodes");
    // The run was good, and all is applied everywhere: nothing will be replayed.
    let before = cluster.assert_replicas_equal().await;
    for id in cluster.ids() {
        cluster.stop(id, Signal::SIGTERM).await;
    }
    drop_key(&cluster.spec(follower).folder, &victim);
    cluster.start_all();
    cluster.wait_ready().await;
    let verdict = cluster
        .replicas_equal_within(&cluster.ids(), Duration::from_secs(2))
        .await;
    let difference = verdict.expect_err("the checks passed over a diverged replica");
    let place = format!("region {}: replicas differ", info.region.id);
    assert!(difference.starts_with(&place), "{difference}");
    // `strata check` finds it too, though all that its own clients saw is good.
    let endpoints = cluster.endpoints().join(",");
    let words = ["check", "--seconds", "2", "--endpoints", &endpoints];
    let checked = strata(&words, b"").expect(1);
    assert!(checked.stdout.contains(&place), "{checked:?}");
    assert!(checked.stdout.contains("\nlinearizable: "), "{checked:?}");
    // Put back by a write to all replicas: the checker has nothing to say any more.
    client.put(&victim, "again").await.unwrap();
    assert_eq!(cluster.assert_replicas_equal().await, before);
}

/// Takes a raw key out of the data of a node that is down.
fn drop_key(folder: &Path, key: &[u8]) {
    let options = EngineOptions::default();
    let folder = DataFolder::open(folder, &options, &Claim::default()).unwrap();
    let kv = &folder.engines().kv;
    let stored = keys::raw_key(RawSpace::RawV1, key);
    assert!(kv.get(Cf::Raw, &stored).unwrap().is_some(), "nothing there");
    let mut batch = WriteBatch::new();
    batch.delete(Cf::Raw, stored);
    kv.write(&batch, Durability::Synced).unwrap();
}

/// A disk that lied: the power cut takes a synced part of the raft logs too. The nodes
/// refuse to start over the hole, or acknowledged writes are missing; a harness that calls
/// this run good would be blind.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_lying_disk_is_found() {
    let mut cluster = Cluster::start_with(ClusterOptions {
        record_syncs: true,
        ..ClusterOptions::default()
    })
    .await;
    let early: Vec<Vec<SyncRecord>> = cluster
        .ids()
        .into_iter()
        .map(|id| cluster.syncs(id))
        .collect();
    let recorded = small_run(&cluster).await;
    cluster.kill_all();
    for (id, syncs) in cluster.ids().into_iter().zip(early) {
        // What was synced after the start counts for nothing.
        cut_to_synced(&cluster.spec(id).folder, &syncs).unwrap();
    }
    cluster.start_all();
    let good = tokio::time::timeout(Duration::from_secs(20), async {
        let client = cluster.client().await;
        loop {
            if let Ok(missing) = recorded.acknowledged.missing(&client).await {
                return missing.is_empty();
            }
        }
    })
    .await;
    assert_ne!(good, Ok(true), "the checks passed over a disk that lied");
}
