//! Settings of one replica.
//!
//! Timeouts appear twice: as ticks, which drive elections and heartbeats, and as a duration
//! on the driver's clock, on which leases and the withholding of votes rely. Ticks may come
//! late or be dropped; the duration may not be stretched by that.

use std::time::Duration;

use crate::error::Error;
use crate::types::{Index, NO_PEER, PeerId};

/// Settings of one replica. `Default` gives everything but `id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Identity of this replica. Not 0.
    pub id: PeerId,
    /// Smallest number of ticks without word from a leader after which a follower
    /// campaigns; also the interval of a leader's quorum check. Default 8: 400 ms at 50 ms.
    pub election_ticks: usize,
    /// End of the range, exclusive, from which each election timeout is drawn:
    /// `election_ticks..election_ticks_max`. Default 16.
    pub election_ticks_max: usize,
    /// Ticks between two heartbeat rounds of a leader. Default 2.
    pub heartbeat_ticks: usize,
    /// The smallest election timeout on the driver's clock. Votes are withheld for that long
    /// after word from a leader; leases are shorter by `max_clock_drift_percent`.
    /// Default 400 ms.
    pub election_timeout: Duration,
    /// How far the clocks' rates of two stores may differ, in percent of the lease.
    /// Default 10.
    pub max_clock_drift_percent: u32,
    /// Highest index applied to the state machine when the replica starts. 0 means: up to
    /// the truncation point.
    pub applied: Index,
    /// Bytes of entries in one append message; one entry always goes. Default 1 MiB.
    pub max_bytes_per_message: u64,
    /// Append messages on their way to one follower. Default 256.
    pub max_inflight_messages: usize,
    /// Bytes of entries proposed here and not yet committed; proposals beyond are refused.
    /// The first always goes. Default: no limit.
    pub max_uncommitted_bytes: u64,
    /// Bytes of committed entries in one Ready; one entry always goes. Default: no limit.
    pub max_committed_bytes_per_ready: u64,
    /// A leader that has not heard from a quorum for `election_ticks` steps down, and votes
    /// are withheld while a leader is alive. Leases need it. Default true.
    pub check_quorum: bool,
    /// Ask before raising the term. Default true.
    pub pre_vote: bool,
    /// The commit index travels with the next append or heartbeat and has no message of its
    /// own, so that followers apply up to `heartbeat_ticks` later. It still leaves at once
    /// while a membership change or a transfer of leadership is under way, and to a follower
    /// whose read waits for it, where its log is known to match. Default false.
    pub lazy_commit: bool,
    /// Neither vote nor campaign for one `election_timeout` after the start: what was
    /// promised to a leader before a crash is forgotten, so it is taken to be promised at
    /// the last moment. False only for a replica that cannot have promised anything, as one
    /// whose hard state is still that of the bootstrap. Default true.
    pub quiet_after_start: bool,
    /// Seed of the election timeouts. Replicas of a group need different ones; the id is
    /// mixed in.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: NO_PEER,
            election_ticks: 8,
            election_ticks_max: 16,
            heartbeat_ticks: 2,
            election_timeout: Duration::from_millis(400),
            max_clock_drift_percent: 10,
            applied: 0,
            max_bytes_per_message: 1 << 20,
            max_inflight_messages: 256,
            max_uncommitted_bytes: u64::MAX,
            max_committed_bytes_per_ready: u64::MAX,
            check_quorum: true,
            pre_vote: true,
            lazy_commit: false,
            quiet_after_start: true,
            seed: 0,
        }
    }
}

impl Config {
    /// Refuses settings under which the protocol cannot work.
    pub fn check(&self) -> Result<(), Error> {
        let rules = [
            (self.id != NO_PEER, "the id is 0"),
            (self.heartbeat_ticks > 0, "heartbeat_ticks is 0"),
            (
                self.election_ticks > self.heartbeat_ticks,
                "election_ticks is not above heartbeat_ticks",
            ),
            (
                self.election_ticks_max > self.election_ticks,
                "election_ticks_max is not above election_ticks",
            ),
            (self.max_inflight_messages > 0, "max_inflight_messages is 0"),
            (
                self.max_clock_drift_percent < 100,
                "max_clock_drift_percent is not below 100",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(Error::InvalidConfig(broken)),
            None => Ok(()),
        }
    }

    /// How long a quorum's acknowledgement keeps the leader's lease, counted from the moment
    /// the round was sent.
    pub fn lease(&self) -> Duration {
        let percent = 100u32.saturating_sub(self.max_clock_drift_percent);
        self.election_timeout * percent / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_need_only_an_id() {
        assert_eq!(
            Config::default().check(),
            Err(Error::InvalidConfig("the id is 0"))
        );
        let config = Config {
            id: 1,
            ..Config::default()
        };
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.lease(), Duration::from_millis(360));
    }

    #[test]
    fn contradictions_are_refused() {
        let good = Config {
            id: 1,
            ..Config::default()
        };
        let bad = [
            Config {
                heartbeat_ticks: 0,
                ..good.clone()
            },
            Config {
                election_ticks: 2,
                ..good.clone()
            },
            Config {
                election_ticks_max: 8,
                ..good.clone()
            },
            Config {
                max_inflight_messages: 0,
                ..good.clone()
            },
            Config {
                max_clock_drift_percent: 100,
                ..good.clone()
            },
        ];
        for config in bad {
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
