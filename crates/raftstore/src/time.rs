//! The two clocks that a driver passes in with every event.

use std::time::Duration;

use strata_raft::planted;

/// The time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The driver's monotonic clock (CLOCK_BOOTTIME on a real machine). Never goes back.
    /// Deadlines, leases and elections are judged by it.
    pub monotonic: Duration,
    /// The wall clock in milliseconds since 1970. May step either way; it only ever
    /// enters replicated state through the log.
    pub wall_ms: u64,
}

/// The ticks of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticker {
    interval: Duration,
    /// When the next one is due, by the monotonic clock.
    due: Duration,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueTicks {
    /// Ticks to hand in.
    pub ticks: u64,
    /// Ticks that were missed, and are not handed in.
    pub missed: u64,
}

impl Ticker {
    /// Ticks every `interval` from `now` on.
    ///
    /// # Panics
    /// If the interval is zero.
    #[must_use]
    pub fn new(interval: Duration, now: Duration) -> Self {
        assert!(!interval.is_zero(), "ticks without time between them");
        Ticker {
            interval,
            due: now + interval,
        }
    }

    /// How long it is until the next tick.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// What is due at `now`; `None` before the next tick's time. However many were missed, one
    /// is handed in: a burst would make elections out of a pause.
    pub fn take(&mut self, now: Duration) -> Option<DueTicks> {
        let late = now.checked_sub(self.due)?;
        let missed = (late.as_nanos() / self.interval.as_nanos()) as u64;
        // After a pause of so many intervals that they cannot be counted the next call goes on.
        let passed = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        self.due = self
            .due
            .saturating_add(self.interval.saturating_mul(passed));
        match planted!(TickBurst) {
            true => Some(DueTicks {
                ticks: missed + 1,
                missed: 0,
            }),
            false => Some(DueTicks { ticks: 1, missed }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_dropped_and_the_rhythm_stays() {
        let ms = Duration::from_millis;
        let mut ticker = Ticker::new(ms(50), ms(1_000));
        assert_eq!(ticker.wait(ms(1_020)), ms(30));
        assert_eq!(ticker.take(ms(1_049)), None);
        let one = |missed| Some(DueTicks { ticks: 1, missed });
        assert_eq!(ticker.take(ms(1_050)), one(0));
        assert_eq!(ticker.take(ms(1_050)), None);
        // A pause of a second.
        assert_eq!(ticker.take(ms(2_110)), one(20));
        assert_eq!(ticker.wait(ms(2_110)), ms(40));
        assert_eq!(ticker.take(ms(2_150)), one(0));
    }
}
