//! One set of voters, of whom more than half must agree.

use super::VoteResult;
use crate::types::PeerId;

/// Up to so many voters, the quorum index is found without allocating.
const VOTERS_ON_STACK: usize = 9;

/// A set of voters, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Majority {
    voters: Vec<PeerId>,
}

impl Majority {
    /// The set of `voters`; doubles count once.
    pub fn new(voters: impl IntoIterator<Item = PeerId>) -> Self {
        let mut voters: Vec<PeerId> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Self { voters }
    }

    /// The voters in rising order.
    pub fn voters(&self) -> &[PeerId] {
        &self.voters
    }

    /// Whether there is no voter.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Whether `id` is one of the voters.
    pub fn contains(&self, id: PeerId) -> bool {
        self.voters.binary_search(&id).is_ok()
    }

    /// Adds a voter; no effect if it is there.
    pub fn insert(&mut self, id: PeerId) {
        if let Err(at) = self.voters.binary_search(&id) {
            self.voters.insert(at, id);
        }
    }

    /// Removes a voter; no effect if it is not there.
    pub fn remove(&mut self, id: PeerId) {
        if let Ok(at) = self.voters.binary_search(&id) {
            self.voters.remove(at);
        }
    }

    /// How many voters a quorum has at least.
    pub fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// The highest number that a quorum has reached, if `number_of` gives what each has
    /// reached. `u64::MAX` for the empty set, which agrees to everything: so a joint quorum
    /// whose outgoing half is empty is decided by the other half.
    #[inline]
    pub fn agreed(&self, number_of: impl Fn(PeerId) -> u64) -> u64 {
        if self.voters.is_empty() {
            return u64::MAX;
        }
        let mut on_stack = [0u64; VOTERS_ON_STACK];
        let mut on_heap;
        let numbers = if self.voters.len() <= VOTERS_ON_STACK {
            &mut on_stack[..self.voters.len()]
        } else {
            on_heap = vec![0u64; self.voters.len()];
            &mut on_heap[..]
        };
        for (slot, &id) in numbers.iter_mut().zip(&self.voters) {
            *slot = number_of(id);
        }
        numbers.sort_unstable();
        // In rising order, the quorum are the last ones; the first of them is the lowest.
        numbers[numbers.len() - self.quorum()]
    }

    /// State of a vote in which `vote_of` gives each one's vote, if cast. The empty set has
    /// voted yes.
    pub fn vote_result(&self, vote_of: impl Fn(PeerId) -> Option<bool>) -> VoteResult {
        if self.voters.is_empty() {
            return VoteResult::Won;
        }
        let (mut yes, mut missing) = (0, 0);
        for &id in &self.voters {
            match vote_of(id) {
                Some(true) => yes += 1,
                Some(false) => {}
                None => missing += 1,
            }
        }
        if yes >= self.quorum() {
            VoteResult::Won
        } else if yes + missing >= self.quorum() {
            VoteResult::Pending
        } else {
            VoteResult::Lost
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agreed_of_even_and_odd_sets() {
        let reached = |id: PeerId| [0, 10, 20, 30, 40, 50][id as usize];
        assert_eq!(Majority::new([]).agreed(reached), u64::MAX);
        assert_eq!(Majority::new([3]).agreed(reached), 30);
        assert_eq!(Majority::new([1, 2]).agreed(reached), 10);
        assert_eq!(Majority::new([1, 2, 3]).agreed(reached), 20);
        assert_eq!(Majority::new([1, 2, 3, 4]).agreed(reached), 20);
        assert_eq!(Majority::new([1, 2, 3, 4, 5]).agreed(reached), 30);
    }

    #[test]
    fn votes_are_decided_as_soon_as_possible() {
        let set = Majority::new([1, 2, 3, 4]);
        let votes = |cast: &[(PeerId, bool)]| {
            let cast = cast.to_vec();
            set.vote_result(move |id| cast.iter().find(|v| v.0 == id).map(|v| v.1))
        };
        assert_eq!(votes(&[]), VoteResult::Pending);
        assert_eq!(votes(&[(1, true), (2, true)]), VoteResult::Pending);
        assert_eq!(votes(&[(1, true), (2, true), (3, true)]), VoteResult::Won);
        assert_eq!(votes(&[(1, false), (2, false)]), VoteResult::Lost);
        assert_eq!(votes(&[(1, false), (9, false)]), VoteResult::Pending);
    }

    #[test]
    fn doubles_count_once() {
        assert_eq!(Majority::new([2, 1, 2]).voters(), &[1, 2]);
    }

    proptest! {
        /// The agreed number against its plain definition: the highest one that at least a
        /// quorum has reached.
        #[test]
        fn agreed_is_the_highest_number_a_quorum_reached(
            numbers in proptest::collection::vec(0u64..20, 1..14)
        ) {
            let set = Majority::new((1..=numbers.len() as u64).collect::<Vec<_>>());
            let plain = (0u64..20)
                .filter(|n| numbers.iter().filter(|reached| *reached >= n).count() * 2 > numbers.len())
                .max()
                .unwrap();
            prop_assert_eq!(set.agreed(|id| numbers[id as usize - 1]), plain);
        }
    }
}
