//! The log of one replica in memory: the same code under both crates, so that what differs in
//! the figures is the crates.
//!
//! It holds the newest entries only and forgets the oldest by itself. Clones share their
//! content, as the published crate's storage does: the driver writes, the core reads.

use std::cell::RefCell;
use std::rc::Rc;

/// Entries that are kept at least; more than ever is in flight or not applied. Twice as many
/// are there at most.
const KEPT_ENTRIES: usize = 1024;

/// What the log has to know of an entry.
pub trait LogEntry: Clone {
    /// Place in the log.
    fn index(&self) -> u64;
    /// Term of the leader that made it.
    fn term(&self) -> u64;
}

/// Where a range lies that the log cannot give.
#[derive(Debug, Clone, Copy)]
pub enum Missing {
    /// Before the first entry.
    Compacted,
    /// Behind the last one.
    Unavailable,
}

struct Core<E> {
    entries: Vec<E>,
    /// Index and term of the entry before the first.
    truncated: (u64, u64),
}

/// A log from an empty start.
#[derive(Clone)]
pub struct KeptLog<E> {
    core: Rc<RefCell<Core<E>>>,
}

impl<E: LogEntry> Default for KeptLog<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: LogEntry> KeptLog<E> {
    /// No entry; the first will have index 1.
    pub fn new() -> Self {
        let core = Core {
            entries: Vec::with_capacity(2 * KEPT_ENTRIES + 1),
            truncated: (0, 0),
        };
        Self {
            core: Rc::new(RefCell::new(core)),
        }
    }

    /// Writes entries, replacing those from the first one's index on.
    pub fn append(&self, entries: impl IntoIterator<Item = E>) {
        let mut core = self.core.borrow_mut();
        for entry in entries {
            let at = (entry.index() - core.truncated.0 - 1) as usize;
            assert!(at <= core.entries.len(), "a gap before {}", entry.index());
            core.entries.truncate(at);
            core.entries.push(entry);
            if core.entries.len() > 2 * KEPT_ENTRIES {
                let last = &core.entries[KEPT_ENTRIES - 1];
                core.truncated = (last.index(), last.term());
                core.entries.drain(..KEPT_ENTRIES);
            }
        }
    }

    /// Index of the first entry that is kept.
    pub fn first_index(&self) -> u64 {
        self.core.borrow().truncated.0 + 1
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        let core = self.core.borrow();
        core.truncated.0 + core.entries.len() as u64
    }

    /// Term at `index`.
    pub fn term(&self, index: u64) -> Result<u64, Missing> {
        let core = self.core.borrow();
        if index == core.truncated.0 {
            return Ok(core.truncated.1);
        }
        let at = index.checked_sub(core.truncated.0 + 1);
        let at = at.ok_or(Missing::Compacted)?;
        let entry = core.entries.get(at as usize);
        entry.map(E::term).ok_or(Missing::Unavailable)
    }

    /// Copies of the entries in `[low, high)`, as many from the beginning as `count` says.
    pub fn entries(
        &self,
        low: u64,
        high: u64,
        count: impl Fn(&[E]) -> usize,
    ) -> Result<Vec<E>, Missing> {
        let core = self.core.borrow();
        let first = core.truncated.0 + 1;
        if low < first {
            return Err(Missing::Compacted);
        }
        let range = core
            .entries
            .get((low - first) as usize..(high - first) as usize);
        let range = range.ok_or(Missing::Unavailable)?;
        Ok(range[..count(range)].to_vec())
    }
}
