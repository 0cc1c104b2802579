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
    ApplyWork, DataWrite, LogBatch, StoreCore, StoreEvent, StoreOptions, Ticker, Workers,
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
    /// The ticks of this life, by the store's clock.
    ticker: Option<Ticker>,
    pub(crate) logs: Vec<LogLane>,
    pub(crate) applies: Vec<ApplyLane>,
    /// The workers of this life.
    pub(crate) workers: Option<Workers<MemEngine>>,
    /// Number of the region worker's next turn.
    pub(crate) region_turn: u64,
    /// Up to where the entries of regions were deleted in this life.
    pub(crate) log_gone: BTreeMap<u64, u64>,
    /// Where the logs of regions were truncated when this life began, unless it is the first.
    pub(crate) truncated_at_start: BTreeMap<u64, u64>,
}

/// Batches on their way into the raft engine.
#[derive(Debug, Default)]
pub(crate) struct LogLane {
    pub waiting: VecDeque<LogBatch>,
    /// The batch that is written and not yet answered; its changes are in the engine.
    pub writing: Option<LogBatch>,
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
            ticker: None,
            logs: Vec::new(),
            applies: Vec::new(),
            workers: None,
            region_turn: 0,
            log_gone: BTreeMap::new(),
            truncated_at_start: BTreeMap::new(),
        }
    }

    /// Begins a life with a core, at a true time.
    pub(crate) fn start(&mut self, core: StoreCore<MemEngine>, now: Duration) {
        self.life += 1;
        let interval = self.options.tick_interval;
        self.ticker = Some(Ticker::new(interval, self.clock.monotonic(now)));
        if self.life > 1 {
            let peers = core.shards().iter().flat_map(|shard| shard.peers());
            let truncated = peers.map(|peer| {
                let storage = peer.raft().storage();
                (peer.region_id(), storage.truncated().index)
            });
            self.truncated_at_start = truncated.collect();
        }
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
        self.truncated_at_start.clear();
        self.inbox.clear();
        self.step_scheduled = false;
        self.ticker = None;
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

    /// Ticks to hand in for the one that has come: it may have waited while the process or its
    /// shards stood still.
    pub(crate) fn due_ticks(&mut self, now: Duration) -> u64 {
        let local = self.clock.monotonic(now);
        let Some(ticker) = &mut self.ticker else {
            return 0;
        };
        // The event may be some nanoseconds early.
        let at = local + ticker.wait(local);
        ticker.take(at).map_or(1, |due| due.ticks)
    }

    /// True while the process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }
}
