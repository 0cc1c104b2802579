//! A whole cluster in one thread under one seed.
//!
//! One queue holds everything that is going to happen: arrivals of messages, ticks, steps
//! of stores, ends of writes, requests and answers of clients. The cluster takes the next
//! event, lets the store or client concerned handle it, and enters what follows with a
//! delay drawn from the seed. The stores run the production core
//! ([`strata_raftstore::StoreCore`]); the cluster is their runtime.
//!
//! Elsewhere: what stores ask for (`effects`), requests (`calls`), what goes wrong
//! (`faults`), what must hold in the end (`checks`).
//!
//! Invariant: nothing but the seed and the calls of the test decides what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{RawSpace, SnapshotFrame, SnapshotReply};
use strata_raftstore::{Answer, Error, ReadTask, StoreEvent, StoreOptions, SystemStateMachine};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::{Cf, EngineError, Engines, Fault, MemEngine, ReadView};

use crate::calls::{Call, PendingWrite};
use crate::client::{Client, ClientId};
use crate::clock::StoreClock;
use crate::commits::Commits;
use crate::counters::Counters;
use crate::disk::Disk;
use crate::fault_kind::Strike;
use crate::faults::{Armed, Mend};
use crate::freshness::Freshness;
use crate::history::History;
use crate::leases::LedTerms;
use crate::network::{Network, Weather, between};
use crate::planted::Planted;
use crate::promises::Promises;
use crate::queue::EventQueue;
use crate::replicas::replica_sum;
use crate::snapshots::SnapshotStream;
use crate::store::SimStore;
use crate::system::RecordMachine;
use crate::trace::Trace;
use crate::trouble::Act;
use crate::violation::Violation;
use crate::watch::Watch;

/// How finely [`Cluster::run_until`] looks at its condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Ticks of all stores together after which the replicas of one region are summed up: with
/// five stores about three times a second.
const TICKS_BETWEEN_SUMS: u64 = 32;

/// Ids of peers that come by a change of members begin behind those of the layout.
const FIRST_MOVED_PEER_ID: u64 = 2_000_000;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Number of stores; their ids are 1, 2, ...
    pub stores: u64,
    /// User regions, at least 6.
    pub regions: u32,
    /// Replicas of a user region: 1, 3 or 5.
    pub replicas: u32,
    /// Decides everything that chance decides.
    pub seed: u64,
    /// Settings of every store; their seeds are set from `seed`.
    pub store: StoreOptions,
    /// The network between stores.
    pub weather: Weather,
    /// The disks.
    pub disk: Disk,
    /// How clients name keys.
    pub space: RawSpace,
    /// Largest difference of two wall clocks, in milliseconds.
    pub wall_spread_ms: i64,
    /// How long clients let an attempt live.
    pub attempt_time: Duration,
    /// Share of requests, and of answers, that are lost between clients and stores.
    pub client_loss: f64,
    /// True: regions lose peers and get others, and a store may say that it has none.
    pub peers_move: bool,
    /// How long clients wait for an answer beyond `attempt_time`.
    pub patience: Duration,
    /// Share of requests whose deadline is no more than some milliseconds.
    pub short_deadlines: f64,
    /// Share of requests that are held back on their way for so long, past their deadline.
    pub held_requests: Option<(f64, (Duration, Duration))>,
}

impl ClusterOptions {
    /// Stores with six regions, everywhere if there are up to five stores; fair weather.
    #[must_use]
    pub fn new(stores: u64, seed: u64) -> Self {
        ClusterOptions {
            stores,
            regions: 6,
            replicas: if stores >= 5 { 5 } else { 3.min(stores as u32) },
            seed,
            store: StoreOptions::default(),
            weather: Weather::fair(),
            disk: Disk::good(),
            space: RawSpace::RawV1,
            wall_spread_ms: 400,
            attempt_time: Duration::from_secs(2),
            client_loss: 0.0,
            peers_move: false,
            patience: Duration::from_millis(250),
            short_deadlines: 0.0,
            held_requests: None,
        }
    }
}

