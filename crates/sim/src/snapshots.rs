//! Snapshots between stores: streams over the simulated network, and the workers that make
//! and install.
//!
//! Stream   The production sender and receiver exchange frames, each with a delay, in
//!          order. A frame that is lost or meets a cut or a store that is down breaks the
//!          stream: the receiver syncs what it has, the leader is told that it failed, and a
//!          later stream goes on from there.
//! Workers  A store's region worker and log gc worker do a piece of work at a time, with
//!          delays; a crash falls in between.
//!
//! Invariant: every SendSnapshot of a store that lives on is answered.

use std::time::Duration;

use rand::Rng;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::snapshot_reply::Reply;
use strata_proto::stratapb::{SnapshotFrame, SnapshotReply};
use strata_raftstore::{
    JobDone, Received, RegionJob, SnapshotReceiver, SnapshotSender, StoreEvent, TransferOptions,
    WorkerFault,
};
use strata_storage::snapshot::{MemFiles, SnapshotError, from_raft};
use strata_storage::{EngineError, Error};

use crate::cluster::{Cluster, Event};
use crate::guard::guarded;

/// Longest time that a compacted log waits for the kv engine to flush by itself.
pub(crate) const LOG_GC_WAIT: Duration = Duration::from_millis(500);

/// Bytes of keys and values that a region worker reads in one piece of work.
const WORK_BUDGET_BYTES: usize = 512;
/// Bytes of a chunk: small, so that streams of small regions have several.
const CHUNK_BYTES: usize = 256;
/// How often an idle region worker looks at its files.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// When the leader is told that a stream could not be opened, as the server's transport does.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Share of frames that an unreliable network loses: each costs the whole stream.
const FRAME_LOSS: f64 = 0.02;

/// A stream under way.
pub(crate) struct SnapshotStream {
    from: (u64, u64),
    to: (u64, u64),
    region_id: u64,
    to_peer_id: u64,
    sender: SnapshotSender<MemFiles>,
    receiver: SnapshotReceiver<MemFiles>,
    /// True time before which nothing more arrives, each way: frames keep their order.
    busy_until: [Duration; 2],
}

impl Cluster {
    /// Opens a stream for a snapshot; one that cannot be opened has failed.
    pub(crate) fn send_snapshot(&mut self, from: u64, to: u64, message: RaftMessage) {
        self.watch.on_send(&message);
        let now = self.queue.now();
        let region_id = message.region_id;
        let to_peer_id = message.to_peer.map_or(0, |peer| peer.id);
        let options = TransferOptions {
            chunk_bytes: CHUNK_BYTES,
            ..TransferOptions::default()
        };
        let snapshot = message.message.as_ref().and_then(|m| m.snapshot.clone());
        let source = self.store(from);
        let manager = source.core.as_ref().map(|core| core.snapshots().clone());
        let files = manager.zip(snapshot).and_then(|(manager, snapshot)| {
            let meta = from_raft(&snapshot, strata_proto::stratapb::SnapshotForm::Memory).ok()?;
            let wanted = manager.list().into_iter().find(|info| {
                info.complete && info.key.id == meta.id && info.key.region_id == region_id
            })?;
            manager.get(&wanted.key)
        });
        let target = self.stores.get(&to).and_then(|store| store.core.as_ref());
        // Stores of another incarnation are not talked to.
        let target = target.filter(|_| !self.store(to).out && !self.store(from).out);
        let (Some(files), Some(target)) = (files, target) else {
            self.trace.note(now, "no stream", [from, to, region_id, 0]);
            // The transport tells it after a while: raft would try again at once.
            let life = self.store(from).life;
            return self.queue.push(
                FAILURE_DELAY,
                Event::SnapshotAnswer {
                    store: from,
                    life,
                    region_id,
                    to_peer_id,
                },
            );
        };
        let receiver = SnapshotReceiver::new(target.snapshots().clone(), from, to, &options, now);
        let stream = SnapshotStream {
            from: (from, self.store(from).life),
            to: (to, self.store(to).life),
            region_id,
            to_peer_id,
            sender: SnapshotSender::new(files, message, &options, now),
            receiver,
            busy_until: [now; 2],
        };
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(id, stream);
        self.trace.note(now, "stream", [from, to, region_id, id]);
        self.pump_frames(id);
    }

