//! A raft shard: owns the peers of its regions and steps them.
//!
//! Drain    The driver hands in every event that waits: [`Shard::handle`].
//! Flush    [`Shard::flush`] proposes what has gathered, takes the Ready of every peer that
//!          has one and returns [`ShardAction`]s, in an order that the driver keeps:
//!          messages that need no disk first, then one log batch of all peers.
//! Answers  The log writer's and the apply shards' come back as events. What promises that
//!          the batch is on the disk leaves from there.
//!
//! Invariants
//! * A peer lives in one shard's map and nowhere else.
//! * No tick and no heartbeat waits for what is written: when all credits of the log writer or of
//!   an apply shard are out, work gathers here and messages go on. Reading the log again, for a
//!   follower that is far behind or for entries that were let go, is done here.
//! * What promises something about this store's disk leaves after the batch is synced.
//! * A view is published before any message of the same flush leaves.
//!
//! Elsewhere: what gathers until a flush (`outbox`), what leaves with it and what is on its way
//! (`emit`), what a peer does with an event (`peer`, `replicate`, `propose`, `read_index`, `transfer`,
//! `heartbeat`), the threads (`runtime`).

use std::collections::BTreeMap;
use std::sync::Arc;

use strata_proto::metapb::{self, Region};
use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raft::planted;
use strata_storage::snapshot::SnapshotError;
use strata_storage::{Engine, Engines};

use crate::apply::{Applied, ApplyTask, RegionChange};
use crate::destroy::Destroying;
use crate::directory::PeerView;
use crate::emit::{ApplyLane, LogLane};
use crate::error::Error;
use crate::job::{JobDone, RegionJob};
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
pub use crate::outbox::LogBatch;
pub(crate) use crate::outbox::{Outbox, StepContext};
use crate::peer::Peer;
use crate::request::{Answer, Reply};
use crate::rest::Rest;
use crate::store_request::StoreRequest;
use crate::task::{PendingRequest, ReadTask};
use crate::time::Now;

/// Everything that can happen to a shard.
#[derive(Debug)]
pub enum ShardEvent {
    /// A raft message from another store.
    Message(Box<RaftMessage>),
    /// A request that has passed the gate.
    Request(Box<PendingRequest>),
    /// A read under the lease met a value that only the wall clock lets expire.
    ClockWanted(Box<ReadTask>),
    /// A tick interval has passed. Missed ticks are dropped by the driver.
    Tick,
    /// Answer to [`ShardAction::WriteLog`]: this batch and all before it are written, and
    /// synced where they asked for it.
    LogPersisted {
        /// Number of the batch.
        number: u64,
    },
    /// Progress of [`ShardAction::Apply`]; with `batches` above 0 its answer: the entries of the
    /// oldest `batches` unanswered batches of an apply shard are in the kv engine.
    Applied {
        /// The apply shard.
        apply_shard: usize,
        /// How many batches are answered; 0: more of the oldest one follows.
        batches: usize,
        /// Progress of the regions of this shard.
        regions: Vec<Applied>,
    },
    /// Messages to a store did not arrive.
    Unreachable {
        /// The store.
        store_id: u64,
    },
    /// The store is admitted to its cluster, or barred.
    Admitted(bool),
    /// The disk is nearly full, or has room again.
    DiskNearlyFull(bool),
    /// Report every region that is led here.
    ReportAll,
    /// Answer to [`ShardAction::Job`].
    JobDone(JobDone),
    /// Answer to [`ShardAction::SendSnapshot`]; comes for every one of them.
    SnapshotSent {
        /// The region.
        region_id: u64,
        /// The peer to which it was sent.
        to_peer_id: u64,
        /// True: the peer's store has all of it. False: it failed, or was not tried.
        ok: bool,
    },
    /// Answer to [`StoreRequest::Unknown`]: the message is judged.
    UnknownSettled,
    /// Create a peer without range, membership and data; then let it take its message.
    Create {
        /// Id and epoch of the region; nothing else is known.
        region: Box<Region>,
        /// The peer.
        peer: metapb::Peer,
        /// What the shard publishes of it.
        view: Arc<PeerView>,
        /// The message that creates it.
        message: Box<RaftMessage>,
    },
    /// Send a message to the store of its receiver.
    Tell(Box<RaftMessage>),
    /// Answer to [`StoreRequest::Claim`].
    Claimed {
        /// The raft message with the snapshot.
        message: Box<RaftMessage>,
        /// Whether the range was free and the files are here.
        result: Result<(), SnapshotError>,
    },
}

