//! Snapshots on the leader's side: made when a follower needs one, sent, reported.

use strata_raft::SnapshotStatus;
use strata_storage::Engine;

use crate::job::JobDone;
use crate::peer::Peer;
use crate::shard::StepContext;

impl<E: Engine> Peer<E> {
    /// A job of this region has ended.
    pub(crate) fn on_job_done(&mut self, _context: &mut StepContext<'_>, done: JobDone) {
        match done {
            JobDone::Generated { .. }
            | JobDone::Installed { .. }
            | JobDone::Cleared { .. }
            | JobDone::LogGone { .. } => {}
        }
    }

    /// The sending of a snapshot has ended.
    pub(crate) fn on_snapshot_sent(&mut self, to_peer_id: u64, ok: bool) {
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raft.report_snapshot(to_peer_id, status);
    }
}
