//! The kinds of trouble that a random schedule can make, and the mixtures that are tested.

use std::time::Duration;

use crate::harness::faults::Fault;

/// Which kinds of trouble a schedule makes, each as a weight among the actions.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Length of the troubled part.
    pub span: Duration,
    /// Network on and off: unreliable, reordering, duplicates, long delays.
    pub weather: u32,
    /// Cut a server off, cut a link one way, split the group, heal.
    pub partitions: u32,
    /// Crash a server; restart one.
    pub crashes: u32,
    /// Let a server stand still for up to a second.
    pub pauses: u32,
    /// Change the membership.
    pub membership: u32,
    /// Hand leadership over; call `campaign`.
    pub transfers: u32,
    /// Ask for a read point.
    pub reads: u32,
    /// The service takes snapshots.
    pub snapshots: bool,
    /// How far clocks drift, in millionths.
    pub drift_ppm: u64,
    /// What is broken on purpose.
    pub fault: Option<Fault>,
}

impl Schedule {
    /// Nothing but proposals.
    const QUIET: Schedule = Schedule {
        span: Duration::from_secs(10),
        weather: 0,
        partitions: 0,
        crashes: 0,
        pauses: 0,
        membership: 0,
        transfers: 0,
        reads: 0,
        snapshots: false,
        drift_ppm: 0,
        fault: None,
    };
    /// A bad network.
    pub const NETWORK: Schedule = Schedule {
        weather: 2,
        partitions: 5,
        ..Self::QUIET
    };
    /// Servers that crash and lose what they had not synced.
    pub const CRASHES: Schedule = Schedule {
        weather: 1,
        partitions: 3,
        crashes: 8,
        ..Self::QUIET
    };
    /// Logs that are cut off and followers that need snapshots.
    pub const SNAPSHOTS: Schedule = Schedule {
        weather: 1,
        partitions: 4,
        crashes: 3,
        snapshots: true,
        ..Self::QUIET
    };
    /// Members that come and go, one by one and jointly.
    pub const MEMBERSHIP: Schedule = Schedule {
        weather: 1,
        partitions: 2,
        crashes: 3,
        membership: 10,
        transfers: 2,
        snapshots: true,
        ..Self::QUIET
    };
    /// Reads by lease and by quorum while leaders change and clocks drift by up to 5 %.
    pub const READS: Schedule = Schedule {
        weather: 1,
        partitions: 12,
        crashes: 2,
        pauses: 4,
        transfers: 5,
        reads: 20,
        drift_ppm: 50_000,
        ..Self::QUIET
    };
    /// All of it.
    pub const EVERYTHING: Schedule = Schedule {
        weather: 1,
        partitions: 4,
        crashes: 4,
        pauses: 2,
        membership: 5,
        transfers: 3,
        reads: 8,
        snapshots: true,
        drift_ppm: 50_000,
        ..Self::QUIET
    };
}
