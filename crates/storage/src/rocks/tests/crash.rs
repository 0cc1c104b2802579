//! Crash rules 7, 8, 9 and 10 on real files.
//!
//! A crash is played by copying an engine's folder while it is open (`image.rs`).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{Entry, HardState};
use strata_proto::metapb::{Peer, Region};
use strata_proto::raft_serverpb::RegionLocalState;
use strata_proto::stratapb::RaftApplyState;
use strata_raft::Storage;
use tempfile::TempDir;

use super::image::copy;
use super::{open, options};
use crate::batch::WriteBatch;
use crate::disk::DiskEngine;
use crate::engine::{Cf, Durability, Engine, EngineError, EngineKind, Engines, ReadView};
use crate::error::{Error, StartFault};
use crate::peer_storage::{PeerStorage, PeerStorageOptions};
use crate::raft_log::LogFault;
use crate::region_records::{write_apply_state, write_region_state};
use crate::rocks::{EngineOptions, OpenError, OptionsError, RocksEngine};
use crate::wal::WalFault;
use crate::{DataFolder, FolderError, keys};

const BLOCK: u64 = 32 * 1024;

fn open_raft(folder: &Path) -> Result<DiskEngine, OpenError> {
    DiskEngine::open(EngineKind::Raft, folder, &options())
}

/// The newest log in a folder.
fn log_file(folder: &Path) -> PathBuf {
    let mut logs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "log"))
        .collect();
    logs.sort();
    logs.pop().expect("there is a log")
}

fn flip(file: &Path, byte: u64, mask: u8) {
    let mut bytes = fs::read(file).unwrap();
    bytes[byte as usize] ^= mask;
    fs::write(file, bytes).unwrap();
}

fn cut(file: &Path, length: u64) {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(length)
        .unwrap();
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

const KEYS: usize = 1000;

/// A crashed raft engine with 1,000 synced keys, each a batch.
fn thousand_keys() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let engine = open_raft(folder.path()).unwrap();
    for n in 0..KEYS {
        let mut batch = WriteBatch::new();
        batch.put(Cf::RaftLog, format!("{n:04}"), vec![n as u8; 200]);
        engine.write(&batch, Durability::Synced).unwrap();
    }
    copy(folder.path())
}

/// Bytes of the records of `thousand_keys`.
const RECORD: u64 = 32 + 1 + 1 + 4 + 2 + 200;
/// Where they begin.
const FIRST_RECORD: u64 = 4096;

fn count(engine: &DiskEngine) -> usize {
    let mut count = 0;
    let mut visit = |key: &[u8], _: &[u8]| {
        assert_eq!(
            key,
            format!("{count:04}").as_bytes(),
            "a prefix of the writes"
        );
        count += 1;
        std::ops::ControlFlow::Continue(())
    };
    let forward = crate::Direction::Forward;
    engine
        .scan(Cf::RaftLog, b"", None, forward, &mut visit)
        .unwrap();
    count
}

#[test]
fn crash_rule_raft_wal_recovery() {
    // Synced records survive.
    let folder = thousand_keys();
    assert_eq!(count(&open_raft(folder.path()).unwrap()), KEYS);

    // A tail that was synced and is cut is refused. Where a power cut has left no witness of that
    // sync it looks like a torn write: the record that it hits is lost, no other.
    let folder = thousand_keys();
    let end = FIRST_RECORD + KEYS as u64 * RECORD;
    cut(&log_file(folder.path()), end - 10);
    let line = open_raft(folder.path()).unwrap_err().to_string();
    let place = format!("at offset {}", end - RECORD);
    assert!(line.contains(&place), "{place}: {line}");
    std::fs::remove_file(folder.path().join("synced")).unwrap();
    assert_eq!(count(&open_raft(folder.path()).unwrap()), KEYS - 1);

    // A flipped bit before the last record never drops a synced record in silence: it is
    // refused, with file and offset.
    let original = thousand_keys();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..30 {
        let folder = copy(original.path());
        let log = log_file(folder.path());
        let byte = rng.random_range(FIRST_RECORD..end - RECORD);
        flip(&log, byte, 1 << rng.random_range(0..8));
        let record = byte - (byte - FIRST_RECORD) % RECORD;
        assert_eq!(damage(folder.path()), (log, LogFault::Record(record)));
    }
    let folder = copy(original.path());
    let log = log_file(folder.path());
    flip(&log, 20, 1);
    assert_eq!(damage(folder.path()), (log, LogFault::Header));
}

