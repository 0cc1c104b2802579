//! Admin commands: one alone in its entry, checked by both parts of the epoch.
//!
//! CompactLog   Moves the truncated index and its term forward. What asks for more than is
//!              applied, or for what is gone already, changes nothing: a leader may have
//!              proposed it twice.

use strata_proto::raft_cmdpb::{AdminCmdType, AdminRequest, CompactLogRequest};
use strata_proto::stratapb::{EntryCommand, RaftApplyState};

use crate::apply::ApplyFault;

/// What an admin command needs of its region.
pub(crate) struct AdminContext<'a> {
    pub region: &'a strata_proto::metapb::Region,
    pub state: &'a mut RaftApplyState,
}

/// What became of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminOutcome {
    /// It has taken effect.
    Done,
    /// It changes nothing, on every replica.
    Refused,
}

/// Executes the admin command of an entry; the state already counts the entry as applied.
///
/// # Errors
/// `UnknownEntry` for a command of a newer version.
pub(crate) fn execute_admin(
    context: &mut AdminContext<'_>,
    command: &EntryCommand,
    admin: &AdminRequest,
) -> Result<AdminOutcome, ApplyFault> {
    // Before the epoch: a program that does not know the command cannot tell what it does
    // to others.
    let (AdminCmdType::CompactLog, Some(request)) = (admin.cmd_type(), &admin.compact_log) else {
        return Err(ApplyFault::UnknownEntry {
            region_id: context.region.id,
            index: context.state.applied_index,
        });
    };
    if context.region.region_epoch != command.region_epoch {
        return Ok(AdminOutcome::Refused);
    }
    Ok(compact_log(context.state, request))
}

fn compact_log(state: &mut RaftApplyState, request: &CompactLogRequest) -> AdminOutcome {
    // The entry itself is the last applied one, and no part of what it compacts.
    let fits = request.compact_index > state.truncated_index
        && request.compact_index < state.applied_index
        && request.compact_term > 0;
    if !fits {
        return AdminOutcome::Refused;
    }
    state.truncated_index = request.compact_index;
    state.truncated_term = request.compact_term;
    AdminOutcome::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RaftApplyState {
        RaftApplyState {
            applied_index: 100,
            applied_term: 7,
            truncated_index: 40,
            truncated_term: 5,
            region_clock_ms: 0,
        }
    }

    fn request(compact_index: u64, compact_term: u64) -> CompactLogRequest {
        CompactLogRequest {
            compact_index,
            compact_term,
            ..CompactLogRequest::default()
        }
    }

    #[test]
    fn compact_log_moves_forward_and_never_back_or_above_applied() {
        for (index, term) in [(40, 5), (12, 5), (100, 7), (101, 7), (u64::MAX, 7), (50, 0)] {
            let mut unchanged = state();
            let outcome = compact_log(&mut unchanged, &request(index, term));
            assert_eq!((outcome, unchanged), (AdminOutcome::Refused, state()));
        }
        let mut moved = state();
        assert_eq!(compact_log(&mut moved, &request(99, 7)), AdminOutcome::Done);
        assert_eq!((moved.truncated_index, moved.truncated_term), (99, 7));
    }
}
