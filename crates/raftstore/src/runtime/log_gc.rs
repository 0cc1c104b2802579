//! The thread of the log gc worker: gathers jobs, and has the kv engine made durable for all of them
//! at once.
//!
//! Jobs     Where the engine is made durable by a sync, jobs that have come meanwhile share it. Where
//!          it is a flush, they wait until the engine has flushed by itself: a flush every few
//!          seconds would have a small load make many small tables. They do not wait longer than a
//!          while, nor until the logs have grown by much.
//! Replay   Nor do the logs grow by much without a flush where no job waits for one, as with a
//!          follower that is away: a start would replay all of it.
//! Reclaim  What the logs' files hold for nobody then goes back to the disk, in parts, so that
//!          those who write come between.

use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use slog::Logger;
use strata_storage::{Engine, EngineError, Engines};

use super::clock;
use super::inbox::Inbox;
use super::threads::{answer_job, stop_process};
use crate::job::{JobDone, RegionJob};
use crate::log_gc_worker::LogGcWorker;
use crate::region_worker::WorkerFault;

/// How often it is looked whether the kv engine has flushed by itself, while jobs wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is looked how far the logs have grown, while none do.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two parts of reclaiming.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(10);

/// What makes jobs wait no longer for an engine that flushes by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushLimits {
    /// Time since jobs were last done.
    pub interval: Duration,
    /// Bytes by which the logs have grown since then.
    pub log_bytes: u64,
}