/// Why the raft engine in a folder is refused.
fn damage(folder: &Path) -> (PathBuf, LogFault) {
    match open_raft(folder).unwrap_err() {
        OpenError::DamagedRaftLog(damage) => (damage.file, damage.fault),
        other => panic!("expected damage, got {other}"),
    }
}

/// RocksDB would loop for ever on a recycled type where nothing is recycled.
#[test]
fn crash_rule_kv_wal_recovery_refuses_recycled_type_before_open() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raw, "key", "value");
    engine.write(&batch, Durability::Synced).unwrap();
    let crashed = copy(folder.path());
    let log = log_file(crashed.path());
    // Bit 2 of the first record's type; it lies in the last block as well.
    flip(&log, 6, 4);
    let before = fs::read(&log).unwrap();
    let error = open(crashed.path()).unwrap_err();
    let OpenError::DamagedWal { damage, .. } = &error else {
        panic!("expected damage, got {error}");
    };
    assert_eq!((damage.offset, damage.fault), (0, WalFault::ForeignType(5)));
    assert!(error.to_string().contains("at offset 0"), "{error}");
    assert_eq!(before, fs::read(&log).unwrap(), "the log is as it was");
}

/// Versions before format 2 had the raft engine in RocksDB, with logs of the same names.
#[test]
fn raft_engine_of_an_earlier_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let error = open_raft(folder.path()).unwrap_err();
    let foreign = OpenError::ForeignRaftEngine(folder.path().to_owned());
    assert_eq!(error, foreign);
}

#[test]
fn crash_rule_kv_wal_off_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    let settings = EngineOptions {
        kv_wal: false,
        ..options()
    };
    let refused = OptionsError::KvWalOffWithoutAtomicFlush;
    assert_eq!(settings.validate(), Err(refused));
    let opened = RocksEngine::open(&path, &settings);
    assert_eq!(opened.unwrap_err(), OpenError::Options(refused));
    let opened = DataFolder::open(&path, &settings, &Default::default());
    assert_eq!(
        opened.unwrap_err(),
        FolderError::Engine(OpenError::Options(refused))
    );
    assert!(!path.exists(), "nothing is touched");
}

/// Settings of a kv engine without a log.
fn without_wal(kv_memtable_bytes: usize) -> EngineOptions {
    EngineOptions {
        kv_wal: false,
        kv_atomic_flush: true,
        kv_memtable_bytes,
        ..options()
    }
}

/// With atomic flush the log may be off: a crash leaves the state of one moment.
#[test]
fn crash_rule_kv_wal_off_with_atomic_flush() {
    let folder = tempfile::tempdir().unwrap();
    let settings = without_wal(options().kv_memtable_bytes);
    let engine = RocksEngine::open(folder.path(), &settings).unwrap();
    let write = |n: u32, durability| {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, "z", n.to_string());
        batch.put(Cf::Raft, "applied", n.to_string());
        engine.write(&batch, durability).unwrap();
    };
    write(1, Durability::Unsynced);
    write(2, Durability::Synced);
    write(3, Durability::Unsynced);
    let crashed = copy(folder.path());
    let after = RocksEngine::open(crashed.path(), &settings).unwrap();
    for (cf, key) in [(Cf::Raw, "z"), (Cf::Raft, "applied")] {
        let found = after.get(cf, key.as_bytes()).unwrap();
        assert_eq!(found.as_deref(), Some(&b"2"[..]));
    }
}

