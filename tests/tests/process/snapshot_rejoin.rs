//! A node that was down while the log was compacted past it comes back by a snapshot.

use crate::snapshot::{
    MIB, assert_written, compacted_past, held, last_index_of_the_dead, leader, number,
    patient_client, reached, received_names, short_logs, write_mib,
};
use std::path::Path;
use strata_tests::{Cluster, Load, LoadOptions, eventually_sync};

/// What is written while the node is down; more than a snapshot of 128 MiB needs.
const WRITTEN_MIB: u64 = 136;
/// Files of a raft engine whose logs are short: four of 8 MiB, twice what is wanted of them, and
/// eight that wait to be used again.
const LOG_FILES_MAX_MIB: u64 = 128;
/// Resident memory of a node with default caches and buffers.
const MEMORY_MAX_MIB: u64 = 640;

fn folder_size(folder: &Path) -> u64 {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    // A file may go while it is looked at.
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_rejoin_of_a_node_past_which_the_log_was_compacted() {
    let mut cluster = Cluster::start_with(short_logs(&[])).await;
    let client = patient_client(&cluster).await;
    let load = Load::start(&cluster.endpoints(), LoadOptions::default()).await;
    load.wait_for(100).await;
    let (sender, region) = leader(&cluster, &client).await;
    let victim = cluster.ids().into_iter().find(|id| *id != sender).unwrap();
    cluster.kill(victim);
    let last = last_index_of_the_dead(&cluster, victim, region);
    write_mib(&client, WRITTEN_MIB).await;
    compacted_past(&cluster, region, last).await;
    let (sender, _) = leader(&cluster, &client).await;
    assert_eq!(number(&cluster, sender, region, "snapshots_sent"), 0);

    cluster.start_node(victim);
    let (_, total) = held(&cluster, victim, region, 1).await;
    assert!(total >= 128 * MIB, "the snapshot has {total} bytes");
    // The others serve while it travels and is taken in.
    let before = load.acknowledgements();
    reached(&cluster, victim, region, "snapshots_received", 1).await;
    let during = load.acknowledgements() - before;
    assert!(during > 0, "nothing was acknowledged during the snapshot");
    load.wait_for(100).await;
    let recorded = load.stop().await;

    assert!(number(&cluster, sender, region, "snapshots_sent") >= 1);
    let chunks = number(&cluster, sender, region, "snapshot_chunks_sent");
    assert!(chunks >= total / MIB, "{chunks} chunks for {total} bytes");
    assert_eq!(number(&cluster, victim, region, "snapshots_received"), 1);
    // Presence, linearizability, and equal checksums of every region on all nodes.
    recorded.assert_all(&cluster).await;
    assert_written(&client, WRITTEN_MIB).await;
    for id in cluster.ids() {
        let logs = cluster.spec(id).folder.join("raft");
        eventually_sync("old logs to be deleted", || {
            match folder_size(&logs) / MIB {
                size if size <= LOG_FILES_MAX_MIB => Ok(()),
                size => Err(format!("node {id}: {size} MiB")),
            }
        })
        .await;
        let held = number(&cluster, id, region, "last_index")
            - number(&cluster, id, region, "truncated_index");
        assert!(held < 1000, "the log of node {id} holds {held} entries");
        let memory = cluster.node(id).peak_memory() / MIB;
        println!(
            "node {id}: {} MiB of logs, {memory} MiB of memory",
            folder_size(&logs) / MIB
        );
        assert!(memory <= MEMORY_MAX_MIB, "node {id} took {memory} MiB");
    }
    eventually_sync("the received files to go", || {
        match received_names(&cluster, victim, region) {
            names if names.is_empty() => Ok(()),
            names => Err(names),
        }
    })
    .await;
}
