//! Which keys a check works on: a group in each of some regions.

use crate::exit::Failure;
use crate::spread::key_in;
use bytes::Bytes;
use std::sync::Arc;
use strata_client::{RawClient, RegionInfo};
use strata_proto::metapb::Region;

/// Regions that are worked on, spread over all that there are: few enough that clients meet
/// on the same keys.
const REGIONS_MAX: usize = 8;
/// Keys in a region.
const KEYS_PER_REGION: usize = 4;

/// Keys of one region, in order.
#[derive(Debug, Clone)]
pub struct Group {
    /// The keys.
    pub keys: Vec<Bytes>,
    region: Region,
}

/// The keys of a check.
#[derive(Debug, Clone)]
pub struct Plan {
    /// At least one.
    pub groups: Arc<[Group]>,
}

impl Plan {
    /// Keys that no other check uses.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn new(client: &RawClient) -> Result<Plan, Failure> {
        let run = client.scheduler().alloc_ids(1).await?;
        let regions = client.scheduler().all_regions().await?;
        let groups: Vec<Group> = regions
            .into_iter()
            .filter_map(|info| Group::in_region(info, run))
            .collect();
        let step = groups.len().div_ceil(REGIONS_MAX).max(1);
        let groups: Arc<[Group]> = groups.into_iter().step_by(step).collect();
        if groups.is_empty() {
            return Err(Failure::error(
                "the cluster has no regions; see `strata status`",
            ));
        }
        Ok(Plan { groups })
    }

    /// True if the regions have the ranges that they had when the plan was made.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn still_holds(&self, client: &RawClient) -> Result<bool, Failure> {
        let now = client.scheduler().all_regions().await?;
        Ok(self.groups.iter().all(|group| {
            let version = |region: &Region| region.region_epoch.map(|epoch| epoch.version);
            now.iter().any(|info| {
                info.region.id == group.region.id
                    && version(&info.region) == version(&group.region)
                    && info.region.start_key == group.region.start_key
                    && info.region.end_key == group.region.end_key
            })
        }))
    }
}

impl Group {
    fn in_region(info: RegionInfo, run: u64) -> Option<Group> {
        let keys = (0..KEYS_PER_REGION)
            .map(|place| key_in(&info.region, &format!("strata-check-{run}-{place}")))
            .collect::<Option<Vec<Bytes>>>()?;
        Some(Group {
            keys,
            region: info.region,
        })
    }

    /// The region that holds the keys.
    pub fn region_id(&self) -> u64 {
        self.region.id
    }

    /// The stores that had a replica of it when the plan was made.
    pub fn stores(&self) -> impl Iterator<Item = u64> {
        self.region.peers.iter().map(|peer| peer.store_id)
    }

    /// The range that holds the keys and nothing else: up to behind the last.
    pub fn range(&self) -> (Bytes, Bytes) {
        let last = &self.keys[self.keys.len() - 1];
        (self.keys[0].clone(), [last, &b"\0"[..]].concat().into())
    }
}
