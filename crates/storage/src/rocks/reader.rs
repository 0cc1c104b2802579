//! A RocksDB that is only read, of a process that has stopped.
//!
//! RocksDB replays the write-ahead logs into memory, at most as much as the settings let
//! them grow, and writes nothing to the folder: no log, no diary, no lock of its own. The
//! walk over the logs comes first, as for an engine that is opened to be written.

use std::path::Path;

use bytes::Bytes;
use rocksdb::ReadOptions;

use super::engine::{Inner, OpenWith};
use super::opening::OpenError;
use super::options::EngineOptions;
use crate::engine::{Cf, Direction, EngineError, ReadView, Visitor};

/// The kv engine, to be read only. All reads see the state of its opening.
pub struct RocksReader {
    inner: Inner,
}

impl RocksReader {
    /// Opens the engine in `folder`. The caller holds the lock of the data folder.
    ///
    /// # Errors
    /// If the settings, the logs or RocksDB refuse.
    pub(crate) fn open(
        folder: &Path,
        options: &EngineOptions,
        with: OpenWith<'_>,
    ) -> Result<Self, OpenError> {
        let inner = Inner::open_read_only(folder, options, with)?;
        Ok(Self { inner })
    }
}

impl ReadView for RocksReader {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(cf, key, &ReadOptions::default())
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let options = ReadOptions::default();
        self.inner.scan(cf, (start, end), direction, options, visit)
    }
}

impl std::fmt::Debug for RocksReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RocksReader")
    }
}
