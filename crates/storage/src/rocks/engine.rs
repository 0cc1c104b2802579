//! Opening, writing and reading a RocksDB: the kv engine.
//!
//! Open   Logs are walked first ([`wal`](crate::wal)), then RocksDB recovers.
//! Write  One RocksDB batch; synced where asked, which is a flush of all column families where the
//!        engine has no log. The first failure is kept and refuses
//!        everything after it (crash rule 9): RocksDB itself may clear some errors in the
//!        background, and would then build on what the kernel has thrown away.
//! Read   Values are copied once, from RocksDB's block into owned bytes; of an earlier moment
//!        through a [`RocksSnapshot`].

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRawIterator, ErrorKind, FlushOptions,
    IngestExternalFileOptions, ReadOptions, ReadTier, WriteOptions,
};

use super::opening::{OpenError, advised, check_current, check_logs};
use super::options::EngineOptions;
use super::snapshot::RocksSnapshot;
use crate::batch::{Change, WriteBatch};
use crate::engine::{
    Cf, Direction, Durability, Engine, EngineError, EngineKind, ReadView, Visitor,
};
use crate::expiry::{ExpiryClocks, ExpiryLookup};

/// What of a node's engines is in RocksDB.
const KIND: EngineKind = EngineKind::Kv;

/// Why a table was not taken in.
pub(super) enum IngestError {
    /// It is damaged or none; nothing was changed.
    Table(String),
    /// The engine failed.
    Engine(EngineError),
}

impl From<EngineError> for IngestError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// The kv engine. Clones are handles of the same database.
#[derive(Clone)]
pub struct RocksEngine {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) db: DB,
    wal: bool,
    pub(super) clocks: ExpiryClocks,
    /// The first failed write.
    failure: Mutex<Option<String>>,
    /// Operations under way behind which RocksDB has every writer wait, for the disk.
    holds: AtomicUsize,
    /// What must outlive the database, such as the lock of its folder.
    _keep: Option<Arc<dyn Send + Sync>>,
}

/// How an engine is opened, beside its settings.
pub(crate) struct OpenWith<'a> {
    /// Block cache, shared with the other engine.
    pub(crate) cache: &'a Cache,
    /// Whether a database may be made where there is none.
    pub(crate) create: bool,
    /// What must outlive the database.
    pub(crate) keep: Option<Arc<dyn Send + Sync>>,
}

impl RocksEngine {
    /// Opens the engine in `folder`, or makes it there. Most callers open a whole
    /// [`DataFolder`](crate::DataFolder) instead.
    ///
    /// # Errors
    /// If the settings, the logs or RocksDB refuse; nothing is changed then by the first
    /// two.
    pub fn open(folder: &Path, options: &EngineOptions) -> Result<Self, OpenError> {
        let with = OpenWith {
            cache: &options.new_cache(),
            create: true,
            keep: None,
        };
        Self::open_with(folder, options, with)
    }

