//! A histogram of times, as plain atomics.
//!
//! Bounds are powers of two from 16 microseconds to about 8 seconds: fine enough to tell a
//! hand-over between threads from a sync, and few enough that a bucket is found by counting
//! bits. Times are whole microseconds, so that the sums of stages that follow each other add up
//! to the sum of the whole.
//!
//! A reader that comes while others record may find a time in a bucket and not in the sum, or
//! the other way round. The count is that of the buckets, so these two never differ.

use std::sync::atomic::{AtomicU64, Ordering};

/// The lowest bound is two to the power of this, in microseconds: 16.
const LOWEST_BOUND_LOG2: usize = 4;
/// Buckets that have a bound; the highest is 2^23 microseconds, about 8.4 seconds.
const BOUNDS: usize = 20;

/// A histogram of times that many threads may touch.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Times up to each bound and above the one before it; the last bucket has no bound.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

/// What a [`Histogram`] held at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Upper bounds in microseconds, inclusive and ascending, each with the number of times that
    /// are no longer than it.
    pub buckets: Vec<(u64, u64)>,
    /// The number of all times.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Records a time in microseconds, `times` times.
    pub fn record(&self, micros: u64, times: u64) {
        self.buckets[bucket_of(micros)].fetch_add(times, Ordering::Relaxed);
        let sum = micros.saturating_mul(times);
        self.sum_us.fetch_add(sum, Ordering::Relaxed);
    }

    /// What is recorded at present.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let sum_us = self.sum_us.load(Ordering::Relaxed);
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS);
        for (place, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if place < BOUNDS {
                buckets.push((1 << (LOWEST_BOUND_LOG2 + place), count));
            }
        }
        HistogramSnapshot {
            buckets,
            count,
            sum_us,
        }
    }
}

/// The place of the first bucket whose bound is not below a time.
fn bucket_of(micros: u64) -> usize {
    // The bits of what is just below a time are the logarithm of the power of two that is not
    // below it: 4 for 9 to 16, 5 for 17 to 32.
    let bits = (u64::BITS - micros.saturating_sub(1).leading_zeros()) as usize;
    bits.saturating_sub(LOWEST_BOUND_LOG2).min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_of_the_first_bound_that_is_not_below_it() {
        let bounds = Histogram::default().snapshot().buckets;
        assert_eq!(bounds.len(), BOUNDS);
        assert_eq!((bounds[0].0, bounds[19].0), (16, 8_388_608));
        for (place, (bound, _)) in bounds.into_iter().enumerate() {
            assert_eq!(bucket_of(bound - 1), place, "just below {bound}");
            assert_eq!(bucket_of(bound), place, "at {bound}");
            assert_eq!(bucket_of(bound + 1), place + 1, "just above {bound}");
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1), 0);
        assert_eq!(bucket_of(u64::MAX), BOUNDS);
    }

    #[test]
    fn a_snapshot_counts_up_to_each_bound_and_has_count_and_sum_of_all() {
        let histogram = Histogram::default();
        histogram.record(16, 1);
        histogram.record(17, 3);
        histogram.record(100, 1);
        histogram.record(9_000_000, 2);
        let found = histogram.snapshot();
        assert_eq!(
            found.buckets[..4],
            [(16, 1), (32, 4), (64, 4), (128, 5)],
            "cumulative"
        );
        assert_eq!(
            found.buckets[19],
            (8_388_608, 5),
            "two are above all bounds"
        );
        assert_eq!(found.count, 7);
        assert_eq!(found.sum_us, 16 + 3 * 17 + 100 + 2 * 9_000_000);
    }

    #[test]
    fn nothing_recorded_is_an_empty_histogram() {
        let found = Histogram::default().snapshot();
        assert_eq!((found.count, found.sum_us), (0, 0));
        assert!(found.buckets.iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn what_several_threads_record_is_all_there() {
        const THREADS: u64 = 4;
        const TIMES: u64 = 10_000;
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let histogram = &histogram;
                scope.spawn(move || {
                    for time in 0..TIMES {
                        histogram.record(time + thread, 1);
                    }
                });
            }
        });
        let found = histogram.snapshot();
        assert_eq!(found.count, THREADS * TIMES);
        let below = THREADS * TIMES * (TIMES - 1) / 2;
        assert_eq!(found.sum_us, below + TIMES * (1 + 2 + 3));
        // Of the times 0 to 16: 17 of the first thread, one less of each that follows.
        assert_eq!(found.buckets[0], (16, 17 + 16 + 15 + 14));
    }
}
