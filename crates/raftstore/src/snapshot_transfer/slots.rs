//! How many snapshots are received at one time, and which stream gives way.
//!
//! A region's snapshot has one stream at a time. When its sender's connection broke, the
//! receiver may learn of the next stream before it learns that the last one is dead; and
//! a leader that lost its region may still be sending. So a later offer from the same
//! store, or one of a higher term, ends the stream before it, and is itself refused as
//! busy until that one has let the parts go: the sender comes back after a short pause.

use std::collections::BTreeMap;

use strata_storage::snapshot::SnapshotError;

/// Streams that receive a snapshot now.
#[derive(Debug)]
pub struct ReceiveSlots {
    slots_max: usize,
    /// By region.
    taken: BTreeMap<u64, Slot>,
    next: u64,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    from_store_id: u64,
    term: u64,
}

/// An offer that got no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRefused {
    /// `Busy` or `TooMany`.
    pub error: SnapshotError,
    /// Number of the slot whose stream is to be ended now.
    pub end: Option<u64>,
}

impl ReceiveSlots {
    /// `slots_max` snapshots may be received at one time.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        ReceiveSlots {
            slots_max,
            taken: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a slot for a region's snapshot, sent by a store in a term; returns the
    /// slot's number.
    ///
    /// # Errors
    /// See [`SlotRefused`].
    pub fn enter(
        &mut self,
        region_id: u64,
        from_store_id: u64,
        term: u64,
    ) -> Result<u64, SlotRefused> {
        if let Some(slot) = self.taken.get(&region_id) {
            let gives_way = slot.from_store_id == from_store_id || slot.term < term;
            return Err(SlotRefused {
                error: SnapshotError::Busy { region_id },
                end: gives_way.then_some(slot.number),
            });
        }
        if self.taken.len() >= self.slots_max {
            return Err(SlotRefused {
                error: SnapshotError::TooMany {
                    slots: self.slots_max,
                },
                end: None,
            });
        }
        let number = self.next;
        self.next += 1;
        self.taken.insert(
            region_id,
            Slot {
                number,
                from_store_id,
                term,
            },
        );
        Ok(number)
    }

    /// Gives a slot back; nothing happens if it was given back before.
    pub fn leave(&mut self, number: u64) {
        self.taken.retain(|_, slot| slot.number != number);
    }

    /// Snapshots that are received now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_at_once_are_refused_as_busy() {
        let mut slots = ReceiveSlots::new(2);
        let first = slots.enter(7, 1, 6).unwrap();
        slots.enter(8, 1, 6).unwrap();
        let refused = slots.enter(9, 1, 6).unwrap_err();
        assert_eq!(refused.error, SnapshotError::TooMany { slots: 2 });
        assert_eq!(refused.end, None);
        slots.leave(first);
        slots.leave(first);
        assert_eq!(slots.in_use(), 1);
        slots.enter(9, 1, 6).unwrap();
    }

    #[test]
    fn an_old_stream_gives_way_to_its_own_store_and_to_a_higher_term() {
        let mut slots = ReceiveSlots::new(2);
        let number = slots.enter(7, 1, 6).unwrap();
        for (store, term, end) in [
            (1, 6, Some(number)),
            (2, 7, Some(number)),
            (2, 6, None),
            (2, 5, None),
        ] {
            let refused = slots.enter(7, store, term).unwrap_err();
            assert_eq!(refused.error, SnapshotError::Busy { region_id: 7 });
            assert_eq!(refused.end, end, "store {store}, term {term}");
        }
        slots.leave(number);
        assert_ne!(slots.enter(7, 2, 7).unwrap(), number);
    }
}
