//! The same over RocksDB and a folder of the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::disk::DiskEngine;
use crate::rocks::EngineOptions;

fn options(wal: bool) -> EngineOptions {
    EngineOptions {
        block_cache_bytes: 1 << 20,
        kv_memtable_bytes: 1 << 20,
        log_file_bytes: 1 << 20,
        kv_wal: wal,
        kv_atomic_flush: !wal,
        ..EngineOptions::default()
    }
}

struct Node {
    engines: Engines<DiskEngine>,
    files: DiskFiles,
    folder: PathBuf,
}

fn node(folder: &Path, wal: bool) -> Node {
    use crate::engine::EngineKind::{Kv, Raft};
    let open = |kind: crate::EngineKind| {
        DiskEngine::open(kind, &folder.join(kind.to_string()), &options(wal)).unwrap()
    };
    Node {
        engines: Engines::new(open(Kv), open(Raft)),
        files: DiskFiles::open(&folder.join("snapshots")).unwrap(),
        folder: folder.to_owned(),
    }
}

impl Node {
    /// The process ends and starts again.
    fn reopen(self, wal: bool) -> Self {
        let folder = self.folder.clone();
        drop(self);
        node(&folder, wal)
    }
}

fn flip_bit(path: &Path, bit: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    // Also where the system's clock for files has not moved on since the last write.
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before + Duration::from_millis(10))
        .unwrap();
}

fn path_of(files: &DiskFiles, ending: &str) -> PathBuf {
    let name = names(files).into_iter().find(|name| name.ends_with(ending));
    files.path(&name.unwrap())
}

/// A node with values of more than some chunks, of bytes that do not compress, and the beginning of
/// its region's snapshot.
fn large(folder: &Path) -> (Node, SnapshotManager<DiskFiles>, Generator<DiskEngine>) {
    let from = node(&folder.join("from"), true);
    fill(&from.engines.kv);
    let mut rng = rng(1);
    for number in 0..1200 {
        let value: Vec<u8> = (0..4096).map(|_| rand::Rng::random(&mut rng)).collect();
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, format!("zbig{number:04}"), value);
        from.engines.kv.write(&batch, Durability::Unsynced).unwrap();
    }
    let manager = open(&from.files);
    let view = from.engines.kv.snapshot();
    let generator = Generator::begin(&manager, view, REGION).unwrap();
    (from, manager, generator)
}

#[test]
fn generator_of_real_files_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (from, manager, mut generator) = large(folder.path());
    let mut most = 0;
    while most < 2 * CHUNK_BYTES as u64 {
        let worked = generator.step(64 << 10).unwrap();
        assert!(matches!(worked, Generated::Working), "{most} bytes at most");
        let lengths = names(&from.files).into_iter();
        let lengths = lengths.filter_map(|name| from.files.length(&name).unwrap());
        most = lengths.max().unwrap_or(0);
    }
    drop(generator);
    assert!(names(&from.files).is_empty());
    assert_eq!(manager.used_bytes(), 0);
}

#[test]
fn snapshot_of_real_files_installs_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let (from, _, mut generator) = large(folder.path());
    let mut steps = 0;
    let snapshot = loop {
        steps += 1;
        if let Generated::Done(snapshot) = generator.step(64 << 10).unwrap() {
            break snapshot;
        }
    };
    assert!(steps > 30, "{steps} steps: not in bounded pieces");
    assert!(snapshot.meta().files[3].length > 4 * CHUNK_BYTES as u64);
    let to = node(&folder.path().join("to"), true);
    for cf in DATA {
        put(&to.engines.kv, cf, "zd", "old");
        put(&to.engines.kv, cf, "zy", "mine");
    }
    let received = transfer(&snapshot, &open(&to.files));
    let view = to.engines.kv.snapshot();
    install(&to.engines, received.clone());
    let region = region(REGION);
    assert_eq!(
        carried(&to.engines.kv, &region),
        carried(&from.engines.kv, &region)
    );
    // A snapshot of before sees what was before.
    assert_eq!(view.get(Cf::Raw, b"zd").unwrap().unwrap(), "old");
    drop(view);
    // The files stay what they were, also when the engine writes and compacts.
    for cf in DATA {
        to.engines.kv.as_kv().unwrap().compact(cf).unwrap();
    }
    for file in 0..received.meta().files.len() as u32 {
        received.verify_file(file).unwrap();
    }
    let manager = open(&to.files);
    drop(received);
    assert_eq!(manager.retain(|_| false).unwrap().len(), 1);
    assert!(names(&to.files).is_empty());
    let to = to.reopen(true);
    assert_eq!(
        carried(&to.engines.kv, &region),
        carried(&from.engines.kv, &region)
    );
    assert_eq!(to.engines.kv.get(Cf::Raw, b"zy").unwrap().unwrap(), "mine");
}