/// Everything that a shard asks its driver to do, in the order given; [`ShardAction::Apply`] may
/// come after the others of its flush.
#[derive(Debug)]
pub enum ShardAction {
    /// Send messages to a store; they may be lost. No answer.
    Send {
        /// The store.
        to_store_id: u64,
        /// The messages, in order.
        messages: Vec<RaftMessage>,
    },
    /// Write a batch to the raft engine, batches in order; then send what waits for it.
    /// Answer: [`ShardEvent::LogPersisted`].
    WriteLog(LogBatch),
    /// Hand tasks to an apply shard, batches in order. Precondition: all entries are
    /// committed, and synced in this store's raft engine. Answer: [`ShardEvent::Applied`].
    Apply {
        /// The apply shard.
        apply_shard: usize,
        /// What to apply.
        tasks: Vec<ApplyTask>,
    },
    /// Serve a read on a snapshot taken from now on. Answer: [`ShardEvent::ClockWanted`],
    /// or none.
    Read(ReadTask),
    /// Deliver a result. No answer.
    Reply {
        /// Takes the result.
        reply: Reply,
        /// The result.
        result: Result<Answer, Error>,
    },
    /// Hand reports to the scheduler; they may be lost. No answer.
    Report(Vec<RegionHeartbeatRequest>),
    /// Hand a job to the region worker, or to the log gc worker, jobs in order. Answer:
    /// [`ShardEvent::JobDone`].
    Job(RegionJob),
    /// Send a snapshot to a store, with its files. Answer: [`ShardEvent::SnapshotSent`].
    SendSnapshot {
        /// The store.
        to_store_id: u64,
        /// The raft message, whose snapshot describes the files.
        message: Box<RaftMessage>,
    },
    /// Ask the store FSM, requests in order. Answer: as each request says.
    Store(StoreRequest),
}

/// Owns the peers of the regions that belong to it.
pub struct Shard<E: Engine> {
    pub(crate) index: usize,
    pub(crate) store_id: u64,
    pub(crate) options: StoreOptions,
    pub(crate) engines: Engines<E>,
    pub(crate) metrics: Arc<StoreMetrics>,
    pub(crate) admitted: bool,
    disk_nearly_full: bool,
    /// Boxed: a search goes over keys that lie close together.
    pub(crate) peers: BTreeMap<u64, Box<Peer<E>>>,
    /// Peers on their way out, by region; none of these is in `peers`.
    pub(crate) destroying: BTreeMap<u64, Destroying>,
    /// Messages for unknown regions that the store FSM has not judged yet.
    pub(crate) unknown_out: usize,
    /// Regions whose peers an event has touched since the last flush, each once.
    dirty: Vec<u64>,
    /// Ticks so far.
    ticks: u64,
    pub(crate) out: Outbox,
    pub(crate) log: LogLane,
    pub(crate) apply: Vec<ApplyLane>,
}

impl<E: Engine> Shard<E> {
    /// A shard without peers. `index` is its place among the store's shards.
    pub fn new(
        index: usize,
        store_id: u64,
        options: StoreOptions,
        engines: Engines<E>,
        metrics: Arc<StoreMetrics>,
    ) -> Self {
        let apply = (0..options.apply_shards)
            .map(|_| ApplyLane::default())
            .collect();
        Shard {
            index,
            store_id,
            // Planted: who may have lost a log takes no part (bootstrap).
            admitted: options.admitted || planted!(WipedStoreVotes),
            disk_nearly_full: false,
            options,
            engines,
            metrics,
            peers: BTreeMap::new(),
            destroying: BTreeMap::new(),
            unknown_out: 0,
            dirty: Vec::new(),
            ticks: 0,
            out: Outbox::default(),
            log: LogLane::default(),
            apply,
        }
    }

    /// Takes a peer over. An install that a crash cut off goes on at once.
    pub fn add_peer(&mut self, mut peer: Peer<E>) {
        let job = peer.install.as_ref().map(|i| i.job(peer.region_id()));
        self.out.jobs.extend(job);
        peer.rest = Rest::awake(self.ticks);
        peer.touched = true;
        self.dirty.push(peer.region_id());
        let region_id = peer.region_id();
        let before = self.peers.insert(region_id, Box::new(peer));
        assert!(before.is_none(), "region {region_id}: has a peer here");
    }

    /// The peers, in the order of their regions.
    pub fn peers(&self) -> impl Iterator<Item = &Peer<E>> {
        self.peers.values().map(Box::as_ref)
    }

