//! What shards ask of the store FSM, which alone changes the directory, and its answers.
//!
//! Requests of one shard are taken in order; answers go back to the region's shard.

use std::sync::Arc;

use strata_proto::metapb::{Peer, Region};
use strata_proto::raft_serverpb::RaftMessage;

use crate::shard::ShardEvent;

/// Something that concerns more than one region.
#[derive(Clone, Debug)]
pub enum StoreRequest {
    /// A snapshot has come for a peer: claim the range that it brings, against all other
    /// live regions and earlier claims. Answer: [`ShardEvent::Claimed`]. A granted claim
    /// lasts until the region's `EndClaim`, or `Destroyed`.
    Claim {
        /// The region as the snapshot has it.
        region: Region,
        /// The raft message that holds the snapshot; comes back with the answer.
        message: Box<RaftMessage>,
    },
    /// The claim of a region is needed no more: the directory has the range by a `SetRegion`
    /// before, or the snapshot was not taken. No answer.
    EndClaim {
        /// The region.
        region_id: u64,
    },
    /// The peer of a region on this store now has this range, epoch and membership. No
    /// answer.
    SetRegion {
        /// The region as it is from now on.
        region: Arc<Region>,
        /// Its peer on this store.
        peer: Peer,
    },
    /// A message for a region that the shard does not know. Answers:
    /// [`ShardEvent::UnknownSettled`], and before it, now or later, [`ShardEvent::Create`]
    /// or [`ShardEvent::Tell`] if that is what follows from it.
    Unknown {
        /// The message.
        message: Box<RaftMessage>,
    },
    /// The peer of a region is gone, with its log and its data. No answer.
    Destroyed {
        /// The region as its tombstone has it.
        region: Region,
    },
}

/// An event for one shard.
#[derive(Debug)]
pub struct StoreAnswer {
    /// The raft shard.
    pub shard: usize,
    /// What it has to take.
    pub event: ShardEvent,
}
