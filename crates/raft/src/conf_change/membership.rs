//! Who belongs to the group, and in which part.
//!
//! Invariants (`check`)
//! * Outside a joint membership nothing but `incoming` voters and `learners` exists.
//! * Learners are no voters of either half; `learners_next` are voters of the outgoing half
//!   that become learners when the joint membership is left.

use std::collections::BTreeSet;

use strata_proto::eraftpb::ConfState;

use crate::error::ConfChangeError;
use crate::quorum::{Joint, Majority};
use crate::types::{NO_PEER, PeerId};

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those who vote.
    pub voters: Joint,
    /// Those who get the log and do not vote.
    pub learners: BTreeSet<PeerId>,
    /// Outgoing voters that become learners when the joint membership is left.
    pub learners_next: BTreeSet<PeerId>,
    /// Whether the leader leaves the joint membership by itself.
    pub auto_leave: bool,
}

impl Membership {
    /// The membership that `state` describes, or why it describes none. The empty state is
    /// that of a replica which waits for its first snapshot.
    pub fn from_conf_state(state: &ConfState) -> Result<Self, ConfChangeError> {
        let membership = Self {
            voters: Joint {
                incoming: Majority::new(state.voters.iter().copied()),
                outgoing: Majority::new(state.voters_outgoing.iter().copied()),
            },
            learners: state.learners.iter().copied().collect(),
            learners_next: state.learners_next.iter().copied().collect(),
            auto_leave: state.auto_leave,
        };
        if *state != ConfState::default() {
            membership.check()?;
        }
        Ok(membership)
    }

    /// The form in which it is saved and travels in snapshots.
    pub fn to_conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.incoming.voters().to_vec(),
            learners: self.learners.iter().copied().collect(),
            voters_outgoing: self.voters.outgoing.voters().to_vec(),
            learners_next: self.learners_next.iter().copied().collect(),
            auto_leave: self.auto_leave,
        }
    }

    /// Whether `id` is a member in any part.
    pub fn contains(&self, id: PeerId) -> bool {
        self.voters.contains(id) || self.learners.contains(&id)
    }

    /// All members, each once.
    pub fn members(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.voters.voters().chain(self.learners.iter().copied())
    }

    /// Checks the invariants.
    pub fn check(&self) -> Result<(), ConfChangeError> {
        let voter = |id: &PeerId| self.voters.contains(*id);
        let consistent = !self.voters.incoming.is_empty()
            && !self.members().any(|id| id == NO_PEER)
            && !self.learners.iter().any(voter)
            && self
                .learners_next
                .iter()
                .all(|&id| self.voters.outgoing.contains(id) && !self.voters.incoming.contains(id))
            && (self.voters.is_joint() || !self.auto_leave);
        if consistent {
            Ok(())
        } else {
            Err(ConfChangeError::InvalidConfState)
        }
    }
}
