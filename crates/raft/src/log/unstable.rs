//! The end of the log that the storage does not show yet.
//!
//! It lies over the storage: what it holds replaces what the storage has at the same
//! indices. A snapshot to be installed replaces all of the storage.
//!
//! Invariants
//! * The first entry follows `prev`, and entries have no gaps.
//! * With a snapshot, no entry lies at or before its index.

use strata_proto::eraftpb::{Entry, Snapshot};

use crate::types::{EntryId, Index, Term};

/// Capacity that the buffer may keep when it has run empty.
const KEPT_CAPACITY: usize = 64;

/// Entries, and perhaps a snapshot, that were not handed out to be written.
#[derive(Clone, Debug)]
pub(crate) struct Unstable {
    /// The entry before the first of `entries`; the last of the log if there are none.
    prev: EntryId,
    entries: Vec<Entry>,
    snapshot: Option<Snapshot>,
    /// Empty; memory for the next copy of the entries.
    spare: Vec<Entry>,
}

impl Unstable {
    /// Nothing lies behind `last`, the end of the stored log.
    pub fn new(last: EntryId) -> Self {
        Self {
            prev: last,
            entries: Vec::new(),
            snapshot: None,
            spare: Vec::new(),
        }
    }

    /// Index of the first unstable entry, or of the next one to come.
    #[inline]
    pub fn offset(&self) -> Index {
        self.prev.index + 1
    }

    /// The entries.
    #[inline]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The snapshot to be installed.
    #[inline]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Index and term of the snapshot to be installed.
    pub fn snapshot_id(&self) -> Option<EntryId> {
        self.snapshot.as_ref().map(snapshot_id)
    }

    /// Id of the last entry of the whole log.
    #[inline]
    pub fn last(&self) -> EntryId {
        self.entries.last().map_or(self.prev, EntryId::of)
    }

    /// Term at `index`, if it is known without the storage.
    #[inline]
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.prev.index {
            return Some(self.prev.term);
        }
        if index > self.prev.index {
            let at = (index - self.offset()) as usize;
            return self.entries.get(at).map(|entry| entry.term);
        }
        self.snapshot_id()
            .filter(|id| id.index == index)
            .map(|id| id.term)
    }

    /// Entries in `[low, high)`; the range lies within the unstable ones.
    #[inline]
    pub fn slice(&self, low: Index, high: Index) -> &[Entry] {
        let end = self.offset() + self.entries.len() as u64;
        assert!(
            self.offset() <= low && low <= high && high <= end,
            "unstable range [{low}, {high}) out of [{}, {end})",
            self.offset()
        );
        &self.entries[(low - self.offset()) as usize..(high - self.offset()) as usize]
    }

    /// Appends an entry behind the last one.
    #[inline]
    pub fn push(&mut self, entry: Entry) {
        let last = self.last().index;
        assert_eq!(
            entry.index,
            last + 1,
            "entry {} behind last index {last}",
            entry.index
        );
        self.entries.push(entry);
    }

    /// Appends entries that follow one another behind the last one.
    #[inline]
    pub fn extend(&mut self, mut entries: Vec<Entry>) {
        let (Some(first), last) = (entries.first(), self.last().index) else {
            return;
        };
        assert_eq!(
            first.index,
            last + 1,
            "entries from {} on behind last index {last}",
            first.index
        );
        if self.entries.is_empty() {
            let mut emptied = std::mem::replace(&mut self.entries, entries);
            self.take_back(&mut emptied);
        } else {
            self.entries.append(&mut entries);
        }
    }

    /// A copy of the entries, in the memory that was given back last.
    pub fn copy_entries(&mut self) -> Vec<Entry> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        let mut copy = std::mem::take(&mut self.spare);
        copy.extend_from_slice(&self.entries);
        copy
    }

    /// Keeps the memory of `used` for the next copy, unless there is some or it is large.
    #[inline]
    pub fn take_back(&mut self, used: &mut Vec<Entry>) {
        if self.spare.capacity() == 0 && used.capacity() <= KEPT_CAPACITY {
            used.clear();
            std::mem::swap(&mut self.spare, used);
        }
    }

    /// Removes every entry behind `last`, which may lie in the storage.
    pub fn truncate_behind(&mut self, last: EntryId) {
        if last.index <= self.prev.index {
            self.prev = last;
            self.entries.clear();
        } else {
            self.entries
                .truncate((last.index - self.prev.index) as usize);
        }
        self.give_back();
    }

    /// Replaces everything by a snapshot.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.prev = snapshot_id(&snapshot);
        self.entries.clear();
        self.give_back();
        self.snapshot = Some(snapshot);
    }

    /// The storage now shows the entries up to `index`, if it is as far.
    #[inline]
    pub fn stable_to(&mut self, index: Index) {
        if index <= self.prev.index {
            return;
        }
        let count = ((index - self.prev.index) as usize).min(self.entries.len());
        if let Some(last) = self.entries[..count].last() {
            self.prev = EntryId::of(last);
        }
        self.entries.drain(..count);
        self.give_back();
    }

    /// The storage now shows the snapshot at `index`.
    pub fn stable_snapshot(&mut self, index: Index) {
        if self.snapshot_id().is_some_and(|id| id.index == index) {
            self.snapshot = None;
        }
    }

    /// Returns memory that a burst has left behind.
    #[inline]
    fn give_back(&mut self) {
        if self.entries.capacity() > KEPT_CAPACITY
            && self.entries.len() < self.entries.capacity() / 4
        {
            self.entries.shrink_to(KEPT_CAPACITY);
        }
    }
}

