//! Disks that run full, each a small one of the node's own. What a node cannot write ends it
//! with one line, since what a failed write left is unknown; what it can refuse it refuses.
//! Nothing acknowledged is lost, the others serve, and it comes back once there is room.

use crate::snapshot::{
    KEY, MIB, assert_written, compacted_past, last_index_of_the_dead, leader, number,
    patient_client, random_bytes, reached, short_logs, write_mib,
};
use bytes::Bytes;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;
use strata_client::RawClient;
use strata_tests::{
    Acknowledged, Cluster, ClusterOptions, DEADLINE, SmallDisk, eventually, eventually_sync,
};

const VICTIM: u64 = 3;
/// Bytes of one value.
const VALUE: usize = 64 << 10;
/// Room that every disk gets at last.
const ROOM: u64 = 512 * MIB;

/// Without it a node refuses writes before its disk is full.
const NO_RESERVE: (&str, &str) = ("STRATA_STORE_RESERVE_SPACE", "0B");

fn with_environment(pairs: &[(&str, &str)]) -> ClusterOptions {
    let own = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    ClusterOptions {
        environment: pairs.iter().map(own).collect(),
        ..ClusterOptions::default()
    }
}

/// Engines that write their memtables out after 4 MiB.
fn small_buffers() -> ClusterOptions {
    with_environment(&[
        NO_RESERVE,
        ("STRATA_STORAGE_WRITE_BUFFER_SIZE", "4MiB"),
        ("STRATA_STORAGE_LOG_FILE_SIZE", "4MiB"),
    ])
}

fn value(number: u64) -> Bytes {
    random_bytes(number, VALUE)
}

/// Stops the victim and puts a folder of its data on a disk of its own.
async fn move_to_small_disk(cluster: &mut Cluster, part: &str, bytes: u64) -> SmallDisk {
    cluster.stop(VICTIM, Signal::SIGTERM).await;
    let folder = cluster.spec(VICTIM).folder.join(part);
    let disk = SmallDisk::mount(&folder, bytes);
    disk.copy_from(&folder);
    cluster.spec_mut(VICTIM).enter = disk.enter();
    disk
}

/// Writes until the victim has ended by itself; what was acknowledged, all that was sent.
async fn write_until_end(cluster: &mut Cluster, client: &RawClient) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let until = std::time::Instant::now() + DEADLINE;
    for number in 0.. {
        if cluster.node(VICTIM).ended().is_some() {
            assert!(acknowledged.len() > 10, "{} puts", acknowledged.len());
            return acknowledged;
        }
        assert!(std::time::Instant::now() < until, "the disk is not full");
        let key = Bytes::from(format!("full-{number}"));
        let value = value(number);
        // Two of three have room.
        client
            .put(&key, value.clone())
            .await
            .expect("a put is acknowledged");
        acknowledged.note(key, value);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!("numbers have no end")
}

