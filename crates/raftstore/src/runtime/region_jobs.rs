//! The thread of the region worker: a piece of work at a time, and what the log says of it.
//!
//! A snapshot that is made or installed has two lines, when its job begins and when it ends,
//! and its time is counted. An install that waits for room says so once for each reason.
//!
//! A snapshot is made at no more than `snapshot_bytes_per_second` ([`Pace`]): at full speed it
//! would take a processor and much of the disk from those who write meanwhile. While a job of another
//! kind waits behind it, such as an install, it goes at full speed, and that counts for nothing.

use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use slog::{Logger, info, warn};
use strata_storage::snapshot::{SnapshotEngine, total_bytes};

use super::clock;
use super::inbox::Inbox;
use super::threads::{answer_job, stop_process};
use crate::job::{JobDone, RegionJob};
use crate::metrics::StoreMetrics;
use crate::region_worker::{CurrentJob, RegionWorker};
use crate::snapshot_transfer::RateLimit;

/// Most bytes of keys and values that the region worker reads in one piece of work.
const BUDGET_BYTES_MOST: u64 = 1 << 20;
/// As many it reads where little is allowed in a second: smaller pieces would cost more than they
/// read.
const BUDGET_BYTES_LEAST: u64 = 16 << 10;
/// Pieces in which a second's bytes are read at least, within these bounds.
const PIECES_PER_SECOND: u64 = 10;
/// How often the region worker looks for files to collect, and for work to try again.
const WORKER_WAIT: Duration = Duration::from_millis(200);

/// How fast snapshots are made.
pub(super) struct Pace {
    rate: RateLimit,
    /// Bytes that are read in one piece of work.
    budget_bytes: usize,
    /// No piece of work is done before.
    not_before: Duration,
}

impl Pace {
    /// 0 bytes a second: no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let budget = match bytes_per_second {
            0 => BUDGET_BYTES_MOST,
            rate => (rate / PIECES_PER_SECOND).clamp(BUDGET_BYTES_LEAST, BUDGET_BYTES_MOST),
        };
        Pace {
            rate: RateLimit::new(bytes_per_second),
            budget_bytes: budget as usize,
            not_before: Duration::ZERO,
        }
    }

    /// So many bytes were read for a snapshot in the last piece of work. The next one may wait.
    fn on_read(&mut self, now: Duration, bytes: u64) {
        if bytes > 0 {
            self.not_before = now.saturating_add(self.rate.take(now, bytes));
        }
    }

    /// How long to wait for the next piece of work.
    fn wait(&self, now: Duration) -> Duration {
        self.not_before.saturating_sub(now)
    }
}

/// Works until no shard can send jobs any more. What is under way then is begun again by the
/// next start.
pub(super) fn run_region_worker<E: SnapshotEngine>(
    mut worker: RegionWorker<E>,
    mut pace: Pace,
    jobs: &Receiver<RegionJob>,
    inboxes: &[Inbox],
    metrics: &StoreMetrics,
    logger: &Logger,
) {
    let mut record = Record {
        metrics,
        logger,
        under_way: None,
        told: None,
    };
    loop {
        let wait = match worker.has_work(clock::monotonic()) {
            true if worker.only_makes() => pace.wait(clock::monotonic()),
            true => Duration::ZERO,
            false => WORKER_WAIT,
        };
        match jobs.recv_timeout(wait) {
            Ok(job) => worker.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if worker.only_makes() && !pace.wait(clock::monotonic()).is_zero() {
            continue;
        }
        match worker.step(clock::monotonic(), pace.budget_bytes) {
            Ok(done) => {
                let read = worker.take_read_bytes();
                if worker.only_makes() {
                    pace.on_read(clock::monotonic(), read);
                }
                record.note(clock::monotonic(), &worker, done.as_ref());
                done.into_iter().for_each(|done| answer_job(inboxes, done));
            }
            Err(fault) => stop_process(logger, &fault.to_string()),
        }
    }
}

/// What was told of the job under way.
struct Record<'a> {
    metrics: &'a StoreMetrics,
    logger: &'a Logger,
    /// The job, and when it began.
    under_way: Option<(CurrentJob, Duration)>,
    /// The last reason for waiting that was told.
    told: Option<String>,
}

