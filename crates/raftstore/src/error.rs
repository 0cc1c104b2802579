//! Why a request was not served, with the facts that its sender needs to go on.

use bytes::Bytes;
use strata_proto::metapb::{Peer, Region};

/// Answer to a request that was not served.
///
/// Every variant but [`Error::Undetermined`] promises that the request has had no effect
/// and never will have one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Another replica leads, or none does. The client asks there, or the scheduler.
    #[error("region {region_id}: this peer is not the leader, the leader is {leader:?}")]
    NotLeader {
        /// Region that was addressed.
        region_id: u64,
        /// Leader that this peer knows; `None`: no leader is known.
        leader: Option<Peer>,
    },
    /// No peer of the region lives on this store, or the region is not for clients.
    #[error("region {region_id} is not on this store")]
    RegionNotFound {
        /// Region that was addressed.
        region_id: u64,
    },
    /// The key lies outside the region.
    #[error("the key is not in region {region_id}")]
    KeyNotInRegion {
        /// Key as the client sent it.
        key: Bytes,
        /// Region that was addressed.
        region_id: u64,
        /// First boundary of the region, as it is compared.
        start_key: Bytes,
        /// Exclusive last boundary of the region; empty: unbounded.
        end_key: Bytes,
    },
    /// The region changed since the client looked it up; the present regions come along.
    #[error("region {region_id}: the epoch does not match")]
    EpochNotMatch {
        /// Region that was addressed.
        region_id: u64,
        /// Regions of this store that now hold its range, the addressed one first.
        current: Vec<Region>,
    },
    /// The sender's term is too old, or another entry was committed in the place of this
    /// one: the command was not executed. The client repeats it.
    #[error("region {region_id}: the command is stale")]
    StaleCommand {
        /// Region that was addressed.
        region_id: u64,
    },
    /// The request was meant for another store.
    #[error("the request is for store {requested}, this is store {actual}")]
    StoreNotMatch {
        /// Store named by the request.
        requested: u64,
        /// This store.
        actual: u64,
    },
    /// The request was meant for another peer of the region.
    #[error("the request is for peer {requested}, this is peer {actual}")]
    MismatchPeerId {
        /// Peer named by the request.
        requested: u64,
        /// Peer of the region on this store.
        actual: u64,
    },
    /// There was no room for the request while it could wait.
    #[error("the server is busy: {reason}")]
    ServerIsBusy {
        /// What was full.
        reason: &'static str,
        /// When it makes sense to try again, in milliseconds.
        backoff_ms: u64,
    },
    /// The command alone is larger than an entry may be.
    #[error(
        "region {region_id}: an entry of {entry_bytes} bytes is above the limit of {limit_bytes}"
    )]
    RaftEntryTooLarge {
        /// Region that was addressed.
        region_id: u64,
        /// Encoded size of the entry.
        entry_bytes: u64,
        /// Largest size that is allowed.
        limit_bytes: u64,
    },
    /// The pairs that a read asks for are more than an answer may hold. The client asks for
    /// fewer rows or keys. The protocol has no region error of its own for it: on the wire
    /// it is RaftEntryTooLarge, which published clients report at once and do not repeat.
    #[error(
        "region {region_id}: the answer is larger than {limit_bytes} bytes \
         (store.max-answer-size): ask for fewer rows or keys at once"
    )]
    AnswerTooLarge {
        /// Region that was addressed.
        region_id: u64,
        /// Largest answer that is allowed.
        limit_bytes: u64,
    },
    /// The leader is new and has not committed an entry of its term yet.
    #[error("region {region_id}: no read index yet")]
    ReadIndexNotReady {
        /// Region that was addressed.
        region_id: u64,
    },
    /// The disk is nearly full; writes are refused, reads and deletes go on.
    #[error(
        "the disk of store {store_id} is nearly full: deletes and reads go on, writes again when \
         there is room"
    )]
    DiskFull {
        /// This store.
        store_id: u64,
    },
    /// The deadline passed before the request was proposed or read.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The sender gave the request up before it was proposed or read.
    #[error("the request was cancelled")]
    Cancelled,
    /// The write was proposed and this store cannot tell whether it takes effect: it lost
    /// the leadership, it stops, or the deadline passed first. It may be executed later. On the
    /// wire: NotLeader where the leader is another peer, else a retryable error.
    #[error("region {region_id}: the outcome of the write is not known")]
    Undetermined {
        /// Region that was addressed.
        region_id: u64,
        /// Leader that this peer knows.
        leader: Option<Peer>,
    },
    /// The request can never be served.
    #[error("{0}")]
    Invalid(#[from] InvalidRequest),
    /// The store is stopping, or an engine failed.
    #[error("the store stops: {0}")]
    Stopping(String),
}

