//! Region heartbeats: what a leader tells the scheduler.
//!
//! At once when a peer becomes leader or the region changes, when all reports are asked
//! for (a new leader of the system region knows nothing), and otherwise every
//! `heartbeat_interval`. Reports may be lost: the next one says the same.

use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_storage::Engine;

use crate::peer::Peer;
use crate::shard::StepContext;

impl<E: Engine> Peer<E> {
    /// Reports the region if this peer leads it.
    pub(crate) fn report_if_leader(&mut self, context: &mut StepContext<'_>) {
        if !self.leads() {
            self.reported_at = None;
            return;
        }
        self.reported_at = Some(context.now.monotonic);
        context.out.reports.push(RegionHeartbeatRequest {
            region: Some((*self.region).clone()),
            leader: Some(self.peer),
            term: self.term,
            ..RegionHeartbeatRequest::default()
        });
    }

    /// Reports the region if it is time.
    pub(crate) fn maybe_report(&mut self, context: &mut StepContext<'_>) {
        let due = self
            .reported_at
            .is_none_or(|at| at + context.options.heartbeat_interval <= context.now.monotonic);
        if due && self.leads() {
            self.report_if_leader(context);
        }
    }
}
