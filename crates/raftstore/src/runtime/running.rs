//! A store with its threads: start, requests from outside, stop.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use slog::{Logger, error, info};
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_storage::snapshot::{SnapshotEngine, SnapshotError, SnapshotManager};
use strata_storage::{Engine, Engines};

use super::applier::{Applier, ApplyMail, ApplyThread};
use super::inbox::{Inbox, ShardMail, message_weight, request_weight, want_clock};
use super::log_gc::{FlushLimits, run_log_gc_worker};
use super::log_writer::{LogMail, run_log_writer};
use super::mailbox::{MailReceiver, mailbox};
use super::region_jobs::{Pace, run_region_worker};
use super::shard_task::{ApplyLane, ShardTask};
use super::threads::{PanicGuard, ReadMail, run_expiry, run_reader, send_read, stop_process};
use super::{RegionState, RegionSummary, StartError, StoreApi, Surroundings, Transport, clock};
use crate::apply::ApplyShard;
use crate::claim::check_offer;
use crate::directory::{DirectoryEntry, find_peer};
use crate::error::Error;
use crate::gate::{Gate, GateAction};
use crate::job::RegionJob;
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::region_worker::RegionWorker;
use crate::request::{Reply, Request, RequestToken};
use crate::shard::{Shard, ShardEvent, shard_of};
use crate::store_fsm::{LoadedStore, StoreFsm};
use crate::store_request::StoreRequest;

/// Reads that may wait for a reader thread.
const READ_QUEUE_CAPACITY: usize = 16 << 10;

/// A store and its threads.
pub(super) struct Running<E: SnapshotEngine> {
    options: StoreOptions,
    engines: Engines<E>,
    gate: Gate<E>,
    inboxes: Vec<Inbox>,
    readers: Sender<ReadMail<E::Snapshot>>,
    snapshots: SnapshotManager<E::Files>,
    /// Until the shards have them.
    ways: Mutex<Option<Ways>>,
    metrics: Arc<StoreMetrics>,
    logger: Logger,
    /// Ends the expiry thread when it is dropped.
    expiry_stop: Mutex<Option<Sender<()>>>,
    /// Closes when the tasks of all shards have ended.
    shards_ended: Receiver<()>,
    /// Threads in the order of their start.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The receiving ends of all channels, until the threads take them.
struct Ends<S> {
    mails: Vec<MailReceiver<ShardMail>>,
    works: Vec<(Sender<ApplyMail>, Receiver<ApplyMail>)>,
    reads: Receiver<ReadMail<S>>,
    requests: Receiver<StoreRequest>,
    region_jobs: Receiver<RegionJob>,
    log_gc: Receiver<RegionJob>,
}

/// The ways from the shards to what runs beside them.
#[derive(Clone)]
struct Ways {
    store: Sender<StoreRequest>,
    region_jobs: Sender<RegionJob>,
    log_gc: Sender<RegionJob>,
    ended: Sender<()>,
}

impl<E: SnapshotEngine> Running<E> {
    pub fn start(
        store_id: u64,
        options: StoreOptions,
        engines: Engines<E>,
        snapshots: SnapshotManager<E::Files>,
        surroundings: Surroundings,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(StoreMetrics::default());
        let mut fsm = StoreFsm::new(store_id, snapshots.clone());
        let loaded = fsm.load(
            &options,
            &engines,
            &surroundings.system,
            &metrics,
            clock::now(),
        )?;
        let LoadedStore {
            shards,
            apply_shards,
            directory,
        } = loaded;
        info!(surroundings.logger, "regions are loaded";
            "store" => store_id, "regions" => directory.load().iter().count());
        let gate = Gate::new(
            store_id,
            options.clone(),
            directory,
            engines.kv.clone(),
            metrics.clone(),
        );
        let (inboxes, mails) = (0..options.raft_shards)
            .map(|_| Inbox::new(options.inbox_capacity))
            .unzip();
        let (readers, reads) = bounded(READ_QUEUE_CAPACITY);
        let (store, requests) = unbounded();
        let (region_jobs_in, region_jobs) = unbounded();
        let (log_gc_in, log_gc) = unbounded();
        let (ended, shards_ended) = bounded(0);
        let ways = Ways {
            store,
            region_jobs: region_jobs_in,
            log_gc: log_gc_in,
            ended,
        };
        let works = (0..options.apply_shards).map(|_| unbounded()).collect();
        let logger = surroundings.logger.clone();
        let (expiry_stop, threads) = (Mutex::default(), Mutex::default());
        let running = Running {
            options,
            engines,
            gate,
            inboxes,
            readers,
            snapshots,
            ways: Mutex::new(Some(ways)),
            metrics,
            logger,
            expiry_stop,
            shards_ended,
            threads,
        };
        let ends = Ends {
            mails,
            works,
            reads,
            requests,
            region_jobs,
            log_gc,
        };
        let started = running.start_threads(shards, apply_shards, fsm, ends, &surroundings);
        if let Err(error) = started {
            running.stop();
            return Err(error.into());
        }
        Ok(running)
    }

