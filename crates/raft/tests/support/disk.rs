//! The disk of one node, in memory.
//!
//! Written data is visible to the core at once; `sync` makes it durable and `crash`
//! goes back to what was durable. `MemStorage` has no such line, so tests that crash a
//! node or refuse a snapshot use this disk.
//!
//! Invariant: `entries[i].index == truncated.index + 1 + i`.

use std::cell::RefCell;
use std::rc::Rc;

use strata_proto::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use strata_raft::{Index, PeerId, RaftState, Storage, StorageError, Term};

/// What a disk holds; the unit that is made durable as a whole.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// Index and term of the entry before the first.
    pub truncated: (Index, Term),
    pub entries: Vec<Entry>,
    /// The snapshot handed to followers that need one.
    pub snapshot: Option<Snapshot>,
}

#[derive(Default)]
struct State {
    written: Content,
    synced: Content,
    snapshot_unavailable: bool,
    snapshot_requests: usize,
}

/// A handle; clones share the disk.
#[derive(Clone, Default)]
pub struct Disk(Rc<RefCell<State>>);

impl Disk {
    /// A disk of a group of `voters`, with `log` given as the terms of entries 1, 2, ...
    pub fn with_terms(voters: &[PeerId], terms: &[Term]) -> Disk {
        let disk = Disk::with_voters(voters);
        let entries: Vec<Entry> = terms
            .iter()
            .zip(1..)
            .map(|(&term, index)| Entry {
                term,
                index,
                ..Entry::default()
            })
            .collect();
        disk.append(&entries);
        disk.sync();
        disk
    }

    /// An empty disk of a group of `voters`.
    pub fn with_voters(voters: &[PeerId]) -> Disk {
        let disk = Disk::default();
        disk.0.borrow_mut().written.conf_state.voters = voters.to_vec();
        disk.sync();
        disk
    }

    /// The disk of a node that was created from `snapshot`.
    pub fn with_snapshot(snapshot: Snapshot) -> Disk {
        let disk = Disk::default();
        disk.install(&snapshot);
        disk.sync();
        disk
    }

    pub fn content(&self) -> Content {
        self.0.borrow().written.clone()
    }

    pub fn last_entry(&self) -> (Index, Term) {
        let state = self.0.borrow();
        let last = state.written.entries.last().map(|e| (e.index, e.term));
        last.unwrap_or(state.written.truncated)
    }

    pub fn set_hard_state(&self, hard_state: HardState) {
        self.0.borrow_mut().written.hard_state = hard_state;
    }

    pub fn set_conf_state(&self, conf_state: ConfState) {
        self.0.borrow_mut().written.conf_state = conf_state;
    }

    /// Writes and syncs the membership alone, as the state machine's own disk does when it
    /// applies a change.
    pub fn set_conf_state_durably(&self, conf_state: ConfState) {
        let mut state = self.0.borrow_mut();
        state.written.conf_state = conf_state.clone();
        state.synced.conf_state = conf_state;
    }

    /// Writes `entries`, replacing what is there from the first one's index on.
    pub fn append(&self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let content = &mut self.0.borrow_mut().written;
        let next = content.truncated.0 + 1 + content.entries.len() as u64;
        assert!(
            first.index > content.truncated.0 && first.index <= next,
            "append at {} does not join a log of {}..{next}",
            first.index,
            content.truncated.0 + 1,
        );
        content
            .entries
            .truncate((first.index - content.truncated.0 - 1) as usize);
        content.entries.extend_from_slice(entries);
    }

    /// Replaces the log by `snapshot`.
    pub fn install(&self, snapshot: &Snapshot) {
        let metadata = snapshot.metadata.clone().expect("a snapshot has metadata");
        let content = &mut self.0.borrow_mut().written;
        content.truncated = (metadata.index, metadata.term);
        content.entries.clear();
        content.conf_state = metadata.conf_state.unwrap_or_default();
        content.hard_state.commit = content.hard_state.commit.max(metadata.index);
        content.hard_state.term = content.hard_state.term.max(metadata.term);
        content.snapshot = Some(snapshot.clone());
    }

