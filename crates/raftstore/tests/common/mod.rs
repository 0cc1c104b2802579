//! A few stores stepped in one thread, with virtual time and a perfect network unless a
//! test cuts it.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{
    CompareAndSwapCommand, DataCommand, DeleteRangeCommand, Mutation, RawSpace, SnapshotForm,
    WriteCommand, data_command::Body,
};
use strata_raftstore::{
    Answer, CommandOutcome, Error, Now, ReadCommand, RegionJob, Reply, Request, RequestBody,
    RequestHeader, StoreCore, StoreEffect, StoreEvent, StoreOptions, SystemStateMachine,
    SystemView, SystemViewError, SystemWrites, Workers,
};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::snapshot::{MemFiles, Offered, SnapshotManager, from_raft};
use strata_storage::{Durability, Engine, Engines, MemEngine};

pub const TICK: Duration = Duration::from_millis(50);
/// Wall clock at the virtual time 0.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// Appends each request to the record "log" and answers with its length.
pub struct Journal;

impl SystemStateMachine for Journal {
    fn apply(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        let mut log = view.get(b"log")?.unwrap_or_default().to_vec();
        log.extend_from_slice(request);
        let length = log.len().to_string();
        writes.put("log", log);
        Ok(length.into())
    }
}

pub type Outcome = std::result::Result<Answer, Error>;

pub struct Node {
    pub core: StoreCore<MemEngine>,
    pub engines: Engines<MemEngine>,
    /// Log batches are written and answered only while this holds.
    pub disk_works: bool,
    /// Apply work is done only while this holds.
    pub apply_works: bool,
    /// The kv engine is written only while this holds.
    pub data_works: bool,
    pub held: VecDeque<StoreEffect>,
    pub workers: Workers<MemEngine>,
    /// Jobs are done only while this holds.
    pub jobs_work: bool,
    pub files: MemFiles,
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub regions: Vec<Region>,
    pub now: Duration,
    pub wall_offset_ms: BTreeMap<u64, u64>,
    /// Stores whose messages are lost both ways.
    pub cut: BTreeSet<u64>,
    /// Stores to which no entries arrive, though all else does.
    pub no_entries_to: BTreeSet<u64>,
    pub options: StoreOptions,
    /// Whether snapshots arrive and are answered.
    pub answer_snapshots: bool,
    pub reports: Vec<strata_proto::pdpb::RegionHeartbeatRequest>,
}

