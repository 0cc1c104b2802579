//! What the checkers can find.

use bytes::Bytes;

use crate::linearizability;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// What clients saw has no order, or none was found in time.
    #[error("{0}")]
    History(#[from] linearizability::Fault),
    /// A write that was acknowledged cannot be in the final value.
    #[error("key \"{}\": acknowledged write is gone: {detail}", .key.escape_ascii())]
    AcknowledgedWriteLost {
        /// The key.
        key: Bytes,
        /// Which write, and what is there instead.
        detail: String,
    },
    /// Replicas that have applied the same index hold different data.
    #[error("region {region_id}: stores {first} and {second} differ at index {index}: {detail}")]
    ReplicasDiffer {
        /// The region.
        region_id: u64,
        /// One store.
        first: u64,
        /// The other store.
        second: u64,
        /// Applied index of both.
        index: u64,
        /// What differs.
        detail: String,
    },
    /// A log has a gap, is not what it may be, or two logs differ where both are committed.
    #[error("region {region_id} on store {store_id}: log: {detail}")]
    Log {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// What is wrong.
        detail: String,
    },
    /// Two peers acted as leader in one term.
    #[error("region {region_id}: peers {first} and {second} both led in term {term}")]
    TwoLeaders {
        /// The region.
        region_id: u64,
        /// The term.
        term: u64,
        /// The peer that was seen first.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// A crash left more applied than is in the raft engine (crash rule 1).
    #[error("region {region_id} on store {store_id}: applied {applied}, synced log ends at {last}")]
    AppliedBeyondLog {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// Applied index in the kv engine.
        applied: u64,
        /// Last index in the raft engine.
        last: u64,
    },
    /// A crash took back a membership that the store had shown to others (crash rule 2).
    #[error(
        "region {region_id} on store {store_id}: had shown conf_ver {shown}, starts with {found}"
    )]
    MembershipTakenBack {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// What it had shown.
        shown: u64,
        /// What it starts with; 0 if the region is not there.
        found: u64,
    },
    /// A peer voted for two candidates in a term.
    #[error("region {region_id}: peer {peer} voted for {first} and for {second} in term {term}")]
    VotedTwice {
        /// The region.
        region_id: u64,
        /// The peer that voted.
        peer: u64,
        /// The term.
        term: u64,
        /// The candidate that it voted for first.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// A leader took back what it had said is committed.
    #[error("region {region_id}: commit index of term {term} went from {from} back to {to}")]
    CommitWentBack {
        /// The region.
        region_id: u64,
        /// The leader's term.
        term: u64,
        /// What it had sent.
        from: u64,
        /// What it sent then.
        to: u64,
    },
    /// Two entries of one index and term differ, or what lies before them.
    #[error("region {region_id}: two logs differ at index {index} of term {term}")]
    LogsDiffer {
        /// The region.
        region_id: u64,
        /// Index of the entries.
        index: u64,
        /// Term of the entries.
        term: u64,
    },
    /// A leader lacks an entry that was applied in an earlier term.
    #[error(
        "region {region_id}: peer {leader} leads in term {leader_term} with an entry of term \
         {term} at index {index}, where one of term {applied} was applied"
    )]
    LeaderIncomplete {
        /// The region.
        region_id: u64,
        /// The leader.
        leader: u64,
        /// Its term.
        leader_term: u64,
        /// The index.
        index: u64,
        /// Term of the leader's entry.
        term: u64,
        /// Term of the entry that was applied.
        applied: u64,
    },
    /// Two stores applied different entries at one index.
    #[error(
        "region {region_id}: entries {first:?} and {second:?} (store, term) applied at {index}"
    )]
    AppliedDiffer {
        /// The region.
        region_id: u64,
        /// The index.
        index: u64,
        /// The first store that applied there, and the term of its entry.
        first: (u64, u64),
        /// The other one.
        second: (u64, u64),
    },
    /// A store left an index out, or applied one twice.
    #[error("region {region_id} on store {store_id}: applied {last}, then {next}")]
    AppliedOutOfOrder {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// The last index before.
        last: u64,
        /// The one that came.
        next: u64,
    },
    /// A store holds something that it should have given up.
    #[error("store {store_id} still holds {what}")]
    NotReleased {
        /// The store.
        store_id: u64,
        /// What.
        what: String,
        /// True for the files of a snapshot.
        file: bool,
    },
    /// A peer does not remember what it had said (Raft paper, figure 2).
    #[error("region {region_id} on store {store_id}: peer {peer_id} forgot: {detail}")]
    PromiseBroken {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// The peer.
        peer_id: u64,
        /// What it had said, and what it remembers.
        detail: String,
    },
    /// A leader committed what no majority has on its disks.
    #[error("region {region_id}: {index} is committed in term {term}, the voters have {disks}")]
    CommitNotHeld {
        /// The region.
        region_id: u64,
        /// Term of the leader.
        term: u64,
        /// Index of the entry.
        index: u64,
        /// What the voters have on their disks, by store.
        disks: String,
    },
    /// A leader's commit index has moved to an entry of an earlier term (Raft paper, 5.4.2).
    #[error("region {region_id}: {index} of term {entry_term} is committed in term {term}")]
    CommitOfEarlierTerm {
        /// The region.
        region_id: u64,
        /// Term of the leader.
        term: u64,
        /// Index of the entry.
        index: u64,
        /// Term of the entry.
        entry_term: u64,
    },
    /// A leader committed what a later leader may lack (Raft paper, figure 8).
    #[error(
        "region {region_id}: {index} is committed in term {term}, and store {store_id} can be \
         elected without it, the voters have {disks}"
    )]
    CommitNotSafe {
        /// The region.
        region_id: u64,
        /// Term of the leader.
        term: u64,
        /// Index of the entry.
        index: u64,
        /// The store that can be elected.
        store_id: u64,
        /// What the voters have on their disks, by store.
        disks: String,
    },
    /// A peer was elected while another one held a lease.
    #[error(
        "region {region_id}: store {leader} leads term {term} while store {holder} holds the \
         lease of term {holder_term}"
    )]
    LeaseBroken {
        /// The region.
        region_id: u64,
        /// The store with the lease.
        holder: u64,
        /// Term of the lease.
        holder_term: u64,
        /// The store that was elected.
        leader: u64,
        /// Its term.
        term: u64,
    },
    /// A peer asks for votes over a lease, and the leader of the term before has not told it to.
    #[error("region {region_id}: peer {peer_id} forces an election in term {term}")]
    ForcedElection {
        /// The region.
        region_id: u64,
        /// The peer.
        peer_id: u64,
        /// The term that it asks for.
        term: u64,
    },
    /// A read was served without what some replica had applied before it came in.
    #[error(
        "region {region_id}: store {store_id} serves a read at index {applied}, {required} was \
         applied before"
    )]
    StaleRead {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// What it had applied.
        applied: u64,
        /// What was applied somewhere when the read came in.
        required: u64,
    },
    /// A read was served although its peer was gone before, or was installing a snapshot.
    #[error("region {region_id}: store {store_id} serves a read from data that were given up")]
    ReadOfGivenUpData {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
    },
    /// A write waits behind its deadline, and may still be proposed.
    #[error("store {store_id} still holds call {call} behind its deadline")]
    KeptPastDeadline {
        /// The store.
        store_id: u64,
        /// Number of the call.
        call: u64,
    },
    /// A write was proposed behind its deadline.
    #[error("store {store_id} has proposed call {call} behind its deadline")]
    ProposedPastDeadline {
        /// The store.
        store_id: u64,
        /// Number of the call.
        call: u64,
    },
    /// The Raft core of a replica works with another membership than its region has.
    #[error("region {region_id} on store {store_id}: membership: {detail}")]
    MembershipDiffers {
        /// The region.
        region_id: u64,
        /// The store.
        store_id: u64,
        /// Both.
        detail: String,
    },
    /// A store stopped itself, or could not start from what is on its disk.
    #[error("store {store_id} stopped: {reason}")]
    StoreStopped {
        /// The store.
        store_id: u64,
        /// The line that it logged.
        reason: String,
    },
    /// With everything healed, the cluster did not come to rest in time.
    #[error("no progress: {0}")]
    NoProgress(String),
    /// A store took a request and never answered it.
    #[error("store {store_id} never answered call {call}")]
    NeverAnswered {
        /// The store.
        store_id: u64,
        /// Number of the call.
        call: u64,
    },
    /// The simulator itself could not go on.
    #[error("the run stopped: {0}")]
    RunStopped(String),
    /// A client got an answer that no correct store gives.
    #[error("unexpected answer: {0}")]
    UnexpectedAnswer(String),
}
