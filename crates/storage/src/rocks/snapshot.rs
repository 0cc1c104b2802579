//! The state of a database at one moment.
//!
//! Take   The snapshot holds the database, and is registered with the compaction filter's clocks,
//!        so that nothing that it sees expires under it.
//! Read   As from the engine, with options that name the snapshot. Clones share it.
//! End    The last clone lets go of the snapshot, then of the database.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::ReadOptions;

use super::engine::Inner;
use crate::engine::{Cf, Direction, EngineError, ReadView, Visitor};
use crate::expiry::SnapshotGuard;

/// The state of a [`RocksEngine`](super::RocksEngine) at one moment.
#[derive(Clone)]
pub struct RocksSnapshot {
    open: Arc<OpenSnapshot>,
}

/// The fields drop in this order: the snapshot before the database that it lives in.
struct OpenSnapshot {
    snapshot: rocksdb::Snapshot<'static>,
    _guard: SnapshotGuard,
    inner: Arc<Inner>,
}

impl RocksSnapshot {
    /// The state of a database as of now.
    pub(super) fn take(inner: &Arc<Inner>) -> Self {
        let guard = inner.clocks.register_snapshot();
        let snapshot = inner.db.snapshot();
        // SAFETY: the snapshot borrows `inner.db`, which lives in an `Arc` that the same
        // `OpenSnapshot` holds and does not give out for change; the database neither
        // moves nor goes before the snapshot, as fields drop in the order of declaration.
        let snapshot = unsafe {
            std::mem::transmute::<rocksdb::Snapshot<'_>, rocksdb::Snapshot<'static>>(snapshot)
        };
        RocksSnapshot {
            open: Arc::new(OpenSnapshot {
                snapshot,
                _guard: guard,
                inner: inner.clone(),
            }),
        }
    }
}

impl OpenSnapshot {
    fn read_options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options
    }
}

impl ReadView for RocksSnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.open.inner.get(cf, key, &self.open.read_options())
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let options = self.open.read_options();
        self.open
            .inner
            .scan(cf, (start, end), direction, options, visit)
    }

    fn scan_once(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let mut options = self.open.read_options();
        options.fill_cache(false);
        let range = (start, end);
        self.open
            .inner
            .scan(cf, range, Direction::Forward, options, visit)
    }
}

impl std::fmt::Debug for RocksSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RocksSnapshot")
    }
}
