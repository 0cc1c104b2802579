//! Whether all replicas of each region hold the same.
//!
//! Each replica is asked directly for a checksum over its whole region, of both raw key
//! spaces. The read is a replica read: the replica asks its leader for the read index and
//! answers when it has applied that far, so that once writers have stopped all answers are
//! of the same content. Values that expire between two answers may still make them differ
//! for a moment; so the question is asked again until all agree, or the deadline is over.

use crate::{Cluster, DEADLINE};
use bytes::Bytes;
use std::time::{Duration, Instant};
use strata_client::{Admin, Checksum, Options, RegionInfo, ReplicaRange, Scheduler};
use strata_proto::kvrpcpb::ApiVersion;

/// A store that hangs must not take the deadline of all.
const CALL_TIME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

impl Cluster {
    /// Checks that the replicas of every region on all running nodes hold the same, once
    /// writers have stopped. Returns the number of pairs over all regions.
    ///
    /// # Panics
    /// When they do not become equal in time; names regions and stores. When a region has
    /// less than two running replicas, of which nothing can be said.
    pub async fn assert_replicas_equal(&self) -> u64 {
        let stores = self.running();
        self.assert_replicas_equal_on(&stores).await
    }

    /// As [`Cluster::assert_replicas_equal`], for rows in which other stores run and may
    /// not answer.
    ///
    /// # Panics
    /// As [`Cluster::assert_replicas_equal`].
    pub async fn assert_replicas_equal_on(&self, stores: &[u64]) -> u64 {
        match self.replicas_equal_within(stores, DEADLINE).await {
            Ok(pairs) => pairs,
            Err(difference) => panic!("replicas are not equal after {DEADLINE:?}: {difference}"),
        }
    }

    /// Asks until the replicas on `stores` are equal; the number of pairs.
    ///
    /// # Errors
    /// As [`replicas_equal`].
    pub async fn replicas_equal_within(
        &self,
        stores: &[u64],
        time: Duration,
    ) -> Result<u64, String> {
        let nodes: Vec<_> = stores.iter().map(|id| (*id, self.address(*id))).collect();
        replicas_equal(&nodes, time).await
    }
}

/// Asks until the replicas on these nodes (store id, `HOST:PORT`) are equal; the number of
/// pairs over all regions.
///
/// # Errors
/// The last difference, or the last store that did not answer, when `time` is over.
///
/// # Panics
/// When a region has less than two replicas on these nodes.
pub async fn replicas_equal(nodes: &[(u64, String)], time: Duration) -> Result<u64, String> {
    let until = Instant::now() + time;
    loop {
        match compare(nodes).await {
            Ok(pairs) => return Ok(pairs),
            Err(last) if Instant::now() >= until => return Err(last),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn compare(nodes: &[(u64, String)]) -> Result<u64, String> {
    let endpoints: Vec<_> = nodes.iter().map(|(_, address)| address).collect();
    let options = Options {
        operation_timeout: CALL_TIME,
        ..Options::default()
    };
    let scheduler = Scheduler::connect(&endpoints, options).await;
    let scheduler = scheduler.map_err(|error| error.to_string())?;
    let regions = scheduler.all_regions().await;
    let regions = regions.map_err(|error| error.to_string())?;
    assert!(!regions.is_empty(), "there is no region to compare");
    let admin = Admin::new(scheduler);
    let mut pairs = 0;
    for info in &regions {
        for space in [ApiVersion::V1, ApiVersion::V2] {
            pairs += compare_region(&admin, nodes, info, space).await?;
        }
    }
    Ok(pairs)
}

/// Compares one region's replicas; the pairs that each holds.
async fn compare_region(
    admin: &Admin,
    nodes: &[(u64, String)],
    info: &RegionInfo,
    space: ApiVersion,
) -> Result<u64, String> {
    let mut sums: Vec<(u64, Checksum)> = Vec::new();
    for peer in &info.region.peers {
        let Some((store, address)) = nodes.iter().find(|(id, _)| *id == peer.store_id) else {
            continue;
        };
        let range = ReplicaRange {
            region: info.region.clone(),
            peer: *peer,
            space,
            start: Bytes::new(),
            end: Bytes::new(),
        };
        let sum = admin.replica_checksum(address, &range, CALL_TIME).await;
        let named = |reason| format!("region {} on store {store}: {reason}", info.region.id);
        sums.push((*store, sum.map_err(named)?));
    }
    assert!(
        sums.len() >= 2,
        "region {} has {} running replicas: nothing to compare",
        info.region.id,
        sums.len()
    );
    let (_, first) = sums[0];
    if sums.iter().all(|(_, sum)| *sum == first) {
        return Ok(first.pairs);
    }
    Err(format!(
        "region {}: replicas differ (store, content): {sums:?}",
        info.region.id
    ))
}
