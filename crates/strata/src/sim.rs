//! `strata sim`: whole clusters in one thread each, under a seed, with everything that can
//! go wrong ([`strata_sim::swarm`]).
//!
//! Many seeds   Threads take seeds in turn; a failing one gives a line with the command that
//!              repeats it. A table of what all have reached closes the run.
//! One run      What was found, the last events, and the plan shrunk to the fewest faults
//!              with which it still fails.
//! Trace        A run's events as a file, and compared with one.

use crate::args::{Format, Global, SimArgs};
use crate::exit::{Failure, Outcome};
use crate::output;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use strata_sim::swarm::{self, Plan, trace_file};
use strata_sim::{Counters, RunReport};

/// Runs that shrinking a failing plan may take.
const SHRINK_RUNS_MAX: usize = 300;

type Run = Result<RunReport, Box<swarm::Failure>>;

/// Runs seeds, a plan, or the run of a trace.
pub fn run(global: &Global, args: SimArgs) -> Outcome {
    if let Some(path) = &args.replay {
        return replay(global, path);
    }
    let one_seed = args.seeds.end - args.seeds.start == 1;
    let one = match &args.plan {
        Some(path) => Some(read_plan(path)?),
        None => one_seed.then(|| Plan::draw(args.seeds.start)),
    };
    if let Some(plan) = one {
        return run_one(
            global,
            &with_operations(plan, args.ops),
            args.trace.as_deref(),
        );
    }
    if args.trace.is_some() {
        let line = "--trace takes one seed, such as --seeds 17..18, or a plan";
        return Err(Failure::CommandLine(line.into()));
    }
    run_many(global, &args)
}

fn with_operations(mut plan: Plan, ops: Option<u64>) -> Plan {
    plan.clients.operations_max = ops.or(plan.clients.operations_max);
    plan
}

/// Seeds that threads take in turn.
struct Seeds {
    next: AtomicU64,
    /// Not one of them.
    end: u64,
}

impl Seeds {
    fn new(range: &Range<u64>) -> Self {
        Seeds {
            next: AtomicU64::new(range.start),
            end: range.end,
        }
    }

    /// The next one; `None` from the end on. The count stops there: one that went on would
    /// begin again at 0 behind `u64::MAX`.
    fn take(&self) -> Option<u64> {
        let following = |seed: u64| (seed < self.end).then(|| seed + 1);
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, following)
            .ok()
    }
}

/// What many runs have come to.
#[derive(Default)]
struct Sums {
    runs: u64,
    failed: u64,
    simulated: Duration,
    acknowledged: u64,
    counters: Counters,
}

impl Sums {
    fn add(&mut self, run: &Run) {
        self.runs += 1;
        let (length, counters) = match run {
            Ok(report) => {
                self.acknowledged += report.acknowledged;
                (report.length, &report.counters)
            }
            Err(failure) => {
                self.failed += 1;
                (failure.length, &failure.counters)
            }
        };
        self.simulated += length;
        self.counters.add(counters);
    }
}

fn run_many(global: &Global, args: &SimArgs) -> Outcome {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = args
        .threads
        .unwrap_or(cores)
        .min(args.seeds.end - args.seeds.start);
    let begun = Instant::now();
    let seeds = Seeds::new(&args.seeds);
    let sums = Mutex::new(Sums::default());
    // The first line that could not be written.
    let printed = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.take() {
                    let plan = with_operations(Plan::draw(seed), args.ops);
                    let run = plan.run();
                    let mut sums = sums.lock().unwrap_or_else(|broken| broken.into_inner());
                    sums.add(&run);
                    if let Err(failure) = run {
                        let outcome = print_failing_seed(global, args, seed, &failure);
                        let mut printed =
                            printed.lock().unwrap_or_else(|broken| broken.into_inner());
                        if printed.is_ok() {
                            *printed = outcome;
                        }
                    }
                }
            });
        }
    });
    printed
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner())?;
    let sums = sums
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner());
    print_sums(global, &sums, threads, begun.elapsed())?;
    if sums.failed > 0 {
        return Err(Failure::No(format!(
            "{} of {} seeds failed",
            sums.failed, sums.runs
        )));
    }
    Ok(())
}

fn print_failing_seed(
    global: &Global,
    args: &SimArgs,
    seed: u64,
    failure: &swarm::Failure,
) -> Outcome {
    let ops = args
        .ops
        .map_or(String::new(), |ops| format!(" --ops {ops}"));
    let again = format!("strata sim --seeds {seed}..{}{ops}", seed + 1);
    let violations: Vec<String> = failure.violations.iter().map(|v| v.to_string()).collect();
    let line = json!({ "seed": seed, "violations": violations, "again": again });
    output::print(global.format, &line, || {
        let first = violations
            .first()
            .map(|text| text.lines().next().unwrap_or_default());
        format!(
            "seed {seed} failed: {}; again with: {again}",
            first.unwrap_or_default()
        )
    })
}

/// Counters for programs, and as a table for people.
fn reached(counters: &Counters) -> (Value, String) {
    let (mut object, mut rows) = (serde_json::Map::new(), Vec::new());
    for (words, count) in counters.rows() {
        object.insert(words.to_owned(), count.into());
        rows.push(vec![words.to_owned(), count.to_string()]);
    }
    (object.into(), output::table(&["reached", "times"], &rows))
}

