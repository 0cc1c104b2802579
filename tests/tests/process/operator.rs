//! What an operator sees at three in the morning: a node that must not start says why in
//! one line and ends with exit code 3; one that is stopped or killed says nothing odd and
//! comes back.

use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use strata_storage::{
    Cf, Claim, DataFolder, Durability, Engine, EngineOptions, ReadView, WriteBatch, keys,
};
use strata_tests::{Acknowledged, Cluster, ClusterOptions, ReservedPort, strata};

/// Block of a write-ahead log of the kv engine.
const BLOCK_BYTES: u64 = 32 << 10;
/// Bytes of one value.
const VALUE_BYTES: usize = 20_000;

/// The data engine writes a log of its own.
const DATA_LOG: (&str, &str) = ("STRATA_STORAGE_DATA_LOG", "on");

/// One node that holds some data and runs.
async fn one_node() -> (Cluster, Acknowledged) {
    one_node_with(&[]).await
}

async fn one_node_with(settings: &[(&str, &str)]) -> (Cluster, Acknowledged) {
    let environment = settings.iter();
    let cluster = Cluster::start_with(ClusterOptions {
        nodes: 1,
        environment: environment
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        ..ClusterOptions::default()
    })
    .await;
    let client = cluster.client().await;
    let mut acknowledged = Acknowledged::default();
    // More than two blocks.
    for number in 0..10 {
        let key = bytes::Bytes::from(format!("key-{number}"));
        let value = bytes::Bytes::from(vec![number; VALUE_BYTES]);
        client.put(&key, value.clone()).await.unwrap();
        acknowledged.note(key, value);
    }
    (cluster, acknowledged)
}

/// Starts node 1, waits for its end with exit code 3, and returns its one line.
async fn refusal(cluster: &mut Cluster) -> String {
    let log = cluster.spec(1).log.with_extension("refused");
    let _ = fs::remove_file(&log);
    let usual = std::mem::replace(&mut cluster.spec_mut(1).log, log);
    cluster.start_node(1);
    let status = cluster.ended(1).await;
    let output = cluster.output(1);
    cluster.spec_mut(1).log = usual;
    assert_eq!(status.code(), Some(3), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    let errors: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{output}");
    errors[0].to_string()
}

/// The line holds all of these.
fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
}

fn folder(cluster: &Cluster) -> String {
    cluster.spec(1).folder.display().to_string()
}

