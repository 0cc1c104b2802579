//! `strata debug` on the folders of stopped nodes.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use strata_client::RawClient;
use strata_tests::{Cluster, ClusterOptions, Finished, strata};

fn debug(folder: &Path, words: &[&str]) -> Finished {
    let dir = folder.to_str().unwrap();
    strata(&[&["debug"], words, &["--data-dir", dir]].concat(), b"")
}

fn json_lines(folder: &Path, words: &[&str]) -> Vec<Value> {
    let words = [words, &["--format", "json"]].concat();
    let printed = debug(folder, &words).expect(0).stdout;
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every file with its length and time of change.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(listing(&path));
        }
        found.insert(path, (metadata.len(), metadata.modified().unwrap()));
    }
    found
}

/// Keys of [`filled`].
const KEYS: u64 = 300;

/// Three nodes with a setting, and some keys.
async fn filled((key, value): (&str, &str)) -> (Cluster, RawClient) {
    let cluster = Cluster::start_with(ClusterOptions {
        environment: vec![(key.to_owned(), value.to_owned())],
        ..ClusterOptions::default()
    })
    .await;
    let client = cluster.client().await;
    for number in 0..KEYS {
        let key = format!("debug-{number:03}");
        client.put(key.as_bytes(), vec![b'v'; 100]).await.unwrap();
    }
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_reads_the_folder_of_a_stopped_node() {
    let (mut cluster, client) = filled(("STRATA_STORAGE_DATA_LOG", "on")).await;
    client.put_with_ttl(b"debug-ttl", "v", 3600).await.unwrap();
    let sum = client.checksum(b"", b"").await.unwrap();
    let region = cluster.region_of(&client, b"debug-").await.region.id;
    let region = region.to_string();
    cluster.assert_replicas_equal().await;

    let running = debug(&cluster.spec(1).folder, &["checksum"]).expect(3);
    assert!(running.stderr.contains("in use"), "{running:?}");
    // One has no chance to close its engines: what its logs hold counts.
    cluster.kill(3);
    for id in [1, 2] {
        cluster.stop(id, Signal::SIGTERM).await;
    }

    let mut lines = Vec::new();
    for id in cluster.ids() {
        let folder = &cluster.spec(id).folder;
        let before = listing(folder);
        lines.push(
            debug(folder, &["checksum", "--region", &region])
                .expect(0)
                .stdout,
        );
        // The whole store holds what the raw read of all regions saw.
        let sums = json_lines(folder, &["checksum"]);
        let users = sums.iter().filter(|line| line["region_id"] != 1);
        let keys: u64 = users.map(|line| line["keys"].as_u64().unwrap()).sum();
        assert_eq!(keys, sum.pairs, "node {id}");
        check_records(folder, &region);
        assert_eq!(
            listing(folder),
            before,
            "the folder of node {id} was written"
        );
    }
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words[..3], ["region", &region, "keys"], "{lines:?}");
    assert_eq!(words[3], (KEYS + 1).to_string(), "{lines:?}");
    assert_eq!(words[4], "crc64", "{lines:?}");
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");

    // The folders are as good as before.
    cluster.start_all();
    cluster.wait_ready().await;
    assert_eq!(client.checksum(b"", b"").await.unwrap().pairs, sum.pairs);
}

/// Without a log of the data engine the folder of a killed node is as of its last flush, and its
/// records agree with each other; that of a node which was stopped is as new as the others.
#[tokio::test(flavor = "multi_thread")]
async fn debug_reads_a_killed_node_as_of_its_last_flush() {
    // No flush comes by the clock just before the kill.
    let (mut cluster, client) = filled(("STRATA_STORAGE_FLUSH_INTERVAL", "1h")).await;
    let sum = client.checksum(b"", b"").await.unwrap();
    let region = cluster.region_of(&client, b"debug-").await.region.id;
    let region = region.to_string();
    cluster.assert_replicas_equal().await;
    cluster.kill(3);
    for id in [1, 2] {
        cluster.stop(id, Signal::SIGTERM).await;
    }
    let applied = |id: u64, kind: &str, name: &str| {
        let lines = json_lines(&cluster.spec(id).folder, &[kind, "--region", &region]);
        lines[0][name].as_u64().unwrap()
    };
    for id in [1, 2] {
        let sums = json_lines(&cluster.spec(id).folder, &["checksum"]);
        let users = sums.iter().filter(|line| line["region_id"] != 1);
        let keys: u64 = users.map(|line| line["keys"].as_u64().unwrap()).sum();
        assert_eq!(keys, sum.pairs, "node {id}");
    }
    // Of the killed one the log has them all.
    let last = applied(3, "raft-state", "last_index");
    assert!(last >= applied(1, "apply-state", "applied_index"), "{last}");
    let flushed = applied(3, "apply-state", "applied_index");
    assert!(flushed < last, "{flushed} of {last} were flushed");
    let found = json_lines(&cluster.spec(3).folder, &["checksum", "--region", &region]);
    let keys = found[0]["keys"].as_u64().unwrap();
    assert!(keys <= KEYS, "{keys}");

    cluster.start_all();
    cluster.wait_ready().await;
    assert_eq!(client.checksum(b"", b"").await.unwrap().pairs, sum.pairs);
    cluster.assert_replicas_equal().await;
}

