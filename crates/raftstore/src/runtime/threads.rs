//! What each thread does: receive, step, carry out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use slog::{Logger, crit};
use strata_proto::raft_serverpb::RaftMessage;
use strata_storage::Engine;

use super::log_writer::LogMail;
use super::{HeartbeatSink, Transport, clock};
use crate::apply::{Applied, ApplyShard, ApplyTask};
use crate::directory::DirectoryCell;
use crate::error::Error;
use crate::expiry::RegionClocks;
use crate::gate::{ReadOutcome, serve_task};
use crate::job::{JobDone, RegionJob};
use crate::log_gc_worker::LogGcWorker;
use crate::metrics::StoreMetrics;
use crate::shard::{Shard, ShardAction, ShardEvent, shard_of};
use crate::store_request::StoreRequest;
use crate::task::{PendingRequest, ReadTask};
use crate::time::Ticker;
use crate::write_stages::BatchTimes;

/// Most mails that a shard takes before it flushes.
const DRAIN_MAILS: usize = 1024;
/// Bytes at which a log writer or an apply shard stops gathering batches.
pub(super) const GATHER_BYTES: usize = 8 << 20;
/// Bytes that count as much as a request without any.
const WEIGHT_BYTES: usize = 4 << 10;
/// How long the process waits for its last line to reach the log.
const LAST_LINE_WAIT: Duration = Duration::from_millis(100);

/// What arrives in a shard's inbox.
pub(super) enum ShardMail {
    /// Raft messages from outside; counted with this weight.
    Messages(usize, Vec<RaftMessage>),
    /// A request from outside; counted by [`request_weight`].
    Request(Box<PendingRequest>),
    /// A read that asks for a clock entry; counts one.
    ClockWanted(Box<ReadTask>),
    /// Answers and orders from this store; bounded by credits, and progress within applied
    /// work by the entries of that work.
    Event(ShardEvent),
    /// Ends the thread.
    Stop,
}

/// What a request counts in an inbox.
pub(super) fn request_weight(pending: &PendingRequest) -> usize {
    1 + pending.bytes / WEIGHT_BYTES
}

/// What a raft message counts in an inbox.
pub(super) fn message_weight(message: &RaftMessage) -> usize {
    let entries = message.message.iter().flat_map(|inner| &inner.entries);
    1 + entries.map(|entry| entry.data.len()).sum::<usize>() / WEIGHT_BYTES
}

/// The way into a shard.
#[derive(Clone)]
pub(super) struct Inbox {
    pub sender: Sender<ShardMail>,
    /// Weight of the counted mails that wait.
    pub waiting: Arc<AtomicUsize>,
    pub capacity: usize,
}

impl Inbox {
    /// Puts counted mail in; gives it back where there is no room or the thread has ended.
    pub fn offer(&self, weight: usize, mail: ShardMail) -> Result<(), ShardMail> {
        if self.waiting.fetch_add(weight, Ordering::Relaxed) >= self.capacity {
            self.waiting.fetch_sub(weight, Ordering::Relaxed);
            return Err(mail);
        }
        self.sender.send(mail).map_err(|refused| refused.0)
    }

    /// Puts an event of this store in. It is lost where the store is stopping.
    pub fn event(&self, event: ShardEvent) {
        // A closed channel means that the shard has ended: nobody needs the event.
        let _ = self.sender.send(ShardMail::Event(event));
    }
}

/// Hands a read that asks for a clock entry to its shard, or refuses it where the inbox is
/// full: every client that reads an expired value comes this way.
pub(super) fn want_clock(inbox: &Inbox, task: ReadTask) {
    let mail = ShardMail::ClockWanted(Box::new(task));
    if let Err(ShardMail::ClockWanted(task)) = inbox.offer(1, mail) {
        task.reply.deliver(Err(Error::ServerIsBusy {
            reason: "the inbox of the shard is full",
            backoff_ms: 100,
        }));
    }
}

/// Work of a shard for an apply thread.
pub(super) struct ApplyMail {
    pub shard: usize,
    pub tasks: Vec<ApplyTask>,
}

/// What arrives at the readers.
pub(super) enum ReadMail<S> {
    /// A read, with its snapshot if that was taken already.
    Read {
        snapshot: Option<S>,
        task: Box<ReadTask>,
    },
    /// Ends one reader.
    Stop,
}

/// Ends the process after a line that says why.
pub(super) fn stop_process(logger: &Logger, why: &str) -> ! {
    crit!(logger, "the store cannot go on, the process ends"; "reason" => why);
    std::thread::sleep(LAST_LINE_WAIT);
    std::process::abort()
}

/// Ends the process when the thread that holds it panics: an invariant was broken.
pub(super) struct PanicGuard {
    pub logger: Logger,
    pub thread: String,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            stop_process(&self.logger, &format!("thread {} panicked", self.thread));
        }
    }
}

