//! A kv batch that can be read while it is built.
//!
//! Each command of a batch sees what the commands before it wrote (the RocksDB binding has
//! no indexed batch). Reads look at the pending changes first and at the engine behind
//! them. Blind writes, which are most, never pay for that: the index over the changes is
//! extended only when something reads.
//!
//! A command that reads may write much more than the log says of it: an append of a byte
//! writes the whole value. So a large value that a later change of the same key replaces is
//! let go, and many appends to one key leave one value in the batch.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use strata_storage::{Cf, Change, Direction, EngineError, ReadView, Visitor, WriteBatch, keys};

use crate::system::{SystemView, SystemViewError, SystemWrites, system_bounds};

/// Values from this size on are let go when they are replaced, bytes; a smaller one is not
/// worth the removal that stands in its place.
const SUPERSEDED_BYTES_MIN: usize = 4 << 10;

/// The newest pending change of one key: its place in the batch and the value, `None` for
/// a removal.
type PointChange = (usize, Option<Bytes>);

struct RangeChange {
    place: usize,
    cf: Cf,
    start: Bytes,
    end: Bytes,
}

/// Changes that are not in the engine yet, with an index over them.
#[derive(Default)]
pub(crate) struct Overlay {
    batch: WriteBatch,
    /// Changes up to here are in the index.
    indexed: usize,
    points: BTreeMap<(Cf, Bytes), PointChange>,
    ranges: Vec<RangeChange>,
}

impl Overlay {
    /// The batch, to add changes behind the present ones.
    pub(crate) fn batch_mut(&mut self) -> &mut WriteBatch {
        &mut self.batch
    }

    /// Keys and values of the pending changes in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.batch.approximate_bytes()
    }

    /// The whole batch, which ends the overlay.
    pub(crate) fn into_batch(self) -> WriteBatch {
        self.batch
    }

    /// The value of a key as the pending changes leave it.
    pub(crate) fn get(
        &mut self,
        engine: &impl ReadView,
        cf: Cf,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError> {
        self.index();
        self.lookup(engine, cf, key)
    }

    /// The system region's records as the pending changes leave them.
    pub(crate) fn system_view<'a, V: ReadView>(
        &'a mut self,
        engine: &'a V,
    ) -> OverlaySystemView<'a, V> {
        self.index();
        OverlaySystemView {
            overlay: self,
            engine,
        }
    }

    /// Adds what a system command writes.
    pub(crate) fn add_system_writes(&mut self, writes: &SystemWrites) {
        for (key, value) in writes.operations() {
            match value {
                Some(value) => self.batch.put(Cf::Raft, keys::system(key), value.clone()),
                None => self.batch.delete(Cf::Raft, keys::system(key)),
            }
        }
    }

    fn index(&mut self) {
        let mut superseded = Vec::new();
        let is_large = |value: &Bytes| value.len() >= SUPERSEDED_BYTES_MIN;
        for (place, change) in self.batch.changes().iter().enumerate().skip(self.indexed) {
            match change {
                Change::Put { cf, key, value } => {
                    let point = (place, Some(value.clone()));
                    let before = self.points.insert((*cf, key.clone()), point);
                    if let Some((earlier, Some(value))) = before
                        && is_large(&value)
                    {
                        superseded.push(earlier);
                    }
                }
                Change::Delete { cf, key } => {
                    self.points.insert((*cf, key.clone()), (place, None));
                }
                Change::DeleteRange { cf, start, end } => self.ranges.push(RangeChange {
                    place,
                    cf: *cf,
                    start: start.clone(),
                    end: end.clone(),
                }),
            }
        }
        for place in superseded {
            self.batch.supersede(place);
        }
        self.indexed = self.batch.len();
    }

    fn lookup(
        &self,
        engine: &impl ReadView,
        cf: Cf,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError> {
        let removed = self.last_removal(cf, key);
        // The key of the map is owned; a copy of a short key is what a look-up costs.
        let point = self.points.get(&(cf, Bytes::copy_from_slice(key)));
        match (point, removed) {
            (Some((place, _)), Some(removal)) if removal > *place => Ok(None),
            (Some((_, value)), _) => Ok(value.clone()),
            (None, Some(_)) => Ok(None),
            (None, None) => engine.get(cf, key),
        }
    }

    /// Place of the last range removal that covers a key.
    fn last_removal(&self, cf: Cf, key: &[u8]) -> Option<usize> {
        self.ranges
            .iter()
            .rev()
            .find(|range| range.cf == cf && range.start <= key && key < range.end)
            .map(|range| range.place)
    }
}

