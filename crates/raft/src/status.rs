//! A view of a replica for operators and tests.

use strata_proto::eraftpb::{ConfState, HardState};

use crate::progress::Progress;
use crate::types::{Index, PeerId, SoftState};

/// What has happened to a replica since it was made. Counts never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for votes and pre-votes that went unheard because a leader may hold a lease.
    pub votes_withheld: u64,
    /// Appends of a leader that replaced entries of an earlier one.
    pub conflicts: u64,
}

/// Copy of the state that others may look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Identity of the replica.
    pub id: PeerId,
    /// Term, vote and commit index as in memory, saved or not.
    pub hard_state: HardState,
    /// Role and leader.
    pub soft_state: SoftState,
    /// Highest index that the driver reported as applied.
    pub applied: Index,
    /// Highest index known to be synced in this replica's own log.
    pub persisted: Index,
    /// First index of the log; the one before it is the truncation point.
    pub first_index: Index,
    /// Last index of the log, synced or not.
    pub last_index: Index,
    /// Membership as applied.
    pub conf_state: ConfState,
    /// Progress of every member by id, its own included, on a leader; empty elsewhere.
    pub progress: Vec<(PeerId, Progress)>,
    /// Peer to which this leader hands over its leadership.
    pub transferee: Option<PeerId>,
}
