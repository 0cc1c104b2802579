//! What the log holds, in memory: where each entry lies, and all other records whole.
//!
//! Entries of a region follow each other, are read in ranges, and go from the front; so each
//! region has a queue of places in the order of indexes. What else there is (a hard state for
//! each region, the store's identity) is small, and its values stay here.
//!
//! The index counts for each file how many of its values are still wanted.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use smallvec::SmallVec;

use super::form::{RECORD_HEADER_BYTES, StoredChange, StoredChanges, Unparsed};
use crate::keys;

/// Bytes that a value is counted with beside itself: its key, and its share of a record.
const VALUE_OVERHEAD_BYTES: u64 = 48;

/// Places for which the queue of a region has room, for each that it holds.
const ROOM_MAX: usize = 4;
/// Places that a queue counts as holding, however few they are.
const ROOM_MIN: usize = 16;

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the file.
    pub file: u32,
    /// Bytes of the value.
    pub length: u32,
    /// Offset in the file.
    pub offset: u64,
    /// CRC-32 of the value.
    pub checksum: u32,
}

impl Place {
    /// Where a value lies that begins at `begin` in the payload of the record at `at`.
    pub fn of(file: u32, at: u64, begin: usize, value: &[u8]) -> Self {
        Self {
            file,
            // A record has less than 4 GiB.
            length: value.len() as u32,
            offset: at + (RECORD_HEADER_BYTES + begin) as u64,
            checksum: crc32fast::hash(value),
        }
    }
}

/// A value, or where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// To be read from a file.
    Entry(Place),
    /// Kept in memory.
    Record(Bytes),
}

/// A key in the order of the log's keys, and what is held under it.
pub(super) type Item = (Key, Held);

/// A key; those of entries are made when they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Region and index.
    Entry(u64, u64),
    /// Any other.
    Record(Bytes),
}

impl Key {
    /// Calls `visit` with the key's bytes.
    pub fn with<T>(&self, visit: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Entry(region_id, index) => visit(&keys::raft_log(*region_id, *index)),
            Self::Record(key) => visit(key),
        }
    }
}

/// The values of one file that are still wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Number of values.
    pub values: u64,
    /// Their bytes, about.
    pub bytes: u64,
}

/// The key of a record, in place for all that the store writes: a search follows no pointers.
type RecordKey = SmallVec<[u8; 24]>;

/// Where the entries of a region lie.
#[derive(Clone, Debug, Default)]
struct Entries {
    /// Index of the last of `places`, so that most appends need not look at it.
    last: Option<u64>,
    /// Ascending by index.
    places: VecDeque<(u64, Place)>,
}