    pub(crate) fn open_with(
        folder: &Path,
        options: &EngineOptions,
        with: OpenWith<'_>,
    ) -> Result<Self, OpenError> {
        options.validate()?;
        check_current(folder)?;
        check_logs(folder)?;
        let clocks = ExpiryClocks::new();
        let families = KIND.column_families().iter().map(|cf| {
            let settings = options.column_family(*cf, with.cache, &clocks);
            ColumnFamilyDescriptor::new(cf.name(), settings)
        });
        let database = options.database(with.create);
        let db = DB::open_cf_descriptors(&database, folder, families).map_err(|error| {
            OpenError::Refused {
                engine: KIND,
                folder: folder.to_owned(),
                detail: advised(error),
            }
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                db,
                wal: options.kv_wal,
                clocks,
                failure: Mutex::new(None),
                holds: AtomicUsize::new(0),
                _keep: with.keep,
            }),
        })
    }

    /// Clocks by which compaction drops expired values, and the open snapshots.
    #[must_use]
    pub fn expiry_clocks(&self) -> &ExpiryClocks {
        &self.inner.clocks
    }

    /// Writes the memtables of all column families to files, at one moment if the
    /// settings ask for atomic flush. Waits for it.
    ///
    /// # Errors
    /// `WriteFailed` and `Poisoned`, both fatal.
    pub fn flush(&self) -> Result<(), EngineError> {
        self.inner.check_writable()?;
        let families = KIND.column_families();
        let handles: Vec<_> = families.iter().map(|cf| self.inner.handle(*cf)).collect();
        let handles: Result<Vec<_>, _> = handles.into_iter().collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.inner
            .db
            .flush_cfs_opt(&handles?, &options)
            .map_err(|error| self.inner.fail(error))
    }

    /// What a synced write holds while it waits for the disk.
    #[cfg(test)]
    pub(super) fn inner_hold(&self) -> impl Drop {
        self.inner.hold()
    }

    /// Holds writers up while there is a table on level 0, or does so no more.
    #[cfg(test)]
    pub(super) fn hold_writers_up(&self, cf: Cf, hold: bool) {
        let tables = if hold { "1" } else { "1000" };
        let options = [
            ("level0_file_num_compaction_trigger", "1000"),
            ("level0_slowdown_writes_trigger", tables),
            ("level0_stop_writes_trigger", tables),
        ];
        let handle = self.inner.db.cf_handle(cf.name()).expect("opened with it");
        let set = self.inner.db.set_options_cf(handle, &options);
        set.expect("options that RocksDB knows");
    }

    /// Bytes in the block cache.
    #[cfg(test)]
    pub(super) fn cached_bytes(&self, cf: Cf) -> u64 {
        let handle = self.inner.handle(cf).expect("a family of this engine");
        let usage = self
            .inner
            .db
            .property_int_value_cf(handle, "rocksdb.block-cache-usage");
        usage.ok().flatten().expect("there is a block cache")
    }

    /// Compacts one column family whole, and waits for it. Drops what its filter drops.
    ///
    /// # Errors
    /// `ForeignColumnFamily`.
    pub fn compact(&self, cf: Cf) -> Result<(), EngineError> {
        let handle = self.inner.handle(cf)?;
        let whole = None::<&[u8]>;
        self.inner.db.compact_range_cf(handle, whole, whole);
        Ok(())
    }

    /// Takes in a sorted table, by moving (its name goes) or by copy. What it holds is on
    /// disk when this returns. Its keys hide what was written before.
    pub(super) fn ingest(&self, cf: Cf, path: &Path, by_move: bool) -> Result<(), IngestError> {
        self.inner.check_writable()?;
        let handle = self.inner.handle(cf)?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(by_move);
        let _hold = self.inner.hold();
        let taken = self
            .inner
            .db
            .ingest_external_file_cf_opts(handle, &options, vec![path]);
        taken.map_err(|error| match error.kind() {
            // The table is refused before anything is changed.
            ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported => {
                IngestError::Table(error.into_string())
            }
            _ => IngestError::Engine(self.inner.fail(error)),
        })
    }

    /// Bytes of the engine's data files, without logs.
    ///
    /// # Errors
    /// `ReadFailed`.
    pub fn data_bytes(&self) -> Result<u64, EngineError> {
        let mut sum = 0;
        for cf in KIND.column_families() {
            let handle = self.inner.handle(*cf)?;
            let found = self
                .inner
                .db
                .property_int_value_cf(handle, "rocksdb.total-sst-files-size");
            sum += found
                .map_err(|error| self.inner.read_error(error))?
                .unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Inner {
    /// Opens a database without writing to its folder; what its logs hold is replayed into
    /// memory only.
    pub(super) fn open_read_only(
        folder: &Path,
        options: &EngineOptions,
        with: OpenWith<'_>,
    ) -> Result<Self, OpenError> {
        options.validate()?;
        check_current(folder)?;
        check_logs(folder)?;
        let clocks = ExpiryClocks::new();
        let families = KIND.column_families().iter().map(|cf| {
            let settings = options.column_family(*cf, with.cache, &clocks);
            ColumnFamilyDescriptor::new(cf.name(), settings)
        });
        let database = options.database(false);
        let db = DB::open_cf_descriptors_read_only(&database, folder, families, false);
        let db = db.map_err(|error| OpenError::Refused {
            engine: KIND,
            folder: folder.to_owned(),
            detail: advised(error),
        })?;
        Ok(Self {
            db,
            wal: options.kv_wal,
            clocks,
            failure: Mutex::new(None),
            holds: AtomicUsize::new(0),
            _keep: with.keep,
        })
    }
}

/// As long as it is there, [`Engine::write_at_once`] writes nothing.
struct Hold<'a>(&'a AtomicUsize);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inner {
    fn hold(&self) -> Hold<'_> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Hold(&self.holds)
    }

    fn handle(&self, cf: Cf) -> Result<&ColumnFamily, EngineError> {
        let foreign = EngineError::ForeignColumnFamily { engine: KIND, cf };
        if cf.engine() != KIND {
            return Err(foreign);
        }
        self.db.cf_handle(cf.name()).ok_or(foreign)
    }

    fn check_writable(&self) -> Result<(), EngineError> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(first) => Err(EngineError::Poisoned {
                engine: KIND,
                first: first.clone(),
            }),
        }
    }

    /// Keeps the first failure.
    fn fail(&self, error: rocksdb::Error) -> EngineError {
        let detail = advised(error);
        self.failure.lock().get_or_insert_with(|| detail.clone());
        EngineError::WriteFailed {
            engine: KIND,
            detail,
        }
    }

    fn read_error(&self, error: rocksdb::Error) -> EngineError {
        let engine = KIND;
        match error.kind() {
            ErrorKind::Corruption => EngineError::Corruption {
                engine,
                detail: error.into_string(),
            },
            _ => EngineError::ReadFailed {
                engine,
                detail: error.into_string(),
            },
        }
    }

    fn native_batch(&self, batch: &WriteBatch) -> Result<rocksdb::WriteBatch, EngineError> {
        let mut native = rocksdb::WriteBatch::with_capacity_bytes(batch.approximate_bytes());
        for change in batch.changes() {
            let handle = self.handle(change.cf())?;
            match change {
                Change::Put { key, value, .. } => native.put_cf(handle, key, value),
                Change::Delete { key, .. } => native.delete_cf(handle, key),
                Change::DeleteRange { start, end, .. } => {
                    native.delete_range_cf(handle, start, end);
                }
            }
        }
        Ok(native)
    }

    pub(super) fn get(
        &self,
        cf: Cf,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<Bytes>, EngineError> {
        let found = self.db.get_pinned_cf_opt(self.handle(cf)?, key, options);
        let found = found.map_err(|error| self.read_error(error))?;
        Ok(found.map(|pinned| Bytes::copy_from_slice(&pinned)))
    }

    pub(super) fn scan(
        &self,
        cf: Cf,
        (start, end): (&[u8], Option<&[u8]>),
        direction: Direction,
        mut options: ReadOptions,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let handle = self.handle(cf)?;
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        options.set_iterate_lower_bound(start);
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(handle, options);
        walk(&mut iterator, direction, visit);
        // An iterator ends at its range or at an error; only the status tells.
        iterator.status().map_err(|error| self.read_error(error))
    }
}

