//! The store FSM: which regions live here, and the start of their peers.
//!
//! Start   A destroy that was cut off is finished. Every region's record is read from the kv engine in the order of region ids. Its
//!         replica is opened over both engines, which checks that nothing is missing
//!         (crash rule 8). A store whose state breaks a rule does not start.
//! Spread  Each region's peer goes to a raft shard, its apply state to an apply shard, its
//!         entry into the directory.
//!
//! Invariants
//! * No two regions of the directory overlap.
//! * A region is in the directory if and only if a shard owns its peer.
//!
//! Elsewhere: what the bootstrap writes into an empty store (`strata_storage`).

use std::sync::Arc;

use strata_proto::metapb::{Peer as PeerRecord, Region};
use strata_proto::raft_serverpb::PeerState;
use strata_storage::snapshot::{SnapshotEngine, SnapshotError, SnapshotManager, recover_install};
use strata_storage::{
    Durability, Engine, Engines, PeerStorage, PeerStorageOptions, keys, read_all_region_states,
    read_apply_state,
};

use crate::apply::ApplyShard;
use crate::claim::Claims;
use crate::create::Creations;
use crate::destroy::finish_destroy;
use crate::directory::{
    Directory, DirectoryCell, DirectoryEntry, PeerView, SYSTEM_REGION_ID, find_peer_on,
};
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::peer::Peer;
use crate::shard::{Shard, ShardEvent, apply_shard_of, shard_of};
use crate::store_request::{StoreAnswer, StoreRequest};
use crate::system::SystemStateMachine;
use crate::time::Now;

