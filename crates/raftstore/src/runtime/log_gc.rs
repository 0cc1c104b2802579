//! The thread of the log gc worker: gathers jobs, and has the kv engine made durable for all of them
//! at once.
//!
//! Where that is a sync, jobs that have come meanwhile share it. Where it is a flush, jobs wait until
//! the engine has flushed by itself: a flush every few seconds would have a small load make many
//! small tables. They do not wait longer than a while, nor until the logs have grown by much.
//! What the logs' files hold for nobody then goes back to the disk.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use slog::Logger;
use strata_storage::{Engine, Engines};

use super::clock;
use super::inbox::Inbox;
use super::threads::{answer_job, stop_process};
use crate::job::{JobDone, RegionJob};
use crate::log_gc_worker::LogGcWorker;
use crate::region_worker::WorkerFault;

/// How often it is looked whether the kv engine has flushed by itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What makes jobs wait no longer for an engine that flushes by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushLimits {
    /// Time since jobs were last done.
    pub interval: Duration,
    /// Bytes by which the logs have grown since then.
    pub log_bytes: u64,
}

/// Works until no shard can send jobs any more.
pub(super) fn run_log_gc_worker<E: Engine>(
    engines: &Engines<E>,
    jobs: &Receiver<RegionJob>,
    limits: FlushLimits,
    inboxes: &[Inbox],
    logger: &Logger,
) {
    let mut worker = LogGcWorker::new(engines.clone());
    let mut pace = Pace::new(engines);
    while let Ok(first) = jobs.recv() {
        worker.push(&first);
        while worker.has_work() {
            jobs.try_iter().for_each(|job| worker.push(&job));
            match round(&mut worker, &pace, limits) {
                Ok(done) if done.is_empty() => {
                    if !gather(&mut worker, jobs) {
                        // The node stops. A later compaction takes these entries, too.
                        return;
                    }
                    pace.look();
                }
                Ok(done) => {
                    done.into_iter().for_each(|done| answer_job(inboxes, done));
                    // What is left came after the kv engine was made durable.
                    pace = Pace::new(engines);
                }
                Err(fault) => stop_process(logger, &fault.to_string()),
            }
        }
        if let Err(error) = engines.raft.reclaim() {
            stop_process(logger, &error.to_string());
        }
    }
}

/// Does what may be done now; nothing if jobs shall wait.
fn round<E: Engine>(
    worker: &mut LogGcWorker<E>,
    pace: &Pace<'_, E>,
    limits: FlushLimits,
) -> Result<Vec<JobDone>, WorkerFault> {
    let done = worker.step_durable()?;
    if done.is_empty() && pace.is_over(limits) {
        return worker.step();
    }
    Ok(done)
}

/// Since when jobs wait, and how far the logs have grown.
struct Pace<'a, E> {
    engines: &'a Engines<E>,
    since: Duration,
    held_bytes: u64,
}

impl<'a, E: Engine> Pace<'a, E> {
    fn new(engines: &'a Engines<E>) -> Self {
        Self {
            engines,
            since: clock::monotonic(),
            held_bytes: engines.raft.held_bytes(),
        }
    }

    /// Logs may have become shorter, as those of a region that was destroyed.
    fn look(&mut self) {
        self.held_bytes = self.held_bytes.min(self.engines.raft.held_bytes());
    }

    fn is_over(&self, limits: FlushLimits) -> bool {
        !self.engines.kv.is_durable_by_flush()
            || clock::monotonic() >= self.since + limits.interval
            || self.engines.raft.held_bytes() >= self.held_bytes + limits.log_bytes
    }
}

