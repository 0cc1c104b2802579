//! Nodes killed under load.

use strata_tests::{Cluster, ClusterOptions, Load, LoadOptions};

/// The store that leads the region of `key`.
async fn leader(cluster: &Cluster, key: &[u8]) -> u64 {
    let client = cluster.client().await;
    let info = cluster.region_of(&client, key).await;
    info.leader.expect("a leader was waited for").store_id
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_killed_under_load_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::start(&cluster.endpoints(), LoadOptions::default()).await;
    for key in [&b"a"[..], b"t"] {
        load.wait_for(300).await;
        let victim = leader(&cluster, key).await;
        cluster.kill(victim);
        load.wait_for(600).await;
        cluster.start_node(victim);
        cluster.wait_ready().await;
    }
    load.wait_for(300).await;
    let recorded = load.stop().await;
    recorded.assert_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_and_restarted_lose_nothing() {
    kill_all_and_restart(Cluster::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_lose_nothing_with_a_data_log() {
    let data_log = ("STRATA_STORAGE_DATA_LOG".to_owned(), "on".to_owned());
    let cluster = Cluster::start_with(ClusterOptions {
        environment: vec![data_log],
        ..ClusterOptions::default()
    });
    kill_all_and_restart(cluster.await).await;
}

/// What is replayed then is all since the last flush. Logs are short, so that entries go meanwhile,
/// each time after a flush.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_lose_nothing_between_flushes() {
    let settings = [
        ("STRATA_STORAGE_FLUSH_INTERVAL", "300ms"),
        ("STRATA_RAFT_LOG_GC_TICK_INTERVAL", "100ms"),
        ("STRATA_RAFT_LOG_GC_COUNT_LIMIT", "100"),
    ];
    let cluster = Cluster::start_with(ClusterOptions {
        environment: settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..ClusterOptions::default()
    });
    let cluster = kill_all_and_restart(cluster.await).await;
    for id in cluster.ids() {
        let kv = cluster.spec(id).folder.join("kv");
        let logs = std::fs::read_dir(kv).unwrap().map(Result::unwrap);
        let logs = logs.filter(|file| {
            file.path()
                .extension()
                .is_some_and(|ending| ending == "log")
        });
        let bytes: u64 = logs.map(|log| log.metadata().unwrap().len()).sum();
        assert_eq!(bytes, 0, "node {id} has a data log");
    }
}

async fn kill_all_and_restart(mut cluster: Cluster) -> Cluster {
    for seed in 1..=3 {
        let options = LoadOptions {
            seed,
            ..LoadOptions::default()
        };
        let load = Load::start(&cluster.endpoints(), options).await;
        load.wait_for(500).await;
        cluster.kill_all();
        cluster.start_all();
        load.wait_for(200).await;
        let recorded = load.stop().await;
        cluster.wait_ready().await;
        recorded.assert_all(&cluster).await;
    }
    cluster
}

/// A benchmark: printed, not asserted.
#[tokio::test(flavor = "multi_thread")]
async fn gap_between_acknowledgements_over_ten_leader_kills() {
    const KILLS: usize = 10;
    let mut cluster = Cluster::start().await;
    let mut gaps = Vec::new();
    for seed in 0..KILLS as u64 {
        let options = LoadOptions {
            registers: 1,
            seed,
            ..LoadOptions::default()
        };
        let victim = leader(&cluster, b"a").await;
        let load = Load::start(&cluster.endpoints(), options).await;
        load.wait_for(200).await;
        cluster.kill(victim);
        load.wait_for(300).await;
        let recorded = load.stop().await;
        gaps.push(recorded.longest_gap);
        cluster.start_node(victim);
        cluster.wait_ready().await;
        recorded.assert_all(&cluster).await;
    }
    assert_eq!(gaps.len(), KILLS);
    gaps.sort();
    println!("longest gaps between acknowledgements of 8 writers: {gaps:?}");
    println!("median: {:?}", (gaps[KILLS / 2 - 1] + gaps[KILLS / 2]) / 2);
}
