//! Heartbeat rounds of a leader and the moments at which they were sent.
//!
//! Rounds are numbered from 1 within a term; a follower answers with the number. The lease
//! runs from the moment at which the latest round was sent that a quorum has answered, not
//! from the answer: whoever answered promised nothing before that moment, and no later one
//! is safe.

use std::collections::VecDeque;
use std::time::Duration;

/// Rounds whose answers are awaited at most; the oldest are forgotten beyond, which only
/// makes the lease end earlier.
const AWAITED_MAX: usize = 1024;

/// The rounds of one leader's term.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    current: u64,
    /// Number and time of sending, oldest first; the latest confirmed one is kept in front.
    sent: VecDeque<(u64, Duration)>,
}

impl Rounds {
    /// Number of the latest round; 0 if there was none.
    pub fn current(&self) -> u64 {
        self.current
    }

    /// Begins a round that is sent at `now` or later.
    pub fn begin(&mut self, now: Duration) -> u64 {
        self.current += 1;
        if self.sent.len() >= AWAITED_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.current, now));
        self.current
    }

    /// A quorum has answered `round` or later ones. Returns when the latest round up to it
    /// was sent, if that is still known.
    pub fn confirmed(&mut self, round: u64) -> Option<Duration> {
        while self.sent.get(1).is_some_and(|next| next.0 <= round) {
            self.sent.pop_front();
        }
        let &(oldest, at) = self.sent.front()?;
        (oldest <= round).then_some(at)
    }

    /// Lets the latest confirmed round count from `at`: the planted fault of a lease that is
    /// measured from the answer.
    pub fn count_from(&mut self, at: Duration) {
        if let Some(confirmed) = self.sent.front_mut() {
            confirmed.1 = at;
        }
    }

    /// Forgets everything, for a new term.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn time_of_the_latest_confirmed_round() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.confirmed(0), None);
        for at in [10, 20, 30] {
            rounds.begin(ms(at));
        }
        assert_eq!(rounds.confirmed(0), None);
        assert_eq!(rounds.confirmed(2), Some(ms(20)));
        assert_eq!(rounds.confirmed(2), Some(ms(20)));
        assert_eq!(rounds.confirmed(3), Some(ms(30)));
        assert_eq!(
            rounds.confirmed(2),
            None,
            "an earlier round is not known any more"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut rounds = Rounds::default();
        for at in 0..10_000 {
            rounds.begin(ms(at));
        }
        assert_eq!(rounds.sent.len(), AWAITED_MAX);
        assert_eq!(rounds.confirmed(10_000 - 1024), None);
        assert_eq!(rounds.confirmed(9_999), Some(ms(9_998)));
    }
}
