//! Three whole stores in one thread, over engines in memory.
//!
//! The stores are the production core ([`StoreCore`]). What they ask for is done at once, and
//! what follows from it waits in an inbox until the store's next turn, as it would for a
//! thread that drains its queue. The simulator does the same with faults and checkers, which
//! would be most of the instructions.
//!
//! Time stands still but while leaders are elected and in [`Cluster::tick`], so no lease ends
//! and no tick is counted where a path is about something else.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raftstore::{
    Now, Reply, Request, StoreCore, StoreEffect, StoreEvent, StoreOptions, SystemStateMachine,
    SystemView, SystemViewError, SystemWrites,
};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::snapshot::{MemFiles, SnapshotManager};
use strata_storage::{Durability, Engine, Engines, MemEngine, keys};

/// The stores' ids.
const STORES: [u64; 3] = [1, 2, 3];
/// User regions: as many as a new cluster has.
pub const REGIONS: u32 = 6;
/// Ticks in which all leaders must be elected and hold leases.
const ELECTION_TICKS_MAX: u64 = 200;
/// Where the clocks begin.
const START: Duration = Duration::from_secs(1000);
const START_WALL_MS: u64 = 1_700_000_000_000;
/// Longer than any run: no log is compacted.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// Region 1's state machine. No path asks it anything.
struct NoSystem;

impl SystemStateMachine for NoSystem {
    fn apply(
        &self,
        _view: &dyn SystemView,
        _request: &[u8],
        _writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        Ok(Bytes::new())
    }
}

struct Store {
    core: StoreCore<MemEngine>,
    engines: Engines<MemEngine>,
    /// What has come for it since its last turn.
    inbox: Vec<StoreEvent>,
}

/// A cluster whose regions all have leaders with leases.
pub struct Cluster {
    stores: Vec<Store>,
    regions: Vec<Region>,
    now: Now,
}

impl Cluster {
    /// Starts the stores with so many user regions and lets leaders be elected.
    ///
    /// # Errors
    /// A store does not start or asks for what only faults lead to; no leaders were elected.
    pub fn new(regions: u32) -> anyhow::Result<Self> {
        let spec = ClusterSpec::new(&STORES, "hot-paths", regions, STORES.len() as u32)?;
        let now = Now {
            monotonic: START,
            wall_ms: START_WALL_MS,
        };
        let stores: anyhow::Result<Vec<Store>> =
            STORES.iter().map(|id| start(&spec, *id, now)).collect();
        let mut cluster = Self {
            stores: stores?,
            regions: spec.layout(),
            now,
        };
        cluster.elect()?;
        Ok(cluster)
    }

    /// The user region that holds a key of API v1.
    ///
    /// # Errors
    /// None does.
    pub fn region_of(&self, key: &[u8]) -> anyhow::Result<&Region> {
        // The first region is the system's and has no range.
        self.regions[1..]
            .iter()
            .find(|region| keys::range_contains(&region.start_key, &region.end_key, key))
            .context("no region holds the key")
    }

    /// Place of the store that leads a region.
    ///
    /// # Errors
    /// No store does.
    pub fn leader(&self, region_id: u64) -> anyhow::Result<usize> {
        let leads = |store: &Store| {
            let entry = store.core.directory().entry(region_id);
            entry.is_some_and(|entry| entry.leads())
        };
        self.stores
            .iter()
            .position(leads)
            .context("the region has no leader")
    }

    /// The time of all stores.
    pub fn now(&self) -> Now {
        self.now
    }

    /// A store's core.
    pub fn core(&self, place: usize) -> &StoreCore<MemEngine> {
        &self.stores[place].core
    }

    /// Lets a request arrive at a store, which takes it with its next turn.
    pub fn send(&mut self, place: usize, request: Request, reply: Reply) {
        let event = StoreEvent::Request { request, reply };
        self.stores[place].inbox.push(event);
    }

