//! The disk of one simulated server: what a write shows, and what a crash leaves.
//!
//! Write   A batch is visible to the server at once and stands in the queue of unsynced
//!         batches.
//! Sync    The batches up to a sequence number join the synced image, in order.
//! Crash   The image falls back to the synced one plus a prefix of the unsynced batches
//!         (the operating system may have written some of them on its own account).
//!
//! Invariants
//! * A batch is atomic, so log, hard state and checkpoint are always of one moment.
//! * `truncated.index <= checkpoint.index`, and `entries` begin at `truncated.index + 1`
//!   without a hole.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use strata_proto::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use strata_raft::{EntryId, Index, PeerId, RaftState, Storage, StorageError, Term};

/// Where the log of the first members begins: the same on all of them, so that a server
/// that joins later is behind the log's start and gets the membership in a snapshot.
pub const BOOTSTRAP: EntryId = EntryId { term: 5, index: 5 };

/// The service's state at one applied index, as it is written to disk and sent to others.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The last entry whose effect the state holds.
    pub at: EntryId,
    /// Membership after that entry.
    pub conf_state: ConfState,
    /// The service's encoded state.
    pub data: bytes::Bytes,
}

/// Everything that one server keeps on disk, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The newest checkpoint of the service.
    pub checkpoint: Rc<Checkpoint>,
    /// The last entry that is no longer in `entries`.
    pub truncated: EntryId,
    /// The log behind the truncation point.
    pub entries: Vec<Entry>,
}

impl Image {
    /// Index of the last entry, or of the truncation point where the log is empty.
    pub fn last_index(&self) -> Index {
        self.truncated.index + self.entries.len() as u64
    }

    /// The entry at `index`, or None where the log does not hold it.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let at = index.checked_sub(self.truncated.index + 1)?;
        self.entries.get(at as usize)
    }

    /// The term of the entry at `index`; also known at the truncation point.
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// True if the log holds the entry, or held it before it was compacted away.
    pub fn holds(&self, index: Index, term: Term) -> bool {
        index < self.truncated.index || self.term(index) == Some(term)
    }

    /// Bytes of the log and the hard state, without the checkpoint.
    pub fn log_bytes(&self) -> usize {
        use prost::Message;
        let entries: usize = self.entries.iter().map(Message::encoded_len).sum();
        entries + self.hard_state.encoded_len()
    }

    fn apply(&mut self, batch: &Batch) {
        if let Some(install) = &batch.install {
            self.truncated = install.at;
            self.entries.clear();
            self.checkpoint = install.clone();
        }
        if let Some(first) = batch.entries.first() {
            let keep = first.index.saturating_sub(self.truncated.index + 1) as usize;
            assert!(
                first.index > self.truncated.index && keep <= self.entries.len(),
                "a write at {} leaves a hole in the log {}..={}",
                first.index,
                self.truncated.index + 1,
                self.last_index()
            );
            self.entries.truncate(keep);
            self.entries.extend_from_slice(&batch.entries);
        }
        if let Some(hard_state) = &batch.hard_state {
            self.hard_state = *hard_state;
        }
        if let Some((checkpoint, truncated)) = &batch.compact {
            self.checkpoint = checkpoint.clone();
            let gone = truncated.index.saturating_sub(self.truncated.index) as usize;
            if gone > 0 {
                self.entries = self.entries.split_off(gone);
                self.truncated = *truncated;
            }
        }
    }
}

/// One atomic write.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// A snapshot from the leader: the log goes, its state becomes the checkpoint.
    pub install: Option<Rc<Checkpoint>>,
    /// Entries to append; what stands at and behind the first of them goes.
    pub entries: Vec<Entry>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// A checkpoint of the own service, and up to where the log is dropped with it.
    pub compact: Option<(Rc<Checkpoint>, EntryId)>,
}

#[derive(Debug)]
struct State {
    current: Image,
    synced: Image,
    unsynced: VecDeque<(u64, Batch)>,
    last_sequence: u64,
    snapshots_asked: u64,
    /// Every how many requests a snapshot is there; 1 for always.
    snapshot_every: u64,
}

/// A handle on one server's disk; clones share it.
#[derive(Clone, Debug)]
pub struct Disk(Rc<RefCell<State>>);

impl Disk {
    /// A disk as the bootstrap leaves it where `conf_state` has voters, an empty one for a
    /// server that joins later. A snapshot is served on every `snapshot_every`th request
    /// and is "being generated" on the others.
    pub fn new(conf_state: ConfState, snapshot_every: u64) -> Self {
        let mut image = Image::default();
        if !conf_state.voters.is_empty() {
            image.truncated = BOOTSTRAP;
            image.hard_state.term = BOOTSTRAP.term;
            image.hard_state.commit = BOOTSTRAP.index;
        }
        image.checkpoint = Rc::new(Checkpoint {
            at: image.truncated,
            conf_state,
            ..Checkpoint::default()
        });
        Self(Rc::new(RefCell::new(State {
            current: image.clone(),
            synced: image,
            unsynced: VecDeque::new(),
            last_sequence: 0,
            snapshots_asked: 0,
            snapshot_every,
        })))
    }

    /// Writes a batch and returns its sequence number, which grows with each write.
    pub fn write(&self, batch: Batch) -> u64 {
        let mut state = self.0.borrow_mut();
        state.last_sequence += 1;
        let sequence = state.last_sequence;
        state.current.apply(&batch);
        state.unsynced.push_back((sequence, batch));
        sequence
    }

