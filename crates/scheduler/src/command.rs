//! Commands of the scheduler's state machine as their senders build and read them.

use bytes::Bytes;
use prost::Message;
use strata_proto::metapb::{Region, Store};
use strata_proto::stratapb::{
    AllocateIds, PutStore, ReportRegion, ReserveTimestamps, SystemRequest, SystemResponse,
    system_request::Body,
};

/// Why a command had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The state machine refused it; says why.
    #[error("the scheduler refused the command: {0}")]
    Refused(String),
    /// The response does not decode.
    #[error("the scheduler's response is malformed")]
    Malformed,
}

/// The fields of a response that was not refused.
pub type Response = SystemResponse;

fn request(body: Body) -> Bytes {
    SystemRequest { body: Some(body) }.encode_to_vec().into()
}

/// Takes `count` ids; the response names the first.
pub fn allocate_ids(count: u32) -> Bytes {
    request(Body::AllocateIds(AllocateIds { count }))
}

/// Raises the timestamp mark to `until_ms`, milliseconds since 1970; the response names
/// the mark in force.
pub fn reserve_timestamps(until_ms: u64) -> Bytes {
    request(Body::ReserveTimestamps(ReserveTimestamps { until_ms }))
}

/// Records a store.
pub fn put_store(store: Store) -> Bytes {
    request(Body::PutStore(PutStore { store: Some(store) }))
}

/// Records a region whose range or peers changed.
pub fn report_region(region: Region) -> Bytes {
    request(Body::ReportRegion(ReportRegion {
        region: Some(region),
    }))
}

/// Reads the state machine's response.
///
/// # Errors
/// [`CommandError`].
pub fn read_response(bytes: Bytes) -> Result<Response, CommandError> {
    let response = SystemResponse::decode(bytes).map_err(|_| CommandError::Malformed)?;
    if response.refused.is_empty() {
        Ok(response)
    } else {
        Err(CommandError::Refused(response.refused))
    }
}
