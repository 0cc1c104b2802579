//! Whether one more write of a region would be done in time.
//!
//! Count   Writes are under way from when they are proposed until their entry is applied here.
//!         How many were executed lately tells how long those that are under way will take.
//! Refuse  A write that would wait for longer than `max_write_wait` is refused as it comes: its
//!         sender learns so at once, and nothing was spent on it.
//!
//! The limits in bytes (`max_uncommitted_bytes`, `max_queued_write_bytes`) bound memory. They say
//! nothing of time: a hundred thousand small writes fit into them, and then each waits until its
//! deadline has passed. What sets the pace makes no difference here, be it a disk, a follower,
//! the network or the processor.
//!
//! A write is refused only if all of these hold:
//! * [`WRITES_ALWAYS`] or more are before it;
//! * the oldest of these was proposed at least a quarter of `max_write_wait` ago: a region that
//!   was idle takes a burst whole, since nothing is known of its pace;
//! * as many are before it as the region executed in `max_write_wait` when it last executed any:
//!   a pause alone refuses nothing.
//!
//! Invariants
//! * `under_way` is the sum over `entries`, whose indices ascend.

use std::collections::VecDeque;
use std::time::Duration;

/// Writes that a region takes however slow it is. More than clients that wait for their answers
/// commonly are; and a region that stood still has something to begin with.
const WRITES_ALWAYS: usize = 512;

/// The writes of one entry.
#[derive(Debug)]
struct EntryUnderWay {
    index: u64,
    writes: usize,
    proposed_at: Duration,
}

/// The writes of a region that are proposed and not applied, and how fast they are executed.
#[derive(Debug, Default)]
pub(crate) struct WriteWindow {
    entries: VecDeque<EntryUnderWay>,
    under_way: usize,
    /// When the present period began. A period is half of `max_write_wait`.
    period_begun: Duration,
    /// Writes executed in the present period, and in the one before it.
    executed: usize,
    executed_before: usize,
}

impl WriteWindow {
    /// An entry with so many writes was proposed. Its index is above all before it.
    pub(crate) fn on_proposed(&mut self, index: u64, writes: usize, now: Duration) {
        self.under_way += writes;
        self.entries.push_back(EntryUnderWay {
            index,
            writes,
            proposed_at: now,
        });
    }

    /// All entries up to `index` are applied.
    pub(crate) fn on_applied(&mut self, index: u64, now: Duration, max_wait: Duration) {
        self.turn_period(now, max_wait);
        while let Some(first) = self.entries.front()
            && first.index <= index
        {
            self.under_way -= first.writes;
            self.executed += first.writes;
            self.entries.pop_front();
        }
    }

    /// The leadership has changed: what is under way is not this leadership's.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.under_way = 0;
    }

    /// True if a write that comes in now is to be refused; `queued` others wait to be proposed.
    pub(crate) fn is_full(&self, now: Duration, queued: usize, max_wait: Duration) -> bool {
        let before = self.under_way + queued;
        if before < WRITES_ALWAYS {
            return false;
        }
        let behind = self
            .entries
            .front()
            .is_some_and(|oldest| oldest.proposed_at + max_wait / 4 <= now);
        // Two periods make up the longest wait.
        behind && before >= 2 * self.executed.max(self.executed_before)
    }

    fn turn_period(&mut self, now: Duration, max_wait: Duration) {
        let period = max_wait / 2;
        let passed = now.saturating_sub(self.period_begun);
        if passed < period {
            return;
        }
        if passed < 2 * period {
            self.executed_before = self.executed;
            self.period_begun += period;
        } else {
            // Nothing was executed in the whole period before this one.
            self.executed_before = 0;
            self.period_begun = now;
        }
        self.executed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(500);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Offers `offered` writes a millisecond, each an entry, to a region that executes `served`.
    /// Returns how many were accepted in the last second, and the longest that one took.
    fn run(offered: u64, served: u64, seconds: u64) -> (u64, Duration) {
        let mut window = WriteWindow::default();
        let mut proposed = VecDeque::new();
        let (mut index, mut applied, mut accepted) = (0, 0, 0);
        let mut longest = Duration::ZERO;
        for at in 0..seconds * 1000 {
            for _ in 0..offered {
                if !window.is_full(ms(at), 0, WAIT) {
                    index += 1;
                    window.on_proposed(index, 1, ms(at));
                    proposed.push_back(at);
                    accepted += u64::from(at >= (seconds - 1) * 1000);
                }
            }
            for _ in 0..served.min(index - applied) {
                applied += 1;
                longest = longest.max(ms(at - proposed.pop_front().unwrap()));
            }
            window.on_applied(applied, ms(at), WAIT);
        }
        (accepted, longest)
    }

    #[test]
    fn what_is_offered_beyond_what_is_served_is_refused_and_the_rest_is_in_time() {
        for (offered, served) in [(6, 2), (30, 10), (100, 10), (12, 10), (10, 2)] {
            let (accepted, longest) = run(offered, served, 5);
            let rate = served * 1000;
            assert!(
                (rate * 9 / 10..=rate * 11 / 10).contains(&accepted),
                "{offered} to {served}: {accepted} accepted"
            );
            // What came into the idle region, before it was known to be behind, waits longest.
            let burst = WAIT / 4 * (offered / served) as u32;
            assert!(
                longest <= burst.max(WAIT + ms(5)),
                "{offered} to {served}: {longest:?}"
            );
        }
    }

    #[test]
    fn a_region_that_keeps_up_takes_all_and_an_idle_one_takes_bursts() {
        let (accepted, longest) = run(10, 10, 3);
        assert_eq!(accepted, 10_000);
        assert!(longest < ms(5), "{longest:?}");
        let mut window = WriteWindow::default();
        for index in 1..=10_000 {
            assert!(!window.is_full(ms(107), 0, WAIT), "{index}");
            window.on_proposed(index, 1, ms(7));
        }
    }

    /// A pause of the machine, as long as the shortest election timeout, while 10 writes come in
    /// each millisecond.
    #[test]
    fn a_pause_refuses_nothing() {
        let mut window = WriteWindow::default();
        let mut index = 0;
        for at in 0..1400 {
            for _ in 0..10 {
                assert!(!window.is_full(ms(at), 0, WAIT), "at {at} ms");
                index += 1;
                window.on_proposed(index, 1, ms(at));
            }
            if at < 1000 {
                window.on_applied(index, ms(at), WAIT);
            }
        }
    }

    #[test]
    fn so_many_as_always_are_taken_wherever_they_wait() {
        let mut window = WriteWindow::default();
        window.on_proposed(1, WRITES_ALWAYS - 1, ms(0));
        assert!(!window.is_full(ms(124), 1, WAIT), "it may keep up");
        assert!(!window.is_full(ms(60_000), 0, WAIT));
        assert!(window.is_full(ms(60_000), 1, WAIT), "one is queued, too");
        window.on_applied(1, ms(60_000), WAIT);
        assert!(!window.is_full(ms(60_000), 5_000, WAIT), "none is late");
    }

    #[test]
    fn what_stands_still_is_limited_and_begins_again() {
        let mut window = WriteWindow::default();
        for index in 1..=600 {
            window.on_proposed(index, 1, ms(0));
        }
        assert!(window.is_full(ms(5_000), 0, WAIT));
        window.on_applied(100, ms(5_010), WAIT);
        assert!(!window.is_full(ms(5_010), 0, WAIT));
        assert!(window.is_full(ms(5_010), 12, WAIT));
        window.clear();
        assert!(!window.is_full(ms(5_010), 600, WAIT));
    }
}
