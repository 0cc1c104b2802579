//! Faults that are built in on purpose, to see whether the checkers find them.
//!
//! The product has no switch for them. The simulator is its runtime: it drops or changes what
//! passes through its hands, as a runtime or a core with that fault would have. All of this is
//! there only with the cargo feature `planted-faults`; else `not_planted.rs` takes its place.

use bytes::Bytes;
use prost::Message as _;
use strata_proto::raft_serverpb::PeerState;
use strata_proto::stratapb::EntryCommand;
use strata_raftstore::{
    ApplyTask, ApplyWork, DataWrite, JobDone, ReadTask, RegionJob, SYSTEM_REGION_ID,
};
use strata_storage::{Cf, Durability, Engine, EngineError, Engines, MemEngine, WriteBatch, keys};

use crate::lookout::states_written;

/// Faults that are built in on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// This store applies nothing of one data entry, the first behind the index.
    pub skip_apply: Option<(u64, u64)>,
    /// Syncs are reported and not done, and a power cut takes all that was not synced.
    pub lying_disks: bool,
    /// Snapshots are installed without their table of sessions.
    pub no_sessions_installed: bool,
    /// Compacted entries are deleted before the kv engine holds durably where the log begins
    /// (against crash rule 6).
    pub early_log_deletion: bool,
    /// Reads are served although their region's data were given up meanwhile.
    pub reads_of_given_up_data: bool,
    /// Batches that write a region's state are not synced where the state is this one
    /// (against crash rule 2): `Normal` is a change of peers, `Applying` the begin of an
    /// install, `Tombstone` a removal.
    pub unsynced_state: Option<PeerState>,
}

impl Planted {
    /// True if disks lie.
    pub(crate) fn disks_lie(&self) -> bool {
        self.lying_disks
    }

    /// Takes an entry out of a store's work; true if it did.
    pub(crate) fn change_work(&mut self, store_id: u64, work: &mut ApplyWork) -> bool {
        let wanted = self.skip_apply.filter(|(at, _)| *at == store_id);
        let skipped = wanted.is_some_and(|(_, behind)| empty_one_entry(work, behind));
        if skipped {
            self.skip_apply = None;
        }
        skipped
    }

    /// How a batch of an apply shard is written.
    pub(crate) fn durability(&self, write: &DataWrite) -> Durability {
        match self.unsynced_state {
            Some(state)
                if states_written(write.batch())
                    .iter()
                    .any(|(_, written)| *written == state) =>
            {
                Durability::Unsynced
            }
            _ => write.durability(),
        }
    }

    /// Changes a read on its way to its reader.
    pub(crate) fn change_read(&self, task: &mut ReadTask) {
        if self.reads_of_given_up_data {
            task.data_epoch = task.view.data_epoch();
        }
    }

    /// Takes the sessions out of a region whose install has ended.
    pub(crate) fn change_installed(
        &self,
        engines: &Engines<MemEngine>,
        region_id: u64,
    ) -> Result<(), EngineError> {
        if !self.no_sessions_installed {
            return Ok(());
        }
        let (start, end) = keys::session_range(region_id);
        let mut batch = WriteBatch::new();
        batch.delete_range(Cf::Raft, start, end);
        engines.kv.write(&batch, Durability::Synced)
    }

    /// Deletes the entries of a job in the place of the worker, and answers as it does;
    /// `None` if the worker shall.
    pub(crate) fn delete_log(
        &self,
        engines: &Engines<MemEngine>,
        job: &RegionJob,
    ) -> Result<Option<JobDone>, EngineError> {
        let RegionJob::GcLog {
            region_id,
            to_index,
        } = *job
        else {
            return Ok(None);
        };
        if !self.early_log_deletion {
            return Ok(None);
        }
        let mut batch = WriteBatch::new();
        let start = keys::raft_log(region_id, 0);
        batch.delete_range(Cf::RaftLog, start, keys::raft_log(region_id, to_index + 1));
        engines.raft.write(&batch, Durability::Unsynced)?;
        Ok(Some(JobDone::LogGone {
            region_id,
            index: to_index,
        }))
    }
}

/// Takes the commands out of the first data entry behind an index.
fn empty_one_entry(work: &mut ApplyWork, behind: u64) -> bool {
    for task in &mut work.tasks {
        let ApplyTask::Entries(task) = task else {
            continue;
        };
        if task.region_id == SYSTEM_REGION_ID || !task.proposals.is_empty() {
            continue;
        }
        for entry in task.entries.iter_mut().filter(|entry| entry.index > behind) {
            let Ok(mut command) = EntryCommand::decode(entry.data.clone()) else {
                continue;
            };
            if !command.commands.is_empty() {
                command.commands.clear();
                entry.data = Bytes::from(command.encode_to_vec());
                return true;
            }
        }
    }
    false
}
