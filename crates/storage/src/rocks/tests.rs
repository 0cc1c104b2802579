//! The engine on disk: the same answers as memory, and what damage to its files does.

mod crash;
mod expiry;
mod same_answers;

use std::path::Path;

use super::*;
use crate::batch::WriteBatch;
use crate::engine::{Cf, Durability, Engine, EngineKind};

/// Small memtables, so that tests reach files and stay cheap.
pub(super) fn options() -> EngineOptions {
    EngineOptions {
        block_cache_bytes: 1 << 20,
        kv_memtable_bytes: 1 << 20,
        raft_memtable_bytes: 4 << 20,
        ..EngineOptions::default()
    }
}

pub(super) fn open(kind: EngineKind, folder: &Path) -> Result<RocksEngine, OpenError> {
    RocksEngine::open(kind, folder, &options())
}

pub(super) fn put(engine: &RocksEngine, cf: Cf, key: &str, value: &str, durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(cf, key.to_owned(), value.to_owned());
    engine.write(&batch, durability).unwrap();
}
