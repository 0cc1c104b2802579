//! The log gc worker: deletes compacted entries from the raft engine (crash rule 6).
//!
//! For all regions at hand: the truncated index is read from the kv engine, the kv engine is
//! made durable, and only then the entries go. If the kv engine lost the truncated index in
//! a crash, it would want entries back that are gone. Where the kv engine tells what it has made
//! durable by itself, entries in front of that go without more.
//!
//! What goes is truncated for both the kv engine and the region's shard: apply writes a
//! truncated index before the shard hears of it, and until then the shard reads the entries
//! in front of it.
//!
//! The deletion itself is not synced: what a crash brings back lies in front of the
//! truncated index, where nobody looks, and goes with the next compaction.

use std::collections::VecDeque;

use strata_raft::planted;
use strata_storage::snapshot::SnapshotError;
use strata_storage::{
    Cf, Durability, Engine, Engines, Error, WriteBatch, keys, read_apply_state,
    read_durable_apply_state,
};

use crate::job::{JobDone, RegionJob};
use crate::region_worker::WorkerFault;

/// Regions whose logs are deleted with one sync, or flush, of the kv engine.
const GATHERED_JOBS: usize = 4096;

/// Deletes compacted entries.
pub struct LogGcWorker<E: Engine> {
    engines: Engines<E>,
    /// Regions, each with the truncated index that its shard knows.
    queue: VecDeque<(u64, u64)>,
}

impl<E: Engine> LogGcWorker<E> {
    /// A worker without jobs.
    pub fn new(engines: Engines<E>) -> Self {
        LogGcWorker {
            engines,
            queue: VecDeque::new(),
        }
    }

    /// Takes a job over.
    ///
    /// # Panics
    /// On anything but a `GcLog`.
    pub fn push(&mut self, job: &RegionJob) {
        let RegionJob::GcLog {
            region_id,
            to_index,
        } = job
        else {
            panic!("region {}: the log gc worker got {job:?}", job.region_id());
        };
        self.queue.push_back((*region_id, *to_index));
    }

    /// True if there is something to do.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Deletes what the regions at hand have compacted as far as the kv engine has it durable
    /// already; those behind the first of which that is not known wait.
    ///
    /// # Errors
    /// The process must end.
    pub fn step_durable(&mut self) -> Result<Vec<JobDone>, WorkerFault> {
        let kv = &self.engines.kv;
        let mut batch = WriteBatch::new();
        let mut done = Vec::new();
        while let Some((region_id, to_index)) = self.queue.front().copied() {
            let Some(index) = durable_index(kv, region_id, to_index)? else {
                break;
            };
            self.queue.pop_front();
            Self::delete(region_id, index, &mut batch);
            done.push(JobDone::LogGone { region_id, index });
            if done.len() == GATHERED_JOBS {
                break;
            }
        }
        if let Some(first) = done.first() {
            let written = self.engines.raft.write(&batch, Durability::Unsynced);
            written.map_err(|error| fault(first.region_id(), error.into()))?;
        }
        Ok(done)
    }

    /// Makes the kv engine durable, and deletes what the regions at hand have compacted.
    ///
    /// # Errors
    /// The process must end.
    pub fn step(&mut self) -> Result<Vec<JobDone>, WorkerFault> {
        let count = self.queue.len().min(GATHERED_JOBS);
        let regions: Vec<(u64, u64)> = self.queue.drain(..count).collect();
        let Some((first, _)) = regions.first().copied() else {
            return Ok(Vec::new());
        };
        let mut batch = WriteBatch::new();
        let mut done = Vec::new();
        for (region_id, to_index) in regions {
            let state = read_apply_state(&self.engines.kv, region_id)
                .map_err(|error| fault(region_id, error))?;
            // Without a state the region was destroyed, and its log with it.
            let mut index = state.map_or(0, |state| state.truncated_index.min(to_index));
            // Planted: what goes is truncated for the kv engine and for the shard.
            if planted!(CompactAboveApplied) {
                index = to_index;
            }
            Self::delete(region_id, index, &mut batch);
            done.push(JobDone::LogGone { region_id, index });
        }
        // In this order: the engines are logs of their own.
        let Engines { kv, raft } = &self.engines;
        // Planted: where the log begins is durable before the entries go (crash rule 6).
        let durable = match planted!(LogDeletedBeforeDurable) {
            true => Ok(()),
            false => kv.make_durable(),
        };
        durable
            .and_then(|()| raft.write(&batch, Durability::Unsynced))
            .map_err(|error| fault(first, error.into()))?;
        Ok(done)
    }

    fn delete(region_id: u64, index: u64, batch: &mut WriteBatch) {
        batch.delete_range(
            Cf::RaftLog,
            keys::raft_log(region_id, 0),
            keys::raft_log(region_id, index + 1),
        );
    }
}

/// Up to where the entries of a region may go as the kv engine stands; `None` if it has not made that
/// durable yet.
fn durable_index<E: Engine>(
    kv: &E,
    region_id: u64,
    to_index: u64,
) -> Result<Option<u64>, WorkerFault> {
    // Planted: where the log begins is durable before the entries go (crash rule 6).
    if planted!(LogDeletedBeforeDurable) {
        return Ok(Some(to_index));
    }
    let of = |state: Result<_, Error>| state.map_err(|error| fault(region_id, error));
    if let Some(state) = of(read_durable_apply_state(kv, region_id))? {
        return Ok((state.truncated_index >= to_index).then_some(to_index));
    }
    // Without a state the region was destroyed, and its log with it: those behind need not wait.
    let is_destroyed = kv.is_durable_by_flush() && of(read_apply_state(kv, region_id))?.is_none();
    Ok(is_destroyed.then_some(0))
}

fn fault(region_id: u64, error: Error) -> WorkerFault {
    WorkerFault {
        region_id,
        job: "deleting compacted entries",
        error: SnapshotError::Storage(error),
    }
}
