//! A raft shard as a task of the network's runtime.
//!
//! Wake     By mail or by the next tick.
//! Gather   The task lets all that is ready run first, and the network be asked once more: what
//!          one wake-up brings is proposed together.
//! Step     Takes the mail, hands in a tick if one is due, and flushes.
//! Settle   Carries out what the shard wants. Small batches are applied here (see `applier`),
//!          and their outcome is handed in at once, which may give more to do.
//!
//! Why no thread of its own: a write passes a shard twice on the leader and once on each
//! follower, and both times it comes from the network and leaves to it. Each hand-over to
//! another thread is a wake-up, and with three nodes on two processors these cost as much as the
//! work. So nothing here may wait for long: the log has a thread, and so have what reads for
//! clients and what applies large batches. What does read here is the log, for followers that are
//! behind what the entry cache holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;
use strata_storage::Engine;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::applier::{Applier, ApplyMail, ApplyWork, Inline};
use super::inbox::{ShardMail, request_weight};
use super::log_writer::LogMail;
use super::mailbox::{MailReceiver, MailSender};
use super::threads::{PanicGuard, ReadMail, send_read};
use super::{HeartbeatSink, Transport, clock};
use crate::apply::ApplyTask;
use crate::job::RegionJob;
use crate::metrics::StoreMetrics;
use crate::shard::{Shard, ShardAction, ShardEvent};
use crate::store_request::StoreRequest;
use crate::time::Ticker;

/// Most mails that a shard takes before it flushes.
const DRAIN_MAILS: usize = 1024;

/// The ways to an apply shard.
pub(super) struct ApplyLane<E: Engine> {
    pub applier: Arc<Applier<E>>,
    pub thread: Sender<ApplyMail>,
    /// Batches of this raft shard that are with the thread.
    pub on_thread: usize,
}

/// The task of a raft shard.
pub(super) struct ShardTask<E: Engine> {
    pub index: usize,
    pub shard: Shard<E>,
    pub mails: MailReceiver<ShardMail>,
    pub waiting: Arc<AtomicUsize>,
    pub waits_for_log: Arc<AtomicBool>,
    pub tick_interval: Duration,
    /// Entries in bytes up to which a batch is applied here.
    pub inline_apply_bytes: usize,
    pub log: MailSender<LogMail>,
    pub apply: Vec<ApplyLane<E>>,
    pub readers: Sender<ReadMail<E::Snapshot>>,
    pub store: Sender<StoreRequest>,
    pub region_jobs: Sender<RegionJob>,
    pub log_gc: Sender<RegionJob>,
    pub transport: Arc<dyn Transport>,
    pub heartbeats: Arc<dyn HeartbeatSink>,
    pub metrics: Arc<StoreMetrics>,
    /// Ends the process if a step panics.
    pub _guard: PanicGuard,
    /// Dropped with the task: tells that it has ended.
    pub _ended: Sender<()>,
}

