//! A whole store as one stepped machine: what the simulator drives in a single thread.
//!
//! The same gate, shards, apply shards and store FSM run here as on the runtime's threads.
//! Every queue between them is made of [`StoreEffect`]s: the driver carries each out, or
//! holds it back, or loses it with a crash, and hands in the [`StoreEvent`] that answers.
//!
//! | effect | what the driver does | answer |
//! |---|---|---|
//! | `Send` | takes the messages to a store, or loses them | none |
//! | `WriteLog` | writes to the raft engine, in order per shard, then sends what the batch says is to be sent after its sync | `LogPersisted` |
//! | `Apply` | nothing yet; in order per shard and apply shard | `Apply` with the same work |
//! | `WriteData` | writes to the kv engine, in order per apply shard | `DataWritten`; after it `WriteData` of the rest, where it has one, before other work |
//! | `Read` | nothing yet | `Serve` with the same task |
//! | `Reply` | delivers the result | none |
//! | `Job` | lets the worker of its kind get to it, jobs in order | `JobDone` |
//! | `SendSnapshot` | takes files and message to a store, or loses them | `SnapshotSent`, always |
//! | `Report` | takes the reports to the scheduler, or loses them | none |
//! | `Fatal` | ends the process | none |

use std::sync::Arc;
use std::time::Duration;

use strata_proto::metapb;
use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_storage::snapshot::{SnapshotEngine, SnapshotError, SnapshotManager};
use strata_storage::{Durability, Engines, WriteBatch};

use crate::apply::{ApplyOutput, ApplyShard, ApplyTask};
use crate::claim::check_offer;
use crate::directory::DirectoryCell;
use crate::error::Error;
use crate::gate::{Gate, GateAction, ReadOutcome, serve_task};
use crate::job::{JobDone, RegionJob};
use crate::log_gc_worker::LogGcWorker;
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::region_worker::RegionWorker;
use crate::request::{Answer, Reply, Request, RequestToken};
use crate::shard::{LogBatch, Shard, ShardAction, ShardEvent, shard_of};
use crate::store_fsm::{LoadError, LoadedStore, StoreFsm};
use crate::system::SystemStateMachine;
use crate::task::ReadTask;
use crate::time::Now;
use crate::write_stages::BatchTimes;

/// Everything that can happen to a store.
#[derive(Debug)]
pub enum StoreEvent {
    /// A raft message from another store.
    Message(RaftMessage),
    /// A request from a client, which lets it run whatever becomes of the client.
    Request {
        /// The request.
        request: Request,
        /// Takes the result.
        reply: Reply,
    },
    /// A tick interval has passed.
    Tick,
    /// Answer to [`StoreEffect::WriteLog`]: written, and synced where it asked for it.
    LogPersisted {
        /// The raft shard.
        shard: usize,
        /// Number of the batch.
        number: u64,
    },
    /// Answer to [`StoreEffect::Apply`]: the apply shard gets to it.
    Apply(ApplyWork),
    /// Answer to [`StoreEffect::WriteData`]: written.
    DataWritten(DataWrite),
    /// Answer to [`StoreEffect::Read`]: a reader gets to it.
    Serve(ReadTask),
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
    /// Answer to [`StoreEffect::Job`].
    JobDone(JobDone),
    /// Answer to [`StoreEffect::SendSnapshot`].
    SnapshotSent {
        /// The region.
        region_id: u64,
        /// The peer to which it was sent.
        to_peer_id: u64,
        /// True: the peer's store has all of it.
        ok: bool,
    },
}

/// Everything that a store asks its driver to do, in the order given.
#[derive(Debug)]
pub enum StoreEffect {
    /// Send messages to a store.
    Send {
        /// The store.
        to_store_id: u64,
        /// The messages, in order.
        messages: Vec<RaftMessage>,
    },
    /// Write a batch to the raft engine; when that is synced, send its
    /// [`LogBatch::after_sync`].
    WriteLog {
        /// The raft shard that asks.
        shard: usize,
        /// The batch.
        batch: LogBatch,
    },
    /// Let an apply shard get to some work.
    Apply(ApplyWork),
    /// Write a batch to the kv engine.
    WriteData(DataWrite),
    /// Let a reader get to a read.
    Read(ReadTask),
    /// Deliver a result.
    Reply {
        /// Takes the result.
        reply: Reply,
        /// The result.
        result: Result<Answer, Error>,
    },
    /// Hand reports to the scheduler.
    Report(Vec<RegionHeartbeatRequest>),
    /// Hand a job to the worker of its kind.
    Job(RegionJob),
    /// Send a snapshot to a store, with its files.
    SendSnapshot {
        /// The store.
        to_store_id: u64,
        /// The raft message, whose snapshot describes the files.
        message: Box<RaftMessage>,
    },
    /// End the process: the line to log.
    Fatal(String),
}

