//! Which keys and values a benchmark uses.
//!
//! Key i lies in region i mod R. Its value is a piece of one seeded pool, chosen by i, so
//! values need no memory of their own and every reader can tell what a key must hold.
//! A server without regions has the same keys and values, in one place.

use super::server::Server;
use crate::args::LoadArgs;
use crate::exit::Failure;
use crate::spread;
use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_client::RegionInfo;

/// Bytes of the pool beyond one value.
const POOL_BYTES: usize = 64 << 10;
/// A prime, so that neighbouring keys take pieces far apart.
const STRIDE: u64 = 8191;

/// Keys and values; clones share them.
#[derive(Clone)]
pub struct Plan {
    /// Regions that are used, in key order; none where the server has no regions.
    pub regions: std::sync::Arc<[RegionInfo]>,
    keys: std::sync::Arc<[Bytes]>,
    pool: Bytes,
    value_size: usize,
    constant: bool,
}

impl Plan {
    /// A plan over the cluster's regions.
    ///
    /// # Errors
    /// When the regions cannot be read or none has room for a key.
    pub async fn new(server: &Server, args: &LoadArgs) -> Result<Self, Failure> {
        let mut regions = Vec::new();
        let keys = match server {
            Server::Strata(client) => {
                regions = client.scheduler().all_regions().await?;
                regions.retain(|info| spread::key_in(&info.region, &name(u64::MAX)).is_some());
                if args.single_region {
                    regions.truncate(1);
                }
                keys_in(&regions, args.keys)?
            }
            Server::Etcd(_) => (0..args.keys).map(|index| name(index).into()).collect(),
        };
        let value_size = args.value_size as usize;
        let mut pool = vec![0; value_size + POOL_BYTES];
        ChaCha8Rng::seed_from_u64(args.value_size).fill_bytes(&mut pool);
        Ok(Self {
            regions: regions.into(),
            keys: keys.into(),
            pool: pool.into(),
            value_size,
            constant: false,
        })
    }

    /// The same plan where every value is the constant that the noop server answers.
    pub fn with_constant_values(mut self) -> Self {
        self.pool = super::noop::constant(self.value_size);
        self.constant = true;
        self
    }

    /// Number of keys.
    pub fn keys(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Key number `index`.
    pub fn key(&self, index: u64) -> Bytes {
        self.keys[index as usize].clone()
    }

    /// Place in `regions` of the region that holds a key.
    pub fn region_place(&self, index: u64) -> usize {
        (index % self.regions.len().max(1) as u64) as usize
    }

    /// What a key must hold.
    pub fn value(&self, index: u64) -> Bytes {
        let from = if self.constant {
            0
        } else {
            (index.wrapping_mul(STRIDE) % POOL_BYTES as u64) as usize
        };
        self.pool.slice(from..from + self.value_size)
    }
}

fn keys_in(regions: &[RegionInfo], count: u64) -> Result<Vec<Bytes>, Failure> {
    if regions.is_empty() {
        return Err(Failure::error("the cluster has no region for keys"));
    }
    (0..count)
        .map(|index| {
            let info = &regions[(index % regions.len() as u64) as usize];
            spread::key_in(&info.region, &name(index))
                .ok_or_else(|| Failure::error("a region became too narrow for keys"))
        })
        .collect()
}

fn name(index: u64) -> String {
    format!("strata-bench-{index:020}")
}
