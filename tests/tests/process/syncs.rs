//! Syncs are counted on real files, and a power cut is played with what was recorded.

use std::collections::BTreeMap;
use strata_tests::{Cluster, ClusterOptions, Load, LoadOptions, cut_to_synced, eventually_sync};

/// Logs that are compacted early, in files so small that these are used again soon.
const SHORT_LOGS: [(&str, &str); 4] = [
    ("STRATA_RAFT_LOG_GC_TICK_INTERVAL", "200ms"),
    ("STRATA_RAFT_LOG_GC_COUNT_LIMIT", "100"),
    ("STRATA_RAFT_LOG_GC_THRESHOLD", "10"),
    ("STRATA_STORAGE_LOG_FILE_SIZE", "64KiB"),
];

const RECORDED: ClusterOptions = ClusterOptions {
    nodes: 3,
    replicas: None,
    regions: None,
    record_syncs: true,
    environment: Vec::new(),
    hosts: None,
};

/// Completed fdatasync calls on write-ahead logs of each node's raft engine.
fn raft_syncs(cluster: &Cluster) -> BTreeMap<u64, usize> {
    cluster
        .ids()
        .into_iter()
        .map(|id| {
            let folder = cluster.spec(id).folder.join("raft");
            let count = cluster
                .syncs(id)
                .iter()
                .filter(|record| record.call == "fdatasync" && record.path.starts_with(&folder))
                .filter(|record| {
                    record
                        .path
                        .extension()
                        .is_some_and(|ending| ending == "log")
                })
                .count();
            (id, count)
        })
        .collect()
}

/// Whether records of a file of the node's raft engine have begun anew.
fn is_used_again(cluster: &Cluster, id: u64) -> bool {
    let folder = cluster.spec(id).folder.join("raft");
    let mut ends = BTreeMap::new();
    cluster.syncs(id).iter().any(|record| {
        let is_log = record.path.starts_with(&folder) && record.path != folder;
        let before = ends.insert(record.path.clone(), record.length);
        is_log && before.is_some_and(|before| record.length < before)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_proven_by_counting_them() {
    const PUTS: usize = 200;
    let cluster = Cluster::start_with(RECORDED).await;
    let client = cluster.client().await;
    loop {
        client.put(b"a-key", "warm").await.unwrap();
        let leader = cluster.region_of(&client, b"a-key").await.leader;
        let before = raft_syncs(&cluster);
        for number in 0..PUTS {
            client.put(b"a-key", number.to_string()).await.unwrap();
        }
        let after = raft_syncs(&cluster);
        if cluster.region_of(&client, b"a-key").await.leader != leader {
            // Leadership moved meanwhile: the leader's count would say nothing.
            continue;
        }
        let leader = leader.expect("a leader was waited for").store_id;
        let count = |id: &u64| after[id] - before[id];
        let all: usize = after.keys().map(count).sum();
        println!(
            "{PUTS} puts: {} syncs by the leader, {all} by all",
            count(&leader)
        );
        assert!(
            count(&leader) >= PUTS,
            "{} syncs for {PUTS} puts",
            count(&leader)
        );
        assert!(all >= 2 * PUTS, "{all} syncs of all nodes for {PUTS} puts");
        cluster.assert_replicas_equal().await;
        return;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_played_on_real_files_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start_with(ClusterOptions {
        environment: SHORT_LOGS
            .map(|(key, value)| (key.into(), value.into()))
            .to_vec(),
        ..RECORDED
    })
    .await;
    let load = Load::start(&cluster.endpoints(), LoadOptions::default()).await;
    load.wait_for(1000).await;
    eventually_sync("a file of a log to be used again", || {
        let used = cluster
            .ids()
            .into_iter()
            .any(|id| is_used_again(&cluster, id));
        used.then_some(()).ok_or("none yet")
    })
    .await;
    cluster.kill_all();
    let recorded = load.stop().await;
    let mut lost = 0;
    for id in cluster.ids() {
        let syncs = cluster.syncs(id);
        assert!(!syncs.is_empty(), "node {id} never synced");
        lost += cut_to_synced(&cluster.spec(id).folder, &syncs).unwrap();
    }
    println!("the power cut took {lost} bytes");
    assert!(lost > 0, "nothing was cut, so nothing is shown");
    cluster.start_all();
    cluster.wait_ready().await;
    recorded.assert_all(&cluster).await;
}

/// The shim is in every node: without it the two tests above would show nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_shim_sees_the_files_of_both_engines() {
    let cluster = Cluster::start_with(RECORDED).await;
    let client = cluster.client().await;
    client.put(b"a-key", "v").await.unwrap();
    for id in cluster.ids() {
        let syncs = cluster.syncs(id);
        for engine in ["raft", "kv"] {
            let folder = cluster.spec(id).folder.join(engine);
            assert!(
                syncs.iter().any(|record| record.path.starts_with(&folder)),
                "node {id} synced nothing in {}",
                folder.display()
            );
        }
    }
    cluster.assert_replicas_equal().await;
}