/// Id of the last entry that `snapshot` stands for.
pub(crate) fn snapshot_id(snapshot: &Snapshot) -> EntryId {
    snapshot
        .metadata
        .as_ref()
        .map_or(EntryId::default(), |meta| EntryId {
            term: meta.term,
            index: meta.index,
        })
}

#[cfg(test)]
mod tests {
    use strata_proto::eraftpb::SnapshotMetadata;

    use super::*;

    fn id(term: Term, index: Index) -> EntryId {
        EntryId { term, index }
    }

    fn entry(term: Term, index: Index) -> Entry {
        Entry {
            term,
            index,
            ..Entry::default()
        }
    }

    fn from_5(terms: &[Term]) -> Unstable {
        let mut unstable = Unstable::new(id(1, 4));
        for (at, &term) in terms.iter().enumerate() {
            unstable.push(entry(term, 5 + at as u64));
        }
        unstable
    }

    #[test]
    fn knows_the_terms_of_its_part() {
        let unstable = from_5(&[1, 2]);
        assert_eq!(unstable.term(3), None);
        assert_eq!(unstable.term(4), Some(1));
        assert_eq!(unstable.term(6), Some(2));
        assert_eq!(unstable.term(7), None);
        assert_eq!(unstable.last(), id(2, 6));
    }

    #[test]
    fn truncates_within_and_before() {
        let mut unstable = from_5(&[1, 1, 1]);
        unstable.truncate_behind(id(1, 5));
        assert_eq!(unstable.last(), id(1, 5));
        unstable.truncate_behind(id(1, 2));
        assert_eq!((unstable.last(), unstable.offset()), (id(1, 2), 3));
        unstable.push(entry(3, 3));
        assert_eq!(unstable.last(), id(3, 3));
    }

    #[test]
    fn stable_entries_leave() {
        let mut unstable = from_5(&[1, 1, 2]);
        unstable.stable_to(3);
        assert_eq!(unstable.entries().len(), 3);
        unstable.stable_to(6);
        assert_eq!((unstable.prev, unstable.entries().len()), (id(1, 6), 1));
        unstable.stable_to(99);
        assert_eq!((unstable.prev, unstable.entries().len()), (id(2, 7), 0));
    }

    #[test]
    fn a_snapshot_replaces_everything() {
        let mut unstable = from_5(&[1, 1, 2]);
        unstable.restore(Snapshot {
            metadata: Some(SnapshotMetadata {
                index: 20,
                term: 4,
                ..SnapshotMetadata::default()
            }),
            ..Snapshot::default()
        });
        assert_eq!((unstable.last(), unstable.offset()), (id(4, 20), 21));
        unstable.push(entry(4, 21));
        unstable.stable_to(21);
        assert_eq!(unstable.term(20), Some(4));
        unstable.stable_snapshot(19);
        assert!(unstable.snapshot().is_some());
        unstable.stable_snapshot(20);
        assert!(unstable.snapshot().is_none());
        assert_eq!(unstable.term(20), None);
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut unstable = from_5(&[1; 5000]);
        unstable.stable_to(5 + 4999);
        assert!(unstable.entries.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn a_copy_made_in_used_memory_holds_the_entries_alone() {
        let mut unstable = from_5(&[1, 1]);
        let mut used = unstable.copy_entries();
        assert_eq!(used, unstable.entries());
        let memory = used.as_ptr();
        unstable.stable_to(6);
        assert!(
            unstable.copy_entries().is_empty(),
            "nothing is left to copy"
        );
        unstable.take_back(&mut used);
        unstable.push(entry(2, 7));
        let copy = unstable.copy_entries();
        assert_eq!((copy.as_ptr(), copy), (memory, vec![entry(2, 7)]));
        unstable.take_back(&mut Vec::with_capacity(KEPT_CAPACITY + 1));
        assert_eq!(unstable.spare.capacity(), 0, "too large to be kept");
    }

    #[test]
    fn entries_join_those_before_them() {
        let mut unstable = from_5(&[]);
        unstable.extend(vec![entry(1, 5), entry(1, 6)]);
        unstable.extend(vec![entry(2, 7)]);
        unstable.extend(Vec::new());
        let ids: Vec<EntryId> = unstable.entries().iter().map(EntryId::of).collect();
        assert_eq!(ids, [id(1, 5), id(1, 6), id(2, 7)]);
    }

    #[test]
    #[should_panic(expected = "entries from 7 on behind last index 5")]
    fn a_gap_before_several_is_a_broken_invariant() {
        from_5(&[1]).extend(vec![entry(1, 7), entry(1, 8)]);
    }

    #[test]
    #[should_panic(expected = "entry 9 behind last index 5")]
    fn a_gap_is_a_broken_invariant() {
        from_5(&[1]).push(entry(1, 9));
    }
}