    /// Takes an event. Its effects come with the next flush.
    pub fn handle(&mut self, now: Now, event: ShardEvent) {
        match event {
            ShardEvent::Message(message) => self.on_message(now, *message),
            ShardEvent::Request(request) => self.on_request(now, *request),
            ShardEvent::ClockWanted(read) => self.on_clock_wanted(now, *read),
            ShardEvent::Tick => self.on_tick(now),
            ShardEvent::LogPersisted { number } => self.on_log_persisted(now, number),
            ShardEvent::Applied {
                apply_shard,
                batches,
                regions,
            } => {
                self.on_applied(now, apply_shard, batches, regions);
            }
            ShardEvent::Unreachable { store_id } => self.on_unreachable(now, store_id),
            ShardEvent::Admitted(admitted) => {
                // Without admission no tick is Raft's.
                self.peers.values_mut().for_each(|p| p.wake(self.ticks));
                self.admitted = admitted;
            }
            ShardEvent::DiskNearlyFull(full) => self.disk_nearly_full = full,
            ShardEvent::ReportAll => self.on_report_all(now),
            ShardEvent::UnknownSettled => self.on_unknown_settled(),
            ShardEvent::Create {
                region,
                peer,
                view,
                message,
            } => self.on_create(now, *region, peer, view, *message),
            ShardEvent::Tell(message) => self.on_tell(*message),
            ShardEvent::JobDone(JobDone::Cleared { region_id }) => self.on_cleared(region_id),
            ShardEvent::JobDone(done) => {
                self.step(now, done.region_id(), |peer, context| {
                    peer.on_job_done(context, done)
                });
            }
            ShardEvent::SnapshotSent {
                region_id,
                to_peer_id,
                ok,
            } => {
                self.step(now, region_id, |peer, context| {
                    peer.on_snapshot_sent(context, to_peer_id, ok)
                });
            }
            ShardEvent::Claimed { message, result } => {
                self.step(now, message.region_id, |peer, context| {
                    peer.on_claimed(context, *message, result)
                });
            }
        }
    }

    /// Returns what is to be done since the last flush.
    pub fn flush(&mut self, now: Now) -> Vec<ShardAction> {
        let (ticks, admitted) = (self.ticks, self.admitted);
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for region_id in dirty.drain(..) {
            let Some((peer, mut context)) = self.peer_of(now, region_id) else {
                continue;
            };
            peer.collect(&mut context);
            if admitted {
                peer.settle(context.options, ticks);
            }
            peer.touched = false;
        }
        // Its room serves again; nothing has been touched meanwhile.
        self.dirty = dirty;
        self.begin_destroys(now);
        let mut actions = Vec::new();
        self.emit_messages(&mut actions);
        self.emit_log(&mut actions);
        self.emit_apply(&mut actions);
        self.emit_snapshots(now, &mut actions);
        let out = &mut self.out;
        actions.extend(out.store.drain(..).map(ShardAction::Store));
        actions.extend(out.jobs.drain(..).map(ShardAction::Job));
        actions.extend(out.reads.drain(..).map(ShardAction::Read));
        actions.extend(
            out.replies
                .drain(..)
                .map(|(reply, result)| ShardAction::Reply { reply, result }),
        );
        if !out.reports.is_empty() {
            self.metrics.region_heartbeats.add(out.reports.len() as u64);
            actions.push(ShardAction::Report(std::mem::take(&mut out.reports)));
        }
        actions
    }

    /// Whether something waits for a flush, or for [`ShardEvent::LogPersisted`]: if not, that would
    /// only note how far the log is, and may come with the next event. Each event may change it.
    pub fn waits_for_log(&self) -> bool {
        let mut readys = self.log.in_flight.iter().flat_map(|(_, readys)| readys);
        self.out.log_sync
            || self.out.has_actions()
            || !self.dirty.is_empty()
            || readys.any(|(region_id, _)| {
                let peer = self.peers.get(region_id);
                peer.is_none_or(|peer| peer.waits_for_sync())
            })
    }

    /// A peer, woken, with the context of a step.
    fn peer_of(&mut self, now: Now, region_id: u64) -> Option<(&mut Peer<E>, StepContext<'_>)> {
        let peer = self.peers.get_mut(&region_id)?;
        peer.wake(self.ticks);
        let context = StepContext {
            now,
            store_id: self.store_id,
            shard: self.index,
            disk_nearly_full: self.disk_nearly_full,
            options: &self.options,
            metrics: &self.metrics,
            out: &mut self.out,
        };
        Some((peer, context))
    }