impl Cluster {
    pub fn new(stores: u64, options: StoreOptions) -> Self {
        let ids: Vec<u64> = (1..=stores).collect();
        let replicas = match stores {
            5.. => 5,
            3 | 4 => 3,
            _ => 1,
        };
        let spec = ClusterSpec::new(&ids, "test", 6, replicas).unwrap();
        let regions = spec.layout();
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            regions: regions.clone(),
            now: Duration::from_secs(1),
            wall_offset_ms: BTreeMap::new(),
            cut: BTreeSet::new(),
            no_entries_to: BTreeSet::new(),
            options,
            answer_snapshots: true,
            reports: Vec::new(),
        };
        for id in ids {
            let engines = MemEngine::new_pair();
            write_bootstrap(&engines, &spec.ident(id, id * 17), &regions).unwrap();
            cluster.start(id, engines);
        }
        cluster
    }

    pub fn start(&mut self, id: u64, engines: Engines<MemEngine>) {
        self.start_with(id, engines, MemFiles::new());
    }

    /// Starts a store from its engines and snapshot files.
    pub fn start_with(&mut self, id: u64, engines: Engines<MemEngine>, files: MemFiles) {
        let system: Arc<dyn SystemStateMachine> = Arc::new(Journal);
        let mut options = self.options.clone();
        options.seed = id;
        let snapshots = SnapshotManager::open(files.clone(), u64::MAX).unwrap();
        let core = StoreCore::load(
            id,
            &options,
            engines.clone(),
            snapshots.clone(),
            &system,
            self.clock(id),
        )
        .unwrap();
        let workers = core.workers(&options);
        let node = Node {
            core,
            engines,
            disk_works: true,
            apply_works: true,
            data_works: true,
            held: VecDeque::new(),
            workers,
            jobs_work: true,
            files,
        };
        self.nodes.insert(id, node);
    }

    pub fn clock(&self, id: u64) -> Now {
        let offset = self.wall_offset_ms.get(&id).copied().unwrap_or(0);
        Now {
            monotonic: self.now,
            wall_ms: EPOCH_MS + offset + self.now.as_millis() as u64,
        }
    }

    /// Hands one event to a store and carries out everything that follows from it.
    pub fn event(&mut self, id: u64, event: StoreEvent) {
        self.events(id, vec![event]);
    }

    /// Hands several events to a store as one drain.
    pub fn events(&mut self, id: u64, events: Vec<StoreEvent>) {
        let mut queue = VecDeque::new();
        let now = self.clock(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        for effect in node.core.handle_all(now, events) {
            self.carry_out(id, effect, &mut queue);
        }
        self.drain(queue);
    }

    /// Carries out one effect and all that follows from it.
    pub fn carry_out_one(&mut self, id: u64, effect: StoreEffect) {
        let mut queue = VecDeque::new();
        self.carry_out(id, effect, &mut queue);
        self.drain(queue);
    }

    /// Carries out events in order until nothing follows from them.
    fn drain(&mut self, mut queue: VecDeque<(u64, StoreEvent)>) {
        while let Some((id, event)) = queue.pop_front() {
            let now = self.clock(id);
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            for effect in node.core.handle(now, event) {
                self.carry_out(id, effect, &mut queue);
            }
        }
    }

    fn carry_out(&mut self, id: u64, effect: StoreEffect, queue: &mut VecDeque<(u64, StoreEvent)>) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        match effect {
            StoreEffect::Send {
                to_store_id,
                messages,
            } => {
                if !self.cut.contains(&id) && !self.cut.contains(&to_store_id) {
                    let deaf = self.no_entries_to.contains(&to_store_id);
                    queue.extend(
                        messages
                            .into_iter()
                            .filter(|one| !deaf || !has_entries(one))
                            .map(|one| (to_store_id, StoreEvent::Message(one))),
                    );
                }
            }
            StoreEffect::WriteLog { shard, batch } => {
                if !node.disk_works {
                    node.held.push_back(StoreEffect::WriteLog { shard, batch });
                    return;
                }
                let durability = if batch.sync {
                    Durability::Synced
                } else {
                    Durability::Unsynced
                };
                node.engines.raft.write(&batch.batch, durability).unwrap();
                let number = batch.number;
                for (to_store_id, messages) in batch.after_sync {
                    let send = StoreEffect::Send {
                        to_store_id,
                        messages,
                    };
                    self.carry_out(id, send, queue);
                }
                queue.push_back((id, StoreEvent::LogPersisted { shard, number }));
            }
            StoreEffect::Apply(work) if !node.apply_works => {
                node.held.push_back(StoreEffect::Apply(work));
            }
            StoreEffect::Apply(work) => queue.push_back((id, StoreEvent::Apply(work))),
            StoreEffect::WriteData(write) if !node.data_works => {
                node.held.push_back(StoreEffect::WriteData(write));
            }
            StoreEffect::WriteData(write) => {
                node.engines
                    .kv
                    .write(write.batch(), write.durability())
                    .unwrap();
                queue.push_back((id, StoreEvent::DataWritten(write)));
            }
            StoreEffect::Read(task) => queue.push_back((id, StoreEvent::Serve(task))),
            StoreEffect::Reply { reply, result } => reply.deliver(result),
            StoreEffect::Report(reports) => self.reports.extend(reports),
            StoreEffect::Job(job) if !node.jobs_work => {
                node.held.push_back(StoreEffect::Job(job));
            }
            StoreEffect::Job(job @ RegionJob::GcLog { .. }) => {
                node.workers.log_gc.push(&job);
                let done = node.workers.log_gc.step().unwrap();
                queue.extend(done.into_iter().map(|done| (id, StoreEvent::JobDone(done))));
            }
            StoreEffect::Job(job) => {
                node.workers.region.push(job);
                while node.workers.region.has_work(now) {
                    let done = node.workers.region.step(now, 1 << 20).unwrap();
                    queue.extend(done.map(|done| (id, StoreEvent::JobDone(done))));
                }
            }
            StoreEffect::SendSnapshot { .. } if !self.answer_snapshots => {}
            StoreEffect::SendSnapshot {
                to_store_id,
                message,
            } => {
                let region_id = message.region_id;
                let to_peer_id = message.to_peer.unwrap().id;
                let cut = self.cut.contains(&id) || self.cut.contains(&to_store_id);
                let ok = !cut && self.copy_snapshot(id, to_store_id, &message);
                if ok {
                    queue.push_back((to_store_id, StoreEvent::Message(*message)));
                }
                queue.push_back((
                    id,
                    StoreEvent::SnapshotSent {
                        region_id,
                        to_peer_id,
                        ok,
                    },
                ));
            }
            StoreEffect::Fatal(line) => panic!("store {id}: {line}"),
        }
    }

    /// Takes the files of a snapshot from one store to another. False: they are gone.
    pub fn copy_snapshot(&self, from: u64, to: u64, message: &RaftMessage) -> bool {
        let snapshot = message.message.as_ref().unwrap().snapshot.as_ref();
        let meta = from_raft(snapshot.unwrap(), SnapshotForm::Memory).unwrap();
        let source = self.nodes[&from].core.snapshots();
        let made = source
            .list()
            .into_iter()
            .find(|info| info.key.id == meta.id);
        let Some(files) = made.and_then(|made| source.get(&made.key)) else {
            return false;
        };
        let target = self.nodes[&to].core.snapshots();
        let Offered::Receive(mut receiver) = target.receive(&meta).unwrap() else {
            return true;
        };
        for (file, described) in meta.files.iter().enumerate() {
            let mut offset = 0;
            while offset < described.length {
                let chunk = files.read_chunk(file as u32, offset).unwrap();
                offset += chunk.data.len() as u64;
                receiver.accept(&chunk).unwrap();
            }
        }
        receiver.finish().unwrap();
        true
    }

    /// Ends a store's process by a power cut: what was not synced is lost.
    pub fn power_cut(&mut self, id: u64) -> Engines<MemEngine> {
        let node = self.nodes.remove(&id).unwrap();
        Engines::new(
            node.engines.kv.crash_keeping(0),
            node.engines.raft.crash_keeping(0),
        )
    }

    /// Lets a kv engine that was not written be written again.
    pub fn release_data(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().data_works = true;
        self.release(id);
    }

    /// Lets a stopped worker work again.
    pub fn release_jobs(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().jobs_work = true;
        self.release(id);
    }

    /// Lets a stopped disk work again.
    pub fn release_disk(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().disk_works = true;
        self.release(id);
    }

    /// Lets a stopped apply shard work again.
    pub fn release_apply(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().apply_works = true;
        self.release(id);
    }

    fn release(&mut self, id: u64) {
        let mut queue = VecDeque::new();
        while let Some(effect) = self.nodes.get_mut(&id).unwrap().held.pop_front() {
            self.carry_out(id, effect, &mut queue);
        }
        self.drain(queue);
    }

    /// Lets one tick pass on every store.
    pub fn tick(&mut self) {
        self.now += TICK;
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.event(id, StoreEvent::Tick);
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Ticks until the condition holds.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if condition(self) {
                return;
            }
            self.tick();
        }
        panic!("not within 20 s: {what}");
    }

    /// Store that leads a region according to a majority of stores that are not cut.
    pub fn leader(&self, region_id: u64) -> Option<u64> {
        self.nodes.iter().find_map(|(id, node)| {
            let entry = node.core.directory().entry(region_id)?;
            (!self.cut.contains(id) && entry.leads()).then_some(*id)
        })
    }

    pub fn elect_all(&mut self) {
        let ids: Vec<u64> = self.regions.iter().map(|region| region.id).collect();
        self.until("every region has a leader", |cluster| {
            ids.iter().all(|id| cluster.leader(*id).is_some())
        });
    }

    /// The user region that holds a key of API v1.
    pub fn region_of(&self, key: &[u8]) -> u64 {
        let holds = |region: &&Region| {
            region.id != 1
                && &region.start_key[..] <= key
                && (region.end_key.is_empty() || key < &region.end_key[..])
        };
        self.regions.iter().find(holds).unwrap().id
    }

    /// Hands a request to a store; the receiver gets its result.
    pub fn send(&mut self, id: u64, region_id: u64, body: RequestBody) -> Receiver<Outcome> {
        let header = self.header(region_id);
        self.send_with(id, header, body)
    }

    pub fn header(&self, region_id: u64) -> RequestHeader {
        RequestHeader {
            region_id,
            deadline: self.now + Duration::from_secs(2),
            ..RequestHeader::default()
        }
    }

    pub fn send_with(
        &mut self,
        id: u64,
        header: RequestHeader,
        body: RequestBody,
    ) -> Receiver<Outcome> {
        let (sender, receiver) = channel();
        let reply = Reply::new(move |result| drop(sender.send(result)));
        self.event(
            id,
            StoreEvent::Request {
                request: Request { header, body },
                reply,
            },
        );
        receiver
    }

    /// Sends to the leader and waits for the answer.
    pub fn call(&mut self, region_id: u64, body: RequestBody) -> Outcome {
        self.until("the region has a leader", |cluster| {
            cluster.leader(region_id).is_some()
        });
        let leader = self.leader(region_id).unwrap();
        let receiver = self.send(leader, region_id, body);
        self.wait(&receiver)
    }

    pub fn wait(&mut self, receiver: &Receiver<Outcome>) -> Outcome {
        for _ in 0..100 {
            if let Ok(result) = receiver.try_recv() {
                return result;
            }
            self.tick();
        }
        panic!("no answer within 5 s");
    }

    pub fn put(&mut self, key: &str, value: &str) -> Outcome {
        self.call(
            self.region_of(key.as_bytes()),
            write(&[(key, Some(value), 0)]),
        )
    }

    pub fn get(&mut self, key: &str) -> Option<String> {
        match self.call(self.region_of(key.as_bytes()), get(key)) {
            Ok(Answer::Value(value)) => value.map(|value| text(&value)),
            other => panic!("get {key}: {other:?}"),
        }
    }

    /// The value in a store's own engine, whoever leads; expiry is not judged.
    pub fn stored(&self, id: u64, key: &str) -> Option<String> {
        use strata_storage::{Cf, ReadView, keys, raw_value};
        let key = keys::raw_key(RawSpace::RawV1, key.as_bytes());
        let stored = self.nodes[&id].engines.kv.get(Cf::Raw, &key).unwrap()?;
        Some(text(raw_value::decode(&stored).unwrap().value))
    }
}

