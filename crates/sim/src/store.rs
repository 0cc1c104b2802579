//! One simulated store: the production core, its engines, its clock, and the queues that
//! threads would have been.
//!
//! Inbox       Messages, ticks and answers gather; a step drains them all at once.
//! Log lanes   One per raft shard: a batch is written, then synced some time later, then
//!             answered; the next one starts after that. A crash falls in between.
//! Apply lanes One per apply shard: work is executed, its batch written some time later,
//!             then answered; the next work starts after that, as it reads the engine.
//!
//! Invariants
//! * A crash takes the core and all queues; the engines keep what [`disk`](crate::disk)
//!   says. Every life has a number, and what was scheduled in an earlier one is dropped.
//! * Within a lane nothing overtakes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use strata_raftstore::{
    ApplyWork, DataWrite, LogBatch, StoreCore, StoreEvent, StoreOptions, Workers,
};
use strata_storage::snapshot::MemFiles;
use strata_storage::{Engines, MemEngine};

use crate::clock::StoreClock;
use crate::cluster::Event;
use crate::disk::Disk;

/// A store of a simulated cluster.
pub struct SimStore {
    /// Settings of every life.
    pub options: StoreOptions,
    /// Its engines; those of the next life once it has crashed.
    pub engines: Engines<MemEngine>,
    /// Its snapshot files, of the next life once it has crashed.
    pub files: MemFiles,
    /// Its clocks.
    pub clock: StoreClock,
    /// Its disk.
    pub disk: Disk,
    /// The running core; `None` while it is down.
    pub core: Option<StoreCore<MemEngine>>,
    /// Counts the starts.
    pub(crate) life: u64,
    /// True time until which the process stands still.
    pub(crate) paused_until: Duration,
    /// What has come for the process since it stands still, in order.
    pub(crate) held: Vec<Event>,
    /// True time until which the raft shards stand still, while other threads go on.
    pub(crate) stalled_until: Duration,
    /// True: it came back with a new folder and takes no part any more.
    pub(crate) out: bool,
    pub(crate) inbox: Vec<StoreEvent>,
    pub(crate) step_scheduled: bool,
    /// Ticks that were missed and are to come in a burst, and when the last one came, by the
    /// store's clock: a planted fault.
    missed_ticks: u128,
    ticked_at: Option<Duration>,
    pub(crate) logs: Vec<LogLane>,
    pub(crate) applies: Vec<ApplyLane>,
    /// The workers of this life.
    pub(crate) workers: Option<Workers<MemEngine>>,
    /// Number of the region worker's next turn.
    pub(crate) region_turn: u64,
    /// Up to where the entries of regions were deleted in this life.
    pub(crate) log_gone: BTreeMap<u64, u64>,
}

/// Batches on their way into the raft engine.
#[derive(Debug, Default)]
pub(crate) struct LogLane {
    pub waiting: VecDeque<LogBatch>,
    /// Number of the batch that is written and not yet answered, and whether to sync it.
    pub writing: Option<(u64, bool)>,
}

/// Work on its way into the kv engine.
#[derive(Debug, Default)]
pub(crate) struct ApplyLane {
    pub waiting: VecDeque<ApplyWork>,
    /// Work is executed, or its batch is on the way to the engine.
    pub busy: bool,
    pub write: Option<DataWrite>,
}

impl SimStore {
    pub(crate) fn new(
        options: StoreOptions,
        engines: Engines<MemEngine>,
        clock: StoreClock,
        disk: Disk,
    ) -> Self {
        SimStore {
            options,
            engines,
            files: MemFiles::new(),
            clock,
            disk,
            core: None,
            life: 0,
            paused_until: Duration::ZERO,
            held: Vec::new(),
            stalled_until: Duration::ZERO,
            out: false,
            inbox: Vec::new(),
            step_scheduled: false,
            missed_ticks: 0,
            ticked_at: None,
            logs: Vec::new(),
            applies: Vec::new(),
            workers: None,
            region_turn: 0,
            log_gone: BTreeMap::new(),
        }
    }

    /// Begins a life with a core.
    pub(crate) fn start(&mut self, core: StoreCore<MemEngine>) {
        self.life += 1;
        self.workers = Some(core.workers(&self.options));
        self.core = Some(core);
        self.logs = (0..self.options.raft_shards)
            .map(|_| LogLane::default())
            .collect();
        self.applies = (0..self.options.apply_shards)
            .map(|_| ApplyLane::default())
            .collect();
    }

    /// Ends the life; the engines are for the caller to replace.
    pub(crate) fn stop(&mut self) {
        self.life += 1;
        self.core = None;
        self.workers = None;
        self.log_gone.clear();
        self.inbox.clear();
        self.step_scheduled = false;
        self.missed_ticks = 0;
        self.ticked_at = None;
        self.paused_until = Duration::ZERO;
        self.stalled_until = Duration::ZERO;
        self.logs.clear();
        self.applies.clear();
    }

    /// True if it came back with a new folder and takes no part any more.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.out
    }

    /// A tick has come; counts those that were due since the one before, and this one if it is
    /// dropped because another one waits.
    pub(crate) fn miss_ticks(&mut self, now: Duration, waiting: bool) {
        let local = self.clock.monotonic(now);
        let passed = local - self.ticked_at.replace(local).unwrap_or(local);
        let due = passed.as_nanos() / self.options.tick_interval.as_nanos().max(1);
        self.missed_ticks += due.saturating_sub(1) + u128::from(waiting);
    }

    /// Takes the ticks that were missed.
    pub(crate) fn take_missed_ticks(&mut self) -> impl Iterator<Item = StoreEvent> + use<> {
        (0..std::mem::take(&mut self.missed_ticks)).map(|_| StoreEvent::Tick)
    }

    /// True while the process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }
}