    fn start_threads(
        &self,
        shards: Vec<Shard<E>>,
        apply_shards: Vec<ApplyShard>,
        fsm: StoreFsm<E>,
        ends: Ends<E::Snapshot>,
        surroundings: &Surroundings,
    ) -> std::io::Result<()> {
        let ways = self.ways.lock().take().expect("threads are started once");
        let appliers: Vec<_> = apply_shards
            .into_iter()
            .map(|shard| self.applier(shard))
            .collect();
        for (index, (shard, mails)) in shards.into_iter().zip(ends.mails).enumerate() {
            let (log, batches) = mailbox();
            let lanes = appliers.iter().zip(&ends.works);
            let task = ShardTask {
                index,
                shard,
                mails,
                waiting: self.inboxes[index].waiting.clone(),
                waits_for_log: self.inboxes[index].waits_for_log.clone(),
                tick_interval: self.options.tick_interval,
                inline_apply_bytes: self.options.inline_apply_bytes,
                log,
                apply: lanes
                    .map(|(applier, (thread, _))| lane(applier, thread))
                    .collect(),
                readers: self.readers.clone(),
                store: ways.store.clone(),
                region_jobs: ways.region_jobs.clone(),
                log_gc: ways.log_gc.clone(),
                transport: surroundings.transport.clone(),
                heartbeats: surroundings.heartbeats.clone(),
                metrics: self.metrics.clone(),
                _guard: self.guard(format!("raft-{index}")),
                _ended: ways.ended.clone(),
            };
            surroundings.runtime.spawn(task.run());
            self.start_log_writer(index, batches, surroundings.transport.clone())?;
        }
        for (index, (applier, (_, works))) in appliers.into_iter().zip(ends.works).enumerate() {
            let thread = ApplyThread {
                index,
                applier,
                works,
                inboxes: self.inboxes.clone(),
            };
            self.spawn(format!("apply-{index}"), move || thread.run())?;
        }
        self.start_store_fsm(fsm, ends.requests)?;
        self.start_workers(ends.region_jobs, ends.log_gc)?;
        for index in 0..self.options.read_threads {
            let (kv, reads) = (self.engines.kv.clone(), ends.reads.clone());
            let (inboxes, logger) = (self.inboxes.clone(), self.logger.clone());
            self.spawn(format!("read-{index}"), move || {
                run_reader(&kv, &reads, &inboxes, &logger);
            })?;
        }
        self.start_expiry()
    }

    fn applier(&self, shard: ApplyShard) -> Arc<Applier<E>> {
        Arc::new(Applier {
            shard: Mutex::new(shard),
            // Keys and values of writes take more room in a batch than in an entry.
            inline_batch_bytes: self.options.inline_apply_bytes.saturating_mul(2),
            kv: self.engines.kv.clone(),
            readers: self.readers.clone(),
            metrics: self.metrics.clone(),
            logger: self.logger.clone(),
        })
    }

