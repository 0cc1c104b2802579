//! `strata debug raft-state`, `apply-state` and `region-state`: the state records.

use super::{damaged, named, no_region};
use crate::args::{Format, Global};
use crate::exit::{Failure, Outcome};
use crate::{output, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use strata_proto::metapb::{Peer, PeerRole, Region};
use strata_proto::raft_serverpb::{PeerState, RegionLocalState};
use strata_storage::{
    Cf, Direction, Engines, ReadView, keys, read_all_region_states, read_apply_state,
    read_raft_state, read_region_state,
};

/// Term, vote, commit and last index.
pub fn raft_states(
    global: &Global,
    engines: &Engines<impl ReadView>,
    region_id: Option<u64>,
) -> Outcome {
    let mut rows = Vec::new();
    for id in ids(engines, region_id)? {
        let Some(state) = read_raft_state(&engines.raft, id).map_err(damaged)? else {
            continue;
        };
        let hard_state = state.hard_state.unwrap_or_default();
        rows.push(json!({
            "region_id": id,
            "term": hard_state.term,
            "vote": hard_state.vote,
            "commit": hard_state.commit,
            "last_index": state.last_index,
        }));
    }
    let columns = ["region_id", "term", "vote", "commit", "last_index"];
    print_rows(global, region_id, &columns, &rows)
}

/// Applied and truncated index with their terms, and the clock.
pub fn apply_states(
    global: &Global,
    engines: &Engines<impl ReadView>,
    region_id: Option<u64>,
) -> Outcome {
    let mut rows = Vec::new();
    for id in ids(engines, region_id)? {
        let Some(state) = read_apply_state(&engines.kv, id).map_err(damaged)? else {
            continue;
        };
        rows.push(json!({
            "region_id": id,
            "applied_index": state.applied_index,
            "applied_term": state.applied_term,
            "truncated_index": state.truncated_index,
            "truncated_term": state.truncated_term,
            "region_clock_ms": state.region_clock_ms,
        }));
    }
    let columns = [
        "region_id",
        "applied_index",
        "applied_term",
        "truncated_index",
        "truncated_term",
        "region_clock_ms",
    ];
    print_rows(global, region_id, &columns, &rows)
}

/// Range, epoch, peers and what the replica is doing.
pub fn region_states(
    global: &Global,
    engines: &Engines<impl ReadView>,
    region_id: Option<u64>,
    hex: bool,
) -> Outcome {
    let states = match region_id {
        Some(id) => Vec::from_iter(read_region_state(&engines.kv, id).map_err(damaged)?),
        None => read_all_region_states(&engines.kv).map_err(damaged)?,
    };
    for state in &states {
        named(region_id, state)?;
    }
    let rows: Vec<Value> = states.iter().map(|state| region_row(state, hex)).collect();
    let columns = [
        "region_id",
        "state",
        "start",
        "end",
        "conf_ver",
        "version",
        "peers",
    ];
    print_rows(global, region_id, &columns, &rows)
}

fn region_row(state: &RegionLocalState, hex: bool) -> Value {
    let region = state.region.clone().unwrap_or_default();
    let epoch = region.region_epoch.unwrap_or_default();
    let peers: Vec<Value> = region.peers.iter().map(peer).collect();
    let (start, end) = boundaries(&region, hex);
    json!({
        "region_id": region.id,
        "state": state_name(state.state()),
        "start": start,
        "end": end,
        "conf_ver": epoch.conf_ver,
        "version": epoch.version,
        "peers": peers,
    })
}

fn boundaries(region: &Region, hex: bool) -> (Value, Value) {
    (
        text::to_json(&region.start_key, hex),
        text::to_json(&region.end_key, hex),
    )
}

fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Normal => "normal",
        PeerState::Applying => "applying",
        PeerState::Tombstone => "tombstone",
        PeerState::Merging => "merging",
        PeerState::Unavailable => "unavailable",
    }
}

fn peer(peer: &Peer) -> Value {
    let role = match peer.role() {
        PeerRole::Voter => "voter",
        PeerRole::Learner => "learner",
        PeerRole::IncomingVoter => "incoming voter",
        PeerRole::DemotingVoter => "demoting voter",
    };
    json!({ "peer_id": peer.id, "store_id": peer.store_id, "role": role })
}

/// The region asked for, or every region of which either engine holds a record: a replica
/// that a message created has a raft state alone.
fn ids(engines: &Engines<impl ReadView>, region_id: Option<u64>) -> Result<BTreeSet<u64>, Failure> {
    if let Some(id) = region_id {
        return Ok(BTreeSet::from([id]));
    }
    let mut found: BTreeSet<u64> = read_all_region_states(&engines.kv)
        .map_err(damaged)?
        .iter()
        .filter_map(|state| Some(state.region.as_ref()?.id))
        .collect();
    // Jumps from region to region, past their logs.
    let (mut start, end) = keys::all_region_raft_range();
    loop {
        let mut first = None;
        let mut visit = |key: &[u8], _: &[u8]| {
            first = keys::parse_raft_state(key).or(keys::parse_raft_log(key).map(|(id, _)| id));
            match first {
                Some(_) => ControlFlow::Break(()),
                // A key that is none of ours hides no region behind it.
                None => ControlFlow::Continue(()),
            }
        };
        let direction = Direction::Forward;
        let scanned = engines
            .raft
            .scan(Cf::RaftLog, &start, Some(&end), direction, &mut visit);
        scanned.map_err(super::unreadable)?;
        let Some(id) = first else {
            return Ok(found);
        };
        found.insert(id);
        start = keys::region_raft_range(id).1;
    }
}

fn print_rows(
    global: &Global,
    region_id: Option<u64>,
    columns: &[&str],
    rows: &[Value],
) -> Outcome {
    if let (Some(id), []) = (region_id, rows) {
        return Err(no_region(id));
    }
    if global.format == Format::Json {
        return rows
            .iter()
            .try_for_each(|row| output::print(global.format, row, String::new));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| cell(&row[*column])).collect())
        .collect();
    output::write_out(format!("{}\n", output::table(columns, &cells)).as_bytes())
}

/// A value as a cell of a table.
fn cell(value: &Value) -> String {
    match value {
        Value::String(word) => text::escape(word.as_bytes()),
        Value::Object(fields) => match fields.get("hex") {
            Some(Value::String(digits)) => format!("0x{digits}"),
            _ => format!("{}@{}", value["peer_id"], value["store_id"]),
        },
        Value::Array(parts) => parts.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
