//! What was sent and received of each region since the process started, and what is under
//! way now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Numbers;

/// Regions that are remembered; beyond it one with nothing under way is forgotten.
const REGIONS_MAX: usize = 65_536;

/// Counters of all regions.
#[derive(Default)]
pub(crate) struct SnapshotCounts {
    regions: Mutex<BTreeMap<u64, Region>>,
    numbers: Numbers,
}

#[derive(Default)]
struct Region {
    sent: u64,
    received: u64,
    chunks_sent: u64,
    under_way: BTreeMap<u64, Arc<Transfer>>,
}

struct Transfer {
    outgoing: bool,
    store_id: u64,
    held_bytes: AtomicU64,
    total_bytes: u64,
}

/// Counters of one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegionSnapshots {
    /// Snapshots that another store has whole.
    pub(crate) sent: u64,
    /// Snapshots that are whole here.
    pub(crate) received: u64,
    /// Chunks sent, those of broken streams among them.
    pub(crate) chunks_sent: u64,
    /// What is under way, in the order of its beginning.
    pub(crate) under_way: Vec<SnapshotTransfer>,
}

/// A snapshot under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotTransfer {
    /// True if it is sent from here.
    pub(crate) outgoing: bool,
    /// The store at the other end.
    pub(crate) store_id: u64,
    /// Bytes that the receiver holds.
    pub(crate) held_bytes: u64,
    /// Bytes of all files.
    pub(crate) total_bytes: u64,
}

impl SnapshotCounts {
    /// Notes a snapshot that is under way until the answer is dropped.
    pub(crate) fn begin(
        self: &Arc<Self>,
        region_id: u64,
        outgoing: bool,
        store_id: u64,
        total_bytes: u64,
    ) -> UnderWay {
        let number = self.numbers.next();
        let transfer = Arc::new(Transfer {
            outgoing,
            store_id,
            held_bytes: AtomicU64::new(0),
            total_bytes,
        });
        self.change(region_id, |region| {
            region.under_way.insert(number, transfer.clone());
        });
        UnderWay {
            counts: self.clone(),
            region_id,
            number,
            transfer,
        }
    }

    /// Counters of a region; zeros where nothing was sent or received.
    pub(crate) fn of_region(&self, region_id: u64) -> RegionSnapshots {
        let regions = self.regions.lock();
        let Some(region) = regions.get(&region_id) else {
            return RegionSnapshots::default();
        };
        let show = |transfer: &Arc<Transfer>| SnapshotTransfer {
            outgoing: transfer.outgoing,
            store_id: transfer.store_id,
            held_bytes: transfer.held_bytes.load(Ordering::Relaxed),
            total_bytes: transfer.total_bytes,
        };
        RegionSnapshots {
            sent: region.sent,
            received: region.received,
            chunks_sent: region.chunks_sent,
            under_way: region.under_way.values().map(show).collect(),
        }
    }

    fn change(&self, region_id: u64, change: impl FnOnce(&mut Region)) {
        let mut regions = self.regions.lock();
        if regions.len() >= REGIONS_MAX && !regions.contains_key(&region_id) {
            let idle = |(_, region): &(&u64, &Region)| region.under_way.is_empty();
            let idle = regions.iter().find(idle).map(|(id, _)| *id);
            idle.map(|id| regions.remove(&id));
        }
        change(regions.entry(region_id).or_default());
    }
}

/// A snapshot that is under way.
pub(crate) struct UnderWay {
    counts: Arc<SnapshotCounts>,
    region_id: u64,
    number: u64,
    transfer: Arc<Transfer>,
}

impl UnderWay {
    /// The receiver holds so many bytes.
    pub(crate) fn set_held(&self, bytes: u64) {
        self.transfer.held_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A chunk leaves.
    pub(crate) fn on_chunk_sent(&self) {
        let count = |region: &mut Region| region.chunks_sent += 1;
        self.counts.change(self.region_id, count);
    }

    /// It is whole at its receiver.
    pub(crate) fn on_whole(&self) {
        let outgoing = self.transfer.outgoing;
        self.counts.change(self.region_id, |region| {
            if outgoing {
                region.sent += 1;
            } else {
                region.received += 1;
            }
        });
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.counts.change(self.region_id, |region| {
            region.under_way.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stay_and_what_is_under_way_goes() {
        let counts = Arc::new(SnapshotCounts::default());
        assert_eq!(counts.of_region(7), RegionSnapshots::default());
        let out = counts.begin(7, true, 2, 100);
        out.on_chunk_sent();
        out.on_chunk_sent();
        out.set_held(60);
        let into = counts.begin(7, false, 3, 50);
        let found = counts.of_region(7);
        assert_eq!((found.sent, found.received, found.chunks_sent), (0, 0, 2));
        assert_eq!(
            found.under_way,
            [(true, 2, 60, 100), (false, 3, 0, 50)].map(
                |(outgoing, store_id, held_bytes, total_bytes)| SnapshotTransfer {
                    outgoing,
                    store_id,
                    held_bytes,
                    total_bytes
                }
            )
        );
        out.on_whole();
        into.on_whole();
        drop((out, into));
        let found = counts.of_region(7);
        assert_eq!((found.sent, found.received, found.chunks_sent), (1, 1, 2));
        assert!(found.under_way.is_empty());
    }

    #[test]
    fn regions_are_forgotten_beyond_the_limit() {
        let counts = Arc::new(SnapshotCounts::default());
        let busy = counts.begin(1, true, 2, 100);
        for region_id in 2..=REGIONS_MAX as u64 + 5 {
            counts.begin(region_id, true, 2, 100).on_whole();
        }
        assert!(counts.regions.lock().len() <= REGIONS_MAX);
        assert_eq!(counts.of_region(1).under_way.len(), 1, "it is under way");
        drop(busy);
    }
}
