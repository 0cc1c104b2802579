//! The log in a folder of the disk.

use std::ops::ControlFlow;

use super::{delete_entries, put_entry, put_record};
use crate::engine::{Cf, Direction, Durability, Engine, EngineKind, ReadView};
use crate::keys;
use crate::raft_log::{RaftLogEngine, RecoveryError};

const FILE_BYTES: u64 = 64 << 10;

fn open(folder: &std::path::Path) -> RaftLogEngine {
    RaftLogEngine::open(folder, FILE_BYTES, None).unwrap()
}

fn indexes(view: &impl ReadView, region_id: u64, direction: Direction) -> Vec<u64> {
    let (start, end) = keys::raft_log_range(region_id);
    let mut found = Vec::new();
    view.scan(Cf::RaftLog, &start, Some(&end), direction, &mut |key, _| {
        found.push(keys::parse_raft_log(key).unwrap().1);
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn log_on_disk_is_found_again_and_its_files_are_used_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("raft");
    for start in 0..5 {
        let engine = open(&folder);
        assert_eq!(engine.kind(), EngineKind::Raft);
        for index in 200 * start..200 * (start + 1) {
            let mut batch = put_entry(1, index, &[index as u8; 1_000]);
            batch.append(delete_entries(1, 0, index.saturating_sub(9)));
            engine.write(&batch, Durability::Unsynced).unwrap();
        }
        engine.make_durable().unwrap();
        let last = 200 * (start + 1);
        let expected: Vec<_> = (last - 10..last).collect();
        assert_eq!(indexes(&engine, 1, Direction::Forward), expected);
        assert!(engine.used_bytes() <= 8 * FILE_BYTES);
    }
    let engine = open(&folder);
    let found = engine.get(Cf::RaftLog, &keys::raft_log(1, 999)).unwrap();
    assert_eq!(found.as_deref(), Some(&[231; 1_000][..]));
    let files = names(&folder);
    assert!(files.len() < 12, "{files:?}");
    let is_known = |name: &String| name.ends_with(".log") || name == "synced";
    assert!(files.iter().all(is_known), "{files:?}");
}

#[test]
fn snapshot_outlives_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    for index in 0..5 {
        let batch = put_entry(1, index, b"value");
        engine.write(&batch, Durability::Unsynced).unwrap();
    }
    let snapshot = engine.snapshot();
    let batch = delete_entries(1, 0, 9);
    engine.write(&batch, Durability::Synced).unwrap();
    drop(engine);
    let backward = indexes(&snapshot.clone(), 1, Direction::Backward);
    assert_eq!(backward, [4, 3, 2, 1, 0]);
    let found = snapshot.get(Cf::RaftLog, &keys::raft_log(1, 3)).unwrap();
    assert_eq!(found.as_deref(), Some(&b"value"[..]));
    assert!(indexes(&open(folder.path()), 1, Direction::Forward).is_empty());
}

#[test]
fn log_that_is_only_looked_at_stays_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("raft");
    let none = RaftLogEngine::open_read_only(&folder, None).unwrap();
    assert_eq!(none.used_bytes(), 0);
    assert!(!folder.exists());
    let engine = open(&folder);
    let batch = put_record(keys::raft_state(1), b"state");
    engine.write(&batch, Durability::Synced).unwrap();
    drop(engine);
    let contents = || {
        let names = names(&folder).into_iter();
        let read = names.map(|name| (std::fs::read(folder.join(&name)).unwrap(), name));
        read.collect::<Vec<_>>()
    };
    let before = contents();
    assert_eq!(names(&folder), ["000001.log", "synced"]);
    let reader = RaftLogEngine::open_read_only(&folder, None).unwrap();
    let found = reader.get(Cf::RaftLog, &keys::raft_state(1)).unwrap();
    assert_eq!(found.as_deref(), Some(&b"state"[..]));
    assert!(contents() == before, "a reader wrote");
}

/// As whoever repairs a folder by hand would have it.
#[test]
fn log_that_lost_its_end_or_its_newest_file_is_refused_with_what_to_do() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("raft");
    let engine = open(&folder);
    for index in 0..100 {
        let batch = put_entry(1, index, &[1; 1_000]);
        engine.write(&batch, Durability::Synced).unwrap();
    }
    drop(engine);
    let refusal = || match RaftLogEngine::open(&folder, FILE_BYTES, None) {
        Err(RecoveryError::Damage(damage)) => damage.to_string(),
        other => panic!("{other:?}"),
    };
    let newest = folder.join("000002.log");
    let whole = std::fs::read(&newest).unwrap();
    // Nothing but the last record.
    let filled = whole.iter().rposition(|byte| *byte != 0).unwrap();
    std::fs::write(&newest, &whole[..filled]).unwrap();
    let line = refusal();
    assert!(
        line.contains("000002.log: damaged record at offset "),
        "{line}"
    );
    std::fs::remove_file(&newest).unwrap();
    let line = refusal();
    assert!(
        line.contains("synced: the log was synced in life 2"),
        "{line}"
    );
    std::fs::write(&newest, &whole).unwrap();
    let witness = folder.join("synced");
    let kept = std::fs::read(&witness).unwrap();
    std::fs::write(&witness, &kept[..20]).unwrap();
    let line = refusal();
    assert!(line.contains("remove it to start without"), "{line}");
    std::fs::remove_file(&witness).unwrap();
    assert_eq!(indexes(&open(&folder), 1, Direction::Forward).len(), 100);
    assert_eq!(std::fs::read(&witness).unwrap(), kept, "it is made anew");
}

#[test]
fn other_files_in_the_folder_are_left_alone_and_what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let others = [
        "1.log",
        "0000001.log",
        "abc.log",
        "000001.txt",
        "LOG",
        "+00001.log",
    ];
    for name in others {
        std::fs::write(folder.path().join(name), b"other").unwrap();
    }
    let engine = open(folder.path());
    let batch = put_record("a", b"1");
    engine.write(&batch, Durability::Synced).unwrap();
    drop(engine);
    assert_eq!(names(folder.path()).len(), others.len() + 2);
    std::fs::create_dir(folder.path().join("000007.log")).unwrap();
    let refused = RaftLogEngine::open(folder.path(), FILE_BYTES, None);
    assert!(matches!(refused, Err(RecoveryError::System(_))));
}
