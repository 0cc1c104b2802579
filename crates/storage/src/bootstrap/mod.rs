//! The first state of a cluster, as a pure function of the command line.
//!
//! Every node computes the same layout on its own: cluster id, regions, their ranges,
//! peers and where they live. No node has to be asked, and none can disagree.
//!
//! Layout    [`ClusterSpec::layout`] computes all regions.
//! Write     [`write_bootstrap`] writes this store's share into both engines.
//! Admitted  [`mark_admitted`] records that all others know this folder's incarnation.
//! Identity  [`read_ident`] reads it back from both engines and compares.
//!
//! Invariants
//! * The user regions cover the whole key space without overlap, in the order of ids.
//! * All ids given out here are below [`FIRST_ALLOCATED_ID`].
//! * The kv engine's StoreIdent is written last: without it the folder counts as new,
//!   and all of this is repeated.

mod write;

use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::stratapb::StoreIdent;

use crate::memcomparable;

pub use write::{mark_admitted, read_ident, write_bootstrap};

/// The region that holds the scheduler's state; it has no range.
pub const SYSTEM_REGION_ID: u64 = 1;
/// Ids that are allocated at run time begin here.
pub const FIRST_ALLOCATED_ID: u64 = 1_000_000;
/// Index and term at which every bootstrap log begins: truncated, applied and committed.
pub const BOOTSTRAP_INDEX: u64 = 5;
/// Term of the bootstrap's hard state.
pub const BOOTSTRAP_TERM: u64 = 5;
/// Version of the layout of a data folder.
pub const FORMAT_VERSION: u32 = 2;
/// Fewest user regions: the fixed cuts alone.
pub const REGIONS_MIN: u32 = 6;
/// Most user regions.
pub const REGIONS_MAX: u32 = 10_000;

/// First peer id; above all region ids of a bootstrap, so that no two ids are equal.
const FIRST_PEER_ID: u64 = 100_000;
/// Peer ids reserved for each region.
const PEER_IDS_PER_REGION: u64 = 8;
/// Most replicas of a region.
const REPLICAS_MAX: u32 = 5;

const _: () = assert!(REGIONS_MAX as u64 + 1 < FIRST_PEER_ID);
const _: () = assert!((REPLICAS_MAX as u64) <= PEER_IDS_PER_REGION);
const _: () =
    assert!(FIRST_PEER_ID + (REGIONS_MAX as u64 + 2) * PEER_IDS_PER_REGION < FIRST_ALLOCATED_ID);

/// Keys in front of which the key space is always cut: between the APIs and keyspaces
/// that clients scan, and behind all user keys.
const FIXED_CUTS: [[u8; 4]; 5] = [
    [b'r', 0, 0, 0],
    [b'r', 0, 0, 1],
    [b'x', 0, 0, 0],
    [b'x', 0, 0, 1],
    [0xff; 4],
];

/// What makes a command line unfit for a bootstrap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No store, store 0, or one twice.
    #[error("the initial stores {0:?} must be different ids above 0, below 1000000")]
    Stores(Vec<u64>),
    /// Too few or too many regions.
    #[error("{0} regions asked for, possible are 6 to 10000")]
    Regions(u32),
    /// Not a possible number of replicas.
    #[error(
        "{replicas} replicas asked for on {stores} stores, possible are 1, 3 or 5, at most one a store"
    )]
    Replicas {
        /// Asked for.
        replicas: u32,
        /// Stores that there are.
        stores: usize,
    },
}

/// What a cluster is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    stores: Vec<u64>,
    token: String,
    regions: u32,
    replicas: u32,
}

impl ClusterSpec {
    /// Checks a command line. `stores` are the ids of the initial stores in any order.
    ///
    /// # Errors
    /// If the numbers do not fit together.
    pub fn new(
        stores: &[u64],
        token: &str,
        regions: u32,
        replicas: u32,
    ) -> Result<Self, SpecError> {
        let mut sorted = stores.to_vec();
        sorted.sort_unstable();
        let distinct = sorted.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = |id: &u64| (1..FIRST_ALLOCATED_ID).contains(id);
        if sorted.is_empty() || !distinct || !sorted.iter().all(in_range) {
            return Err(SpecError::Stores(stores.to_vec()));
        }
        if !(REGIONS_MIN..=REGIONS_MAX).contains(&regions) {
            return Err(SpecError::Regions(regions));
        }
        if !matches!(replicas, 1 | 3 | 5) || replicas as usize > sorted.len() {
            let stores = sorted.len();
            return Err(SpecError::Replicas { replicas, stores });
        }
        Ok(Self {
            stores: sorted,
            token: token.to_owned(),
            regions,
            replicas,
        })
    }