    /// Both ends of a stream under way.
    pub(crate) fn stream_ends(&self, id: u64) -> Option<(u64, u64)> {
        let stream = self.streams.get(&id)?;
        Some((stream.from.0, stream.to.0))
    }

    pub(crate) fn answer_snapshot(
        &mut self,
        store: u64,
        region_id: u64,
        to_peer_id: u64,
        ok: bool,
    ) {
        self.enter(
            store,
            StoreEvent::SnapshotSent {
                region_id,
                to_peer_id,
                ok,
            },
        );
    }

    /// Sends what the sender has to send now.
    fn pump_frames(&mut self, id: u64) {
        loop {
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            match stream.sender.next_frame() {
                Ok(Some(frame)) => {
                    let frame = Box::new(frame);
                    self.carry(id, 0, |stream| Event::SnapshotFrame { stream, frame });
                }
                Ok(None) => return,
                Err(_) => return self.break_stream(id),
            }
        }
    }

    /// Takes a frame or a reply across, or breaks the stream.
    fn carry(&mut self, id: u64, way: usize, event: impl FnOnce(u64) -> Event) {
        let now = self.queue.now();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let (from, to) = (stream.from.0, stream.to.0);
        let ends = if way == 0 { (from, to) } else { (to, from) };
        let bad = self.network.weather().lost > 0.0 && self.rng.random_bool(FRAME_LOSS);
        let delay = self.network.frame_delay(ends.0, ends.1, &mut self.rng);
        if bad || self.network.is_cut(ends.0, ends.1) {
            // Found out after a while.
            self.queue
                .push(delay * 4, Event::StreamBroken { stream: id });
            return;
        }
        let busy = &mut stream.busy_until[way];
        *busy = (*busy).max(now + delay);
        let at = *busy - now;
        self.queue.push(at, event(id));
    }

    /// Both ends are as they were when the stream was opened.
    fn stream_lives(&self, id: u64) -> bool {
        self.streams.get(&id).is_some_and(|stream| {
            self.is_live(stream.from.0, stream.from.1) && self.is_live(stream.to.0, stream.to.1)
        })
    }

    pub(crate) fn on_snapshot_frame(&mut self, id: u64, frame: SnapshotFrame) {
        if !self.stream_lives(id) {
            return self.break_stream(id);
        }
        let now = self.queue.now();
        let mut stream = self.streams.remove(&id).expect("it lives");
        let to = stream.to.0;
        let receiver = &mut stream.receiver;
        let handled = self.step_core(to, |core, _| {
            receiver.handle(now, frame, |meta, message| {
                core.check_snapshot(meta, &message.to_peer.unwrap_or_default())
            })
        });
        let Some(received) = handled else {
            self.streams.insert(id, stream);
            return self.break_stream(id);
        };
        self.streams.insert(id, stream);
        let reply = match received {
            Received::Reply(reply) => {
                if let Some(Reply::Progress(progress)) = &reply.reply {
                    let held = progress.parts.iter().any(|part| part.synced > 0);
                    self.counters.snapshots_resumed += u64::from(held);
                }
                reply
            }
            Received::Complete { message, reply } => {
                self.trace
                    .note(now, "received", [to, message.region_id, id, 0]);
                self.enter(to, StoreEvent::Message(*message));
                reply
            }
            Received::Refused { error, reply } => {
                if matches!(error, SnapshotError::SyncFailed { .. }) {
                    return self.store_failed(to, error.to_string());
                }
                reply
            }
        };
        if matches!(reply.reply, Some(Reply::Taken(_))) && self.breaks_stream() {
            return self.break_stream(id);
        }
        let reply = Box::new(reply);
        self.carry(id, 1, |stream| Event::SnapshotReply { stream, reply });
    }

