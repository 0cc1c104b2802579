//! `strata node`: one storage node in the foreground until SIGTERM or Ctrl-C.

use crate::args::NodeArgs;
use crate::exit::{Failure, Outcome};
use std::collections::BTreeMap;
use strata_server::config::Config;
use strata_server::{NodeError, NodeOptions, network_threads};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the node.
pub fn run(args: NodeArgs) -> Outcome {
    let options = options(args)?;
    options.check().map_err(failure)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(network_threads(&options.config))
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no threads for the node: {error}")))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        strata_server::node::run(options, stop)
            .await
            .map_err(failure)
    })
}

fn failure(error: NodeError) -> Failure {
    match error {
        NodeError::Usage(line) => Failure::CommandLine(line),
        NodeError::Refused(line) => Failure::Error(line),
    }
}

fn options(args: NodeArgs) -> Result<NodeOptions, Failure> {
    let mut initial_cluster = BTreeMap::new();
    for (id, address) in args.initial_cluster {
        if initial_cluster.insert(id, address).is_some() {
            return Err(Failure::CommandLine(format!(
                "--initial-cluster names store {id} twice: give each id once"
            )));
        }
    }
    let count = |value: Option<u64>| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let (config, config_warnings) = Config::load(args.config.as_deref(), std::env::vars())
        .map_err(|error| Failure::error(error.to_string()))?;
    Ok(NodeOptions {
        id: args.id,
        addr: args.addr,
        advertise_addr: args.advertise_addr,
        data_dir: args.data_dir,
        initial_cluster,
        cluster_token: args.cluster_token,
        regions: count(args.regions),
        replicas: count(args.replicas),
        config,
        config_warnings,
    })
}