/// Entries on their way from a raft shard to an apply shard.
#[derive(Debug)]
pub struct ApplyWork {
    /// The raft shard that asks.
    pub shard: usize,
    /// The apply shard.
    pub apply_shard: usize,
    /// What to apply.
    pub tasks: Vec<ApplyTask>,
}

/// A batch for the kv engine, with what may leave once it is written.
#[derive(Debug)]
pub struct DataWrite {
    /// The raft shard whose work it is.
    pub shard: usize,
    /// The apply shard that made it.
    pub apply_shard: usize,
    /// When its execution began.
    begun: Duration,
    output: ApplyOutput,
}

impl DataWrite {
    /// What to write.
    pub fn batch(&self) -> &WriteBatch {
        &self.output.batch
    }

    /// True if the work had no room in this batch: another one of it follows, which goes
    /// before other work of the apply shard.
    pub fn has_rest(&self) -> bool {
        !self.output.rest.is_empty()
    }

    /// Whether the batch has to be synced.
    pub fn durability(&self) -> Durability {
        self.output.durability
    }
}

/// The workers of a store. The driver hands each its jobs and steps it.
pub struct Workers<E: SnapshotEngine> {
    /// Takes all jobs but `GcLog`.
    pub region: RegionWorker<E>,
    /// Takes `GcLog`.
    pub log_gc: LogGcWorker<E>,
}

/// A store without threads.
pub struct StoreCore<E: SnapshotEngine> {
    engines: Engines<E>,
    snapshots: SnapshotManager<E::Files>,
    fsm: StoreFsm<E>,
    gate: Gate<E>,
    shards: Vec<Shard<E>>,
    apply_shards: Vec<ApplyShard>,
    /// Apply shards whose work had no room in its batch.
    owes_rest: Vec<bool>,
    metrics: Arc<StoreMetrics>,
}

impl<E: SnapshotEngine> StoreCore<E> {
    /// Loads a store from its engines and its snapshot files.
    ///
    /// # Errors
    /// See [`LoadError`]; the store must not start.
    pub fn load(
        store_id: u64,
        options: &StoreOptions,
        engines: Engines<E>,
        snapshots: SnapshotManager<E::Files>,
        system: &Arc<dyn SystemStateMachine>,
        now: Now,
    ) -> Result<Self, LoadError> {
        let metrics = Arc::new(StoreMetrics::default());
        let mut fsm = StoreFsm::new(store_id, snapshots.clone());
        let LoadedStore {
            shards,
            apply_shards,
            directory,
        } = fsm.load(options, &engines, system, &metrics, now)?;
        let gate = Gate::new(
            store_id,
            options.clone(),
            directory,
            engines.kv.clone(),
            metrics.clone(),
        );
        Ok(StoreCore {
            engines,
            snapshots,
            fsm,
            gate,
            shards,
            owes_rest: vec![false; apply_shards.len()],
            apply_shards,
            metrics,
        })
    }

    /// The regions and what their peers publish.
    pub fn directory(&self) -> &Arc<DirectoryCell> {
        self.gate.directory()
    }

    /// Counters.
    pub fn metrics(&self) -> &Arc<StoreMetrics> {
        &self.metrics
    }

    /// The engines.
    pub fn engines(&self) -> &Engines<E> {
        &self.engines
    }

    /// Workers for this life of the store, without jobs.
    pub fn workers(&self, options: &StoreOptions) -> Workers<E> {
        let (kv, snapshots) = (self.engines.kv.clone(), self.snapshots.clone());
        Workers {
            region: RegionWorker::new(options, kv, snapshots, self.directory().clone()),
            log_gc: LogGcWorker::new(self.engines.clone()),
        }
    }

    /// Whether a snapshot that is offered for a peer of this store can be of use; see
    /// [`StoreHandle::check_snapshot`](crate::StoreHandle::check_snapshot).
    ///
    /// # Errors
    /// As there.
    pub fn check_snapshot(
        &self,
        meta: &SnapshotMeta,
        to_peer: &metapb::Peer,
    ) -> Result<(), SnapshotError> {
        check_offer(&self.directory().load(), meta, to_peer)
    }