    pub(crate) fn on_snapshot_reply(&mut self, id: u64, reply: SnapshotReply) {
        if !self.stream_lives(id) {
            return self.break_stream(id);
        }
        let now = self.queue.now();
        let stream = self.streams.get_mut(&id).expect("it lives");
        if stream.sender.handle(now, reply).is_err() {
            return self.break_stream(id);
        }
        if !stream.sender.is_done() {
            return self.pump_frames(id);
        }
        let stream = self.streams.remove(&id).expect("it lives");
        self.answer_snapshot(stream.from.0, stream.region_id, stream.to_peer_id, true);
    }

    /// Ends a stream that has not come to its end.
    pub(crate) fn break_stream(&mut self, id: u64) {
        let Some(mut stream) = self.streams.remove(&id) else {
            return;
        };
        let now = self.queue.now();
        self.trace.note(
            now,
            "broken",
            [stream.from.0, stream.to.0, stream.region_id, id],
        );
        if self.is_live(stream.to.0, stream.to.1)
            && let Err(error @ SnapshotError::SyncFailed { .. }) = stream.receiver.close()
        {
            self.store_failed(stream.to.0, error.to_string());
        }
        if self.is_live(stream.from.0, stream.from.1) {
            self.answer_snapshot(stream.from.0, stream.region_id, stream.to_peer_id, false);
        }
    }