/// Takes jobs over for a while. False if none can come any more.
fn gather<E: Engine>(worker: &mut LogGcWorker<E>, jobs: &Receiver<RegionJob>) -> bool {
    let end = Instant::now() + LOOK_INTERVAL;
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
    use strata_proto::stratapb::RaftApplyState;
    use strata_storage::{
        Cf, DiskEngine, Durability, EngineKind, EngineOptions, ReadView, WriteBatch, keys,
        write_apply_state,
    };

    use super::super::inbox::ShardMail;
    use super::super::mailbox::MailReceiver;
    use super::*;

    const MEMTABLE_BYTES: usize = 1 << 20;
    const LOG_FILE_BYTES: usize = 256 << 10;
    /// Far beyond what any test takes.
    const NEVER: FlushLimits = FlushLimits {
        interval: Duration::from_secs(3600),
        log_bytes: 1 << 40,
    };

    /// A worker on engines of a folder, the kv engine without a log.
    struct Running {
        folder: tempfile::TempDir,
        engines: Engines<DiskEngine>,
        jobs: Sender<RegionJob>,
        answers: MailReceiver<ShardMail>,
        thread: std::thread::JoinHandle<()>,
    }

    fn run(limits: FlushLimits) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let settings = EngineOptions {
            kv_wal: false,
            kv_atomic_flush: true,
            kv_memtable_bytes: MEMTABLE_BYTES,
            log_file_bytes: LOG_FILE_BYTES,
            ..EngineOptions::default()
        };
        let open = |kind, name| DiskEngine::open(kind, &folder.path().join(name), &settings);
        let kv = open(EngineKind::Kv, "kv").unwrap();
        let engines = Engines::new(kv, open(EngineKind::Raft, "raft").unwrap());
        let (jobs, taken) = unbounded();
        let (inbox, answers) = Inbox::new(16);
        let shared = engines.clone();
        let thread = std::thread::spawn(move || {
            let logger = Logger::root(Discard, o!());
            run_log_gc_worker(&shared, &taken, limits, &[inbox], &logger);
        });
        Running {
            folder,
            engines,
            jobs,
            answers,
            thread,
        }
    }

    impl Running {
        /// Compacts the log of a region, as apply does, and asks for its entries to go.
        fn compact(&self, region_id: u64) {
            let to_index = 1_000;
            let state = RaftApplyState {
                applied_index: to_index,
                truncated_index: to_index,
                ..RaftApplyState::default()
            };
            let mut batch = WriteBatch::new();
            write_apply_state(&mut batch, region_id, &state);
            let kv = &self.engines.kv;
            kv.write(&batch, Durability::Unsynced).unwrap();
            let job = RegionJob::GcLog {
                region_id,
                to_index,
            };
            self.jobs.send(job).unwrap();
        }

        /// Writes more than a memtable of data, so that RocksDB flushes it by itself.
        fn fill_memtable(&self) {
            for key in 0..400 {
                let mut batch = WriteBatch::new();
                batch.put(Cf::Raw, format!("z{key:04}"), vec![7; MEMTABLE_BYTES / 256]);
                let kv = &self.engines.kv;
                kv.write(&batch, Durability::Unsynced).unwrap();
            }
        }

        /// Writes entries that go when the region's log is compacted.
        fn fill_log(&self, region_id: u64, mebibytes: u64) {
            for index in 0..8 * mebibytes {
                let mut batch = WriteBatch::new();
                let key = keys::raft_log(region_id, index);
                batch.put(Cf::RaftLog, key, vec![7; 128 << 10]);
                let raft = &self.engines.raft;
                raft.write(&batch, Durability::Unsynced).unwrap();
            }
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

        fn log_bytes(&self) -> u64 {
            let entries = self.folder.path().join("raft").read_dir().unwrap();
            entries
                .filter_map(|entry| entry.ok()?.metadata().ok())
                .map(|metadata| metadata.len())
                .sum()
        }

        fn stop(self) {
            drop(self.jobs);
            self.thread.join().unwrap();
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);
    const A_WHILE: Duration = Duration::from_millis(600);

    #[test]
    fn jobs_wait_until_the_engine_has_flushed_by_itself() {
        let running = run(NEVER);
        running.compact(1);
        running.compact(2);
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.fill_memtable();
        assert_eq!(running.answered(2, PATIENCE), 2);
        // What came later waits again, and does not hold up the end.
        running.compact(3);
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.stop();
    }

    #[test]
    fn jobs_wait_no_longer_than_for_the_interval() {
        let interval = Duration::from_millis(100);
        let running = run(FlushLimits { interval, ..NEVER });
        running.compact(1);
        assert_eq!(running.answered(1, PATIENCE), 1);
        running.stop();
    }

    #[test]
    fn jobs_wait_no_longer_once_the_logs_have_grown_by_the_limit() {
        let log_bytes = 4 << 20;
        let running = run(FlushLimits { log_bytes, ..NEVER });
        running.compact(1);
        running.fill_log(1, 3);
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.fill_log(2, 3);
        assert_eq!(running.answered(1, PATIENCE), 1);
        let key = keys::raft_log(1, 0);
        assert_eq!(running.engines.raft.get(Cf::RaftLog, &key).unwrap(), None);
        running.stop();
    }

    /// Though nothing is written any more that would pay for it.
    #[test]
    fn files_of_what_has_gone_go_back_to_the_disk() {
        let running = run(NEVER);
        running.fill_log(1, 20);
        running.compact(1);
        running.fill_memtable();
        assert_eq!(running.answered(1, PATIENCE), 1);
        let began = Instant::now();
        while running.log_bytes() > 16 * LOG_FILE_BYTES as u64 {
            let bytes = running.log_bytes();
            assert!(began.elapsed() < PATIENCE, "{bytes} bytes are kept");
            std::thread::sleep(Duration::from_millis(20));
        }
        running.stop();
    }
}
