//! The simulated network: which message arrives when, and what was sent in all.
//!
//! The faults are those of the course's network: a server can be cut off, links can be cut
//! one way, requests and answers are dropped (10 % each) and requests delayed by up to
//! 26 ms in the unreliable mode, answers are held back for up to 2.2 s (long reordering),
//! and the sender hears of a failed call only after up to 7 s (long delays).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::PeerId;

/// Percent of requests, and of answers, that the unreliable network drops.
const DROP_PERCENT: u32 = 10;
/// Longest delay of a request on the unreliable network.
const UNRELIABLE_DELAY_MS_MAX: u64 = 26;

/// The faults that are switched on.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Servers cut off from everybody.
    pub disconnected: BTreeSet<PeerId>,
    /// Links cut in one direction, (from, to).
    pub cut: BTreeSet<(PeerId, PeerId)>,
    /// Drops 10 % of requests and answers, delays requests by 0 to 26 ms.
    pub unreliable: bool,
    /// Holds two answers of three back for 200 ms to 2.2 s.
    pub long_reordering: bool,
    /// The sender of a lost request hears of it after up to 7 s instead of 100 ms.
    pub long_delays: bool,
    /// Percent of messages that arrive twice.
    pub duplicate_percent: u32,
    /// Time of flight without any fault; a value above the minimum reorders messages.
    pub latency_us: (u64, u64),
}

/// What happens to one message.
#[derive(Debug, Default)]
pub struct Fate {
    /// After which delays it arrives: none, one or two.
    pub arrivals: Vec<Duration>,
    /// If it is lost: when the caller (the requester) hears that the call failed.
    pub failure: Option<Duration>,
}

/// True for a message that asks, false for one that answers.
pub fn is_request(kind: MessageType) -> bool {
    !matches!(
        kind,
        MessageType::MsgAppendResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgReadIndexResp
    )
}

impl Network {
    /// True if nothing cuts the way from one server to another.
    pub fn is_open(&self, from: PeerId, to: PeerId) -> bool {
        !self.disconnected.contains(&from)
            && !self.disconnected.contains(&to)
            && !self.cut.contains(&(from, to))
    }

    /// Decides what happens to a message on its way.
    pub fn fate(&self, message: &Message, rng: &mut ChaCha8Rng) -> Fate {
        if !self.is_open(message.from, message.to) {
            let patience_ms = if self.long_delays { 7_000 } else { 100 };
            let after = Duration::from_millis(rng.random_range(0..patience_ms));
            return Fate {
                arrivals: Vec::new(),
                failure: Some(after),
            };
        }
        let request = is_request(message.msg_type());
        let mut flight = Duration::from_micros(
            rng.random_range(self.latency_us.0..=self.latency_us.1.max(self.latency_us.0)),
        );
        if self.unreliable {
            if request {
                flight += Duration::from_millis(rng.random_range(0..=UNRELIABLE_DELAY_MS_MAX));
            }
            if rng.random_range(0..100) < DROP_PERCENT {
                return Fate {
                    arrivals: Vec::new(),
                    failure: Some(flight),
                };
            }
        }
        if self.long_reordering && !request && rng.random_range(0..900) < 600 {
            flight += Duration::from_millis(200 + rng.random_range(0..2_000));
        }
        let mut arrivals = vec![flight];
        if self.duplicate_percent > 0 && rng.random_range(0..100) < self.duplicate_percent {
            arrivals.push(flight + Duration::from_micros(rng.random_range(0..200_000)));
        }
        Fate {
            arrivals,
            failure: None,
        }
    }
}

/// What was sent since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Request messages: appends, votes, pre-votes, snapshots, heartbeats, read index,
    /// leader transfer. Answers do not count.
    pub calls: u64,
    /// Those of `calls` that are there because of commands and real elections: without
    /// pre-votes, without what a leader's empty entry costs, without idle heartbeats.
    pub busy_calls: u64,
    /// `busy_calls` by message type.
    pub busy_by_kind: BTreeMap<i32, u64>,
    /// Encoded bytes of all messages, answers included, as the course counts them.
    pub bytes: u64,
}

/// What the sender knows at the moment of sending, as far as counting needs it.
#[derive(Clone, Copy, Debug)]
pub struct SendContext {
    /// The entry at the message's commit index is a leader's empty entry.
    pub commit_is_no_op: bool,
}

impl Counters {
    /// Counts one message at the moment it is sent.
    pub fn on_send(&mut self, message: &Message, context: SendContext) {
        self.bytes += prost::Message::encoded_len(message) as u64;
        if !is_request(message.msg_type()) {
            return;
        }
        self.calls += 1;
        let idle = match message.msg_type() {
            MessageType::MsgRequestPreVote => true,
            // It goes by the clock and would go just the same if nothing was proposed. No row
            // reads; the rounds that reads ask for are no concern of the count.
            MessageType::MsgHeartbeat => true,
            MessageType::MsgAppend if message.entries.is_empty() => context.commit_is_no_op,
            MessageType::MsgAppend => message.entries.iter().all(|entry| entry.data.is_empty()),
            _ => false,
        };
        if !idle {
            self.busy_calls += 1;
            *self.busy_by_kind.entry(message.msg_type).or_default() += 1;
        }
    }
}

/// One line that tells what a message says.
pub fn render(message: &Message) -> String {
    let entries: Vec<_> = message
        .entries
        .iter()
        .map(|entry| (entry.term, entry.index))
        .collect();
    format!(
        "{} -> {} {:?} term {} prev {}@{} commit {} reject {} {entries:?}",
        message.from,
        message.to,
        message.msg_type(),
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.reject
    )
}
