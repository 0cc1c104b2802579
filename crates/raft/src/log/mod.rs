//! The log of one replica: the stored part, the unstable end over it, and how far each
//! stage has come.
//!
//! ```text
//! truncation point .. first .. applied .. handed out .. committed .. last
//!                                   persisted: synced in this replica's own log, <= last
//! ```
//!
//! Entries enter at the end, are handed to the driver to be written (`take_write`), shown by
//! the storage from `stable` on, and counted as persisted when the driver reports the sync
//! of their Ready. What is committed and persisted is handed out to be applied.
//!
//! Invariants (`check_invariants`)
//! * `applied <= handed <= committed <= last` and `persisted <= last`;
//! * `handed <= persisted`, except while a snapshot that was handed out is not synced;
//! * `first - 1 <= committed`; `committed` never decreases and what it covers never changes.
//!
//! A write that is under way when the log is cut back counts only up to the cut: what comes
//! behind is written again by a later Ready, though index and term may be the same.

mod unstable;
mod writes;

use strata_proto::eraftpb::{Entry, Snapshot};

use crate::storage::{Storage, StorageError};
use crate::types::{EntryId, Index, Term, count_within};
use unstable::Unstable;
pub(crate) use unstable::snapshot_id;
use writes::Writes;

/// Why entries from a leader do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendRefusal {
    /// The entry before the first new one is not the same here.
    PrevMismatch,
    /// A committed entry would be replaced: no correct leader asks for that.
    ConflictWithCommitted,
}

/// The log. The header of the module tells how its parts hang together.
pub(crate) struct RaftLog<S> {
    storage: S,
    unstable: Unstable,
    writes: Writes,
    committed: Index,
    persisted: Index,
    handed: Index,
    applied: Index,
    /// Index of the latest snapshot from a leader; it waits while it is above `applied`.
    restored: Index,
    /// How often entries were replaced by a later leader's.
    conflicts: u64,
}

impl<S: Storage> RaftLog<S> {
    /// The log that `storage` holds: everything in it is persisted, everything up to
    /// `applied` is applied. The caller has checked
    /// `first - 1 <= applied <= committed <= last`.
    pub fn new(storage: S, committed: Index, applied: Index) -> Result<Self, StorageError> {
        let index = storage.last_index()?;
        let term = storage.term(index)?;
        let log = Self {
            storage,
            unstable: Unstable::new(EntryId { term, index }),
            writes: Writes::default(),
            committed,
            persisted: index,
            handed: applied,
            applied,
            restored: 0,
            conflicts: 0,
        };
        log.check_invariants();
        Ok(log)
    }

    pub fn storage(&self) -> &S {
        &self.storage
    }

    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    pub fn committed(&self) -> Index {
        self.committed
    }

    pub fn persisted(&self) -> Index {
        self.persisted
    }

    pub fn applied(&self) -> Index {
        self.applied
    }

    pub fn handed(&self) -> Index {
        self.handed
    }

    /// How often entries were replaced by a later leader's.
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    pub fn last_index(&self) -> Index {
        self.unstable.last().index
    }

    /// Id of the last entry.
    pub fn last(&self) -> EntryId {
        self.unstable.last()
    }

    /// Index of the first entry; one past the truncation point.
    pub fn first_index(&self) -> Index {
        match self.unstable.snapshot_id() {
            Some(id) => id.index + 1,
            None => must(self.storage.first_index(), "first index"),
        }
    }

