//! Seeded schedules of delays, losses, cuts and crashes over three stores. One client
//! writes rising numbers to a key of each region and reads them back; what it may see
//! follows from what was acknowledged.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use common::{EPOCH_MS, Journal, Outcome, get, text, write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::{
    Answer, Error, LogBatch, Now, Reply, Request, RequestBody, RequestHeader, StoreCore,
    StoreEffect, StoreEvent, StoreOptions, SystemStateMachine,
};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::snapshot::{MemFiles, SnapshotManager};
use strata_storage::{Durability, Engine, Engines, MemEngine};

const STORES: u64 = 3;
/// Life of a step that outlives a crash of its store.
const ANY_LIFE: u64 = 0;
/// User regions with keys that a client of API v1 can name.
const KEYS: [&str; 2] = ["a", "z"];

/// Something that happens to a store at a time.
enum Step {
    Event(Box<StoreEvent>),
    /// Writes to the raft engine, sends what waits for that, then tells the shard.
    Log {
        shard: usize,
        batch: LogBatch,
    },
    /// Writes to the kv engine, then tells the store.
    Data(strata_raftstore::DataWrite),
}

struct Node {
    core: StoreCore<MemEngine>,
    engines: Engines<MemEngine>,
    /// Steps of an older life are dropped.
    life: u64,
    /// What is written to one engine keeps its order.
    log_free_at: u64,
    data_free_at: u64,
}

