//! What the tests of snapshots share: short logs, much data in one region, counters.

use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeSet;
use strata_client::RawClient;
use strata_tests::{Cluster, ClusterOptions, eventually, eventually_sync, strata};

/// A key of the region that all of this happens in.
pub(super) const KEY: &[u8] = b"bulk";
/// Bytes of a MiB.
pub(super) const MIB: u64 = 1 << 20;
/// Bytes of one value.
const VALUE: usize = 256 << 10;
/// Values in one write, 2 MiB together.
const BATCH: u64 = 8;
/// Writers side by side.
const WRITERS: u64 = 4;

/// Three nodes whose logs are compacted early, with further settings.
pub(super) fn short_logs(settings: &[(&str, &str)]) -> ClusterOptions {
    let early = [
        ("STRATA_RAFT_LOG_GC_TICK_INTERVAL", "200ms"),
        ("STRATA_RAFT_LOG_GC_COUNT_LIMIT", "100"),
        ("STRATA_RAFT_LOG_GC_SIZE_LIMIT", "8MiB"),
        ("STRATA_RAFT_LOG_GC_THRESHOLD", "10"),
        ("STRATA_STORAGE_LOG_FILE_SIZE", "8MiB"),
        ("STRATA_SNAPSHOT_GC_INTERVAL", "3s"),
    ];
    let all = early.iter().chain(settings);
    ClusterOptions {
        environment: all
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        ..ClusterOptions::default()
    }
}

/// A client whose writes wait out an election on a busy machine.
pub(super) async fn patient_client(cluster: &Cluster) -> RawClient {
    let options = strata_client::Options {
        operation_timeout: strata_tests::DEADLINE,
        ..strata_client::Options::default()
    };
    cluster.client_with(options).await
}

/// Bytes that do not compress, another sequence for each number.
pub(super) fn random_bytes(number: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(number).fill_bytes(&mut bytes);
    bytes.into()
}

fn value(number: u64) -> Bytes {
    random_bytes(number, VALUE)
}

fn key(number: u64) -> Bytes {
    [KEY, format!("-{number:06}").as_bytes()].concat().into()
}

/// Writes so many MiB into the region of [`KEY`]; all is acknowledged when it returns.
pub(super) async fn write_mib(client: &RawClient, mib: u64) {
    let batches = mib * MIB / (BATCH * VALUE as u64);
    let writers = (0..WRITERS).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move {
            for batch in (writer..batches).step_by(WRITERS as usize) {
                let numbers = batch * BATCH..(batch + 1) * BATCH;
                let pairs = numbers.map(|number| (key(number), value(number)));
                client.batch_put(pairs.collect(), 0).await?;
            }
            Ok::<(), strata_client::Error>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().expect("all is acknowledged");
    }
}

/// Reads back what [`write_mib`] wrote.
pub(super) async fn assert_written(client: &RawClient, mib: u64) {
    for number in 0..mib * MIB / VALUE as u64 {
        let key = key(number);
        let held = eventually("a value", || client.get(&key)).await;
        assert!(
            held == Some(value(number)),
            "value {number} is not as written"
        );
    }
}

/// A number of `GET /debug/regions/ID`; 0 while the node or the region is not there.
pub(super) fn number(cluster: &Cluster, id: u64, region: u64, name: &str) -> u64 {
    let state = cluster.region_state(id, region).unwrap_or_default();
    state[name].as_u64().unwrap_or_default()
}

/// Where a region's log ends on the disk of a node that was killed. What the node said before
/// would be too little: it may have appended more until it died.
pub(super) fn last_index_of_the_dead(cluster: &Cluster, id: u64, region: u64) -> u64 {
    assert!(!cluster.running().contains(&id), "node {id} runs");
    let folder = cluster.spec(id).folder.display().to_string();
    let region = region.to_string();
    let words = ["debug", "raft-state", "--region", &region];
    let with = ["--format", "json", "--data-dir", &folder];
    let printed = strata(&[&words[..], &with].concat(), b"").expect(0).stdout;
    let state: Value = serde_json::from_str(&printed).expect("one region, one line");
    state["last_index"].as_u64().expect("a log has an end")
}

/// Waits until a number of a region on a node has come to at least `goal`.
pub(super) async fn reached(cluster: &Cluster, id: u64, region: u64, name: &str, goal: u64) {
    let what = format!("{name} of region {region} on node {id}");
    eventually_sync(&what, || match number(cluster, id, region, name) {
        found if found >= goal => Ok(()),
        found => Err(format!("{found} of {goal}")),
    })
    .await;
}

/// The store that leads the region of [`KEY`], and the region's id.
pub(super) async fn leader(cluster: &Cluster, client: &RawClient) -> (u64, u64) {
    leader_of(cluster, client, KEY).await
}

/// The store that leads the region of a key, and the region's id.
pub(super) async fn leader_of(cluster: &Cluster, client: &RawClient, key: &[u8]) -> (u64, u64) {
    let info = cluster.region_of(client, key).await;
    let leader = info.leader.expect("a leader was waited for");
    (leader.store_id, info.region.id)
}

/// Waits until the log of a region no longer holds what follows `last`, on any node that
/// runs.
pub(super) async fn compacted_past(cluster: &Cluster, region: u64, last: u64) {
    for id in cluster.running() {
        reached(cluster, id, region, "truncated_index", last + 1).await;
    }
}

/// What is under way to a node: bytes that it holds, and bytes of all files.
pub(super) fn under_way(cluster: &Cluster, id: u64, region: u64) -> Option<(u64, u64)> {
    let state = cluster.region_state(id, region).ok()?;
    let all = state["snapshots_under_way"].as_array()?;
    let transfer = all
        .iter()
        .find(|transfer| transfer["direction"] == "from")?;
    let bytes = |name: &str| transfer.get(name).and_then(Value::as_u64);
    Some((bytes("held_bytes")?, bytes("total_bytes")?))
}

/// Waits until a node holds at least `mib` MiB of a snapshot that is under way; the bytes
/// held, and those of all files.
pub(super) async fn held(cluster: &Cluster, id: u64, region: u64, mib: u64) -> (u64, u64) {
    eventually_sync("a snapshot to be under way", || {
        match under_way(cluster, id, region) {
            Some((held, total)) if held >= mib * MIB => Ok((held, total)),
            other => Err(other),
        }
    })
    .await
}

/// Beginnings of the names of a region's received snapshots on a node, one a snapshot.
pub(super) fn received_names(cluster: &Cluster, id: u64, region: u64) -> BTreeSet<String> {
    let folder = cluster.spec(id).folder.join("snapshots");
    let names = folder.read_dir().into_iter().flatten().flatten();
    let prefix = format!("rev_{region}_");
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .map(|name| {
            let stem = name.split('.').next().unwrap_or_default();
            // Origin, region, term, index and id.
            stem.split('_').take(5).collect::<Vec<_>>().join("_")
        })
        .collect()
}
