//! Which keys and values a benchmark uses.
//!
//! Key i lies in region i mod R. Its value is a piece of one seeded pool, chosen by i, so
//! values need no memory of their own and every reader can tell what a key must hold.
//! A server without regions has the same keys and values, in one place.
//!
//! The keys of a scan have names of their own, with the number of regions in them: between
//! two of them lies none of another run.

use super::kind::Kind;
use super::server::Server;
use crate::args::LoadArgs;
use crate::exit::Failure;
use crate::spread;
use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
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
    pub async fn new(server: &Server, kind: Kind, args: &LoadArgs) -> Result<Self, Failure> {
        let mut regions = Vec::new();
        let keys: Vec<Bytes> = match server {
            Server::Strata(client) => {
                regions = client.scheduler().all_regions().await?;
                regions.retain(|info| spread::key_in(&info.region, &name(u64::MAX)).is_some());
                if args.single_region {
                    regions.truncate(1);
                }
                let count = regions.len();
                keys_in(&regions, args.keys, |index| match kind {
                    Kind::Scan { .. } => format!("strata-bench-scan-{count:05}-{index:020}"),
                    _ => name(index),
                })?
            }
            Server::Etcd(_) => (0..args.keys).map(|index| name(index).into()).collect(),
        };
        let plan = Self::of(regions, keys, args.value_size);
        plan.check_calls(kind)?;
        Ok(plan)
    }

    /// A plan for an engine that is used without a server.
    pub fn without_regions(keys: u64, value_size: u64) -> Self {
        let keys = (0..keys).map(|index| name(index).into()).collect();
        Self::of(Vec::new(), keys, value_size)
    }

    fn of(regions: Vec<RegionInfo>, keys: Vec<Bytes>, value_size: u64) -> Self {
        let bytes = value_size as usize;
        let mut pool = vec![0; bytes + POOL_BYTES];
        ChaCha8Rng::seed_from_u64(value_size).fill_bytes(&mut pool);
        Self {
            regions: regions.into(),
            keys: keys.into(),
            pool: pool.into(),
            value_size: bytes,
            constant: false,
        }
    }

    /// Refuses calls on more keys than a region has.
    fn check_calls(&self, kind: Kind) -> Result<(), Failure> {
        let wanted = kind.keys_per_call();
        // The last place never has more keys than another.
        if self.keys_of(self.places() - 1) < wanted && wanted > 1 {
            return Err(Failure::CommandLine(format!(
                "{} keys over {} regions are too few for calls on {wanted} keys of one: give \
                 --keys {} or more, or --single-region",
                self.keys(),
                self.places(),
                wanted * self.places()
            )));
        }
        Ok(())
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

    /// Number of places that keys lie in: the regions, or one where there are none.
    pub fn places(&self) -> u64 {
        self.regions.len().max(1) as u64
    }

    /// Number of keys in one place.
    pub fn keys_of(&self, place: u64) -> u64 {
        self.keys().saturating_sub(place).div_ceil(self.places())
    }

    /// Index of key `number` of a place; they ascend in key order.
    pub fn index(&self, place: u64, number: u64) -> u64 {
        place + number * self.places()
    }

    /// Place in `regions` of the region that holds a key.
    pub fn region_place(&self, index: u64) -> usize {
        (index % self.places()) as usize
    }

    /// Bytes of a key and its value.
    pub fn pair_bytes(&self, index: u64) -> u64 {
        (self.keys[index as usize].len() + self.value_size) as u64
    }

    /// What a key must hold.
    pub fn value(&self, index: u64) -> Bytes {
        self.pool.slice(self.piece(index))
    }

    /// Whether this is what a key must hold. Takes no share in the pool, whose count of shares all
    /// threads would write to for each value.
    pub fn is_value(&self, index: u64, value: &[u8]) -> bool {
        self.pool[self.piece(index)] == *value
    }

    /// Whether these are a key and what it must hold, as [`Self::is_value`].
    pub fn is_pair(&self, index: u64, (key, value): &(Bytes, Bytes)) -> bool {
        self.keys[index as usize] == *key && self.is_value(index, value)
    }

    /// Where the value lies in the pool.
    fn piece(&self, index: u64) -> Range<usize> {
        let from = if self.constant {
            0
        } else {
            (index.wrapping_mul(STRIDE) % POOL_BYTES as u64) as usize
        };
        from..from + self.value_size
    }
}

fn keys_in(
    regions: &[RegionInfo],
    count: u64,
    name: impl Fn(u64) -> String,
) -> Result<Vec<Bytes>, Failure> {
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

#[cfg(test)]
impl Plan {
    /// A plan over as many regions without ranges of their own, for tests of what is chosen.
    pub fn of_regions(regions: usize, keys: u64, value_size: u64) -> Self {
        let info = RegionInfo {
            region: strata_proto::metapb::Region::default(),
            leader: None,
        };
        let keys = (0..keys).map(|index| name(index).into()).collect();
        Self::of(vec![info; regions], keys, value_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_from_another_one() {
        let plan = Plan::of_regions(3, 100, 8);
        for index in 0..100 {
            let pair = (plan.key(index), plan.value(index));
            assert!(plan.is_pair(index, &pair));
            let mut other = pair.1.to_vec();
            other[7] ^= 1;
            assert!(!plan.is_value(index, &other) && !plan.is_value(index, &pair.1[..7]));
            assert!(!plan.is_pair(index, &(plan.key((index + 1) % 100), pair.1)));
        }
    }

    #[test]
    fn the_places_share_all_keys() {
        for (regions, keys) in [(1, 5), (4, 103), (6, 6), (7, 3), (0, 9)] {
            let plan = Plan::of_regions(regions, keys, 8);
            let mut all: Vec<u64> = (0..plan.places())
                .flat_map(|place| (0..plan.keys_of(place)).map(move |number| (place, number)))
                .map(|(place, number)| plan.index(place, number))
                .collect();
            all.sort_unstable();
            assert!(
                all.into_iter().eq(0..keys),
                "{regions} regions, {keys} keys"
            );
        }
    }

    #[test]
    fn a_call_on_more_keys_than_a_region_has_is_refused() {
        let plan = Plan::of_regions(4, 103, 8);
        assert!(plan.check_calls(Kind::Scan { limit: 25 }).is_ok());
        let refused = plan.check_calls(Kind::Scan { limit: 26 });
        let Err(Failure::CommandLine(line)) = refused else {
            panic!("{refused:?}");
        };
        assert!(line.contains("--keys 104 "), "{line}");
        // A plan with fewer keys than regions is fine for calls on one key.
        assert!(Plan::of_regions(7, 3, 8).check_calls(Kind::Get).is_ok());
    }
}
