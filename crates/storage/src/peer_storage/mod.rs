//! One replica's log and state, as raft reads it and as the engines hold it.
//!
//! Open      Hard state and log come from the raft engine, apply state from the kv engine;
//!           the start check ([`start_check`]) proves that they fit together.
//! Append    A Ready's entries and hard state go into a batch of the raft engine and at
//!           once into memory. The log writer syncs the batch later.
//! Persisted The writer's report moves the persisted index; cached entries may go.
//! Applied   The apply state comes back from apply, which wrote it with the data.
//! Read      Entries and terms from the cache, older ones from the raft engine.
//!
//! Invariants
//! * truncated <= applied <= persisted last index <= last index (crash rules 1 and 8).
//! * A batch with entries also holds the RaftLocalState that names the last of them and
//!   deletes every older entry behind it, therefore log and last index never disagree.
//! * Hard state and log on disk are read before anything is appended (crash rule 4).
//!
//! Elsewhere: making and installing snapshots (the region worker's), deletion of compacted
//! entries (the log gc worker's), what is appended (`strata-raft`), when batches are written (raftstore).

mod read;
mod snapshot;
mod start_check;

use std::cell::RefCell;
use std::collections::VecDeque;

use prost::Message;
use strata_proto::eraftpb::{ConfState, Entry, HardState};
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::{PeerState, RaftLocalState};
use strata_proto::stratapb::RaftApplyState;
use strata_raft::{EntryId, planted};

use crate::batch::WriteBatch;
use crate::engine::{Cf, Engine, Engines};
use crate::entry_cache::EntryCache;
use crate::error::Error;
use crate::keys;
use crate::region_records::{conf_state_of, read_region_state, write_raft_state};

use snapshot::SnapshotState;

/// Settings of a [`PeerStorage`].
#[derive(Clone, Copy, Debug)]
pub struct PeerStorageOptions {
    /// Bytes of entries kept in memory for each replica, beyond those that are not
    /// persisted yet.
    pub entry_cache_bytes_max: u64,
}

impl Default for PeerStorageOptions {
    fn default() -> Self {
        Self {
            entry_cache_bytes_max: 1 << 20,
        }
    }
}

/// Log and state of one replica of a region.
pub struct PeerStorage<E: Engine> {
    engines: Engines<E>,
    region: Region,
    peer_id: u64,
    hard_state: HardState,
    /// Last index of the log, written or about to be.
    last_index: u64,
    last_term: u64,
    apply_state: RaftApplyState,
    cache: EntryCache,
    /// Batches with entries that are not reported as synced: number of their Ready and
    /// their first index. Numbers ascend.
    unpersisted: VecDeque<(u64, u64)>,
    /// Encoded bytes of the log.
    log_bytes: u64,
    /// Raft asks through a shared reference, and the wish must be noted.
    snapshot: RefCell<SnapshotState>,
}

impl<E: Engine> PeerStorage<E> {
    /// Opens the replica that the kv engine knows; `None` if it knows none, or its
    /// tombstone.
    ///
    /// # Errors
    /// As [`PeerStorage::open`].
    pub fn load(
        engines: &Engines<E>,
        region_id: u64,
        peer_id: u64,
        options: &PeerStorageOptions,
    ) -> Result<Option<Self>, Error> {
        let Some(state) = read_region_state(&engines.kv, region_id)? else {
            return Ok(None);
        };
        match (state.state(), state.region) {
            (PeerState::Tombstone, _) | (_, None) => Ok(None),
            (_, Some(region)) => Self::open(engines, region, peer_id, options).map(Some),
        }
    }

