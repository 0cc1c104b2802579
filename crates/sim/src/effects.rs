//! Carries out what stores ask for: the runtime of a simulated store.
//!
//! Everything that a thread would do later is entered into the queue with a delay: the end
//! of a sync, the work of an apply shard, a read, the arrival of a message. In between,
//! anything can happen, crashes above all.

use std::time::Duration;

use rand::Rng;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raftstore::{ApplyTask, LogBatch, Now, StoreCore, StoreEffect, StoreEvent};
use strata_storage::{Durability, Engine, EngineError, MemEngine};

use crate::cluster::{Cluster, Event};
use crate::counters::applied_of;
use crate::disk::Crash;
use crate::guard::guarded;
use crate::network::{Envelope, between};
use crate::store::SimStore;
use crate::violation::Violation;

/// Longest wait of an inbox until its store drains it.
const STEP_DELAY_MAX: Duration = Duration::from_micros(300);
/// What the text of every played disk error holds.
pub(crate) const INJECTED: &str = "injected failure";

impl Cluster {
    /// Puts an event into a store's inbox.
    pub(crate) fn enter(&mut self, id: u64, event: StoreEvent) {
        self.store_mut(id).inbox.push(event);
        self.schedule_step(id);
    }

    pub(crate) fn schedule_step(&mut self, id: u64) {
        let delay = between(&mut self.rng, (Duration::ZERO, STEP_DELAY_MAX));
        let now = self.queue.now();
        let store = self.store_mut(id);
        // What is carried out last may have ended the store.
        if store.step_scheduled || !store.is_up() {
            return;
        }
        store.step_scheduled = true;
        let (life, stall) = (store.life, store.stalled_until.saturating_sub(now));
        self.queue
            .push(delay.max(stall), Event::Step { store: id, life });
    }

    pub(crate) fn on_step(&mut self, id: u64, life: u64) {
        if !self.is_live(id, life) {
            return;
        }
        let now = self.queue.now();
        let store = self.store_mut(id);
        store.step_scheduled = false;
        if store.stalled_until > now {
            return self.schedule_step(id);
        }
        let mut events = std::mem::take(&mut store.inbox);
        let ticked = events.iter().any(|e| matches!(e, StoreEvent::Tick));
        if ticked {
            let more = self.store_mut(id).due_ticks(now).saturating_sub(1);
            events.extend((0..more).map(|_| StoreEvent::Tick));
        }
        let count = events.len() as u64;
        let quiet = self.is_of_no_interest(id, &events);
        self.counters.quiet_syncs += u64::from(quiet);
        self.look_at_reads(id, &events);
        let Some(effects) = self.step_core(id, |core, local| core.handle_all(local, events)) else {
            self.given_up.clear();
            return;
        };
        assert!(
            !quiet || effects.is_empty(),
            "store {id} did not wait for its log, and does this when it hears of it: {effects:?}"
        );
        self.trace
            .note(now, "step", [id, count, effects.len() as u64, 0]);
        self.carry_out(id, effects);
        self.given_up.clear();
        if ticked {
            self.look_at_deadlines(id, true);
        }
    }

    /// Whether these events are that a log batch is synced, for a shard that says that it does
    /// not wait for this: outside the simulator it is handed in with the next event then.
    fn is_of_no_interest(&self, id: u64, events: &[StoreEvent]) -> bool {
        let [StoreEvent::LogPersisted { .. }] = events else {
            return false;
        };
        let core = self.store(id).core.as_ref();
        core.is_some_and(|core| core.shards().iter().all(|s| !s.waits_for_log()))
    }

