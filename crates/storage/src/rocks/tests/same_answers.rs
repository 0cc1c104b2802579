//! Random operations on both engines and on nothing else: the answers must be equal.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::{open, options};
use crate::batch::WriteBatch;
use crate::disk::DiskEngine;
use crate::engine::{Cf, Direction, Durability, Engine, EngineError, EngineKind, ReadView};
use crate::mem::MemEngine;
use crate::rocks::RocksEngine;

#[derive(Clone, Debug)]
enum Change {
    Put(Cf, u8, u8),
    Delete(Cf, u8),
    DeleteRange(Cf, u8, u8),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>, bool),
    Snapshot,
    DropSnapshot,
    Flush,
    Compact(Cf),
    Reopen,
}

fn families() -> impl Strategy<Value = Cf> {
    prop_oneof![Just(Cf::Raw), Just(Cf::Raft), Just(Cf::Default)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        4 => (families(), 0..12u8, any::<u8>()).prop_map(|(cf, key, v)| Change::Put(cf, key, v)),
        2 => (families(), 0..12u8).prop_map(|(cf, key)| Change::Delete(cf, key)),
        1 => (families(), 0..12u8, 0..12u8).prop_map(|(cf, a, b)| Change::DeleteRange(cf, a, b)),
    ];
    let changes = proptest::collection::vec(change, 0..6);
    let step = prop_oneof![
        10 => (changes, any::<bool>()).prop_map(|(changes, synced)| Step::Write(changes, synced)),
        2 => Just(Step::Snapshot),
        1 => Just(Step::DropSnapshot),
        1 => Just(Step::Flush),
        1 => families().prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Keys of one and two bytes, one of them empty.
fn key(number: u8) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        n if n % 3 == 0 => vec![n / 3, 0xff],
        n => vec![n / 3 + n % 3],
    }
}

fn batch_of(changes: &[Change]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for change in changes {
        match *change {
            Change::Put(cf, at, value) => batch.put(cf, key(at), vec![value; value as usize % 4]),
            Change::Delete(cf, at) => batch.delete(cf, key(at)),
            Change::DeleteRange(cf, a, b) => batch.delete_range(cf, key(a), key(b)),
        }
    }
    batch
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn scan(
    view: &impl ReadView,
    cf: Cf,
    range: (&[u8], Option<&[u8]>),
    direction: Direction,
    limit: usize,
) -> Result<Pairs, EngineError> {
    let mut found = Vec::new();
    view.scan(cf, range.0, range.1, direction, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        if found.len() == limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(found)
}

fn compare(left: &impl ReadView, right: &impl ReadView) -> Result<(), TestCaseError> {
    for cf in [Cf::Raw, Cf::Raft, Cf::Default] {
        for at in 0..12 {
            prop_assert_eq!(left.get(cf, &key(at)), right.get(cf, &key(at)));
            let end = key((at + 5) % 12);
            for direction in [Direction::Forward, Direction::Backward] {
                for range in [(&key(at)[..], None), (&key(at)[..], Some(&end[..]))] {
                    for limit in [2, usize::MAX] {
                        prop_assert_eq!(
                            scan(left, cf, range, direction, limit),
                            scan(right, cf, range, direction, limit)
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let memory = MemEngine::new(EngineKind::Kv);
    let mut disk = open(folder.path()).unwrap();
    let mut snapshots = Vec::new();
    for step in steps {
        match step {
            Step::Write(changes, synced) => {
                let durability = if synced {
                    Durability::Synced
                } else {
                    Durability::Unsynced
                };
                let batch = batch_of(&changes);
                prop_assert_eq!(memory.write(&batch, durability), Ok(()));
                prop_assert_eq!(disk.write(&batch, durability), Ok(()));
            }
            Step::Snapshot => snapshots.push((memory.snapshot(), disk.snapshot())),
            Step::DropSnapshot => {
                if let Some((left, right)) = snapshots.pop() {
                    compare(&left, &right)?;
                }
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Compact(cf) => disk.compact(cf).unwrap(),
            Step::Reopen => {
                for (left, right) in snapshots.drain(..) {
                    compare(&left, &right)?;
                }
                drop(disk);
                disk = RocksEngine::open(folder.path(), &options()).unwrap();
            }
        }
    }
    for (left, right) in &snapshots {
        compare(left, right)?;
    }
    compare(&memory, &disk)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn engines_in_memory_and_on_disk_give_the_same_answers(steps in steps()) {
        run(steps)?;
    }
}

#[test]
fn rocks_snapshot_outlives_every_handle() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    super::put(&engine, Cf::Raw, "a", "1", Durability::Unsynced);
    let snapshot = engine.snapshot();
    super::put(&engine, Cf::Raw, "a", "2", Durability::Unsynced);
    drop(engine);
    assert_eq!(
        snapshot.get(Cf::Raw, b"a").unwrap().as_deref(),
        Some(&b"1"[..])
    );
    drop(snapshot);
    let engine = open(folder.path()).unwrap();
    assert_eq!(
        engine.get(Cf::Raw, b"a").unwrap().as_deref(),
        Some(&b"2"[..])
    );
}

#[test]
fn engines_refuse_foreign_column_families() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, own, other) in [
        (EngineKind::Raft, Cf::RaftLog, Cf::Lock),
        (EngineKind::Kv, Cf::Lock, Cf::RaftLog),
    ] {
        let folder = folder.path().join(kind.to_string());
        let engine = DiskEngine::open(kind, &folder, &options()).unwrap();
        let foreign = EngineError::ForeignColumnFamily {
            engine: kind,
            cf: other,
        };
        assert_eq!(engine.get(other, b"a"), Err(foreign.clone()));
        let mut batch = WriteBatch::new();
        batch.put(other, "a", "1");
        assert_eq!(engine.write(&batch, Durability::Synced), Err(foreign));
        batch.clear();
        batch.put(own, "a", "1");
        assert_eq!(engine.write(&batch, Durability::Synced), Ok(()));
    }
}