fn has_entries(message: &RaftMessage) -> bool {
    let inner = message.message.as_ref();
    inner.is_some_and(|inner| !inner.entries.is_empty())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A write of one command: key, value (none: delete) and time to live in seconds.
pub fn write(mutations: &[(&str, Option<&str>, u64)]) -> RequestBody {
    RequestBody::Write(vec![write_command(mutations)])
}

pub fn write_command(mutations: &[(&str, Option<&str>, u64)]) -> DataCommand {
    let mutations = mutations
        .iter()
        .map(|(key, value, ttl_seconds)| Mutation {
            key: bytes(key),
            value: value.map(bytes),
            ttl_seconds: *ttl_seconds,
        })
        .collect();
    command(Body::Write(WriteCommand {
        space: RawSpace::RawV1.into(),
        mutations,
    }))
}

pub fn command(body: Body) -> DataCommand {
    DataCommand {
        session: None,
        body: Some(body),
    }
}

pub fn cas(key: &str, expected: Option<&str>, value: Option<&str>) -> DataCommand {
    command(Body::CompareAndSwap(CompareAndSwapCommand {
        space: RawSpace::RawV1.into(),
        key: bytes(key),
        expected: expected.map(bytes),
        value: value.map(bytes),
        ttl_seconds: 0,
    }))
}

pub fn delete_range(start: &str, end: &str) -> DataCommand {
    command(Body::DeleteRange(DeleteRangeCommand {
        space: RawSpace::RawV1.into(),
        start_key: bytes(start),
        end_key: bytes(end),
    }))
}

pub fn get(key: &str) -> RequestBody {
    RequestBody::Read(ReadCommand::Get {
        space: RawSpace::RawV1,
        key: bytes(key),
    })
}

pub fn written(result: Outcome) -> Vec<CommandOutcome> {
    match result {
        Ok(Answer::Written(outcomes)) => outcomes,
        other => panic!("not written: {other:?}"),
    }
}

/// A cluster of so many stores whose regions have leaders.
pub fn elected(stores: u64) -> Cluster {
    let mut cluster = Cluster::new(stores, StoreOptions::default());
    cluster.elect_all();
    cluster
}

/// The error of a request that must not be served.
pub fn refused(result: Outcome) -> Error {
    match result {
        Err(error) => error,
        Ok(answer) => panic!("served: {answer:?}"),
    }
}