#[test]
fn crash_rule_snapshot_install_over_real_files() {
    let folder = tempfile::tempdir().unwrap();
    let from = node(&folder.path().join("from"), true);
    fill(&from.engines.kv);
    let snapshot = generate(&open(&from.files), &from.engines.kv, REGION);
    for wal in [true, false] {
        for stop in [1, 2, 10, 11, 14, 17, 18] {
            let place = folder.path().join(format!("to-{wal}-{stop}"));
            let to = node(&place, wal);
            for cf in DATA {
                put(&to.engines.kv, cf, "zd", "old");
            }
            let received = transfer(&snapshot, &open(&to.files));
            let hard = hard_state(TERM, 71, INDEX);
            let begun = begin_install(None, [], received.meta(), &hard).unwrap();
            to.engines.kv.write(&begun.kv, Durability::Synced).unwrap();
            if stop > 1 {
                to.engines
                    .raft
                    .write(&begun.raft, Durability::Synced)
                    .unwrap();
            }
            let mut installer = Installer::new(to.engines.kv.clone(), received);
            for _ in 2..stop {
                if installer.step([]).unwrap() == Installed::Done {
                    break;
                }
            }
            drop(installer);
            let to = to.reopen(wal);
            if let Some(found) = recover_install(&to.engines, REGION).unwrap() {
                assert_eq!(found.raft.is_some(), stop == 1);
                if let Some(raft) = found.raft {
                    to.engines.raft.write(&raft, Durability::Synced).unwrap();
                }
                let manager = open(&to.files);
                let again = manager.find_received(REGION, found.index, found.term);
                let mut installer = Installer::new(to.engines.kv.clone(), again.unwrap());
                while installer.step([]).unwrap() == Installed::Working {}
            }
            let to = to.reopen(wal);
            let region = region(REGION);
            assert_eq!(
                carried(&to.engines.kv, &region),
                carried(&from.engines.kv, &region),
                "wal {wal}, stop {stop}"
            );
            assert_eq!(state_of(&to.engines.kv), PeerState::Normal);
        }
    }
}

#[test]
fn bad_input_flipped_bit_sst() {
    let folder = tempfile::tempdir().unwrap();
    let from = node(&folder.path().join("from"), true);
    fill(&from.engines.kv);
    let snapshot = generate(&open(&from.files), &from.engines.kv, REGION);
    let to = node(&folder.path().join("to"), true);
    put(&to.engines.kv, Cf::Raw, "zd", "old");
    let received = transfer(&snapshot, &open(&to.files));
    for file in 0..received.meta().files.len() as u32 {
        received.verify_changed_file(file).unwrap();
    }
    flip_bit(&path_of(&to.files, "_raw.sst"), 400);
    let mut installer = Installer::new(to.engines.kv.clone(), received);
    let error = loop {
        if let Err(error) = installer.step([]) {
            break error;
        }
    };
    assert!(
        matches!(error, SnapshotError::FileChecksum { .. }),
        "{error}"
    );
    assert_eq!(to.engines.kv.get(Cf::Raw, b"zd").unwrap().unwrap(), "old");
    // One that got past the checksums is refused by the engine, which goes on.
    let garbage = path_of(&to.files, "_lock.sst");
    std::fs::write(&garbage, vec![7; 4096]).unwrap();
    let name = garbage.file_name().unwrap().to_str().unwrap();
    let error = to
        .engines
        .kv
        .ingest_table(&to.files, name, Cf::Lock)
        .unwrap_err();
    assert!(matches!(error, SnapshotError::Table { .. }), "{error}");
    put(&to.engines.kv, Cf::Raw, "ze", "still serving");
}