/// The one line by which a node said why it ended.
async fn last_words(cluster: &mut Cluster, id: u64) -> String {
    let status = cluster.ended(id).await;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
    let output = cluster.output(id);
    let lines = output
        .lines()
        .filter(|line| line.contains("the process ends"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    println!("{}", lines[0]);
    lines[0].to_string()
}

/// The victim gets room and is as good as the others.
async fn assert_comes_back(cluster: &mut Cluster, disk: &SmallDisk, acknowledged: &Acknowledged) {
    disk.resize(ROOM);
    cluster.start_node(VICTIM);
    cluster.wait_ready().await;
    let client = cluster.client().await;
    acknowledged.assert_present(&client).await;
    let pairs = cluster.assert_replicas_equal().await;
    assert!(pairs >= acknowledged.len() as u64, "{pairs} pairs");
}

/// A file of the log that is larger than the disk: what fails is the append to it.
fn large_log_file() -> ClusterOptions {
    with_environment(&[NO_RESERVE, ("STRATA_STORAGE_LOG_FILE_SIZE", "128MiB")])
}

/// The victim's last line names the full disk, what to do, and the file.
fn assert_names(line: &str, folder: &Path, ending: &str) {
    let folder = folder.to_str().expect("a folder in UTF-8");
    for part in ["No space left", "make room", folder, ending] {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_raft_write() {
    let mut cluster = Cluster::start_with(large_log_file()).await;
    let client = patient_client(&cluster).await;
    let disk = move_to_small_disk(&mut cluster, "raft", 8 * MIB).await;
    cluster.start_node(VICTIM);
    cluster.wait_ready().await;
    let acknowledged = write_until_end(&mut cluster, &client).await;
    let line = last_words(&mut cluster, VICTIM).await;
    assert_names(&line, &cluster.spec(VICTIM).folder.join("raft"), ".log");
    acknowledged.assert_present(&client).await;
    assert_comes_back(&mut cluster, &disk, &acknowledged).await;
}

/// Without others what was acknowledged is on this disk alone.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_raft_write_of_the_only_node() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        nodes: 1,
        ..large_log_file()
    });
    let disk = SmallDisk::mount(&cluster.spec(1).folder, 16 * MIB);
    cluster.spec_mut(1).enter = disk.enter();
    cluster.start_node(1);
    cluster.wait_ready().await;
    let options = strata_client::Options {
        operation_timeout: Duration::from_secs(2),
        ..strata_client::Options::default()
    };
    let client = cluster.client_with(options).await;
    let mut acknowledged = Acknowledged::default();
    for number in 0.. {
        let (key, value) = (Bytes::from(format!("only-{number}")), value(number));
        if client.put(&key, value.clone()).await.is_err() {
            break;
        }
        acknowledged.note(key, value);
    }
    assert!(acknowledged.len() > 10, "{} puts", acknowledged.len());
    let line = last_words(&mut cluster, 1).await;
    assert_names(&line, &cluster.spec(1).folder, "");
    disk.resize(ROOM);
    cluster.start_node(1);
    cluster.wait_ready().await;
    acknowledged.assert_present(&client).await;
    client.put(b"room", "again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_kv_flush() {
    let mut cluster = Cluster::start_with(small_buffers()).await;
    let client = patient_client(&cluster).await;
    let disk = move_to_small_disk(&mut cluster, "kv", 128 * MIB).await;
    cluster.start_node(VICTIM);
    cluster.wait_ready().await;
    // The write-ahead log has its room already; a table of 4 MiB has none.
    disk.fill_but(2 * MIB);
    let acknowledged = write_until_end(&mut cluster, &client).await;
    let line = last_words(&mut cluster, VICTIM).await;
    assert_names(&line, &cluster.spec(VICTIM).folder.join("kv"), ".sst");
    acknowledged.assert_present(&client).await;
    assert_comes_back(&mut cluster, &disk, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_snapshot_receive() {
    const WRITTEN_MIB: u64 = 32;
    let mut cluster = Cluster::start_with(short_logs(&[NO_RESERVE])).await;
    let client = patient_client(&cluster).await;
    client.put(KEY, "0").await.unwrap();
    let (_, region) = leader(&cluster, &client).await;
    let disk = move_to_small_disk(&mut cluster, "snapshots", 16 * MIB).await;
    let last = last_index_of_the_dead(&cluster, VICTIM, region);
    write_mib(&client, WRITTEN_MIB).await;
    compacted_past(&cluster, region, last).await;
    cluster.start_node(VICTIM);
    let line = eventually_sync("a refusal", || {
        let output = cluster.output(VICTIM);
        let line = output
            .lines()
            .find(|line| line.contains("a snapshot is refused"));
        line.map(str::to_string).ok_or("no line yet")
    })
    .await;
    println!("{line}");
    let folder = cluster.spec(VICTIM).folder.join("snapshots");
    for part in ["disk full", "make room", folder.to_str().unwrap()] {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
    eventually_sync("the sender to know why", || {
        let mut outputs = cluster.ids().into_iter().filter(|id| *id != VICTIM);
        let told = outputs.any(|id| cluster.output(id).contains("disk full"));
        told.then_some(()).ok_or("no line yet")
    })
    .await;
    // It goes on with its other regions, and the others with this one.
    client.put(b"meanwhile", "1").await.unwrap();
    assert!(cluster.node(VICTIM).ended().is_none(), "the node ended");
    assert_eq!(number(&cluster, VICTIM, region, "snapshots_received"), 0);
    // Room heals it without a restart.
    disk.resize(ROOM);
    reached(&cluster, VICTIM, region, "snapshots_received", 1).await;
    cluster.assert_replicas_equal().await;
    assert_written(&client, WRITTEN_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_snapshot_install() {
    const WRITTEN_MIB: u64 = 32;
    let mut cluster = Cluster::start_with(short_logs(&[NO_RESERVE])).await;
    let client = patient_client(&cluster).await;
    client.put(KEY, "0").await.unwrap();
    let (_, region) = leader(&cluster, &client).await;
    let disk = move_to_small_disk(&mut cluster, "kv", 24 * MIB).await;
    let last = last_index_of_the_dead(&cluster, VICTIM, region);
    write_mib(&client, WRITTEN_MIB).await;
    compacted_past(&cluster, region, last).await;
    cluster.start_node(VICTIM);
    let line = last_words(&mut cluster, VICTIM).await;
    assert_names(&line, &cluster.spec(VICTIM).folder.join("kv"), ".sst");
    assert!(line.contains(&format!("region {region}: installing")));
    client.put(b"meanwhile", "1").await.unwrap();
    // The region is marked, so that the next start takes the same files again.
    disk.resize(ROOM);
    cluster.start_node(VICTIM);
    cluster.wait_ready().await;
    cluster.assert_replicas_equal().await;
    assert_written(&client, WRITTEN_MIB).await;
    // No second transfer was needed.
    assert_eq!(
        number(&cluster, VICTIM, region, "snapshots_received"),
        0,
        "it was sent again after the restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_full_start() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        nodes: 1,
        ..small_buffers()
    });
    // What a founding start leaves on a full disk is no obstacle to the next one.
    let disk = SmallDisk::mount(&cluster.spec(1).folder, 4096);
    cluster.spec_mut(1).enter = disk.enter();
    for kib in [4, 16, 64, 200] {
        disk.resize(kib << 10);
        assert_refused(&mut cluster).await;
    }
    disk.resize(ROOM);
    cluster.start_node(1);
    cluster.wait_ready().await;
    let client = cluster.client().await;
    let mut acknowledged = Acknowledged::default();
    for number in 0..100 {
        let (key, value) = (Bytes::from(format!("start-{number}")), value(number));
        client.put(&key, value.clone()).await.unwrap();
        acknowledged.note(key, value);
    }
    // The same for a folder that holds data.
    cluster.kill(1);
    disk.fill_but(0);
    assert_refused(&mut cluster).await;
    disk.resize(2 * ROOM);
    cluster.start_node(1);
    cluster.wait_ready().await;
    acknowledged.assert_present(&client).await;
}

/// A start that ends with exit code 3 and one line about the full disk.
async fn assert_refused(cluster: &mut Cluster) {
    let before = cluster.output(1).len();
    cluster.start_node(1);
    let status = cluster.ended(1).await;
    let output = cluster.output(1).split_off(before);
    println!("{status}: {output}");
    assert_eq!(status.code(), Some(3), "{output}");
    assert_eq!(output.trim_end().lines().count(), 1, "{output}");
    let folder = cluster.spec(1).folder.display().to_string();
    for part in ["No space left", "make room", &folder] {
        assert!(output.contains(part), "{part} is missing in: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_disk_nearly_full_refuses_writes_and_heals() {
    let mut cluster = Cluster::prepare(ClusterOptions {
        nodes: 1,
        ..with_environment(&[
            ("STRATA_STORE_RESERVE_SPACE", "16MiB"),
            ("STRATA_STORE_SPACE_CHECK_INTERVAL", "50ms"),
        ])
    });
    let disk = SmallDisk::mount(&cluster.spec(1).folder, ROOM);
    cluster.spec_mut(1).enter = disk.enter();
    cluster.start_node(1);
    cluster.wait_ready().await;
    let client = cluster.client().await;
    client.put(b"kept", "1").await.unwrap();
    client.put(b"gone", "1").await.unwrap();
    disk.fill_but(8 * MIB);
    eventually_sync("the node to see it", || {
        let output = cluster.output(1);
        let told = output.contains("the disk is nearly full");
        told.then_some(()).ok_or("no line yet")
    })
    .await;
    let refused = eventually("a refusal", || async {
        let put = client.put(b"late", "1").await;
        put.err().map(|error| error.to_string()).ok_or("taken")
    })
    .await;
    println!("{refused}");
    assert!(refused.contains("nearly full"), "{refused}");
    assert_eq!(
        client.get(b"kept").await.unwrap().as_deref(),
        Some(&b"1"[..])
    );
    client.delete(b"gone").await.expect("a delete goes on");
    assert_eq!(client.get(b"gone").await.unwrap(), None);
    // Room heals it without a restart.
    disk.resize(2 * ROOM);
    eventually("a write is taken again", || async {
        client
            .put(b"late", "2")
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(
        client.get(b"late").await.unwrap().as_deref(),
        Some(&b"2"[..])
    );
    assert!(cluster.node(1).ended().is_none(), "the node ended");
}