    /// They end when the last shard has.
    fn start_workers(
        &self,
        region_jobs: Receiver<RegionJob>,
        log_gc_jobs: Receiver<RegionJob>,
    ) -> std::io::Result<()> {
        let region = RegionWorker::new(
            &self.options,
            self.engines.kv.clone(),
            self.snapshots.clone(),
            self.gate.directory().clone(),
        );
        let (inboxes, logger) = (self.inboxes.clone(), self.logger.clone());
        let metrics = self.metrics.clone();
        let pace = Pace::new(self.options.snapshot_bytes_per_second);
        self.spawn("region-worker".to_owned(), move || {
            run_region_worker(region, pace, &region_jobs, &inboxes, &metrics, &logger);
        })?;
        let engines = self.engines.clone();
        let limits = FlushLimits {
            interval: self.options.flush_interval,
            log_bytes: self.options.flush_log_bytes,
        };
        let (inboxes, logger) = (self.inboxes.clone(), self.logger.clone());
        self.spawn("log-gc".to_owned(), move || {
            run_log_gc_worker(&engines, &log_gc_jobs, limits, &inboxes, &logger);
        })
    }

    /// Ends when the last shard has.
    fn start_store_fsm(
        &self,
        mut fsm: StoreFsm<E>,
        requests: Receiver<StoreRequest>,
    ) -> std::io::Result<()> {
        let inboxes = self.inboxes.clone();
        self.spawn("store".to_owned(), move || {
            while let Ok(request) = requests.recv() {
                for answer in fsm.handle(clock::now(), request) {
                    inboxes[answer.shard].event(answer.event);
                }
            }
        })
    }

    fn start_expiry(&self) -> std::io::Result<()> {
        let (stop, stopped) = bounded(0);
        *self.expiry_stop.lock() = Some(stop);
        let (kv, directory) = (self.engines.kv.clone(), self.gate.directory().clone());
        let (interval, logger) = (self.options.expiry_interval, self.logger.clone());
        self.spawn("expiry".to_owned(), move || {
            run_expiry(&kv, &directory, interval, &stopped, &logger);
        })
    }

    fn start_log_writer(
        &self,
        index: usize,
        batches: MailReceiver<LogMail>,
        transport: Arc<dyn Transport>,
    ) -> std::io::Result<()> {
        let (raft, inbox) = (self.engines.raft.clone(), self.inboxes[index].clone());
        let (metrics, logger) = (self.metrics.clone(), self.logger.clone());
        self.spawn(format!("log-{index}"), move || {
            run_log_writer(&raft, &batches, &inbox, &*transport, &metrics, &logger);
        })
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let guard = self.guard(name.clone());
        let handle = std::thread::Builder::new().name(name).spawn(move || {
            let guard = guard;
            run();
            drop(guard);
        })?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// For what runs under this name.
    fn guard(&self, name: String) -> PanicGuard {
        PanicGuard {
            logger: self.logger.clone(),
            name,
        }
    }

    /// Ends all tasks and threads. Shards end first; log writers and apply shards follow when no
    /// shard can send to them any more.
    fn stop(&self) {
        for inbox in &self.inboxes {
            // Refused where the shard has ended already.
            let _ = inbox.sender.send(ShardMail::Stop);
        }
        drop(self.expiry_stop.lock().take());
        for _ in 0..self.options.read_threads {
            let _ = self.readers.send(ReadMail::Stop);
        }
        // Nothing is ever sent: it closes when the last task is gone.
        let _ = self.shards_ended.recv();
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }

    fn to_shard(&self, shard: usize, pending: crate::task::PendingRequest) {
        let weight = request_weight(&pending);
        let refused = self.inboxes[shard].offer(weight, ShardMail::Request(Box::new(pending)));
        if let Err(ShardMail::Request(pending)) = refused {
            self.metrics.requests_busy.increment();
            pending.reply.deliver(Err(Error::ServerIsBusy {
                reason: "the inbox of the shard is full",
                backoff_ms: self.options.park_time.as_millis() as u64,
            }));
        }
    }

    fn to_all_shards(&self, event: impl Fn() -> ShardEvent) {
        for inbox in &self.inboxes {
            inbox.event(event());
        }
    }
}

fn lane<E: Engine>(applier: &Arc<Applier<E>>, thread: &Sender<ApplyMail>) -> ApplyLane<E> {
    ApplyLane {
        applier: applier.clone(),
        thread: thread.clone(),
        on_thread: 0,
    }
}

impl<E: SnapshotEngine> StoreApi for Running<E> {
    fn execute(&self, request: Request, reply: Reply) -> RequestToken {
        let (token, action) = self.gate.admit(clock::now(), request, reply);
        match action {
            GateAction::Reply { reply, result } => reply.deliver(result),
            GateAction::ToShard { shard, pending } => self.to_shard(shard, pending),
            GateAction::Read { snapshot, task } => send_read(&self.readers, Some(snapshot), task),
            GateAction::ClockWanted(task) => want_clock(&self.inboxes[task.shard], task),
            GateAction::Fatal(fault) => stop_process(&self.logger, &fault.to_string()),
        }
        token
    }

