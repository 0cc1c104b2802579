//! The thread of the region worker: a piece of work at a time, and what the log says of it.
//!
//! A snapshot that is made or installed has two lines, when its job begins and when it ends,
//! and its time is counted. An install that waits for room says so once for each reason.
//!
//! A snapshot is made at no more than `snapshot_bytes_per_second` ([`Pace`]): at full speed it
//! would take a processor and much of the disk from those who write meanwhile, for the sake of one
//! follower that waits for the slower sending anyway. Jobs behind it wait as long.

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

/// Bytes of keys and values that the region worker reads in one piece of work.
const WORKER_BUDGET_BYTES: usize = 1 << 20;
/// How often the region worker looks for files to collect, and for work to try again.
const WORKER_WAIT: Duration = Duration::from_millis(200);

/// How fast snapshots are made.
pub(super) struct Pace {
    rate: RateLimit,
    /// No piece of work is done before.
    not_before: Duration,
}

impl Pace {
    /// 0 bytes a second: no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Pace {
            rate: RateLimit::new(bytes_per_second),
            not_before: Duration::ZERO,
        }
    }

    /// A piece of `job` is done. The next one may wait.
    fn on_worked(&mut self, now: Duration, job: Option<CurrentJob>) {
        if job.is_some_and(|job| !job.install) {
            let bytes = WORKER_BUDGET_BYTES as u64;
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
            true => pace.wait(clock::monotonic()),
            false => WORKER_WAIT,
        };
        match jobs.recv_timeout(wait) {
            Ok(job) => worker.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if !pace.wait(clock::monotonic()).is_zero() {
            continue;
        }
        match worker.step(clock::monotonic(), WORKER_BUDGET_BYTES) {
            Ok(done) => {
                pace.on_worked(clock::monotonic(), worker.current());
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
    use super::*;

    const MAKING: Option<CurrentJob> = Some(CurrentJob {
        region_id: 7,
        install: false,
    });
    const INSTALLING: Option<CurrentJob> = Some(CurrentJob {
        region_id: 7,
        install: true,
    });

    /// Pieces of a job that are done in a second.
    fn pieces(pace: &mut Pace, job: Option<CurrentJob>) -> u64 {
        let (begin, end) = (Duration::from_secs(9), Duration::from_secs(10));
        let (mut now, mut pieces) = (begin, 0);
        while now < end && pieces < 1000 {
            pace.on_worked(now, job);
            pieces += 1;
            now += pace.wait(now) + Duration::from_millis(1);
            assert!(pace.wait(now).is_zero());
        }
        pieces
    }

    #[test]
    fn snapshots_are_made_at_the_rate_and_installed_at_any() {
        let budget = WORKER_BUDGET_BYTES as u64;
        let made = pieces(&mut Pace::new(100 * budget), MAKING);
        // A second, and the burst of an idle bucket.
        assert!((100..=112).contains(&made), "{made}");
        // Each piece takes a millisecond here.
        assert_eq!(pieces(&mut Pace::new(100 * budget), INSTALLING), 1000);
        assert_eq!(pieces(&mut Pace::new(0), MAKING), 1000);
    }

    #[test]
    fn a_job_that_comes_meanwhile_does_not_end_the_wait() {
        let mut pace = Pace::new(WORKER_BUDGET_BYTES as u64);
        let now = Duration::from_secs(9);
        pace.on_worked(now, MAKING);
        let wait = pace.wait(now);
        assert!(wait > Duration::from_millis(500), "{wait:?}");
        // The end of the snapshot is no piece of one.
        pace.on_worked(now, None);
        assert_eq!(pace.wait(now), wait);
    }
}
