//! `strata bench`: a load generator, and the server that shows its ceiling.
//!
//! Plan (`plan`): keys over all regions, values from a seed. Load (`load`): as many tasks
//! as clients, each with one request under way, latencies in histograms. Report
//! (`report`): operations a second, percentiles, errors, what was written. `bench noop`
//! runs the same plan and load against `noop`, a process that answers from constants.
//!
//! Every answer is verified: a get compares the whole value, after puts a sample of the
//! acknowledged keys is read back.

mod load;
pub mod noop;
mod plan;
mod report;

use crate::args::{BenchCommand, Global, LoadArgs};
use crate::connect;
use crate::exit::{Failure, Outcome};
use load::{Kind, Load};
use plan::Plan;
use report::Report;
use std::collections::BTreeSet;
use strata_client::{Options, RawClient};

/// Keys that are read back after a run of puts.
const SAMPLE: u64 = 1000;
/// More connections do not help: the stores share the machine's cores.
const CONNECTIONS_MAX: u64 = 4;
/// One connection serves this many clients well.
const CLIENTS_PER_CONNECTION: u64 = 64;

/// Runs one benchmark.
pub fn run(global: &Global, command: BenchCommand) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no threads for the load: {error}")))?;
    match command {
        BenchCommand::Put(args) => runtime.block_on(async {
            let client = client(global, &args).await?;
            let plan = Plan::new(&client, &args).await?;
            let report = measure(&client, Kind::Put, &plan, &args).await?;
            let wrong = verify_sample(&client, &plan, &report).await?;
            finish(global, report.with_wrong(wrong))
        }),
        BenchCommand::Get(args) => runtime.block_on(async {
            let client = client(global, &args).await?;
            let plan = Plan::new(&client, &args).await?;
            preload(&client, &plan).await?;
            let report = measure(&client, Kind::Get, &plan, &args).await?;
            finish(global, report)
        }),
        BenchCommand::Noop(args) => {
            let server = noop::Child::start(args.value_size)?;
            let global = Global {
                endpoints: vec![server.address.clone()],
                ..global.clone()
            };
            runtime.block_on(async {
                let client = client(&global, &args).await?;
                let plan = Plan::new(&client, &args).await?.with_constant_values();
                for kind in [Kind::Put, Kind::Get] {
                    let report = measure(&client, kind, &plan, &args).await?;
                    finish(&global, report.of_noop())?;
                }
                Ok(())
            })
        }
    }
}

async fn client(global: &Global, args: &LoadArgs) -> Result<RawClient, Failure> {
    let connections = args.clients.div_ceil(CLIENTS_PER_CONNECTION);
    let options = Options {
        connections_per_store: connections.min(CONNECTIONS_MAX) as usize,
        ..connect::options(global)
    };
    connect::connect_with(global, options).await
}

/// Applies the load and sums it up.
async fn measure(
    client: &RawClient,
    kind: Kind,
    plan: &Plan,
    args: &LoadArgs,
) -> Result<Report, Failure> {
    let outcome = Load::new(client.clone(), kind, plan.clone(), args)
        .run()
        .await?;
    let regions: BTreeSet<u64> = outcome
        .touched
        .iter()
        .map(|place| plan.regions[*place].region.id)
        .collect();
    let mut stores = BTreeSet::new();
    for info in client.scheduler().all_regions().await? {
        if regions.contains(&info.region.id) {
            stores.extend(info.leader.map(|leader| leader.store_id));
        }
    }
    Ok(Report::new(
        kind,
        args,
        outcome,
        regions.len(),
        stores.len(),
    ))
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

/// Writes every key of the plan.
async fn preload(client: &RawClient, plan: &Plan) -> Outcome {
    const BATCH: u64 = 4096;
    let keys = plan.keys();
    let mut next = 0;
    while next < keys {
        let end = (next + BATCH).min(keys);
        let pairs = (next..end)
            .map(|index| (plan.key(index), plan.value(index)))
            .collect();
        client.batch_put(pairs, 0).await?;
        next = end;
    }
    Ok(())
}

/// Reads back some of the keys whose puts were acknowledged; the number that differ.
async fn verify_sample(client: &RawClient, plan: &Plan, report: &Report) -> Result<u64, Failure> {
    let acknowledged = report.acknowledged();
    let step = (acknowledged.len() as u64 / SAMPLE).max(1) as usize;
    let mut wrong = 0;
    for index in acknowledged.iter().step_by(step) {
        if client.get(&plan.key(*index)).await? != Some(plan.value(*index)) {
            wrong += 1;
        }
    }
    Ok(wrong)
}
