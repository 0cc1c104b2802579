//! One column family in memory, with as much history as open snapshots need.
//!
//! Each key holds its newest value and, behind it, older ones that an open snapshot can
//! still see. A list of what was superseded, in the order of versions, tells what may be
//! forgotten when the oldest snapshot is gone, so that nothing is searched for.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::engine::{Direction, Visitor};

/// Number of batches written before; a snapshot sees all versions up to its own.
pub(super) type Version = u64;

/// The values of one key.
struct Cell {
    /// `None`: deleted, kept only while a snapshot sees an older value.
    newest: Option<Bytes>,
    since: Version,
    /// Older values with the versions that wrote them, ascending.
    older: Vec<(Version, Option<Bytes>)>,
}

impl Cell {
    fn at(&self, version: Version) -> Option<&Bytes> {
        if self.since <= version {
            return self.newest.as_ref();
        }
        let found = self.older.iter().rev().find(|(since, _)| *since <= version);
        found.and_then(|(_, value)| value.as_ref())
    }
}

/// An ordered map with versions.
#[derive(Default)]
pub(super) struct Family {
    cells: BTreeMap<Bytes, Cell>,
    /// Keys with history: the version that superseded a value, ascending.
    superseded: VecDeque<(Version, Bytes)>,
}

impl Family {
    pub(super) fn from_plain(plain: &BTreeMap<Bytes, Bytes>) -> Self {
        let cell = |value: &Bytes| Cell {
            newest: Some(value.clone()),
            since: 0,
            older: Vec::new(),
        };
        Self {
            cells: plain
                .iter()
                .map(|(key, value)| (key.clone(), cell(value)))
                .collect(),
            superseded: VecDeque::new(),
        }
    }

    pub(super) fn get(&self, key: &[u8], at: Version) -> Option<Bytes> {
        self.cells.get(key)?.at(at).cloned()
    }

    pub(super) fn scan(
        &self,
        (start, end): (&[u8], Option<&[u8]>),
        direction: Direction,
        at: Version,
        visit: Visitor<'_>,
    ) -> ControlFlow<()> {
        if end.is_some_and(|end| end <= start) {
            return ControlFlow::Continue(());
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.cells.range::<[u8], _>((Bound::Included(start), upper));
        let mut show = |(key, cell): (&Bytes, &Cell)| match cell.at(at) {
            Some(value) => visit(key, value),
            None => ControlFlow::Continue(()),
        };
        match direction {
            Direction::Forward => range.into_iter().try_for_each(&mut show),
            Direction::Backward => range.into_iter().rev().try_for_each(&mut show),
        }
    }

    /// Writes or deletes (`None`) a key at `version`. `newest_snapshot` is the newest
    /// open one; what it does not see is forgotten at once.
    pub(super) fn set(
        &mut self,
        key: &Bytes,
        value: Option<Bytes>,
        version: Version,
        newest_snapshot: Option<Version>,
    ) {
        let Some(cell) = self.cells.get_mut(key) else {
            if value.is_some() {
                let cell = Cell {
                    newest: value,
                    since: version,
                    older: Vec::new(),
                };
                self.cells.insert(key.clone(), cell);
            }
            return;
        };
        if newest_snapshot.is_some_and(|snapshot| cell.since <= snapshot) {
            let old = std::mem::replace(&mut cell.newest, value);
            cell.older.push((cell.since, old));
            self.superseded.push_back((version, key.clone()));
        } else {
            cell.newest = value;
        }
        cell.since = version;
        if cell.newest.is_none() && cell.older.is_empty() {
            self.cells.remove(key);
        }
    }

    pub(super) fn delete_range(
        &mut self,
        start: &Bytes,
        end: &Bytes,
        version: Version,
        newest_snapshot: Option<Version>,
    ) {
        let range = self.cells.range(start.clone()..end.clone());
        let keys: Vec<_> = range.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.set(&key, None, version, newest_snapshot);
        }
    }

    /// Forgets what no snapshot at `oldest` or later can see.
    pub(super) fn forget_before(&mut self, oldest: Version) {
        while let Some((version, _)) = self.superseded.front()
            && *version <= oldest
        {
            let (version, key) = self.superseded.pop_front().expect("front was there");
            let Some(cell) = self.cells.get_mut(&key) else {
                continue;
            };
            // Values written before `version` ended at `version` or earlier.
            cell.older.retain(|(since, _)| *since >= version);
            if cell.newest.is_none() && cell.older.is_empty() && cell.since <= oldest {
                self.cells.remove(&key);
            }
        }
    }

    /// Keys held, with those that only snapshots see.
    #[cfg(test)]
    pub(super) fn cells_len(&self) -> usize {
        self.cells.len()
    }
}
