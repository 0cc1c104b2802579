//! Where the time of a write goes: a histogram for each stage of its way through the store.
//!
//! A write that is executed and answered passes these on the leader, each of which ends where
//! the next one begins:
//!
//! | stage | ends when |
//! |---|---|
//! | `inbox` | the region's shard takes the request; it begins when the gate does |
//! | `propose` | the flush begins that proposes its entry and sends it out |
//! | `commit` | the flush begins that finds it committed and synced here |
//! | `apply_queue` | the batch that it is in is begun |
//! | `apply_write` | the batch is executed and written to the kv engine |
//! | `reply` | the answers of the batch are delivered |
//!
//! `total` goes from the beginning of `inbox` to the end of `reply`. All are counted once for
//! each write, at the end of it: their counts are equal and their sums add up to that of
//! `total`. A write that is refused, or whose sender no longer waits, is in none of them.
//!
//! Two more are counted once for each log batch that is to be synced, on leaders and followers
//! alike; on a leader they are a part of `commit`:
//!
//! | stage | from, to |
//! |---|---|
//! | `log_queue` | the shard hands the batch over, the log writer takes it |
//! | `log_write` | the log writer begins to gather batches, they are written and synced |
//!
//! A flush reads the clock as it begins, so what the shard does in it counts to the stage
//! behind it.
//!
//! The core only carries times that its events brought. Where time passes between two events
//! the runtime reads the clock, once for a batch.

use std::time::Duration;

use crate::histogram::Histogram;
use crate::task::PendingRequest;

/// A histogram for each stage. See the module for what begins and ends each.
#[derive(Debug, Default)]
pub struct WriteStages {
    inbox: Histogram,
    propose: Histogram,
    log_queue: Histogram,
    log_write: Histogram,
    commit: Histogram,
    apply_queue: Histogram,
    apply_write: Histogram,
    reply: Histogram,
    total: Histogram,
}

/// When a write passed the stages before its entry was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteTimes {
    /// In whole microseconds of the driver's clock, as the others.
    arrived_us: u64,
    taken_us: u64,
    proposed_us: u64,
}

/// A write that is executed, with a reply that can be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExecutedWrite {
    /// When it was proposed, and what was before that.
    pub times: WriteTimes,
    /// When its entry was handed to apply, by the driver's clock.
    pub committed: Duration,
}

/// When the batch of an apply shard passed each stage, by the driver's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchTimes {
    /// Its execution began.
    pub begun: Duration,
    /// It was in the kv engine.
    pub written: Duration,
    /// Its answers were delivered.
    pub answered: Duration,
}

impl WriteTimes {
    /// Those of a write that is proposed at a time of the driver's clock.
    pub(crate) fn proposed(pending: &PendingRequest, at: Duration) -> Self {
        WriteTimes {
            arrived_us: micros(pending.arrived),
            taken_us: micros(pending.taken),
            proposed_us: micros(at),
        }
    }
}

impl WriteStages {
    /// Every stage with its name, in the order of a write's way.
    pub fn each(&self) -> [(&'static str, &Histogram); 9] {
        [
            ("inbox", &self.inbox),
            ("propose", &self.propose),
            ("commit", &self.commit),
            ("log_queue", &self.log_queue),
            ("log_write", &self.log_write),
            ("apply_queue", &self.apply_queue),
            ("apply_write", &self.apply_write),
            ("reply", &self.reply),
            ("total", &self.total),
        ]
    }

    /// Records the writes of a batch, in the order of their entries.
    pub(crate) fn record_batch(&self, writes: &[ExecutedWrite], batch: &BatchTimes) {
        if writes.is_empty() {
            return;
        }
        let (begun, written, answered) = (
            micros(batch.begun),
            micros(batch.written),
            micros(batch.answered),
        );
        let count = writes.len() as u64;
        for ExecutedWrite { times, .. } in writes {
            self.inbox
                .record(between(times.arrived_us, times.taken_us), 1);
            self.propose
                .record(between(times.taken_us, times.proposed_us), 1);
        }
        // What shares an entry, or a flush, was committed together.
        let together = |one: &ExecutedWrite, next: &ExecutedWrite| {
            (one.times.proposed_us, one.committed) == (next.times.proposed_us, next.committed)
        };
        for same in writes.chunk_by(together) {
            let (count, committed) = (same.len() as u64, micros(same[0].committed));
            let proposed = same[0].times.proposed_us;
            self.commit.record(between(proposed, committed), count);
            self.apply_queue.record(between(committed, begun), count);
        }
        self.apply_write.record(between(begun, written), count);
        self.reply.record(between(written, answered), count);
        for ExecutedWrite { times, .. } in writes {
            self.total.record(between(times.arrived_us, answered), 1);
        }
    }

    /// Records how long a log batch waited for the log writer.
    pub(crate) fn record_log_queue(&self, handed_over: Duration, taken: Duration) {
        let waited = between(micros(handed_over), micros(taken));
        self.log_queue.record(waited, 1);
    }

    /// Records how long the log writer took to write and sync what it had gathered.
    pub(crate) fn record_log_write(&self, begun: Duration, synced: Duration) {
        self.log_write
            .record(between(micros(begun), micros(synced)), 1);
    }
}

/// A time of the driver's clock in whole microseconds, enough for 584,000 years.
fn micros(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())
}