struct World {
    rng: ChaCha8Rng,
    now_ms: u64,
    order: u64,
    steps: BTreeMap<(u64, u64), (u64, u64, Step)>,
    nodes: BTreeMap<u64, Node>,
    /// Store ids that are cut off until a time.
    cut_until: BTreeMap<u64, u64>,
    loss_percent: u32,
    next_life: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = World {
            rng: ChaCha8Rng::seed_from_u64(seed),
            now_ms: 1000,
            order: 0,
            steps: BTreeMap::new(),
            nodes: BTreeMap::new(),
            cut_until: BTreeMap::new(),
            loss_percent: 5,
            next_life: 0,
        };
        let ids: Vec<u64> = (1..=STORES).collect();
        let spec = ClusterSpec::new(&ids, "faults", 6, 3).unwrap();
        for id in ids {
            let engines = MemEngine::new_pair();
            write_bootstrap(&engines, &spec.ident(id, id), &spec.layout()).unwrap();
            world.start(id, engines);
        }
        world
    }

    fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_millis(self.now_ms),
            wall_ms: EPOCH_MS + self.now_ms,
        }
    }

    fn start(&mut self, id: u64, engines: Engines<MemEngine>) {
        let system: Arc<dyn SystemStateMachine> = Arc::new(Journal);
        let options = StoreOptions {
            seed: self.rng.random(),
            // Compaction and snapshots have the simulator's rows.
            log_gc_tick_interval: Duration::from_secs(1_000_000),
            ..StoreOptions::default()
        };
        let snapshots = SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap();
        let core = StoreCore::load(
            id,
            &options,
            engines.clone(),
            snapshots,
            &system,
            self.now(),
        )
        .unwrap();
        self.next_life += 1;
        let life = self.next_life;
        let node = Node {
            core,
            engines,
            life,
            log_free_at: 0,
            data_free_at: 0,
        };
        self.nodes.insert(id, node);
        let first = self.rng.random_range(0..50);
        self.after(first, id, Step::Event(Box::new(StoreEvent::Tick)));
    }

    fn crash(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        let kv = node.engines.kv.crash(&mut self.rng);
        let raft = node.engines.raft.crash(&mut self.rng);
        drop(node);
        self.start(id, Engines::new(kv, raft));
    }

    fn after(&mut self, delay_ms: u64, id: u64, step: Step) {
        self.order += 1;
        let life = self.nodes[&id].life;
        self.steps
            .insert((self.now_ms + delay_ms, self.order), (id, life, step));
    }

    fn is_cut(&self, id: u64) -> bool {
        self.cut_until
            .get(&id)
            .is_some_and(|until| self.now_ms < *until)
    }

    /// Runs the next step; false after `end_ms`.
    fn step(&mut self, end_ms: u64) -> bool {
        let Some((&(at, order), _)) = self.steps.first_key_value() else {
            return false;
        };
        if at > end_ms {
            self.now_ms = end_ms;
            return false;
        }
        self.now_ms = at.max(self.now_ms);
        let (id, life, step) = self.steps.remove(&(at, order)).unwrap();
        if life != ANY_LIFE && self.nodes[&id].life != life {
            return true;
        }
        match step {
            Step::Event(event) => {
                if matches!(*event, StoreEvent::Tick) {
                    self.after(50, id, Step::Event(Box::new(StoreEvent::Tick)));
                }
                self.handle(id, *event);
            }
            Step::Log { shard, batch } => {
                let durability = if batch.sync {
                    Durability::Synced
                } else {
                    Durability::Unsynced
                };
                let engines = &self.nodes[&id].engines;
                engines.raft.write(&batch.batch, durability).unwrap();
                for (to_store_id, messages) in batch.after_sync {
                    let send = StoreEffect::Send {
                        to_store_id,
                        messages,
                    };
                    self.carry_out(id, send);
                }
                let number = batch.number;
                self.handle(id, StoreEvent::LogPersisted { shard, number });
            }
            Step::Data(write) => {
                self.nodes[&id]
                    .engines
                    .kv
                    .write(write.batch(), write.durability())
                    .unwrap();
                self.handle(id, StoreEvent::DataWritten(write));
            }
        }
        true
    }

    fn handle(&mut self, id: u64, event: StoreEvent) {
        let now = self.now();
        let effects = self.nodes.get_mut(&id).unwrap().core.handle(now, event);
        for effect in effects {
            self.carry_out(id, effect);
        }
    }

    fn carry_out(&mut self, id: u64, effect: StoreEffect) {
        match effect {
            StoreEffect::Send {
                to_store_id,
                messages,
            } => {
                for message in messages {
                    let lost = self.rng.random_range(0..100) < self.loss_percent;
                    if lost || self.is_cut(id) || self.is_cut(to_store_id) {
                        continue;
                    }
                    let delay = if self.rng.random_ratio(1, 20) {
                        self.rng.random_range(0..300)
                    } else {
                        self.rng.random_range(0..5)
                    };
                    self.deliver(delay, to_store_id, message);
                }
            }
            StoreEffect::WriteLog { shard, batch } => {
                let at = self.slot(id, |node| &mut node.log_free_at);
                self.after(at, id, Step::Log { shard, batch });
            }
            StoreEffect::Apply(work) => {
                self.handle(id, StoreEvent::Apply(work));
            }
            StoreEffect::WriteData(write) => {
                // Written at once: what the apply shard computes next must see it.
                let _ = self.slot(id, |node| &mut node.data_free_at);
                self.after(0, id, Step::Data(write));
                self.settle_data(id);
            }
            StoreEffect::Read(task) => {
                let delay = self.rng.random_range(0..3);
                self.after(delay, id, Step::Event(Box::new(StoreEvent::Serve(task))));
            }
            StoreEffect::Reply { reply, result } => reply.deliver(result),
            StoreEffect::Report(_) => {}
            StoreEffect::Job(job) => panic!("store {id}: {job:?}"),
            StoreEffect::SendSnapshot { message, .. } => panic!("store {id}: {message:?}"),
            StoreEffect::Fatal(line) => panic!("store {id}: {line}"),
        }
    }

    /// An apply shard computes its next batch only when the last is written; so a data
    /// write that was just asked for is carried out before anything else of the store.
    fn settle_data(&mut self, id: u64) {
        let due: Vec<(u64, u64)> = self
            .steps
            .iter()
            .filter(|(_, (to, _, step))| *to == id && matches!(step, Step::Data(_)))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some((_, life, Step::Data(write))) = self.steps.remove(&key) else {
                continue;
            };
            if self.nodes[&id].life == life {
                self.nodes[&id]
                    .engines
                    .kv
                    .write(write.batch(), write.durability())
                    .unwrap();
                self.handle(id, StoreEvent::DataWritten(write));
            }
        }
    }

    /// A message may arrive in any life of its receiver.
    fn deliver(&mut self, delay: u64, to: u64, message: strata_proto::raft_serverpb::RaftMessage) {
        self.order += 1;
        let step = Step::Event(Box::new(StoreEvent::Message(message)));
        self.steps
            .insert((self.now_ms + delay, self.order), (to, ANY_LIFE, step));
    }

    /// A delay that keeps the order of earlier ones of the same kind.
    fn slot(&mut self, id: u64, field: impl Fn(&mut Node) -> &mut u64) -> u64 {
        let delay = self.rng.random_range(0..8);
        let now = self.now_ms;
        let free_at = field(self.nodes.get_mut(&id).unwrap());
        *free_at = (*free_at).max(now + delay);
        *free_at - now
    }

    fn send(&mut self, id: u64, region_id: u64, body: RequestBody) -> Receiver<Outcome> {
        let (sender, receiver) = channel();
        let reply = Reply::new(move |result| drop(sender.send(result)));
        let deadline = Duration::from_millis(self.now_ms + 2000);
        let header = RequestHeader {
            region_id,
            deadline,
            ..RequestHeader::default()
        };
        self.handle(
            id,
            StoreEvent::Request {
                request: Request { header, body },
                reply,
            },
        );
        receiver
    }
}

