//! Snapshots as a replica's storage sees them: wished for, made, offered to raft; taken in
//! place of the whole log.
//!
//! ```text
//! Relaxed --raft asks--> (wish) --begin_generating--> Generating --> Generated --> Relaxed
//! any --restore--> Applying --finish_restore--> Relaxed
//! ```
//! Raft asks with [`Storage::snapshot`](strata_raft::Storage::snapshot) and is told that
//! there is none yet; the wish is noted, and whoever drives the replica has the snapshot
//! made. Raft's next attempt takes it.
//!
//! Invariant: while Applying the replica offers no snapshot and its data must not be read.

use prost::Message;
use strata_proto::eraftpb::{Entry, HardState, Snapshot};
use strata_proto::metapb::Region;
use strata_proto::stratapb::{RaftApplyState, SnapshotMeta};
use strata_raft::StorageError;

use super::PeerStorage;
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::snapshot::to_raft;

/// Where a replica stands with snapshots.
#[derive(Debug, Default)]
enum Phase {
    /// None is there and none is made.
    #[default]
    Relaxed,
    /// One is being made.
    Generating,
    /// One is there, to be sent.
    Generated(Box<SnapshotMeta>),
    /// One is being installed here.
    Applying,
}

/// Snapshot state of a replica.
#[derive(Debug, Default)]
pub(super) struct SnapshotState {
    phase: Phase,
    /// Raft has asked for one that is not there.
    wished: bool,
    /// Attempts to make one that failed since the last that did not.
    failures: u32,
}

impl SnapshotState {
    /// Answers raft.
    pub(super) fn offer(&mut self, request_index: u64, to: u64) -> Result<Snapshot, StorageError> {
        if let Phase::Generated(meta) = &self.phase {
            // One that was made before the follower joined does not know it, and the
            // follower would refuse it.
            let members = meta.region.as_ref().map(|region| &region.peers);
            let knows = members.is_some_and(|peers| peers.iter().any(|peer| peer.id == to));
            if meta.index >= request_index && knows {
                return Ok(to_raft(meta));
            }
            self.phase = Phase::Relaxed;
        }
        if matches!(self.phase, Phase::Relaxed) {
            self.wished = true;
        }
        Err(StorageError::SnapshotTemporarilyUnavailable)
    }
}

impl<E: Engine> PeerStorage<E> {
    /// True if raft has asked for a snapshot that nobody makes yet.
    pub fn wants_snapshot(&self) -> bool {
        self.snapshot.borrow().wished
    }

    /// Takes the wish: a snapshot is being made from now on.
    ///
    /// # Panics
    /// If one is being made or installed.
    pub fn begin_generating(&mut self) {
        let state = self.snapshot.get_mut();
        assert!(
            matches!(state.phase, Phase::Relaxed),
            "region {}: a snapshot is to be made in state {:?}",
            self.region.id,
            state.phase
        );
        state.wished = false;
        state.phase = Phase::Generating;
    }

    /// Takes over the snapshot that was made; `None`: it could not be made. Of no effect if
    /// one is being installed by now.
    pub fn end_generating(&mut self, made: Option<SnapshotMeta>) {
        let state = self.snapshot.get_mut();
        state.failures = match &made {
            Some(_) => 0,
            None => state.failures.saturating_add(1),
        };
        if matches!(state.phase, Phase::Generating) {
            state.phase = made.map_or(Phase::Relaxed, |meta| Phase::Generated(Box::new(meta)));
        }
    }

    /// True while one is being made.
    pub fn is_generating(&self) -> bool {
        matches!(self.snapshot.borrow().phase, Phase::Generating)
    }

    /// Attempts to make one that failed in a row.
    pub fn snapshot_failures(&self) -> u32 {
        self.snapshot.borrow().failures
    }

    /// Index of the snapshot that can be sent.
    pub fn generated_index(&self) -> Option<u64> {
        match &self.snapshot.borrow().phase {
            Phase::Generated(meta) => Some(meta.index),
            Phase::Relaxed | Phase::Generating | Phase::Applying => None,
        }
    }