/// The clock never goes back. Two threads that read it at once may be seen in either order.
fn between(from_us: u64, to_us: u64) -> u64 {
    to_us.saturating_sub(from_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(time: u64) -> Duration {
        Duration::from_micros(time)
    }

    fn write(arrived: u64, taken: u64, proposed: u64, committed: u64) -> ExecutedWrite {
        ExecutedWrite {
            times: WriteTimes {
                arrived_us: arrived,
                taken_us: taken,
                proposed_us: proposed,
            },
            committed: us(committed),
        }
    }

    /// Count and sum of each stage.
    fn found(stages: &WriteStages) -> Vec<(&'static str, u64, u64)> {
        let all = stages.each().into_iter();
        all.map(|(name, histogram)| {
            let found = histogram.snapshot();
            (name, found.count, found.sum_us)
        })
        .collect()
    }

    #[test]
    fn the_stages_of_a_batch_add_up_to_the_total() {
        let stages = WriteStages::default();
        // Two writes of an entry, one of the next entry, one of another region.
        let writes = [
            write(1_000, 1_010, 1_100, 3_000),
            write(1_005, 1_050, 1_100, 3_000),
            write(1_200, 1_200, 1_300, 3_000),
            write(1_000, 1_010, 1_100, 3_100),
        ];
        let batch = BatchTimes {
            begun: us(3_500),
            written: us(3_900),
            answered: us(4_000),
        };
        stages.record_batch(&writes, &batch);
        let expected = [
            ("inbox", 4, 10 + 45 + 10),
            ("propose", 4, 90 + 50 + 100 + 90),
            ("commit", 4, 1_900 + 1_900 + 1_700 + 2_000),
            ("log_queue", 0, 0),
            ("log_write", 0, 0),
            ("apply_queue", 4, 500 + 500 + 500 + 400),
            ("apply_write", 4, 4 * 400),
            ("reply", 4, 4 * 100),
            ("total", 4, 3_000 + 2_995 + 2_800 + 3_000),
        ];
        assert_eq!(found(&stages), expected);
        let parts: u64 = expected[..8].iter().map(|(_, _, sum)| sum).sum();
        assert_eq!(parts, expected[8].2);
    }

    #[test]
    fn a_batch_without_writes_records_nothing() {
        let stages = WriteStages::default();
        let batch = BatchTimes {
            begun: us(1),
            written: us(2),
            answered: us(3),
        };
        stages.record_batch(&[], &batch);
        assert!(
            found(&stages)
                .iter()
                .all(|(_, count, sum)| (*count, *sum) == (0, 0))
        );
    }

    #[test]
    fn log_batches_are_counted_each_and_a_clock_seen_out_of_order_is_no_time() {
        let stages = WriteStages::default();
        stages.record_log_queue(us(100), us(130));
        stages.record_log_queue(us(140), us(130));
        stages.record_log_write(us(130), us(1_130));
        let all = found(&stages);
        assert!(all.contains(&("log_queue", 2, 30)), "{all:?}");
        assert!(all.contains(&("log_write", 1, 1_000)), "{all:?}");
    }
}