/// RocksDB flushes when one column family is full. The others must be flushed with it, as of the same
/// batch: an applied index behind the data has entries applied twice, one ahead of them not at all.
#[test]
fn crash_rule_kv_wal_off_flushes_all_families_at_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let settings = without_wal(256 << 10);
    let engine = RocksEngine::open(folder.path(), &settings).unwrap();
    for n in 0..2_000_u32 {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, format!("z{n:06}"), vec![7; 1 << 10]);
        batch.put(Cf::Raft, "applied", n.to_string());
        engine.write(&batch, Durability::Unsynced).unwrap();
    }
    let crashed = copy(folder.path());
    drop(engine);
    let after = RocksEngine::open(crashed.path(), &settings).unwrap();
    let applied = after.get(Cf::Raft, b"applied").unwrap();
    let applied: u32 = String::from_utf8(applied.expect("it was flushed by itself").to_vec())
        .unwrap()
        .parse()
        .unwrap();
    assert!(applied < 1_999, "a part is in memory only");
    for n in 0..2_000_u32 {
        let found = after.get(Cf::Raw, format!("z{n:06}").as_bytes()).unwrap();
        assert_eq!(found.is_some(), n <= applied, "key {n}, applied {applied}");
    }
}

/// What lies in a memtable is not durable without a log, until RocksDB flushes it by itself, all
/// column families at once; with a log nobody can tell.
#[test]
fn what_was_flushed_is_known_to_be_durable() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(folder.path(), &without_wal(256 << 10)).unwrap();
    assert!(engine.is_durable_by_flush());
    let applied = || engine.get_durable(Cf::Raft, b"applied").unwrap();
    let write = |n: u32| {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, format!("z{n:04}"), vec![7; 4 << 10]);
        batch.put(Cf::Raft, "applied", n.to_string());
        engine.write(&batch, Durability::Unsynced).unwrap();
    };
    write(1);
    assert_eq!(applied(), None);
    engine.make_durable().unwrap();
    write(2);
    assert_eq!(applied().as_deref(), Some(&b"1"[..]));
    let mut next = 3;
    while applied().as_deref() == Some(&b"1"[..]) {
        assert!(next < 100_000, "nothing is flushed by itself");
        write(next);
        next += 1;
    }
    let said = applied();
    let crashed = copy(folder.path());
    let after = RocksEngine::open(crashed.path(), &without_wal(256 << 10)).unwrap();
    let number = |found: Option<Bytes>| {
        let text = String::from_utf8(found.unwrap().to_vec()).unwrap();
        text.parse::<u32>().unwrap()
    };
    // What was said to be durable is there after a crash, and it was not all.
    let left = after.get(Cf::Raft, b"applied").unwrap();
    assert!(
        number(said.clone()) <= number(left.clone()),
        "{said:?} {left:?}"
    );
    let left = number(left);
    assert!(left < next);
    // All column families at once.
    for n in 1..next {
        let found = after.get(Cf::Raw, format!("z{n:04}").as_bytes()).unwrap();
        assert_eq!(found.is_some(), n <= left, "key {n}, applied {left}");
    }

    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(folder.path(), &options()).unwrap();
    assert!(!engine.is_durable_by_flush());
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, "applied", "1");
    engine.write(&batch, Durability::Synced).unwrap();
    assert_eq!(engine.get_durable(Cf::Raft, b"applied").unwrap(), None);
}

/// Set in the process that `crash_rule_failed_sync_on_real_files` starts.
const CHILD: &str = "STRATA_TEST_FAILED_SYNC_FOLDER";

/// A real failed write: the system refuses to let the log grow. After it the engine
/// refuses everything, also when the system would write again.
#[test]
fn crash_rule_failed_sync_on_real_files() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return fail_a_real_write(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    // The limit holds for a whole process, so the test runs itself as a child.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("rocks::tests::crash::crash_rule_failed_sync_on_real_files")
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let acknowledged: usize = text
        .lines()
        .find_map(|line| line.split_once("acknowledged "))
        .and_then(|(_, count)| count.trim().parse().ok())
        .unwrap_or_else(|| panic!("the child did not report: {text}"));
    assert!(acknowledged > 0);
    // What was acknowledged is there after the process has ended.
    let engine = open_raft(folder.path()).unwrap();
    assert!(count(&engine) >= acknowledged);
}

