//! When calls are sent: each client after its last answer, or all by a fixed rate.
//!
//! With a rate, call number i is due i/rate seconds after the start, whatever the server does.
//! Clients take the numbers in turn. One that is due is sent at once, also late; its latency
//! counts from when it was due, so a server that stalls is charged for all calls that it held
//! up, not only for those under way. At the end of the time the numbers that no client was free
//! to take remain unsent.
//!
//! The runtime's timer wakes to the next millisecond: below that, latencies are not exact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Of a second.
const NANOSECONDS: u128 = 1_000_000_000;

/// Says to the clients of a load when the next call is.
pub struct Schedule {
    started: Instant,
    length: Duration,
    rate: Option<u64>,
    /// The next number that nobody has taken.
    next: AtomicU64,
    sent: AtomicU64,
}

impl Schedule {
    /// A schedule that begins at `started`. A rate is in calls a second, at least one.
    pub fn new(started: Instant, length: Duration, rate: Option<u64>) -> Self {
        Self {
            started,
            length,
            rate,
            next: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// Waits until a call may be sent and says from when its latency counts; `None` when the
    /// time is over.
    pub async fn turn(&self) -> Option<Instant> {
        let Some(rate) = self.rate else {
            let now = Instant::now();
            return (now < self.started + self.length).then_some(now);
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= calls(rate, self.length) {
            return None;
        }
        let due = self.started + due_after(rate, number);
        let now = Instant::now();
        if now < due {
            tokio::time::sleep_until(due.into()).await;
        } else if now >= self.started + self.length {
            return None;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        Some(due)
    }

    /// Calls that were due and not sent; 0 without a rate.
    pub fn unsent(&self) -> u64 {
        let due = self.rate.map_or(0, |rate| calls(rate, self.length));
        due.saturating_sub(self.sent.load(Ordering::Relaxed))
    }
}

/// Calls that are due within the time.
fn calls(rate: u64, length: Duration) -> u64 {
    let calls = u128::from(rate) * length.as_nanos() / NANOSECONDS;
    u64::try_from(calls).unwrap_or(u64::MAX)
}

/// When a call is due, from the start.
fn due_after(rate: u64, number: u64) -> Duration {
    let nanoseconds = u128::from(number) * NANOSECONDS / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_due_at_equal_distances_and_none_is_lost_to_rounding() {
        let length = Duration::from_secs(10);
        assert_eq!(calls(3, length), 30);
        assert_eq!(due_after(3, 0), Duration::ZERO);
        assert_eq!(due_after(3, 1), Duration::from_nanos(333_333_333));
        assert_eq!(due_after(3, 3), Duration::from_secs(1));
        // The last one is due within the time, the one behind it is not.
        assert!(due_after(7_919, calls(7_919, length) - 1) < length);
        assert!(due_after(7_919, calls(7_919, length)) >= length);
        assert_eq!(calls(u64::MAX, Duration::from_secs(86_400)), u64::MAX);
    }

    #[tokio::test]
    async fn a_late_call_counts_from_when_it_was_due_and_the_rest_is_unsent() {
        // Thirty calls were due in the 7.5 seconds that are gone, and none was sent.
        let started = Instant::now() - Duration::from_millis(7_500);
        let schedule = Schedule::new(started, Duration::from_secs(86_400), Some(4));
        for number in 0..30 {
            let due = schedule.turn().await.unwrap();
            assert_eq!(due, started + Duration::from_millis(250 * number));
        }
        let over = Schedule::new(started, Duration::from_secs(2), Some(4));
        assert_eq!(over.turn().await, None);
        assert_eq!(over.unsent(), 8);
    }

    #[tokio::test]
    async fn a_call_is_not_sent_before_it_is_due() {
        // Starts a little later, so that a slow machine comes too early as well.
        let started = Instant::now() + Duration::from_millis(50);
        let length = Duration::from_secs(3_600);
        let schedule = Schedule::new(started, length, Some(10));
        for number in 0..2 {
            let due = schedule.turn().await.unwrap();
            assert_eq!(due, started + Duration::from_millis(100 * number));
            assert!(Instant::now() >= due);
        }
        // Behind the last call there is none.
        schedule.next.store(calls(10, length), Ordering::Relaxed);
        assert_eq!(schedule.turn().await, None);
        assert_eq!(schedule.unsent(), calls(10, length) - 2);
    }

    #[tokio::test]
    async fn without_a_rate_a_turn_is_now_until_the_time_is_over() {
        let started = Instant::now();
        let schedule = Schedule::new(started, Duration::from_secs(86_400), None);
        assert!(schedule.turn().await.unwrap() >= started);
        let over = Schedule::new(started, Duration::ZERO, None);
        assert_eq!(over.turn().await, None);
        assert_eq!(over.unsent(), 0);
    }
}
