//! The engine on disk: the same answers as memory, and what damage to its files does.

mod crash;
mod expiry;
mod image;
mod same_answers;

use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::batch::WriteBatch;
use crate::engine::{Cf, Direction, Durability, Engine, ReadView};

/// Small memtables, so that tests reach files and stay cheap. With a log, as a process that is killed
/// then loses nothing, and as some damage it.
pub(super) fn options() -> EngineOptions {
    EngineOptions {
        kv_wal: true,
        kv_atomic_flush: false,
        block_cache_bytes: 1 << 20,
        kv_memtable_bytes: 1 << 20,
        ..EngineOptions::default()
    }
}

pub(super) fn open(folder: &Path) -> Result<RocksEngine, OpenError> {
    RocksEngine::open(folder, &options())
}

pub(super) fn put(engine: &RocksEngine, cf: Cf, key: &str, value: &str, durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(cf, key.to_owned(), value.to_owned());
    engine.write(&batch, durability).unwrap();
}

#[test]
fn what_is_read_once_takes_no_place_in_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let value = "v".repeat(4096);
    for number in 0..64 {
        let key = format!("key{number:03}");
        put(&engine, Cf::Default, &key, &value, Durability::Unsynced);
    }
    engine.flush().unwrap();
    let snapshot = engine.snapshot();
    let read = |view: &dyn ReadView, once: bool| {
        let mut bytes = 0;
        let mut visit = |_: &[u8], value: &[u8]| {
            bytes += value.len();
            ControlFlow::Continue(())
        };
        if once {
            view.scan_once(Cf::Default, b"", None, &mut visit)
        } else {
            view.scan(Cf::Default, b"", None, Direction::Forward, &mut visit)
        }
        .unwrap();
        assert_eq!(bytes, 64 * 4096);
        engine.cached_bytes(Cf::Default)
    };
    let blocks = 32 * 4096;
    assert!(read(&engine, true) < blocks, "of the engine");
    assert!(read(&snapshot, true) < blocks, "of a snapshot");
    assert!(
        read(&snapshot, false) >= blocks,
        "an ordinary scan fills the cache"
    );
}

#[test]
fn a_write_at_once_does_not_wait_for_compactions() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let written = |key: &'static str| {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Default, key, "value");
        engine.write_at_once(&batch).unwrap()
    };
    let read = |key: &str| engine.get(Cf::Default, key.as_bytes()).unwrap();
    assert!(written("a"));
    engine.flush().unwrap();
    engine.hold_writers_up(Cf::Default, true);
    assert!(!written("b"), "RocksDB would hold it up");
    assert_eq!(read("b"), None, "nothing of it is written");
    assert!(engine.write_at_once(&WriteBatch::new()).unwrap());
    engine.hold_writers_up(Cf::Default, false);
    let hold = engine.inner_hold();
    assert!(!written("b"), "one that syncs, or ingests, would");
    drop(hold);
    assert!(written("c"));
    assert_eq!(read("a").as_deref(), Some(&b"value"[..]));
    assert_eq!(read("c").as_deref(), Some(&b"value"[..]));
}