/// One key: a writer with one operation in flight, and a reader.
struct Client {
    key: &'static str,
    region_id: u64,
    target: u64,
    sent: u64,
    acknowledged: u64,
    seen: u64,
    write: Option<Receiver<Outcome>>,
    /// The read with what was acknowledged or seen when it began.
    read: Option<(Receiver<Outcome>, u64)>,
    answers: usize,
}

impl Client {
    fn poll(&mut self, world: &mut World) {
        if let Some(receiver) = &self.write {
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Ok(Answer::Written(_))) => {
                    self.acknowledged = self.sent;
                    self.answers += 1;
                    self.write = None;
                }
                Ok(Ok(other)) => panic!("{other:?}"),
                Ok(Err(error)) => self.retarget(&error),
                Err(TryRecvError::Disconnected) => panic!("a write was never answered"),
            }
        }
        if let Some((receiver, floor)) = &self.read {
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => {}
                Ok(Ok(Answer::Value(value))) => {
                    let value = value.map_or(0, |value| text(&value).parse().unwrap());
                    assert!(
                        value >= *floor && value <= self.sent,
                        "key {}: read {value}, which is not within {floor}..={}",
                        self.key,
                        self.sent
                    );
                    self.seen = self.seen.max(value);
                    self.read = None;
                    self.answers += 1;
                }
                Ok(Ok(other)) => panic!("{other:?}"),
                Ok(Err(error)) => {
                    self.retarget(&error);
                    self.read = None;
                }
                Err(TryRecvError::Disconnected) => panic!("a read was never answered"),
            }
        }
        if self.write.is_none() {
            self.sent += 1;
            let body = write(&[(self.key, Some(&self.sent.to_string()), 0)]);
            self.write = Some(world.send(self.target, self.region_id, body));
        }
        if self.read.is_none() {
            let floor = self.acknowledged.max(self.seen);
            self.read = Some((
                world.send(self.target, self.region_id, get(self.key)),
                floor,
            ));
        }
    }

    /// A refused write is followed by a higher number: whether it ever happened does not
    /// matter to what may be read, as long as it happens before the higher one or never.
    fn retarget(&mut self, error: &Error) {
        self.write = None;
        self.target = match error {
            Error::NotLeader {
                leader: Some(peer), ..
            }
            | Error::Undetermined {
                leader: Some(peer), ..
            } => peer.store_id,
            _ => self.target % STORES + 1,
        };
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(seed);
    let ids: Vec<u64> = (1..=STORES).collect();
    let layout = ClusterSpec::new(&ids, "faults", 6, 3).unwrap().layout();
    let mut clients: Vec<Client> = KEYS
        .iter()
        .map(|key| {
            let holds = |region: &&strata_proto::metapb::Region| {
                region.id != 1
                    && &region.start_key[..] <= key.as_bytes()
                    && (region.end_key.is_empty() || key.as_bytes() < &region.end_key[..])
            };
            let region_id = layout.iter().find(holds).unwrap().id;
            Client {
                key,
                region_id,
                target: 1,
                sent: 0,
                acknowledged: 0,
                seen: 0,
                write: None,
                read: None,
                answers: 0,
            }
        })
        .collect();
    let end = world.now_ms + 20_000;
    let mut next_fault = world.now_ms + 2000;
    while world.now_ms < end {
        let until = world.now_ms + 3;
        while world.step(until) {}
        world.now_ms = until;
        for client in &mut clients {
            client.poll(&mut world);
        }
        if world.now_ms >= next_fault {
            let id = world.rng.random_range(1..=STORES);
            if world.rng.random_bool(0.5) {
                world.crash(id);
            } else {
                let until = world.now_ms + world.rng.random_range(100..2000);
                world.cut_until.insert(id, until);
            }
            next_fault = world.now_ms + world.rng.random_range(200..2500);
        }
    }
    // Faults end: every key must make progress.
    world.cut_until.clear();
    world.loss_percent = 0;
    let before: Vec<u64> = clients.iter().map(|client| client.acknowledged).collect();
    let end = world.now_ms + 8000;
    while world.now_ms < end {
        let until = world.now_ms + 3;
        while world.step(until) {}
        world.now_ms = until;
        clients
            .iter_mut()
            .for_each(|client| client.poll(&mut world));
    }
    for (client, before) in clients.iter().zip(before) {
        assert!(
            client.acknowledged > before,
            "seed {seed}: no progress on {}",
            client.key
        );
    }
    clients.iter().map(|client| client.answers).sum()
}

#[test]
fn reads_follow_acknowledged_writes() {
    for seed in 0..6 {
        let answers = run(seed);
        assert!(answers > 100, "seed {seed}: only {answers} answers");
    }
}
