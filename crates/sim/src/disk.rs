//! How the simulated disks behave.
//!
//! Both engines of a store are in memory. Here is how long their writes take, and what a crash
//! leaves.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use strata_storage::{Engines, MemEngine};

use crate::network::between;

/// Times of the disks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disk {
    /// Shortest and longest sync of the raft engine.
    pub sync: (Duration, Duration),
    /// Shortest and longest wait for an apply shard, and for its write.
    pub apply: (Duration, Duration),
    /// Shortest and longest wait of a read for its reader.
    pub read: (Duration, Duration),
    /// Shortest and longest wait for the turn of a worker: the region worker, the log gc
    /// worker.
    pub worker: (Duration, Duration),
}

impl Disk {
    /// A good disk: syncs of up to 2 ms.
    #[must_use]
    pub fn good() -> Self {
        Disk {
            sync: (Duration::from_micros(100), Duration::from_millis(2)),
            apply: (Duration::from_micros(20), Duration::from_millis(1)),
            read: (Duration::ZERO, Duration::from_millis(2)),
            worker: (Duration::from_micros(20), Duration::from_millis(2)),
        }
    }

    /// A disk that stalls: syncs of up to 120 ms, applying and reading in up to 60 ms.
    #[must_use]
    pub fn slow() -> Self {
        Disk {
            sync: (Duration::from_millis(1), Duration::from_millis(120)),
            apply: (Duration::from_micros(100), Duration::from_millis(60)),
            read: (Duration::ZERO, Duration::from_millis(60)),
            worker: (Duration::from_micros(100), Duration::from_millis(120)),
        }
    }

    /// A good disk of a machine whose other threads hardly run: apply shards, readers and
    /// workers get their turns up to a second late.
    #[must_use]
    pub fn late_workers() -> Self {
        Disk {
            apply: (Duration::from_micros(20), Duration::from_millis(300)),
            read: (Duration::ZERO, Duration::from_millis(300)),
            worker: (Duration::from_millis(10), Duration::from_secs(1)),
            ..Disk::good()
        }
    }

    pub(crate) fn sync_time(&self, rng: &mut ChaCha8Rng) -> Duration {
        between(rng, self.sync)
    }

    pub(crate) fn read_time(&self, rng: &mut ChaCha8Rng) -> Duration {
        between(rng, self.read)
    }

    pub(crate) fn worker_time(&self, rng: &mut ChaCha8Rng) -> Duration {
        between(rng, self.worker)
    }

    pub(crate) fn apply_time(&self, rng: &mut ChaCha8Rng) -> Duration {
        between(rng, self.apply)
    }
}

/// How a store ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The power goes: each engine keeps a random prefix of its unsynced batches.
    Power,
    /// The process is killed: the operating system still writes everything.
    Kill,
}

/// What a crash leaves of a store's engines, each for itself. `lying`: no sync was done.
pub(crate) fn after_crash(
    engines: &Engines<MemEngine>,
    crash: Crash,
    lying: bool,
    rng: &mut ChaCha8Rng,
) -> Engines<MemEngine> {
    let left = |engine: &MemEngine, rng: &mut ChaCha8Rng| match crash {
        Crash::Kill => engine.kill(),
        Crash::Power if lying => engine.crash_keeping(0),
        Crash::Power => engine.crash(rng),
    };
    let kv = left(&engines.kv, rng);
    let raft = left(&engines.raft, rng);
    Engines::new(kv, raft)
}