    /// Carries out effects in their order.
    pub(crate) fn carry_out(&mut self, id: u64, effects: Vec<StoreEffect>) {
        let life = self.store(id).life;
        for effect in effects {
            // A fault may have stopped the store halfway.
            if !self.is_live(id, life) {
                break;
            }
            match effect {
                StoreEffect::Send {
                    to_store_id,
                    messages,
                } => self.send(id, to_store_id, messages),
                StoreEffect::WriteLog { shard, batch } => {
                    self.store_mut(id).logs[shard].waiting.push_back(batch);
                    self.maybe_write_log(id, shard);
                }
                StoreEffect::Apply(work) => {
                    let lane = work.apply_shard;
                    self.store_mut(id).applies[lane].waiting.push_back(work);
                    self.maybe_start_apply(id, lane);
                }
                StoreEffect::WriteData(write) => {
                    let lane = write.apply_shard;
                    self.store_mut(id).applies[lane].write = Some(write);
                    let disk = self.store(id).disk;
                    let delay = disk.apply_time(&mut self.rng);
                    self.queue.push(
                        delay,
                        Event::ApplyWrite {
                            store: id,
                            life,
                            lane,
                        },
                    );
                }
                StoreEffect::Read(task) => {
                    let disk = self.store(id).disk;
                    let delay = disk.read_time(&mut self.rng);
                    let task = Box::new(task);
                    self.queue.push(
                        delay,
                        Event::Serve {
                            store: id,
                            life,
                            task,
                        },
                    );
                }
                StoreEffect::Reply { reply, result } => reply.deliver(result),
                StoreEffect::Report(reports) => {
                    let now = self.queue.now();
                    self.trace
                        .note(now, "report", [id, reports.len() as u64, 0, 0]);
                }
                StoreEffect::Job(job) => self.take_job(id, job),
                StoreEffect::SendSnapshot {
                    to_store_id,
                    message,
                } => self.send_snapshot(id, to_store_id, *message),
                StoreEffect::Fatal(reason) => self.store_failed(id, reason),
            }
        }
        self.empty_mailbox();
        if self.is_live(id, life) {
            self.look_at_deadlines(id, false);
        }
    }

