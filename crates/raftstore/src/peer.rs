//! One replica of one region on this store.
//!
//! The peer holds the Raft core with its storage, and everything that waits: requests
//! without a leader, writes that gather for an entry, proposals, reads, a hand-over of the
//! leadership. This file has the peer's life and the entry points that sort events; what
//! is done with them is one file per operation.
//!
//! Invariants
//! * Every request is in exactly one waiting place, or its reply is in the outbox.
//! * `leader` and `term` are those of the last Ready: what was published is what is used.
//!
//! Elsewhere: `replicate` (messages, Ready, persisted, applied), `propose` (writes),
//! `read_index` (reads), `transfer`, `heartbeat`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use strata_proto::eraftpb::{HardState, Message, MessageType};
use strata_proto::metapb::{self, Region};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::RaftApplyState;
use strata_raft::{Config, Counts, RawNode, SnapshotStatus, Storage as _};
use strata_storage::{Engine, PeerStorage};

use crate::addresses::Addresses;
use crate::apply::Proposal;
use crate::change_peers::PeerChanges;
use crate::check::{PeerFacts, Standing, check_address};
use crate::compact_log::LogGc;
use crate::directory::{PeerNumbers, PeerView, find_peer};
use crate::error::Error;
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::propose::FreshProposal;
use crate::read_index::Reads;
use crate::replicate::UnsyncedReady;
use crate::request::{Request, RequestBody};
use crate::rest::Rest;
use crate::shard::StepContext;
use crate::snapshot_install::Install;
use crate::snapshot_send::SnapshotSends;
use crate::task::{PendingRequest, ReadTask};
use crate::time::Now;
use crate::transfer::Transfer;
use crate::write_queue::WriteQueue;
use crate::write_window::WriteWindow;

/// Term of the hard state that the bootstrap writes.
const BOOTSTRAP_TERM: u64 = 5;
/// Bytes of committed entries that are taken from the Raft core, or from the log, in one
/// step.
pub(crate) const MAX_COMMITTED_BYTES_PER_READY: u64 = 1 << 20;

/// A replica of a region.
pub struct Peer<E: Engine> {
    /// Ticks that need not come here.
    pub(crate) rest: Rest,
    /// An event has come here since it was last collected.
    pub(crate) touched: bool,
    pub(crate) region: Arc<Region>,
    pub(crate) peer: metapb::Peer,
    pub(crate) raft: RawNode<PeerStorage<E>>,
    pub(crate) view: Arc<PeerView>,
    /// Term as of the last Ready.
    pub(crate) term: u64,
    /// Peer id of the leader as of the last Ready; 0: none.
    pub(crate) leader: u64,
    pub(crate) committed: u64,
    pub(crate) apply_state: RaftApplyState,
    /// Encoded bytes of entries that were handed to apply and are not applied.
    pub(crate) apply_backlog_bytes: usize,
    /// Last entry handed to apply.
    pub(crate) handed_to_apply: u64,
    /// Last entry that the Raft core lets be applied: committed and synced here.
    /// Invariant: not below `handed_to_apply`; above it only while the backlog is full.
    pub(crate) may_apply_up_to: u64,
    /// Readys that are not synced yet, oldest first.
    pub(crate) unsynced: VecDeque<UnsyncedReady>,
    /// Writes that wait to be proposed.
    pub(crate) writes: WriteQueue,
    /// Writes that are proposed and not applied, and how fast they are executed.
    pub(crate) window: WriteWindow,
    /// Proposed since the last Ready, which tells their term.
    pub(crate) fresh: Vec<FreshProposal>,
    /// Reads that wait for a clock entry to be proposed.
    pub(crate) clock_wanted: Vec<ReadTask>,
    /// Proposed, by ascending index.
    pub(crate) proposals: VecDeque<Proposal>,
    pub(crate) reads: Reads,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) changes: PeerChanges,
    /// Where peers live that the region does not name.
    pub(crate) addresses: Addresses,
    /// Requests that wait for a leader.
    pub(crate) parked: VecDeque<PendingRequest>,
    /// When the own leadership was lost, while proposals of it are not settled.
    pub(crate) lost_leadership_at: Option<Duration>,
    pub(crate) reported_at: Option<Duration>,
    pub(crate) clock_proposed_at: Option<Duration>,
    /// When a leader was last heard of, or when it was last asked whether this peer is a
    /// member still.
    pub(crate) leader_heard_at: Option<Duration>,
    /// True: the next flush begins to destroy this peer.
    pub(crate) doomed: bool,
    pub(crate) log_gc: LogGc,
    pub(crate) snapshots: SnapshotSends,
    /// A snapshot that is being installed here.
    pub(crate) install: Option<Install>,
    /// The store FSM was asked for the range of a snapshot.
    pub(crate) claim_pending: bool,
    /// The first peer of a region that was never led campaigns as soon as it may.
    campaign_first: bool,
    /// What the metrics know of already.
    counted: Counts,
}