    /// The snapshot files.
    pub fn snapshots(&self) -> &SnapshotManager<E::Files> {
        &self.snapshots
    }

    /// The raft shards, for inspection.
    pub fn shards(&self) -> &[Shard<E>] {
        &self.shards
    }

    /// Takes one event and returns its effects.
    pub fn handle(&mut self, now: Now, event: StoreEvent) -> Vec<StoreEffect> {
        self.handle_all(now, [event])
    }

    /// Takes several events that came in together, as one drain of the inboxes.
    pub fn handle_all(
        &mut self,
        now: Now,
        events: impl IntoIterator<Item = StoreEvent>,
    ) -> Vec<StoreEffect> {
        let mut effects = Vec::new();
        for event in events {
            self.take(now, event, &mut effects);
        }
        self.flush(now, &mut effects);
        effects
    }

    /// Takes a request whose sender may give it up by dropping the token.
    pub fn execute(
        &mut self,
        now: Now,
        request: Request,
        reply: Reply,
    ) -> (RequestToken, Vec<StoreEffect>) {
        let mut effects = Vec::new();
        let token = self.admit(now, request, reply, &mut effects);
        self.flush(now, &mut effects);
        (token, effects)
    }

    fn take(&mut self, now: Now, event: StoreEvent, effects: &mut Vec<StoreEffect>) {
        #[cfg(feature = "planted-faults")]
        strata_raft::planted::show_wall_ms(now.wall_ms);
        match event {
            StoreEvent::Message(message) => {
                let shard = shard_of(message.region_id, self.shards.len());
                self.shards[shard].handle(now, ShardEvent::Message(Box::new(message)));
            }
            StoreEvent::Request { request, reply } => {
                self.admit(now, request, reply, effects).detach();
            }
            StoreEvent::Tick => self.each_shard(now, || ShardEvent::Tick),
            StoreEvent::LogPersisted { shard, number } => {
                self.shards[shard].handle(now, ShardEvent::LogPersisted { number });
            }
            StoreEvent::Apply(work) => self.apply(now, work, effects),
            StoreEvent::DataWritten(write) => self.on_data_written(now, write, effects),
            StoreEvent::Serve(task) => {
                let snapshot = self.engines.kv.snapshot();
                self.serve(now, &snapshot, task, effects);
            }
            StoreEvent::Unreachable { store_id } => {
                self.each_shard(now, || ShardEvent::Unreachable { store_id });
            }
            StoreEvent::Admitted(admitted) => {
                self.each_shard(now, || ShardEvent::Admitted(admitted));
            }
            StoreEvent::DiskNearlyFull(full) => {
                self.each_shard(now, || ShardEvent::DiskNearlyFull(full));
            }
            StoreEvent::ReportAll => self.each_shard(now, || ShardEvent::ReportAll),
            StoreEvent::JobDone(done) => {
                self.hand_to_shard(now, done.region_id(), ShardEvent::JobDone(done));
            }
            StoreEvent::SnapshotSent {
                region_id,
                to_peer_id,
                ok,
            } => {
                let event = ShardEvent::SnapshotSent {
                    region_id,
                    to_peer_id,
                    ok,
                };
                self.hand_to_shard(now, region_id, event);
            }
        }
    }

    fn hand_to_shard(&mut self, now: Now, region_id: u64, event: ShardEvent) {
        let shard = shard_of(region_id, self.shards.len());
        self.shards[shard].handle(now, event);
    }

    fn each_shard(&mut self, now: Now, event: impl Fn() -> ShardEvent) {
        for shard in &mut self.shards {
            shard.handle(now, event());
        }
    }

    /// Takes a request without a flush, so that several can come in together: whoever calls
    /// this steps the store soon.
    pub fn admit(
        &mut self,
        now: Now,
        request: Request,
        reply: Reply,
        effects: &mut Vec<StoreEffect>,
    ) -> RequestToken {
        let (token, action) = self.gate.admit(now, request, reply);
        match action {
            GateAction::Reply { reply, result } => {
                effects.push(StoreEffect::Reply { reply, result });
            }
            GateAction::ToShard { shard, pending } => {
                self.shards[shard].handle(now, ShardEvent::Request(Box::new(pending)));
            }
            GateAction::Read { snapshot, task } => self.serve(now, &snapshot, task, effects),
            GateAction::ClockWanted(task) => self.want_clock(now, task),
            GateAction::Fatal(fault) => effects.push(StoreEffect::Fatal(fault.to_string())),
        }
        token
    }

