//! What the threads beside the shards do: receive, step, carry out.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use slog::{Logger, crit};
use strata_storage::Engine;

use super::clock;
use super::inbox::{Inbox, want_clock};
use crate::directory::DirectoryCell;
use crate::error::Error;
use crate::expiry::RegionClocks;
use crate::gate::{ReadOutcome, serve_task};
use crate::job::JobDone;
use crate::shard::{ShardEvent, shard_of};
use crate::task::ReadTask;

/// Bytes at which a log writer or an apply shard stops gathering batches.
pub(super) const GATHER_BYTES: usize = 8 << 20;
/// How long the process waits for its last line to reach the log.
const LAST_LINE_WAIT: Duration = Duration::from_millis(100);

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

/// Ends the process when the thread or task that holds it panics: an invariant was broken.
pub(super) struct PanicGuard {
    pub logger: Logger,
    /// The thread's, or the task's.
    pub name: String,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            stop_process(&self.logger, &format!("{} panicked", self.name));
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
        let clocks = match RegionClocks::collect_durable(directory.load(), kv) {
            Ok(clocks) => Arc::new(clocks),
            Err(error) => stop_process(logger, &error.to_string()),
        };
        if published
            .as_ref()
            .is_some_and(|older| !clocks.differ_from(older))
        {
            continue;
        }
        // Those of an engine that flushes by itself are durable already.
        if !kv.is_durable_by_flush()
            && let Err(error) = kv.make_durable()
        {
            stop_process(logger, &error.to_string());
        }
        let lookup = clocks.clone();
        kv.publish_expiry_clocks(Arc::new(move |cf, key| lookup.clock_of(cf, key)));
        published = Some(clocks);
    }
}