impl<E: Engine> Peer<E> {
    /// Starts the replica from its storage.
    ///
    /// # Errors
    /// The stored state contradicts itself; the process must not go on.
    pub fn new(
        options: &StoreOptions,
        region: Arc<Region>,
        peer: metapb::Peer,
        storage: PeerStorage<E>,
        view: Arc<PeerView>,
        now: Now,
    ) -> Result<Self, strata_raft::Error> {
        let apply_state = *storage.apply_state();
        let hard_state = *storage.hard_state();
        // Nothing can have been promised in the state that the bootstrap wrote, nor without
        // any state.
        let never_led = hard_state.term == BOOTSTRAP_TERM && hard_state.vote == 0;
        let fresh = never_led || hard_state == HardState::default();
        let install = storage
            .is_applying()
            .then(|| Install::resumed(apply_state.applied_index, apply_state.applied_term));
        view.set_installing(install.is_some());
        let config = raft_config(options, &region, &peer, apply_state.applied_index, !fresh);
        let raft = RawNode::new(&config, storage, now.monotonic)?;
        let campaign_first = never_led
            && region
                .peers
                .first()
                .is_some_and(|first| first.id == peer.id);
        let nonce =
            u128::from(options.seed) << 64 | now.monotonic.as_nanos() & u128::from(u64::MAX);
        let this = Peer {
            rest: Rest::awake(0),
            touched: false,
            peer,
            raft,
            view,
            term: hard_state.term,
            leader: 0,
            committed: hard_state.commit.max(apply_state.applied_index),
            apply_state,
            apply_backlog_bytes: 0,
            handed_to_apply: apply_state.applied_index,
            may_apply_up_to: apply_state.applied_index,
            unsynced: VecDeque::new(),
            writes: WriteQueue::default(),
            window: WriteWindow::default(),
            fresh: Vec::new(),
            clock_wanted: Vec::new(),
            proposals: VecDeque::new(),
            reads: Reads::new(nonce),
            transfer: None,
            changes: PeerChanges::default(),
            addresses: Addresses::default(),
            parked: VecDeque::new(),
            lost_leadership_at: None,
            reported_at: None,
            clock_proposed_at: None,
            leader_heard_at: None,
            doomed: false,
            log_gc: LogGc::new(apply_state.truncated_index),
            snapshots: SnapshotSends::default(),
            install,
            claim_pending: false,
            campaign_first,
            counted: Counts::default(),
            region,
        };
        this.publish();
        Ok(this)
    }

    /// Id of the region.
    pub fn region_id(&self) -> u64 {
        self.region.id
    }

    /// False for a peer that a message created and that waits for its first snapshot.
    pub fn is_initialized(&self) -> bool {
        !self.region.peers.is_empty()
    }

    /// The Raft core, for inspection.
    pub fn raft(&self) -> &RawNode<PeerStorage<E>> {
        &self.raft
    }

    /// How far the region is applied.
    pub fn apply_state(&self) -> &RaftApplyState {
        &self.apply_state
    }

    /// True if this peer leads, as of the last Ready.
    pub fn leads(&self) -> bool {
        self.leader == self.peer.id
    }

    /// True until the first tick of the first peer of a region that was never led.
    pub(crate) fn campaigns_first(&self) -> bool {
        self.campaign_first
    }

    /// The leader as of the last Ready.
    pub(crate) fn known_leader(&self) -> Option<metapb::Peer> {
        find_peer(&self.region, self.leader)
    }

