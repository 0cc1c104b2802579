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
        let clocks = Self::collect(directory);
        match kv.is_durable_by_flush() {
            true => clocks.into_flushed(kv),
            false => Ok(clocks),
        }
    }

    /// None of a region is beyond the one that its flushed apply state has.
    fn into_flushed(mut self, kv: &impl Engine) -> Result<Self, Error> {
        let mut flushed = BTreeMap::new();
        for (region_id, clock_ms) in self.by_region {
            if let Some(state) = read_durable_apply_state(kv, region_id)? {
                flushed.insert(region_id, clock_ms.min(state.region_clock_ms));
            }
        }
        self.by_region = flushed;
        Ok(self)
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

#[cfg(test)]
mod tests {
    use strata_proto::stratapb::RaftApplyState;
    use strata_storage::{Durability, EngineKind, MemEngine, WriteBatch, write_apply_state};

    use super::*;

    #[test]
    fn clocks_are_no_further_than_what_winto_flushed() {
        let kv = MemEngine::new(EngineKind::Kv);
        let write = |region_id, region_clock_ms, durability| {
            let state = RaftApplyState {
                region_clock_ms,
                ..RaftApplyState::default()
            };
            let mut batch = WriteBatch::new();
            write_apply_state(&mut batch, region_id, &state);
            kv.write(&batch, durability).unwrap();
        };
        // Flushed behind what was published, and ahead of it.
        write(2, 100, Durability::Unsynced);
        write(3, 300, Durability::Synced);
        write(2, 150, Durability::Unsynced);
        // Not flushed at all.
        write(4, 100, Durability::Unsynced);
        let clocks = RegionClocks {
            directory: Arc::default(),
            by_region: [(2, 150), (3, 250), (4, 100)].into(),
        };
        let flushed = clocks.into_flushed(&kv).unwrap();
        assert_eq!(flushed.by_region, [(2, 100), (3, 250)].into());
    }
}