impl Record<'_> {
    /// Compares what the worker is at with what it was at before its last piece of work.
    fn note<E: SnapshotEngine>(
        &mut self,
        now: Duration,
        worker: &RegionWorker<E>,
        done: Option<&JobDone>,
    ) {
        self.note_wait(worker);
        if let Some(JobDone::Generated {
            region_id,
            result: Err(error),
        }) = done
        {
            // Also where it failed as it began.
            warn!(self.logger, "a snapshot could not be made, a later request tries again";
                "region" => region_id, "reason" => %error);
        }
        let current = worker.current();
        if current == self.under_way.map(|(job, _)| job) {
            return;
        }
        if let Some((job, began)) = self.under_way.take() {
            self.ended(job, now.saturating_sub(began), done);
        }
        if let Some(job) = current {
            info!(self.logger, "{}", begun(job); "region" => job.region_id);
            self.under_way = Some((job, now));
        }
    }

    fn ended(&self, job: CurrentJob, took: Duration, done: Option<&JobDone>) {
        let spent = match job.install {
            true => &self.metrics.snapshot_install_ms,
            false => &self.metrics.snapshot_generate_ms,
        };
        spent.add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let seconds = format!("{:.1}", took.as_secs_f64());
        match done {
            Some(JobDone::Generated {
                result: Ok(meta), ..
            }) => info!(self.logger, "a snapshot was made"; "region" => job.region_id,
                "bytes" => total_bytes(meta), "seconds" => seconds),
            Some(JobDone::Installed { .. }) => {
                info!(self.logger, "a snapshot was installed"; "region" => job.region_id,
                    "seconds" => seconds);
            }
            _ => {}
        }
    }

    fn note_wait<E: SnapshotEngine>(&mut self, worker: &RegionWorker<E>) {
        let reason = worker.waits_because().map(ToString::to_string);
        if reason == self.told {
            return;
        }
        if let (Some(reason), Some(job)) = (&reason, worker.current()) {
            warn!(self.logger, "installing a snapshot waits and tries again";
                "region" => job.region_id, "reason" => reason);
        }
        self.told = reason;
    }
}