fn walk(iterator: &mut DBRawIterator<'_>, direction: Direction, visit: Visitor<'_>) {
    match direction {
        Direction::Forward => iterator.seek_to_first(),
        Direction::Backward => iterator.seek_to_last(),
    }
    while let Some((key, value)) = iterator.item() {
        if let ControlFlow::Break(()) = visit(key, value) {
            return;
        }
        match direction {
            Direction::Forward => iterator.next(),
            Direction::Backward => iterator.prev(),
        }
    }
}

impl ReadView for RocksEngine {
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

    fn scan_once(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let range = (start, end);
        self.inner
            .scan(cf, range, Direction::Forward, options, visit)
    }
}

impl Engine for RocksEngine {
    type Snapshot = RocksSnapshot;

    fn kind(&self) -> EngineKind {
        KIND
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.inner.check_writable()?;
        let synced = durability == Durability::Synced;
        if !batch.is_empty() {
            let native = self.inner.native_batch(batch)?;
            let mut options = WriteOptions::default();
            options.disable_wal(!self.inner.wal);
            options.set_sync(synced && self.inner.wal);
            let _hold = synced.then(|| self.inner.hold());
            let written = self.inner.db.write_opt(native, &options);
            written.map_err(|error| self.inner.fail(error))?;
        }
        if synced && (batch.is_empty() || !self.inner.wal) {
            return self.make_durable();
        }
        Ok(())
    }

    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool, EngineError> {
        self.inner.check_writable()?;
        if batch.is_empty() {
            return Ok(true);
        }
        let native = self.inner.native_batch(batch)?;
        let mut options = WriteOptions::default();
        options.disable_wal(!self.inner.wal);
        // RocksDB refuses what it would slow down, and has the others wait: for a flush that an
        // ingested table wants, or in the group of one that syncs.
        options.set_no_slowdown(true);
        if self.inner.holds.load(Ordering::SeqCst) > 0 {
            return Ok(false);
        }
        match self.inner.db.write_opt(native, &options) {
            Ok(()) => Ok(true),
            // RocksDB looks before it writes anything.
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(false),
            Err(error) => Err(self.inner.fail(error)),
        }
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        if !self.inner.wal {
            return self.flush();
        }
        self.inner.check_writable()?;
        let synced = self.inner.db.flush_wal(true);
        synced.map_err(|error| self.inner.fail(error))
    }

    fn is_durable_by_flush(&self) -> bool {
        !self.inner.wal
    }

    /// What lies in tables, without a log; with one nothing tells which part of it was synced.
    fn get_durable(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let handle = self.inner.handle(cf)?;
        if self.inner.wal {
            return Ok(None);
        }
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let found = self.inner.db.get_cf_opt(handle, key, &options);
        let found = found.map_err(|error| self.inner.read_error(error))?;
        Ok(found.map(Bytes::from))
    }

    fn snapshot(&self) -> RocksSnapshot {
        RocksSnapshot::take(&self.inner)
    }

    fn publish_expiry_clocks(&self, clocks: Arc<ExpiryLookup>) {
        self.inner.clocks.publish(clocks);
    }
}

impl std::fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.inner.db.path().display();
        write!(f, "RocksEngine({path})")
    }
}
