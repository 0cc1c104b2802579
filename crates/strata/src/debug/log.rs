//! `strata debug raft-log`: entries of a region's log, decoded.

use super::{no_region, unreadable};
use crate::args::Global;
use crate::exit::Outcome;
use crate::{output, text};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use strata_proto::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use strata_proto::stratapb::data_command::Body;
use strata_proto::stratapb::{DataCommand, EntryCommand};
use strata_storage::{Cf, Direction, ReadView, keys};

/// Prints at most `limit` entries from index `from` on.
pub fn run(
    global: &Global,
    raft: &impl ReadView,
    region_id: u64,
    (from, limit): (u64, u64),
    hex: bool,
) -> Outcome {
    let (_, end) = keys::raft_log_range(region_id);
    let start = keys::raft_log(region_id, from);
    let mut seen = 0;
    let mut next = None;
    let mut printed = Ok(());
    let mut visit = |key: &[u8], stored: &[u8]| {
        let Some((_, index)) = keys::parse_raft_log(key) else {
            return ControlFlow::Continue(());
        };
        if seen == limit {
            next = Some(index);
            return ControlFlow::Break(());
        }
        seen += 1;
        printed = print_entry(global, index, stored, hex);
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    raft.scan(
        Cf::RaftLog,
        &start,
        Some(&end),
        Direction::Forward,
        &mut visit,
    )
    .map_err(unreadable)?;
    printed?;
    if let Some(index) = next {
        eprintln!("more: go on with --from {index}");
    } else if seen == 0
        && strata_storage::read_raft_state(raft, region_id)
            .map_err(super::damaged)?
            .is_none()
    {
        return Err(no_region(region_id));
    }
    Ok(())
}

fn print_entry(global: &Global, index: u64, stored: &[u8], hex: bool) -> Outcome {
    let entry = Entry::decode(Bytes::copy_from_slice(stored));
    // Raft takes an entry for damaged that stands under another index.
    let Some(entry) = entry.ok().filter(|entry| entry.index == index) else {
        let line = json!({ "index": index, "damaged": true });
        return output::print(global.format, &line, || format!("{index}  damaged"));
    };
    let (kind, content) = content(&entry, hex);
    let mut line = json!({
        "index": entry.index,
        "term": entry.term,
        "kind": kind,
        "bytes": entry.data.len(),
        "content": content,
    });
    if hex {
        line["data"] = json!(text::hex(&entry.data));
    }
    output::print(global.format, &line, || {
        let words: Vec<String> = match &content {
            Value::Array(parts) => parts.iter().map(words).collect(),
            other => vec![words(other)],
        };
        let mut line = format!(
            "{}  term {}  {kind}  {} bytes  {}",
            entry.index,
            entry.term,
            entry.data.len(),
            words.join(", ")
        );
        if hex {
            line.push_str("  ");
            line.push_str(&text::hex(&entry.data));
        }
        line.trim_end().to_string()
    })
}

/// What an entry holds: its kind, and its commands or changes.
fn content(entry: &Entry, hex: bool) -> (&'static str, Value) {
    match entry.entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => ("empty", Value::Null),
        EntryType::EntryNormal => match EntryCommand::decode(entry.data.clone()) {
            Ok(command) => match &command.admin {
                Some(admin) => ("admin", json!(format!("{:?}", admin.cmd_type()))),
                None if command.commands.is_empty() => {
                    ("clock", json!({ "clock_ms": command.leader_clock_ms }))
                }
                None => {
                    let commands = command.commands.iter();
                    ("data", commands.map(|command| data(command, hex)).collect())
                }
            },
            Err(_) => ("damaged", Value::Null),
        },
        EntryType::EntryConfChange => match ConfChange::decode(entry.data.clone()) {
            Ok(change) => {
                let kind = format!("{:?}", change.change_type());
                (
                    "conf change",
                    json!([{ "does": kind, "peer_id": change.node_id }]),
                )
            }
            Err(_) => ("damaged", Value::Null),
        },
        EntryType::EntryConfChangeV2 => match ConfChangeV2::decode(entry.data.clone()) {
            Ok(change) => {
                let changes = change.changes.iter().map(|one| {
                    json!({ "does": format!("{:?}", one.change_type()), "peer_id": one.node_id })
                });
                ("conf change", changes.collect())
            }
            Err(_) => ("damaged", Value::Null),
        },
    }
}

fn data(command: &DataCommand, hex: bool) -> Value {
    let show = |bytes: &[u8]| text::to_json(bytes, hex);
    let mut line = match &command.body {
        Some(Body::Write(write)) => {
            let (deletes, puts): (Vec<_>, Vec<_>) =
                write.mutations.iter().partition(|one| one.value.is_none());
            json!({
                "does": "write",
                "puts": puts.iter().map(|one| show(&one.key)).collect::<Vec<_>>(),
                "deletes": deletes.iter().map(|one| show(&one.key)).collect::<Vec<_>>(),
            })
        }
        Some(Body::DeleteRange(range)) => json!({
            "does": "delete range",
            "start": show(&range.start_key),
            "end": show(&range.end_key),
        }),
        Some(Body::CompareAndSwap(swap)) => {
            json!({ "does": "compare and swap", "key": show(&swap.key) })
        }
        Some(Body::Append(append)) => json!({
            "does": "append",
            "key": show(&append.key),
            "value_bytes": append.value.len(),
        }),
        Some(Body::OpenSession(_)) => json!({ "does": "open session" }),
        Some(Body::System(system)) => {
            json!({ "does": "system", "request_bytes": system.request.len() })
        }
        None => json!({ "does": "nothing" }),
    };
    if let Some(session) = &command.session {
        line["session"] = json!({
            "id": text::hex(&session.session_id),
            "sequence": session.sequence,
        });
    }
    line
}

/// A command as words: what it does, then its parts.
fn words(content: &Value) -> String {
    match content {
        Value::Null => String::new(),
        Value::String(word) => word.clone(),
        Value::Object(fields) => {
            let does = fields
                .get("does")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let mut line = does.to_string();
            for (name, value) in fields.iter().filter(|(name, _)| *name != "does") {
                if value.as_array().is_some_and(Vec::is_empty) {
                    continue;
                }
                line.push_str(&format!(" {name}={value}"));
            }
            line.trim_start().to_string()
        }
        other => other.to_string(),
    }
}
