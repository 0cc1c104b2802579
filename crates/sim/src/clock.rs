//! Simulated time: one true time for the whole run, and each store's view of it.
//!
//! The true time only orders events; nobody but the driver and the checkers reads it. A
//! store sees a monotonic clock that may run fast or slow and a wall clock that may be off
//! and may be stepped, as real machines have them. The monotonic clock goes on while a
//! store is down, as CLOCK_BOOTTIME does for a process that is restarted.
//!
//! Invariant: a store's monotonic time never goes back, whatever its rate is set to.

use std::time::Duration;

use strata_raftstore::Now;

/// Wall clock of the simulated world at true time zero: 2026-01-01, in milliseconds.
const WALL_START_MS: u64 = 1_767_225_600_000;

/// A rate of 1.
pub const RATE_ONE: u64 = 1_000_000;

/// The clocks of one store.
#[derive(Clone, Debug)]
pub struct StoreClock {
    /// Microseconds that the monotonic clock advances in a true second.
    rate: u64,
    /// True and monotonic time when the rate was set.
    since: (Duration, Duration),
    /// What the wall clock is ahead (positive) or behind, in milliseconds.
    wall_offset_ms: i64,
}

impl StoreClock {
    /// A clock that shows `start` at true time zero and runs at the true rate.
    #[must_use]
    pub fn new(start: Duration, wall_offset_ms: i64) -> Self {
        StoreClock {
            rate: RATE_ONE,
            since: (Duration::ZERO, start),
            wall_offset_ms,
        }
    }

    /// Sets the rate of the monotonic clock, in microseconds per true second.
    ///
    /// # Panics
    /// If the rate is 0.
    pub fn set_rate(&mut self, now: Duration, rate: u64) {
        assert!(rate > 0, "a clock must advance");
        self.since = (now, self.monotonic(now));
        self.rate = rate;
    }

    /// Steps the wall clock.
    pub fn step_wall(&mut self, by_ms: i64) {
        self.wall_offset_ms = self.wall_offset_ms.saturating_add(by_ms);
    }

    /// Sets the wall clock so far ahead (positive) or behind.
    pub fn set_wall_offset(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }

    /// What the store's monotonic clock shows at a true time.
    #[must_use]
    pub fn monotonic(&self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.since.0).as_nanos();
        self.since.1 + nanoseconds(passed * u128::from(self.rate) / u128::from(RATE_ONE))
    }

    /// True time that passes while the store's clock advances by `local`.
    #[must_use]
    pub fn true_length(&self, local: Duration) -> Duration {
        nanoseconds(local.as_nanos() * u128::from(RATE_ONE) / u128::from(self.rate))
    }

    /// Both clocks at a true time.
    #[must_use]
    pub fn now(&self, now: Duration) -> Now {
        let wall_ms = WALL_START_MS + now.as_millis() as u64;
        Now {
            monotonic: self.monotonic(now),
            wall_ms: wall_ms.saturating_add_signed(self.wall_offset_ms),
        }
    }
}

fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_changes_never_turn_the_clock_back() {
        let mut clock = StoreClock::new(Duration::from_secs(5), -30);
        let mut last = clock.monotonic(Duration::ZERO);
        assert_eq!(last, Duration::from_secs(5));
        for (second, rate) in [(1, 500_000), (2, 2_000_000), (3, 1), (4, RATE_ONE)] {
            let now = Duration::from_secs(second);
            clock.set_rate(now, rate);
            assert!(clock.monotonic(now) >= last);
            last = clock.monotonic(now);
        }
        assert_eq!(
            clock.monotonic(Duration::from_secs(5)),
            last + Duration::from_secs(1)
        );
        assert_eq!(clock.now(Duration::ZERO).wall_ms, WALL_START_MS - 30);
    }

    #[test]
    fn slow_clock_takes_longer_for_a_tick() {
        let mut clock = StoreClock::new(Duration::ZERO, 0);
        clock.set_rate(Duration::ZERO, 500_000);
        let tick = Duration::from_millis(50);
        assert_eq!(clock.true_length(tick), tick * 2);
        assert_eq!(clock.monotonic(tick * 2), tick);
    }
}