fn fail_a_real_write(folder: &Path) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    let engine = open_raft(folder).unwrap();
    // SAFETY: ignoring a signal installs no handler.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 200_000, hard).unwrap();
    let write = |n: usize| {
        let mut batch = WriteBatch::new();
        batch.put(Cf::RaftLog, format!("{n:04}"), vec![1; 1000]);
        engine.write(&batch, Durability::Synced)
    };
    let (acknowledged, first) = (0..1000)
        .find_map(|n| write(n).err().map(|error| (n, error)))
        .expect("the log cannot grow without end");
    assert!(matches!(first, EngineError::WriteFailed { .. }), "{first}");
    assert!(first.is_fatal());
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    let poisoned = |answer| matches!(answer, Err(EngineError::Poisoned { .. }));
    assert!(poisoned(write(acknowledged)));
    assert!(poisoned(engine.make_durable()));
    let line = format!("\nacknowledged {acknowledged}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

const REGION: u64 = 9;
const LAST: u64 = 500;

fn apply_state(applied: u64, truncated: u64) -> RaftApplyState {
    let term = |index| if index == 5 { 5 } else { 6 };
    RaftApplyState {
        applied_index: applied,
        applied_term: term(applied),
        truncated_index: truncated,
        truncated_term: term(truncated),
        region_clock_ms: 0,
    }
}

/// A node that has appended (synced) and applied (unsynced) entries up to `LAST` of one
/// region, and was killed. The folders of its kv and raft engine.
fn killed_node() -> (TempDir, TempDir) {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engines = open_both(&folders).unwrap();
    let mut kv = WriteBatch::new();
    let region = Region {
        id: REGION,
        peers: vec![Peer {
            id: 1,
            store_id: 1,
            ..Peer::default()
        }],
        ..Region::default()
    };
    let local = RegionLocalState {
        region: Some(region.clone()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &local);
    write_apply_state(&mut kv, REGION, &apply_state(5, 5));
    engines.kv.write(&kv, Durability::Synced).unwrap();
    let mut raft = WriteBatch::new();
    let first = crate::bootstrap::BOOTSTRAP_INDEX;
    let state = strata_proto::raft_serverpb::RaftLocalState {
        hard_state: Some(HardState {
            term: 6,
            vote: 0,
            commit: first,
        }),
        last_index: first,
    };
    crate::region_records::write_raft_state(&mut raft, REGION, &state);
    engines.raft.write(&raft, Durability::Synced).unwrap();
    let mut storage = load(&engines).unwrap();
    for index in first + 1..=LAST {
        let entry = Entry {
            index,
            term: 6,
            data: Bytes::from(vec![index as u8; 300]),
            ..Entry::default()
        };
        let mut raft = WriteBatch::new();
        storage.append(index, std::slice::from_ref(&entry), None, &mut raft);
        engines.raft.write(&raft, Durability::Synced).unwrap();
        storage.on_persisted(index);
        let mut kv = WriteBatch::new();
        kv.put(
            Cf::Raw,
            keys::data_key(&index.to_be_bytes()),
            entry.encode_to_vec(),
        );
        write_apply_state(&mut kv, REGION, &apply_state(index, 5));
        engines.kv.write(&kv, Durability::Unsynced).unwrap();
        storage.set_apply_state(apply_state(index, 5));
    }
    (copy(folders.0.path()), copy(folders.1.path()))
}

fn open_both(folders: &(TempDir, TempDir)) -> Result<Engines<DiskEngine>, OpenError> {
    let raft = open_raft(folders.1.path())?;
    let kv = DiskEngine::open(EngineKind::Kv, folders.0.path(), &options())?;
    Ok(Engines::new(kv, raft))
}

fn load(engines: &Engines<DiskEngine>) -> Result<PeerStorage<DiskEngine>, Error> {
    let options = PeerStorageOptions::default();
    let loaded = PeerStorage::load(engines, REGION, 1, &options)?;
    Ok(loaded.expect("the region is known"))
}

#[test]
fn bad_input_cut_raft_wal() {
    // Nothing is cut: everything is there.
    let storage = load(&open_both(&killed_node()).unwrap()).unwrap();
    assert_eq!(
        (storage.applied_index(), storage.last().index),
        (LAST, LAST)
    );

    // Cut back by many records.
    let folders = killed_node();
    cut(&log_file(folders.1.path()), FIRST_RECORD + 2 * BLOCK);
    let line = open_both(&folders).unwrap_err().to_string();
    assert!(line.contains("damaged record at offset "), "{line}");
    // Without a witness it may be a torn write, but the start check knows better.
    std::fs::remove_file(folders.1.path().join("synced")).unwrap();
    let engines = open_both(&folders).unwrap();
    let error = load(&engines).unwrap_err();
    let Error::StartCheck { region_id, fault } = &error else {
        panic!("expected a start fault, got {error}");
    };
    assert_eq!(*region_id, REGION);
    let StartFault::AppliedAboveLast { applied, last } = *fault else {
        panic!("expected applied above last, got {fault}");
    };
    assert_eq!(applied, LAST);
    assert!(last < LAST && last > 5);
    assert!(error.is_fatal());
}

#[test]
fn bad_input_flipped_bit_raft_wal() {
    let folders = killed_node();
    let log = log_file(folders.1.path());
    flip(&log, 3 * BLOCK + 1234, 0x20);
    let error = open_both(&folders).unwrap_err();
    let line = error.to_string();
    assert!(
        !line.contains('\n') && line.contains("raft engine: damaged log"),
        "{line}"
    );
    assert!(line.contains(log.to_str().unwrap()), "{line}");

    // Behind the last record nothing counts.
    let (kv, raft) = killed_node();
    let log = log_file(raft.path());
    flip(&log, length(&log) - 100, 0x40);
    let storage = load(&open_both(&(kv, raft)).unwrap()).unwrap();
    assert_eq!(storage.last().index, LAST);
}

#[test]
fn bad_input_flipped_bit_kv_wal() {
    // What the kv engine lost is replayed from the raft log.
    let folders = killed_node();
    let log = log_file(folders.0.path());
    flip(&log, BLOCK + 4321, 0x10);
    let engines = open_both(&folders).unwrap();
    let storage = load(&engines).unwrap();
    let applied = storage.applied_index();
    assert!(applied < LAST, "the tail was dropped");
    let has = |index: u64| {
        let key = keys::data_key(&index.to_be_bytes());
        engines.kv.get(Cf::Raw, &key).unwrap().is_some()
    };
    assert!(
        has(applied) && !has(applied + 1),
        "data and apply state agree"
    );
    let replay = storage.entries(applied + 1, LAST + 1, u64::MAX).unwrap();
    assert_eq!(replay.len() as u64, LAST - applied);
    assert!(storage.hard_state().commit >= applied);
    drop((storage, engines));

    // Where the raft log was compacted beyond what kv holds, the start check refuses.
    let (kv, raft) = killed_node();
    flip(&log_file(kv.path()), BLOCK + 4321, 0x10);
    let folders = (kv, raft);
    let engines = open_both(&folders).unwrap();
    let mut compact = WriteBatch::new();
    let (first, kept) = (keys::raft_log(REGION, 0), keys::raft_log(REGION, LAST - 10));
    compact.delete_range(Cf::RaftLog, first, kept);
    engines.raft.write(&compact, Durability::Synced).unwrap();
    let error = load(&engines).unwrap_err();
    let fault = StartFault::MissingEntry {
        index: 6,
        truncated: 5,
        last: LAST,
    };
    assert_eq!(
        error,
        Error::StartCheck {
            region_id: REGION,
            fault
        }
    );

    // A type that is not ours is refused before RocksDB sees it.
    let folders = killed_node();
    flip(&log_file(folders.0.path()), 6, 4);
    let error = open_both(&folders).unwrap_err();
    assert!(matches!(
        error,
        OpenError::DamagedWal {
            engine: EngineKind::Kv,
            ..
        }
    ));
}
