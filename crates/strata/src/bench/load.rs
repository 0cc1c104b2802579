//! Tasks that send one request after another, and what they saw.

use super::plan::Plan;
use super::server::Server;
use crate::args::LoadArgs;
use crate::exit::Failure;
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Latencies are kept in microseconds, to three digits, up to a minute.
const LATENCY_MAX_US: u64 = 60_000_000;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One put of one key.
    Put,
    /// One get of one key.
    Get,
}

impl Kind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
        }
    }
}

/// A load that is about to be applied.
pub struct Load {
    server: Server,
    kind: Kind,
    plan: Plan,
    clients: u64,
    length: Duration,
}

/// What all tasks saw.
pub struct Seen {
    /// Time from the first request to the last answer.
    pub elapsed: Duration,
    /// Longest time without any acknowledgement of any task, to the end of the run.
    pub longest_gap: Duration,
    /// Latency of the successful operations, in microseconds.
    pub latency: Histogram<u64>,
    /// Operations that ended in an error.
    pub errors: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
    /// Answers that were not what was written.
    pub wrong: u64,
    /// Places in the plan of regions that were reached.
    pub touched: BTreeSet<usize>,
    /// Numbers of the keys that succeeded.
    pub keys: BTreeSet<u64>,
}

impl Seen {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            elapsed: Duration::ZERO,
            longest_gap: Duration::ZERO,
            latency: Histogram::new_with_max(LATENCY_MAX_US, 3)
                .map_err(|error| Failure::error(error.to_string()))?,
            errors: 0,
            first_error: None,
            wrong: 0,
            touched: BTreeSet::new(),
            keys: BTreeSet::new(),
        })
    }

    fn add(&mut self, other: Seen) {
        // Both histograms have the same bounds, so none of this one's counts is lost.
        let _ = self.latency.add(&other.latency);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.wrong += other.wrong;
        self.touched.extend(other.touched);
        self.keys.extend(other.keys);
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
        }
    }

    /// Applies the load for its time, with a live line a second on stderr.
    ///
    /// # Errors
    /// When the histograms cannot be made.
    pub async fn run(self) -> Result<Seen, Failure> {
        let live = Arc::new(Live::default());
        let started = Instant::now();
        let until = started + self.length;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..self.clients {
            let worker = Worker {
                server: self.server.clone(),
                kind: self.kind,
                plan: self.plan.clone(),
                live: live.clone(),
                random: ChaCha8Rng::seed_from_u64(number),
                seen: Seen::new()?,
            };
            tasks.spawn(worker.run(started, until));
        }
        let line = tokio::spawn(live_line(self.kind, live.clone(), started));
        let mut all = Seen::new()?;
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
    random: ChaCha8Rng,
    seen: Seen,
}

impl Worker {
    async fn run(mut self, started: Instant, until: Instant) -> Seen {
        while Instant::now() < until {
            let index = self.random.random_range(0..self.plan.keys());
            let key = self.plan.key(index);
            let begun = Instant::now();
            let result = match self.kind {
                Kind::Put => {
                    let put = self.server.put(&key, self.plan.value(index)).await;
                    put.map(|()| true)
                }
                Kind::Get => {
                    let value = self.server.get(&key).await;
                    value.map(|value| value == Some(self.plan.value(index)))
                }
            };
            match result {
                Ok(right) => {
                    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.seen.latency.saturating_record(micros);
                    self.seen.wrong += u64::from(!right);
                    self.seen.touched.insert(self.plan.region_place(index));
                    if self.kind == Kind::Put {
                        self.seen.keys.insert(index);
                    }
                    self.live.operations.fetch_add(1, Ordering::Relaxed);
                    self.live.on_acknowledged(started.elapsed());
                }
                Err(error) => {
                    self.seen.errors += 1;
                    self.seen.first_error.get_or_insert(error);
                    self.live.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.seen
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