    fn now(&self) -> Duration {
        clock::monotonic()
    }

    fn deliver(&self, messages: Vec<RaftMessage>) {
        let mut by_shard: Vec<Vec<RaftMessage>> = self.inboxes.iter().map(|_| vec![]).collect();
        for message in messages {
            by_shard[shard_of(message.region_id, self.inboxes.len())].push(message);
        }
        for (inbox, messages) in self.inboxes.iter().zip(by_shard) {
            let (count, weight) = (messages.len(), messages.iter().map(message_weight).sum());
            let mail = ShardMail::Messages(weight, messages);
            if count > 0 && inbox.offer(weight, mail).is_err() {
                self.metrics.messages_dropped_full.add(count as u64);
            }
        }
    }

    fn report_unreachable(&self, store_id: u64) {
        self.to_all_shards(|| ShardEvent::Unreachable { store_id });
    }

    fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool) {
        let shard = shard_of(region_id, self.inboxes.len());
        self.inboxes[shard].event(ShardEvent::SnapshotSent {
            region_id,
            to_peer_id,
            ok,
        });
    }

    fn check_snapshot(&self, meta: &SnapshotMeta, to_peer: &Peer) -> Result<(), SnapshotError> {
        check_offer(&self.gate.directory().load(), meta, to_peer)
    }

    fn leader_of(&self, region_id: u64) -> Option<Peer> {
        self.gate.directory().entry(region_id)?.leader()
    }

    fn region_state(&self, region_id: u64) -> Option<RegionState> {
        self.gate
            .directory()
            .entry(region_id)
            .map(|entry| state_of(&entry))
    }

    fn regions(&self) -> Vec<RegionSummary> {
        self.gate
            .directory()
            .load()
            .iter()
            .map(|entry| summary_of(entry))
            .collect()
    }

    fn report_all_regions(&self) {
        self.to_all_shards(|| ShardEvent::ReportAll);
    }

    fn set_admitted(&self, admitted: bool) {
        self.to_all_shards(|| ShardEvent::Admitted(admitted));
    }

    fn set_disk_nearly_full(&self, full: bool) {
        self.to_all_shards(|| ShardEvent::DiskNearlyFull(full));
    }

    fn metrics(&self) -> Arc<StoreMetrics> {
        self.metrics.clone()
    }

    fn shutdown(&self) {
        self.stop();
        info!(self.logger, "the store has stopped");
        // The raft engine first: what the kv engine keeps must be in the log.
        for engine in [&self.engines.raft, &self.engines.kv] {
            if let Err(failure) = engine.make_durable() {
                error!(self.logger, "cannot sync an engine at shutdown"; "error" => %failure);
            }
        }
    }
}

fn state_of(entry: &DirectoryEntry) -> RegionState {
    let numbers = entry.view.numbers();
    RegionState {
        region: (*entry.region).clone(),
        leader: find_peer(&entry.region, numbers.leader),
        term: numbers.term,
        first_index: numbers.first,
        truncated_index: numbers.truncated,
        truncated_term: numbers.truncated_term,
        applied_index: numbers.applied,
        committed_index: numbers.committed,
        last_index: numbers.last,
        region_clock_ms: numbers.clock_ms,
    }
}

fn summary_of(entry: &DirectoryEntry) -> RegionSummary {
    let numbers = entry.view.numbers();
    RegionSummary {
        region: (*entry.region).clone(),
        leader: find_peer(&entry.region, numbers.leader),
        term: numbers.term,
        applied_index: numbers.applied,
    }
}
