//! The tail of a log in memory.
//!
//! Appends and reads of a healthy group touch only recent entries; they are served from
//! here. Entries that are not yet on disk are *only* here: the log writer reports later
//! that it has synced them, and until then they must not be evicted.
//!
//! Invariants
//! * `first` names the first entry's index, exactly if there are entries.
//! * The entries are contiguous, and the last one is the last of the log, unless the
//!   cache is empty.
//! * Beyond `bytes_max` the oldest entries go, but never one behind the persisted index.

use std::collections::VecDeque;

use strata_proto::eraftpb::Entry;
use strata_raft::entry_bytes;

pub(crate) struct EntryCache {
    entries: VecDeque<Entry>,
    /// Index of the first of `entries`, if there is one: asked for with every entry, it must not
    /// be a look into memory that is long out of the processor's caches.
    first: Option<u64>,
    /// Sum of `entry_bytes` over `entries`.
    bytes: u64,
    /// Beyond it the oldest persisted entries are evicted.
    bytes_max: u64,
}

impl EntryCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            first: None,
            bytes: 0,
            bytes_max,
        }
    }

    /// Index of the first cached entry; `None` if the cache is empty.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.first
    }

    /// Index behind the last cached entry.
    fn end(&self) -> Option<u64> {
        Some(self.first? + self.entries.len() as u64)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        self.get(index).map(|entry| entry.term)
    }

    /// Cached entries in `[low, high)`; `low` must be cached or the result is empty.
    pub(crate) fn range(&self, low: u64, high: u64) -> impl Iterator<Item = &Entry> {
        let from = match self.first_index() {
            Some(first) if low >= first => (low - first) as usize,
            _ => self.entries.len(),
        };
        let from = from.min(self.entries.len());
        self.entries
            .range(from..)
            .take_while(move |entry| entry.index < high)
    }

    /// Replaces everything from the first new entry on.
    ///
    /// # Panics
    /// If a hole would appear.
    pub(crate) fn append(&mut self, new: &[Entry]) {
        let Some(first_new) = new.first().map(|entry| entry.index) else {
            return;
        };
        while self.end().is_some_and(|end| end > first_new) {
            let entry = self.entries.pop_back().expect("entries end behind a first");
            self.bytes -= entry_bytes(&entry);
            if self.entries.is_empty() {
                self.first = None;
            }
        }
        let end = *self.first.get_or_insert(first_new) + self.entries.len() as u64;
        assert_eq!(end, first_new, "hole in the entry cache");
        for (entry, index) in new.iter().zip(end..) {
            assert_eq!(entry.index, index, "hole in what the entry cache takes");
            self.bytes += entry_bytes(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Drops everything: a snapshot takes the place of the log.
    pub(crate) fn clear(&mut self) {
        self.entries = VecDeque::new();
        self.first = None;
        self.bytes = 0;
    }

    /// Drops entries up to and with `index`: they were compacted.
    pub(crate) fn compact_to(&mut self, index: u64) {
        while self.first_index().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    /// Evicts the oldest entries while there are too many bytes, up to `persisted`.
    pub(crate) fn evict_persisted(&mut self, persisted: u64) {
        while self.bytes > self.bytes_max
            && self.first_index().is_some_and(|first| first <= persisted)
        {
            self.pop_front();
        }
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        let first = self.first_index()?;
        self.entries
            .get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry_bytes(&entry);
            self.first = (!self.entries.is_empty()).then_some(entry.index + 1);
        }
        // A cache that was large once must not keep the room for ever.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range
            .map(|index| Entry {
                index,
                term,
                data: Bytes::from(vec![0; 100]),
                ..Entry::default()
            })
            .collect()
    }

    fn ids(cache: &EntryCache, low: u64, high: u64) -> Vec<(u64, u64)> {
        cache.range(low, high).map(|e| (e.index, e.term)).collect()
    }

    #[test]
    fn entry_cache_replaces_the_conflicting_tail() {
        let mut cache = EntryCache::new(u64::MAX);
        cache.append(&entries(6..=9, 5));
        cache.append(&entries(8..=8, 6));
        assert_eq!(ids(&cache, 6, 20), [(6, 5), (7, 5), (8, 6)]);
        assert_eq!(ids(&cache, 7, 8), [(7, 5)]);
        assert!(ids(&cache, 5, 8).is_empty(), "begins before the cache");
        assert!(ids(&cache, 20, 30).is_empty());
        assert_eq!(cache.term(8), Some(6));
        assert_eq!(cache.term(9), None);
        assert_eq!(cache.term(5), None);
        cache.append(&entries(3..=4, 7));
        assert_eq!(ids(&cache, 3, 20), [(3, 7), (4, 7)]);
    }

    #[test]
    fn entry_cache_is_bounded_but_keeps_what_is_not_persisted() {
        let one = entry_bytes(&entries(1000..=1000, 5)[0]);
        let mut cache = EntryCache::new(10 * one);
        cache.append(&entries(1001..=1100, 5));
        cache.evict_persisted(1050);
        assert_eq!(cache.first_index(), Some(1051), "the rest is only here");
        cache.evict_persisted(1100);
        assert_eq!(cache.first_index(), Some(1091));
        assert_eq!(cache.bytes(), 10 * one);
    }

    #[test]
    fn entry_cache_frees_compacted_entries() {
        let mut cache = EntryCache::new(u64::MAX);
        let entries = entries(6..=9, 5);
        cache.append(&entries);
        assert!(!entries[0].data.is_unique());
        cache.compact_to(7);
        assert!(entries[0].data.is_unique(), "no reference keeps it");
        assert!(!entries[3].data.is_unique());
        cache.compact_to(100);
        assert_eq!((cache.first_index(), cache.bytes()), (None, 0));
    }
}
