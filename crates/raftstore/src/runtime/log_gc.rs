//! The thread of the log gc worker: gathers jobs, and has the kv engine made durable for all of them
//! at once.
//!
//! Where that is a sync, jobs that have come meanwhile share it. Where it is a flush, jobs wait until
//! the engine has gathered enough for one, or for so long that the logs should not grow further: a
//! flush every few seconds would have a small load make many small tables.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use slog::Logger;
use strata_storage::Engine;

use super::clock;
use super::inbox::Inbox;
use super::threads::{answer_job, stop_process};
use crate::job::RegionJob;
use crate::log_gc_worker::LogGcWorker;

/// How often the kv engine is asked whether it has gathered enough.
const FLUSH_WAIT: Duration = Duration::from_millis(200);

/// Works until no shard can send jobs any more. `kv`: the kv engine, and the longest time between two
/// flushes while jobs wait.
pub(super) fn run_log_gc_worker<E: Engine>(
    mut worker: LogGcWorker<E>,
    jobs: &Receiver<RegionJob>,
    (kv, flush_interval): (&E, Duration),
    inboxes: &[Inbox],
    logger: &Logger,
) {
    let mut durable = clock::monotonic();
    while let Ok(first) = jobs.recv() {
        worker.push(&first);
        while !kv.is_cheap_to_make_durable() && clock::monotonic() < durable + flush_interval {
            if !gather(&mut worker, jobs) {
                // The node stops. A later compaction takes these entries, too.
                return;
            }
        }
        jobs.try_iter().for_each(|job| worker.push(&job));
        while worker.has_work() {
            match worker.step() {
                Ok(done) => done.into_iter().for_each(|done| answer_job(inboxes, done)),
                Err(fault) => stop_process(logger, &fault.to_string()),
            }
        }
        durable = clock::monotonic();
    }
}

/// Takes jobs over for a while. False if none can come any more.
fn gather<E: Engine>(worker: &mut LogGcWorker<E>, jobs: &Receiver<RegionJob>) -> bool {
    let end = Instant::now() + FLUSH_WAIT;
    loop {
        match jobs.recv_deadline(end) {
            Ok(job) => worker.push(&job),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{Sender, unbounded};
    use slog::{Discard, o};
    use strata_storage::{
        Cf, DiskEngine, Durability, EngineKind, EngineOptions, Engines, WriteBatch,
    };

    use super::super::inbox::ShardMail;
    use super::super::mailbox::MailReceiver;
    use super::*;

    const MEMTABLE_BYTES: usize = 1 << 20;
    /// Far beyond what any test takes.
    const NEVER: Duration = Duration::from_secs(3600);

    /// A worker on engines of a folder, the kv engine without a log.
    struct Running {
        _folder: tempfile::TempDir,
        kv: DiskEngine,
        jobs: Sender<RegionJob>,
        answers: MailReceiver<ShardMail>,
        thread: std::thread::JoinHandle<()>,
    }

    fn run(flush_interval: Duration) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let settings = EngineOptions {
            kv_wal: false,
            kv_atomic_flush: true,
            kv_memtable_bytes: MEMTABLE_BYTES,
            ..EngineOptions::default()
        };
        let open = |kind, name| DiskEngine::open(kind, &folder.path().join(name), &settings);
        let kv = open(EngineKind::Kv, "kv").unwrap();
        let engines = Engines::new(kv.clone(), open(EngineKind::Raft, "raft").unwrap());
        let (jobs, taken) = unbounded();
        let (inbox, answers) = Inbox::new(16);
        let engine = kv.clone();
        let thread = std::thread::spawn(move || {
            let logger = Logger::root(Discard, o!());
            let worker = LogGcWorker::new(engines);
            run_log_gc_worker(worker, &taken, (&engine, flush_interval), &[inbox], &logger);
        });
        Running {
            _folder: folder,
            kv,
            jobs,
            answers,
            thread,
        }
    }

    impl Running {
        fn compact(&self, region_id: u64) {
            let job = RegionJob::GcLog {
                region_id,
                to_index: 9,
            };
            self.jobs.send(job).unwrap();
        }

        /// Jobs that were answered within a time, or as many as are waited for.
        fn answered(&self, wanted: usize, time: Duration) -> usize {
            let (began, mut mails) = (Instant::now(), Vec::new());
            while mails.len() < wanted && began.elapsed() < time {
                self.answers.take(&mut mails);
                std::thread::sleep(Duration::from_millis(5));
            }
            mails.len()
        }

        fn stop(self) {
            drop(self.jobs);
            self.thread.join().unwrap();
        }
    }

    #[test]
    fn jobs_wait_until_a_flush_is_worth_it() {
        let running = run(NEVER);
        running.compact(1);
        running.compact(2);
        assert_eq!(running.answered(1, Duration::from_millis(600)), 0);
        let mut batch = WriteBatch::new();
        for key in 0..160 {
            batch.put(Cf::Raw, format!("z{key:04}"), vec![7; MEMTABLE_BYTES / 256]);
        }
        running.kv.write(&batch, Durability::Unsynced).unwrap();
        assert_eq!(running.answered(2, Duration::from_secs(30)), 2);
        // What was gathered is flushed: the next one waits again, and does not hold up the end.
        running.compact(3);
        assert_eq!(running.answered(1, Duration::from_millis(600)), 0);
        running.stop();
    }

    #[test]
    fn jobs_wait_no_longer_than_for_the_interval() {
        let running = run(Duration::from_millis(100));
        running.compact(1);
        assert_eq!(running.answered(1, Duration::from_secs(30)), 1);
        running.stop();
    }
}