    /// Steps a store's core at its own time. `None`: it panicked, and the store has ended.
    pub(crate) fn step_core<T>(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut StoreCore<MemEngine>, Now) -> T,
    ) -> Option<T> {
        let now = self.queue.now();
        let store = self.store_mut(id);
        let local = store.clock.now(now);
        let core = store.core.as_mut().expect("the store is live");
        match guarded(|| act(core, local)) {
            Ok(done) => Some(done),
            Err(reason) => {
                self.store_failed(id, reason);
                None
            }
        }
    }

    /// A store has found something that it must not go on with. Where a disk error was
    /// played, that is what it shall do: its process ends and is started again.
    pub(crate) fn store_failed(&mut self, store_id: u64, reason: String) {
        if was_injected(&reason) {
            return self.end_process(store_id, Crash::Kill);
        }
        self.watch
            .report(Violation::StoreStopped { store_id, reason });
        self.crash_store(store_id, Crash::Kill);
    }

    fn send(&mut self, from: u64, to: u64, messages: Vec<RaftMessage>) {
        let now = self.queue.now();
        let count = messages.len() as u64;
        let together = self
            .network
            .common_arrival(now, (from, to), count, &mut self.rng);
        if let Some(delay) = together {
            for message in &messages {
                self.watch.on_send(message);
                self.look_at_message(from, message);
                self.note_send(from, to, message, 1);
            }
            self.queue.push(delay, Event::Deliver { to, messages });
            return;
        }
        for message in messages {
            self.watch.on_send(&message);
            self.look_at_message(from, &message);
            let envelope = Envelope {
                from,
                to,
                message: &message,
            };
            let fate = self.network.fate(now, &envelope, &mut self.rng);
            self.note_send(from, to, &message, fate.len() as u64);
            for delay in fate {
                let messages = vec![message.clone()];
                self.queue.push(delay, Event::Deliver { to, messages });
            }
        }
    }

    fn note_send(&mut self, from: u64, to: u64, message: &RaftMessage, copies: u64) {
        let now = self.queue.now();
        let inner = message.message.as_ref();
        let summary = inner.map_or(0, |m| {
            (m.msg_type as u64) << 56 ^ m.term << 40 ^ m.index << 16 ^ m.entries.len() as u64
        });
        let place = from << 32 | to;
        self.trace
            .note(now, "send", [place, message.region_id, summary, copies]);
    }

    /// Begins with the next batch of a log lane: it is in the engine, but not synced yet.
    fn maybe_write_log(&mut self, id: u64, lane: usize) {
        let store = self.store_mut(id);
        if store.logs[lane].writing.is_some() {
            return;
        }
        let Some(batch) = store.logs[lane].waiting.pop_front() else {
            return;
        };
        let sync = batch.sync;
        let written = store.engines.raft.write(&batch.batch, Durability::Unsynced);
        store.logs[lane].writing = Some(batch);
        let (life, disk) = (store.life, store.disk);
        if let Err(error) = written {
            return self.engine_failed(id, &error);
        }
        let delay = if sync {
            disk.sync_time(&mut self.rng)
        } else {
            Duration::ZERO
        };
        self.queue.push(
            delay,
            Event::LogDone {
                store: id,
                life,
                lane,
            },
        );
    }

    pub(crate) fn on_log_done(&mut self, id: u64, life: u64, lane: usize) {
        if !self.is_live(id, life) {
            return;
        }
        let now = self.queue.now();
        let lying = self.planted.disks_lie();
        let store = self.store_mut(id);
        let LogBatch {
            number,
            sync,
            after_sync,
            ..
        } = store.logs[lane]
            .writing
            .take()
            .expect("a batch is being written");
        if sync && !lying {
            // The raft engine has one log: this makes the other lanes' batches durable, too.
            if let Err(error) = store.engines.raft.make_durable() {
                return self.engine_failed(id, &error);
            }
        }
        self.trace
            .note(now, "persisted", [id, lane as u64, number, u64::from(sync)]);
        for (to_store_id, messages) in after_sync {
            self.send(id, to_store_id, messages);
        }
        // A fault may have struck with a message.
        if !self.is_live(id, life) {
            return;
        }
        self.enter(
            id,
            StoreEvent::LogPersisted {
                shard: lane,
                number,
            },
        );
        self.maybe_write_log(id, lane);
    }

    fn maybe_start_apply(&mut self, id: u64, lane: usize) {
        let disk = self.store(id).disk;
        let delay = disk.apply_time(&mut self.rng);
        let store = self.store_mut(id);
        let state = &mut store.applies[lane];
        if state.busy || state.waiting.is_empty() {
            return;
        }
        state.busy = true;
        let life = store.life;
        self.queue.push(
            delay,
            Event::ApplyStart {
                store: id,
                life,
                lane,
            },
        );
    }

    pub(crate) fn on_apply_start(&mut self, id: u64, life: u64, lane: usize) {
        if !self.is_live(id, life) {
            return;
        }
        let now = self.queue.now();
        let store = self
            .stores
            .get_mut(&id)
            .unwrap_or_else(|| panic!("no store {id}"));
        let mut work = store.applies[lane]
            .waiting
            .pop_front()
            .expect("work is waiting");
        if let Some(core) = &store.core {
            let directory = core.directory();
            let term_of = |region_id| directory.entry(region_id).map(|entry| entry.view.term());
            self.watch.on_apply((id, life), &work, term_of);
        }
        let skipped = self.planted.change_work(id, &mut work);
        let entries = |task: &ApplyTask| match task {
            ApplyTask::Entries(task) => task.entries.len(),
            _ => 0,
        };
        let entries: usize = work.tasks.iter().map(entries).sum();
        let stepped = self.step_core(id, |core, local| {
            core.handle(local, StoreEvent::Apply(work))
        });
        let Some(effects) = stepped else {
            return;
        };
        self.trace.note(
            now,
            "apply",
            [id, lane as u64, entries as u64, u64::from(skipped)],
        );
        self.carry_out(id, effects);
    }

    pub(crate) fn on_apply_write(&mut self, id: u64, life: u64, lane: usize) {
        if !self.is_live(id, life) {
            return;
        }
        let planted = self.planted;
        let store = self.store_mut(id);
        let write = store.applies[lane]
            .write
            .take()
            .expect("a batch is to be written");
        let durability = planted.durability(&write);
        if let Err(error) = store.engines.kv.write(write.batch(), durability) {
            return self.engine_failed(id, &error);
        }
        // The rest of this work goes before other work.
        store.applies[lane].busy = write.has_rest();
        self.look_at_apply(id, write.batch());
        self.enter(id, StoreEvent::DataWritten(write));
        self.maybe_start_apply(id, lane);
    }

    /// An engine refused a write: the process ends and is not asked again (crash rule 9).
    pub(crate) fn engine_failed(&mut self, id: u64, error: &EngineError) {
        assert!(
            error.is_fatal(),
            "store {id}: a write failed in an unknown way: {error}"
        );
        self.end_process(id, Crash::Power);
    }

    fn end_process(&mut self, id: u64, crash: Crash) {
        let now = self.queue.now();
        self.trace.note(now, "engine failed", [id, 0, 0, 0]);
        self.crash_store(id, crash);
        let delay = Duration::from_millis(self.rng.random_range(50..800));
        let life = self.store(id).life;
        self.queue.push(delay, Event::Restart { store: id, life });
    }

    /// Ends a store's process now.
    ///
    /// # Panics
    /// If it is down already.
    pub fn crash_store(&mut self, id: u64, crash: Crash) {
        let now = self.queue.now();
        let mut store = self
            .stores
            .remove(&id)
            .unwrap_or_else(|| panic!("no store {id}"));
        assert!(store.is_up(), "store {id} crashes while it is down");
        let mut shown = Vec::new();
        if let Some(core) = &store.core {
            let directory = core.directory().load();
            self.watch.on_end(id, &directory);
            self.counters.add_metrics(&core.metrics().snapshot());
            let installing = directory.iter().any(|entry| entry.view.is_installing());
            self.counters.crash_while_installing += u64::from(installing);
            shown = applied_of(&directory);
        }
        let engines = crate::disk::after_crash(
            &store.engines,
            crash,
            self.planted.disks_lie(),
            &mut self.rng,
        );
        let files = match crash {
            Crash::Kill => store.files.kill(),
            Crash::Power => store.files.crash(&mut self.rng),
        };
        // Requests on their way find nobody; everything else was for the process that ended.
        for event in std::mem::take(&mut store.held) {
            if matches!(event, Event::Request { .. }) {
                self.queue.push(Duration::ZERO, event);
            }
        }
        store.stop();
        store.engines = engines;
        store.files = files;
        self.look_at_crash(id, &store.engines);
        if crash == Crash::Power {
            self.counters.add_crash(&store.engines, &shown);
        }
        self.trace
            .note(now, "crash", [id, store.life, crash as u64, 0]);
        self.stores.insert(id, store);
        self.break_streams_of(id);
        self.lose_calls(id);
    }

    /// Lets a store's process stand still for a time, as a stopped virtual machine does.
    pub fn pause_store(&mut self, id: u64, length: Duration) {
        let until = self.queue.now() + length;
        let store: &mut SimStore = self.store_mut(id);
        if !store.is_up() {
            return;
        }
        store.paused_until = store.paused_until.max(until);
        let life = store.life;
        self.last_pause_ends = self.last_pause_ends.max(until);
        self.queue.push(length, Event::Resume { store: id, life });
    }

    /// Lets a store's raft shards stand still for a time, while its other threads go on.
    pub fn stall_shards(&mut self, id: u64, length: Duration) {
        let until = self.queue.now() + length;
        let store = self.store_mut(id);
        store.stalled_until = store.stalled_until.max(until);
    }

    /// The process goes on, with what has come for it meanwhile.
    pub(crate) fn on_resume(&mut self, id: u64, life: u64) {
        let now = self.queue.now();
        let store = self.store_mut(id);
        if store.life == life && store.paused_until <= now {
            for event in std::mem::take(&mut store.held) {
                self.queue.push(Duration::ZERO, event);
            }
        }
    }

    /// The store whose process handles an event.
    fn handled_by(&self, event: &Event) -> Option<u64> {
        match event {
            Event::Deliver { to, .. } => Some(*to),
            Event::Tick { store, .. }
            | Event::Step { store, .. }
            | Event::LogDone { store, .. }
            | Event::ApplyStart { store, .. }
            | Event::ApplyWrite { store, .. }
            | Event::Serve { store, .. }
            | Event::SnapshotAnswer { store, .. }
            | Event::RegionWork { store, .. }
            | Event::LogGcWork { store, .. } => Some(*store),
            Event::Request { call } => self.store_of_call(*call),
            Event::SnapshotFrame { stream, .. } => self.stream_ends(*stream).map(|(_, to)| to),
            Event::SnapshotReply { stream, .. } => self.stream_ends(*stream).map(|(from, _)| from),
            Event::Answer { .. }
            | Event::Client { .. }
            | Event::Patience { .. }
            | Event::Cancel { .. }
            | Event::Restart { .. }
            | Event::Resume { .. }
            | Event::Mend { .. }
            | Event::PowerCut { .. }
            | Event::StreamBroken { .. }
            | Event::Strike { .. }
            | Event::Act { .. }
            | Event::Faults { .. } => None,
        }
    }

    /// Keeps an event back whose process stands still; returns those that happen now.
    pub(crate) fn unless_held(&mut self, event: Event) -> Option<Event> {
        let now = self.queue.now();
        if self.last_pause_ends <= now {
            return Some(event);
        }
        let Some(id) = self.handled_by(&event) else {
            return Some(event);
        };
        match self.stores.get_mut(&id) {
            Some(store) if store.paused_until > now => {
                store.held.push(event);
                None
            }
            _ => Some(event),
        }
    }
}

/// True for the words in which a store says that it cannot go on for an error that was played.
/// One that takes the error for damage is wrong.
pub(crate) fn was_injected(reason: &str) -> bool {
    let wrong = ["corrupt", "damaged"];
    reason.contains(INJECTED) && !wrong.iter().any(|word| reason.contains(word))
}