    /// Breaks the streams of a store that has crashed; the other ends find out.
    pub(crate) fn break_streams_of(&mut self, store: u64) {
        let ids: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.from.0 == store || stream.to.0 == store)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.break_stream(id);
        }
    }

    /// Hands a job to the worker of its kind.
    pub(crate) fn take_job(&mut self, id: u64, job: RegionJob) {
        match self.planted.delete_log(&self.store(id).engines, &job) {
            Ok(None) => {}
            Ok(Some(done)) => return self.enter(id, StoreEvent::JobDone(done)),
            Err(error) => return self.engine_failed(id, &error),
        }
        if matches!(job, RegionJob::Install { .. }) {
            self.on_install_job(id);
        }
        let store = self.store_mut(id);
        let workers = store.workers.as_mut().expect("the store is live");
        if matches!(job, RegionJob::GcLog { .. }) {
            workers.log_gc.push(&job);
            self.schedule_log_gc(id);
        } else {
            workers.region.push(job);
            self.schedule_region_work(id, Duration::ZERO);
        }
    }

    pub(crate) fn schedule_region_work(&mut self, id: u64, wait: Duration) {
        let disk = self.store(id).disk;
        let delay = wait + disk.worker_time(&mut self.rng);
        let store = self.store_mut(id);
        let life = store.life;
        store.region_turn += 1;
        let turn = store.region_turn;
        self.queue.push(
            delay,
            Event::RegionWork {
                store: id,
                life,
                turn,
            },
        );
    }

    fn schedule_log_gc(&mut self, id: u64) {
        let disk = self.store(id).disk;
        let delay = disk.sync_time(&mut self.rng) + disk.worker_time(&mut self.rng);
        let life = self.store(id).life;
        let event = Event::LogGcWork {
            store: id,
            life,
            may_wait: true,
        };
        self.queue.push(delay, event);
    }

    /// The region worker's turn; a later one replaces those before it.
    pub(crate) fn on_region_work(&mut self, id: u64, life: u64, turn: u64) {
        if !self.is_live(id, life) || self.store(id).region_turn != turn {
            return;
        }
        let now = self.queue.now();
        let store = self.store_mut(id);
        let local = store.clock.now(now).monotonic;
        let workers = store.workers.as_mut().expect("the store is live");
        let worked = guarded(|| {
            let done = workers.region.step(local, WORK_BUDGET_BYTES)?;
            Ok((done, workers.region.has_work(local)))
        });
        let (done, busy) = match worked {
            Ok(Ok(worked)) => worked,
            Ok(Err(fault)) => return self.worker_failed(id, &fault),
            Err(panic) => return self.store_failed(id, panic),
        };
        if let Some(done) = done {
            if let JobDone::Installed { region_id, .. } = done {
                self.installed += 1;
                let engines = &self.store(id).engines;
                if let Err(error) = self.planted.change_installed(engines, region_id) {
                    return self.engine_failed(id, &error);
                }
            }
            self.trace
                .note(now, "job done", [id, done.region_id(), 0, 0]);
            self.enter(id, StoreEvent::JobDone(done));
        }
        let wait = if busy { Duration::ZERO } else { IDLE_INTERVAL };
        self.schedule_region_work(id, wait);
    }

    pub(crate) fn on_log_gc_work(&mut self, id: u64, life: u64, may_wait: bool) {
        if !self.is_live(id, life) {
            return;
        }
        // At times the kv engine has flushed by itself what it held when the job came, or less.
        let unsynced = self.store(id).engines.kv.unsynced_len();
        let flushed = match self.rng.random_bool(0.3) {
            true => self.rng.random_range(0..=unsynced),
            false => 0,
        };
        let can_wait = may_wait && self.rng.random_bool(0.2);
        let store = self.store_mut(id);
        store.engines.kv.harden(flushed);
        let workers = store.workers.as_mut().expect("the store is live");
        let worked = guarded(|| {
            let done = workers.log_gc.step_durable()?;
            match done.is_empty() && !can_wait {
                true => workers.log_gc.step(),
                false => Ok(done),
            }
        });
        let must_wait = can_wait && workers.log_gc.has_work();
        if must_wait && matches!(&worked, Ok(Ok(done)) if done.is_empty()) {
            // The engine may flush by itself meanwhile, and the region be destroyed or come back.
            let delay = self.rng.random_range(Duration::ZERO..LOG_GC_WAIT);
            let event = Event::LogGcWork {
                store: id,
                life,
                may_wait: false,
            };
            return self.queue.push(delay, event);
        }
        match worked {
            Ok(Ok(done)) => {
                self.compacted += done.len() as u64;
                for done in done {
                    if let JobDone::LogGone { region_id, index } = done {
                        self.store_mut(id).log_gone.insert(region_id, index);
                        self.note_compaction(id, region_id, index);
                    }
                    self.enter(id, StoreEvent::JobDone(done));
                }
            }
            Ok(Err(fault)) => self.worker_failed(id, &fault),
            Err(panic) => self.store_failed(id, panic),
        }
    }

    /// Looks whether some member of the region lacks what its leader has just deleted.
    fn note_compaction(&mut self, id: u64, region_id: u64, index: u64) {
        let core = self.store(id).core.as_ref();
        let Some(entry) = core.and_then(|core| core.directory().entry(region_id)) else {
            return;
        };
        let lacks = |store: u64| {
            let store = &self.stores[&store];
            if store.out {
                return false;
            }
            let last = match &store.core {
                Some(core) => core
                    .directory()
                    .entry(region_id)
                    .map(|entry| entry.view.numbers().last),
                None => strata_storage::read_raft_state(&store.engines.raft, region_id)
                    .ok()
                    .flatten()
                    .map(|state| state.last_index),
            };
            last.is_some_and(|last| last < index)
        };
        let past = entry.leads() && entry.region.peers.iter().any(|peer| lacks(peer.store_id));
        self.counters.compacted_past_follower += u64::from(past);
    }

    /// A worker cannot go on: where an engine or a disk has failed, as a process that ends;
    /// else it is a violation.
    fn worker_failed(&mut self, id: u64, fault: &WorkerFault) {
        match &fault.error {
            SnapshotError::Storage(Error::Engine(
                error @ (EngineError::WriteFailed { .. } | EngineError::Poisoned { .. }),
            )) => self.engine_failed(id, error),
            _ => self.store_failed(id, fault.to_string()),
        }
    }
}
