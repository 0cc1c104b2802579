//! The check of a region before its replica starts (crash rule 8).
//!
//! The kv engine says what is applied and truncated, the raft engine what is logged. Each
//! recovers on its own, so each may have lost its tail; what must hold is
//! `truncated <= applied <= last`, with every entry in `(truncated, last]` present.
//! If the raft engine lost more than the kv engine applied, entries were lost that this
//! node acknowledged: going on would let it vote for a leader without them.
//!
//! The commit index is saved without a sync and may lag behind the applied index; it is
//! raised here, because what is applied was committed.

use std::ops::ControlFlow;

use strata_proto::eraftpb::HardState;
use strata_proto::stratapb::RaftApplyState;
use strata_raft::EntryId;

use super::read::read_entry;
use crate::engine::{Cf, Direction, Engine, Engines, ReadView};
use crate::error::{Error, StartFault};
use crate::keys;
use crate::region_records::{read_apply_state, read_raft_state};

/// State of a region that has passed.
pub(super) struct Checked {
    pub(super) hard_state: HardState,
    pub(super) apply_state: RaftApplyState,
    pub(super) last: EntryId,
    /// Encoded bytes of the log.
    pub(super) log_bytes: u64,
}

pub(super) fn check<E: Engine>(engines: &Engines<E>, region_id: u64) -> Result<Checked, Error> {
    let raft_state = read_raft_state(&engines.raft, region_id)?;
    let apply_state = read_apply_state(&engines.kv, region_id)?;
    let fault = |fault| Error::StartCheck { region_id, fault };
    let (raft_state, apply_state) = match (raft_state, apply_state) {
        (Some(raft), Some(apply)) => (raft, apply),
        (None, Some(apply)) => {
            let applied = apply.applied_index;
            return Err(fault(StartFault::MissingRaftState { applied }));
        }
        // A replica that a message created: it may have voted, it cannot have a log.
        (Some(raft), None) if raft.last_index == 0 => (raft, RaftApplyState::default()),
        (Some(raft), None) => {
            let last = raft.last_index;
            return Err(fault(StartFault::MissingApplyState { last }));
        }
        (None, None) => Default::default(),
    };
    let mut hard_state = raft_state.hard_state.unwrap_or_default();
    check_indexes(&apply_state, &hard_state, raft_state.last_index).map_err(fault)?;
    let log_bytes = check_log(
        &engines.raft,
        region_id,
        &apply_state,
        raft_state.last_index,
    )?;
    let last = EntryId {
        index: raft_state.last_index,
        term: term_at(
            &engines.raft,
            region_id,
            &apply_state,
            raft_state.last_index,
        )?,
    };
    if hard_state.term < last.term {
        return Err(fault(StartFault::TermBehindLog {
            term: hard_state.term,
            last_term: last.term,
        }));
    }
    check_applied_term(&engines.raft, region_id, &apply_state)?;
    hard_state.commit = hard_state.commit.max(apply_state.applied_index);
    Ok(Checked {
        hard_state,
        apply_state,
        last,
        log_bytes,
    })
}

fn check_indexes(
    apply: &RaftApplyState,
    hard_state: &HardState,
    last: u64,
) -> Result<(), StartFault> {
    let (truncated, applied) = (apply.truncated_index, apply.applied_index);
    if truncated > applied {
        return Err(StartFault::TruncatedAboveApplied { truncated, applied });
    }
    if applied > last {
        return Err(StartFault::AppliedAboveLast { applied, last });
    }
    let commit = hard_state.commit;
    if commit > last {
        return Err(StartFault::CommitAboveLast { commit, last });
    }
    Ok(())
}

/// Walks the keys of the log: every index from truncated to last once, none behind. Returns
/// the bytes of the entries.
fn check_log(
    raft: &impl ReadView,
    region_id: u64,
    apply: &RaftApplyState,
    last: u64,
) -> Result<u64, Error> {
    let truncated = apply.truncated_index;
    let mut next = truncated + 1;
    let mut bytes = 0;
    let start = keys::raft_log(region_id, next);
    let (_, end) = keys::raft_log_range(region_id);
    let mut fault = None;
    let mut visit = |key: &[u8], value: &[u8]| match keys::parse_raft_log(key) {
        Some((_, index)) if index == next && index <= last => {
            next += 1;
            bytes += value.len() as u64;
            ControlFlow::Continue(())
        }
        Some((_, index)) if next > last => {
            fault = Some(StartFault::EntryBehindLast { index, last });
            ControlFlow::Break(())
        }
        // A later index or a key of another form: `next` is missing.
        _ => ControlFlow::Break(()),
    };
    raft.scan(
        Cf::RaftLog,
        &start,
        Some(&end),
        Direction::Forward,
        &mut visit,
    )?;
    if fault.is_none() && next <= last {
        fault = Some(StartFault::MissingEntry {
            index: next,
            truncated,
            last,
        });
    }
    match fault {
        Some(fault) => Err(Error::StartCheck { region_id, fault }),
        None => Ok(bytes),
    }
}

fn check_applied_term(
    raft: &impl ReadView,
    region_id: u64,
    apply: &RaftApplyState,
) -> Result<(), Error> {
    let index = apply.applied_index;
    let found = term_at(raft, region_id, apply, index)?;
    if found == apply.applied_term {
        return Ok(());
    }
    let expected = apply.applied_term;
    let fault = StartFault::TermMismatch {
        index,
        found,
        expected,
    };
    Err(Error::StartCheck { region_id, fault })
}

fn term_at(
    raft: &impl ReadView,
    region_id: u64,
    apply: &RaftApplyState,
    index: u64,
) -> Result<u64, Error> {
    if index == apply.truncated_index {
        return Ok(apply.truncated_term);
    }
    match read_entry(raft, region_id, index)? {
        Some(entry) => Ok(entry.term),
        None => Err(Error::CorruptEntry { region_id, index }),
    }
}