    /// Gives the stores turns until none has anything to do.
    ///
    /// # Errors
    /// An engine refused, or a store asked for what only faults lead to.
    pub fn run_to_rest(&mut self) -> anyhow::Result<()> {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for place in 0..self.stores.len() {
                let store = &mut self.stores[place];
                if store.inbox.is_empty() {
                    continue;
                }
                busy = true;
                let events = std::mem::take(&mut store.inbox);
                let effects = store.core.handle_all(self.now, events);
                for effect in effects {
                    self.carry_out(place, effect)?;
                }
            }
        }
        Ok(())
    }

    /// A tick passes on all stores, with all that comes of it.
    ///
    /// # Errors
    /// As [`Self::run_to_rest`].
    pub fn tick(&mut self) -> anyhow::Result<()> {
        let interval = StoreOptions::default().tick_interval;
        self.now.monotonic += interval;
        self.now.wall_ms += interval.as_millis() as u64;
        for store in &mut self.stores {
            store.inbox.push(StoreEvent::Tick);
        }
        self.run_to_rest()
    }

    /// Regions, the system's among them.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Raft messages that all stores have sent so far.
    pub fn messages_sent(&self) -> u64 {
        let sent = |store: &Store| store.core.metrics().messages_sent.get();
        self.stores.iter().map(sent).sum()
    }

    fn elect(&mut self) -> anyhow::Result<()> {
        for _ in 0..ELECTION_TICKS_MAX {
            self.tick()?;
            if self.regions.iter().all(|region| self.has_lease(region.id)) {
                return Ok(());
            }
        }
        bail!("no leaders within {ELECTION_TICKS_MAX} ticks");
    }

    fn has_lease(&self, region_id: u64) -> bool {
        let Ok(place) = self.leader(region_id) else {
            return false;
        };
        let entry = self.core(place).directory().entry(region_id);
        entry.is_some_and(|entry| entry.view.holds_lease(self.now.monotonic))
    }

    fn send_messages(&mut self, to: u64, messages: Vec<RaftMessage>) -> anyhow::Result<()> {
        let to = STORES.iter().position(|id| *id == to);
        let to = to.context("a message to a store that there is not")?;
        let inbox = &mut self.stores[to].inbox;
        inbox.extend(messages.into_iter().map(StoreEvent::Message));
        Ok(())
    }

    fn carry_out(&mut self, place: usize, effect: StoreEffect) -> anyhow::Result<()> {
        let store = &mut self.stores[place];
        match effect {
            StoreEffect::Send {
                to_store_id,
                messages,
            } => self.send_messages(to_store_id, messages)?,
            StoreEffect::WriteLog { shard, batch } => {
                // In memory a sync only moves batches from one map to another.
                store
                    .engines
                    .raft
                    .write(&batch.batch, Durability::Unsynced)?;
                let number = batch.number;
                store.inbox.push(StoreEvent::LogPersisted { shard, number });
                for (to_store_id, messages) in batch.after_sync {
                    self.send_messages(to_store_id, messages)?;
                }
            }
            StoreEffect::Apply(work) => store.inbox.push(StoreEvent::Apply(work)),
            StoreEffect::WriteData(write) => {
                // A rest would have to go before other work, which may be in the inbox.
                ensure!(!write.has_rest(), "a batch of applied entries is full");
                store
                    .engines
                    .kv
                    .write(write.batch(), Durability::Unsynced)?;
                store.inbox.push(StoreEvent::DataWritten(write));
            }
            StoreEffect::Read(task) => store.inbox.push(StoreEvent::Serve(task)),
            StoreEffect::Reply { reply, result } => reply.deliver(result),
            StoreEffect::Report(_) => {}
            StoreEffect::Job(job) => bail!("store {}: a job: {job:?}", STORES[place]),
            StoreEffect::SendSnapshot { .. } => bail!("store {}: a snapshot", STORES[place]),
            StoreEffect::Fatal(line) => bail!("store {}: {line}", STORES[place]),
        }
        Ok(())
    }
}

fn start(spec: &ClusterSpec, id: u64, now: Now) -> anyhow::Result<Store> {
    let engines = MemEngine::new_pair();
    write_bootstrap(&engines, &spec.ident(id, id), &spec.layout())?;
    let options = StoreOptions {
        seed: id,
        log_gc_tick_interval: NEVER,
        heartbeat_interval: NEVER,
        ..StoreOptions::default()
    };
    let system: Arc<dyn SystemStateMachine> = Arc::new(NoSystem);
    let snapshots = SnapshotManager::open(MemFiles::new(), u64::MAX)?;
    let core = StoreCore::load(id, &options, engines.clone(), snapshots, &system, now)?;
    Ok(Store {
        core,
        engines,
        inbox: Vec::new(),
    })
}
