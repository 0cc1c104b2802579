//! Requests on their way through the store.
//!
//! A [`PendingRequest`] has passed the gate's checks of form and carries its reply. Once it
//! is known how it is served it becomes a [`ReadTask`], or a part of a proposal.

use std::sync::Arc;
use std::time::Duration;

use strata_proto::metapb::Region;
use strata_raft::planted;

use crate::directory::PeerView;
use crate::error::Error;
use crate::request::{Cancellation, ReadCommand, Reply, Request};

/// A request that waits to be served.
#[derive(Debug)]
pub struct PendingRequest {
    /// The request.
    pub request: Request,
    /// Takes the result.
    pub reply: Reply,
    /// Tells whether the sender still wants it.
    pub cancellation: Cancellation,
    /// Encoded size of its commands in bytes; 0 for reads.
    pub bytes: usize,
    /// When it came in.
    pub arrived: Duration,
    /// When the region's shard took it; until then the same as `arrived`.
    pub taken: Duration,
}

impl PendingRequest {
    /// Why the request must not be started any more, if so.
    pub(crate) fn given_up(&self, now: Duration) -> Option<Error> {
        // Planted: nothing is begun behind its deadline.
        let deadline = match planted!(ProposedPastDeadline) {
            true => Duration::MAX,
            false => self.request.header.deadline,
        };
        given_up(&self.cancellation, deadline, now)
    }
}

/// What a [`ReadTask`] reads.
#[derive(Clone, Debug)]
pub enum ReadBody {
    /// Raw data.
    Raw(ReadCommand),
    /// The records of the system region.
    System,
}

/// How a read may judge the expiry of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// By the region's clock alone.
    RegionClock,
    /// As above, but a value that has expired by the wall clock of this (leading) store,
    /// in milliseconds, and not by the region's clock asks for a clock entry first.
    Leader {
        /// The wall clock when the read began.
        wall_ms: u64,
    },
}

/// A read whose moment has come: the peer's applied state is new enough. It is served on
/// any engine snapshot taken from now on.
#[derive(Debug)]
pub struct ReadTask {
    /// The region to which ranges are clipped.
    pub region: Arc<Region>,
    /// The raft shard of the region.
    pub shard: usize,
    /// What to read.
    pub body: ReadBody,
    /// How expiry is judged.
    pub expiry: Expiry,
    /// Most bytes of keys and values in the answer, beyond one pair.
    pub answer_bytes_max: usize,
    /// When it is no longer wanted.
    pub deadline: Duration,
    /// Tells whether the sender still wants it.
    pub cancellation: Cancellation,
    /// What the region's peer publishes.
    pub view: Arc<PeerView>,
    /// Data epoch of the view when the read was issued.
    pub data_epoch: u64,
    /// Takes the result.
    pub reply: Reply,
}

impl ReadTask {
    /// Why what an engine snapshot holds must not be shown, if so: the region's data may
    /// have been cleared before it was taken. Asked after it was taken.
    pub(crate) fn superseded(&self) -> Option<Error> {
        // Planted: data that were let go of are not read.
        let moved = self.view.data_epoch() != self.data_epoch && !planted!(ReadWithoutSecondCheck);
        moved.then_some(Error::NotLeader {
            region_id: self.region.id,
            leader: None,
        })
    }

    /// Why the read must not be served any more, if so.
    pub(crate) fn given_up(&self, now: Duration) -> Option<Error> {
        given_up(&self.cancellation, self.deadline, now)
    }
}

fn given_up(cancellation: &Cancellation, deadline: Duration, now: Duration) -> Option<Error> {
    if cancellation.is_cancelled() {
        Some(Error::Cancelled)
    } else if deadline <= now {
        Some(Error::DeadlineExceeded)
    } else {
        None
    }
}
