//! Timestamps: strictly rising over restarts and changes of the leader.
//!
//! A timestamp is a physical part in milliseconds since 1970 and a logical part of 18
//! bits. The leader of region 1 gives them out below a mark that it has had replicated
//! first; a new leader begins at the mark it finds, so above all that was ever given out.
//!
//! Lead      [`TimestampOracle::lead`] with the mark read from the system region.
//! Grant     [`TimestampOracle::grant`] answers with a timestamp, or says which mark has
//!           to be replicated first; then [`TimestampOracle::reserved`], and ask again.
//! Step down Nothing is given out any more.
//!
//! Invariants
//! * Every timestamp given out is greater than all before it, also those of former leaders.
//! * All timestamps of one batch share a physical part, which lies below the mark.

/// Bits of the logical part.
const LOGICAL_BITS: u32 = 18;
/// Logical parts of one millisecond.
const LOGICAL_END: u64 = 1 << LOGICAL_BITS;

/// What the oracle answers to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The last timestamp of the batch; the batch is `logical - count + 1 ..= logical`.
    Timestamp {
        /// Milliseconds since 1970.
        physical_ms: u64,
        /// The logical part of the last timestamp.
        logical: u64,
    },
    /// Replicate this mark, tell [`TimestampOracle::reserved`], and ask again.
    Reserve {
        /// Milliseconds since 1970.
        until_ms: u64,
    },
}

/// Why the oracle gives out nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OracleError {
    /// This store does not lead region 1, or its lease does not hold.
    #[error("this store does not hold the lease of the scheduler")]
    NotLeading,
    /// A batch holds 1 to 2^18 - 1 timestamps.
    #[error("{0} timestamps cannot be given out at once")]
    BadCount(u32),
}

/// Gives out timestamps while this store leads region 1.
#[derive(Debug, Clone)]
pub struct TimestampOracle {
    window_ms: u64,
    leading: bool,
    /// Physical part of the last timestamp.
    physical_ms: u64,
    /// Logical part of the last timestamp.
    logical: u64,
    /// The mark: replicated, nothing at or above it is given out.
    reserved_until_ms: u64,
}

impl TimestampOracle {
    /// An oracle that does not lead yet. `window_ms`: how far ahead a mark is set, at
    /// least 1.
    pub fn new(window_ms: u64) -> Self {
        TimestampOracle {
            window_ms: window_ms.max(1),
            leading: false,
            physical_ms: 0,
            logical: 0,
            reserved_until_ms: 0,
        }
    }

    /// Takes up the lead with the mark that the system region holds. Nothing is given out
    /// until a higher mark is replicated.
    pub fn lead(&mut self, reserved_until_ms: u64) {
        self.leading = true;
        self.reserved_until_ms = reserved_until_ms;
        self.physical_ms = self.physical_ms.max(reserved_until_ms);
        self.logical = 0;
    }

    /// Gives the lead up.
    pub fn step_down(&mut self) {
        self.leading = false;
    }

    /// Asks for `count` timestamps. `wall_ms` is the wall clock; it may step either way.
    /// `lease_holds`: the lease of region 1 was found to hold after the request came in.
    ///
    /// # Errors
    /// [`OracleError`].
    pub fn grant(
        &mut self,
        count: u32,
        wall_ms: u64,
        lease_holds: bool,
    ) -> Result<Grant, OracleError> {
        if !self.leading || !lease_holds {
            return Err(OracleError::NotLeading);
        }
        let wanted = u64::from(count);
        if wanted == 0 || wanted >= LOGICAL_END {
            return Err(OracleError::BadCount(count));
        }
        let (physical_ms, used) = if wall_ms > self.physical_ms {
            (wall_ms, 0)
        } else if self.logical + wanted < LOGICAL_END {
            (self.physical_ms, self.logical)
        } else {
            (self.physical_ms + 1, 0)
        };
        if physical_ms >= self.reserved_until_ms {
            return Ok(Grant::Reserve {
                until_ms: physical_ms + self.window_ms,
            });
        }
        self.physical_ms = physical_ms;
        self.logical = used + wanted;
        Ok(Grant::Timestamp {
            physical_ms,
            logical: self.logical,
        })
    }

    /// The mark `until_ms` is replicated. Marks never fall.
    pub fn reserved(&mut self, until_ms: u64) {
        self.reserved_until_ms = self.reserved_until_ms.max(until_ms);
    }