/// The records of one store agree with each other, and pages join without a gap.
fn check_records(folder: &Path, region: &str) {
    let one = |kind: &str| {
        let found = json_lines(folder, &[kind, "--region", region]);
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        found[0].clone()
    };
    let (raft, apply) = (one("raft-state"), one("apply-state"));
    let last = raft["last_index"].as_u64().unwrap();
    let applied = apply["applied_index"].as_u64().unwrap();
    assert!(applied <= last, "applied {applied}, last {last}");
    assert!(apply["region_clock_ms"].as_u64().unwrap() > 0, "{apply}");
    let state = one("region-state");
    assert_eq!(state["state"], "normal", "{state}");
    assert_eq!(state["peers"].as_array().unwrap().len(), 3, "{state}");
    assert_eq!(json_lines(folder, &["region-state"]).len(), 7);

    let mut next = 0;
    let mut indexes: Vec<u64> = Vec::new();
    loop {
        let from = next.to_string();
        let words = [
            "raft-log", "--region", region, "--limit", "100", "--from", &from,
        ];
        let page = json_lines(folder, &words);
        assert!(page.len() <= 100);
        let Some(entry) = page.last() else { break };
        next = entry["index"].as_u64().unwrap() + 1;
        assert!(
            page.iter().all(|entry| entry["kind"] != "damaged"),
            "{page:?}"
        );
        indexes.extend(page.iter().map(|entry| entry["index"].as_u64().unwrap()));
    }
    let first = apply["truncated_index"].as_u64().unwrap() + 1;
    assert!(indexes.into_iter().eq(first..=last), "the log has a gap");
    let log = debug(folder, &["raft-log", "--region", region, "--limit", "5"]).expect(0);
    assert!(log.stderr.contains("--from"), "{log:?}");

    let keys = json_lines(folder, &["keys", "--region", region, "--start", "debug-"]);
    assert_eq!(keys.len(), 100);
    assert_eq!(keys[0]["key"], "debug-000");
    assert_eq!(keys[0]["value_bytes"], 100);
    let ttl = json_lines(folder, &["keys", "--start", "debug-ttl", "--values"]);
    assert_eq!(ttl[0]["value"], "v", "{ttl:?}");
    assert!(ttl[0]["expires_at_ms"].as_u64().unwrap() > 0, "{ttl:?}");
    let hex = json_lines(folder, &["keys", "--hex", "--end", "64656275672d303031"]);
    assert_eq!(hex.last().unwrap()["key"], "64656275672d303030");
    assert!(!json_lines(folder, &["keys", "--cf", "raft", "--hex"]).is_empty());
    for kind in [
        "raft-log",
        "raft-state",
        "apply-state",
        "region-state",
        "checksum",
    ] {
        debug(folder, &[kind, "--region", "4711"]).expect(1);
    }
}

#[test]
fn debug_refuses_what_is_no_stores_folder() {
    let folder = tempfile::tempdir().unwrap();
    debug(folder.path(), &["raft-state"]).expect(3);
    debug(&folder.path().join("absent"), &["raft-state"]).expect(3);
    assert_eq!(listing(folder.path()), BTreeMap::new(), "nothing was made");
    strata(&["debug", "raft-state"], b"").expect(2);
    strata(&["debug", "raft-log", "--data-dir", "x"], b"").expect(2);
}