/// Something that is going to happen.
pub(crate) enum Event {
    /// Raft messages arrive.
    Deliver { to: u64, messages: Vec<RaftMessage> },
    /// A store's tick interval has passed.
    Tick { store: u64, life: u64 },
    /// A store drains its inbox.
    Step { store: u64, life: u64 },
    /// The batch that is being written by a log lane is on disk.
    LogDone { store: u64, life: u64, lane: usize },
    /// An apply lane gets to its next work.
    ApplyStart { store: u64, life: u64, lane: usize },
    /// The batch of an apply lane goes into the kv engine.
    ApplyWrite { store: u64, life: u64, lane: usize },
    /// A reader gets to a read.
    Serve {
        store: u64,
        life: u64,
        task: Box<ReadTask>,
    },
    /// A request arrives at its store.
    Request { call: u64 },
    /// An answer arrives at its client.
    Answer {
        call: u64,
        result: Box<Result<Answer, Error>>,
    },
    /// A client does what it has in mind.
    Client { client: ClientId },
    /// A client has waited long enough for an answer.
    Patience { call: u64 },
    /// A client drops its hold on a request.
    Cancel { call: u64 },
    /// A store starts again.
    Restart { store: u64, life: u64 },
    /// A frame of a snapshot arrives at its receiver.
    SnapshotFrame {
        stream: u64,
        frame: Box<SnapshotFrame>,
    },
    /// A receiver's answer arrives at its sender.
    SnapshotReply {
        stream: u64,
        reply: Box<SnapshotReply>,
    },
    /// A stream is found to be broken.
    StreamBroken { stream: u64 },
    /// A region worker's turn.
    RegionWork { store: u64, life: u64, turn: u64 },
    /// A log gc worker's turn.
    LogGcWork {
        store: u64,
        life: u64,
        may_wait: bool,
    },
    /// A sender is told what became of a snapshot whose stream could not be opened.
    SnapshotAnswer {
        store: u64,
        life: u64,
        region_id: u64,
        to_peer_id: u64,
    },
    /// A process that stood still goes on.
    Resume { store: u64, life: u64 },
    /// What a strike has broken is mended.
    Mend { mend: Box<Mend> },
    /// A store loses its power, if it is in that life still.
    PowerCut { store: u64, life: u64 },
    /// One of the strikes of a plan.
    Strike { strike: Strike },
    /// A small fault of a larger one has its turn.
    Act { act: Act },
    /// The faults' turn.
    Faults { round: u64 },
}

/// Results that stores have delivered and nobody has taken yet: call and result.
pub(crate) type Mailbox = Arc<Mutex<Vec<(u64, Result<Answer, Error>)>>>;

/// A simulated cluster.
pub struct Cluster {
    /// What it was made of.
    pub options: ClusterOptions,
    /// The network between its stores.
    pub network: Network,
    /// What its clients did and saw.
    pub history: History,
    /// Checkers that look on.
    pub watch: Watch,
    pub(crate) promises: Promises,
    pub(crate) commits: Commits,
    /// By store and region: the end of the log that was lost with a store's folder.
    pub(crate) lost_logs: BTreeMap<(u64, u64), u64>,
    /// Writes that have arrived and were not proposed when they were last looked at.
    pub(crate) pending_writes: BTreeMap<u64, PendingWrite>,
    pub(crate) led_terms: LedTerms,
    pub(crate) freshness: Freshness,
    /// Regions of the store that is stepped whose data it had given up before.
    pub(crate) given_up: BTreeSet<u64>,
    /// What happened.
    pub trace: Trace,
    pub(crate) queue: EventQueue<Event>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) stores: BTreeMap<u64, SimStore>,
    pub(crate) regions: Vec<Region>,
    pub(crate) system: Arc<dyn SystemStateMachine>,
    pub(crate) mailbox: Mailbox,
    pub(crate) calls: BTreeMap<u64, Call>,
    /// Calls that a running store has taken and not answered yet, with that store.
    pub(crate) unanswered: BTreeMap<u64, u64>,
    pub(crate) next_call: u64,
    /// Snapshots on their way.
    pub(crate) streams: BTreeMap<u64, SnapshotStream>,
    pub(crate) next_stream: u64,
    /// Installs that have ended, and deletions of compacted entries.
    pub(crate) installed: u64,
    /// Ticks of all stores.
    ticks: u64,
    pub(crate) compacted: u64,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// Every key that is in the history.
    pub(crate) universe: BTreeSet<Bytes>,
    pub(crate) faults: Option<crate::faults::Faults>,
    /// True time when the last of the pauses ends.
    pub(crate) last_pause_ends: Duration,
    /// True once faults are over: what a plan still had in mind does not happen.
    pub(crate) healed: bool,
    /// Faults that wait for their moment.
    pub(crate) armed: Armed,
    /// What the run has reached.
    pub(crate) counters: Counters,
    /// Id of the next peer that a change of members brings.
    pub(crate) next_peer_id: u64,
    /// Faults that are built in on purpose.
    pub planted: Planted,
}