    /// The mark to replicate ahead of need: less than half of the window is left.
    pub fn wants_reserve(&self, wall_ms: u64) -> Option<u64> {
        let at = wall_ms.max(self.physical_ms);
        (self.leading && self.reserved_until_ms < at + self.window_ms / 2)
            .then_some(at + self.window_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grants, replicating every mark that is asked for.
    fn take(oracle: &mut TimestampOracle, count: u32, wall_ms: u64) -> (u64, u64) {
        loop {
            match oracle.grant(count, wall_ms, true).unwrap() {
                Grant::Reserve { until_ms } => oracle.reserved(until_ms),
                Grant::Timestamp {
                    physical_ms,
                    logical,
                } => return (physical_ms, logical),
            }
        }
    }

    fn leading(mark: u64) -> TimestampOracle {
        let mut oracle = TimestampOracle::new(3_000);
        oracle.lead(mark);
        oracle
    }

    #[test]
    fn nothing_is_given_out_before_a_mark_is_replicated() {
        let mut oracle = leading(0);
        assert_eq!(
            oracle.grant(1, 10_000, true),
            Ok(Grant::Reserve { until_ms: 13_000 })
        );
        oracle.reserved(13_000);
        assert_eq!(
            oracle.grant(1, 10_000, true),
            Ok(Grant::Timestamp {
                physical_ms: 10_000,
                logical: 1
            })
        );
    }

    #[test]
    fn a_batch_names_its_last_timestamp_and_stays_in_one_millisecond() {
        let mut oracle = leading(0);
        assert_eq!(take(&mut oracle, 64, 10_000), (10_000, 64));
        assert_eq!(take(&mut oracle, 1, 10_000), (10_000, 65));
        let rest = (LOGICAL_END - 1 - 65) as u32;
        assert_eq!(take(&mut oracle, rest, 10_000), (10_000, LOGICAL_END - 1));
        assert_eq!(take(&mut oracle, 2, 10_000), (10_001, 2));
        // A batch that does not fit in what is left moves on as a whole.
        let large = (LOGICAL_END - 1) as u32;
        assert_eq!(take(&mut oracle, large, 10_000), (10_002, LOGICAL_END - 1));
    }

    #[test]
    fn timestamps_rise_whatever_the_wall_clock_does() {
        let mut oracle = leading(0);
        let mut last = (0, 0);
        for wall in [10_000, 9_000, 10_001, 1, 20_000, 19_999] {
            let (physical, logical) = take(&mut oracle, 5, wall);
            assert!(
                (physical, logical - 4) > last,
                "{last:?} then {physical} {logical}"
            );
            last = (physical, logical);
        }
    }

    #[test]
    fn a_new_leader_begins_above_all_that_was_given_out() {
        let mut old = leading(0);
        let (physical, _) = take(&mut old, 1, 50_000);
        assert!(physical < 53_000, "the mark of the old leader");
        // The new leader's clock is far behind.
        let mut new = leading(53_000);
        let (first, _) = take(&mut new, 1, 1_000);
        assert!(first >= 53_000, "{first} is below the old mark");
    }

    #[test]
    fn no_lease_or_no_lead_gives_out_nothing() {
        let mut oracle = leading(0);
        oracle.reserved(100_000);
        assert_eq!(oracle.grant(1, 10, false), Err(OracleError::NotLeading));
        assert!(oracle.grant(1, 10, true).is_ok());
        oracle.step_down();
        assert_eq!(oracle.grant(1, 10, true), Err(OracleError::NotLeading));
        assert_eq!(oracle.wants_reserve(10), None);
    }

    #[test]
    fn a_count_that_fits_no_millisecond_is_refused() {
        let mut oracle = leading(0);
        for count in [0, LOGICAL_END as u32, u32::MAX] {
            assert_eq!(
                oracle.grant(count, 10, true),
                Err(OracleError::BadCount(count))
            );
        }
    }

    #[test]
    fn the_mark_is_raised_ahead_of_need() {
        let mut oracle = leading(0);
        oracle.reserved(13_000);
        assert_eq!(oracle.wants_reserve(10_000), None);
        assert_eq!(oracle.wants_reserve(12_000), Some(15_000));
    }
}