#[test]
fn disk_files_resume_after_restart_where_they_were_synced() {
    let folder = tempfile::tempdir().unwrap();
    let from = node(&folder.path().join("from"), true);
    fill(&from.engines.kv);
    let snapshot = generate(&open(&from.files), &from.engines.kv, REGION);
    let files = DiskFiles::open(&folder.path().join("to")).unwrap();
    let mut before = receiver(&open(&files), snapshot.meta());
    before.accept(&snapshot.read_chunk(0, 0).unwrap()).unwrap();
    before.accept(&snapshot.read_chunk(4, 0).unwrap()).unwrap();
    before.sync().unwrap();
    before.accept(&snapshot.read_chunk(5, 0).unwrap()).unwrap();
    let synced = before.progress();
    drop(before);
    let manager = open(&files);
    let mut after = receiver(&manager, snapshot.meta());
    assert_eq!(after.progress(), synced);
    drop(after);
    // A bit that flipped in a part meanwhile: that part begins again.
    flip_bit(&path_of(&files, "_raw2.part"), 99);
    let manager = open(&files);
    after = receiver(&manager, snapshot.meta());
    assert_eq!(after.progress().parts[0], synced.parts[0]);
    assert_eq!(after.progress().parts[4].synced, 0);
    send(&snapshot, &mut after);
    let whole = after.finish().unwrap();
    assert!(
        whole
            .display_path()
            .contains("_(default|lock|write|raw|raw2|session).sst")
    );
}

#[test]
fn disk_files_answer_with_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    let files = DiskFiles::open(&folder.path().join("deep/er")).unwrap();
    files.create("a").unwrap();
    files.append("a", 0, b"hello").unwrap();
    let wrong = files.append("a", 3, b"x").unwrap_err();
    assert!(matches!(
        wrong,
        SnapshotError::FileLength {
            found: 5,
            expected: 3,
            ..
        }
    ));
    let short = files.read("a", 2, 9).unwrap_err();
    assert!(matches!(
        short,
        SnapshotError::FileLength {
            found: 5,
            expected: 11,
            ..
        }
    ));
    assert!(matches!(
        files.read("b", 0, 1),
        Err(SnapshotError::File { .. })
    ));
    assert_eq!(files.length("b").unwrap(), None);
    files.truncate("a", 9).unwrap();
    files.truncate("a", 2).unwrap();
    assert_eq!(files.read("a", 0, 2).unwrap(), "he");
    files.rename("a", "b").unwrap();
    files.remove("a").unwrap();
    files.sync("b").unwrap();
    files.sync_folder().unwrap();
    assert_eq!(files.list().unwrap(), [("b".to_owned(), 2)]);
}

#[test]
fn bad_input_disk_full_snapshot_receive_on_a_full_device() {
    // A device that is always full stands in for the file.
    let folder = tempfile::tempdir().unwrap();
    let files = DiskFiles::open(folder.path()).unwrap();
    std::os::unix::fs::symlink("/dev/full", files.path("part")).unwrap();
    let error = files.append("part", 0, b"x").unwrap_err();
    assert!(matches!(error, SnapshotError::DiskFull { .. }), "{error}");
    assert!(!error.is_fatal());
}

#[test]
fn a_file_that_was_read_back_is_read_again_after_a_write_or_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let from = node(&folder.path().join("from"), true);
    fill(&from.engines.kv);
    let snapshot = generate(&open(&from.files), &from.engines.kv, REGION);
    let to = node(&folder.path().join("to"), true);
    let received = transfer(&snapshot, &open(&to.files));
    let place = |name| received.meta().files.iter().position(|f| f.name == name);
    let raw = place("raw").unwrap() as u32;
    let damaged = |checked: Result<(), SnapshotError>| {
        matches!(checked, Err(SnapshotError::FileChecksum { .. }))
    };
    // A disk that loses a bit says nothing of it: the file looks as it did.
    let path = path_of(&to.files, "_raw.sst");
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    flip_bit(&path, 400);
    assert!(damaged(received.verify_changed_file(raw)), "written to");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(written).unwrap();
    assert!(received.verify_changed_file(raw).is_ok(), "not read again");
    assert!(damaged(received.verify_file(raw)));
    let (id, index, term) = (REGION, received.meta().index, received.meta().term);
    let again = open(&to.files).find_received(id, index, term).unwrap();
    assert!(damaged(again.verify_changed_file(raw)), "another process");
}