    /// Opens a replica of `region`, however it is created: at a start, by a message (a
    /// region without range and peers), by a split. What the raft engine holds under the
    /// region's id is taken up, never overwritten by zeros.
    ///
    /// # Errors
    /// `StartCheck` if something is missing (crash rule 8), `CorruptRecord`,
    /// `CorruptEntry`, errors of the engines. The process must not go on with the region.
    pub fn open(
        engines: &Engines<E>,
        region: Region,
        peer_id: u64,
        options: &PeerStorageOptions,
    ) -> Result<Self, Error> {
        let checked = start_check::check(engines, region.id)?;
        Ok(Self {
            engines: engines.clone(),
            region,
            peer_id,
            hard_state: checked.hard_state,
            last_index: checked.last.index,
            last_term: checked.last.term,
            apply_state: checked.apply_state,
            cache: EntryCache::new(options.entry_cache_bytes_max),
            unpersisted: VecDeque::new(),
            log_bytes: checked.log_bytes,
            snapshot: RefCell::default(),
        })
    }

    /// The region as this replica last applied it.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Id of the region.
    pub fn region_id(&self) -> u64 {
        self.region.id
    }

    /// Id of this replica.
    pub fn peer_id(&self) -> u64 {
        self.peer_id
    }

    /// Takes over range, peers and epoch that were applied.
    ///
    /// # Panics
    /// If it is another region.
    pub fn set_region(&mut self, region: Region) {
        assert_eq!(region.id, self.region.id, "region id changed");
        self.region = region;
    }

    /// False for a replica that was created by a message and waits for a snapshot.
    pub fn is_initialized(&self) -> bool {
        !self.region.peers.is_empty()
    }

    /// Membership as of the applied index.
    pub fn conf_state(&self) -> ConfState {
        conf_state_of(&self.region)
    }

    /// The engines that this replica lives in.
    pub fn engines(&self) -> &Engines<E> {
        &self.engines
    }

    /// Term, vote and commit index as last appended.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Applied and truncated index, region clock.
    pub fn apply_state(&self) -> &RaftApplyState {
        &self.apply_state
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.apply_state.applied_index
    }

    /// Index and term of the entry before the first one of the log.
    pub fn truncated(&self) -> EntryId {
        EntryId {
            term: self.apply_state.truncated_term,
            index: self.apply_state.truncated_index,
        }
    }

    /// Index and term of the last entry, persisted or not.
    pub fn last(&self) -> EntryId {
        EntryId {
            term: self.last_term,
            index: self.last_index,
        }
    }

    /// Highest index up to which the log is synced in this node's raft engine.
    pub fn persisted_index(&self) -> u64 {
        let first = self.unpersisted.iter().map(|(_, first)| *first).min();
        first.map_or(self.last_index, |first| first - 1)
    }

    /// Bytes of entries held in memory.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Index of the first entry held in memory; `None`: there is none.
    pub fn cached_first_index(&self) -> Option<u64> {
        self.cache.first_index()
    }

    /// Adds what Ready `number` wants persisted to a batch of the raft engine, and shows
    /// it to readers from now on. Entries from the first new one on are replaced. Batches
    /// must be written in the order of their appends.
    ///
    /// # Panics
    /// On entries with a hole, before the truncated index, or that replace applied ones;
    /// on a hard state whose term or commit goes back. The raft core promises otherwise.
    pub fn append(
        &mut self,
        number: u64,
        entries: &[Entry],
        hard_state: Option<&HardState>,
        batch: &mut WriteBatch,
    ) {
        if entries.is_empty() && hard_state.is_none() {
            return;
        }
        self.append_entries(number, entries, batch);
        if let Some(new) = hard_state {
            let old = &self.hard_state;
            assert!(new.term >= old.term, "term {} -> {}", old.term, new.term);
            assert!(
                new.commit >= old.commit,
                "commit regression {} -> {}",
                old.commit,
                new.commit
            );
            self.hard_state = *new;
        }
        write_raft_state(batch, self.region.id, &self.raft_state());
    }

    /// Takes the writer's report that the batches of Ready `number` and of all before it
    /// are synced.
    pub fn on_persisted(&mut self, number: u64) {
        while self.unpersisted.front().is_some_and(|(n, _)| *n <= number) {
            self.unpersisted.pop_front();
        }
        self.cache.evict_persisted(self.persisted_index());
    }

