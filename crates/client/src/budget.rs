//! The time that one operation may spend, and its pauses.
//!
//! Pauses double from `pause_min` to `pause_max`; each is drawn from its upper half, so
//! that clients which met the same election do not come back at the same instant.
//!
//! Invariants
//! * After the deadline no attempt begins.
//! * Once an attempt had an unknown outcome the operation ends in success or in
//!   [`Error::Unknown`], whatever the later attempts met.

use crate::{Error, Options, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::Instant;

/// One operation's budget.
#[derive(Debug)]
pub(crate) struct Budget {
    started: Instant,
    deadline: Instant,
    pause: Duration,
    pause_max: Duration,
    attempts: u32,
    free_steps: u32,
    last: Cow<'static, str>,
    unknown: Option<String>,
    seed: u64,
    stream: u64,
    /// Made with the first pause: most operations have none.
    jitter: Option<Box<ChaCha8Rng>>,
}

impl Budget {
    /// A budget that starts now. `stream` tells apart the operations of one client.
    pub(crate) fn start(options: &Options, stream: u64) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: started + options.operation_timeout,
            pause: options.pause_min,
            pause_max: options.pause_max,
            attempts: 0,
            free_steps: 0,
            last: "nothing was tried".into(),
            unknown: None,
            seed: options.seed,
            stream,
            jitter: None,
        }
    }

    /// Time for one more attempt, at most `longest`; the closing error when none is left.
    pub(crate) fn next_attempt(&mut self, longest: Duration) -> Result<Duration> {
        let left = self.left();
        if left.is_zero() {
            return Err(self.closing_error());
        }
        self.attempts += 1;
        Ok(left.min(longest))
    }

    /// Time until the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Notes what an attempt met that was certainly not executed.
    pub(crate) fn note(&mut self, what: String) {
        self.last = what.into();
    }

    /// Notes what an attempt met that may have been executed.
    pub(crate) fn note_unknown(&mut self, what: String) {
        self.unknown = Some(what.clone());
        self.last = what.into();
    }

    /// True once an attempt may have been executed.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// True for the first `most` times: such a step needs no pause.
    pub(crate) fn take_free_step(&mut self, most: u32) -> bool {
        self.free_steps += 1;
        self.free_steps <= most
    }

    /// Takes over what another budget of the same operation met.
    pub(crate) fn absorb(&mut self, other: Budget) {
        self.attempts += other.attempts;
        if other.attempts > 0 {
            self.last = other.last;
        }
        self.unknown = self.unknown.take().or(other.unknown);
    }

    /// A budget for a part of the operation, with the same deadline.
    pub(crate) fn part(&self, stream: u64) -> Self {
        Self {
            started: self.started,
            deadline: self.deadline,
            pause: self.pause,
            pause_max: self.pause_max,
            attempts: 0,
            free_steps: 0,
            last: self.last.clone(),
            unknown: None,
            seed: self.seed,
            stream,
            jitter: None,
        }
    }

    /// The length of the next pause.
    fn next_pause(&mut self, at_least: Duration) -> Duration {
        let half = self.pause / 2;
        let jitter = self.jitter.get_or_insert_with(|| {
            let mut jitter = ChaCha8Rng::seed_from_u64(self.seed);
            jitter.set_stream(self.stream);
            Box::new(jitter)
        });
        let jittered = half + jitter.random_range(Duration::ZERO..=half);
        self.pause = (self.pause * 2).min(self.pause_max);
        jittered.max(at_least.min(self.pause_max))
    }

    /// Waits before the next attempt, at least `at_least` (but never beyond the longest
    /// pause), and never beyond the deadline.
    pub(crate) async fn pause(&mut self, at_least: Duration) {
        let until = Instant::now() + self.next_pause(at_least);
        tokio::time::sleep_until(until.min(self.deadline)).await;
    }

    /// What the operation ends with when nothing more can be tried.
    pub(crate) fn closing_error(&self) -> Error {
        match &self.unknown {
            Some(last) => Error::Unknown { last: last.clone() },
            None => Error::Exhausted {
                attempts: self.attempts,
                waited: self.started.elapsed(),
                last: self.last.clone().into_owned(),
            },
        }
    }

    /// The error to give the caller when an attempt ended in `error`: a refusal of a later
    /// attempt says nothing about an earlier one of unknown outcome.
    pub(crate) fn close_with(&self, error: Error) -> Error {
        match &self.unknown {
            Some(last) => Error::Unknown { last: last.clone() },
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_from_the_seed_alone() {
        let options = Options::default();
        let pauses = |stream| {
            let mut budget = Budget::start(&options, stream);
            (0..12)
                .map(|_| budget.next_pause(Duration::ZERO))
                .collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
        let mut full = options.pause_min;
        for pause in pauses(3) {
            assert!(
                pause >= full / 2 && pause <= full,
                "{pause:?} outside the upper half of {full:?}"
            );
            full = (full * 2).min(options.pause_max);
        }
    }

    #[test]
    fn a_server_hint_lengthens_the_pause_up_to_the_longest() {
        let options = Options::default();
        let mut budget = Budget::start(&options, 0);
        let hint = Duration::from_millis(100);
        assert!(budget.next_pause(hint) >= hint);
        assert_eq!(
            budget.next_pause(Duration::from_secs(3600)),
            options.pause_max
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_begins_after_the_deadline() {
        let options = Options::default();
        let mut budget = Budget::start(&options, 0);
        let mut attempts = 0;
        let error = loop {
            match budget.next_attempt(options.attempt_timeout) {
                Ok(time) => {
                    assert!(time <= options.attempt_timeout);
                    attempts += 1;
                    budget.note("no leader".into());
                }
                Err(error) => break error,
            }
            budget.pause(Duration::ZERO).await;
        };
        assert!(attempts < 64, "{attempts} attempts in one budget");
        assert_eq!(
            error,
            Error::Exhausted {
                attempts,
                waited: options.operation_timeout,
                last: "no leader".into()
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_attempt_is_never_forgotten() {
        let options = Options::default();
        let mut budget = Budget::start(&options, 0);
        let mut part = budget.part(7);
        part.note_unknown("connection lost".into());
        budget.absorb(part);
        budget.note("not leader".into());
        let unknown = Error::Unknown {
            last: "connection lost".into(),
        };
        assert_eq!(budget.closing_error(), unknown);
        assert_eq!(budget.close_with(Error::EntryTooLarge { size: 1 }), unknown);
    }
}
