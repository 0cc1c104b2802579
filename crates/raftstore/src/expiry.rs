//! Which raw values the kv engine may drop in the background: the region clocks of a
//! moment, as a look-up from engine key to clock.
//!
//! Collect   The clocks that the peers have published, which are those of applied entries. Of an
//!           engine that flushes by itself: those in its tables.
//! Sync      The driver makes the kv engine durable, unless they were read from tables: now none of
//!           them can fall back.
//! Publish   The engine is handed the look-up; it waits for snapshots that are older.
//!
//! Invariant: a key that no region of this store covers, or one that installs a snapshot,
//! has no clock, and stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use strata_storage::{Cf, Engine, Error, keys, read_durable_apply_state};

use crate::directory::{Directory, SYSTEM_REGION_ID};

/// The clocks of all regions of a store at one moment.
#[derive(Debug)]
pub struct RegionClocks {
    directory: Arc<Directory>,
    by_region: BTreeMap<u64, u64>,
}

impl RegionClocks {
    /// Takes the clocks that the peers have published.
    pub fn collect(directory: Arc<Directory>) -> Self {
        let by_region = directory
            .iter()
            .filter(|entry| entry.region.id != SYSTEM_REGION_ID && !entry.view.is_installing())
            .map(|entry| (entry.region.id, entry.view.numbers().clock_ms))
            .collect();
        RegionClocks {
            directory,
            by_region,
        }
    }

    /// As [`RegionClocks::collect`]; where the kv engine flushes by itself, of what it has flushed: a
    /// flush for their sake would make small tables, and what lies in memory is not compacted.
    ///
    /// # Errors
    /// Errors of the engine, `CorruptRecord`.
    pub fn collect_durable(directory: Arc<Directory>, kv: &impl Engine) -> Result<Self, Error> {
        let mut clocks = Self::collect(directory);
        if !kv.is_durable_by_flush() {
            return Ok(clocks);
        }
        let mut durable = BTreeMap::new();
        for (region_id, clock_ms) in clocks.by_region {
            if let Some(state) = read_durable_apply_state(kv, region_id)? {
                durable.insert(region_id, clock_ms.min(state.region_clock_ms));
            }
        }
        clocks.by_region = durable;
        Ok(clocks)
    }

    /// True if a clock has moved since `older`.
    pub fn differ_from(&self, older: &RegionClocks) -> bool {
        self.by_region != older.by_region
    }

    /// The clock of the region that covers an engine key of a raw column family; `None`
    /// keeps the key.
    pub fn clock_of(&self, cf: Cf, engine_key: &[u8]) -> Option<u64> {
        if !matches!(cf, Cf::Raw | Cf::Raw2) {
            return None;
        }
        let region = &self
            .directory
            .covering(keys::parse_data_key(engine_key)?)?
            .region;
        self.by_region.get(&region.id).copied()
    }
}