    /// Ids of the initial stores, ascending.
    #[must_use]
    pub fn stores(&self) -> &[u64] {
        &self.stores
    }

    /// The cluster's id: a hash of store ids, token, number of regions and of replicas;
    /// not of addresses, which may change. Never 0.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(self.stores.len() as u64).to_be_bytes());
        for store in &self.stores {
            bytes.extend_from_slice(&store.to_be_bytes());
        }
        bytes.extend_from_slice(&self.regions.to_be_bytes());
        bytes.extend_from_slice(&self.replicas.to_be_bytes());
        bytes.extend_from_slice(self.token.as_bytes());
        hash64(&bytes).max(1)
    }

    /// The identity of a new folder of `store_id`. `incarnation` is drawn at random by
    /// the caller. Not admitted yet.
    #[must_use]
    pub fn ident(&self, store_id: u64, incarnation: u64) -> StoreIdent {
        StoreIdent {
            cluster_id: self.cluster_id(),
            store_id,
            incarnation,
            format_version: FORMAT_VERSION,
            admitted: false,
            regions: self.regions,
            replicas: self.replicas,
            initial_stores: self.stores.clone(),
            cluster_token_hash: token_hash(&self.token),
            api_v1: 0,
        }
    }

    /// All regions of the cluster: the system region, then the user regions in key order.
    #[must_use]
    pub fn layout(&self) -> Vec<Region> {
        layout(&self.stores, self.regions, self.replicas)
    }
}

/// All regions of the cluster that an initialised folder belongs to, as it began.
///
/// # Errors
/// If the identity holds numbers that no bootstrap has.
pub fn layout_of_ident(ident: &StoreIdent) -> Result<Vec<Region>, SpecError> {
    let spec = ClusterSpec::new(&ident.initial_stores, "", ident.regions, ident.replicas)?;
    Ok(spec.layout())
}

/// The hash of a cluster token that a folder remembers.
#[must_use]
pub fn token_hash(token: &str) -> u64 {
    hash64(token.as_bytes())
}

/// Id of the replica in place `place` of a region's list: 100000 + 8 x region + place.
#[must_use]
pub fn peer_id(region_id: u64, place: usize) -> u64 {
    FIRST_PEER_ID + region_id * PEER_IDS_PER_REGION + place as u64
}

/// The replicas that the system region has: 5, 3 or 1, the largest that fits.
#[must_use]
pub fn system_replicas(stores: usize) -> usize {
    match stores {
        5.. => 5,
        3 | 4 => 3,
        _ => 1,
    }
}

fn layout(stores: &[u64], regions: u32, replicas: u32) -> Vec<Region> {
    let system = &stores[..system_replicas(stores.len())];
    let mut all = vec![region(SYSTEM_REGION_ID, Vec::new(), Vec::new(), system)];
    let mut cuts = cuts(regions);
    cuts.push(Vec::new());
    let mut start = Vec::new();
    for (id, end) in (SYSTEM_REGION_ID + 1..).zip(cuts) {
        // Region r lives on the stores r, r+1, ... counted round the list.
        let at = |place| stores[(id as usize + place) % stores.len()];
        let homes: Vec<_> = (0..replicas as usize).map(at).collect();
        all.push(region(id, start, end.clone(), &homes));
        start = end;
    }
    all
}

fn region(id: u64, start: Vec<u8>, end: Vec<u8>, stores: &[u64]) -> Region {
    let peer = |(place, store_id): (usize, &u64)| Peer {
        id: peer_id(id, place),
        store_id: *store_id,
        ..Peer::default()
    };
    Region {
        id,
        start_key: start.into(),
        end_key: end.into(),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        peers: stores.iter().enumerate().map(peer).collect(),
        ..Region::default()
    }
}

/// Boundaries between `regions` user regions, ascending: the fixed cuts and, for the
/// n = regions - 6 further ones, the encodings of the two bytes of i * 65536 / (n + 1).
/// No two are equal: a further cut encodes two bytes and a fixed one four, and with
/// n < 65536 the further cuts differ from each other.
fn cuts(regions: u32) -> Vec<Vec<u8>> {
    let further = u64::from(regions - REGIONS_MIN);
    let mut cuts: Vec<_> = FIXED_CUTS
        .iter()
        .map(|cut| memcomparable::encode(cut))
        .collect();
    for i in 1..=further {
        let at = (i * 65_536 / (further + 1)) as u16;
        cuts.push(memcomparable::encode(&at.to_be_bytes()));
    }
    cuts.sort_unstable();
    cuts
}

/// FNV-1a over 64 bits, then the finalizer of MurmurHash3: a fixed function of the bytes
/// on every machine and in every version. It tells clusters and snapshots apart; it is no
/// defence.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
