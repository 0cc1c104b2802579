//! What a replica wants done: the effects of all inputs since the last time.
//!
//! Order of work for a [`Ready`]:
//! 1. send `messages` (they promise nothing about this replica's disk);
//! 2. write `snapshot`, `entries` and `hard_state` in one atomic batch, synced if
//!    `must_sync`;
//! 3. call `advance*`, from which on the storage must show what was written;
//! 4. once synced: `on_persist_ready`, and send `persisted_messages`;
//! 5. apply `committed_entries` in order, then `advance_apply_to`.
//!
//! With `advance_append_async` 4 follows whenever the disk is done, while further Readys are
//! taken; batches must reach the disk in the order of their numbers.

use strata_proto::eraftpb::{Entry, HardState, Message, Snapshot};

use crate::types::{Index, ReadState, SoftState};

/// Effects to be carried out by the driver. The order is in the header of the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ready {
    /// Number of this Ready, counted from 1; names it to `on_persist_ready`.
    pub number: u64,
    /// Leader and role, if they changed.
    pub soft_state: Option<SoftState>,
    /// Term, vote and commit to be saved, if they changed.
    pub hard_state: Option<HardState>,
    /// Reads that may be served once their index is applied.
    pub read_states: Vec<ReadState>,
    /// Entries to be appended to the saved log. Saved entries from the first one's index on
    /// are replaced, none of them remains behind the last one.
    pub entries: Vec<Entry>,
    /// A snapshot to be installed in place of the whole saved log, before `entries`.
    pub snapshot: Option<Snapshot>,
    /// Entries to be applied: committed, and synced in this replica's own log.
    pub committed_entries: Vec<Entry>,
    /// Messages to be sent at once, before the write.
    pub messages: Vec<Message>,
    /// Messages to be sent only when this Ready and all before it are synced: votes, asked
    /// for or given, and answers to appends and snapshots.
    pub persisted_messages: Vec<Message>,
    /// Whether the write has to be synced. False if there is nothing to write, or only a
    /// moved commit index, which may be lost.
    pub must_sync: bool,
}

impl Ready {
    /// Whether there is anything to write.
    pub fn has_write(&self) -> bool {
        self.hard_state.is_some() || !self.entries.is_empty() || self.snapshot.is_some()
    }
}

/// What has come up by advancing: more to send at once and to apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LightReady {
    /// The commit index to be saved, if it moved. It need not be synced.
    pub commit_index: Option<Index>,
    /// Entries to be applied after those of the Ready.
    pub committed_entries: Vec<Entry>,
    /// Messages to be sent at once.
    pub messages: Vec<Message>,
}
