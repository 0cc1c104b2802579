//! Snapshots on the follower's side: claimed, taken, installed.

use strata_proto::raft_serverpb::RaftMessage;
use strata_storage::Engine;
use strata_storage::snapshot::SnapshotError;

use crate::peer::Peer;
use crate::shard::StepContext;

impl<E: Engine> Peer<E> {
    /// The store FSM has answered the claim of a snapshot.
    pub(crate) fn on_claimed(
        &mut self,
        context: &mut StepContext<'_>,
        _message: RaftMessage,
        _result: Result<(), SnapshotError>,
    ) {
        context.metrics.messages_dropped_refused.increment();
    }

    /// The first batch of an install is synced.
    pub(crate) fn on_install_begun(&mut self, _context: &mut StepContext<'_>) {
        panic!(
            "region {}: an install that was not begun here",
            self.region.id
        );
    }
}
