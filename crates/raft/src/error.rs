//! What a call on a raw node can refuse, and why.
//!
//! Every error leaves the node as it was, but for a message that is refused for what it
//! holds: its term counts all the same. Refusals of messages are there to be counted by the
//! driver; none of them asks for more than dropping the message.

use std::time::Duration;

use crate::storage::StorageError;
use crate::types::{Index, PeerId, Term};

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This replica does not lead; followers never forward proposals. Try at `leader`.
    #[error("not the leader, leader is {leader:?}")]
    NotLeader {
        /// The leader as far as known here.
        leader: Option<PeerId>,
    },
    /// The leader takes no proposal at the moment: it hands over its leadership, or the
    /// uncommitted entries have reached their limit. Try again later.
    #[error("proposal dropped")]
    ProposalDropped,
    /// A membership change is proposed and not yet applied here. Try again once it is.
    #[error("the membership change at index {index} is not applied yet")]
    ConfChangePending {
        /// Index that has to be applied first.
        index: Index,
    },
    /// The membership change does not fit the present membership.
    #[error("membership change refused: {0}")]
    ConfChange(#[from] ConfChangeError),
    /// A leader that has not committed an entry of its own term does not know the commit
    /// index (Raft paper, section 8). Try again later.
    #[error("no entry of term {term} is committed yet")]
    ReadNotReady {
        /// The leader's term.
        term: Term,
    },
    /// More reads wait for their round than the leader keeps.
    #[error("too many reads wait")]
    TooManyReads,
    /// An election now could break a promise: this replica has heard from a leader, or has
    /// started, less than one election timeout ago.
    #[error("no campaign before {until:?}")]
    CampaignTooEarly {
        /// Driver time from which on a campaign is allowed.
        until: Duration,
    },
    /// This replica cannot lead: it is no voter, or committed membership changes are not
    /// applied yet, or a snapshot is not installed yet.
    #[error("this replica cannot campaign")]
    NotPromotable,
    /// A message of a kind that never travels between replicas.
    #[error("message type {msg_type} is local")]
    LocalMessage {
        /// The number of the type.
        msg_type: i32,
    },
    /// An answer from a peer that is no member of the group.
    #[error("answer from peer {from}, which is no member")]
    UnknownPeer {
        /// The sender named in the message.
        from: PeerId,
    },
    /// A message that no correct replica sends.
    #[error("malformed message from peer {from}: {reason}")]
    Malformed {
        /// The sender named in the message.
        from: PeerId,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration contradicts itself.
    #[error("invalid configuration: {0}")]
    InvalidConfig(&'static str),
    /// What the storage holds contradicts itself; the replica must not start from it.
    #[error("the stored state is inconsistent: {0}")]
    CorruptState(String),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a membership change was refused. The membership is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfChangeError {
    /// Peer id 0, or an unknown kind of change.
    #[error("change {position} names no valid peer or kind")]
    Invalid {
        /// Which of the changes, counted from 0.
        position: usize,
    },
    /// The change would leave no voter.
    #[error("no voter would remain")]
    NoVoters,
    /// A second joint membership cannot be entered before the first is left.
    #[error("the membership is already joint")]
    AlreadyJoint,
    /// There is no joint membership to leave.
    #[error("the membership is not joint")]
    NotJoint,
    /// A stored or received conf state names a peer in two parts that exclude each other,
    /// or names no voter.
    #[error("the conf state contradicts itself")]
    InvalidConfState,
    /// The membership is not known: a replica without one waits for a snapshot.
    #[error("the membership is unknown")]
    UnknownMembership,
    /// A snapshot that holds the membership with this change in it came in after the entry
    /// was handed out: there is nothing left to do. (A driver reports a snapshot as applied
    /// before it applies what follows it, so a change behind the snapshot never gets this.)
    #[error("a snapshot has replaced the log")]
    CoveredBySnapshot,
    /// The entry's data cannot be decoded.
    #[error("the entry holds no membership change")]
    Undecodable,
}
