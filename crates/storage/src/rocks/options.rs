//! How the engines on disk are set up.
//!
//! Raft engine   A log in files of one size ([`raft_log`](crate::raft_log)).
//! kv engine     RocksDB, six column families, flushed together or in one log. What a crash takes is
//!               replayed from the raft logs, and the start check notices what cannot be; its log
//!               may be opened at the point of damage.
//!
//! Memory: one block cache, with indexes and filters charged to it; memtables bounded over all
//! column families. An idle node holds little of either.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options};

use super::filter::ExpiryFilterFactory;
use crate::engine::Cf;
use crate::expiry::ExpiryClocks;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bits of the bloom filters for each key; about 1 % of look-ups are in vain.
const BLOOM_BITS: f64 = 10.0;

/// How RocksDB finds the place of a new key in the memtables with records of regions: for each
/// first 11 bytes, which for most is a region and a kind of record (`keys`), it remembers where
/// the last one went. RocksDB uses it for single keys only, not for ranges that are deleted.
/// Entries of a log follow each other, and states replace each other, so most inserts of many
/// regions then begin where they end, and not at the top of the skip list.
const REGION_RECORD_HINTS: &str =
    "memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.11";

/// From what age on, in seconds, a table at the bottom is written anew when a snapshot of the
/// engine is released that hid from an earlier compaction what could go. RocksDB asks only whether
/// the table holds sequence numbers, as most do that were never compacted with others: so without
/// an age each end of a snapshot of the smallest region has all of them written anew.
const BOTTOMMOST_AGE: &str = "bottommost_file_compaction_delay=86400";

/// Settings that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Crash rule 7: without a log, the column families of the kv engine would be flushed
    /// each at its own time, and a crash would leave data and apply state of different
    /// moments.
    #[error("the kv engine's write-ahead log may be off only with atomic flush")]
    KvWalOffWithoutAtomicFlush,
}

/// Settings of a node's two engines.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Whether the kv engine writes a write-ahead log. Without one, as it is by default, its writes
    /// survive only a flush; what is lost is replayed from the raft logs.
    pub kv_wal: bool,
    /// Whether all column families of the kv engine are flushed at one moment, as they are by default.
    pub kv_atomic_flush: bool,
    /// Bytes of the block cache.
    pub block_cache_bytes: usize,
    /// Bytes of one memtable of the kv engine.
    pub kv_memtable_bytes: usize,
    /// Bytes of all memtables of the kv engine together.
    pub kv_memtables_bytes_max: usize,
    /// Bytes of one file of the raft engine's log; only a record that is larger makes a file
    /// larger.
    pub log_file_bytes: usize,
    /// Files that the kv engine keeps open.
    pub open_files_max: i32,
    /// Flushes and compactions at a time.
    pub background_jobs: i32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv_wal: false,
            kv_atomic_flush: true,
            block_cache_bytes: 64 * MIB,
            kv_memtable_bytes: 24 * MIB,
            kv_memtables_bytes_max: 128 * MIB,
            log_file_bytes: 8 * MIB,
            open_files_max: 1024,
            background_jobs: 2,
        }
    }
}

impl EngineOptions {
    /// Refuses settings that could lose data.
    ///
    /// # Errors
    /// If the kv engine would have neither a log nor atomic flush (crash rule 7).
    pub fn validate(&self) -> Result<(), OptionsError> {
        if !self.kv_wal && !self.kv_atomic_flush {
            return Err(OptionsError::KvWalOffWithoutAtomicFlush);
        }
        Ok(())
    }

    /// The block cache.
    pub(crate) fn new_cache(&self) -> Cache {
        Cache::new_lru_cache(self.block_cache_bytes)
    }

    pub(super) fn database(&self, create: bool) -> Options {
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(create);
        options.set_paranoid_checks(true);
        options.set_max_open_files(self.open_files_max);
        options.set_max_background_jobs(self.background_jobs);
        options.set_bytes_per_sync(MIB as u64);
        options.set_avoid_unnecessary_blocking_io(true);
        options.set_recycle_log_file_num(0);
        // RocksDB's own diary: small, and without statistics that nobody reads.
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(4 * MIB);
        options.set_log_level(LogLevel::Warn);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_max_manifest_file_size(32 * MIB);
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_atomic_flush(self.kv_atomic_flush);
        options.set_db_write_buffer_size(self.kv_memtables_bytes_max);
        options.set_max_total_wal_size(4 * self.kv_memtable_bytes as u64);
        options
    }

    pub(super) fn column_family(&self, cf: Cf, cache: &Cache, clocks: &ExpiryClocks) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(cache);
        table.set_block_size(16 * KIB);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_bloom_filter(BLOOM_BITS, false);
        // What the bindings have no call for.
        let strings: &[&str] = match cf {
            Cf::Raft => &[BOTTOMMOST_AGE, REGION_RECORD_HINTS],
            _ => &[BOTTOMMOST_AGE],
        };
        let mut options = Options::default()
            .get_options_from_string(strings.join(";"))
            .expect("RocksDB has these options: the strings are constants");
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_write_buffer_size(self.kv_memtable_bytes);
        options.set_max_write_buffer_number(3);
        if matches!(cf, Cf::Raw | Cf::Raw2) {
            options.set_compaction_filter_factory(ExpiryFilterFactory::new(cf, clocks.clone()));
        }
        options
    }
}
