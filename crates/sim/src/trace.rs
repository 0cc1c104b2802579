//! What happened, as a hash of everything and the last events for people.
//!
//! Two runs with one seed must have one hash: if they do not, something outside the seed
//! had a say, and a failing seed would be worth nothing.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Events that are kept for display, as a rule.
const KEPT_MAX: usize = 400;

/// One event: a word and four numbers, whose meaning depends on the word.
#[derive(Clone, Copy, Debug)]
struct Event {
    at: Duration,
    what: &'static str,
    numbers: [u64; 4],
}

/// The events of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    last: VecDeque<Event>,
    /// Events that are kept; the oldest go.
    kept_max: usize,
}

impl Trace {
    /// A trace without events.
    #[must_use]
    pub fn new() -> Self {
        Trace::keeping(KEPT_MAX)
    }

    /// A trace without events that keeps all that come.
    #[must_use]
    pub fn whole() -> Self {
        Trace::keeping(usize::MAX)
    }

    fn keeping(kept_max: usize) -> Self {
        Trace {
            kept_max,
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            last: VecDeque::new(),
        }
    }

    /// Notes an event.
    pub fn note(&mut self, at: Duration, what: &'static str, numbers: [u64; 4]) {
        self.mix(at.as_nanos() as u64);
        for byte in what.bytes() {
            self.mix(u64::from(byte));
        }
        for number in numbers {
            self.mix(number);
        }
        self.count += 1;
        if self.last.len() == self.kept_max {
            self.last.pop_front();
        }
        self.last.push_back(Event { at, what, numbers });
    }

    /// Hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of events so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// FNV-1a over words, with a rotation so that high bits take part.
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.last {
            let [a, b, c, d] = event.numbers;
            writeln!(
                f,
                "{:>12.6} {:<14} {a} {b} {c} {d}",
                event.at.as_secs_f64(),
                event.what
            )?;
        }
        write!(f, "{} events, hash {:016x}", self.count, self.hash)
    }
}
