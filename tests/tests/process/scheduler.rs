//! The cluster as a scheduler-style client sees it: regions and leaders, ids, heartbeats,
//! moved leaders, timestamps.

use std::collections::{BTreeMap, BTreeSet};
use strata_client::{RawClient, Timestamps};
use strata_proto::stratapb::WatchRegionsResponse;
use strata_tests::{Cluster, ClusterOptions, DEADLINE, eventually_sync, http_get};

#[tokio::test(flavor = "multi_thread")]
async fn regions_cover_the_key_space_and_every_node_says_the_same() {
    let cluster = Cluster::start_with(ClusterOptions {
        regions: Some(8),
        ..ClusterOptions::default()
    })
    .await;
    for id in cluster.ids() {
        let client = RawClient::connect(&[cluster.address(id)], Default::default())
            .await
            .unwrap();
        let scheduler = client.scheduler();
        let regions = scheduler.all_regions().await.unwrap();
        assert_eq!(regions.len(), 8);
        assert!(regions[0].region.start_key.is_empty());
        assert!(regions[7].region.end_key.is_empty());
        for pair in regions.windows(2) {
            assert_eq!(pair[0].region.end_key, pair[1].region.start_key);
            let left = scheduler.previous_region(&pair[1].region.start_key).await;
            assert_eq!(left.unwrap().region.id, pair[0].region.id);
        }
        for info in &regions {
            assert!(info.region.id >= 2, "region 1 holds no user data");
            assert_eq!(info.region.peers.len(), 3);
            let found = scheduler.region(&info.region.start_key).await.unwrap();
            assert_eq!(found.region.id, info.region.id);
            let by_id = scheduler.region_by_id(info.region.id).await.unwrap();
            assert_eq!(by_id.region, info.region);
        }
        assert!(matches!(
            scheduler.region_by_id(1).await,
            Err(strata_client::Error::NotFound(_) | strata_client::Error::Scheduler { .. })
        ));
        let stores: BTreeSet<String> = scheduler
            .all_stores()
            .await
            .unwrap()
            .into_iter()
            .map(|store| store.address)
            .collect();
        assert_eq!(stores, cluster.endpoints().into_iter().collect());
    }
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_never_given_out_twice_also_after_a_restart() {
    let mut cluster = Cluster::start().await;
    let mut given = BTreeSet::new();
    for _ in 0..2 {
        let client = cluster.client().await;
        for count in [1, 1, 10, 1000, 1] {
            let highest = client.scheduler().alloc_ids(count).await.unwrap();
            for id in highest + 1 - u64::from(count)..=highest {
                assert!(id >= 1_000_000, "{id} may be a bootstrap id");
                assert!(given.insert(id), "{id} was given out twice");
            }
        }
        cluster.kill_all();
        cluster.start_all();
        cluster.wait_ready().await;
    }
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timestamps_grow_over_a_change_of_the_schedulers_leader() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mut timestamps = Timestamps::new(client.scheduler());
    let mut last = timestamps.take(1).await.unwrap();
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as i64;
    assert!((last.physical - now).abs() < 60_000, "{last:?} is no time");
    let mut take = async |timestamps: &mut Timestamps, count: u32| {
        let next = eventually_timestamp(timestamps, count).await;
        let lowest = (next.physical, next.logical - i64::from(count) + 1);
        assert!(
            lowest > (last.physical, last.logical),
            "{next:?} after {last:?}"
        );
        last = next;
    };
    for count in [1, 64, 1, 1000] {
        take(&mut timestamps, count).await;
    }
    let status = client.admin().status().await.unwrap();
    cluster.kill(status.scheduler_store_id);
    for count in [1, 64, 1] {
        take(&mut timestamps, count).await;
    }
    cluster.start_node(status.scheduler_store_id);
    cluster.wait_ready().await;
    take(&mut timestamps, 1).await;
    cluster.assert_replicas_equal().await;
}

async fn eventually_timestamp(timestamps: &mut Timestamps, count: u32) -> strata_client::Timestamp {
    for _ in 0..6 {
        if let Ok(timestamp) = timestamps.take(count).await {
            return timestamp;
        }
    }
    panic!("no timestamp in a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_move_and_heartbeats_and_pages_follow() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let region = cluster.region_of(&client, b"a-key").await.region;
    let mut heartbeats = client.admin().watch_regions().await.unwrap();
    let mut terms = BTreeMap::new();
    for peer in &region.peers {
        let store_id = peer.store_id;
        client
            .admin()
            .transfer_leader(region.id, store_id)
            .await
            .unwrap();
        let place = client.scheduler().region_by_id(region.id).await.unwrap();
        assert_eq!(place.leader.map(|leader| leader.store_id), Some(store_id));
        // The stream says so too.
        let beat = next_heartbeat(&mut heartbeats, region.id, store_id);
        let term = tokio::time::timeout(DEADLINE, beat)
            .await
            .expect("the heartbeat of the new leader comes");
        terms.insert(term, store_id);
        // So does the page of the store itself.
        eventually_sync("the page of the new leader", || {
            let state = cluster.region_state(store_id, region.id);
            let state = state.map_err(|error| error.to_string())?;
            match state["leader"]["store_id"].as_u64() {
                Some(leader) if leader == store_id => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        client.put(b"a-key", store_id.to_string()).await.unwrap();
    }
    assert!(!terms.is_empty());
    let nowhere = client.admin().transfer_leader(region.id, 99).await;
    assert!(matches!(
        nowhere,
        Err(strata_client::Error::InvalidArgument(_))
    ));
    cluster.assert_replicas_equal().await;
}

/// Waits for the heartbeat of a region that a store leads; its term.
async fn next_heartbeat(
    heartbeats: &mut tonic::Streaming<WatchRegionsResponse>,
    region_id: u64,
    store_id: u64,
) -> u64 {
    loop {
        let batch = heartbeats.message().await.expect("the stream goes on");
        for beat in batch.expect("the stream goes on").regions {
            if beat.region.is_some_and(|of| of.id == region_id)
                && beat.leader.is_some_and(|of| of.store_id == store_id)
            {
                return beat.term;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_node_are_complete() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.put(b"a-key", "v").await.unwrap();
    let region = cluster.region_of(&client, b"a-key").await.region;
    for id in cluster.ids() {
        eventually_sync("the replica to apply what the leader applied", || {
            let state = cluster.region_state(id, region.id);
            let state = state.map_err(|error| error.to_string())?;
            for field in [
                "region_id",
                "range",
                "peers",
                "leader",
                "term",
                "first_index",
                "truncated_index",
                "truncated_term",
                "applied_index",
                "committed_index",
                "last_index",
                "snapshots_sent",
                "snapshots_received",
                "snapshot_chunks_sent",
            ] {
                assert!(state.get(field).is_some(), "{field} is missing in {state}");
            }
            let index = |field: &str| state[field].as_u64().expect("a number");
            assert!(
                index("first_index") == index("truncated_index") + 1,
                "{state}"
            );
            assert!(index("committed_index") <= index("last_index"), "{state}");
            if index("applied_index") == index("last_index") {
                Ok(())
            } else {
                Err(state.to_string())
            }
        })
        .await;
        let address = cluster.address(id);
        for page in [
            "/status",
            "/metrics",
            "/pd/api/v1/regions",
            "/pd/api/v1/stores",
            "/pd/api/v1/members",
        ] {
            let answer = http_get(&address, page).unwrap();
            assert_eq!(answer.status, 200, "{page}");
            assert!(!answer.body.is_empty(), "{page}");
        }
    }
    cluster.assert_replicas_equal().await;
}

/// Idle nodes stay small; printed and bounded, as the bound is a promise.
#[tokio::test(flavor = "multi_thread")]
async fn idle_nodes_stay_below_100_mb_resident() {
    let mut cluster = Cluster::start().await;
    for id in cluster.ids() {
        let pid = cluster.node(id).pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!("node {id}: {kib} KiB resident");
        assert!(kib < 100_000, "node {id} takes {kib} KiB");
    }
    cluster.assert_replicas_equal().await;
}