    /// Sorts a request into the place where it waits, or refuses it.
    pub(crate) fn on_request(&mut self, context: &mut StepContext<'_>, pending: PendingRequest) {
        if let Some(error) = pending.given_up(context.now.monotonic) {
            context.metrics.requests_dropped.increment();
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        if self.is_installing() {
            let error = Error::NotLeader {
                region_id: self.region.id,
                leader: self.known_leader(),
            };
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        let facts = PeerFacts {
            region: &self.region,
            peer_id: self.peer.id,
            term: self.term,
            leader: self.known_leader(),
        };
        let Request { header, body } = &pending.request;
        match check_address(context.store_id, header, body, &facts) {
            Err(error) => context.out.replies.push((pending.reply, Err(error))),
            Ok(Standing::NoLeader) => self.park(context, pending),
            Ok(Standing::Here) => match &pending.request.body {
                RequestBody::Read(_) | RequestBody::SystemRead => self.on_read(context, pending),
                RequestBody::Write(_) | RequestBody::SystemWrite(_) => {
                    self.on_write(context, pending);
                }
                RequestBody::TransferLeader { to_store_id } => {
                    let to_store_id = *to_store_id;
                    self.on_transfer(context, pending, to_store_id);
                }
                RequestBody::ChangePeers { .. } => self.on_change_peers(context, pending),
            },
        }
    }

    fn park(&mut self, context: &mut StepContext<'_>, pending: PendingRequest) {
        if self.parked.len() >= context.options.max_parked_requests {
            context.metrics.requests_busy.increment();
            let error = Error::ServerIsBusy {
                reason: "too many requests wait for a leader",
                backoff_ms: context.options.park_time.as_millis() as u64,
            };
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        context.metrics.requests_parked.increment();
        self.parked.push_back(pending);
    }

    /// One tick: elections and heartbeats, then everything that has waited too long.
    /// Returns whether a Ready may have come up.
    pub(crate) fn on_tick(&mut self, context: &mut StepContext<'_>, admitted: bool) -> bool {
        let mut ready = false;
        if admitted && !self.is_installing() {
            ready = self.raft.tick(context.now.monotonic);
            if std::mem::take(&mut self.campaign_first) && self.leader == 0 {
                // Refused where a leader or another candidate was faster: that is as good.
                let _ = self.raft.campaign(context.now.monotonic);
                ready = true;
            }
        }
        self.expire_parked(context);
        self.expire_writes(context);
        self.expire_proposals(context);
        self.expire_reads(context);
        self.expire_transfer(context);
        self.tick_changes(context);
        if admitted {
            self.tick_stale(context);
        }
        self.expire_snapshots(context);
        self.maybe_compact_log(context);
        self.maybe_generate(context);
        self.maybe_report(context);
        ready || self.raft.has_ready() || !self.writes.is_empty() || self.changes.is_due()
    }

    fn expire_parked(&mut self, context: &mut StepContext<'_>) {
        if self.parked.is_empty() {
            return;
        }
        let now = context.now.monotonic;
        let park_time = context.options.park_time;
        let error = Error::NotLeader {
            region_id: self.region.id,
            leader: None,
        };
        refuse_expired(&mut self.parked, context, now, park_time, &error);
    }

    /// Everything after the events of a drain: proposes, asks for reads, takes Readys until
    /// there is none, and publishes.
    pub(crate) fn collect(&mut self, context: &mut StepContext<'_>) {
        self.propose_changes(context);
        self.propose_writes(context);
        self.ask_reads(context);
        while self.raft.has_ready() && self.may_take_ready() {
            if let Some(messages) = self.raft.take_lone_messages() {
                for message in messages {
                    self.send(context, message);
                }
                break;
            }
            self.on_ready(context);
            // A change of role lets go of requests that had waited for it.
            self.propose_changes(context);
            self.propose_writes(context);
            self.ask_reads(context);
            if self.has_deferred() && self.fresh.is_empty() {
                // No hurry to learn of more that may be applied: one Ready a flush keeps
                // messages flowing and the shard free for others.
                break;
            }
        }
        self.maybe_generate(context);
        self.publish();
    }

    /// A new leader is known, or the old one is not any more: everything that waits looks
    /// for its place again.
    pub(crate) fn on_leader_change(&mut self, context: &mut StepContext<'_>, led_before: bool) {
        let now = context.now.monotonic;
        if led_before && !self.leads() && !self.proposals.is_empty() {
            self.lost_leadership_at = Some(now);
        }
        // This leadership has proposed nothing yet.
        self.window.clear();
        if self.leads() {
            self.lost_leadership_at = None;
            context.metrics.elections_won.increment();
        }
        self.settle_transfer(context);
        let mut waiting: Vec<PendingRequest> = self.parked.drain(..).collect();
        waiting.extend(self.writes.take());
        waiting.extend(self.reads.take_unconfirmed());
        waiting.extend(self.changes.take());
        for pending in waiting {
            self.on_request(context, pending);
        }
        self.report_if_leader(context);
    }

    /// Tells the Raft core that messages to a store did not arrive.
    pub(crate) fn on_unreachable(&mut self, store_id: u64) {
        let unreachable = self
            .region
            .peers
            .iter()
            .find(|peer| peer.store_id == store_id);
        if let Some(peer) = unreachable
            && self.leads()
        {
            self.raft.report_unreachable(peer.id);
        }
    }

    /// Addresses a Raft message and puts it into the outbox.
    pub(crate) fn send(&mut self, context: &mut StepContext<'_>, message: Message) {
        let snapshot = message.msg_type() == MessageType::MsgSnapshot;
        let known = find_peer(&self.region, message.to);
        let Some(to_peer) = known.or_else(|| self.addresses.find(message.to)) else {
            context.metrics.messages_dropped_unknown.increment();
            if snapshot {
                // Every snapshot message is followed by a report.
                self.raft
                    .report_snapshot(message.to, SnapshotStatus::Failure);
            }
            return;
        };
        let to_store_id = to_peer.store_id;
        let message = self.envelope(to_peer, message);
        if snapshot {
            return self.send_snapshot(context, to_store_id, message);
        }
        context.out.send_to(to_store_id, Some(message));
    }

    /// Puts a message into the outbox that leaves when the log batch at hand is synced; gives
    /// it back where its receiver is not known or it is more than a message.
    pub(crate) fn send_after_sync(
        &self,
        context: &mut StepContext<'_>,
        message: Message,
    ) -> Option<Message> {
        let known = find_peer(&self.region, message.to);
        let to_peer = known.or_else(|| self.addresses.find(message.to));
        let Some(to_peer) = to_peer.filter(|_| message.msg_type() != MessageType::MsgSnapshot)
        else {
            return Some(message);
        };
        let message = self.envelope(to_peer, message);
        let after_sync = &mut context.out.after_sync;
        after_sync
            .entry(to_peer.store_id)
            .or_default()
            .push(message);
        None
    }

    fn envelope(&self, to_peer: metapb::Peer, message: Message) -> RaftMessage {
        RaftMessage {
            region_id: self.region.id,
            from_peer: Some(self.peer),
            to_peer: Some(to_peer),
            message: Some(message),
            region_epoch: self.region.region_epoch,
            // For a peer that this message creates.
            start_key: self.region.start_key.clone(),
            end_key: self.region.end_key.clone(),
            ..RaftMessage::default()
        }
    }

    /// Adds to the metrics what has happened in the Raft core since the last time.
    pub(crate) fn note_counts(&mut self, metrics: &StoreMetrics) {
        let counts = self.raft.counts();
        let before = std::mem::replace(&mut self.counted, counts);
        if counts != before {
            let withheld = counts.votes_withheld - before.votes_withheld;
            metrics.votes_withheld.add(withheld);
            metrics
                .log_conflicts
                .add(counts.conflicts - before.conflicts);
        }
    }

    /// Shows others what they may know of this peer.
    pub(crate) fn publish(&self) {
        let storage = self.raft.storage();
        let first = storage.first_index().unwrap_or(0);
        let last = storage.last_index().unwrap_or(0);
        let numbers = PeerNumbers {
            term: self.term,
            leader: self.leader,
            applied: self.apply_state.applied_index,
            committed: self.committed,
            first,
            last,
            truncated: self.apply_state.truncated_index,
            truncated_term: self.apply_state.truncated_term,
            clock_ms: self.apply_state.region_clock_ms,
        };
        let lease_until = if self.leads() {
            self.raft.lease_until()
        } else {
            None
        };
        self.view.publish(&numbers, lease_until);
    }
}

/// Removes the requests that were given up or have waited for `park_time`, and answers
/// them; the latter with `error`.
pub(crate) fn refuse_expired(
    queue: &mut VecDeque<PendingRequest>,
    context: &mut StepContext<'_>,
    now: Duration,
    park_time: Duration,
    error: &Error,
) {
    if queue.is_empty() {
        return;
    }
    for pending in std::mem::take(queue) {
        let refusal = pending
            .given_up(now)
            .or_else(|| (pending.arrived + park_time <= now).then(|| error.clone()));
        match refusal {
            None => queue.push_back(pending),
            Some(refusal) => {
                context.metrics.requests_dropped.increment();
                context.out.replies.push((pending.reply, Err(refusal)));
            }
        }
    }
}

fn raft_config(
    options: &StoreOptions,
    region: &Region,
    peer: &metapb::Peer,
    applied: u64,
    quiet_after_start: bool,
) -> Config {
    Config {
        id: peer.id,
        election_ticks: options.election_ticks,
        election_ticks_max: options.election_ticks_max,
        heartbeat_ticks: options.heartbeat_ticks,
        election_timeout: options.election_timeout(),
        max_clock_drift_percent: options.max_clock_drift_percent,
        applied,
        max_bytes_per_message: options.max_message_bytes,
        max_inflight_messages: options.max_inflight_messages,
        max_uncommitted_bytes: options.max_uncommitted_bytes,
        max_committed_bytes_per_ready: MAX_COMMITTED_BYTES_PER_READY,
        check_quorum: true,
        pre_vote: true,
        // Half of all messages otherwise, where writes come one after the other.
        lazy_commit: true,
        quiet_after_start,
        seed: options.seed ^ region.id.rotate_left(32),
    }
}
