//! Tasks that send one request after another, or by a schedule, and what they saw.

use super::key_set::KeySet;
use super::kind::Kind;
use super::plan::Plan;
use super::schedule::Schedule;
use super::server::Server;
use crate::args::LoadArgs;
use crate::exit::Failure;
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Latencies are kept in microseconds, to three digits, up to a minute.
const LATENCY_MAX_US: u64 = 60_000_000;

/// A load that is about to be applied.
pub struct Load {
    server: Server,
    kind: Kind,
    plan: Plan,
    clients: u64,
    length: Duration,
    rate: Option<u64>,
}

/// What all tasks saw.
pub struct Seen {
    /// Time from the first request to the last answer.
    pub elapsed: Duration,
    /// Longest time without any acknowledgement of any task, to the end of the run.
    pub longest_gap: Duration,
    /// Latency of the successful calls, in microseconds.
    pub latency: Histogram<u64>,
    /// Keys that the successful calls wrote or read.
    pub operations: u64,
    /// Bytes of the keys and values that were written.
    pub written_bytes: u64,
    /// Calls that ended in an error.
    pub errors: u64,
    /// Calls that were due by the rate and not sent.
    pub unsent: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
    /// Answers that were not what was written.
    pub wrong: u64,
    /// Places in the plan of regions that were reached.
    pub touched: BTreeSet<usize>,
    /// Numbers of the keys whose writes succeeded, of all tasks.
    pub keys: Arc<KeySet>,
}

impl Seen {
    fn new(keys: Arc<KeySet>) -> Result<Self, Failure> {
        Ok(Self {
            elapsed: Duration::ZERO,
            longest_gap: Duration::ZERO,
            latency: Histogram::new_with_max(LATENCY_MAX_US, 3)
                .map_err(|error| Failure::error(error.to_string()))?,
            operations: 0,
            written_bytes: 0,
            errors: 0,
            unsent: 0,
            first_error: None,
            wrong: 0,
            touched: BTreeSet::new(),
            keys,
        })
    }

    fn add(&mut self, other: Seen) {
        // Both histograms have the same bounds, so none of this one's counts is lost.
        let _ = self.latency.add(&other.latency);
        self.operations += other.operations;
        self.written_bytes += other.written_bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.wrong += other.wrong;
        self.touched.extend(other.touched);
    }
}

#[derive(Default)]
struct Live {
    operations: AtomicU64,
    errors: AtomicU64,
    /// When the last acknowledgement came, in microseconds since the start.
    last_us: AtomicU64,
    /// Longest time between two acknowledgements, in microseconds.
    gap_us: AtomicU64,
}

impl Live {
    /// Notes an acknowledgement, or the end of the run, at this time since the start.
    fn on_acknowledged(&self, at: Duration) {
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let before_us = self.last_us.fetch_max(at_us, Ordering::Relaxed);
        let gap_us = at_us.saturating_sub(before_us);
        self.gap_us.fetch_max(gap_us, Ordering::Relaxed);
    }
}

impl Load {
    /// A load of one kind.
    pub fn new(server: Server, kind: Kind, plan: Plan, args: &LoadArgs) -> Self {
        Self {
            server,
            kind,
            plan,
            clients: args.clients,
            length: Duration::from_secs(args.seconds),
            rate: args.rate,
        }
    }

    /// Applies the load for its time, with a live line a second on stderr.
    ///
    /// # Errors
    /// When the histograms cannot be made.
    pub async fn run(self) -> Result<Seen, Failure> {
        let live = Arc::new(Live::default());
        let started = Instant::now();
        let schedule = Arc::new(Schedule::new(started, self.length, self.rate));
        let keys = Arc::new(KeySet::new(self.plan.keys()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..self.clients {
            let worker = Worker {
                server: self.server.clone(),
                kind: self.kind,
                plan: self.plan.clone(),
                live: live.clone(),
                schedule: schedule.clone(),
                random: ChaCha8Rng::seed_from_u64(number),
                chosen: Vec::new(),
                seen: Seen::new(keys.clone())?,
            };
            tasks.spawn(worker.run(started));
        }
        let line = tokio::spawn(live_line(self.kind, live.clone(), started));
        let mut all = Seen::new(keys)?;
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(seen) => all.add(seen),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        line.abort();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        all.elapsed = started.elapsed();
        all.unsent = schedule.unsent();
        live.on_acknowledged(all.elapsed);
        all.longest_gap = Duration::from_micros(live.gap_us.load(Ordering::Relaxed));
        Ok(all)
    }
}

struct Worker {
    server: Server,
    kind: Kind,
    plan: Plan,
    live: Arc<Live>,
    schedule: Arc<Schedule>,
    random: ChaCha8Rng,
    /// The keys of the call at hand.
    chosen: Vec<u64>,
    seen: Seen,
}

impl Worker {
    async fn run(mut self, started: Instant) -> Seen {
        while let Some(begun) = self.schedule.turn().await {
            self.kind
                .choose(&self.plan, &mut self.random, &mut self.chosen);
            match self.kind.call(&self.server, &self.plan, &self.chosen).await {
                Ok(right) => self.on_answer(right, begun, started),
                Err(error) => {
                    self.seen.errors += 1;
                    self.seen.first_error.get_or_insert(error);
                    self.live.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.seen
    }

    fn on_answer(&mut self, right: bool, begun: Instant, started: Instant) {
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.seen.latency.saturating_record(micros);
        self.seen.wrong += u64::from(!right);
        let keys = self.chosen.len() as u64;
        self.seen.operations += keys;
        // The keys of one call lie in one region.
        let first = self.chosen.first().copied().unwrap_or_default();
        self.seen.touched.insert(self.plan.region_place(first));
        if self.kind.is_write() {
            for index in &self.chosen {
                self.seen.keys.insert(*index);
                self.seen.written_bytes += self.plan.pair_bytes(*index);
            }
        }
        self.live.operations.fetch_add(keys, Ordering::Relaxed);
        self.live.on_acknowledged(started.elapsed());
    }
}

/// One line a second: rewritten in place on a terminal.
async fn live_line(kind: Kind, live: Arc<Live>, started: Instant) {
    let mut before = 0;
    let terminal = std::io::stderr().is_terminal();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let operations = live.operations.load(Ordering::Relaxed);
        let line = format!(
            "{} {:3} s  {:8} ops/s  {} errors",
            kind.name(),
            started.elapsed().as_secs(),
            operations - before,
            live.errors.load(Ordering::Relaxed)
        );
        before = operations;
        let mut out = std::io::stderr().lock();
        let _ = if terminal {
            write!(out, "\r\x1b[K{line}").and_then(|()| out.flush())
        } else {
            writeln!(out, "{line}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_kept_also_when_answers_come_out_of_order() {
        let live = Live::default();
        for at_ms in [5, 7, 40, 39, 45] {
            live.on_acknowledged(Duration::from_millis(at_ms));
        }
        assert_eq!(live.gap_us.load(Ordering::Relaxed), 33_000);
        // The time to the end of the run counts: a cluster that never answers again.
        live.on_acknowledged(Duration::from_millis(100));
        assert_eq!(live.gap_us.load(Ordering::Relaxed), 55_000);
    }
}
