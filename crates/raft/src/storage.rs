//! What the core reads from the place where its log is kept.
//!
//! The core never writes: a Ready says what is to be written. The storage shows the written
//! entries from the moment `advance*` is called, whether or not they are synced yet; the
//! log's own view (`RaftLog`) lays what has not been handed out over it.
//!
//! The entry before the first one, at `first_index - 1`, is known by term only: it is the
//! truncation point, up to which the log was compacted or replaced by a snapshot.

use strata_proto::eraftpb::{ConfState, Entry, HardState, Snapshot};

use crate::types::{Index, PeerId, Term};

/// The state that a replica starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RaftState {
    /// Term, vote and commit index as last saved; zeroes if never.
    pub hard_state: HardState,
    /// Membership as of the applied index.
    pub conf_state: ConfState,
}

/// Reads of a replica's saved log and state.
pub trait Storage {
    /// Hard state and membership at the start.
    fn initial_state(&self) -> Result<RaftState, StorageError>;

    /// Entries in `[low, high)`, as many from the beginning as fit into `max_bytes`
    /// (counted by [`entry_bytes`](crate::entry_bytes)), at least one if the range is not
    /// empty. `Compacted` if `low < first_index`; `Unavailable` if `high > last_index + 1`.
    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;

    /// Term of the entry at `index`, for `first_index - 1 ..= last_index`. `Compacted`
    /// before, `Unavailable` behind.
    fn term(&self, index: Index) -> Result<Term, StorageError>;

    /// Index of the first entry that can be read; one past the truncation point.
    fn first_index(&self) -> Result<Index, StorageError>;

    /// Index of the last entry; the truncation point if there is none.
    fn last_index(&self) -> Result<Index, StorageError>;

    /// A snapshot of the state machine for the follower `to`. One below `request_index` is
    /// of no use to it. A snapshot that is still being made is reported as
    /// `SnapshotTemporarilyUnavailable`: the leader gives up this round and asks again.
    fn snapshot(&self, request_index: Index, to: PeerId) -> Result<Snapshot, StorageError>;
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The entries asked for were compacted.
    #[error("the entries are compacted")]
    Compacted,
    /// The entries asked for are not there yet.
    #[error("the entries are not available")]
    Unavailable,
    /// The snapshot is being made. Ask again later.
    #[error("the snapshot is not available yet")]
    SnapshotTemporarilyUnavailable,
    /// The storage failed. Where the core cannot go on without the answer it panics, so
    /// that the driver stops the process.
    #[error("storage: {0}")]
    Other(String),
}