/// A store cannot start from what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An engine failed, a record is damaged, or a region's start check failed.
    #[error(transparent)]
    Storage(#[from] strata_storage::Error),
    /// An install that was cut off cannot be repeated.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A region's Raft state contradicts itself.
    #[error("region {region_id}: {error}")]
    Raft {
        /// The region.
        region_id: u64,
        /// What does not fit.
        error: strata_raft::Error,
    },
    /// A region's record names no peer on this store.
    #[error("region {region_id} has no peer on store {store_id}")]
    NoPeerHere {
        /// The region.
        region_id: u64,
        /// This store.
        store_id: u64,
    },
    /// Two regions cover the same keys.
    #[error("regions {first} and {second} overlap")]
    Overlap {
        /// The region with the lower start.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// A region is in a state that this version does not know.
    #[error("region {region_id} is in state {state}, which needs a newer version")]
    UnknownState {
        /// The region.
        region_id: u64,
        /// Number of the state.
        state: i32,
    },
}

/// Knows the regions of a store and creates their peers.
pub struct StoreFsm<E: SnapshotEngine> {
    store_id: u64,
    raft_shards: usize,
    directory: Arc<DirectoryCell>,
    claims: Claims<E::Files>,
    creations: Creations,
}

/// The parts of a store after its start.
pub struct LoadedStore<E: Engine> {
    /// The raft shards with their peers.
    pub shards: Vec<Shard<E>>,
    /// The apply shards with their regions.
    pub apply_shards: Vec<ApplyShard>,
    /// The regions.
    pub directory: Arc<DirectoryCell>,
}

impl<E: SnapshotEngine> StoreFsm<E> {
    /// The FSM of a store, whose snapshot files `snapshots` holds.
    pub fn new(store_id: u64, snapshots: SnapshotManager<E::Files>) -> Self {
        StoreFsm {
            store_id,
            raft_shards: 1,
            directory: Arc::default(),
            claims: Claims::new(snapshots),
            creations: Creations::new(store_id, &StoreOptions::default(), Arc::default()),
        }
    }

    /// Takes a request and returns its answers.
    pub fn handle(&mut self, now: Now, request: StoreRequest) -> Vec<StoreAnswer> {
        match request {
            StoreRequest::Claim { message, .. } => {
                let result = self.claims.claim(&self.directory.load(), &message);
                vec![StoreAnswer {
                    shard: shard_of(message.region_id, self.raft_shards),
                    event: ShardEvent::Claimed { message, result },
                }]
            }
            StoreRequest::EndClaim { region_id } => {
                self.claims.release(region_id);
                Vec::new()
            }
            StoreRequest::SetRegion { region, peer } => {
                if !self.set_region(region, peer) {
                    return Vec::new();
                }
                self.creations.retry_held(now, &self.directory.load())
            }
            StoreRequest::Unknown { message } => {
                let directory = self.directory.load();
                let answers = self.creations.on_unknown(now, &directory, message);
                self.publish_creating(&directory);
                answers
            }
            StoreRequest::Destroyed { region } => {
                self.claims.release(region.id);
                let directory = self.directory.load();
                let next = directory.without(directory.generation + 1, region.id);
                self.directory.swap(next);
                self.creations.bury(region);
                let directory = self.directory.load();
                let answers = self.creations.retry_held(now, &directory);
                self.publish_creating(&directory);
                answers
            }
        }
    }

    /// Shows others which peers wait for their first snapshot, if that has changed.
    fn publish_creating(&self, directory: &Directory) {
        let creating = self.creations.creating();
        if directory.creating != creating {
            let next = directory.with_creating(directory.generation + 1, creating);
            self.directory.swap(next);
        }
    }

    /// Puts a region of the directory in its new form, or a peer that was created in its
    /// place. What does not change makes no new directory. Returns whether the ranges may
    /// have changed.
    fn set_region(&mut self, region: Arc<Region>, peer: PeerRecord) -> bool {
        let directory = self.directory.load();
        let old = directory.get(region.id);
        if old.is_some_and(|old| old.region == region && old.peer == peer)
            || region.peers.is_empty()
        {
            return false;
        }
        let view = match old {
            Some(old) => old.view.clone(),
            None => match self.creations.take_view(region.id) {
                Some(view) => view,
                None => return false,
            },
        };
        let same_range = old.is_some_and(|old| {
            (&old.region.start_key, &old.region.end_key) == (&region.start_key, &region.end_key)
        });
        let overlapping = directory
            .iter()
            .map(|entry| &*entry.region)
            .chain(self.claims.regions())
            .find(|other| other.id != region.id && overlap(&region, other))
            .map(|other| other.id);
        assert_eq!(
            overlapping, None,
            "region {}: its new range overlaps that of another region",
            region.id
        );
        let entry = DirectoryEntry {
            shard: shard_of(region.id, self.raft_shards),
            region,
            peer,
            view,
        };
        let next = directory.with(directory.generation + 1, entry);
        self.directory.swap(next);
        !same_range
    }

    /// Loads every region and spreads the peers over the shards.
    ///
    /// # Errors
    /// See [`LoadError`]; the process must not go on.
    pub fn load(
        &mut self,
        options: &StoreOptions,
        engines: &Engines<E>,
        system: &Arc<dyn SystemStateMachine>,
        metrics: &Arc<StoreMetrics>,
        now: Now,
    ) -> Result<LoadedStore<E>, LoadError> {
        let mut shards: Vec<Shard<E>> = (0..options.raft_shards)
            .map(|index| {
                let (options, engines) = (options.clone(), engines.clone());
                Shard::new(index, self.store_id, options, engines, metrics.clone())
            })
            .collect();
        let mut apply_shards: Vec<ApplyShard> = (0..options.apply_shards)
            .map(|_| {
                ApplyShard::new(
                    self.store_id,
                    options.max_apply_batch_bytes,
                    system.clone(),
                    metrics.clone(),
                )
            })
            .collect();
        let mut entries = Vec::new();
        self.creations = Creations::new(self.store_id, options, metrics.clone());
        let (live, tombstones) = regions_on_disk(engines)?;
        for region in tombstones {
            if read_apply_state(&engines.kv, region.id)?.is_some() {
                finish_destroy(engines, &region, &live).map_err(strata_storage::Error::from)?;
            }
            self.creations.bury(region);
        }
        for region in live {
            let region = Arc::new(region);
            let (peer, entry) = self.load_peer(options, engines, &region, now)?;
            let apply_shard = &mut apply_shards[apply_shard_of(region.id, options.apply_shards)];
            apply_shard.add_region(region, *peer.apply_state());
            shards[entry.shard].add_peer(peer);
            entries.push(entry);
        }
        check_overlap(&entries)?;
        self.raft_shards = options.raft_shards;
        self.directory.swap(Directory::new(1, entries));
        Ok(LoadedStore {
            shards,
            apply_shards,
            directory: self.directory.clone(),
        })
    }

    fn load_peer(
        &self,
        options: &StoreOptions,
        engines: &Engines<E>,
        region: &Arc<Region>,
        now: Now,
    ) -> Result<(Peer<E>, DirectoryEntry), LoadError> {
        let region_id = region.id;
        let own = find_peer_on(region, self.store_id).ok_or(LoadError::NoPeerHere {
            region_id,
            store_id: self.store_id,
        })?;
        // Crash rule 3: before the log is looked at, an install that was cut off between its
        // two batches repeats the second.
        let recovered = recover_install(engines, region_id)?;
        if let Some(batch) = recovered.as_ref().and_then(|found| found.raft.as_ref()) {
            engines
                .raft
                .write(batch, Durability::Synced)
                .map_err(strata_storage::Error::from)?;
        }
        let mut storage = PeerStorage::open(
            engines,
            (**region).clone(),
            own.id,
            &PeerStorageOptions::default(),
        )?;
        if recovered.is_some() {
            storage.resume_applying();
        }
        let view = Arc::new(PeerView::default());
        let peer = Peer::new(options, region.clone(), *own, storage, view.clone(), now)
            .map_err(|error| LoadError::Raft { region_id, error })?;
        let entry = DirectoryEntry {
            region: region.clone(),
            peer: *own,
            shard: shard_of(region_id, options.raft_shards),
            view,
        };
        Ok((peer, entry))
    }
}

/// The regions of live peers, and those of tombstones.
fn regions_on_disk<E: Engine>(
    engines: &Engines<E>,
) -> Result<(Vec<Region>, Vec<Region>), LoadError> {
    let (mut regions, mut tombstones) = (Vec::new(), Vec::new());
    for record in read_all_region_states(&engines.kv)? {
        let Some(region) = record.region.clone() else {
            continue;
        };
        match record.state() {
            PeerState::Normal | PeerState::Applying => regions.push(region),
            PeerState::Tombstone => tombstones.push(region),
            PeerState::Merging | PeerState::Unavailable => {
                return Err(LoadError::UnknownState {
                    region_id: region.id,
                    state: record.state,
                });
            }
        }
    }
    Ok((regions, tombstones))
}

/// True if two regions with ranges have keys in common.
fn overlap(one: &Region, other: &Region) -> bool {
    let ranged = |region: &Region| region.id != SYSTEM_REGION_ID && !region.peers.is_empty();
    let data = |region: &Region| keys::data_range(&region.start_key, &region.end_key);
    let (a, b) = (data(one), data(other));
    ranged(one) && ranged(other) && a.0 < b.1 && b.0 < a.1
}

fn check_overlap(entries: &[DirectoryEntry]) -> Result<(), LoadError> {
    let mut regions: Vec<&Region> = entries
        .iter()
        .map(|entry| &*entry.region)
        .filter(|region| region.id != SYSTEM_REGION_ID)
        .collect();
    regions.sort_by(|a, b| a.start_key.cmp(&b.start_key));
    for pair in regions.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.end_key.is_empty() || first.end_key > second.start_key {
            return Err(LoadError::Overlap {
                first: first.id,
                second: second.id,
            });
        }
    }
    Ok(())
}
