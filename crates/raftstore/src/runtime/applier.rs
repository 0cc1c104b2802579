//! Applying, on the shard's own task or on a thread of its own.
//!
//! Inline   What is small is applied by the shard's task itself: no thread is woken, and the
//!          shard knows the outcome at once. Three things must not happen on that task, as it
//!          shares its thread with the network: a long computation, waiting for the disk, and
//!          waiting for RocksDB when it holds writers up. So a batch goes to the apply thread
//!          if it is large, if an entry reads or wants a sync, or if the engine would wait.
//! Thread   Takes batches in order, many at once, and tells the shards what it has applied.
//!
//! Invariant: tasks of a region are applied in the order in which its shard handed them out.
//! While a batch of a shard is with the apply thread, the next ones follow it there. Batches of
//! another shard may be applied in between: they are of other regions, and neither read nor
//! write what belongs to these.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use parking_lot::Mutex;
use slog::Logger;
use strata_storage::{Durability, Engine};

use super::clock;
use super::inbox::Inbox;
use super::threads::{GATHER_BYTES, ReadMail, send_read, stop_process};
use crate::apply::{Applied, ApplyFault, ApplyOutput, ApplyShard, ApplyTask};
use crate::metrics::StoreMetrics;
use crate::shard::{ShardEvent, shard_of};
use crate::write_stages::BatchTimes;

/// A batch that is computed and not written.
pub(super) struct Computed {
    begun: Duration,
    output: ApplyOutput,
}

/// What an apply thread is to do.
pub(super) enum ApplyWork {
    /// Apply these.
    Tasks(Vec<ApplyTask>),
    /// Write this, and apply its rest.
    Write(Box<Computed>),
}

/// Work of a shard for an apply thread.
pub(super) struct ApplyMail {
    pub shard: usize,
    pub work: ApplyWork,
}

/// What became of tasks that were to be applied on the shard's task.
pub(super) enum Inline {
    /// They are applied.
    Applied(Vec<Applied>),
    /// The apply thread has to do this.
    Left(ApplyWork),
}

/// An apply shard with what it needs to apply.
pub(super) struct Applier<E: Engine> {
    pub shard: Mutex<ApplyShard>,
    /// Bytes up to which a batch grows inline.
    pub inline_batch_bytes: usize,
    pub kv: E,
    pub readers: Sender<ReadMail<E::Snapshot>>,
    pub metrics: Arc<StoreMetrics>,
    pub logger: Logger,
}

impl<E: Engine> Applier<E> {
    /// Applies tasks without waiting for anything.
    pub fn apply_inline(&self, tasks: Vec<ApplyTask>) -> Inline {
        // Taken: the apply thread is at work for another raft shard.
        let Some(mut shard) = self.shard.try_lock() else {
            return Inline::Left(ApplyWork::Tasks(tasks));
        };
        let begun = clock::monotonic();
        let result = shard.apply_quick(&self.kv, tasks, self.inline_batch_bytes);
        let computed = self.computed(begun, result);
        drop(shard);
        let output = &computed.output;
        let waits = output.durability == Durability::Synced || !output.rest.is_empty();
        if waits || !self.write_at_once(&computed) {
            return Inline::Left(ApplyWork::Write(Box::new(computed)));
        }
        Inline::Applied(self.finish(computed).0)
    }

    fn write_at_once(&self, computed: &Computed) -> bool {
        match self.kv.write_at_once(&computed.output.batch) {
            Ok(written) => written,
            Err(error) => stop_process(&self.logger, &error.to_string()),
        }
    }

    fn compute(&self, shard: &mut ApplyShard, tasks: Vec<ApplyTask>) -> Computed {
        let begun = clock::monotonic();
        let result = shard.apply(&self.kv, tasks);
        self.computed(begun, result)
    }

    fn computed(&self, begun: Duration, result: Result<ApplyOutput, ApplyFault>) -> Computed {
        match result {
            Ok(output) => Computed { begun, output },
            Err(fault) => stop_process(&self.logger, &fault.to_string()),
        }
    }

    fn write(&self, computed: &Computed) {
        let output = &computed.output;
        if let Err(error) = self.kv.write(&output.batch, output.durability) {
            stop_process(&self.logger, &error.to_string());
        }
    }

    /// After the batch is written: answers, and returns progress and what there was no room for.
    fn finish(&self, computed: Computed) -> (Vec<Applied>, Vec<ApplyTask>) {
        let Computed { begun, output } = computed;
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
}

/// The thread of an apply shard.
pub(super) struct ApplyThread<E: Engine> {
    pub index: usize,
    pub applier: Arc<Applier<E>>,
    pub works: Receiver<ApplyMail>,
    pub inboxes: Vec<Inbox>,
}

impl<E: Engine> ApplyThread<E> {
    pub fn run(self) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| self.works.recv().ok()) {
            match first.work {
                ApplyWork::Tasks(tasks) => next = self.gather(first.shard, tasks),
                ApplyWork::Write(computed) => {
                    let mut batches = vec![0; self.inboxes.len()];
                    batches[first.shard] = 1;
                    self.work_off(ApplyWork::Write(computed), &batches);
                }
            }
        }
    }

    /// Applies tasks with those that wait behind them. Returns what came that is none.
    fn gather(&self, shard: usize, mut tasks: Vec<ApplyTask>) -> Option<ApplyMail> {
        let mut batches = vec![0; self.inboxes.len()];
        batches[shard] = 1;
        let mut bytes: usize = tasks.iter().map(ApplyTask::bytes).sum();
        let mut other = None;
        while bytes < GATHER_BYTES
            && other.is_none()
            && let Ok(mail) = self.works.try_recv()
        {
            match mail.work {
                ApplyWork::Tasks(more) => {
                    batches[mail.shard] += 1;
                    bytes += more.iter().map(ApplyTask::bytes).sum::<usize>();
                    tasks.extend(more);
                }
                ApplyWork::Write(_) => other = Some(mail),
            }
        }
        self.work_off(ApplyWork::Tasks(tasks), &batches);
        other
    }

    /// Writes batch by batch until nothing is left. Credits go back with the last one.
    fn work_off(&self, mut work: ApplyWork, batches: &[usize]) {
        let none = vec![0; batches.len()];
        loop {
            let computed = match work {
                ApplyWork::Tasks(tasks) => {
                    self.applier.compute(&mut self.applier.shard.lock(), tasks)
                }
                ApplyWork::Write(computed) => *computed,
            };
            self.applier.metrics.apply_batches_on_threads.increment();
            self.applier.write(&computed);
            let (applied, rest) = self.applier.finish(computed);
            let done = rest.is_empty();
            self.tell(applied, if done { batches } else { &none });
            if done {
                return;
            }
            work = ApplyWork::Tasks(rest);
        }
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
