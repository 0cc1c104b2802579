//! The store FSM: which regions live here, and the start of their peers.
//!
//! Start   Every region's record is read from the kv engine in the order of region ids. Its
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

use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::PeerState;
use strata_storage::{Engine, Engines, PeerStorage, PeerStorageOptions, read_all_region_states};

use crate::apply::ApplyShard;
use crate::directory::{Directory, DirectoryEntry, PeerView, SYSTEM_REGION_ID, find_peer_on};
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::peer::Peer;
use crate::shard::{Shard, apply_shard_of, shard_of};
use crate::system::SystemStateMachine;
use crate::time::Now;

/// A store cannot start from what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An engine failed, a record is damaged, or a region's start check failed.
    #[error(transparent)]
    Storage(#[from] strata_storage::Error),
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
#[derive(Debug)]
pub struct StoreFsm {
    store_id: u64,
    generation: u64,
}

/// The parts of a store after its start.
pub struct LoadedStore<E: Engine> {
    /// The raft shards with their peers.
    pub shards: Vec<Shard<E>>,
    /// The apply shards with their regions.
    pub apply_shards: Vec<ApplyShard>,
    /// The regions.
    pub directory: Directory,
}

impl StoreFsm {
    /// The FSM of a store.
    pub fn new(store_id: u64) -> Self {
        StoreFsm {
            store_id,
            generation: 0,
        }
    }

    /// Loads every region and spreads the peers over the shards.
    ///
    /// # Errors
    /// See [`LoadError`]; the process must not go on.
    pub fn load<E: Engine>(
        &mut self,
        options: &StoreOptions,
        engines: &Engines<E>,
        system: &Arc<dyn SystemStateMachine>,
        metrics: &Arc<StoreMetrics>,
        now: Now,
    ) -> Result<LoadedStore<E>, LoadError> {
        let mut shards: Vec<Shard<E>> = (0..options.raft_shards)
            .map(|index| Shard::new(index, self.store_id, options.clone(), metrics.clone()))
            .collect();
        let mut apply_shards: Vec<ApplyShard> = (0..options.apply_shards)
            .map(|_| ApplyShard::new(system.clone(), metrics.clone()))
            .collect();
        let mut entries = Vec::new();
        for region in live_regions(engines)? {
            let region = Arc::new(region);
            let (peer, entry) = self.load_peer(options, engines, &region, now)?;
            let apply_shard = &mut apply_shards[apply_shard_of(region.id, options.apply_shards)];
            apply_shard.add_region(region, *peer.apply_state());
            shards[entry.shard].add_peer(peer);
            entries.push(entry);
        }
        check_overlap(&entries)?;
        self.generation += 1;
        let directory = Directory::new(self.generation, entries);
        Ok(LoadedStore {
            shards,
            apply_shards,
            directory,
        })
    }

    fn load_peer<E: Engine>(
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
        let storage = PeerStorage::open(
            engines,
            (**region).clone(),
            own.id,
            &PeerStorageOptions::default(),
        )?;
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

fn live_regions<E: Engine>(engines: &Engines<E>) -> Result<Vec<Region>, LoadError> {
    let mut regions = Vec::new();
    for record in read_all_region_states(&engines.kv)? {
        let Some(region) = record.region.clone() else {
            continue;
        };
        match record.state() {
            PeerState::Normal => regions.push(region),
            PeerState::Tombstone => {}
            PeerState::Applying | PeerState::Merging | PeerState::Unavailable => {
                return Err(LoadError::UnknownState {
                    region_id: region.id,
                    state: record.state,
                });
            }
        }
    }
    Ok(regions)
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
