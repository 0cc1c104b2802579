//! Changes who belongs to a region.
//!
//! Request   Checked by form at the gate. One request of a region waits at a time; it is taken
//!           up behind the events of the drain, when no earlier change is unapplied.
//! Propose   The leader makes the region that the change leads to (`region`), refuses what
//!           cannot be made or would stop the region, and proposes. The entry's change
//!           carries the admin command with epoch and clock as its context.
//! Apply     Every replica compares both parts of the epoch and makes the same region
//!           (`apply`). RegionLocalState joins the kv batch, which is synced before anything
//!           leaves (crash rule 2); a replica that is no member any more writes its
//!           tombstone there.
//! Applied   The Raft core takes the membership over before the entry counts as applied
//!           there; the directory gets the region, the scheduler a report. A removed peer
//!           is destroyed (`destroy`).
//! Leave     The leader proposes to leave a joint membership as soon as it sees one applied
//!           and nothing is pending, and again with every tick: also after a restart, and
//!           as a new leader.
//!
//! Invariants
//! * At most one change of a region is unapplied.
//! * The Raft core's membership is the one that the roles of the region's peers tell.
//! * A leader does not remove itself in one step. In a joint change it may become a learner;
//!   it leads until the joint membership is left and steps down when that is applied.
//!
//! Elsewhere: majorities and their changes (`strata-raft`).

mod apply;
mod region;

use std::sync::Arc;

use prost::Message as _;
use strata_proto::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use strata_proto::metapb::{Peer as PeerMeta, Region};
use strata_proto::raft_cmdpb::{
    AdminCmdType, AdminRequest, ChangePeerRequest, ChangePeerV2Request,
};
use strata_proto::stratapb::EntryCommand;
use strata_raft::{ConfChangeError, Membership};
use strata_storage::{Engine, conf_state_of};

use crate::apply::Waiting;
use crate::check::check_epoch;
use crate::directory::{find_peer, find_peer_on};
use crate::error::{Error, InvalidRequest, PeerChangeFault};
use crate::peer::Peer;
use crate::propose::FreshProposal;
use crate::request::{PeerChange, PeerChangeKind, Request, RequestBody};
use crate::shard::StepContext;
use crate::store_request::StoreRequest;
use crate::task::PendingRequest;

use region::change_region;
pub(crate) use region::is_joint;

pub(crate) use region::check_changes;

/// What a peer has to do about its membership.
#[derive(Debug, Default)]
pub(crate) struct PeerChanges {
    /// The request that waits to be proposed.
    waiting: Option<PendingRequest>,
    /// The joint membership may have to be left.
    leave_due: bool,
}

impl PeerChanges {
    /// True if there may be something to propose.
    pub(crate) fn is_due(&self) -> bool {
        self.leave_due || self.waiting.is_some()
    }

    /// Takes the request that waits.
    pub(crate) fn take(&mut self) -> Option<PendingRequest> {
        self.waiting.take()
    }
}

impl<E: Engine> Peer<E> {
    /// Takes a request to change the peers; it is proposed when the drain has ended.
    pub(crate) fn on_change_peers(
        &mut self,
        context: &mut StepContext<'_>,
        pending: PendingRequest,
    ) {
        if self.changes.waiting.is_some() {
            let busy = busy(context);
            context.out.replies.push((pending.reply, Err(busy)));
            return;
        }
        self.changes.waiting = Some(pending);
    }

    /// Looks with every tick whether a joint membership has to be left, and refuses a
    /// request that has waited too long for an earlier change.
    pub(crate) fn tick_changes(&mut self, context: &mut StepContext<'_>) {
        self.changes.leave_due = self.leads() && is_joint(&self.region);
        let now = context.now.monotonic;
        let park_time = context.options.park_time;
        if let Some(pending) = self.changes.waiting.take() {
            let late = pending.arrived + park_time <= now;
            match pending.given_up(now).or(late.then(|| busy(context))) {
                None => self.changes.waiting = Some(pending),
                Some(error) => {
                    context.metrics.requests_dropped.increment();
                    context.out.replies.push((pending.reply, Err(error)));
                }
            }
        }
    }

