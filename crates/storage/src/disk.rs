//! The engines of a node on disk: the raft engine is a log of its own, the kv engine RocksDB.
//!
//! Both have one type, as all that works with a pair of engines takes one. Each call goes to the
//! engine that it is; there is nothing else here.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::WriteBatch;
use crate::engine::{
    Cf, Direction, Durability, Engine, EngineError, EngineKind, ReadView, Visitor,
};
use crate::expiry::ExpiryLookup;
use crate::raft_log::{RaftLogEngine, RaftLogSnapshot};
use crate::rocks::{
    EngineOptions, OpenError, OpenWith, RocksEngine, RocksReader, RocksSnapshot, SnapshotTable,
    check_raft_folder,
};
use crate::snapshot::{DiskFiles, SnapshotEngine, SnapshotError};

/// A node's engine on disk. Clones are handles of the same engine.
#[derive(Clone, Debug)]
pub enum DiskEngine {
    /// Data and apply state.
    Kv(RocksEngine),
    /// Logs and hard states.
    Raft(RaftLogEngine),
}

/// The state of a [`DiskEngine`] at one moment.
#[derive(Clone, Debug)]
pub enum DiskSnapshot {
    /// Of the kv engine.
    Kv(RocksSnapshot),
    /// Of the raft engine.
    Raft(RaftLogSnapshot),
}

/// An engine of a process that has stopped, opened without writing.
#[derive(Debug)]
pub enum DiskReader {
    /// Data and apply state.
    Kv(RocksReader),
    /// Logs and hard states.
    Raft(RaftLogEngine),
}

impl DiskEngine {
    /// Opens the engine in `folder`, or makes it there. Most callers open a whole
    /// [`DataFolder`](crate::DataFolder) instead.
    ///
    /// # Errors
    /// If the settings, the logs or RocksDB refuse; nothing is changed then by the first
    /// two.
    pub fn open(
        kind: EngineKind,
        folder: &Path,
        options: &EngineOptions,
    ) -> Result<Self, OpenError> {
        let with = OpenWith {
            cache: &options.new_cache(),
            create: true,
            keep: None,
        };
        Self::open_with(kind, folder, options, with)
    }

    pub(crate) fn open_with(
        kind: EngineKind,
        folder: &Path,
        options: &EngineOptions,
        with: OpenWith<'_>,
    ) -> Result<Self, OpenError> {
        options.validate()?;
        match kind {
            EngineKind::Kv => RocksEngine::open_with(folder, options, with).map(Self::Kv),
            EngineKind::Raft => {
                check_raft_folder(folder, with.create)?;
                let bytes = options.log_file_bytes as u64;
                RaftLogEngine::open(folder, bytes, with.keep)
                    .map(Self::Raft)
                    .map_err(|error| OpenError::of_raft_log(folder, error))
            }
        }
    }

    /// The kv engine, for what only it can do.
    #[must_use]
    pub fn as_kv(&self) -> Option<&RocksEngine> {
        match self {
            Self::Kv(kv) => Some(kv),
            Self::Raft(_) => None,
        }
    }
}

impl DiskReader {
    /// Opens the engine in `folder`. The caller holds the lock of the data folder.
    ///
    /// # Errors
    /// If the settings, the logs or RocksDB refuse.
    pub(crate) fn open(
        kind: EngineKind,
        folder: &Path,
        options: &EngineOptions,
        with: OpenWith<'_>,
    ) -> Result<Self, OpenError> {
        match kind {
            EngineKind::Kv => RocksReader::open(folder, options, with).map(Self::Kv),
            EngineKind::Raft => {
                check_raft_folder(folder, with.create)?;
                RaftLogEngine::open_read_only(folder, with.keep)
                    .map(Self::Raft)
                    .map_err(|error| OpenError::of_raft_log(folder, error))
            }
        }
    }
}

/// Answers a call by that of whichever engine it is.
macro_rules! either {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            Self::Kv($engine) => $call,
            Self::Raft($engine) => $call,
        }
    };
}

/// Reads go to whichever engine it is.
macro_rules! read_view {
    ($type:ty) => {
        impl ReadView for $type {
            fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
                either!(self, engine => engine.get(cf, key))
            }

            fn scan(
                &self,
                cf: Cf,
                start: &[u8],
                end: Option<&[u8]>,
                direction: Direction,
                visit: Visitor<'_>,
            ) -> Result<(), EngineError> {
                either!(self, engine => engine.scan(cf, start, end, direction, visit))
            }

            fn scan_once(
                &self,
                cf: Cf,
                start: &[u8],
                end: Option<&[u8]>,
                visit: Visitor<'_>,
            ) -> Result<(), EngineError> {
                either!(self, engine => engine.scan_once(cf, start, end, visit))
            }
        }
    };
}

read_view!(DiskEngine);
read_view!(DiskSnapshot);
read_view!(DiskReader);

impl Engine for DiskEngine {
    type Snapshot = DiskSnapshot;

    fn kind(&self) -> EngineKind {
        either!(self, engine => engine.kind())
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        either!(self, engine => engine.write(batch, durability))
    }

    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool, EngineError> {
        either!(self, engine => engine.write_at_once(batch))
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        either!(self, engine => engine.make_durable())
    }

    fn is_durable_by_flush(&self) -> bool {
        either!(self, engine => engine.is_durable_by_flush())
    }

    fn get_durable(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        either!(self, engine => engine.get_durable(cf, key))
    }

    fn held_bytes(&self) -> u64 {
        either!(self, engine => engine.held_bytes())
    }

    fn reclaim(&self) -> Result<bool, EngineError> {
        either!(self, engine => engine.reclaim())
    }

    fn snapshot(&self) -> DiskSnapshot {
        match self {
            Self::Kv(engine) => DiskSnapshot::Kv(engine.snapshot()),
            Self::Raft(engine) => DiskSnapshot::Raft(engine.snapshot()),
        }
    }

    fn publish_expiry_clocks(&self, clocks: Arc<ExpiryLookup>) {
        either!(self, engine => engine.publish_expiry_clocks(clocks));
    }
}

impl SnapshotEngine for DiskEngine {
    type Files = DiskFiles;
    type Writer = SnapshotTable;

    fn table_writer(files: &DiskFiles, name: &str) -> Result<SnapshotTable, SnapshotError> {
        RocksEngine::table_writer(files, name)
    }

    fn ingest_table(&self, files: &DiskFiles, name: &str, cf: Cf) -> Result<(), SnapshotError> {
        match self {
            Self::Kv(engine) => engine.ingest_table(files, name, cf),
            Self::Raft(_) => {
                let engine = EngineKind::Raft;
                Err(EngineError::ForeignColumnFamily { engine, cf }.into())
            }
        }
    }
}
