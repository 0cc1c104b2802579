//! What a shard hands to an apply shard, and what comes back of it.
//!
//! Down     [`ApplyTask`]s in the order of each region: entries, with the requests that wait for
//!          them ([`Waiting`]), and what changes the region as a whole.
//! Up       [`Applied`]: how far each region is, and what has changed with it.

use std::sync::Arc;
use std::time::Duration;

use strata_proto::eraftpb::{ConfChangeV2, Entry};
use strata_proto::metapb::Region;
use strata_proto::stratapb::RaftApplyState;
use strata_raft::EntryId;
use strata_storage::WriteBatch;

use crate::error::Error;
use crate::request::{Answer, Reply};
use crate::task::ReadTask;
use crate::write_stages::WriteTimes;

/// Work for an apply shard; tasks of one region are done in order.
#[derive(Debug)]
pub enum ApplyTask {
    /// Apply entries.
    Entries(EntriesTask),
    /// A peer was created here, or takes the place of an earlier one: the apply shard takes
    /// the region over. Nothing is written.
    AddRegion {
        /// The region.
        region: Arc<Region>,
        /// Its state on disk.
        state: RaftApplyState,
    },
    /// The first batch of an install (crash rule 3), behind the region's entries. Yields
    /// [`RegionChange::InstallBegun`].
    BeginInstall {
        /// The region as the snapshot has it.
        region: Arc<Region>,
        /// Its state as the batch writes it.
        state: RaftApplyState,
        /// To be written, synced.
        batch: WriteBatch,
    },
    /// The region's tombstone (crash rule 5), after which it is forgotten. Yields
    /// [`RegionChange::Destroyed`].
    Destroy {
        /// The region.
        region_id: u64,
        /// To be written, synced.
        batch: WriteBatch,
    },
}

impl ApplyTask {
    /// The region that the task is about.
    pub fn region_id(&self) -> u64 {
        match self {
            ApplyTask::Entries(task) => task.region_id,
            ApplyTask::AddRegion { region, .. } | ApplyTask::BeginInstall { region, .. } => {
                region.id
            }
            ApplyTask::Destroy { region_id, .. } => *region_id,
        }
    }

    /// Bytes of entries, or of the batch, that the task carries.
    pub fn bytes(&self) -> usize {
        match self {
            ApplyTask::Entries(task) => task.entries.iter().map(|entry| entry.data.len()).sum(),
            ApplyTask::AddRegion { .. } => 0,
            ApplyTask::BeginInstall { batch, .. } | ApplyTask::Destroy { batch, .. } => {
                batch.approximate_bytes()
            }
        }
    }
}

/// Entries of one region to be applied, in order, with what waits for them.
#[derive(Debug)]
pub struct EntriesTask {
    /// The region.
    pub region_id: u64,
    /// Committed entries that are synced in the raft engine, without a gap.
    pub entries: Vec<Entry>,
    /// Proposals of this store at indices up to the last entry's, ascending.
    pub proposals: Vec<Proposal>,
    /// When the entries were handed over, by the driver's clock.
    pub committed: Duration,
}

/// An entry that this store proposed, with what waits for it.
#[derive(Debug)]
pub struct Proposal {
    /// Where the entry stands, if it was not overwritten.
    pub id: EntryId,
    /// What waits, in the order of the entry's commands.
    pub waiting: Vec<Waiting>,
}

/// Something that waits for an entry to be applied.
#[derive(Debug)]
pub enum Waiting {
    /// The sender of the next `commands` commands of the entry.
    Write {
        /// How many commands are its own.
        commands: usize,
        /// Takes the outcomes; `None`: the sender was told that its deadline passed.
        reply: Option<Reply>,
        /// When the sender stops waiting.
        deadline: Duration,
        /// When it passed the stages so far.
        times: WriteTimes,
    },
    /// The sender of the entry's next command, one of the system region.
    System {
        /// Takes the response; `None` as above.
        reply: Option<Reply>,
        /// When the sender stops waiting.
        deadline: Duration,
    },
    /// The sender of the entry's change of the region.
    Admin {
        /// Takes the region after the change; `None` as above.
        reply: Option<Reply>,
        /// When the sender stops waiting.
        deadline: Duration,
    },
    /// A read that needs the region's clock at the entry's.
    Clock(ReadTask),
}

impl Waiting {
    /// Answers with an error that is true of the whole entry.
    pub(crate) fn refuse(self, error: Error, out: &mut Vec<(Reply, Result<Answer, Error>)>) {
        let (reply, error) = match (self, error) {
            (
                Waiting::Write { reply, .. }
                | Waiting::System { reply, .. }
                | Waiting::Admin { reply, .. },
                error,
            ) => (reply, error),
            // A read has no outcome that could be unknown.
            (Waiting::Clock(read), Error::Undetermined { region_id, leader }) => {
                (Some(read.reply), Error::NotLeader { region_id, leader })
            }
            (Waiting::Clock(read), error) => (Some(read.reply), error),
        };
        out.extend(reply.map(|reply| (reply, Err(error))));
    }

    /// Takes the reply of a write whose sender waits no longer.
    pub(crate) fn take_late(&mut self, now: Duration) -> Option<Reply> {
        match self {
            Waiting::Write {
                reply, deadline, ..
            }
            | Waiting::System { reply, deadline }
            | Waiting::Admin { reply, deadline } => reply.take_if(|_| *deadline <= now),
            // Looks at its deadline when it is served.
            Waiting::Clock(_) => None,
        }
    }
}

/// A change of a region itself. The batch that holds it is synced before it is told
/// (crash rule 2).
#[derive(Clone, Debug, PartialEq)]
pub enum RegionChange {
    /// A conf change entry was applied, or refused.
    Conf {
        /// Index of the entry.
        index: u64,
        /// The change of the membership.
        change: ConfChangeV2,
        /// The region with the new membership; `None`: refused, nothing changed.
        region: Option<Arc<Region>>,
    },
    /// This store's peer is no member any more; its tombstone is synced.
    Removed {
        /// The region without it.
        region: Arc<Region>,
    },
    /// [`ApplyTask::BeginInstall`] is synced.
    InstallBegun,
    /// [`ApplyTask::Destroy`] is synced.
    Destroyed,
}

/// How far a region is applied; told to its shard once the batch is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The region.
    pub region_id: u64,
    /// Its apply state.
    pub state: RaftApplyState,
    /// Encoded bytes of the applied entries.
    pub entry_bytes: usize,
    /// Changes of the region, in the order of the log.
    pub changes: Vec<RegionChange>,
}