    /// Runs `action` on a peer with the context of a step, and marks the peer as touched.
    /// Returns false if there is no such peer.
    pub(crate) fn step(
        &mut self,
        now: Now,
        region_id: u64,
        action: impl FnOnce(&mut Peer<E>, &mut StepContext<'_>),
    ) -> bool {
        let action = |peer: &mut Peer<E>, context: &mut StepContext<'_>, ()| action(peer, context);
        self.step_with(now, region_id, (), action).is_ok()
    }

    /// The same with what `action` takes over, which comes back if there is no such peer.
    fn step_with<T>(
        &mut self,
        now: Now,
        region_id: u64,
        taken: T,
        action: impl FnOnce(&mut Peer<E>, &mut StepContext<'_>, T),
    ) -> Result<(), T> {
        let Some((peer, mut context)) = self.peer_of(now, region_id) else {
            return Err(taken);
        };
        action(peer, &mut context, taken);
        if !std::mem::replace(&mut peer.touched, true) {
            self.dirty.push(region_id);
        }
        Ok(())
    }

    fn on_message(&mut self, now: Now, message: RaftMessage) {
        self.metrics.messages_received.increment();
        if !self.admitted {
            self.metrics.messages_dropped_not_admitted.increment();
            return;
        }
        let region_id = message.region_id;
        let stepped = self.step_with(now, region_id, message, |peer, context, message| {
            peer.on_raft_message(context, message);
        });
        if let Err(message) = stepped {
            self.on_unknown_region(message);
        }
    }

    fn on_request(&mut self, now: Now, mut pending: PendingRequest) {
        pending.taken = now.monotonic;
        let region_id = pending.request.header.region_id;
        let stepped = self.step_with(now, region_id, pending, |peer, context, pending| {
            peer.on_request(context, pending);
        });
        if let Err(pending) = stepped {
            self.refuse_unknown(pending.reply, region_id);
        }
    }

    fn on_clock_wanted(&mut self, now: Now, read: ReadTask) {
        let region_id = read.region.id;
        let stepped = self.step_with(now, region_id, read, |peer, context, read| {
            peer.on_clock_wanted(context, read);
        });
        if let Err(read) = stepped {
            self.refuse_unknown(read.reply, region_id);
        }
    }

    fn refuse_unknown(&mut self, reply: Reply, region_id: u64) {
        let error = Error::RegionNotFound { region_id };
        self.out.replies.push((reply, Err(error)));
    }

    fn on_tick(&mut self, now: Now) {
        self.ticks += 1;
        let mut context = StepContext {
            now,
            store_id: self.store_id,
            shard: self.index,
            disk_nearly_full: self.disk_nearly_full,
            options: &self.options,
            metrics: &self.metrics,
            out: &mut self.out,
        };
        for peer in self.peers.values_mut() {
            if self.options.rest && peer.rest.covers(self.ticks, now.monotonic) {
                continue;
            }
            // Its own tick is not one of those that it has missed.
            peer.wake(self.ticks - 1);
            let due = peer.on_tick(&mut context, self.admitted);
            peer.rest = Rest::awake(self.ticks);
            if due {
                if !std::mem::replace(&mut peer.touched, true) {
                    self.dirty.push(peer.region_id());
                }
            } else if self.admitted {
                peer.settle(context.options, self.ticks);
            }
        }
        // Commit indices that no synced batch has taken along go to disk with the tick.
        self.out.log_sync |= !self.out.log.is_empty() && self.log.in_flight.is_empty();
    }

    fn on_log_persisted(&mut self, now: Now, number: u64) {
        while self
            .log
            .in_flight
            .front()
            .is_some_and(|(front, _)| *front <= number)
        {
            let (_, readys) = self.log.in_flight.pop_front().expect("looked at above");
            for (region_id, ready) in readys {
                let of_peer = self.step(now, region_id, |peer, context| {
                    peer.on_persisted(context, ready)
                });
                if !of_peer {
                    self.on_log_of_destroyed(region_id, ready);
                }
            }
        }
    }

    fn on_applied(&mut self, now: Now, lane: usize, batches: usize, regions: Vec<Applied>) {
        let in_flight = &mut self.apply[lane].in_flight;
        assert!(
            batches <= *in_flight,
            "apply shard {lane} answers {batches} batches, {in_flight} are out"
        );
        *in_flight -= batches;
        for applied in regions {
            let region_id = applied.region_id;
            let stepped = self.step_with(now, region_id, applied, |peer, context, applied| {
                peer.on_applied(context, applied);
            });
            if stepped.is_err_and(|left| left.changes.contains(&RegionChange::Destroyed)) {
                self.on_tombstone_synced(region_id);
            }
        }
    }

    fn on_unreachable(&mut self, now: Now, store_id: u64) {
        let regions: Vec<u64> = self.peers.keys().copied().collect();
        for region_id in regions {
            self.step(now, region_id, |peer, _| peer.on_unreachable(store_id));
        }
    }

    fn on_report_all(&mut self, now: Now) {
        let regions: Vec<u64> = self.peers.keys().copied().collect();
        for region_id in regions {
            self.step(now, region_id, |peer, context| {
                peer.report_if_leader(context)
            });
        }
    }
}

/// The raft shard that owns a region's peer.
pub fn shard_of(region_id: u64, shards: usize) -> usize {
    (region_id % shards as u64) as usize
}

/// The apply shard that applies a region's entries.
pub fn apply_shard_of(region_id: u64, apply_shards: usize) -> usize {
    (region_id % apply_shards as u64) as usize
}