impl Cluster {
    /// A cluster with new stores, all started and admitted.
    ///
    /// # Panics
    /// If the numbers of stores, regions and replicas do not fit together.
    #[must_use]
    pub fn new(options: ClusterOptions) -> Self {
        let stores: Vec<u64> = (1..=options.stores).collect();
        let spec = ClusterSpec::new(&stores, "sim", options.regions, options.replicas)
            .unwrap_or_else(|error| panic!("a cluster that cannot be: {error}"));
        let mut cluster = Cluster {
            network: Network::new(options.weather),
            history: History::new(),
            watch: Watch::default(),
            promises: Promises::default(),
            commits: Commits::default(),
            lost_logs: BTreeMap::new(),
            pending_writes: BTreeMap::new(),
            led_terms: LedTerms::default(),
            freshness: Freshness::default(),
            given_up: BTreeSet::new(),
            trace: Trace::new(),
            queue: EventQueue::new(),
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            stores: BTreeMap::new(),
            regions: spec.layout(),
            system: Arc::new(RecordMachine),
            mailbox: Mailbox::default(),
            calls: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            next_call: 1,
            streams: BTreeMap::new(),
            next_stream: 1,
            installed: 0,
            ticks: 0,
            compacted: 0,
            clients: BTreeMap::new(),
            universe: BTreeSet::new(),
            faults: None,
            last_pause_ends: Duration::ZERO,
            healed: false,
            armed: Armed::default(),
            counters: Counters::default(),
            next_peer_id: FIRST_MOVED_PEER_ID,
            planted: Planted::default(),
            options,
        };
        for id in stores {
            cluster.add_store(&spec, id);
            cluster.start_store(id);
        }
        cluster
    }

    fn add_store(&mut self, spec: &ClusterSpec, id: u64) {
        let engines = self.new_engines(spec, id, id);
        let start = between(
            &mut self.rng,
            (Duration::from_secs(1), Duration::from_secs(9_000)),
        );
        let spread = self.options.wall_spread_ms;
        let offset = rand::Rng::random_range(&mut self.rng, -spread / 2..=spread / 2);
        let store_options = StoreOptions {
            seed: self.options.seed.wrapping_mul(31).wrapping_add(id),
            ..self.options.store.clone()
        };
        let clock = StoreClock::new(start, offset);
        let store = SimStore::new(store_options, engines, clock, self.options.disk);
        self.stores.insert(id, store);
    }

    pub(crate) fn new_engines(
        &self,
        spec: &ClusterSpec,
        id: u64,
        incarnation: u64,
    ) -> Engines<MemEngine> {
        let engines = MemEngine::new_pair();
        write_bootstrap(&engines, &spec.ident(id, incarnation), &self.regions)
            .unwrap_or_else(|error| panic!("bootstrap of store {id}: {error}"));
        engines
    }