    /// Proposes to leave a joint membership, or the change that waits.
    pub(crate) fn propose_changes(&mut self, context: &mut StepContext<'_>) {
        if !self.leads() {
            return;
        }
        if std::mem::take(&mut self.changes.leave_due) && is_joint(&self.region) {
            // Refused while the last change is not applied: the next tick tries again.
            let _ = self.propose_membership(context, &[]);
        }
        // While the region is joint the request waits until that is left.
        let ready = !is_joint(&self.region);
        let Some(pending) = self.changes.waiting.take_if(|_| ready) else {
            return;
        };
        if let Some(error) = pending.given_up(context.now.monotonic) {
            context.metrics.requests_dropped.increment();
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        let RequestBody::ChangePeers { changes } = &pending.request.body else {
            unreachable!("a request of another kind waits: {pending:?}");
        };
        // The change for which it has waited may have made another region of it than the one
        // that it was meant for.
        let Request { header, body } = &pending.request;
        let fits = check_epoch(header, body, &self.region);
        if let Err(error) = fits.and_then(|()| self.check_proposed_changes(context, changes)) {
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        match self.propose_membership(context, changes) {
            Ok(index) => {
                context.metrics.peer_change_proposals.increment();
                let deadline = pending.request.header.deadline;
                let reply = Some(pending.reply.proposed(self.region.id));
                let waiting = vec![Waiting::Admin { reply, deadline }];
                self.fresh.push(FreshProposal { index, waiting });
            }
            // An earlier change is not applied, the leadership is being handed over or just
            // lost, or there is no room: it waits, for `park_time` at most.
            Err(_) => self.changes.waiting = Some(pending),
        }
    }

    /// Checks what the leader alone can tell: that the region goes on after the change.
    fn check_proposed_changes(
        &self,
        context: &StepContext<'_>,
        changes: &[PeerChange],
    ) -> Result<(), Error> {
        let region_id = self.region.id;
        let invalid = |fault| InvalidRequest::PeerChange { region_id, fault };
        let next = change_region(&self.region, changes).map_err(invalid)?;
        let simple = changes.len() == 1;
        let goes = |change: &PeerChange| {
            let at_once = match change.kind {
                PeerChangeKind::Remove => true,
                PeerChangeKind::AddLearner => simple,
                PeerChangeKind::AddVoter => false,
            };
            at_once && change.peer.id == self.peer.id
        };
        if changes.iter().any(goes) {
            let peer_id = self.peer.id;
            return Err(invalid(PeerChangeFault::Leads { peer_id }).into());
        }
        if !self.majority_is_near(&next) {
            return Err(Error::ServerIsBusy {
                reason: "a majority of the new voters would wait for a snapshot",
                backoff_ms: context.options.election_timeout().as_millis() as u64,
            });
        }
        Ok(())
    }

    /// True if the voters of `next` can commit entries without a snapshot first, by what is
    /// known of their logs. A single voter has to be let through: it cannot be known that
    /// a second one will answer before it is there.
    fn majority_is_near(&self, next: &Region) -> bool {
        let voters = conf_state_of(&self.region).voters.len();
        let Ok(membership) = Membership::from_conf_state(&conf_state_of(next)) else {
            return false;
        };
        let progress = self.raft.status().progress;
        let matched = |id| {
            let found = progress.iter().find(|(member, _)| *member == id);
            found.map_or(0, |(_, progress)| progress.matched)
        };
        voters == 1 || membership.voters.agreed(matched) >= self.apply_state.truncated_index
    }

    /// Proposes a change; the empty one leaves the joint membership.
    fn propose_membership(
        &mut self,
        context: &StepContext<'_>,
        changes: &[PeerChange],
    ) -> Result<u64, strata_raft::Error> {
        let command = EntryCommand {
            leader_clock_ms: context.now.wall_ms,
            region_epoch: self.region.region_epoch,
            commands: Vec::new(),
            admin: Some(admin_of(changes)),
        };
        let change = ConfChangeV2 {
            context: command.encode_to_vec().into(),
            ..raft_change_of(changes)
        };
        self.raft.propose_conf_change(bytes::Bytes::new(), change)
    }

    /// A change was applied to the kv engine, or refused there: then `region` is absent and
    /// the membership stays. Comes before the Raft core learns that its entry is applied.
    pub(crate) fn on_conf_changed(
        &mut self,
        context: &mut StepContext<'_>,
        index: u64,
        change: &ConfChangeV2,
        region: Option<Arc<Region>>,
    ) {
        let Some(region) = region else {
            return;
        };
        let state = match self.raft.apply_conf_change(change) {
            Ok(state) => state,
            // The snapshot's membership holds this change and comes with its install.
            Err(strata_raft::Error::ConfChange(ConfChangeError::CoveredBySnapshot)) => return,
            Err(error) => panic!(
                "region {}: the change of entry {index} is applied and does not fit: {error}",
                region.id
            ),
        };
        let told = Membership::from_conf_state(&conf_state_of(&region));
        assert_eq!(
            Membership::from_conf_state(&state),
            told,
            "region {}: the membership after entry {index} is not the region's",
            region.id
        );
        for gone in &self.region.peers {
            if find_peer(&region, gone.id).is_none() {
                // The leader's last word to it still needs its address.
                self.addresses.note(*gone);
            }
        }
        context.metrics.peer_changes.increment();
        self.set_region(region);
        self.changes.leave_due = is_joint(&self.region);
        if find_peer_on(&self.region, context.store_id).is_some() {
            context.out.store.push(StoreRequest::SetRegion {
                region: self.region.clone(),
                peer: self.peer,
            });
        }
        self.report_if_leader(context);
    }

    /// Takes over the region as it was applied.
    fn set_region(&mut self, region: Arc<Region>) {
        if let Some(own) = find_peer(&region, self.peer.id) {
            self.peer = own;
        }
        self.raft.storage_mut().set_region((*region).clone());
        self.region = region;
        self.view.move_generation();
    }
}

fn busy(context: &StepContext<'_>) -> Error {
    Error::ServerIsBusy {
        reason: "another change of the region's peers has not ended",
        backoff_ms: context.options.park_time.as_millis() as u64,
    }
}

/// The admin command of a change, as it stands in the log.
fn admin_of(changes: &[PeerChange]) -> AdminRequest {
    let changes = changes.iter().map(|change| ChangePeerRequest {
        change_type: change_type_of(change.kind).into(),
        peer: Some(change.peer),
    });
    AdminRequest {
        cmd_type: AdminCmdType::ChangePeerV2.into(),
        change_peer_v2: Some(ChangePeerV2Request {
            changes: changes.collect(),
        }),
        ..AdminRequest::default()
    }
}

/// The changes of an admin command; `None` if it holds none that this version knows.
fn changes_of(admin: &AdminRequest) -> Option<Vec<PeerChange>> {
    let request = admin.change_peer_v2.as_ref()?;
    if admin.cmd_type() != AdminCmdType::ChangePeerV2 {
        return None;
    }
    let change = |request: &ChangePeerRequest| {
        let kind = match ConfChangeType::try_from(request.change_type).ok()? {
            ConfChangeType::AddNode => PeerChangeKind::AddVoter,
            ConfChangeType::AddLearnerNode => PeerChangeKind::AddLearner,
            ConfChangeType::RemoveNode => PeerChangeKind::Remove,
        };
        let peer: PeerMeta = request.peer?;
        Some(PeerChange { kind, peer })
    };
    request.changes.iter().map(change).collect()
}

/// The change as the Raft core knows it. A joint membership is always left by an entry of
/// its own.
fn raft_change_of(changes: &[PeerChange]) -> ConfChangeV2 {
    let transition = if changes.len() > 1 {
        ConfChangeTransition::Explicit
    } else {
        ConfChangeTransition::Auto
    };
    let changes = changes.iter().map(|change| ConfChangeSingle {
        change_type: change_type_of(change.kind).into(),
        node_id: change.peer.id,
    });
    ConfChangeV2 {
        transition: transition.into(),
        changes: changes.collect(),
        ..ConfChangeV2::default()
    }
}

fn change_type_of(kind: PeerChangeKind) -> ConfChangeType {
    match kind {
        PeerChangeKind::AddVoter => ConfChangeType::AddNode,
        PeerChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
        PeerChangeKind::Remove => ConfChangeType::RemoveNode,
    }
}
