//! The compact notation of scripts.
//!
//! An entry is `index@term:data`, with `-` for the empty entry of a new leader and the peers
//! in brackets for a membership change: `4@2:(+4 ~5 -2)` adds voter 4 and learner 5 and
//! removes 2. A message is `from>to Kind term=T` and what matters in it; `x>` is one lost.

use strata_proto::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, Message, MessageType};
use strata_raft::{Progress, ProgressState, Role, Status, conf_change_of};

pub fn entry(entry: &Entry) -> String {
    let data = match conf_change_of(entry) {
        Ok(Some(change)) => format!("({})", conf_change(&change)),
        _ if entry.data.is_empty() => "-".to_string(),
        _ => String::from_utf8_lossy(&entry.data).into_owned(),
    };
    format!("{}@{}:{data}", entry.index, entry.term)
}

pub fn entries(list: &[Entry]) -> String {
    format!("[{}]", list.iter().map(entry).collect::<Vec<_>>().join(" "))
}

fn conf_change(change: &ConfChangeV2) -> String {
    let singles = change.changes.iter().map(|single| {
        let sign = match ConfChangeType::try_from(single.change_type) {
            Ok(ConfChangeType::AddNode) => '+',
            Ok(ConfChangeType::AddLearnerNode) => '~',
            Ok(ConfChangeType::RemoveNode) => '-',
            Err(_) => '?',
        };
        format!("{sign}{}", single.node_id)
    });
    let list: Vec<String> = singles.collect();
    if list.is_empty() {
        "leave".to_string()
    } else {
        list.join(" ")
    }
}

pub fn conf_state(state: &ConfState) -> String {
    let list = |name: &str, ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        if ids.is_empty() {
            String::new()
        } else {
            format!(" {name}={}", ids.join(","))
        }
    };
    let text = [
        list("voters", &state.voters),
        list("outgoing", &state.voters_outgoing),
        list("learners", &state.learners),
        list("learners-next", &state.learners_next),
        if state.auto_leave {
            " auto-leave".to_string()
        } else {
            String::new()
        },
    ];
    text.concat().trim_start().to_string()
}

/// `Append` for `MsgAppend`.
pub fn kind(kind: MessageType) -> String {
    format!("{kind:?}").trim_start_matches("Msg").to_string()
}

/// `message` with `arrow` between the peers.
pub fn message(message: &Message, arrow: &str) -> String {
    let m = message;
    let details = match m.msg_type() {
        MessageType::MsgAppend => format!(
            "prev={}@{} {} commit={}",
            m.index,
            m.log_term,
            entries(&m.entries),
            m.commit
        ),
        MessageType::MsgAppendResponse if m.reject => {
            format!("refused={} hint={}@{}", m.index, m.reject_hint, m.log_term)
        }
        MessageType::MsgAppendResponse => format!("index={}", m.index),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            let transfer = if m.context.is_empty() {
                ""
            } else {
                " transfer"
            };
            format!("last={}@{}{transfer}", m.index, m.log_term)
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            if m.reject {
                "no".to_string()
            } else {
                "yes".to_string()
            }
        }
        MessageType::MsgSnapshot => {
            let metadata = m
                .snapshot
                .as_ref()
                .and_then(|s| s.metadata.clone())
                .unwrap_or_default();
            let conf = conf_state(&metadata.conf_state.unwrap_or_default());
            format!("at={}@{} {conf}", metadata.index, metadata.term)
        }
        MessageType::MsgHeartbeat => format!("round={} commit={}", m.index, m.commit),
        MessageType::MsgHeartbeatResponse => format!("round={} commit={}", m.index, m.commit),
        MessageType::MsgReadIndex => String::from_utf8_lossy(&m.context).into_owned(),
        MessageType::MsgReadIndexResp => {
            format!("{} at {}", String::from_utf8_lossy(&m.context), m.index)
        }
        _ => String::new(),
    };
    let text = format!(
        "{}{arrow}{} {} term={} {details}",
        m.from,
        m.to,
        kind(m.msg_type()),
        m.term
    );
    text.trim_end().to_string()
}

pub fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

pub fn status(status: &Status) -> String {
    let leader = status
        .soft_state
        .leader
        .map_or("-".to_string(), |id| id.to_string());
    let transfer = status
        .transferee
        .map_or(String::new(), |to| format!(" transfer-to={to}"));
    format!(
        "{} {} term={} vote={} leader={leader} log={}..{} commit={} applied={} synced={}{transfer}",
        status.id,
        role(status.soft_state.role),
        status.hard_state.term,
        status.hard_state.vote,
        status.first_index,
        status.last_index,
        status.hard_state.commit,
        status.applied,
        status.persisted,
    )
}

pub fn progress(id: u64, progress: &Progress) -> String {
    let state = match progress.state {
        ProgressState::Probe => "probe",
        ProgressState::Replicate => "replicate",
        ProgressState::Snapshot => "snapshot",
    };
    let mut text = format!(
        "{id} {state} match={} next={}",
        progress.matched, progress.next
    );
    if progress.pending_snapshot > 0 {
        text += &format!(" pending={}", progress.pending_snapshot);
    }
    if !progress.inflights.is_empty() {
        text += &format!(" inflight={}", progress.inflights.len());
    }
    if progress.is_paused() {
        text += " paused";
    }
    text
}