fn print_sums(global: &Global, sums: &Sums, threads: u64, wall: Duration) -> Outcome {
    let simulated = sums.simulated.as_secs_f64();
    let speed = simulated / wall.as_secs_f64() / threads as f64;
    let rate = sums.acknowledged as f64 / simulated;
    let (counters, table) = reached(&sums.counters);
    let line = json!({
        "seeds": sums.runs,
        "failed": sums.failed,
        "simulated_seconds": simulated,
        "wall_seconds": wall.as_secs_f64(),
        "threads": threads,
        "simulated_seconds_per_wall_second_and_thread": speed,
        "acknowledged": sums.acknowledged,
        "acknowledged_per_simulated_second": rate,
        "faults": sums.counters.faults,
        "counters": counters,
    });
    output::print(global.format, &line, || {
        format!(
            "{table}\n\n{}, {} failed: {simulated:.0} simulated seconds in {:.1} s on {}, \
             {speed:.0} a second and thread\n{} acknowledged, {rate:.0} a simulated second; \
             {}, one every {:.1} simulated seconds",
            output::count(sums.runs, "seed"),
            sums.failed,
            wall.as_secs_f64(),
            output::count(threads, "thread"),
            output::count(sums.acknowledged, "operation"),
            output::count(sums.counters.faults, "fault"),
            simulated / (sums.counters.faults.max(1)) as f64,
        )
    })
}

fn run_one(global: &Global, plan: &Plan, trace_to: Option<&Path>) -> Outcome {
    let (run, trace) = match trace_to {
        None => (plan.run(), None),
        Some(_) => {
            let (run, trace) = plan.run_traced();
            (run, Some(trace))
        }
    };
    if let (Some(path), Some(trace)) = (trace_to, trace) {
        std::fs::write(path, trace_file::write(plan, &trace))
            .map_err(|error| Failure::error(format!("{}: {error}", path.display())))?;
    }
    match run {
        Ok(report) => print_report(global, plan, &report),
        Err(failure) => print_failure(global, failure),
    }
}

fn print_report(global: &Global, plan: &Plan, report: &RunReport) -> Outcome {
    let (counters, table) = reached(&report.counters);
    let line = json!({
        "seed": plan.seed,
        "failed": 0,
        "simulated_seconds": report.length.as_secs_f64(),
        "acknowledged": report.acknowledged,
        "faults": report.counters.faults,
        "events": report.events,
        "hash": format!("{:016x}", report.hash),
        "counters": counters,
    });
    output::print(global.format, &line, || {
        format!(
            "{table}\n\nseed {}: {} stores, {} regions, {}, {} acknowledged, \
             {:.1} simulated seconds\n{} events, hash {:016x}",
            plan.seed,
            plan.stores,
            plan.regions,
            output::count(report.counters.faults, "fault"),
            output::count(report.acknowledged, "operation"),
            report.length.as_secs_f64(),
            report.events,
            report.hash,
        )
    })
}

/// Prints what was found, and what is left of it when all faults that do not matter are
/// left out.
fn print_failure(global: &Global, failure: Box<swarm::Failure>) -> Outcome {
    let seed = failure.plan.seed;
    let faults = failure.plan.strikes.len();
    if global.format == Format::Text {
        let events = &failure.trace;
        output::write_out(format!("{events}\n\n{failure}\n\nshrinking ...\n").as_bytes())?;
    }
    let violations: Vec<String> = failure.violations.iter().map(|v| v.to_string()).collect();
    let events = failure.trace.to_string();
    let shrunk = swarm::shrink(failure, SHRINK_RUNS_MAX);
    let small = &shrunk.failure;
    let line = json!({
        "seed": seed,
        "failed": 1,
        "violations": violations,
        "events": events.lines().collect::<Vec<_>>(),
        "shrunk": {
            "runs": shrunk.runs,
            "violations": small.violations.iter().map(|v| v.to_string()).collect::<Vec<_>>(),
            "plan": serde_json::from_str::<Value>(&small.plan.to_json()).unwrap_or_default(),
        },
    });
    output::print(global.format, &line, || {
        let strikes: Vec<Vec<String>> = small
            .plan
            .strikes
            .iter()
            .map(|strike| vec![strike.at_ms.to_string(), format!("{:?}", strike.kind)])
            .collect();
        format!(
            "{small}\n\n{}\n\nThe plan, to be written into a file and played with \
             `strata sim --plan FILE`:\n{}\n\nshrunk from {faults} faults to {} in {}, {} ms of \
             work",
            output::table(&["ms", "fault"], &strikes),
            small.plan.to_json(),
            small.plan.strikes.len(),
            output::count(shrunk.runs as u64, "run"),
            small.plan.length_ms,
        )
    })?;
    Err(Failure::No(format!("seed {seed} failed")))
}

fn replay(global: &Global, path: &Path) -> Outcome {
    let text = read(path)?;
    let (plan, expected) = trace_file::read(&text)
        .map_err(|error| Failure::error(format!("{}: {error}", path.display())))?;
    let (_, trace) = plan.run_traced();
    match trace_file::compare(&expected, &trace) {
        Ok(()) => {
            let line = json!({ "seed": plan.seed, "equal": true, "events": trace.count() });
            output::print(global.format, &line, || {
                format!("equal: {}", output::count(trace.count(), "event"))
            })
        }
        Err(difference) => Err(Failure::No(format!("{}: {difference}", path.display()))),
    }
}

fn read_plan(path: &Path) -> Result<Plan, Failure> {
    Plan::from_json(&read(path)?)
        .map_err(|error| Failure::error(format!("{}: {error}", path.display())))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::error(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_end_at_the_largest_number_and_do_not_begin_again() {
        let seeds = Seeds::new(&(u64::MAX - 2..u64::MAX));
        let taken: Vec<Option<u64>> = (0..5).map(|_| seeds.take()).collect();
        let last = [Some(u64::MAX - 2), Some(u64::MAX - 1), None, None, None];
        assert_eq!(taken, last);
    }
}
