//! Checkers that look on while a cluster runs.
//!
//! Leaders   Who sends appends, heartbeats or hand-overs acts as leader of its term; there
//!           is at most one in each term of a region.
//! Crashes   What a crash leaves applied is in the raft engine, too, unless a snapshot is
//!           being installed.

use std::collections::BTreeMap;

use strata_proto::eraftpb::MessageType;
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_storage::{
    Engines, MemEngine, read_all_region_states, read_apply_state, read_raft_state,
};

use crate::violation::Violation;

/// Remembers what must stay true, and what was found broken.
#[derive(Debug, Default)]
pub struct Watch {
    /// Leader of each region and term.
    leaders: BTreeMap<(u64, u64), u64>,
    violations: Vec<Violation>,
}

impl Watch {
    /// Notes a violation.
    pub fn report(&mut self, violation: Violation) {
        // One is enough for a run to fail; many would only hide the first.
        const KEPT_MAX: usize = 16;
        if self.violations.len() < KEPT_MAX {
            self.violations.push(violation);
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Number of terms in which a region was led, over all regions.
    #[must_use]
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// Looks at a message that leaves a store.
    pub fn on_send(&mut self, envelope: &RaftMessage) {
        let Some(message) = &envelope.message else {
            return;
        };
        let leads = matches!(
            message.msg_type(),
            MessageType::MsgAppend
                | MessageType::MsgHeartbeat
                | MessageType::MsgSnapshot
                | MessageType::MsgTimeoutNow
        );
        if !leads {
            return;
        }
        let (region_id, term) = (envelope.region_id, message.term);
        let first = *self
            .leaders
            .entry((region_id, term))
            .or_insert(message.from);
        if first != message.from {
            let second = message.from;
            self.report(Violation::TwoLeaders {
                region_id,
                term,
                first,
                second,
            });
        }
    }

    /// Looks at the engines that a crash has left.
    pub fn on_crash(&mut self, store_id: u64, engines: &Engines<MemEngine>) {
        let states = match read_all_region_states(&engines.kv) {
            Ok(states) => states,
            Err(error) => return self.damaged(store_id, &error),
        };
        for region_id in states
            .iter()
            // Between the two batches of an install the kv engine is ahead (crash rule 3), and
            // of a destroyed peer the log goes first (crash rule 5).
            .filter(|state| state.state() == PeerState::Normal)
            .filter_map(|state| state.region.as_ref())
            .map(|r| r.id)
        {
            let applied = read_apply_state(&engines.kv, region_id);
            let log = read_raft_state(&engines.raft, region_id);
            match (applied, log) {
                (Ok(applied), Ok(log)) => {
                    let applied = applied.map_or(0, |state| state.applied_index);
                    let last = log.map_or(0, |state| state.last_index);
                    if applied > last {
                        self.report(Violation::AppliedBeyondLog {
                            region_id,
                            store_id,
                            applied,
                            last,
                        });
                    }
                }
                (Err(error), _) | (_, Err(error)) => self.damaged(store_id, &error),
            }
        }
    }

    fn damaged(&mut self, store_id: u64, error: &strata_storage::Error) {
        self.report(Violation::StoreStopped {
            store_id,
            reason: error.to_string(),
        });
    }
}
