//! Checks that a live cluster is linearizable, and what else can be seen from outside.
//!
//! Load      Clients work side by side on keys that all of them share (`workload`), and
//!           enter what they did and saw into one history. Meanwhile all stores are asked
//!           who leads (`leaders`).
//! Pin down  Every key is read once more, so that the end of the history is known.
//! Write     The history goes into its file, before anything else can fail.
//! Judge     The simulator's checkers search for an order that explains every answer
//!           ([`strata_sim::linearizability`]).
//! Compare   The replicas of each region must come to hold the same (`replicas`).
//! Clean up  The keys are removed.
//!
//! An operation that ended in an error is entered by what the client library promises:
//! where nothing was executed it is taken out again, else it stays with unknown outcome.
//! What touches several keys of one region is one atomic step there; a call over two
//! regions is one step for each.
//!
//! Invariants
//! * What was found is said, whether or not the cluster can be reached at the end.
//! * Each part of the end has a limit of its own; together they take less than a minute.
//! * Ranges of regions that changed meanwhile make no violation: then a step over several
//!   keys was none, and only what one key shows counts.
//!
//! `--verify` judges a history from a file instead.

mod leaders;
mod plan;
mod replicas;
mod verdict;
mod workload;

use crate::args::{CheckArgs, Global};
use crate::connect;
use crate::exit::{Failure, Outcome};
use leaders::Watch;
use plan::Plan;
use std::path::Path;
use std::time::{Duration, Instant};
use strata_client::{Options, RawClient};
use strata_sim::history::History;
use strata_sim::linearizability;
use verdict::{Live, Report};

/// An operation of the load is given up then; its outcome is not known.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the removal of the keys may take.
const REMOVAL_MAX: Duration = Duration::from_secs(5);
/// How long the scheduler may take to say which ranges regions have.
const RANGES_MAX: Duration = Duration::from_secs(5);

pub fn run(global: &Global, args: CheckArgs) -> Outcome {
    if let Some(file) = &args.verify {
        return judge(read(file)?).finish(global.format);
    }
    let file = args.history.as_deref().map(create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no runtime for the network: {error}")))?;
    let run = runtime.block_on(Run::begin(global, &args))?;
    let (history, leaders) = runtime.block_on(run.load());
    if let (Some(mut file), Some(path)) = (file, &args.history) {
        std::io::Write::write_all(&mut file, history.to_text().as_bytes())
            .map_err(|error| cannot("written", path, &error))?;
    }
    let mut report = judge(history);
    let compared = runtime.block_on(run.close());
    let live = Live {
        clients: args.clients,
        seconds: args.seconds,
        regions: run.plan.groups.len(),
        leaders,
        compared,
        ranges_changed: report.depends_on_ranges() && runtime.block_on(run.ranges_changed()),
    };
    report.live = Some(live);
    report.finish(global.format)
}

/// Searches for an order.
fn judge(history: History) -> Report {
    let began = Instant::now();
    let verdict = linearizability::check(&history);
    Report {
        took: began.elapsed(),
        history,
        verdict,
        live: None,
    }
}

/// A check of a cluster.
struct Run {
    client: RawClient,
    plan: Plan,
    clients: u64,
    length: Duration,
    seed: u64,
}

impl Run {
    async fn begin(global: &Global, args: &CheckArgs) -> Result<Run, Failure> {
        let seed = args.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| now.as_nanos() as u64)
        });
        let options = Options {
            operation_timeout: OPERATION_TIMEOUT.min(Duration::from_secs_f64(global.timeout)),
            // Without a session a repetition is an operation of its own.
            repeat_unknown_writes: false,
            seed,
            ..connect::options(global)
        };
        let client = connect::connect_with(global, options).await?;
        let plan = Plan::new(&client).await?;
        Ok(Run {
            client,
            plan,
            clients: args.clients,
            length: Duration::from_secs(args.seconds),
            seed,
        })
    }

    /// Runs the load, and watches leaders meanwhile.
    async fn load(&self) -> (History, leaders::Leaders) {
        let watch = Watch::begin(self.client.scheduler(), &self.plan).await;
        let load = workload::Load {
            client: self.client.clone(),
            plan: self.plan.clone(),
            clients: self.clients,
            length: self.length,
            seed: self.seed,
        };
        let history = load.run().await;
        (history, watch.end().await)
    }

    /// Compares replicas, and removes the keys as far as that is possible in time.
    async fn close(&self) -> replicas::Compared {
        let compared = replicas::compare(&self.client.admin(), &self.plan.groups).await;
        let removal = workload::remove_keys(&self.client, &self.plan);
        // What cannot be removed stays; the keys are of no use to another check.
        let _ = tokio::time::timeout(REMOVAL_MAX, removal).await;
        compared
    }

    /// True if the regions are known to have other ranges than at the beginning.
    async fn ranges_changed(&self) -> bool {
        let holds = self.plan.still_holds(&self.client);
        matches!(tokio::time::timeout(RANGES_MAX, holds).await, Ok(Ok(false)))
    }
}

fn read(file: &Path) -> Result<History, Failure> {
    let bytes = std::fs::read(file).map_err(|error| cannot("read", file, &error))?;
    let place = file.display();
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Failure::error(format!("{place}: line {line} is damaged: it is no UTF-8"))
    })?;
    let history = History::from_text(&text);
    let history = history.map_err(|error| Failure::error(format!("{place}: {error}")))?;
    if history.is_empty() {
        let line = format!("{place}: the history holds no operations: there is nothing to judge");
        return Err(Failure::error(line));
    }
    Ok(history)
}

fn create(file: &Path) -> Result<std::fs::File, Failure> {
    std::fs::File::create(file).map_err(|error| cannot("written", file, &error))
}

fn cannot(what: &str, file: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("{} cannot be {what}: {error}", file.display()))
}
