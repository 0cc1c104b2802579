//! A storage in memory, for tests and examples.
//!
//! Clones share their state, as a handle to a disk would, so a test keeps one clone and
//! hands another to the node; what the node "loses" in a crash is what was never appended.
//! The log holds the entry before its first one as a bare id, the truncation point.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use strata_proto::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};

use crate::storage::{RaftState, Storage, StorageError};
use crate::types::{EntryId, Index, PeerId, Term, limit_entries};

#[derive(Debug, Default)]
struct Core {
    state: RaftState,
    /// Id of the entry before the first of `entries`.
    truncated: EntryId,
    entries: Vec<Entry>,
    snapshot: Snapshot,
    /// The next `snapshot` calls that answer "temporarily unavailable".
    unavailable_snapshots: u32,
}

/// Log, hard state, conf state and snapshot in memory.
#[derive(Clone, Debug, Default)]
pub struct MemStorage {
    core: Arc<Mutex<Core>>,
}

impl MemStorage {
    /// An empty log without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty log of a group of `voters` and `learners`.
    pub fn new_with_conf_state(
        voters: impl IntoIterator<Item = PeerId>,
        learners: impl IntoIterator<Item = PeerId>,
    ) -> Self {
        let storage = Self::new();
        storage.set_conf_state(ConfState {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            ..ConfState::default()
        });
        storage
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere leaves no half-done change here.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves term, vote and commit index.
    pub fn set_hard_state(&self, hard_state: HardState) {
        self.lock().state.hard_state = hard_state;
    }

    /// Saves the membership.
    pub fn set_conf_state(&self, conf_state: ConfState) {
        self.lock().state.conf_state = conf_state;
    }

    /// The saved hard state.
    pub fn hard_state(&self) -> HardState {
        self.lock().state.hard_state
    }

    /// All entries of the log, in order.
    pub fn all_entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// Writes `entries`, replacing those from the first one's index on.
    ///
    /// # Panics
    /// If they would leave a gap behind the last entry, or reach into the compacted part.
    pub fn append(&self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        let mut core = self.lock();
        let offset = core.truncated.index + 1;
        assert!(
            first.index >= offset && first.index <= offset + core.entries.len() as u64,
            "append at {} to a log of [{offset}, {})",
            first.index,
            offset + core.entries.len() as u64
        );
        core.entries.truncate((first.index - offset) as usize);
        core.entries.extend_from_slice(entries);
    }

    /// Drops the entries up to `index`, which becomes the truncation point.
    pub fn compact(&self, index: Index) -> Result<(), StorageError> {
        let mut core = self.lock();
        if index <= core.truncated.index {
            return Err(StorageError::Compacted);
        }
        let term = core.term(index)?;
        let dropped = (index - core.truncated.index) as usize;
        core.entries.drain(..dropped);
        core.truncated = EntryId { term, index };
        Ok(())
    }

    /// Installs a snapshot in place of the whole log. `Compacted` if the log's truncation
    /// point or an installed snapshot is newer.
    pub fn apply_snapshot(&self, snapshot: Snapshot) -> Result<(), StorageError> {
        let meta = snapshot.metadata.clone().unwrap_or_default();
        let mut core = self.lock();
        if meta.index < core.truncated.index {
            return Err(StorageError::Compacted);
        }
        core.truncated = EntryId {
            term: meta.term,
            index: meta.index,
        };
        core.entries.clear();
        core.state.hard_state.term = core.state.hard_state.term.max(meta.term);
        core.state.hard_state.commit = core.state.hard_state.commit.max(meta.index);
        core.state.conf_state = meta.conf_state.unwrap_or_default();
        core.snapshot = snapshot;
        Ok(())
    }

    /// Makes a snapshot of the state machine as of `index`, kept for followers; without
    /// `conf_state` the saved membership goes into it. `Compacted` if one at `index` or
    /// later is kept, `Unavailable` if the log does not reach `index`.
    pub fn create_snapshot(
        &self,
        index: Index,
        conf_state: Option<ConfState>,
        data: Bytes,
    ) -> Result<Snapshot, StorageError> {
        let mut core = self.lock();
        if index <= core.snapshot_index() {
            return Err(StorageError::Compacted);
        }
        let term = core.term(index)?;
        let conf_state = conf_state.unwrap_or_else(|| core.state.conf_state.clone());
        core.snapshot = Snapshot {
            data,
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index,
                term,
            }),
        };
        Ok(core.snapshot.clone())
    }

    /// The kept snapshot; its index is 0 if there is none.
    pub fn kept_snapshot(&self) -> Snapshot {
        self.lock().snapshot.clone()
    }

    /// Lets the next `times` calls of `snapshot` answer that it is being made.
    pub fn make_snapshot_unavailable(&self, times: u32) {
        self.lock().unavailable_snapshots = times;
    }
}

impl Core {
    fn last_index(&self) -> Index {
        self.truncated.index + self.entries.len() as u64
    }

    fn snapshot_index(&self) -> Index {
        self.snapshot.metadata.as_ref().map_or(0, |m| m.index)
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        if index < self.truncated.index {
            return Err(StorageError::Compacted);
        }
        let at = (index - self.truncated.index - 1) as usize;
        match self.entries.get(at) {
            Some(entry) => Ok(entry.term),
            None => Err(StorageError::Unavailable),
        }
    }
}

impl Storage for MemStorage {
    fn initial_state(&self) -> Result<RaftState, StorageError> {
        Ok(self.lock().state.clone())
    }

    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let core = self.lock();
        let offset = core.truncated.index + 1;
        if low < offset {
            return Err(StorageError::Compacted);
        }
        if high > core.last_index() + 1 || low > high {
            return Err(StorageError::Unavailable);
        }
        let range = &core.entries[(low - offset) as usize..(high - offset) as usize];
        let mut entries = range.to_vec();
        limit_entries(&mut entries, max_bytes);
        Ok(entries)
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        self.lock().term(index)
    }

    fn first_index(&self) -> Result<Index, StorageError> {
        Ok(self.lock().truncated.index + 1)
    }

    fn last_index(&self) -> Result<Index, StorageError> {
        Ok(self.lock().last_index())
    }

    fn snapshot(&self, request_index: Index, _to: PeerId) -> Result<Snapshot, StorageError> {
        let mut core = self.lock();
        if core.unavailable_snapshots > 0 {
            core.unavailable_snapshots -= 1;
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        if core.snapshot_index() == 0 || core.snapshot_index() < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        Ok(core.snapshot.clone())
    }
}