    /// Takes over the apply state that apply has written. Entries that it truncated are
    /// freed from memory; deleting them from disk is the log worker's.
    ///
    /// # Panics
    /// If an index goes back, or applied would pass the persisted index (crash rule 1).
    pub fn set_apply_state(&mut self, new: RaftApplyState) {
        let old = &self.apply_state;
        assert!(
            new.applied_index >= old.applied_index && new.truncated_index >= old.truncated_index,
            "region {}: apply state goes back, {old:?} -> {new:?}",
            self.region.id
        );
        assert!(
            new.applied_index <= self.persisted_index() || planted!(AppliedBeforeOwnSync),
            "region {}: applied {} is above persisted {}",
            self.region.id,
            new.applied_index,
            self.persisted_index()
        );
        assert!(
            new.truncated_index <= new.applied_index,
            "region {}: truncated {} is above applied {}",
            self.region.id,
            new.truncated_index,
            new.applied_index
        );
        if !planted!(TruncatedKeptInMemory) {
            self.cache.compact_to(new.truncated_index);
        }
        let truncated = self.apply_state.truncated_index;
        let gone = new.truncated_index - truncated;
        self.shrink_log_bytes(self.last_index - truncated, gone);
        self.apply_state = new;
    }

    /// What the raft engine should hold as RaftLocalState.
    pub fn raft_state(&self) -> RaftLocalState {
        RaftLocalState {
            hard_state: Some(self.hard_state),
            last_index: self.last_index,
        }
    }

    /// Adds the removal of all records and the log of this region to batches of both
    /// engines: when it is destroyed, the caller puts the tombstone into `kv` behind
    /// this and syncs `kv` before `raft` (crash rule 5).
    pub fn clear_meta(&self, kv: &mut WriteBatch, raft: &mut WriteBatch) {
        let region_id = self.region.id;
        let (start, end) = keys::region_raft_range(region_id);
        kv.delete_range(Cf::Raft, start.clone(), end.clone());
        kv.delete(Cf::Raft, keys::region_state(region_id));
        let (session_start, session_end) = keys::session_range(region_id);
        kv.delete_range(Cf::Raft, session_start, session_end);
        raft.delete_range(Cf::RaftLog, start, end);
    }

    fn append_entries(&mut self, number: u64, entries: &[Entry], batch: &mut WriteBatch) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        let region_id = self.region.id;
        assert!(
            first.index > self.apply_state.applied_index && first.index <= self.last_index + 1,
            "region {region_id}: append at {} does not fit applied {} and last {}",
            first.index,
            self.apply_state.applied_index,
            self.last_index
        );
        for (at, entry) in entries.iter().enumerate() {
            assert_eq!(
                entry.index,
                first.index + at as u64,
                "region {region_id}: hole in appended entries"
            );
            let value = entry.encode_to_vec();
            batch.put(Cf::RaftLog, keys::raft_log(region_id, entry.index), value);
        }
        for index in last.index + 1..=self.last_index {
            batch.delete(Cf::RaftLog, keys::raft_log(region_id, index));
        }
        let truncated = self.apply_state.truncated_index;
        let replaced = self.last_index + 1 - first.index;
        self.shrink_log_bytes(self.last_index - truncated, replaced);
        self.grow_log_bytes(entries);
        self.cache.append(entries);
        self.last_index = last.index;
        self.last_term = last.term;
        self.unpersisted.push_back((number, first.index));
    }
}

impl<E: Engine> std::fmt::Debug for PeerStorage<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerStorage")
            .field("region_id", &self.region.id)
            .field("peer_id", &self.peer_id)
            .field("truncated", &self.truncated())
            .field("applied", &self.applied_index())
            .field("persisted", &self.persisted_index())
            .field("last", &self.last())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
