//! The raft engine on disk: records of entries, without their syncs.

use std::path::Path;

use anyhow::ensure;
use bytes::Bytes;
use strata_storage::{
    Cf, DiskEngine, Durability, Engine, EngineKind, EngineOptions, ReadView, WriteBatch, keys,
};

use crate::paths::HotPath;

/// Entries of a batch.
const ENTRIES: u64 = 16;
/// Bytes of an entry, about those of a put in `make bench`.
const ENTRY_BYTES: usize = 320;
/// Entries that are kept; those before are deleted, so files are used again.
const KEPT: u64 = 4096;
const REGION: u64 = 2;

/// Writes batches of entries with the region's state.
pub struct RaftLogWrite {
    engine: DiskEngine,
    entry: Bytes,
    state: Bytes,
    written: u64,
}

impl RaftLogWrite {
    /// An empty log whose files are small enough to be collected.
    ///
    /// # Errors
    /// The engine does not open.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let options = EngineOptions {
            log_file_bytes: 1 << 20,
            ..EngineOptions::default()
        };
        Ok(Self {
            engine: DiskEngine::open(EngineKind::Raft, &folder.join("raft"), &options)?,
            entry: Bytes::from(vec![b'e'; ENTRY_BYTES]),
            state: Bytes::from(vec![b's'; 32]),
            written: 0,
        })
    }
}

impl HotPath for RaftLogWrite {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            let mut batch = WriteBatch::new();
            for index in self.written + 1..=self.written + ENTRIES {
                let key = keys::raft_log(REGION, index);
                batch.put(Cf::RaftLog, key, self.entry.clone());
            }
            batch.put(Cf::RaftLog, keys::raft_state(REGION), self.state.clone());
            self.written += ENTRIES;
            let gone = self.written.saturating_sub(KEPT);
            let (first, kept) = (keys::raft_log(REGION, 0), keys::raft_log(REGION, gone));
            batch.delete_range(Cf::RaftLog, first, kept);
            self.engine.write(&batch, Durability::Unsynced)?;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        let last = operations * ENTRIES;
        ensure!(self.written == last, "{} of {last} entries", self.written);
        let first = last.saturating_sub(KEPT).max(1);
        for index in first..=last {
            let key = keys::raft_log(REGION, index);
            let found = self.engine.get(Cf::RaftLog, &key)?;
            ensure!(found.as_ref() == Some(&self.entry), "entry {index}");
        }
        let before = self
            .engine
            .get(Cf::RaftLog, &keys::raft_log(REGION, first - 1))?;
        ensure!(before.is_none(), "entry {} is left", first - 1);
        Ok(())
    }
}
