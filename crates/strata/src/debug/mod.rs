//! `strata debug`: looks into the folder of a stopped node.
//!
//! The folder is opened to be read only: a running node's is refused by its lock, and
//! nothing in it is written. What is printed is what is on disk, decoded.

mod checksum;
mod keys;
mod log;
mod records;

use crate::args::{DebugArgs, DebugCommand, Global};
use crate::exit::{Failure, Outcome};
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::RegionLocalState;
use strata_storage::{EngineOptions, Engines, FolderReader, ReadView};

/// Runs one look.
pub fn run(global: &Global, args: DebugArgs) -> Outcome {
    let Some(data_dir) = args.data_dir else {
        return Err(Failure::CommandLine(
            "--data-dir is missing: name the folder of a stopped node".into(),
        ));
    };
    let options = EngineOptions::default();
    let folder = FolderReader::open(&data_dir, &options)
        .map_err(|error| Failure::error(error.to_string()))?;
    look(global, folder.engines(), args.command)
}

/// One look at open engines.
fn look(global: &Global, engines: &Engines<impl ReadView>, command: DebugCommand) -> Outcome {
    match command {
        DebugCommand::RaftLog {
            region,
            from,
            limit,
            hex,
        } => log::run(global, &engines.raft, region, (from, limit), hex),
        DebugCommand::RaftState(which) => records::raft_states(global, engines, which.region),
        DebugCommand::ApplyState(which) => records::apply_states(global, engines, which.region),
        DebugCommand::RegionState { which, hex } => {
            records::region_states(global, engines, which.region, hex)
        }
        DebugCommand::Keys {
            cf,
            region,
            start,
            end,
            limit,
            values,
            hex,
        } => {
            let look = keys::Look {
                cf,
                region,
                start,
                end,
                limit,
                values,
                hex,
            };
            look.run(global, &engines.kv)
        }
        DebugCommand::Checksum(which) => checksum::run(global, &engines.kv, which.region),
    }
}

fn damaged(error: strata_storage::Error) -> Failure {
    Failure::error(error.to_string())
}

fn unreadable(error: strata_storage::EngineError) -> Failure {
    Failure::error(error.to_string())
}

fn no_region(region_id: u64) -> Failure {
    Failure::No(format!(
        "region {region_id} is not in this folder: see `strata debug region-state`"
    ))
}

/// The region that a record is about; of any region unless one was asked for.
fn named(asked: Option<u64>, state: &RegionLocalState) -> Result<&Region, Failure> {
    let found = state.region.as_ref().filter(|region| region.id != 0);
    match (found, asked) {
        (None, _) => Err(Failure::error(
            "damaged RegionLocalState: it names no region; replace the store by a new one",
        )),
        (Some(region), Some(id)) if region.id != id => Err(Failure::error(format!(
            "damaged RegionLocalState: that of region {id} names region {}; replace the store by a new one",
            region.id
        ))),
        (Some(region), _) => Ok(region),
    }
}

#[cfg(test)]
mod fuzz_tests;
