//! What single replicas hold.
//!
//! Each replica is asked by itself, as a replica read: it asks its leader for the read index
//! and answers when it has applied that far. Once nobody writes, all replicas of a region
//! answer the same. Nothing is tried again here: whoever compares knows how long to wait.

use crate::scheduler::{first_line, timed};
use crate::{Admin, Checksum, Error, Result, channels};
use bytes::Bytes;
use std::time::{Duration, Instant};
use strata_proto::kvrpcpb::{self, ApiVersion};
use strata_proto::metapb;
use strata_proto::tikvpb::tikv_client::TikvClient;

/// A part of one replica.
#[derive(Debug, Clone)]
pub struct ReplicaRange {
    /// The region, with the epoch that the caller knows.
    pub region: metapb::Region,
    /// The replica.
    pub peer: metapb::Peer,
    /// Which raw key space.
    pub space: ApiVersion,
    /// First key; empty: from the region's start.
    pub start: Bytes,
    /// First key behind the range; empty: up to the region's end.
    pub end: Bytes,
}

impl Admin {
    /// The sum over a part of one replica, as the store at `address` (`HOST:PORT`) has it.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when the store does not answer within `time`, does not know the
    /// region with this epoch, or finds no leader; [`Error::Refused`] for good.
    pub async fn replica_checksum(
        &self,
        address: &str,
        range: &ReplicaRange,
        time: Duration,
    ) -> Result<Checksum> {
        let began = Instant::now();
        let silent = |last: String| Error::Exhausted {
            attempts: 1,
            waited: began.elapsed(),
            last,
        };
        let address = channels::normalize(address)?;
        let mut store = TikvClient::new(self.scheduler().channels().to(&address)?);
        let request = kvrpcpb::RawChecksumRequest {
            context: Some(kvrpcpb::Context {
                region_id: range.region.id,
                region_epoch: range.region.region_epoch,
                peer: Some(range.peer),
                replica_read: true,
                api_version: range.space.into(),
                ..Default::default()
            }),
            algorithm: kvrpcpb::ChecksumAlgorithm::Crc64Xor.into(),
            ranges: vec![kvrpcpb::KeyRange {
                start_key: range.start.clone(),
                end_key: range.end.clone(),
            }],
        };
        // The store may hang without closing its connection.
        let call = tokio::time::timeout(time, store.raw_checksum(timed(request, time))).await;
        let answer = call
            .map_err(|_| silent(format!("{address}: no answer in {time:?}")))?
            .map_err(|status| silent(format!("{address}: {}", channels::describe(&status))))?
            .into_inner();
        if let Some(error) = answer.region_error {
            return Err(silent(format!("{address}: {}", first_line(&error.message))));
        }
        if !answer.error.is_empty() {
            return Err(Error::Refused {
                message: first_line(&answer.error),
            });
        }
        Ok(Checksum {
            crc64: answer.checksum,
            pairs: answer.total_kvs,
            bytes: answer.total_bytes,
        })
    }
}
