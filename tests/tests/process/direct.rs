//! Requests to one store, with a context that the test may spoil.

use bytes::Bytes;
use strata_client::{RawClient, RegionInfo};
use strata_proto::tikvpb::tikv_client::TikvClient;
use strata_proto::{errorpb, kvrpcpb};
use strata_tests::Cluster;
use tonic::transport::Channel;

/// The storage service of a node.
pub async fn store(cluster: &Cluster, id: u64) -> TikvClient<Channel> {
    let address = format!("http://{}", cluster.address(id));
    strata_tests::eventually("a connection", || TikvClient::connect(address.clone()))
        .await
        .max_encoding_message_size(64 << 20)
}

/// Where a key lives.
pub struct Place {
    pub info: RegionInfo,
    pub store_id: u64,
    pub context: kvrpcpb::Context,
}

/// The leader of the region that holds `key`, and the right context.
pub async fn place(cluster: &Cluster, client: &RawClient, key: &[u8]) -> Place {
    let info = cluster.region_of(client, key).await;
    let leader = info.leader.expect("a leader was waited for");
    Place {
        store_id: leader.store_id,
        context: kvrpcpb::Context {
            region_id: info.region.id,
            region_epoch: info.region.region_epoch,
            peer: Some(leader),
            ..Default::default()
        },
        info,
    }
}

pub fn put(context: &kvrpcpb::Context, key: &[u8], value: &[u8]) -> kvrpcpb::RawPutRequest {
    kvrpcpb::RawPutRequest {
        context: Some(context.clone()),
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..Default::default()
    }
}

pub fn get(context: &kvrpcpb::Context, key: &[u8]) -> kvrpcpb::RawGetRequest {
    kvrpcpb::RawGetRequest {
        context: Some(context.clone()),
        key: Bytes::copy_from_slice(key),
        ..Default::default()
    }
}

/// The region error of an answer that has one.
pub fn region_error(error: Option<errorpb::Error>) -> errorpb::Error {
    error.expect("the request is refused with a region error")
}