/// The system region's records through an overlay.
pub(crate) struct OverlaySystemView<'a, V> {
    overlay: &'a Overlay,
    engine: &'a V,
}

impl<V: ReadView + Send + Sync> SystemView for OverlaySystemView<'_, V> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SystemViewError> {
        Ok(self
            .overlay
            .lookup(self.engine, Cf::Raft, &keys::system(key))?)
    }

    /// Merges the pending changes into the engine's scan. System records are only put and
    /// deleted one by one, so ranges need not be looked at.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
        visit: Visitor<'_>,
    ) -> Result<(), SystemViewError> {
        let (lower, upper) = system_bounds(start, end);
        if lower >= upper {
            return Ok(());
        }
        let bounds = (
            Bound::Included((Cf::Raft, Bytes::from(lower.clone()))),
            Bound::Excluded((Cf::Raft, Bytes::from(upper.clone()))),
        );
        let pending = self.overlay.points.range(bounds);
        let pending: Box<dyn Iterator<Item = _>> = if reverse {
            Box::new(pending.rev())
        } else {
            Box::new(pending)
        };
        let pending = pending.map(|((_, key), (_, value))| (key, value));
        let mut merge = Merge {
            pending: pending.peekable(),
            reverse,
            stopped: false,
        };
        let direction = if reverse {
            Direction::Backward
        } else {
            Direction::Forward
        };
        self.engine.scan(
            Cf::Raft,
            &lower,
            Some(&upper),
            direction,
            &mut |key, value| merge.engine_pair(key, value, visit),
        )?;
        merge.finish(visit);
        Ok(())
    }
}

/// Interleaves pending records with those of an engine scan; a pending one hides the
/// engine's of the same key.
struct Merge<'a, I: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> {
    pending: std::iter::Peekable<I>,
    reverse: bool,
    stopped: bool,
}

impl<'a, I: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Merge<'a, I> {
    fn engine_pair(&mut self, key: &[u8], value: &[u8], visit: Visitor<'_>) -> ControlFlow<()> {
        let reverse = self.reverse;
        let comes_first = |pending: &Bytes| {
            if reverse {
                &pending[..] > key
            } else {
                &pending[..] < key
            }
        };
        while let Some((pending, written)) =
            self.pending.next_if(|(pending, _)| comes_first(pending))
        {
            self.show(pending, written, visit)?;
        }
        if let Some((pending, written)) = self.pending.next_if(|(pending, _)| pending[..] == *key) {
            return self.show(pending, written, visit);
        }
        self.emit(key, value, visit)
    }

    fn finish(mut self, visit: Visitor<'_>) {
        while !self.stopped
            && let Some((pending, written)) = self.pending.next()
        {
            // A break is remembered in `stopped`.
            let _ = self.show(pending, written, visit);
        }
    }

    fn show(&mut self, key: &[u8], written: &Option<Bytes>, visit: Visitor<'_>) -> ControlFlow<()> {
        match written {
            Some(value) => self.emit(key, value, visit),
            None => ControlFlow::Continue(()),
        }
    }

    fn emit(&mut self, key: &[u8], value: &[u8], visit: Visitor<'_>) -> ControlFlow<()> {
        let Some(suffix) = keys::parse_system(key) else {
            return ControlFlow::Continue(());
        };
        let flow = visit(suffix, value);
        self.stopped = flow.is_break();
        flow
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
