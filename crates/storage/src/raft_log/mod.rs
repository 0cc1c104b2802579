//! The raft engine: a log of files that are used again, and where everything lies in memory.
//!
//! Why      All that a store's peers write before they answer goes through here, each time with a
//!          sync. A general engine appends to a log that grows, which the file system must note at
//!          each sync, writes the same entries into memtables and often into tables, and deletes
//!          them soon after. Here an entry is written once, into a file that has its length and its
//!          blocks already ([decision](../../../../docs/decisions/raft-log-files.md)).
//! In       [`Log::write`](log::Log::write) makes one record of a batch ([`form`]), [`state`] puts
//!          it at the end of the newest file and into the [`index`], and takes along what is still
//!          wanted of the oldest.
//! Out      The index says where an entry lies, `log` reads it and checks it; small records are
//!          kept in memory.
//! Opening  [`recovery`] reads all files into the index, and refuses what a torn write cannot
//!          explain. The [`witness`] says how far the log must reach.
//! Files    [`files`]: a folder of the disk, or of memory in tests.
//!
//! Nothing here has a thread: collecting is paid by those who write, and by those who ask for it when
//! they have removed much (`reclaim`).
//!
//! Invariants
//! * What a crash leaves is a prefix of the batches in the order they were written, with all that
//!   were synced. What an opened log holds is on disk.
//! * A file is used again only when nothing in it is wanted, what was taken along from it is on
//!   disk, and nobody reads from it.
//! * About half of what the files hold is unwanted at most, beside a few files; walking for that is
//!   at most three times as many bytes as are written, but where someone reclaims: once over all of
//!   it then.

mod files;
mod form;
mod index;
mod log;
mod recovery;
mod state;
#[cfg(test)]
mod tests;
mod witness;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::WriteBatch;
use crate::engine::{
    Cf, Direction, Durability, Engine, EngineError, EngineKind, ReadView, Visitor,
};
use files::{DiskFolder, LogFolder};
use log::{Log, LogView};
pub(crate) use recovery::RecoveryError;
pub use recovery::{LogDamage, LogFault};

/// Whether a folder holds files of a log.
pub(crate) fn has_files(folder: &Path) -> std::io::Result<bool> {
    Ok(!DiskFolder::new(folder).list()?.is_empty())
}

/// The raft engine on disk. Clones are handles of the same log.
#[derive(Clone)]
pub struct RaftLogEngine {
    log: Arc<Log<DiskFolder>>,
    /// What must outlive the log, such as the lock of its folder.
    _keep: Option<Arc<dyn Send + Sync>>,
}

/// The state of a [`RaftLogEngine`] at one moment. It holds the index as a copy.
#[derive(Clone)]
pub struct RaftLogSnapshot {
    view: Arc<LogView<DiskFolder>>,
}

impl RaftLogEngine {
    /// Opens the log in `folder`, which is made if there is none, or in which one begins. Files
    /// have `file_bytes`. What is found is durable when this returns.
    pub(crate) fn open(
        folder: &Path,
        file_bytes: u64,
        keep: Option<Arc<dyn Send + Sync>>,
    ) -> Result<Self, RecoveryError> {
        std::fs::create_dir_all(folder)?;
        // A process that was killed may have made a file whose name is not on disk yet.
        std::fs::File::open(folder)?.sync_all()?;
        Ok(Self {
            log: Arc::new(Log::open(DiskFolder::new(folder), file_bytes, true)?),
            _keep: keep,
        })
    }

    /// Opens the log in `folder` to read what is there now; nothing is written.
    pub(crate) fn open_read_only(
        folder: &Path,
        keep: Option<Arc<dyn Send + Sync>>,
    ) -> Result<Self, RecoveryError> {
        Ok(Self {
            log: Arc::new(Log::open(DiskFolder::new(folder), 0, false)?),
            _keep: keep,
        })
    }
}

#[cfg(test)]
impl RaftLogEngine {
    /// Bytes of the files whose records count.
    fn used_bytes(&self) -> u64 {
        self.log.used_bytes()
    }
}

impl ReadView for RaftLogEngine {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.log.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.log.scan(cf, (start, end), direction, visit)
    }
}

impl Engine for RaftLogEngine {
    type Snapshot = RaftLogSnapshot;

    fn kind(&self) -> EngineKind {
        EngineKind::Raft
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.log.write(batch, durability)
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        self.log.make_durable()
    }

    fn held_bytes(&self) -> u64 {
        self.log.held_bytes()
    }

    fn reclaim(&self) -> Result<bool, EngineError> {
        self.log.reclaim()
    }

    fn snapshot(&self) -> RaftLogSnapshot {
        RaftLogSnapshot {
            view: Arc::new(self.log.view()),
        }
    }
}

impl ReadView for RaftLogSnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.view.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.view.scan(cf, (start, end), direction, visit)
    }
}

impl std::fmt::Debug for RaftLogEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RaftLogEngine")
    }
}

impl std::fmt::Debug for RaftLogSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RaftLogSnapshot")
    }
}