    fn serve(
        &mut self,
        now: Now,
        snapshot: &E::Snapshot,
        task: ReadTask,
        effects: &mut Vec<StoreEffect>,
    ) {
        match serve_task::<E>(now, snapshot, task) {
            ReadOutcome::Reply { reply, result } => {
                effects.push(StoreEffect::Reply { reply, result });
            }
            ReadOutcome::ClockWanted(task) => self.want_clock(now, task),
            ReadOutcome::Fatal(fault) => effects.push(StoreEffect::Fatal(fault.to_string())),
        }
    }

    fn want_clock(&mut self, now: Now, task: ReadTask) {
        self.shards[task.shard].handle(now, ShardEvent::ClockWanted(Box::new(task)));
    }

    fn apply(&mut self, now: Now, work: ApplyWork, effects: &mut Vec<StoreEffect>) {
        let ApplyWork {
            shard,
            apply_shard,
            tasks,
        } = work;
        assert!(
            !self.owes_rest[apply_shard],
            "apply shard {apply_shard}: work of shard {shard} came before the rest of other work"
        );
        self.apply_tasks(now, (shard, apply_shard), tasks, effects);
    }

    fn apply_tasks(
        &mut self,
        now: Now,
        (shard, apply_shard): (usize, usize),
        tasks: Vec<ApplyTask>,
        effects: &mut Vec<StoreEffect>,
    ) {
        effects.push(
            match self.apply_shards[apply_shard].apply(&self.engines.kv, tasks) {
                Ok(output) => {
                    self.owes_rest[apply_shard] = !output.rest.is_empty();
                    StoreEffect::WriteData(DataWrite {
                        shard,
                        apply_shard,
                        begun: now.monotonic,
                        output,
                    })
                }
                Err(fault) => StoreEffect::Fatal(fault.to_string()),
            },
        );
    }

    fn on_data_written(&mut self, now: Now, write: DataWrite, effects: &mut Vec<StoreEffect>) {
        let DataWrite {
            shard,
            apply_shard,
            begun,
            output,
        } = write;
        // No time passes between here and the replies.
        let times = BatchTimes {
            begun,
            written: now.monotonic,
            answered: now.monotonic,
        };
        self.metrics
            .write_stages
            .record_batch(&output.writes, &times);
        let replies = output.replies.into_iter();
        effects.extend(replies.map(|(reply, result)| StoreEffect::Reply { reply, result }));
        effects.extend(output.reads.into_iter().map(StoreEffect::Read));
        let regions = output.applied;
        self.shards[shard].handle(
            now,
            ShardEvent::Applied {
                apply_shard,
                batches: usize::from(output.rest.is_empty()),
                regions,
            },
        );
        if !output.rest.is_empty() {
            self.apply_tasks(now, (shard, apply_shard), output.rest, effects);
        }
    }

    fn flush(&mut self, now: Now, effects: &mut Vec<StoreEffect>) {
        // The store FSM answers at once; what follows from that joins this step.
        let mut answered = true;
        while std::mem::take(&mut answered) {
            for shard in 0..self.shards.len() {
                for action in self.shards[shard].flush(now) {
                    if let ShardAction::Store(request) = action {
                        for answer in self.fsm.handle(now, request) {
                            self.shards[answer.shard].handle(now, answer.event);
                            answered = true;
                        }
                    } else {
                        effects.extend(to_effect(shard, action));
                    }
                }
            }
        }
    }
}

fn to_effect(shard: usize, action: ShardAction) -> Option<StoreEffect> {
    Some(match action {
        ShardAction::Send {
            to_store_id,
            messages,
        } => StoreEffect::Send {
            to_store_id,
            messages,
        },
        ShardAction::WriteLog(batch) => StoreEffect::WriteLog { shard, batch },
        ShardAction::Apply { apply_shard, tasks } => StoreEffect::Apply(ApplyWork {
            shard,
            apply_shard,
            tasks,
        }),
        ShardAction::Read(task) => StoreEffect::Read(task),
        ShardAction::Reply { reply, result } => StoreEffect::Reply { reply, result },
        ShardAction::Report(reports) => StoreEffect::Report(reports),
        ShardAction::Job(job) => StoreEffect::Job(job),
        ShardAction::SendSnapshot {
            to_store_id,
            message,
        } => StoreEffect::SendSnapshot {
            to_store_id,
            message,
        },
        // Answered within the core.
        ShardAction::Store(_) => return None,
    })
}