/// The node starts again and holds everything.
async fn assert_comes_back(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    cluster.start_node(1);
    cluster.wait_ready().await;
    acknowledged.assert_present(&cluster.client().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_foreign_cluster_folder_of_a_node() {
    let (mut cluster, acknowledged) = one_node().await;
    cluster.kill(1);
    let folder = folder(&cluster);
    let usual = cluster.spec(1).words.clone();
    let address = cluster.address(1);

    let other = ["--cluster-token", "another"].map(String::from);
    cluster.spec_mut(1).words = [&usual[..], &other].concat();
    let line = refusal(&mut cluster).await;
    assert_says(&line, &[&folder, "belongs to cluster", "token"]);

    let two = format!("1={address},2=127.0.0.1:9");
    cluster.spec_mut(1).words = vec!["--initial-cluster".into(), two];
    let line = refusal(&mut cluster).await;
    assert_says(&line, &[&folder, "initial stores [1], not [1, 2]"]);

    // The folder of store 1 under another id.
    cluster.spec_mut(1).id = 2;
    cluster.spec_mut(1).words = vec!["--initial-cluster".into(), format!("2={address}")];
    let line = refusal(&mut cluster).await;
    assert_says(&line, &[&folder, "belongs to store 1, not to store 2"]);

    cluster.spec_mut(1).id = 1;
    cluster.spec_mut(1).words = usual;
    assert_comes_back(&mut cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_folder_that_a_node_cannot_use() {
    let (mut cluster, acknowledged) = one_node().await;
    let folder = folder(&cluster);

    // In use: the same command once more, on a port of its own.
    let pid = cluster.node(1).pid().to_string();
    let port = ReservedPort::any().unwrap().address();
    let members = format!("1={port}");
    let second = strata(
        &[
            "node",
            "--id",
            "1",
            "--addr",
            &port,
            "--data-dir",
            &folder,
            "--initial-cluster",
            &members,
        ],
        b"",
    )
    .expect(3);
    assert_says(&second.stderr, &[&folder, "in use", &pid, "stop"]);
    acknowledged.assert_present(&cluster.client().await).await;
    cluster.kill(1);

    // Of a newer format.
    let format = cluster.spec(1).folder.join("FORMAT");
    let usual = fs::read(&format).unwrap();
    fs::write(&format, "strata 99\n").unwrap();
    let line = refusal(&mut cluster).await;
    assert_says(&line, &[&folder, "format 99 is newer", "newer version"]);
    fs::write(&format, usual).unwrap();

    // Read-only.
    let path = cluster.spec(1).folder.clone();
    fs::set_permissions(&path, Permissions::from_mode(0o555)).unwrap();
    let line = refusal(&mut cluster).await;
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    assert_says(&line, &[&folder, "read-only"]);

    // The port is taken, by something that is no node.
    let address = cluster.address(1);
    let taken = TcpListener::bind(&address).unwrap();
    let line = refusal(&mut cluster).await;
    assert_says(&line, &[&address, "taken by another process"]);
    let (_, port) = address.rsplit_once(':').unwrap();
    let data = tempfile::tempdir().unwrap();
    let made = data.path().join("up");
    let data = made.to_str().unwrap();
    let words = ["up", "--nodes", "1", "--port", port, "--data-dir", data];
    let up = strata(&words, b"").expect(3);
    assert_says(&up.stderr, &[&address, "taken by another process"]);
    assert!(!made.exists(), "a refused `up` left its folder behind");
    drop(taken);

    assert_comes_back(&mut cluster, &acknowledged).await;
}

/// The newest log of an engine.
fn wal(cluster: &Cluster, engine: &str) -> PathBuf {
    let folder = cluster.spec(1).folder.join(engine);
    let logs = fs::read_dir(folder).unwrap().map(|of| of.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|ending| ending == "log"))
        .max()
        .expect("a log")
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_flipped_bit_raft_wal_of_a_node() {
    let (mut cluster, acknowledged) = one_node().await;
    cluster.kill(1);
    let wal = wal(&cluster, "raft");
    // In the header of the file, and in a record that others follow.
    for offset in [8, 5 * VALUE_BYTES as u64] {
        flip(&wal, offset);
        let line = refusal(&mut cluster).await;
        assert_says(
            &line,
            &["raft engine", &wal.display().to_string(), "at offset "],
        );
        let place = line.split("at offset ").nth(1).unwrap();
        let digits = place.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        let found: u64 = digits.parse().unwrap();
        assert!(
            found <= offset && offset < found + 2 * VALUE_BYTES as u64,
            "{offset}: {line}"
        );
        flip(&wal, offset);
    }
    assert_comes_back(&mut cluster, &acknowledged).await;
}

/// Its witness says that more was synced. Without one, the data engine may tell.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_cut_raft_wal_of_a_node() {
    let (mut cluster, acknowledged) = one_node_with(&[DATA_LOG]).await;
    cluster.kill(1);
    let wal = wal(&cluster, "raft");
    let whole = fs::read(&wal).unwrap();
    let filled = whole.iter().rposition(|byte| *byte != 0).unwrap();
    // The end of the last record, and many of them.
    for length in [filled as u64, BLOCK_BYTES] {
        let file = OpenOptions::new().write(true).open(&wal).unwrap();
        file.set_len(length).unwrap();
        let line = refusal(&mut cluster).await;
        let name = wal.display().to_string();
        assert_says(&line, &["raft engine", &name, "damaged record at offset "]);
    }
    let witness = wal.with_file_name("synced");
    let says = fs::read(&witness).unwrap();
    fs::remove_file(&witness).unwrap();
    let line = refusal(&mut cluster).await;
    assert_says(&line, &["region ", "start check failed", "applied index"]);

    fs::write(&wal, &whole).unwrap();
    let half = &says[..says.len() / 2];
    fs::write(&witness, half).unwrap();
    let line = refusal(&mut cluster).await;
    let name = witness.display().to_string();
    assert_says(&line, &[&name, "remove it to start without this check"]);
    fs::remove_file(&witness).unwrap();
    assert_comes_back(&mut cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_flipped_bit_kv_wal_of_a_node() {
    let (mut cluster, acknowledged) = one_node_with(&[DATA_LOG]).await;
    cluster.kill(1);
    let wal = wal(&cluster, "kv");
    let length = wal.metadata().unwrap().len();
    assert!(length > BLOCK_BYTES, "{length} bytes are too few");
    flip(&wal, length / 2);
    // What lies behind the damage is replayed from the raft log.
    assert_comes_back(&mut cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_flipped_bit_state_record_of_a_node() {
    let (mut cluster, acknowledged) = one_node().await;
    let client = cluster.client().await;
    let region_id = cluster.region_of(&client, b"key-0").await.region.id;
    cluster.stop(1, Signal::SIGTERM).await;
    for (name, key) in [
        ("RegionLocalState", keys::region_state(region_id)),
        ("RaftApplyState", keys::apply_state(region_id)),
    ] {
        flip_record(&cluster.spec(1).folder, &key);
        let line = refusal(&mut cluster).await;
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_says(&line, &[name, &digits, "is corrupt"]);
        flip_record(&cluster.spec(1).folder, &key);
    }
    assert_comes_back(&mut cluster, &acknowledged).await;
}

/// Flips a bit of a record of the kv engine, of a node that is down.
fn flip_record(folder: &Path, key: &[u8]) {
    let options = EngineOptions::default();
    let folder = DataFolder::open(folder, &options, &Claim::default()).unwrap();
    let kv = &folder.engines().kv;
    let mut record = kv.get(Cf::Raft, key).unwrap().unwrap().to_vec();
    record[0] ^= 1;
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, key.to_vec(), record);
    kv.write(&batch, Durability::Synced).unwrap();
}

/// The harness looks for panics in what all nodes printed when the cluster is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_stop_on_signals_and_come_back_without_a_word_of_panic() {
    let mut cluster = Cluster::start().await;
    let load = strata_tests::Load::start(&cluster.endpoints(), Default::default()).await;
    for (id, signal) in [(1, Signal::SIGTERM), (2, Signal::SIGINT)] {
        load.wait_for(100).await;
        cluster.stop(id, signal).await;
        load.wait_for(100).await;
        cluster.start_node(id);
        cluster.wait_ready().await;
    }
    load.wait_for(100).await;
    cluster.kill(3);
    load.wait_for(100).await;
    cluster.start_node(3);
    cluster.wait_ready().await;
    let recorded = load.stop().await;
    recorded.assert_all(&cluster).await;
    for id in cluster.ids() {
        let output = cluster.output(id);
        let refused = output.lines().any(|line| line.starts_with("error: "));
        assert!(!refused, "{output}");
        assert_eq!(output.contains("stopped"), id != 3, "{output}");
    }
}

/// A wrong command line is exit code 2, also for a node, and touches nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_refuse_a_wrong_command_line_with_code_two() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("node-1");
    let base = ["node", "--addr", "127.0.0.1:9", "--data-dir"];
    for (words, part) in [
        (&["--id", "1"][..], "--initial-cluster"),
        (&["--id", "2", "--initial-cluster", "1=a:1"], "no store 2"),
        (&["--id", "0", "--initial-cluster", "1=a:1"], "--id"),
        (&["--id", "1", "--initial-cluster", "1=a"], "HOST:PORT"),
    ] {
        let words = [&base[..], &[folder.to_str().unwrap()], words].concat();
        let ended = strata(&words, b"").expect(2);
        assert_says(&ended.stderr, &[part]);
    }
    assert!(!folder.exists(), "the folder was touched");
}
