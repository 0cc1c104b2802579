//! Checks that a live cluster is linearizable.
//!
//! Load      Clients work side by side on keys that all of them share (`workload`), and
//!           enter what they did and saw into one history.
//! Pin down  Every key is read once more, so that the end of the history is known.
//! Clean up  The keys are removed.
//! Judge     The simulator's checkers search for an order that explains every answer
//!           ([`strata_sim::linearizability`]).
//!
//! An operation that ended in an error is entered by what the client library promises:
//! where nothing was executed it is taken out again, else it stays with unknown outcome.
//! What touches several keys of one region is one atomic step there; a call over two
//! regions is one step for each.
//!
//! `--verify` judges a history from a file instead.

mod plan;
mod workload;

use crate::args::{CheckArgs, Format, Global};
use crate::exit::{Failure, Outcome};
use crate::{connect, output};
use plan::Plan;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use strata_client::Options;
use strata_sim::history::History;
use strata_sim::linearizability::{self, Fault};

/// An operation of the load is given up then; its outcome is not known.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);

/// What was recorded.
struct Recorded {
    history: History,
    /// Operations that were answered or may have been executed, by kind of outcome.
    answered: usize,
    unknown: usize,
    keys: usize,
    regions: usize,
}

pub fn run(global: &Global, args: CheckArgs) -> Outcome {
    if let Some(file) = &args.verify {
        let history = read(file)?;
        return judge(global.format, &Recorded::of(history, 0), json!({}));
    }
    let file = args.history.as_deref().map(create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no runtime for the network: {error}")))?;
    let recorded = runtime.block_on(record(global, &args))?;
    if let (Some(mut file), Some(path)) = (file, &args.history) {
        std::io::Write::write_all(&mut file, recorded.history.to_text().as_bytes())
            .map_err(|error| cannot("written", path, &error))?;
    }
    let about = json!({"clients": args.clients, "seconds": args.seconds});
    judge(global.format, &recorded, about)
}

impl Recorded {
    fn of(history: History, regions: usize) -> Self {
        let unknown = history.operations().filter(|o| o.returned.is_none());
        let unknown = unknown.count();
        Recorded {
            answered: history.len() - unknown,
            unknown,
            keys: history.keys().len(),
            regions,
            history,
        }
    }
}

/// Runs the load against the cluster.
async fn record(global: &Global, args: &CheckArgs) -> Result<Recorded, Failure> {
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
    let load = workload::Load {
        client: client.clone(),
        plan: plan.clone(),
        clients: args.clients,
        length: Duration::from_secs(args.seconds),
        seed,
    };
    let history = load.run().await;
    workload::remove_keys(&client, &plan).await;
    if !plan.still_holds(&client).await? {
        return Err(Failure::error(
            "the ranges of regions changed meanwhile, so that batches and scans were not one \
             step each; run it again",
        ));
    }
    let recorded = Recorded::of(history, plan.groups.len());
    if recorded.answered == 0 {
        return Err(Failure::error(
            "no operation was answered; see `strata status`, and run it again",
        ));
    }
    Ok(recorded)
}

/// Prints the verdict.
fn judge(format: Format, recorded: &Recorded, about: Value) -> Outcome {
    let began = Instant::now();
    let verdict = linearizability::check(&recorded.history);
    let took = began.elapsed();
    let (word, violation) = match &verdict {
        Ok(_) => ("linearizable", None),
        Err(Fault::NotLinearizable(violation)) => ("not linearizable", Some(violation)),
        Err(Fault::Undecided { .. }) => ("not decided", None),
    };
    let mut object = json!({
        "operations": recorded.history.len(),
        "answered": recorded.answered,
        "unknown": recorded.unknown,
        "keys": recorded.keys,
        "verdict": word,
        "checked_ms": took.as_millis() as u64,
    });
    if recorded.regions > 0 {
        object["regions"] = recorded.regions.into();
    }
    for (name, value) in about.as_object().into_iter().flatten() {
        object[name.as_str()] = value.clone();
    }
    if let Some(violation) = violation {
        let shown = |bytes: &bytes::Bytes| bytes.escape_ascii().to_string();
        object["violation"] = json!({
            "keys": violation.keys.iter().map(shown).collect::<Vec<_>>(),
            "operations": violation.operations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "not_explained": violation.unexplained.as_ref().map(ToString::to_string),
        });
    }
    output::print(format, &object, || {
        let counted = format!(
            "{} ({} answered, {} of unknown outcome) on {}",
            output::count(recorded.history.len() as u64, "operation"),
            recorded.answered,
            recorded.unknown,
            output::count(recorded.keys as u64, "key"),
        );
        let regions = match recorded.regions {
            0 => String::new(),
            regions => format!(" in {}", output::count(regions as u64, "region")),
        };
        let verdict = match &verdict {
            Ok(checked) => format!(
                "linearizable: an order was found in {} ms ({} steps)",
                took.as_millis(),
                checked.steps
            ),
            Err(fault) => format!("{word}: {fault}"),
        };
        format!("{counted}{regions}\n{verdict}")
    })?;
    match verdict {
        Ok(_) => Ok(()),
        Err(Fault::NotLinearizable(_)) => Err(Failure::Silent(1)),
        Err(Fault::Undecided { .. }) => Err(Failure::error(
            "the history was not decided: take fewer clients, or a shorter run",
        )),
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
    History::from_text(&text).map_err(|error| Failure::error(format!("{place}: {error}")))
}

fn create(file: &Path) -> Result<std::fs::File, Failure> {
    std::fs::File::create(file).map_err(|error| cannot("written", file, &error))
}

fn cannot(what: &str, file: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("{} cannot be {what}: {error}", file.display()))
}
