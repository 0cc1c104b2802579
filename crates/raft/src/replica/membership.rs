//! Membership changes of a running group.
//!
//! Propose  One at a time: the next one may be proposed when the last one is applied here.
//! Apply    The driver calls `apply_conf_change` when it applies the entry; from then on the
//!          new membership counts votes and matches.
//! Leave    A joint membership that leaves by itself gets an empty change from the leader
//!          once everything up to the change that entered it is applied.
//!
//! A leader tells a member that goes the commit index before it forgets it. One that is no
//! voter any more itself steps down, when it has told the others.

use bytes::Bytes;
use prost::Message as _;
use strata_proto::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType};

use super::Replica;
use crate::conf_change::change_membership;
use crate::error::{ConfChangeError, Error};
use crate::storage::Storage;
use crate::types::Index;

impl<S: Storage> Replica<S> {
    /// Appends a membership change to the leader's log.
    pub fn propose_conf_change(
        &mut self,
        context: Bytes,
        change: &ConfChangeV2,
    ) -> Result<Index, Error> {
        self.check_proposal()?;
        if self.pending_conf_index > self.log.applied() {
            return Err(Error::ConfChangePending {
                index: self.pending_conf_index,
            });
        }
        change_membership(self.tracker.membership(), change)?;
        let entry = Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            data: change.encode_to_vec().into(),
            context,
            ..Entry::default()
        };
        self.pending_conf_index = self.append_proposal(entry)?;
        Ok(self.pending_conf_index)
    }

    /// Puts a committed change in force.
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        if self.log.awaits_snapshot() {
            return Err(ConfChangeError::CoveredBySnapshot.into());
        }
        let membership = change_membership(self.tracker.membership(), change)?;
        let state = membership.to_conf_state();
        // A member that is about to go learns that the change is committed.
        self.send_appends();
        let next = self.log.last_index() + 1;
        let next = self.is_leader().then_some(next);
        self.tracker.set_membership(membership, next);
        if !self.is_leader() {
            return Ok(state);
        }
        if !self.tracker.is_voter(self.id) {
            self.maybe_commit();
            self.send_appends();
            self.become_follower(self.term, None);
            return Ok(state);
        }
        // Fewer voters may agree to more.
        self.maybe_commit();
        self.on_round_answered();
        if self.transferee.is_some_and(|id| !self.tracker.is_voter(id)) {
            self.transferee = None;
        }
        Ok(state)
    }

    pub(super) fn maybe_leave_joint(&mut self) {
        let membership = self.tracker.membership();
        let due = self.is_leader()
            && membership.auto_leave
            && membership.voters.is_joint()
            && self.pending_conf_index <= self.log.applied();
        if due {
            let entry = Entry {
                entry_type: EntryType::EntryConfChangeV2 as i32,
                ..Entry::default()
            };
            self.pending_conf_index = self.append_own(entry);
        }
    }
}