impl Entries {
    /// Puts an entry's place in; returns the one that it had before.
    fn put(&mut self, index: u64, place: Place) -> Option<Place> {
        if self.last.is_none_or(|last| last < index) {
            self.places.push_back((index, place));
            self.last = Some(index);
            return None;
        }
        match self.places.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(found) => Some(std::mem::replace(&mut self.places[found].1, place)),
            Err(missing) => {
                self.places.insert(missing, (index, place));
                None
            }
        }
    }

    /// Positions of the entries with indexes in `[low, high)`; without `high` to the end.
    fn positions(&self, low: u64, high: Option<u64>) -> std::ops::Range<usize> {
        let from = self.places.partition_point(|(index, _)| *index < low);
        let to = match high {
            None => self.places.len(),
            Some(high) => self.places.partition_point(|(index, _)| *index < high),
        };
        from..to.max(from)
    }

    /// Removes the entries with indexes in `[low, high)`; returns where they lay.
    fn remove(&mut self, low: u64, high: Option<u64>) -> Vec<Place> {
        let gone = self.places.drain(self.positions(low, high));
        let gone = gone.map(|(_, place)| place).collect();
        self.last = self.places.back().map(|(index, _)| *index);
        if self.places.capacity() > ROOM_MAX * self.places.len().max(ROOM_MIN) {
            // A log that was long once does not keep its room.
            self.places.shrink_to(2 * self.places.len());
        }
        gone
    }

    fn get(&self, index: u64) -> Option<Place> {
        // Most logs have no holes.
        let guess = index.checked_sub(self.places.front()?.0)?;
        match self.places.get(usize::try_from(guess).ok()?) {
            Some((at, place)) if *at == index => Some(*place),
            _ => {
                let found = self
                    .places
                    .binary_search_by_key(&index, |(at, _)| *at)
                    .ok()?;
                Some(self.places[found].1)
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    regions: BTreeMap<u64, Entries>,
    records: BTreeMap<RecordKey, (Place, Bytes)>,
    /// By file; files of which nothing is wanted are absent.
    wanted: BTreeMap<u32, Wanted>,
    /// Sum over `wanted`.
    wanted_bytes: u64,
}

impl Index {
    /// Bytes of all values that are wanted, about.
    pub fn wanted_bytes(&self) -> u64 {
        self.wanted_bytes
    }

    /// What of a file is wanted.
    pub fn wanted_of(&self, file: u32) -> Wanted {
        self.wanted.get(&file).copied().unwrap_or_default()
    }

    /// Takes in the changes of the record at `at` in a file.
    ///
    /// # Errors
    /// The payload does not parse; the changes in front of that are taken.
    pub fn take_record(&mut self, file: u32, at: u64, payload: &[u8]) -> Result<(), Unparsed> {
        for change in StoredChanges::of(payload) {
            match change? {
                StoredChange::Put(key, value, begin) => {
                    self.put(key, value, Place::of(file, at, begin, value));
                }
                StoredChange::Delete(key) => self.delete(key),
                StoredChange::DeleteRange(start, end) => self.delete_range(start, end),
            }
        }
        Ok(())
    }

    /// Puts a value that lies at `place`.
    pub fn put(&mut self, key: &[u8], value: &[u8], place: Place) {
        let before = match keys::parse_raft_log(key) {
            Some((region_id, index)) => {
                let entries = self.regions.entry(region_id).or_default();
                entries.put(index, place)
            }
            None => {
                // A copy: the value would keep the whole batch in memory.
                let held = (place, Bytes::copy_from_slice(value));
                match self.records.get_mut(key) {
                    Some(found) => Some(std::mem::replace(found, held).0),
                    None => {
                        self.records.insert(RecordKey::from_slice(key), held);
                        None
                    }
                }
            }
        };
        let bytes = u64::from(place.length) + VALUE_OVERHEAD_BYTES;
        let wanted = self.wanted.entry(place.file).or_default();
        wanted.values += 1;
        wanted.bytes += bytes;
        self.wanted_bytes += bytes;
        if let Some(before) = before {
            self.unwant(before);
        }
    }

    /// Removes a key; nothing happens if it is absent.
    pub fn delete(&mut self, key: &[u8]) {
        let gone = match keys::parse_raft_log(key) {
            Some((region_id, index)) => self.delete_entries(region_id, index, index.checked_add(1)),
            None => self
                .records
                .remove(key)
                .into_iter()
                .map(|(place, _)| place)
                .collect(),
        };
        gone.into_iter().for_each(|place| self.unwant(place));
    }

    /// Removes all keys in `[start, end)`.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let found = self.records.range::<[u8], _>(bounds);
        let records: Vec<RecordKey> = found.map(|(key, _)| key.clone()).collect();
        for key in records {
            if let Some((place, _)) = self.records.remove(&key) {
                self.unwant(place);
            }
        }
        for (region_id, low, high) in self.parts(start, Some(end)) {
            let gone = self.delete_entries(region_id, low, high);
            gone.into_iter().for_each(|place| self.unwant(place));
        }
    }

    fn delete_entries(&mut self, region_id: u64, low: u64, high: Option<u64>) -> Vec<Place> {
        let Some(entries) = self.regions.get_mut(&region_id) else {
            return Vec::new();
        };
        let gone = entries.remove(low, high);
        if entries.places.is_empty() {
            self.regions.remove(&region_id);
        }
        gone
    }

    fn unwant(&mut self, place: Place) {
        let bytes = u64::from(place.length) + VALUE_OVERHEAD_BYTES;
        let wanted = self.wanted.get_mut(&place.file);
        let wanted = wanted.expect("a value is counted for its file");
        wanted.values -= 1;
        wanted.bytes -= bytes;
        if wanted.values == 0 {
            self.wanted.remove(&place.file);
        }
        self.wanted_bytes -= bytes;
    }

    /// Where the value under a key lies, of records and entries alike.
    pub fn place_of(&self, key: &[u8]) -> Option<Place> {
        match keys::parse_raft_log(key) {
            Some((region_id, index)) => self.entry(region_id, index),
            None => self.records.get(key).map(|(place, _)| *place),
        }
    }

    /// What is held under a key.
    pub fn get(&self, key: &[u8]) -> Option<Held> {
        match keys::parse_raft_log(key) {
            Some((region_id, index)) => self.entry(region_id, index).map(Held::Entry),
            None => self
                .records
                .get(key)
                .map(|(_, value)| Held::Record(value.clone())),
        }
    }

    fn entry(&self, region_id: u64, index: u64) -> Option<Place> {
        self.regions.get(&region_id)?.get(index)
    }

    /// Everything in `[start, end)`, or from `start` on, in the order of keys.
    pub fn range(&self, start: &[u8], end: Option<&[u8]>) -> Vec<Item> {
        if end.is_some_and(|end| end <= start) {
            return Vec::new();
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut records = self
            .records
            .range::<[u8], _>((Bound::Included(start), upper))
            .peekable();
        let item = |(key, (_, value)): (&RecordKey, &(Place, Bytes))| {
            let key = Key::Record(Bytes::copy_from_slice(key));
            (key, Held::Record(value.clone()))
        };
        let mut found = Vec::new();
        for (region_id, low, high) in self.parts(start, end) {
            let prefix = keys::raft_log_range(region_id).0;
            while let Some(record) = records.next_if(|(key, _)| ***key < *prefix) {
                found.push(item(record));
            }
            let entries = &self.regions[&region_id];
            for (index, place) in entries.places.range(entries.positions(low, high)) {
                // No other key lies between two entries, unless it is longer than theirs.
                while let Some(record) =
                    records.next_if(|(key, _)| ***key < *keys::raft_log(region_id, *index))
                {
                    found.push(item(record));
                }
                found.push((Key::Entry(region_id, *index), Held::Entry(*place)));
            }
        }
        found.extend(records.map(item));
        found
    }

    /// For each region with entries in `[start, end)`: their indexes `[low, high)`, where `None`
    /// is behind all.
    fn parts(&self, start: &[u8], end: Option<&[u8]>) -> Vec<(u64, u64, Option<u64>)> {
        let first = keys::region_of_raft_key(start).unwrap_or(0);
        let last = end.and_then(keys::region_of_raft_key).unwrap_or(u64::MAX);
        let regions = match first <= last {
            true => self.regions.range(first..=last),
            // The range ends before the keys of regions begin, or begins behind them.
            false => return Vec::new(),
        };
        let parts = regions.filter_map(|(region_id, _)| {
            let prefix = keys::raft_log_range(*region_id).0;
            // `None`: behind all entries.
            let low = first_index_from(&prefix, start)?;
            let high = end.and_then(|end| first_index_from(&prefix, end));
            (high != Some(0)).then_some((*region_id, low, high))
        });
        parts.collect()
    }
}

/// The first index whose entry's key is not below `bound`; `None` if there is none.
/// `prefix` is what the keys of the region's entries begin with.
fn first_index_from(prefix: &[u8], bound: &[u8]) -> Option<u64> {
    let Some(rest) = bound.strip_prefix(prefix) else {
        return (bound <= prefix).then_some(0);
    };
    let mut index = [0; 8];
    let common = rest.len().min(8);
    index[..common].copy_from_slice(&rest[..common]);
    let index = u64::from_be_bytes(index);
    // A longer bound lies behind the entry whose key it begins with.
    if rest.len() > 8 {
        index.checked_add(1)
    } else {
        Some(index)
    }
}
