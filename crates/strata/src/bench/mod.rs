//! `strata bench`: a load generator, and the server that shows its ceiling.
//!
//! Plan (`plan`): keys over all regions, values from a seed. Load (`load`): as many tasks
//! as clients, each with one request under way, latencies in histograms. Report
//! (`report`): operations a second, percentiles, errors, what was written. What a call is
//! stands in `kind`, when calls are sent in `schedule`. `bench noop` runs the same plan and
//! load against `noop`, a process that answers from constants; `bench iterator` (`iterator`)
//! reads an engine without any server. `--target etcd` sends the same load to an etcd cluster
//! (`server`, `etcd`).
//!
//! Every answer is verified: a get compares the whole value, after puts a sample of the
//! acknowledged keys is read back.

mod etcd;
mod iterator;
mod key_set;
mod kind;
mod load;
pub mod noop;
mod plan;
mod report;
mod schedule;
mod server;
mod usage;

use crate::args::{BenchCommand, Global, LoadArgs, Target};
use crate::exit::{Failure, Outcome};
use kind::Kind;
use load::Load;
use plan::Plan;
use report::Report;
use server::Server;
use std::collections::BTreeSet;
use usage::Usage;

/// Keys that are read back after a run of puts.
const SAMPLE: u64 = 1000;

/// Processors for each thread of the load, where that is left open: as a node has it. With as
/// many as there are processors they would interrupt the servers that they wait for.
const PROCESSORS_PER_THREAD: usize = 2;

/// Threads of the load.
fn threads(args: &LoadArgs) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match args.threads as usize {
        0 => (processors / PROCESSORS_PER_THREAD).max(1),
        asked => asked,
    }
}

/// What a command says about its load; `None` if it needs no server.
fn load_of(command: &BenchCommand) -> Option<&LoadArgs> {
    match command {
        BenchCommand::Put(args) | BenchCommand::Get(args) | BenchCommand::Noop(args) => Some(args),
        BenchCommand::BatchPut(args) | BenchCommand::BatchGet(args) => Some(&args.load),
        BenchCommand::Scan(args) => Some(&args.load),
        BenchCommand::Iterator(_) => None,
    }
}

/// Runs one benchmark.
pub fn run(global: &Global, command: BenchCommand) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(load_of(&command).map_or(1, threads))
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no threads for the load: {error}")))?;
    match command {
        BenchCommand::Put(args) => runtime.block_on(run_load(global, Kind::Put, &args)),
        BenchCommand::Get(args) => runtime.block_on(run_load(global, Kind::Get, &args)),
        BenchCommand::BatchPut(args) => {
            let kind = Kind::BatchPut { batch: args.batch };
            runtime.block_on(run_load(global, kind, &args.load))
        }
        BenchCommand::BatchGet(args) => {
            let kind = Kind::BatchGet { batch: args.batch };
            runtime.block_on(run_load(global, kind, &args.load))
        }
        BenchCommand::Scan(args) => {
            let kind = Kind::Scan { limit: args.limit };
            runtime.block_on(run_load(global, kind, &args.load))
        }
        BenchCommand::Iterator(args) => iterator::run(global, &args),
        BenchCommand::Noop(mut args) => {
            if args.target != Target::Strata {
                return Err(Failure::CommandLine(
                    "`bench noop` speaks StrataKV's protocol only: leave --target away".into(),
                ));
            }
            let child = noop::Child::start(args.value_size)?;
            args.server_pids = vec![child.pid()];
            let global = Global {
                endpoints: vec![child.address.clone()],
                ..global.clone()
            };
            runtime.block_on(async {
                let server = Server::connect(&global, &args).await?;
                for kind in [Kind::Put, Kind::Get] {
                    let plan = Plan::new(&server, kind, &args).await?;
                    let plan = plan.with_constant_values();
                    let report = measure(&server, kind, &plan, &args).await?;
                    finish(&global, report.of_noop())?;
                }
                Ok(())
            })
        }
    }
}

/// The words of the command line, as a report repeats them.
fn command_line() -> Vec<String> {
    std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// One run of one kind: what is read is written first, what is written is sampled afterwards.
async fn run_load(global: &Global, kind: Kind, args: &LoadArgs) -> Outcome {
    kind.check_target(args.target)?;
    let server = Server::connect(global, args).await?;
    let plan = Plan::new(&server, kind, args).await?;
    if kind.is_write() {
        let report = measure(&server, kind, &plan, args).await?;
        let wrong = verify_sample(&server, &plan, &report).await?;
        return finish(global, report.with_wrong(wrong));
    }
    if !args.loaded {
        let pairs = (0..plan.keys()).map(|index| (plan.key(index), plan.value(index)));
        server.load(pairs).await.map_err(Failure::error)?;
    }
    finish(global, measure(&server, kind, &plan, args).await?)
}

/// Applies the load and sums it up.
async fn measure(
    server: &Server,
    kind: Kind,
    plan: &Plan,
    args: &LoadArgs,
) -> Result<Report, Failure> {
    let before = Usage::of(&args.server_pids);
    let seen = Load::new(server.clone(), kind, plan.clone(), args)
        .run()
        .await?;
    let after = Usage::of(&args.server_pids);
    let regions: BTreeSet<u64> = seen
        .touched
        .iter()
        .filter_map(|place| Some(plan.regions.get(*place)?.region.id))
        .collect();
    let mut stores = BTreeSet::new();
    if let Server::Strata(client) = server {
        for info in client.scheduler().all_regions().await? {
            if regions.contains(&info.region.id) {
                stores.extend(info.leader.map(|leader| leader.store_id));
            }
        }
    }
    let report = Report::new(kind, args, seen, regions.len(), stores.len());
    Ok(report.with_usage(before, after))
}

fn finish(global: &Global, report: Report) -> Outcome {
    crate::output::print(global.format, &report.to_json(), || report.to_text())?;
    if report.wrong > 0 {
        return Err(Failure::No(format!(
            "{} answers were not what was written",
            report.wrong
        )));
    }
    if report.operations == 0 {
        return Err(Failure::error(format!(
            "no operation succeeded ({}): see `strata status`",
            report.first_error.as_deref().unwrap_or("no error was seen")
        )));
    }
    Ok(())
}

/// Reads back some of the keys whose puts were acknowledged; the number that differ.
async fn verify_sample(server: &Server, plan: &Plan, report: &Report) -> Result<u64, Failure> {
    let acknowledged = report.acknowledged();
    let step = (acknowledged.len() as u64 / SAMPLE).max(1) as usize;
    let mut wrong = 0;
    for index in acknowledged.iter().step_by(step) {
        let value = server.get(&plan.key(*index)).await;
        if value.map_err(Failure::error)? != Some(plan.value(*index)) {
            wrong += 1;
        }
    }
    Ok(wrong)
}