fn begun(job: CurrentJob) -> &'static str {
    match job.install {
        true => "installing a snapshot",
        false => "making a snapshot",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam::channel::{Sender, unbounded};
    use slog::{Discard, o};
    use strata_proto::metapb::{Peer, Region, RegionEpoch};
    use strata_proto::raft_serverpb::RegionLocalState;
    use strata_proto::stratapb::{RaftApplyState, SnapshotMeta};
    use strata_storage::snapshot::{MemFiles, SnapshotManager};
    use strata_storage::{
        Cf, Durability, Engine, EngineKind, MemEngine, WriteBatch, keys, write_apply_state,
        write_region_state,
    };

    use super::super::inbox::ShardMail;
    use super::super::mailbox::MailReceiver;
    use super::*;
    use crate::directory::DirectoryCell;
    use crate::options::StoreOptions;

    const MIB: u64 = 1 << 20;
    const REGION: u64 = 7;
    /// Keys and values of that region.
    const REGION_BYTES: u64 = 64 << 10;
    const PATIENCE: Duration = Duration::from_secs(60);
    const A_WHILE: Duration = Duration::from_millis(600);

    /// The thread, on an engine that holds one region.
    struct Running {
        jobs: Sender<RegionJob>,
        answers: MailReceiver<ShardMail>,
        thread: std::thread::JoinHandle<()>,
    }

    fn run(bytes_per_second: u64) -> Running {
        let kv = MemEngine::new(EngineKind::Kv);
        let region = Region {
            id: REGION,
            region_epoch: Some(RegionEpoch::default()),
            peers: vec![Peer::default()],
            ..Region::default()
        };
        let state = RegionLocalState {
            region: Some(region),
            ..RegionLocalState::default()
        };
        let apply = RaftApplyState {
            applied_index: 9,
            applied_term: 6,
            ..RaftApplyState::default()
        };
        let mut batch = WriteBatch::new();
        write_region_state(&mut batch, &state);
        write_apply_state(&mut batch, REGION, &apply);
        for key in 0..8 {
            let value = vec![7; REGION_BYTES as usize / 8];
            batch.put(Cf::Raw, keys::data_key(&[key]), value);
        }
        kv.write(&batch, Durability::Unsynced).unwrap();
        let snapshots = SnapshotManager::open(MemFiles::new(), 1 << 30).unwrap();
        let directory = Arc::new(DirectoryCell::default());
        let worker = RegionWorker::new(&StoreOptions::default(), kv, snapshots, directory);
        let (jobs, taken) = unbounded();
        let (inbox, answers) = Inbox::new(16);
        let thread = std::thread::spawn(move || {
            let (metrics, logger) = (StoreMetrics::default(), Logger::root(Discard, o!()));
            let pace = Pace::new(bytes_per_second);
            run_region_worker(worker, pace, &taken, &[inbox], &metrics, &logger);
        });
        Running {
            jobs,
            answers,
            thread,
        }
    }

    impl Running {
        fn make(&self) {
            let job = RegionJob::Generate { region_id: REGION };
            self.jobs.send(job).unwrap();
        }

        fn check(&self) {
            let job = RegionJob::CheckGenerated {
                region_id: REGION,
                meta: Box::new(SnapshotMeta::default()),
            };
            self.jobs.send(job).unwrap();
        }

        fn clear(&self) {
            let region = Region {
                id: REGION + 1,
                start_key: vec![1].into(),
                end_key: vec![2].into(),
                ..Region::default()
            };
            self.jobs.send(RegionJob::Clear { region }).unwrap();
        }

        /// Jobs that were answered within a time, or as many as are waited for.
        fn answered(&self, wanted: usize, time: Duration) -> usize {
            self.answers.take_within(wanted, time).len()
        }

        fn stop(self) {
            drop(self.jobs);
            self.thread.join().unwrap();
        }
    }

    /// At this rate the region's snapshot would take minutes.
    #[test]
    fn snapshot_is_made_at_the_rate_and_holds_up_neither_checks_nor_the_end() {
        let running = run(REGION_BYTES / 256);
        running.make();
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.check();
        assert_eq!(running.answered(1, PATIENCE), 1, "the check alone");
        assert_eq!(running.answered(1, A_WHILE), 0, "the rate holds behind it");
        running.stop();
    }

    #[test]
    fn snapshot_for_which_another_job_waits_is_made_at_once() {
        let running = run(REGION_BYTES / 256);
        running.make();
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.clear();
        assert_eq!(running.answered(2, PATIENCE), 2);
        // The rate holds again for the next one.
        running.make();
        assert_eq!(running.answered(1, A_WHILE), 0);
        running.stop();
    }

    #[test]
    fn snapshot_without_a_rate_is_made_at_once() {
        let running = run(0);
        running.make();
        assert_eq!(running.answered(1, PATIENCE), 1);
        running.stop();
    }

    /// Pieces of so many bytes that are read in a second, each in a millisecond.
    fn pieces(mut pace: Pace, bytes: u64) -> u64 {
        let (begin, end) = (Duration::from_secs(9), Duration::from_secs(10));
        let (mut now, mut pieces) = (begin, 0);
        while now < end {
            now += Duration::from_millis(1);
            pace.on_read(now, bytes);
            pieces += 1;
            now += pace.wait(now);
        }
        pieces
    }

    #[test]
    fn pieces_wait_by_what_was_read() {
        // A second, and the burst of an idle bucket.
        let made = pieces(Pace::new(100 * MIB), MIB);
        assert!((100..=112).contains(&made), "{made}");
        let smaller = pieces(Pace::new(100 * MIB), MIB / 4);
        assert!((400..=448).contains(&smaller), "{smaller}");
        assert_eq!(pieces(Pace::new(0), MIB), 1000, "no limit");
        // Installs, clears, and the parts of a region without keys.
        assert_eq!(pieces(Pace::new(100 * MIB), 0), 1000, "nothing was read");
    }

    #[test]
    fn pieces_are_small_where_little_is_allowed() {
        let budget = |rate| Pace::new(rate).budget_bytes as u64;
        assert_eq!(budget(0), MIB);
        assert_eq!(budget(u64::MAX), MIB);
        assert_eq!(budget(MIB), MIB / 10);
        assert_eq!(budget(1), BUDGET_BYTES_LEAST);
    }

    #[test]
    fn what_is_done_meanwhile_does_not_end_the_wait() {
        let mut pace = Pace::new(MIB);
        let now = Duration::from_secs(9);
        pace.on_read(now, MIB);
        let wait = pace.wait(now);
        assert!(wait > Duration::from_millis(500), "{wait:?}");
        pace.on_read(now, 0);
        assert_eq!(pace.wait(now), wait);
    }
}