    /// Description of the snapshot that can be sent.
    pub fn generated(&self) -> Option<SnapshotMeta> {
        match &self.snapshot.borrow().phase {
            Phase::Generated(meta) => Some((**meta).clone()),
            Phase::Relaxed | Phase::Generating | Phase::Applying => None,
        }
    }

    /// Lets go of the snapshot that can be sent, and of a wish for one.
    pub fn drop_generated(&mut self) {
        let state = self.snapshot.get_mut();
        state.wished = false;
        if matches!(state.phase, Phase::Generated(_)) {
            state.phase = Phase::Relaxed;
        }
    }

    /// True while a snapshot is being installed here.
    pub fn is_applying(&self) -> bool {
        matches!(self.snapshot.borrow().phase, Phase::Applying)
    }

    /// At a start: the region was found in Applying, its install is being repeated.
    pub fn resume_applying(&mut self) {
        self.snapshot.get_mut().phase = Phase::Applying;
    }

    /// Ready `number` holds a snapshot: region, log and apply state are those of the
    /// snapshot from now on, for all who read here. Entries of the same Ready follow it. The
    /// changes of the raft engine join `batch`, behind those that empty the log.
    ///
    /// # Panics
    /// If the snapshot lies at or before what is applied, if writes of the replica are
    /// under way, or if the hard state goes back.
    pub fn restore(
        &mut self,
        number: u64,
        region: Region,
        apply_state: RaftApplyState,
        hard_state: &HardState,
        entries: &[Entry],
        batch: &mut WriteBatch,
    ) {
        let region_id = self.region.id;
        assert_eq!(region.id, region_id, "region id changed");
        assert!(
            apply_state.applied_index > self.apply_state.applied_index,
            "region {region_id}: snapshot at {}, applied is {}",
            apply_state.applied_index,
            self.apply_state.applied_index
        );
        assert!(
            self.unpersisted.is_empty(),
            "region {region_id}: {} writes are under way, the next is a snapshot",
            self.unpersisted.len()
        );
        *self.snapshot.get_mut() = SnapshotState {
            phase: Phase::Applying,
            ..SnapshotState::default()
        };
        self.region = region;
        self.apply_state = apply_state;
        self.last_index = apply_state.truncated_index;
        self.last_term = apply_state.truncated_term;
        self.log_bytes = 0;
        self.cache.clear();
        // Not synced yet: the truncation point itself counts only with the batch.
        self.unpersisted.push_back((number, self.last_index));
        // A start tells by the commit index whether this batch was written.
        let hard_state = HardState {
            commit: hard_state.commit.max(self.last_index),
            ..*hard_state
        };
        self.append(number, entries, Some(&hard_state), batch);
    }

    /// Normal is synced: the data are those of the snapshot.
    pub fn finish_restore(&mut self) {
        let state = self.snapshot.get_mut();
        assert!(
            matches!(state.phase, Phase::Applying),
            "region {}: an install ended in state {:?}",
            self.region.id,
            state.phase
        );
        state.phase = Phase::Relaxed;
    }

    /// Encoded bytes of the log behind the truncation point. Exact but for what a
    /// compaction or a replaced tail took away, which is taken to be of average size.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Takes `gone` entries of `before` out of the sum of bytes.
    pub(super) fn shrink_log_bytes(&mut self, before: u64, gone: u64) {
        if let Some(kept) = before.checked_sub(gone).filter(|_| before > 0) {
            let share = u128::from(self.log_bytes) * u128::from(kept) / u128::from(before);
            self.log_bytes = share as u64;
        }
    }

    /// Adds entries to the sum of bytes.
    pub(super) fn grow_log_bytes(&mut self, entries: &[Entry]) {
        let added = entries.iter().map(|entry| entry.encoded_len() as u64);
        self.log_bytes += added.sum::<u64>();
    }
}