impl<E: Engine> ShardTask<E> {
    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        let mut ticker = Ticker::new(self.tick_interval, clock::monotonic());
        let mut tick = std::pin::pin!(sleep(self.tick_interval));
        let mut mails = VecDeque::new();
        loop {
            if mails.is_empty() {
                tokio::select! {
                    biased;
                    () = self.mails.arrival() => {}
                    () = tick.as_mut() => {}
                }
            }
            // A tick that is due does not wait for others.
            if !ticker.wait(clock::monotonic()).is_zero() {
                yield_now().await;
            }
            self.mails.take(&mut mails);
            if !self.step(&mut ticker, &mut mails) {
                return;
            }
            if tick.is_elapsed() {
                let next = Instant::now() + ticker.wait(clock::monotonic());
                tick.as_mut().reset(next);
            }
        }
    }

    /// One round: mail, tick, flush. False: the task shall end.
    fn step(&mut self, ticker: &mut Ticker, mails: &mut VecDeque<ShardMail>) -> bool {
        let count = mails.len().min(DRAIN_MAILS);
        for mail in mails.drain(..count) {
            if !self.take(mail) {
                return false;
            }
        }
        let now = clock::now();
        if let Some(due) = ticker.take(now.monotonic) {
            for _ in 0..due.ticks {
                self.shard.handle(now, ShardEvent::Tick);
            }
            self.metrics.ticks_missed.add(due.missed);
        }
        while self.settle() {}
        let waits = self.shard.waits_for_log();
        self.waits_for_log.store(waits, Ordering::SeqCst);
        true
    }

    /// Flushes and carries out. True: something was applied here, and there may be more.
    fn settle(&mut self) -> bool {
        let mut applied_inline = false;
        // Messages and log batches first: others wait for them.
        let mut to_apply = Vec::new();
        for action in self.shard.flush(clock::now()) {
            match action {
                ShardAction::Apply { apply_shard, tasks } => to_apply.push((apply_shard, tasks)),
                action => self.carry_out(action),
            }
        }
        for (apply_shard, tasks) in to_apply {
            applied_inline |= self.apply(apply_shard, tasks);
        }
        applied_inline
    }

    /// Applies tasks, here or on the thread. True: here.
    fn apply(&mut self, apply_shard: usize, tasks: Vec<ApplyTask>) -> bool {
        let lane = &mut self.apply[apply_shard];
        let small = || tasks.iter().map(ApplyTask::bytes).sum::<usize>() <= self.inline_apply_bytes;
        let outcome = if lane.on_thread == 0 && small() {
            lane.applier.apply_inline(tasks)
        } else {
            Inline::Left(ApplyWork::Tasks(tasks))
        };
        match outcome {
            Inline::Applied(regions) => {
                let event = ShardEvent::Applied {
                    apply_shard,
                    batches: 1,
                    regions,
                };
                self.shard.handle(clock::now(), event);
                true
            }
            Inline::Left(work) => {
                lane.on_thread += 1;
                let shard = self.index;
                // A closed channel means that the store is stopping, as in `carry_out`.
                drop(lane.thread.send(ApplyMail { shard, work }));
                false
            }
        }
    }

    fn take(&mut self, mail: ShardMail) -> bool {
        match mail {
            ShardMail::Messages(weight, messages) => {
                self.waiting.fetch_sub(weight, Ordering::Relaxed);
                let now = clock::now();
                for message in messages {
                    self.shard
                        .handle(now, ShardEvent::Message(Box::new(message)));
                }
            }
            ShardMail::Request(pending) => {
                self.waiting
                    .fetch_sub(request_weight(&pending), Ordering::Relaxed);
                self.shard
                    .handle(clock::now(), ShardEvent::Request(pending));
            }
            ShardMail::ClockWanted(read) => {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                let event = ShardEvent::ClockWanted(read);
                self.shard.handle(clock::now(), event);
            }
            ShardMail::Event(event) => {
                if let ShardEvent::Applied {
                    apply_shard,
                    batches,
                    ..
                } = &event
                {
                    let on_thread = &mut self.apply[*apply_shard].on_thread;
                    let left = on_thread.checked_sub(*batches);
                    *on_thread = left.unwrap_or_else(|| {
                        panic!("{batches} batches came back of {on_thread} with the thread")
                    });
                }
                self.shard.handle(clock::now(), event);
            }
            ShardMail::Stop => return false,
        }
        true
    }

    fn carry_out(&self, action: ShardAction) {
        // A closed channel means that the store is stopping; what is lost is as after a
        // crash, and replies answer when they are dropped.
        match action {
            ShardAction::Send {
                to_store_id,
                messages,
            } => {
                self.transport.send(to_store_id, messages);
            }
            ShardAction::WriteLog(batch) => {
                let handed_over = clock::monotonic();
                drop(self.log.send(LogMail { batch, handed_over }));
            }
            ShardAction::Apply { apply_shard, tasks } => {
                unreachable!(
                    "{} tasks for apply shard {apply_shard}: see settle",
                    tasks.len()
                )
            }
            ShardAction::Read(task) => send_read(&self.readers, None, task),
            ShardAction::Reply { reply, result } => reply.deliver(result),
            ShardAction::Report(reports) => self.heartbeats.report(reports),
            ShardAction::Job(job @ RegionJob::GcLog { .. }) => drop(self.log_gc.send(job)),
            ShardAction::Job(job) => drop(self.region_jobs.send(job)),
            ShardAction::SendSnapshot {
                to_store_id,
                message,
            } => self.transport.send_snapshot(to_store_id, *message),
            ShardAction::Store(request) => drop(self.store.send(request)),
        }
    }
}
