//! Settings of one simulated group.

use std::time::Duration;

use strata_raft::{Index, PeerId};

use super::faults::Fault;

/// Time between two ticks on a server's own clock.
pub const TICK: Duration = Duration::from_millis(50);
/// Smallest election timeout: 8 ticks.
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(400);
/// Commands after which the service takes a snapshot in 2D, as in the course.
pub const SNAPSHOT_INTERVAL: Index = 10;

/// Settings of one simulated group; `new` gives the course's.
#[derive(Clone, Debug)]
pub struct Options {
    /// From which all randomness of the run comes.
    pub seed: u64,
    /// The first members, all voters.
    pub voters: Vec<PeerId>,
    /// The service takes a snapshot and drops the log at every multiple of this index.
    pub snapshot_interval: Option<Index>,
    /// Entries kept in the log behind a snapshot, for followers a little behind.
    pub kept_entries: Index,
    /// A snapshot is there on every n-th request for one; in between it is being made.
    pub snapshot_every: u64,
    /// How long a write takes to be durable, in microseconds.
    pub sync_us: (u64, u64),
    /// How long the service takes to apply what it was given, in microseconds.
    pub apply_us: (u64, u64),
    /// How far clocks run from the right speed, in millionths, each way.
    pub drift_ppm: u64,
    /// The caller hears of lost requests, as a broken connection would tell it.
    pub reports_failures: bool,
    /// A crash may leave the service's state as far as it was applied, and not only the
    /// last checkpoint.
    pub service_may_survive: bool,
    /// Bytes of entries in one append; small ones exercise the in-flight window.
    pub bytes_per_message: u64,
    /// Appends on their way to one follower.
    pub inflight_messages: usize,
    /// What is broken on purpose.
    pub fault: Option<Fault>,
}

impl Options {
    /// A healthy group of `servers` with ids from 1: 1 ms of flight, 1 ms a sync.
    pub fn new(servers: u64, seed: u64) -> Self {
        Self {
            seed,
            voters: (1..=servers).collect(),
            snapshot_interval: None,
            kept_entries: 0,
            snapshot_every: 1,
            sync_us: (1_000, 1_000),
            apply_us: (0, 0),
            drift_ppm: 0,
            reports_failures: true,
            service_may_survive: false,
            bytes_per_message: 1 << 20,
            inflight_messages: 256,
            fault: None,
        }
    }
}
