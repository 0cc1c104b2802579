//! Writes that were handed to the driver and are not reported as synced.
//!
//! One record for each Ready that has to be synced, in the order of their numbers. When the
//! log is cut back, records forget what lies behind the cut: it is on its way to the disk,
//! but a later write will remove it there, so it must never count as persisted.

use std::collections::VecDeque;

use crate::types::Index;

/// What one Ready held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    number: u64,
    /// Index of the snapshot in it.
    pub snapshot: Option<Index>,
    /// Last of its entries that still belongs to the log.
    pub last: Option<Index>,
    /// Whether term or vote changed.
    promises: bool,
}

/// Writes under way, oldest first.
#[derive(Debug, Default)]
pub(super) struct Writes {
    records: VecDeque<Record>,
}

impl Writes {
    #[inline]
    pub fn add(
        &mut self,
        number: u64,
        snapshot: Option<Index>,
        last: Option<Index>,
        promises: bool,
    ) {
        if let Some(before) = self.records.back() {
            assert!(
                number > before.number,
                "ready {number} after ready {}",
                before.number
            );
        }
        self.records.push_back(Record {
            number,
            snapshot,
            last,
            promises,
        });
    }

    #[inline]
    pub fn get(&self, number: u64) -> Option<Record> {
        // The one asked for is the newest.
        self.records
            .iter()
            .rev()
            .find(|record| record.number == number)
            .copied()
    }

    /// The log ends at `index` now; what lies behind does not count any more.
    pub fn cut_behind(&mut self, index: Index) {
        for record in &mut self.records {
            record.last = record.last.map(|last| last.min(index));
        }
    }

    /// The log is replaced by a snapshot; nothing written so far counts any more.
    pub fn forget_entries(&mut self) {
        for record in &mut self.records {
            record.last = None;
            record.snapshot = None;
        }
    }

    /// Removes the records up to `number`; returns the highest index that they persisted.
    #[inline]
    pub fn synced(&mut self, number: u64) -> Option<Index> {
        let mut reached = None;
        while let Some(record) = self.records.front() {
            if record.number > number {
                break;
            }
            reached = reached.max(record.snapshot).max(record.last);
            self.records.pop_front();
        }
        reached
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    #[inline]
    pub fn has_promise(&self) -> bool {
        self.records.iter().any(|record| record.promises)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_synced_in_order() {
        let mut writes = Writes::default();
        writes.add(1, None, Some(3), true);
        writes.add(2, None, None, true);
        writes.add(4, None, Some(6), false);
        assert_eq!(writes.synced(0), None);
        assert_eq!(writes.synced(3), Some(3));
        assert!(!writes.has_promise());
        assert_eq!(writes.synced(9), Some(6));
        assert!(writes.is_empty());
    }

    #[test]
    fn a_cut_reaches_writes_under_way() {
        let mut writes = Writes::default();
        writes.add(1, None, Some(10), false);
        writes.cut_behind(7);
        writes.add(2, None, Some(10), false);
        assert_eq!(writes.synced(1), Some(7));
        assert_eq!(writes.synced(2), Some(10));
    }

    #[test]
    fn a_snapshot_makes_earlier_writes_void() {
        let mut writes = Writes::default();
        writes.add(1, None, Some(10), false);
        writes.forget_entries();
        writes.add(2, Some(20), None, false);
        assert_eq!(writes.synced(1), None);
        assert_eq!(writes.synced(2), Some(20));
    }
}
