//! Whether all replicas of each region hold the same.
//!
//! Each replica is asked directly for a checksum over its whole region, of both raw key
//! spaces. The read is a replica read: the replica asks its leader for the read index and
//! answers when it has applied that far, so that once writers have stopped all answers are
//! of the same content. Values that expire between two answers may still make them differ
//! for a moment; so the question is asked again until all agree, or the deadline is over.

use crate::{Cluster, DEADLINE};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use strata_client::{Options, RegionInfo, Scheduler};
use strata_proto::kvrpcpb::{self, ApiVersion};
use strata_proto::metapb::Peer;
use strata_proto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;

/// A store that hangs must not take the deadline of all.
const CALL_TIME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// What one replica holds of one key space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum {
    crc64: u64,
    pairs: u64,
    bytes: u64,
}

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
    let mut connections = BTreeMap::new();
    for (id, address) in nodes {
        let connection = TikvClient::connect(format!("http://{address}")).await;
        connections.insert(*id, connection.map_err(|error| error.to_string())?);
    }
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
    let mut pairs = 0;
    for info in &regions {
        for space in [ApiVersion::V1, ApiVersion::V2] {
            pairs += compare_region(&mut connections, info, space).await?;
        }
    }
    Ok(pairs)
}

/// Compares one region's replicas; the pairs that each holds.
async fn compare_region(
    connections: &mut BTreeMap<u64, TikvClient<Channel>>,
    info: &RegionInfo,
    space: ApiVersion,
) -> Result<u64, String> {
    let mut sums = Vec::new();
    for peer in &info.region.peers {
        if let Some(store) = connections.get_mut(&peer.store_id) {
            let sum = ask(store, info, *peer, space).await;
            let named = |reason| {
                format!(
                    "region {} on store {}: {reason}",
                    info.region.id, peer.store_id
                )
            };
            sums.push((peer.store_id, sum.map_err(named)?));
        }
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

async fn ask(
    store: &mut TikvClient<Channel>,
    info: &RegionInfo,
    peer: Peer,
    space: ApiVersion,
) -> Result<Sum, String> {
    let mut request = tonic::Request::new(kvrpcpb::RawChecksumRequest {
        context: Some(kvrpcpb::Context {
            region_id: info.region.id,
            region_epoch: info.region.region_epoch,
            peer: Some(peer),
            replica_read: true,
            api_version: space.into(),
            ..Default::default()
        }),
        algorithm: kvrpcpb::ChecksumAlgorithm::Crc64Xor.into(),
        // No bounds: the store takes those of the region.
        ranges: vec![kvrpcpb::KeyRange::default()],
    });
    request.set_timeout(CALL_TIME);
    let answer = store.raw_checksum(request).await;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    if let Some(error) = answer.region_error {
        return Err(format!("{error:?}"));
    }
    if !answer.error.is_empty() {
        return Err(answer.error);
    }
    Ok(Sum {
        crc64: answer.checksum,
        pairs: answer.total_kvs,
        bytes: answer.total_bytes,
    })
}