/// The thread of a raft shard.
pub(super) struct ShardThread<E: Engine> {
    pub index: usize,
    pub shard: Shard<E>,
    pub mails: Receiver<ShardMail>,
    pub waiting: Arc<AtomicUsize>,
    pub tick_interval: Duration,
    pub log: Sender<LogMail>,
    pub apply: Vec<Sender<ApplyMail>>,
    pub readers: Sender<ReadMail<E::Snapshot>>,
    pub store: Sender<StoreRequest>,
    pub region_jobs: Sender<RegionJob>,
    pub log_gc: Sender<RegionJob>,
    pub transport: Arc<dyn Transport>,
    pub heartbeats: Arc<dyn HeartbeatSink>,
    pub metrics: Arc<StoreMetrics>,
}

impl<E: Engine> ShardThread<E> {
    pub fn run(mut self) {
        let mut ticker = Ticker::new(self.tick_interval, clock::monotonic());
        loop {
            let wait = ticker.wait(clock::monotonic());
            match self.mails.recv_timeout(wait) {
                Ok(first) => {
                    if !self.drain(first) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = clock::now();
            if let Some(due) = ticker.take(now.monotonic) {
                for _ in 0..due.ticks {
                    self.shard.handle(now, ShardEvent::Tick);
                }
                self.metrics.ticks_missed.add(due.missed);
            }
            for action in self.shard.flush(clock::now()) {
                self.carry_out(action);
            }
        }
    }

    /// Hands in `first` and what waits behind it. False: the thread shall end.
    fn drain(&mut self, first: ShardMail) -> bool {
        let mut next = Some(first);
        for _ in 0..DRAIN_MAILS {
            let Some(mail) = next else { return true };
            if !self.take(mail) {
                return false;
            }
            next = self.mails.try_recv().ok();
        }
        match next {
            Some(mail) => self.take(mail),
            None => true,
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
            ShardMail::Event(event) => self.shard.handle(clock::now(), event),
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
                drop(self.apply[apply_shard].send(ApplyMail {
                    shard: self.index,
                    tasks,
                }));
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

/// Hands a read to the readers, or refuses it where too many wait.
pub(super) fn send_read<S>(readers: &Sender<ReadMail<S>>, snapshot: Option<S>, task: ReadTask) {
    let mail = ReadMail::Read {
        snapshot,
        task: Box::new(task),
    };
    if let Err(TrySendError::Full(ReadMail::Read { task, .. })) = readers.try_send(mail) {
        task.reply.deliver(Err(Error::ServerIsBusy {
            reason: "too many reads wait for a reader",
            backoff_ms: 100,
        }));
    }
}

/// The thread of an apply shard.
pub(super) struct ApplyThread<E: Engine> {
    pub index: usize,
    pub shard: ApplyShard,
    pub kv: E,
    pub works: Receiver<ApplyMail>,
    pub inboxes: Vec<Inbox>,
    pub readers: Sender<ReadMail<E::Snapshot>>,
    pub metrics: Arc<StoreMetrics>,
    pub logger: Logger,
}

impl<E: Engine> ApplyThread<E> {
    pub fn run(mut self) {
        while let Ok(first) = self.works.recv() {
            let mut batches = vec![0; self.inboxes.len()];
            let mut tasks = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(work) = next {
                batches[work.shard] += 1;
                bytes += work.tasks.iter().map(ApplyTask::bytes).sum::<usize>();
                tasks.extend(work.tasks);
                next = if bytes < GATHER_BYTES {
                    self.works.try_recv().ok()
                } else {
                    None
                };
            }
            // Credits go back with the last batch.
            let none = vec![0; batches.len()];
            loop {
                let (applied, rest) = self.apply(tasks);
                let done = rest.is_empty();
                self.tell(applied, if done { &batches } else { &none });
                if done {
                    break;
                }
                tasks = rest;
            }
        }
    }

    /// Writes one batch; returns its progress and what it had no room for.
    fn apply(&mut self, tasks: Vec<ApplyTask>) -> (Vec<Applied>, Vec<ApplyTask>) {
        let begun = clock::monotonic();
        let output = match self.shard.apply(&self.kv, tasks) {
            Ok(output) => output,
            Err(fault) => stop_process(&self.logger, &fault.to_string()),
        };
        if let Err(error) = self.kv.write(&output.batch, output.durability) {
            stop_process(&self.logger, &error.to_string());
        }
        // Batches of followers answer nobody: no time is taken of them.
        let written = (!output.writes.is_empty()).then(clock::monotonic);
        for (reply, result) in output.replies {
            reply.deliver(result);
        }
        if let Some(written) = written {
            let times = BatchTimes {
                begun,
                written,
                answered: clock::monotonic(),
            };
            let stages = &self.metrics.write_stages;
            stages.record_batch(&output.writes, &times);
        }
        for task in output.reads {
            send_read(&self.readers, None, task);
        }
        (output.applied, output.rest)
    }

    /// Tells the shards their regions' progress, and how many of their works are done.
    fn tell(&self, applied: Vec<Applied>, batches: &[usize]) {
        let mut regions: Vec<Vec<_>> = batches.iter().map(|_| Vec::new()).collect();
        for applied in applied {
            regions[shard_of(applied.region_id, batches.len())].push(applied);
        }
        for ((inbox, regions), batches) in self.inboxes.iter().zip(regions).zip(batches) {
            if *batches > 0 || !regions.is_empty() {
                let apply_shard = self.index;
                inbox.event(ShardEvent::Applied {
                    apply_shard,
                    batches: *batches,
                    regions,
                });
            }
        }
    }
}

/// A reader: serves what may take long.
pub(super) fn run_reader<E: Engine>(
    kv: &E,
    mails: &Receiver<ReadMail<E::Snapshot>>,
    inboxes: &[Inbox],
    logger: &Logger,
) {
    while let Ok(ReadMail::Read { snapshot, task }) = mails.recv() {
        let snapshot = snapshot.unwrap_or_else(|| kv.snapshot());
        match serve_task::<E>(clock::now(), &snapshot, *task) {
            ReadOutcome::Reply { reply, result } => reply.deliver(result),
            ReadOutcome::ClockWanted(task) => want_clock(&inboxes[task.shard], task),
            ReadOutcome::Fatal(fault) => stop_process(logger, &fault.to_string()),
        }
    }
}

/// The log gc worker: all jobs that wait share one sync of the kv engine.
pub(super) fn run_log_gc_worker<E: Engine>(
    mut worker: LogGcWorker<E>,
    jobs: &Receiver<RegionJob>,
    inboxes: &[Inbox],
    logger: &Logger,
) {
    while let Ok(first) = jobs.recv() {
        worker.push(&first);
        jobs.try_iter().for_each(|job| worker.push(&job));
        while worker.has_work() {
            match worker.step() {
                Ok(done) => done.into_iter().for_each(|done| answer_job(inboxes, done)),
                Err(fault) => stop_process(logger, &fault.to_string()),
            }
        }
    }
}

/// Hands what a worker has done to the shard of the region.
pub(super) fn answer_job(inboxes: &[Inbox], done: JobDone) {
    let shard = shard_of(done.region_id(), inboxes.len());
    inboxes[shard].event(ShardEvent::JobDone(done));
}

/// Tells the kv engine from time to time which values have expired, until the channel is
/// closed. Idle regions' clocks stand still; then nothing is done.
pub(super) fn run_expiry<E: Engine>(
    kv: &E,
    directory: &DirectoryCell,
    interval: Duration,
    stop: &Receiver<()>,
    logger: &Logger,
) {
    let mut published: Option<Arc<RegionClocks>> = None;
    while stop.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let clocks = Arc::new(RegionClocks::collect(directory.load()));
        if published
            .as_ref()
            .is_some_and(|older| !clocks.differ_from(older))
        {
            continue;
        }
        if let Err(error) = kv.make_durable() {
            stop_process(logger, &error.to_string());
        }
        let lookup = clocks.clone();
        kv.publish_expiry_clocks(Arc::new(move |cf, key| lookup.clock_of(cf, key)));
        published = Some(clocks);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::request::{Answer, Cancellation, ReadCommand, Reply};
    use crate::task::{Expiry, ReadBody};

    fn read(reply: Reply) -> ReadTask {
        ReadTask {
            region: Arc::default(),
            shard: 0,
            body: ReadBody::Raw(ReadCommand::BatchGet {
                space: Default::default(),
                keys: Vec::new(),
            }),
            expiry: Expiry::RegionClock,
            answer_bytes_max: 0,
            deadline: Duration::ZERO,
            cancellation: Cancellation::default(),
            view: Arc::default(),
            data_epoch: 0,
            reply,
        }
    }

    #[test]
    fn reads_that_ask_for_a_clock_are_bounded_by_the_inbox() {
        let (sender, mails) = crossbeam::channel::unbounded();
        let inbox = Inbox {
            sender,
            waiting: Arc::default(),
            capacity: 2,
        };
        let (results, answers) = channel::<Result<Answer, Error>>();
        for _ in 0..3 {
            let results = results.clone();
            let reply = Reply::new(move |result| drop(results.send(result)));
            want_clock(&inbox, read(reply));
        }
        assert_eq!(mails.len(), 2);
        let refused = answers.try_recv().unwrap().unwrap_err();
        assert!(matches!(refused, Error::ServerIsBusy { .. }), "{refused}");
        assert!(answers.try_recv().is_err(), "the others wait");
    }
}
