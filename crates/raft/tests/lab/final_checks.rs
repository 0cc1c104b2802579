//! What must hold when a run has come to rest, shared by the rows and the random schedules.
//!
//! While a run goes on, `checkers` looks at every step; here the servers are compared as
//! they stand.

use std::collections::BTreeMap;

use strata_raft::{Index, PeerId};

use crate::harness::group::Group;
use crate::harness::service::CommandId;
use crate::rules::{Rule, Violation};

fn violated(group: &Group, rule: Rule, detail: String) -> Result<(), Violation> {
    Err(Violation {
        rule,
        at: group.now,
        detail,
    })
}

/// Each acknowledged command stands at its place on all of `members`, and nowhere else.
pub fn check_acknowledged(
    group: &Group,
    members: &[PeerId],
    acknowledged: &BTreeMap<Index, CommandId>,
) -> Result<(), Violation> {
    for id in members {
        let Some(life) = group.life(*id) else {
            return violated(group, Rule::Acknowledged, format!("{id} is down"));
        };
        let commands = &life.service.commands;
        for (index, command) in acknowledged {
            let found = commands.binary_search_by_key(index, |applied| applied.index);
            let found = found.ok().map(|at| commands[at].command);
            let times = commands
                .iter()
                .filter(|applied| applied.command == *command)
                .count();
            if found != Some(*command) || times != 1 {
                let detail = format!(
                    "command {command}, acknowledged at {index}: {id} has {found:?} there, and \
                     the command {times} times"
                );
                return violated(group, Rule::Acknowledged, detail);
            }
        }
    }
    Ok(())
}

/// All of `members` have the same commands at the same places.
pub fn check_replicas_equal(group: &Group, members: &[PeerId]) -> Result<(), Violation> {
    let lives: Vec<_> = members
        .iter()
        .filter_map(|id| Some((*id, group.life(*id)?)))
        .collect();
    for pair in lives.windows(2) {
        let [(one, left), (other, right)] = pair else {
            continue;
        };
        let (left, right) = (&left.service, &right.service);
        let shared = left.applied.index.min(right.applied.index);
        let both_at = |commands: &[crate::harness::service::Applied]| {
            commands.partition_point(|applied| applied.index <= shared)
        };
        let (left_end, right_end) = (both_at(&left.commands), both_at(&right.commands));
        if left.commands[..left_end] != right.commands[..right_end] {
            let detail = format!("{one} and {other} differ within their first {shared} entries");
            return violated(group, Rule::ReplicasEqual, detail);
        }
    }
    Ok(())
}

/// Any two logs hold the same entries up to the last place where their terms agree.
pub fn check_logs_match(group: &Group) -> Result<(), Violation> {
    for (id, disk) in &group.disks {
        for (other_id, other) in group.disks.range(id + 1..) {
            let differs = disk.current(|log| {
                other.current(|other| {
                    let first = log.truncated.index.max(other.truncated.index) + 1;
                    let last = log.last_index().min(other.last_index());
                    let agreed = (first..=last)
                        .rev()
                        .find(|at| log.term(*at) == other.term(*at));
                    (first..=agreed.unwrap_or(0)).find(|at| log.entry(*at) != other.entry(*at))
                })
            });
            if let Some(index) = differs {
                let detail = format!("the logs of {id} and {other_id} differ at {index}");
                return violated(group, Rule::LogMatching, detail);
            }
        }
    }
    Ok(())
}

/// No log of `members` has more than `entries_max` entries or `bytes_max` bytes.
pub fn check_log_limits(
    group: &Group,
    members: &[PeerId],
    entries_max: usize,
    bytes_max: usize,
) -> Result<(), Violation> {
    for id in members {
        let (entries, bytes) = group.disks[id].current(|log| (log.entries.len(), log.log_bytes()));
        if entries > entries_max || bytes > bytes_max {
            let detail = format!(
                "the log of {id} has {entries} entries of at most {entries_max}, {bytes} bytes \
                 of at most {bytes_max}"
            );
            return violated(group, Rule::LogLimit, detail);
        }
    }
    Ok(())
}
