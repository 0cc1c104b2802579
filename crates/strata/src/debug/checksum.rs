//! `strata debug checksum`: the sum over a region's logical content.

use super::{damaged, named, no_region};
use crate::args::Global;
use crate::exit::{Failure, Outcome};
use crate::output;
use serde_json::json;
use strata_proto::raft_serverpb::{PeerState, RegionLocalState};
use strata_storage::{
    ReadView, read_all_region_states, read_apply_state, read_region_state, region_checksum,
};

/// Prints the sum of one region, or of all whose data is whole.
pub fn run(global: &Global, kv: &impl ReadView, region_id: Option<u64>) -> Outcome {
    match region_id {
        Some(id) => {
            let state = read_region_state(kv, id).map_err(damaged)?;
            one(global, kv, Some(id), &state.ok_or_else(|| no_region(id))?)
        }
        None => {
            let states = read_all_region_states(kv).map_err(damaged)?;
            let whole = states.iter().filter(|state| check_whole(state).is_ok());
            whole
                .into_iter()
                .try_for_each(|state| one(global, kv, None, state))
        }
    }
}

/// A replica that was destroyed or installs a snapshot has no content to sum up.
fn check_whole(state: &RegionLocalState) -> Result<(), &'static str> {
    match state.state() {
        PeerState::Normal | PeerState::Merging | PeerState::Unavailable => Ok(()),
        PeerState::Tombstone => Err("its replica was destroyed on this store"),
        PeerState::Applying => {
            Err("its replica is installing a snapshot: start the node, and stop it again later")
        }
    }
}

fn one(
    global: &Global,
    kv: &impl ReadView,
    asked: Option<u64>,
    state: &RegionLocalState,
) -> Outcome {
    let region = named(asked, state)?;
    let id = region.id;
    check_whole(state)
        .map_err(|reason| Failure::error(format!("region {id} has no content here: {reason}")))?;
    let apply_state = read_apply_state(kv, id)
        .map_err(damaged)?
        .unwrap_or_default();
    let clock_ms = apply_state.region_clock_ms;
    let sum = region_checksum(kv, region, clock_ms).map_err(damaged)?;
    let crc64 = format!("{:016x}", sum.crc64);
    let line = json!({
        "region_id": id,
        "keys": sum.keys,
        "crc64": crc64,
        "applied_index": apply_state.applied_index,
        "region_clock_ms": clock_ms,
    });
    output::print(global.format, &line, || {
        format!("region {id} keys {} crc64 {crc64}", sum.keys)
    })
}