    /// The snapshot to be installed.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.unstable.snapshot()
    }

    pub fn has_snapshot(&self) -> bool {
        self.unstable.snapshot().is_some()
    }

    /// Whether a snapshot from a leader is not reported as applied yet.
    pub fn awaits_snapshot(&self) -> bool {
        self.applied < self.restored
    }

    /// Term of the entry at `index`, also at the truncation point. `Compacted` before it,
    /// `Unavailable` behind the last entry.
    pub fn term(&self, index: Index) -> Result<Term, StorageError> {
        if let Some(term) = self.unstable.term(index) {
            return Ok(term);
        }
        if index > self.last_index() {
            return Err(StorageError::Unavailable);
        }
        if self.has_snapshot() {
            return Err(StorageError::Compacted);
        }
        match self.storage.term(index) {
            Err(StorageError::Other(text)) => must(Err(StorageError::Other(text)), "term"),
            answer => answer,
        }
    }

    /// Whether the log holds the entry `id`.
    pub fn matches(&self, id: EntryId) -> bool {
        self.term(id.index).is_ok_and(|term| term == id.term)
    }

    /// Whether a log that ends in `last` is at least as new as this one (section 5.4.1).
    pub fn is_up_to_date(&self, last: EntryId) -> bool {
        last >= self.last()
    }

    /// Entries in `[low, high)`, as many from the beginning as fit into `max_bytes`, at
    /// least one if there is one.
    pub fn entries(
        &self,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let offset = self.unstable.offset();
        if low >= high {
            return Ok(Vec::new());
        }
        if low >= offset {
            let range = self.unstable.slice(low, high);
            return Ok(range[..count_within(range, max_bytes)].to_vec());
        }
        if self.has_snapshot() {
            return Err(StorageError::Compacted);
        }
        let stored_end = high.min(offset);
        let mut entries = match self.storage.entries(low, stored_end, max_bytes) {
            Err(StorageError::Other(text)) => must(Err(StorageError::Other(text)), "entries"),
            answer => answer?,
        };
        assert!(
            !entries.is_empty() && entries[0].index == low,
            "storage gave {} entries for [{low}, {stored_end})",
            entries.len()
        );
        if high > offset && entries.len() as u64 == stored_end - low {
            let used: u64 = entries.iter().map(crate::types::entry_bytes).sum();
            if used < max_bytes {
                let range = self.unstable.slice(offset, high);
                let mut bytes = used;
                for entry in range {
                    bytes = bytes.saturating_add(crate::types::entry_bytes(entry));
                    if bytes > max_bytes {
                        break;
                    }
                    entries.push(entry.clone());
                }
            }
        }
        Ok(entries)
    }

    /// Appends an entry that a leader makes.
    pub fn push(&mut self, entry: Entry) {
        self.unstable.push(entry);
    }

    /// Takes a leader's entries behind `prev` and returns the index of the last of them.
    /// Entries that are there already stay as they are; the first that differs takes
    /// everything behind it along (section 5.3). The caller has checked that indices follow
    /// one another.
    pub fn append_from_leader(
        &mut self,
        prev: EntryId,
        mut entries: Vec<Entry>,
    ) -> Result<Index, AppendRefusal> {
        if !self.matches(prev) {
            return Err(AppendRefusal::PrevMismatch);
        }
        let last_new = entries.last().map_or(prev.index, |entry| entry.index);
        let known = entries
            .iter()
            .take_while(|entry| self.matches(EntryId::of(entry)))
            .count();
        if known == entries.len() {
            return Ok(last_new);
        }
        let first_new = entries[known].index;
        if first_new <= self.committed {
            return Err(AppendRefusal::ConflictWithCommitted);
        }
        if first_new <= self.last_index() {
            self.cut_behind(first_new - 1);
            self.conflicts += 1;
        }
        entries.drain(..known);
        self.unstable.extend(entries);
        self.check_invariants();
        Ok(last_new)
    }

    fn cut_behind(&mut self, index: Index) {
        let term = must(self.term(index), "term before a cut");
        self.unstable.truncate_behind(EntryId { term, index });
        self.persisted = self.persisted.min(index);
        self.writes.cut_behind(index);
    }

    /// Raises the commit index; returns whether it moved.
    pub fn commit_to(&mut self, index: Index) -> bool {
        if index <= self.committed {
            return false;
        }
        assert!(
            index <= self.last_index(),
            "commit {index} is behind the last index {}",
            self.last_index()
        );
        self.committed = index;
        true
    }

    /// Replaces the log by a snapshot newer than the commit index.
    pub fn restore(&mut self, snapshot: Snapshot) {
        let id = snapshot_id(&snapshot);
        assert!(
            id.index > self.committed,
            "snapshot at {} is not behind commit {}",
            id.index,
            self.committed
        );
        self.writes.forget_entries();
        self.persisted = self.persisted.min(self.committed);
        self.committed = id.index;
        self.restored = id.index;
        self.unstable.restore(snapshot);
        self.check_invariants();
    }

    /// The largest index up to `index` whose term is at most `term`, with its term if it is
    /// known; where two logs may meet at best (section 5.3, fast back-up).
    pub fn find_conflict_by_term(&self, index: Index, term: Term) -> (Index, Option<Term>) {
        let mut at = index;
        if at > self.last_index() {
            return (at, None);
        }
        loop {
            match self.term(at) {
                Ok(here) if here > term => at -= 1,
                Ok(here) => return (at, Some(here)),
                Err(_) => return (at, None),
            }
        }
    }

    // From here on: what goes to the driver and what comes back.

    /// Whether there is a snapshot or an entry to be written.
    pub fn has_write(&self) -> bool {
        self.has_snapshot() || !self.unstable.entries().is_empty()
    }

    /// Gives out all that is to be written under Ready `number`: the entries, which are
    /// returned, and the snapshot. `stable` must follow before the next one. `promises` says
    /// whether term or vote go along.
    pub fn take_write(&mut self, number: u64, promises: bool) -> Vec<Entry> {
        let entries = self.unstable.copy_entries();
        let snapshot = self.unstable.snapshot_id().map(|id| id.index);
        if let Some(index) = snapshot {
            self.handed = index;
        }
        if self.has_write() || promises {
            let last = self.unstable.last().index;
            let last = (!entries.is_empty()).then_some(last);
            self.writes.add(number, snapshot, last, promises);
        }
        entries
    }

    /// The storage shows what Ready `number` held, so far as it still belongs to the log.
    pub fn stable(&mut self, number: u64) {
        if let Some(write) = self.writes.get(number) {
            if let Some(index) = write.snapshot {
                self.unstable.stable_snapshot(index);
            }
            if let Some(last) = write.last {
                self.unstable.stable_to(last);
            }
        }
    }

    /// The driver has written `entries`: their memory is used again.
    pub fn take_back(&mut self, entries: &mut Vec<Entry>) {
        self.unstable.take_back(entries);
    }

    /// Readys up to `number` are synced. Returns whether the persisted index has moved.
    pub fn on_persist(&mut self, number: u64) -> bool {
        let before = self.persisted;
        if let Some(reached) = self.writes.synced(number) {
            self.persisted = self.persisted.max(reached);
        }
        self.check_invariants();
        self.persisted > before
    }

    /// Whether anything that has to be synced was given out and not reported as synced.
    pub fn has_unsynced(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether a term or vote was given out and not reported as synced.
    pub fn has_unsynced_promise(&self) -> bool {
        self.writes.has_promise()
    }

    /// Last entry that is committed and persisted here.
    fn may_be_applied(&self) -> Index {
        // Planted: what is applied is synced here (crash rule 1).
        match planted!(AppliedBeforeOwnSync) {
            true => self.committed,
            false => self.committed.min(self.persisted),
        }
    }

    /// Whether entries wait to be handed out to be applied.
    pub fn has_committed(&self) -> bool {
        !self.has_snapshot() && self.handed < self.may_be_applied()
    }

    /// Hands out entries that are committed and persisted here, up to `max_bytes`.
    pub fn take_committed(&mut self, max_bytes: u64) -> Vec<Entry> {
        if !self.has_committed() {
            return Vec::new();
        }
        let end = self.may_be_applied() + 1;
        let entries = must(
            self.entries(self.handed + 1, end, max_bytes),
            "committed entries",
        );
        self.handed += entries.len() as u64;
        self.check_invariants();
        entries
    }

    /// The driver has applied everything up to `index`.
    pub fn applied_to(&mut self, index: Index) {
        assert!(
            self.applied <= index && index <= self.handed,
            "applied {} -> {index}, handed out {}",
            self.applied,
            self.handed
        );
        self.applied = index;
    }

    /// Panics if the stages are out of order.
    pub fn check_invariants(&self) {
        let last = self.last_index();
        assert!(
            self.applied <= self.handed && self.handed <= self.committed,
            "applied {} handed {} committed {}",
            self.applied,
            self.handed,
            self.committed
        );
        assert!(
            self.committed <= last && self.persisted <= last,
            "committed {} persisted {} last {last}",
            self.committed,
            self.persisted
        );
    }
}

/// The answer of a storage that cannot fail here without being broken.
fn must<T>(answer: Result<T, StorageError>, what: &str) -> T {
    match answer {
        Ok(value) => value,
        Err(error) => panic!("storage cannot give the {what}: {error}"),
    }
}

#[cfg(test)]
mod tests;