    /// True time since the cluster was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.queue.now()
    }

    /// Ids of all stores.
    #[must_use]
    pub fn store_ids(&self) -> Vec<u64> {
        self.stores.keys().copied().collect()
    }

    /// A store.
    ///
    /// # Panics
    /// If there is no such store.
    #[must_use]
    pub fn store(&self, id: u64) -> &SimStore {
        self.stores
            .get(&id)
            .unwrap_or_else(|| panic!("there is no store {id}"))
    }

    /// A store, to change its clock or disk.
    ///
    /// # Panics
    /// If there is no such store.
    pub fn store_mut(&mut self, id: u64) -> &mut SimStore {
        self.stores
            .get_mut(&id)
            .unwrap_or_else(|| panic!("there is no store {id}"))
    }

    /// All regions, the system region first.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// A region as its leader has it; as the layout has it where nobody leads.
    #[must_use]
    pub fn present_region(&self, region_id: u64) -> Arc<Region> {
        let at_leader = self.leader_of(region_id).and_then(|leader| {
            let core = self.store(leader).core.as_ref()?;
            core.directory().entry(region_id)
        });
        match at_leader {
            Some(entry) => entry.region.clone(),
            None => {
                let region = self.regions.iter().find(|region| region.id == region_id);
                Arc::new(region.expect("regions are those of the layout").clone())
            }
        }
    }

    /// All regions as their leaders have them, without peers on stores that take no part.
    #[must_use]
    pub fn present_regions(&self) -> Vec<Region> {
        let present = |region: &Region| {
            let mut region = (*self.present_region(region.id)).clone();
            region.peers.retain(|peer| !self.store(peer.store_id).out);
            region
        };
        self.regions.iter().map(present).collect()
    }

    /// The user region that holds a key.
    ///
    /// # Panics
    /// If the layout has a hole there.
    #[must_use]
    pub fn region_of(&self, key: &[u8]) -> &Region {
        self.regions[1..]
            .iter()
            .find(|region| crate::operation::region_holds(self.options.space, region, key))
            .unwrap_or_else(|| panic!("no region holds {:?}", Bytes::copy_from_slice(key)))
    }

    /// Lets time pass.
    pub fn run_for(&mut self, length: Duration) {
        let until = self.queue.now() + length;
        while let Some(event) = self.queue.pop_until(until) {
            self.on_event(event);
        }
    }

    /// Lets time pass until `condition` holds; false if it did not within `limit`.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut(&Cluster) -> bool,
    ) -> bool {
        let end = self.queue.now() + limit;
        while !condition(self) {
            if self.queue.now() >= end {
                return false;
            }
            self.run_for(LOOK_INTERVAL);
        }
        true
    }

    /// The store whose peer leads a region in the highest term that any store knows, if
    /// that peer itself says so.
    #[must_use]
    pub fn leader_of(&self, region_id: u64) -> Option<u64> {
        let mut best: Option<(u64, u64)> = None;
        for (id, store) in &self.stores {
            let Some(core) = &store.core else { continue };
            let Some(entry) = core.directory().entry(region_id) else {
                continue;
            };
            if entry.leads() {
                best = best.max(Some((entry.view.term(), *id)));
            }
        }
        best.map(|(_, id)| id)
    }

    /// Last index of a region's log on a store, 0 where the store is down.
    #[must_use]
    pub fn last_index(&self, store: u64, region_id: u64) -> u64 {
        let core = self.store(store).core.as_ref();
        let entry = core.and_then(|core| core.directory().entry(region_id));
        entry.map_or(0, |entry| entry.view.numbers().last)
    }

    fn on_event(&mut self, event: Event) {
        let Some(event) = self.unless_held(event) else {
            return;
        };
        match event {
            Event::Deliver { to, messages } => self.on_deliver(to, messages),
            Event::Tick { store, life } => self.on_tick(store, life),
            Event::Step { store, life } => self.on_step(store, life),
            Event::LogDone { store, life, lane } => self.on_log_done(store, life, lane),
            Event::ApplyStart { store, life, lane } => self.on_apply_start(store, life, lane),
            Event::ApplyWrite { store, life, lane } => self.on_apply_write(store, life, lane),
            Event::Serve {
                store,
                life,
                mut task,
            } => {
                if self.is_live(store, life) {
                    self.planted.change_read(&mut task);
                    self.enter(store, StoreEvent::Serve(*task));
                }
            }
            Event::Request { call } => self.on_request(call),
            Event::Answer { call, result } => self.on_answer(call, *result),
            Event::Client { client } => self.on_client(client),
            Event::Patience { call } => self.on_patience(call),
            Event::Cancel { call } => self.on_cancel(call),
            Event::Restart { store, life } => {
                if self.store(store).life == life && !self.store(store).is_up() {
                    self.start_store(store);
                }
            }
            Event::SnapshotFrame { stream, frame } => self.on_snapshot_frame(stream, *frame),
            Event::SnapshotReply { stream, reply } => self.on_snapshot_reply(stream, *reply),
            Event::StreamBroken { stream } => self.break_stream(stream),
            Event::RegionWork { store, life, turn } => self.on_region_work(store, life, turn),
            Event::LogGcWork {
                store,
                life,
                may_wait,
            } => self.on_log_gc_work(store, life, may_wait),
            Event::SnapshotAnswer {
                store,
                life,
                region_id,
                to_peer_id,
            } => {
                if self.is_live(store, life) {
                    self.answer_snapshot(store, region_id, to_peer_id, false);
                }
            }
            Event::Resume { store, life } => self.on_resume(store, life),
            Event::PowerCut { store, life } => self.on_power_cut(store, life),
            Event::Mend { mend } => self.on_mend(*mend),
            Event::Strike { strike } => self.on_strike(strike),
            Event::Faults { round } => self.on_faults(round),
            Event::Act { act } => self.on_act(act),
        }
    }

    pub(crate) fn is_live(&self, store: u64, life: u64) -> bool {
        let store = self.store(store);
        store.life == life && store.is_up()
    }

    /// Lets a message arrive at a store that nobody has sent now: one from long ago, or a
    /// forged one.
    pub fn inject(&mut self, to: u64, message: RaftMessage) {
        let messages = vec![message];
        self.queue
            .push(Duration::ZERO, Event::Deliver { to, messages });
    }

    fn on_deliver(&mut self, to: u64, messages: Vec<RaftMessage>) {
        // A forged message may have named a store that does not exist as its sender.
        let Some(store) = self.stores.get_mut(&to) else {
            return;
        };
        if store.is_up() {
            let events = messages.into_iter().map(StoreEvent::Message);
            store.inbox.extend(events);
            self.schedule_step(to);
        }
    }

    fn on_tick(&mut self, store: u64, life: u64) {
        if !self.is_live(store, life) {
            return;
        }
        // Missed ticks are dropped: one in the inbox is enough.
        let waiting = self
            .store(store)
            .inbox
            .iter()
            .any(|e| matches!(e, StoreEvent::Tick));
        if !waiting {
            self.enter(store, StoreEvent::Tick);
        }
        self.schedule_tick(store);
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_BETWEEN_SUMS) {
            self.sum_up_replicas();
        }
    }

    /// Sums up the replicas of the next region in turn.
    fn sum_up_replicas(&mut self) {
        let turn = (self.ticks / TICKS_BETWEEN_SUMS) as usize % self.regions.len();
        let region = &self.regions[turn];
        for (id, store) in &self.stores {
            if let Err(EngineError::ReadFailed { .. }) = store.engines.kv.get(Cf::Raft, b"") {
                // The next read was to fail, and still shall.
                store.engines.kv.fail_next(Fault::Read);
                continue;
            }
            match replica_sum(region, &store.engines) {
                Ok(Some((index, sum))) => self.watch.on_sum(region.id, *id, index, sum),
                Ok(None) => {}
                Err(reason) => self.watch.report(Violation::StoreStopped {
                    store_id: *id,
                    reason,
                }),
            }
        }
    }

    pub(crate) fn schedule_tick(&mut self, id: u64) {
        let store = self.store(id);
        let (life, interval) = (store.life, store.options.tick_interval);
        let delay = store.clock.true_length(interval);
        self.queue.push(delay, Event::Tick { store: id, life });
    }
}
