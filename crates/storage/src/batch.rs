//! A write batch: changes of one engine that take effect in one step.
//!
//! The batch is a plain list, so that it can be built by the stepped core, compared in
//! tests, read through before it is written (apply sees what earlier commands of the
//! same batch wrote), and handed to any engine. Changes act in the order they were added.

use bytes::Bytes;

use crate::engine::Cf;

/// Bytes that a change is counted with beside its keys and values.
const CHANGE_OVERHEAD_BYTES: usize = 16;

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a value.
    Put {
        /// Column family.
        cf: Cf,
        /// Engine key.
        key: Bytes,
        /// Value; may be empty.
        value: Bytes,
    },
    /// Removes a key; nothing happens if it is absent.
    Delete {
        /// Column family.
        cf: Cf,
        /// Engine key.
        key: Bytes,
    },
    /// Removes all keys in `[start, end)`.
    DeleteRange {
        /// Column family.
        cf: Cf,
        /// First key removed.
        start: Bytes,
        /// First key behind the range. Invariant: `start < end`.
        end: Bytes,
    },
}

impl Change {
    /// The column family that is changed.
    #[must_use]
    pub fn cf(&self) -> Cf {
        match self {
            Self::Put { cf, .. } | Self::Delete { cf, .. } | Self::DeleteRange { cf, .. } => *cf,
        }
    }

    fn bytes(&self) -> usize {
        CHANGE_OVERHEAD_BYTES
            + match self {
                Self::Put { key, value, .. } => key.len() + value.len(),
                Self::Delete { key, .. } => key.len(),
                Self::DeleteRange { start, end, .. } => start.len() + end.len(),
            }
    }
}

/// An ordered list of changes to one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    changes: Vec<Change>,
    /// Sum over `changes`.
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` under `key`.
    pub fn put(&mut self, cf: Cf, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.push(Change::Put {
            cf,
            key: key.into(),
            value: value.into(),
        });
    }

    /// Removes `key`.
    pub fn delete(&mut self, cf: Cf, key: impl Into<Bytes>) {
        self.push(Change::Delete {
            cf,
            key: key.into(),
        });
    }

    /// Removes all keys in `[start, end)`. An empty or inverted range adds nothing.
    pub fn delete_range(&mut self, cf: Cf, start: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (start, end) = (start.into(), end.into());
        if start < end {
            self.push(Change::DeleteRange { cf, start, end });
        }
    }

    /// Adds the changes of `other` behind the own ones.
    pub fn append(&mut self, other: WriteBatch) {
        self.bytes += other.bytes;
        self.changes.extend(other.changes);
    }

    /// Lets the value of a put go, of which a later change of the batch leaves nothing: a
    /// removal of the key stands in its place.
    ///
    /// # Panics
    /// If no put stands at `place`.
    pub fn supersede(&mut self, place: usize) {
        let change = &mut self.changes[place];
        let Change::Put { cf, key, value } = change else {
            panic!("change {place} of a batch is superseded and is no put: {change:?}");
        };
        self.bytes -= value.len();
        *change = Change::Delete {
            cf: *cf,
            key: std::mem::take(key),
        };
    }

    /// The changes in their order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// True without changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Keys and values in bytes, with a small constant for each change.
    #[must_use]
    pub fn approximate_bytes(&self) -> usize {
        self.bytes
    }

    /// Removes all changes and keeps the room for them.
    pub fn clear(&mut self) {
        self.changes.clear();
        self.bytes = 0;
    }

    fn push(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_counts_bytes_and_keeps_order() {
        let mut first = WriteBatch::new();
        first.put(Cf::Raw, "za", "1");
        let mut second = WriteBatch::new();
        second.delete(Cf::Raw, "za");
        second.delete_range(Cf::Raw, "zb", "zd");
        let total = first.approximate_bytes() + second.approximate_bytes();
        first.append(second);
        assert_eq!(first.len(), 3);
        assert_eq!(first.approximate_bytes(), total);
        assert!(matches!(first.changes()[0], Change::Put { .. }));
        assert!(matches!(first.changes()[2], Change::DeleteRange { .. }));
        first.clear();
        assert!(first.is_empty());
        assert_eq!(first.approximate_bytes(), 0);
    }

    #[test]
    fn superseded_put_is_a_removal_in_its_place() {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, "za", "long before");
        batch.put(Cf::Raw, "za", "now");
        batch.supersede(0);
        let mut expected = WriteBatch::new();
        expected.delete(Cf::Raw, "za");
        expected.put(Cf::Raw, "za", "now");
        assert_eq!(batch, expected);
    }

    #[test]
    fn batch_drops_empty_and_inverted_ranges() {
        let mut batch = WriteBatch::new();
        batch.delete_range(Cf::Raw, "b", "b");
        batch.delete_range(Cf::Raw, "b", "a");
        assert!(batch.is_empty());
    }
}