/// Works until no shard can send jobs any more. What waits then goes with a later compaction.
pub(super) fn run_log_gc_worker<E: Engine>(
    engines: &Engines<E>,
    jobs: &Receiver<RegionJob>,
    limits: FlushLimits,
    inboxes: &[Inbox],
    logger: &Logger,
) {
    let mut worker = LogGcWorker::new(engines.clone());
    let mut pace = Pace::new(engines);
    let mut is_reclaiming = false;
    loop {
        let wait = match (is_reclaiming, worker.has_work()) {
            (true, _) => RECLAIM_INTERVAL,
            (false, true) => LOOK_INTERVAL,
            (false, false) => IDLE_INTERVAL,
        };
        match jobs.recv_timeout(wait) {
            Ok(job) => worker.push(&job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        jobs.try_iter().for_each(|job| worker.push(&job));
        is_reclaiming |= pace.look();
        match pace.round(&mut worker, limits) {
            Ok(done) => {
                is_reclaiming |= !done.is_empty();
                done.into_iter().for_each(|done| answer_job(inboxes, done));
            }
            Err(fault) => stop_process(logger, &fault.to_string()),
        }
        if is_reclaiming {
            match engines.raft.reclaim() {
                Ok(is_more) => is_reclaiming = is_more,
                Err(error) => stop_process(logger, &error.to_string()),
            }
        }
    }
}

/// When the kv engine was last known to be made durable, by itself or for a job, and what the logs held
/// then. What it flushes by itself is seen only where a job waits.
struct Pace<'a, E> {
    engines: &'a Engines<E>,
    since: Duration,
    /// At most what they held then.
    held_bytes: u64,
    /// When it was last looked.
    seen_bytes: u64,
}

impl<'a, E: Engine> Pace<'a, E> {
    fn new(engines: &'a Engines<E>) -> Self {
        let held_bytes = engines.raft.held_bytes();
        Self {
            engines,
            since: clock::monotonic(),
            held_bytes,
            seen_bytes: held_bytes,
        }
    }

    /// Looks what the logs hold. True if it has become less, as where a region was destroyed.
    fn look(&mut self) -> bool {
        let held = self.engines.raft.held_bytes();
        let has_shrunk = held < self.seen_bytes;
        self.held_bytes = self.held_bytes.min(held);
        self.seen_bytes = held;
        has_shrunk
    }

    /// Does what may be done now; nothing if jobs shall wait.
    fn round(
        &mut self,
        worker: &mut LogGcWorker<E>,
        limits: FlushLimits,
    ) -> Result<Vec<JobDone>, WorkerFault> {
        let kv = &self.engines.kv;
        let mut done = worker.step_durable()?;
        let is_grown = self.seen_bytes >= self.held_bytes.saturating_add(limits.log_bytes);
        if !done.is_empty() {
            // What is left came after the kv engine was made durable.
            *self = Self::new(self.engines);
        } else if worker.has_work() {
            let is_late = clock::monotonic() >= self.since + limits.interval;
            if !kv.is_durable_by_flush() || is_late || is_grown {
                done = worker.step()?;
                *self = Self::new(self.engines);
            }
        } else if kv.is_durable_by_flush() && is_grown {
            kv.make_durable().map_err(replay_fault)?;
            *self = Self::new(self.engines);
        }
        Ok(done)
    }
}

/// Of no region: all of them are flushed.
fn replay_fault(error: EngineError) -> WorkerFault {
    WorkerFault {
        region_id: 0,
        job: "flushing what a start would replay",
        error: strata_storage::Error::from(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
            self.answers.take_within(wanted, time).len()
        }

        fn log_bytes(&self) -> u64 {
            let entries = self.folder.path().join("raft").read_dir().unwrap();
            entries
                .filter_map(|entry| entry.ok()?.metadata().ok())
                .map(|metadata| metadata.len())
                .sum()
        }

        fn wait_for_few_files(&self) {
            let began = Instant::now();
            while self.log_bytes() > 16 * LOG_FILE_BYTES as u64 {
                let bytes = self.log_bytes();
                assert!(began.elapsed() < PATIENCE, "{bytes} bytes are kept");
                std::thread::sleep(Duration::from_millis(20));
            }
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
        // Whatever of the first was there before the worker looked.
        running.fill_log(2, 5);
        assert_eq!(running.answered(1, PATIENCE), 1);
        let key = keys::raft_log(1, 0);
        assert_eq!(running.engines.raft.get(Cf::RaftLog, &key).unwrap(), None);
        running.stop();
    }

    /// With a follower that is away no job comes: what a start would replay stays within the limit.
    #[test]
    fn the_engine_is_flushed_once_the_logs_have_grown_though_no_job_waits() {
        let log_bytes = 4 << 20;
        let running = run(FlushLimits { log_bytes, ..NEVER });
        let kv = running.engines.kv.clone();
        let mut batch = WriteBatch::new();
        batch.put(Cf::Raw, "z", "applied");
        kv.write(&batch, Durability::Unsynced).unwrap();
        let is_flushed = || kv.get_durable(Cf::Raw, b"z").unwrap().is_some();
        std::thread::sleep(2 * IDLE_INTERVAL);
        assert!(!is_flushed());
        running.fill_log(1, 5);
        let began = Instant::now();
        while !is_flushed() {
            assert!(began.elapsed() < PATIENCE, "nothing is flushed");
            std::thread::sleep(Duration::from_millis(20));
        }
        running.stop();
    }

    /// Nobody waits for a region that is gone.
    #[test]
    fn job_of_a_destroyed_region_holds_no_other_up() {
        let running = run(NEVER);
        let gone = RegionJob::GcLog {
            region_id: 7,
            to_index: 9,
        };
        running.jobs.send(gone).unwrap();
        running.compact(1);
        running.fill_memtable();
        assert_eq!(running.answered(2, PATIENCE), 2);
        running.stop();
    }

    /// The log of a region that is destroyed goes with it, and no job comes.
    #[test]
    fn files_of_a_destroyed_region_go_back_to_the_disk() {
        let running = run(NEVER);
        running.fill_log(1, 20);
        std::thread::sleep(2 * IDLE_INTERVAL);
        let (start, end) = keys::raft_log_range(1);
        let mut batch = WriteBatch::new();
        batch.delete_range(Cf::RaftLog, start, end);
        let raft = &running.engines.raft;
        raft.write(&batch, Durability::Synced).unwrap();
        running.wait_for_few_files();
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
        running.wait_for_few_files();
        running.stop();
    }
}
