//! How fast snapshots may be sent: a token bucket over all sends of a store.
//!
//! Bytes are taken before they are sent, also those that are not there yet: the taker
//! waits until they would be, and whoever comes next waits behind it. So sends share the
//! rate in the order in which they ask, whatever the size of their chunks.

use std::time::Duration;

/// Time for which an idle bucket gathers bytes.
const BURST_TIME: Duration = Duration::from_millis(100);

/// A token bucket.
#[derive(Debug)]
pub struct RateLimit {
    /// 0: no limit.
    bytes_per_second: u64,
    /// When all bytes that were taken are there. Behind the present time by at most
    /// [`BURST_TIME`] when bytes are taken.
    paid_until: Duration,
}

impl RateLimit {
    /// A bucket that is full at first. 0 bytes a second: no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        RateLimit {
            bytes_per_second,
            paid_until: Duration::ZERO,
        }
    }

    /// Takes bytes; returns how long to wait before they may be sent.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        let earliest = now.saturating_sub(BURST_TIME);
        self.paid_until = self.paid_until.max(earliest).saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn a_second_of_sending_takes_the_rate_and_one_burst() {
        let mut limit = RateLimit::new(100 * MB);
        let (mut now, mut sent) = (Duration::from_secs(9), 0);
        while now < Duration::from_secs(10) {
            now += limit.take(now, MB);
            sent += MB;
        }
        assert!((100 * MB..=111 * MB).contains(&sent), "{sent}");
    }

    #[test]
    fn two_sends_share_the_rate() {
        let mut limit = RateLimit::new(100 * MB);
        let mut free_at = [Duration::from_secs(9); 2];
        let mut sent = [0; 2];
        loop {
            let next = usize::from(free_at[1] < free_at[0]);
            let now = free_at[next];
            if now >= Duration::from_secs(10) {
                break;
            }
            // The second one has smaller chunks, and gets less.
            let bytes = MB / (1 + next as u64);
            free_at[next] += limit.take(now, bytes);
            sent[next] += bytes;
        }
        let total: u64 = sent.iter().sum();
        assert!((100 * MB..=112 * MB).contains(&total), "{sent:?}");
        assert!(sent[1] > 25 * MB, "neither starves: {sent:?}");
    }

    #[test]
    fn an_idle_hour_gathers_one_burst() {
        let mut limit = RateLimit::new(100 * MB);
        let now = Duration::from_secs(3600);
        assert_eq!(limit.take(now, 10 * MB), Duration::ZERO);
        assert_eq!(limit.take(now, MB), Duration::from_millis(10));
        // A clock that stands still, or bytes beyond all bounds, break nothing.
        assert!(limit.take(now, u64::MAX) > Duration::from_secs(1));
        let _ = limit.take(now, u64::MAX);
    }

    #[test]
    fn no_limit_never_waits() {
        let mut limit = RateLimit::new(0);
        assert_eq!(limit.take(Duration::ZERO, u64::MAX), Duration::ZERO);
    }
}
