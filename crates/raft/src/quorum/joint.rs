//! Two sets of voters that must both agree while one replaces the other.

use super::{Majority, VoteResult};
use crate::types::PeerId;

/// A membership and, during a joint change, the one that it replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joint {
    /// The membership to come; the only one outside a joint change.
    pub incoming: Majority,
    /// The membership to be left; empty outside a joint change.
    pub outgoing: Majority,
}

impl Joint {
    /// Whether two memberships are in force.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes in either of them.
    pub fn contains(&self, id: PeerId) -> bool {
        self.incoming.contains(id) || self.outgoing.contains(id)
    }

    /// All voters, each once: the incoming in rising order, then the merely outgoing.
    pub fn voters(&self) -> impl Iterator<Item = PeerId> + '_ {
        let leaving = self.outgoing.voters().iter().copied();
        self.incoming
            .voters()
            .iter()
            .copied()
            .chain(leaving.filter(|&id| !self.incoming.contains(id)))
    }

    /// The highest number that a quorum of both has reached; see [`Majority::agreed`].
    #[inline]
    pub fn agreed(&self, number_of: impl Fn(PeerId) -> u64) -> u64 {
        self.incoming
            .agreed(&number_of)
            .min(self.outgoing.agreed(&number_of))
    }

    /// State of a vote that both must win.
    pub fn vote_result(&self, vote_of: impl Fn(PeerId) -> Option<bool>) -> VoteResult {
        let incoming = self.incoming.vote_result(&vote_of);
        let outgoing = self.outgoing.vote_result(&vote_of);
        match (incoming, outgoing) {
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Pending, _) | (_, VoteResult::Pending) => VoteResult::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Joint {
        Joint {
            incoming: Majority::new([1, 2, 3]),
            outgoing: Majority::new([3, 4, 5]),
        }
    }

    #[test]
    fn both_halves_must_agree() {
        let reached = |id: PeerId| [0, 9, 9, 9, 2, 1][id as usize];
        assert_eq!(joint().agreed(reached), 2);
        assert_eq!(joint().voters().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn one_half_alone_wins_nothing() {
        let yes = |ids: &'static [PeerId]| move |id| ids.contains(&id).then_some(true);
        assert_eq!(joint().vote_result(yes(&[1, 2, 3])), VoteResult::Pending);
        assert_eq!(joint().vote_result(yes(&[1, 3, 4])), VoteResult::Won);
        let no = |id: PeerId| (id >= 4).then_some(false);
        assert_eq!(joint().vote_result(no), VoteResult::Lost);
    }

    #[test]
    fn an_empty_outgoing_half_changes_nothing() {
        let simple = Joint {
            incoming: Majority::new([1]),
            outgoing: Majority::default(),
        };
        assert!(!simple.is_joint());
        assert_eq!(simple.agreed(|_| 7), 7);
        assert_eq!(simple.vote_result(|_| None), VoteResult::Pending);
        assert_eq!(simple.vote_result(|_| Some(true)), VoteResult::Won);
    }
}
