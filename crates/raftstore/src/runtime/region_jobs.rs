//! The thread of the region worker: a piece of work at a time, and what the log says of it.
//!
//! A snapshot that is made or installed has two lines, when its job begins and when it ends,
//! and its time is counted. An install that waits for room says so once for each reason.
//!
//! A snapshot is made at no more than `snapshot_bytes_per_second` ([`Pace`]): at full speed it
//! would take a processor and much of the disk from those who write meanwhile, for the sake of one
//! follower that waits for the slower sending anyway. While a job of another kind waits behind it,
//! such as an install, it goes at full speed, and that counts for nothing.

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
        match worker.step(clock::monotonic(), WORKER_BUDGET_BYTES) {
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
    use super::*;

    const MIB: u64 = 1 << 20;

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
    fn snapshots_are_made_at_the_rate() {
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
