//! RocksDB as the kv engine opens it: its C++ is counted, too.

use std::path::Path;

use anyhow::ensure;
use bytes::Bytes;
use strata_storage::{Cf, Durability, Engine, EngineOptions, ReadView, RocksEngine, WriteBatch};

use crate::paths::HotPath;

/// Puts of a batch.
const PUTS: u64 = 16;
/// Bytes of a value, as in `make bench`.
const VALUE_BYTES: usize = 256;
/// Keys that are there to be read. They fit into the block cache.
const KEYS_TO_READ: u64 = 8192;
/// Step from one key to the next: odd, so that all are met, and in no order that one block
/// would serve.
const STRIDE: u64 = 3_571;

fn open(folder: &Path) -> anyhow::Result<RocksEngine> {
    Ok(RocksEngine::open(
        &folder.join("kv"),
        &EngineOptions::default(),
    )?)
}

fn key(number: u64) -> String {
    format!("zhot-path-key-{number:016}")
}

/// Writes `PUTS` keys from `number * PUTS` on.
fn write(engine: &RocksEngine, number: u64, value: &Bytes) -> anyhow::Result<()> {
    let mut batch = WriteBatch::new();
    for put in number * PUTS..(number + 1) * PUTS {
        batch.put(Cf::Raw, key(put), value.clone());
    }
    Ok(engine.write(&batch, Durability::Unsynced)?)
}

fn value() -> Bytes {
    Bytes::from(vec![b'v'; VALUE_BYTES])
}

/// Writes batches of new keys.
pub struct RocksWrite {
    engine: RocksEngine,
    value: Bytes,
    written: u64,
}

impl RocksWrite {
    /// An empty engine. All runs together stay far below a memtable, so nothing is flushed.
    ///
    /// # Errors
    /// The engine does not open.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            engine: open(folder)?,
            value: value(),
            written: 0,
        })
    }
}

impl HotPath for RocksWrite {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            write(&self.engine, self.written, &self.value)?;
            self.written += 1;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        for number in 0..operations * PUTS {
            let found = self.engine.get(Cf::Raw, key(number).as_bytes())?;
            ensure!(found == Some(value()), "key {number}");
        }
        Ok(())
    }
}

/// Reads values of a table.
pub struct RocksGet {
    engine: RocksEngine,
    at: u64,
    found: u64,
}

impl RocksGet {
    /// An engine with one table, whose blocks are in the cache.
    ///
    /// # Errors
    /// The engine does not open, or refuses.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let engine = open(folder)?;
        let value = value();
        for number in 0..KEYS_TO_READ / PUTS {
            write(&engine, number, &value)?;
        }
        engine.flush()?;
        for number in 0..KEYS_TO_READ {
            let found = engine.get(Cf::Raw, key(number).as_bytes())?;
            ensure!(found.as_ref() == Some(&value), "key {number}");
        }
        Ok(Self {
            engine,
            at: 0,
            found: 0,
        })
    }
}

impl HotPath for RocksGet {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            let found = self.engine.get(Cf::Raw, key(self.at).as_bytes())?;
            self.found += u64::from(found.is_some_and(|value| value.len() == VALUE_BYTES));
            self.at = (self.at + STRIDE) % KEYS_TO_READ;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        ensure!(
            self.found == operations,
            "{} values of {operations}",
            self.found
        );
        Ok(())
    }
}