    /// Makes the snapshot at `index` that followers get from now on.
    pub fn make_snapshot(&self, index: Index, conf_state: ConfState) -> Snapshot {
        let term = self
            .term(index)
            .expect("the snapshot's index is in the log");
        let snapshot = Snapshot {
            data: format!("state at {index}").into(),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index,
                term,
            }),
        };
        self.0.borrow_mut().written.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// Deletes the entries up to `index`, which must be in the log.
    pub fn compact(&self, index: Index) {
        let term = self
            .term(index)
            .expect("the truncation point is in the log");
        let content = &mut self.0.borrow_mut().written;
        content
            .entries
            .drain(..(index - content.truncated.0) as usize);
        content.truncated = (index, term);
    }

    /// While set, `snapshot` answers that it is still being generated.
    pub fn set_snapshot_unavailable(&self, unavailable: bool) {
        self.0.borrow_mut().snapshot_unavailable = unavailable;
    }

    /// How many times the core asked for a snapshot.
    pub fn snapshot_requests(&self) -> usize {
        self.0.borrow().snapshot_requests
    }

    pub fn sync(&self) {
        let mut state = self.0.borrow_mut();
        state.synced = state.written.clone();
    }

    /// Makes `content` the durable state: what was written when it was taken is synced,
    /// what came after it is not. A membership that was applied meanwhile stays.
    pub fn sync_to(&self, content: Content) {
        let mut state = self.0.borrow_mut();
        let conf_state = state.written.conf_state.clone();
        state.synced = Content {
            conf_state,
            ..content
        };
    }

    /// Loses everything that was not synced.
    pub fn crash(&self) {
        let mut state = self.0.borrow_mut();
        state.written = state.synced.clone();
    }
}

impl Storage for Disk {
    fn initial_state(&self) -> Result<RaftState, StorageError> {
        let content = &self.0.borrow().written;
        Ok(RaftState {
            hard_state: content.hard_state,
            conf_state: content.conf_state.clone(),
        })
    }

    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let content = &self.0.borrow().written;
        let first = content.truncated.0 + 1;
        if low < first {
            return Err(StorageError::Compacted);
        }
        if high > first + content.entries.len() as u64 {
            return Err(StorageError::Unavailable);
        }
        let range = &content.entries[(low - first) as usize..(high - first) as usize];
        let mut bytes = 0;
        let fits = range.iter().take_while(|entry| {
            bytes += prost::Message::encoded_len(*entry) as u64;
            bytes <= max_bytes
        });
        let count = fits.count().max(1).min(range.len());
        Ok(range[..count].to_vec())
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        let content = &self.0.borrow().written;
        let (truncated, term) = content.truncated;
        match index.checked_sub(truncated) {
            None => Err(StorageError::Compacted),
            Some(0) => Ok(term),
            Some(place) => match content.entries.get(place as usize - 1) {
                Some(entry) => Ok(entry.term),
                None => Err(StorageError::Unavailable),
            },
        }
    }

    fn first_index(&self) -> Result<Index, StorageError> {
        Ok(self.0.borrow().written.truncated.0 + 1)
    }

    fn last_index(&self) -> Result<Index, StorageError> {
        Ok(self.last_entry().0)
    }

    fn snapshot(&self, request_index: Index, _to: PeerId) -> Result<Snapshot, StorageError> {
        let mut state = self.0.borrow_mut();
        state.snapshot_requests += 1;
        match &state.written.snapshot {
            Some(snapshot)
                if !state.snapshot_unavailable
                    && snapshot
                        .metadata
                        .as_ref()
                        .is_some_and(|m| m.index >= request_index) =>
            {
                Ok(snapshot.clone())
            }
            _ => Err(StorageError::SnapshotTemporarilyUnavailable),
        }
    }
}