    /// Makes all batches up to and with `sequence` durable.
    pub fn sync_through(&self, sequence: u64) {
        let state = &mut *self.0.borrow_mut();
        while state
            .unsynced
            .front()
            .is_some_and(|(number, _)| *number <= sequence)
        {
            let (_, batch) = state.unsynced.pop_front().expect("the front was just seen");
            state.synced.apply(&batch);
        }
    }

    /// Number of batches that a crash may lose.
    pub fn unsynced_batches(&self) -> usize {
        self.0.borrow().unsynced.len()
    }

    /// Loses all unsynced batches but the first `kept`.
    pub fn crash(&self, kept: usize) {
        let state = &mut *self.0.borrow_mut();
        for (_, batch) in state.unsynced.drain(..).take(kept) {
            state.synced.apply(&batch);
        }
        state.current = state.synced.clone();
    }

    /// Changes the synced image behind the server's back; for planted faults, and for the
    /// start, which raises commit to what the service has applied.
    pub fn tamper(&self, change: impl FnOnce(&mut Image)) {
        let state = &mut *self.0.borrow_mut();
        assert!(state.unsynced.is_empty(), "only a disk at rest is changed");
        change(&mut state.synced);
        state.current = state.synced.clone();
    }

    /// Reads the image as the server sees it.
    pub fn current<T>(&self, read: impl FnOnce(&Image) -> T) -> T {
        read(&self.0.borrow().current)
    }

    /// Reads the image that a crash cannot take.
    pub fn synced<T>(&self, read: impl FnOnce(&Image) -> T) -> T {
        read(&self.0.borrow().synced)
    }
}

impl Storage for Disk {
    fn initial_state(&self) -> Result<RaftState, StorageError> {
        Ok(self.current(|image| RaftState {
            hard_state: image.hard_state,
            conf_state: image.checkpoint.conf_state.clone(),
        }))
    }

    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        use prost::Message;
        self.current(|image| {
            if low <= image.truncated.index {
                return Err(StorageError::Compacted);
            }
            if high > image.last_index() + 1 {
                return Err(StorageError::Unavailable);
            }
            let mut bytes = 0;
            let mut taken = Vec::new();
            for index in low..high {
                let entry = image.entry(index).ok_or(StorageError::Unavailable)?;
                bytes += entry.encoded_len() as u64;
                if bytes > max_bytes && !taken.is_empty() {
                    break;
                }
                taken.push(entry.clone());
            }
            Ok(taken)
        })
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        self.current(|image| match image.term(index) {
            Some(term) => Ok(term),
            None if index < image.truncated.index => Err(StorageError::Compacted),
            None => Err(StorageError::Unavailable),
        })
    }

    fn first_index(&self) -> Result<Index, StorageError> {
        Ok(self.current(|image| image.truncated.index + 1))
    }

    fn last_index(&self) -> Result<Index, StorageError> {
        Ok(self.current(Image::last_index))
    }

    fn snapshot(&self, request_index: Index, _to: PeerId) -> Result<Snapshot, StorageError> {
        let state = &mut *self.0.borrow_mut();
        state.snapshots_asked += 1;
        let checkpoint = &state.current.checkpoint;
        if !state.snapshots_asked.is_multiple_of(state.snapshot_every)
            || checkpoint.at.index < request_index
        {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        Ok(Snapshot {
            data: checkpoint.data.clone(),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(checkpoint.conf_state.clone()),
                index: checkpoint.at.index,
                term: checkpoint.at.term,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: std::ops::Range<Index>, term: Term) -> Batch {
        let entries = range.map(|index| Entry {
            term,
            index,
            ..Entry::default()
        });
        Batch {
            entries: entries.collect(),
            ..Batch::default()
        }
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let disk = Disk::new(ConfState::default(), 1);
        let first = disk.write(entries(1..4, 1));
        disk.sync_through(first);
        disk.write(entries(3..6, 2));
        disk.write(entries(6..9, 2));
        assert_eq!(disk.current(Image::last_index), 8);
        assert_eq!(disk.synced(Image::last_index), 3);

        disk.crash(1);
        assert_eq!(disk.current(Image::last_index), 5);
        assert_eq!(disk.term(2), Ok(1));
        assert_eq!(disk.term(3), Ok(2));
        assert_eq!(disk.unsynced_batches(), 0);
    }

    #[test]
    fn a_compacted_log_answers_at_its_truncation_point_only() {
        let disk = Disk::new(ConfState::default(), 2);
        disk.write(entries(1..10, 3));
        let at = EntryId { term: 3, index: 6 };
        let checkpoint = Checkpoint {
            at,
            ..Checkpoint::default()
        };
        disk.write(Batch {
            compact: Some((Rc::new(checkpoint), at)),
            ..Batch::default()
        });
        assert_eq!(disk.first_index(), Ok(7));
        assert_eq!(disk.term(6), Ok(3));
        assert_eq!(disk.term(5), Err(StorageError::Compacted));
        assert_eq!(disk.term(10), Err(StorageError::Unavailable));
        assert_eq!(disk.entries(6, 8, 100), Err(StorageError::Compacted));
        assert_eq!(disk.entries(7, 10, 0).map(|some| some.len()), Ok(1));
        let busy = disk.snapshot(0, 2);
        assert_eq!(busy, Err(StorageError::SnapshotTemporarilyUnavailable));
        assert!(disk.snapshot(0, 2).is_ok(), "there on the second request");
    }
}
