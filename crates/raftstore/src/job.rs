//! What shards ask of the two background workers, and what these answer.
//!
//! The region worker makes, installs and clears data of whole regions, one job after the
//! other; the log gc worker deletes compacted entries. Both are stepped
//! ([`RegionWorker`](crate::RegionWorker), [`LogGcWorker`](crate::LogGcWorker)): the runtime
//! gives each a thread, the simulator steps them with delays.
//!
//! Invariant: a shard has at most one job of a kind per region outstanding, which bounds
//! both queues by the number of regions.

use strata_proto::metapb::Region;
use strata_proto::stratapb::SnapshotMeta;
use strata_storage::snapshot::SnapshotError;

/// Work on a whole region. Answer: the [`JobDone`] of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum RegionJob {
    /// Make a snapshot of the region as it is applied when the job runs.
    Generate {
        /// The region.
        region_id: u64,
    },
    /// Look whether a snapshot that was made is here still, undamaged as far as is known. It
    /// goes before all others.
    CheckGenerated {
        /// The region.
        region_id: u64,
        /// Its description.
        meta: Box<SnapshotMeta>,
    },
    /// Install the received snapshot at this position. Precondition: the region is in
    /// Applying, and its raft engine is emptied and synced (crash rule 3).
    Install {
        /// The region.
        region_id: u64,
        /// Index of the snapshot.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// Clear what a destroyed peer has left: data, cut when the job runs to what no live
    /// region covers, then sessions and apply state. Precondition: the tombstone is synced
    /// and the region's raft state is gone (crash rule 5).
    Clear {
        /// The region as it was.
        region: Region,
    },
    /// Delete compacted entries from the raft engine, up to `to_index` and no further than
    /// the truncated index that the kv engine holds durably (crash rule 6).
    GcLog {
        /// The region.
        region_id: u64,
        /// Truncated index as the shard knows it.
        to_index: u64,
    },
}

impl RegionJob {
    /// The region that the job is about.
    pub fn region_id(&self) -> u64 {
        match self {
            RegionJob::Generate { region_id }
            | RegionJob::CheckGenerated { region_id, .. }
            | RegionJob::Install { region_id, .. }
            | RegionJob::GcLog { region_id, .. } => *region_id,
            RegionJob::Clear { region } => region.id,
        }
    }
}

/// A job has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum JobDone {
    /// Answer to [`RegionJob::Generate`].
    Generated {
        /// The region.
        region_id: u64,
        /// The description of the snapshot, whose files lie in the snapshot manager.
        result: Result<Box<SnapshotMeta>, SnapshotError>,
    },
    /// Answer to [`RegionJob::CheckGenerated`].
    GeneratedChecked {
        /// The region.
        region_id: u64,
        /// Id of the snapshot.
        id: u64,
        /// False: nobody can send it any more.
        here: bool,
    },
    /// Answer to [`RegionJob::Install`]: Normal is synced. An install that cannot be
    /// finished has no answer, it ends the process.
    Installed {
        /// The region.
        region_id: u64,
        /// Index of the snapshot.
        index: u64,
    },
    /// Answer to [`RegionJob::Clear`]: the removal is synced.
    Cleared {
        /// The region.
        region_id: u64,
    },
    /// Answer to [`RegionJob::GcLog`].
    LogGone {
        /// The region.
        region_id: u64,
        /// Entries up to this index are deleted from the raft engine.
        index: u64,
    },
}

impl JobDone {
    /// The region that the job was about.
    pub fn region_id(&self) -> u64 {
        match self {
            JobDone::Generated { region_id, .. }
            | JobDone::GeneratedChecked { region_id, .. }
            | JobDone::Installed { region_id, .. }
            | JobDone::Cleared { region_id }
            | JobDone::LogGone { region_id, .. } => *region_id,
        }
    }
}