/// What is wrong with a request that can never be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A key must hold at least one byte.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is longer than the store allows.
    #[error("a key of {bytes} bytes is above the limit of {limit_bytes}")]
    KeyTooLarge {
        /// Length of the key.
        bytes: usize,
        /// Largest length that is allowed.
        limit_bytes: usize,
    },
    /// The end of a range lies before its start.
    #[error("the end of the range lies before its start")]
    RangeInverted,
    /// A key of API v2 is shorter than mode and keyspace, or of another mode.
    #[error("the key is not of the form that API v2 demands")]
    NotAVersion2Key,
    /// A session's id is 20 bytes.
    #[error("a session id of {bytes} bytes, it has 20")]
    MalformedSession {
        /// Length of what was given.
        bytes: usize,
    },
    /// Sequence numbers begin with 1.
    #[error("sequence number 0, they begin with 1")]
    SequenceZero,
    /// A session cannot be opened within a session.
    #[error("the command cannot belong to a session")]
    NotForSessions,
    /// The time to live ends beyond all clocks.
    #[error("a time to live of {seconds} s is above the limit of {limit_seconds} s")]
    TtlTooLong {
        /// What was asked for.
        seconds: u64,
        /// Longest that is allowed.
        limit_seconds: u64,
    },
    /// A write without any command, or a command without a body.
    #[error("the request holds no command")]
    NoCommand,
    /// A command of the scheduler's state machine outside region 1, or a command of
    /// clients within it.
    #[error("the command does not belong to this region")]
    WrongKindOfRegion,
    /// The store that shall lead holds no voter of the region.
    #[error("store {store_id} holds no voter of region {region_id}")]
    NoVoterOnStore {
        /// Region that was addressed.
        region_id: u64,
        /// Store that was named.
        store_id: u64,
    },
    /// The region's peers cannot be changed in this way.
    #[error("region {region_id}: {fault}")]
    PeerChange {
        /// Region that was addressed.
        region_id: u64,
        /// What is wrong.
        fault: PeerChangeFault,
    },
}

/// Why the peers of a region cannot be changed as a request asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerChangeFault {
    /// The request names no change.
    #[error("no change of peers is named")]
    NoChange,
    /// The request names more changes than are made at one time.
    #[error("{changes} changes of peers are above the limit of {limit}")]
    TooMany {
        /// Changes named.
        changes: usize,
        /// Most that are allowed.
        limit: usize,
    },
    /// A peer without id or without store.
    #[error("a change names no peer id or no store")]
    NoId,
    /// A peer, or a store, stands in two changes of one request.
    #[error("peer {peer_id} or its store is named twice")]
    NamedTwice {
        /// Peer of the second change.
        peer_id: u64,
    },
    /// The last change of several peers has not ended.
    #[error("the region is in a joint membership")]
    AlreadyJoint,
    /// There is no joint membership to leave.
    #[error("the region is in no joint membership")]
    NotJoint,
    /// The store holds another peer of the region; it has to go first.
    #[error("store {store_id} holds peer {peer_id} of the region")]
    OtherPeerOnStore {
        /// Store named.
        store_id: u64,
        /// Its peer.
        peer_id: u64,
    },
    /// The peer lives on another store than the one named.
    #[error("peer {peer_id} is on store {store_id}")]
    OtherStore {
        /// Peer named.
        peer_id: u64,
        /// Its store.
        store_id: u64,
    },
    /// The region has no such peer.
    #[error("the region has no peer {peer_id}")]
    NoSuchPeer {
        /// Peer named.
        peer_id: u64,
    },
    /// The peer has the role already.
    #[error("peer {peer_id} has this role already")]
    NothingToDo {
        /// Peer named.
        peer_id: u64,
    },
    /// Of several changes one removes a voter: it has to become a learner with them, and
    /// is removed afterwards.
    #[error("voter {peer_id} cannot be removed among several changes; make it a learner first")]
    VoterRemovedInJoint {
        /// Peer named.
        peer_id: u64,
    },
    /// Several changes none of which concerns a voter; they are made one by one.
    #[error("several changes of learners alone are made one at a time")]
    OnlyLearners,
    /// No voter would be left.
    #[error("no voter would be left")]
    NoVoterLeft,
    /// The leader itself would go in one step. It hands its leadership over first, or
    /// becomes a learner in a joint change.
    #[error("peer {peer_id} leads; hand its leadership over first")]
    Leads {
        /// The leader.
        peer_id: u64,
    },
}
