//! Stores on their threads, over RocksDB, joined by a transport within the process.

// Real threads run on real time.
#![allow(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use strata_proto::metapb::Region;
use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{
    DataCommand, Mutation, RawSpace, SnapshotForm, WriteCommand, data_command::Body,
};
use strata_raftstore::{
    Answer, Error, HeartbeatSink, PeerChange, PeerChangeKind, ReadCommand, Request, RequestBody,
    RequestHeader, Store, StoreHandle, StoreOptions, Surroundings, SystemStateMachine, SystemView,
    SystemViewError, SystemWrites, Transport,
};
use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
use strata_storage::snapshot::{
    DiskFiles, MemFiles, Offered, SnapshotError, SnapshotManager, from_raft,
};
use strata_storage::{DiskEngine, EngineKind, EngineOptions, Engines, Fault, MemEngine};

/// What stores reach each other by.
#[derive(Default)]
struct Wires {
    handles: OnceLock<Vec<StoreHandle>>,
    managers: OnceLock<Vec<SnapshotManager<DiskFiles>>>,
    /// Messages to and from this store are lost; 0: none.
    cut: AtomicU64,
}

struct Direct {
    own: u64,
    wires: Arc<Wires>,
}

impl Direct {
    fn is_cut(&self, to: u64) -> bool {
        let cut = self.wires.cut.load(Ordering::SeqCst);
        cut == self.own || cut == to
    }
}

/// Takes the files of a snapshot from one manager to another.
fn copy_files(
    from: &SnapshotManager<DiskFiles>,
    to: &SnapshotManager<DiskFiles>,
    message: &RaftMessage,
) -> Result<(), SnapshotError> {
    let snapshot = message.message.as_ref().and_then(|m| m.snapshot.clone());
    let meta = from_raft(&snapshot.unwrap_or_default(), SnapshotForm::Sst)?;
    let made = from.list().into_iter().find(|info| info.key.id == meta.id);
    let Some(files) = made.and_then(|info| from.get(&info.key)) else {
        return Err(SnapshotError::NoSuchRegion { region_id: 0 });
    };
    let Offered::Receive(mut receiver) = to.receive(&meta)? else {
        return Ok(());
    };
    for (file, described) in meta.files.iter().enumerate() {
        let mut offset = 0;
        while offset < described.length {
            let chunk = files.read_chunk(file as u32, offset)?;
            offset += chunk.data.len() as u64;
            receiver.accept(&chunk)?;
        }
    }
    receiver.finish().map(drop)
}

impl Transport for Direct {
    fn send(&self, to_store_id: u64, messages: Vec<RaftMessage>) {
        if let Some(handles) = self
            .wires
            .handles
            .get()
            .filter(|_| !self.is_cut(to_store_id))
        {
            handles[to_store_id as usize - 1].deliver(messages);
        }
    }

    fn send_snapshot(&self, to_store_id: u64, message: RaftMessage) {
        let (wires, own, cut) = (self.wires.clone(), self.own, self.is_cut(to_store_id));
        std::thread::spawn(move || {
            let (handles, managers) = (wires.handles.wait(), wires.managers.wait());
            let (from, to) = (own as usize - 1, to_store_id as usize - 1);
            let copied = !cut && copy_files(&managers[from], &managers[to], &message).is_ok();
            let (region_id, to_peer) = (message.region_id, message.to_peer.unwrap().id);
            if copied {
                handles[to].deliver_snapshot(message);
            }
            handles[from].report_snapshot(region_id, to_peer, copied);
        });
    }
}

struct NoSink;

impl HeartbeatSink for NoSink {
    fn report(&self, _: Vec<RegionHeartbeatRequest>) {}
}

struct Echo;

impl SystemStateMachine for Echo {
    fn apply(
        &self,
        _: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        writes.put("last", request.to_vec());
        Ok(Bytes::copy_from_slice(request))
    }
}

struct Cluster {
    stores: Vec<Store>,
    regions: Vec<Region>,
    wires: Arc<Wires>,
    _folder: tempfile::TempDir,
    /// Goes last: the stores' shards are its tasks.
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn start(count: u64) -> Self {
        Cluster::start_with(count, &StoreOptions::default())
    }

    fn start_with(count: u64, options: &StoreOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        let ids: Vec<u64> = (1..=count).collect();
        let replicas = if count >= 3 { 3 } else { 1 };
        let spec = ClusterSpec::new(&ids, "threads", 6, replicas).unwrap();
        let regions = spec.layout();
        let wires: Arc<Wires> = Arc::default();
        let mut managers = Vec::new();
        let stores: Vec<Store> = ids
            .iter()
            .map(|id| {
                let path = folder.path().join(id.to_string());
                let open = |kind: EngineKind, name: &str| {
                    let path = path.join(name);
                    std::fs::create_dir_all(&path).unwrap();
                    DiskEngine::open(kind, &path, &EngineOptions::default()).unwrap()
                };
                let engines =
                    Engines::new(open(EngineKind::Kv, "kv"), open(EngineKind::Raft, "raft"));
                write_bootstrap(&engines, &spec.ident(*id, *id), &regions).unwrap();
                let files = DiskFiles::open(&path.join("snapshots")).unwrap();
                let snapshots = SnapshotManager::open(files, u64::MAX).unwrap();
                managers.push(snapshots.clone());
                let surroundings = Surroundings {
                    transport: Arc::new(Direct {
                        own: *id,
                        wires: wires.clone(),
                    }),
                    heartbeats: Arc::new(NoSink),
                    system: Arc::new(Echo),
                    logger: slog::Logger::root(slog::Discard, slog::o!()),
                    runtime: runtime.handle().clone(),
                };
                let options = StoreOptions {
                    seed: *id,
                    ..options.clone()
                };
                Store::start(*id, options, engines, snapshots, surroundings).unwrap()
            })
            .collect();
        let handles = stores.iter().map(Store::handle).collect();
        assert!(wires.managers.set(managers).is_ok() && wires.handles.set(handles).is_ok());
        Cluster {
            stores,
            wires,
            regions,
            _folder: folder,
            _runtime: runtime,
        }
    }

    fn region_of(&self, key: &[u8]) -> u64 {
        let holds = |region: &&Region| {
            region.id != 1
                && &region.start_key[..] <= key
                && (region.end_key.is_empty() || key < &region.end_key[..])
        };
        self.regions.iter().find(holds).unwrap().id
    }

    /// Asks the leader until there is one that answers.
    fn call(&self, region_id: u64, body: &RequestBody) -> Answer {
        let end = Instant::now() + Duration::from_secs(20);
        let mut last = None;
        while Instant::now() < end {
            for store in &self.stores {
                let handle = store.handle();
                let (sender, receiver) = channel();
                let header = RequestHeader {
                    region_id,
                    deadline: handle.now() + Duration::from_secs(2),
                    ..RequestHeader::default()
                };
                let request = Request {
                    header,
                    body: body.clone(),
                };
                let token =
                    handle.execute(request, Box::new(move |result| drop(sender.send(result))));
                let result = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
                token.detach();
                match result {
                    Ok(answer) => return answer,
                    Err(Error::NotLeader { .. } | Error::RegionNotFound { .. }) => {}
                    Err(error) => last = Some(error),
                }
            }
        }
        panic!("no answer: {last:?}");
    }

    fn shutdown(self) {
        for store in self.stores {
            store.shutdown();
        }
    }
}

fn put(key: &str, value: &str) -> RequestBody {
    let mutation = Mutation {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ttl_seconds: 0,
    };
    let write = WriteCommand {
        space: RawSpace::RawV1.into(),
        mutations: vec![mutation],
    };
    RequestBody::Write(vec![DataCommand {
        session: None,
        body: Some(Body::Write(write)),
    }])
}

fn get(key: &str) -> RequestBody {
    let key = Bytes::copy_from_slice(key.as_bytes());
    RequestBody::Read(ReadCommand::Get {
        space: RawSpace::RawV1,
        key,
    })
}

fn put_and_get(stores: u64) {
    let cluster = Cluster::start(stores);
    for region in cluster.regions.iter().filter(|region| region.id != 1) {
        let key = String::from_utf8_lossy(&region.start_key).into_owned() + "k";
        if cluster.region_of(key.as_bytes()) != region.id {
            continue;
        }
        assert!(matches!(
            cluster.call(region.id, &put(&key, "v")),
            Answer::Written(_)
        ));
        match cluster.call(region.id, &get(&key)) {
            Answer::Value(Some(value)) => assert_eq!(&value[..], b"v"),
            other => panic!("{other:?}"),
        }
    }
    let echo = cluster.call(1, &RequestBody::SystemWrite(Bytes::from_static(b"hello")));
    assert!(matches!(echo, Answer::SystemWritten(text) if &text[..] == b"hello"));
    cluster.shutdown();
}

#[test]
fn one_store_on_threads() {
    put_and_get(1);
}

#[test]
fn three_stores_on_threads() {
    put_and_get(3);
}

/// Small batches are applied by the shard, large ones by a thread. What one writer writes after
/// the other comes after it either way, in one region.
#[test]
fn small_and_large_batches_of_a_region_are_applied_in_order() {
    const WRITES: usize = 100;
    let options = StoreOptions {
        inline_apply_bytes: 1 << 10,
        ..StoreOptions::default()
    };
    let cluster = Cluster::start_with(3, &options);
    let region_id = cluster.region_of(b"k");
    let large = "x".repeat(2 << 10);
    let value = |writer: usize, number: usize| {
        let text = format!("{writer} {number} ");
        if (writer + number).is_multiple_of(3) {
            text + &large
        } else {
            text
        }
    };
    cluster.call(region_id, &put("k", "first"));
    // Batches that the shard and that the thread has applied.
    let batches = |store: &Store| {
        let metrics = store.handle().metrics();
        let on_threads = metrics.apply_batches_on_threads.get();
        (metrics.apply_batches.get() - on_threads, on_threads)
    };
    let before: Vec<_> = cluster.stores.iter().map(batches).collect();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (cluster, value) = (&cluster, &value);
            scope.spawn(move || {
                for number in 0..WRITES {
                    let (key, text) = (format!("k{writer}"), value(writer, number));
                    let written = cluster.call(region_id, &put(&key, &text));
                    assert!(matches!(written, Answer::Written(_)), "{written:?}");
                    match cluster.call(region_id, &get(&key)) {
                        Answer::Value(Some(found)) => assert!(found == text),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    for (store, before) in cluster.stores.iter().zip(before) {
        let after = batches(store);
        // Empty entries of new leaders are few: as many as there are regions.
        assert!(
            after.0 > before.0 + 20 && after.1 > before.1 + 20,
            "{before:?} became {after:?}"
        );
    }
    cluster.shutdown();
}

/// Where the engine would hold the shard up, a thread waits in its place.
#[test]
fn an_engine_that_holds_writers_up_is_left_to_the_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let spec = ClusterSpec::new(&[1], "busy", 6, 1).unwrap();
    let engines = MemEngine::new_pair();
    write_bootstrap(&engines, &spec.ident(1, 1), &spec.layout()).unwrap();
    let surroundings = Surroundings {
        transport: Arc::new(Direct {
            own: 1,
            wires: Arc::default(),
        }),
        heartbeats: Arc::new(NoSink),
        system: Arc::new(Echo),
        logger: slog::Logger::root(slog::Discard, slog::o!()),
        runtime: runtime.handle().clone(),
    };
    let snapshots = SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap();
    let options = StoreOptions::default();
    let store = Store::start(1, options, engines.clone(), snapshots, surroundings).unwrap();
    let cluster = Cluster {
        stores: vec![store],
        regions: spec.layout(),
        wires: Arc::default(),
        _folder: tempfile::tempdir().unwrap(),
        _runtime: runtime,
    };
    let region_id = cluster.region_of(b"k");
    cluster.call(region_id, &put("k", "first"));
    let metrics = cluster.stores[0].handle().metrics();
    let before = metrics.apply_batches_on_threads.get();
    for number in 0..50 {
        if number % 2 == 0 {
            engines.kv.fail_next(Fault::Busy);
        }
        let text = number.to_string();
        cluster.call(region_id, &put("k", &text));
        match cluster.call(region_id, &get("k")) {
            Answer::Value(Some(found)) => assert_eq!(found, text),
            other => panic!("{other:?}"),
        }
    }
    // One that the thread is not quite done with takes the next one along.
    let on_threads = metrics.apply_batches_on_threads.get() - before;
    assert!((25..50).contains(&on_threads), "{on_threads} of 50");
    cluster.shutdown();
}

/// A peer is removed and destroyed, with its log and its data in RocksDB, while its store
/// serves its other regions.
#[test]
fn peer_destroyed_on_threads() {
    let cluster = Cluster::start(3);
    let region_id = cluster.region_of(b"k");
    let Answer::Written(_) = cluster.call(region_id, &put("k", "v")) else {
        panic!("not written");
    };
    let handle = cluster.stores[0].handle();
    let state = handle.region_state(region_id).unwrap();
    let leader = state.leader.map_or(0, |leader| leader.id);
    let mut peers = state.region.peers.iter();
    let peer = *peers.find(|peer| peer.id != leader).unwrap();
    let kind = PeerChangeKind::Remove;
    let changes = vec![PeerChange { kind, peer }];
    match cluster.call(region_id, &RequestBody::ChangePeers { changes }) {
        Answer::Region(region) => assert_eq!(region.peers.len(), 2),
        other => panic!("{other:?}"),
    }
    let store = cluster.stores[peer.store_id as usize - 1].handle();
    let end = Instant::now() + Duration::from_secs(20);
    while store.region_state(region_id).is_some() {
        assert!(Instant::now() < end, "the peer is not destroyed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(store.regions().len(), cluster.regions.len() - 1);
    assert_eq!(store.metrics().peers_destroyed.get(), 1);
    match cluster.call(region_id, &get("k")) {
        Answer::Value(Some(value)) => assert_eq!(&value[..], b"v"),
        other => panic!("{other:?}"),
    }
    cluster.shutdown();
}

/// A store that was away until the log it needs was deleted comes back by a snapshot of
/// RocksDB's tables, on real threads, and serves from it.
#[test]
fn a_store_that_was_away_comes_back_by_a_snapshot() {
    let options = StoreOptions {
        log_gc_count_limit: 20,
        log_gc_threshold: 10,
        log_gc_tick_interval: Duration::from_millis(100),
        ..StoreOptions::default()
    };
    let cluster = Cluster::start_with(3, &options);
    let region_id = cluster.region_of(b"a");
    cluster.call(region_id, &put("a", "0"));
    let state = |store: u64| {
        let handle = cluster.stores[store as usize - 1].handle();
        handle.region_state(region_id).unwrap()
    };
    let leader = state(1).leader.map_or(1, |peer| peer.store_id);
    let away = (1..=3).find(|store| *store != leader).unwrap();
    cluster.wires.cut.store(away, Ordering::SeqCst);
    for number in 0..60 {
        cluster.call(region_id, &put(&format!("a{number}"), "value"));
    }
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < end, "not within a minute: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let last_here = state(away).last_index;
    until("the log is compacted", &|| {
        (1..=3).any(|store| state(store).truncated_index > last_here)
    });
    let metrics = cluster.stores[away as usize - 1].handle().metrics();
    assert_eq!(metrics.snapshots_installed.get(), 0);
    cluster.wires.cut.store(0, Ordering::SeqCst);
    until("a snapshot is installed", &|| {
        metrics.snapshots_installed.get() > 0
    });
    until("it has all that the others have", &|| {
        state(away).applied_index >= last_here + 60
    });
    // The others may be away now: it holds the data.
    cluster.call(region_id, &put("b", "after"));
    match cluster.call(region_id, &get("a59")) {
        Answer::Value(Some(value)) => assert_eq!(&value[..], b"value"),
        other => panic!("{other:?}"),
    }
    let handle = cluster.stores[away as usize - 1].handle();
    let (sender, receiver) = channel();
    let header = RequestHeader {
        region_id,
        replica_read: true,
        deadline: handle.now() + Duration::from_secs(5),
        ..RequestHeader::default()
    };
    let request = Request {
        header,
        body: get("a30"),
    };
    let reply = Box::new(move |result| drop(sender.send(result)));
    handle.execute(request, reply).detach();
    let answer = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(
        matches!(&answer, Ok(Answer::Value(Some(value))) if &value[..] == b"value"),
        "{answer:?}"
    );
    cluster.shutdown();
}

/// Many writers at once; prints what they reach, asserts only that all are answered.
#[test]
fn many_writers_are_all_answered() {
    let cluster = Cluster::start(3);
    let region_id = cluster.region_of(b"a");
    cluster.call(region_id, &put("a", "0"));
    let leader = cluster
        .stores
        .iter()
        .map(Store::handle)
        .find(|handle| {
            handle.leader_of(region_id).is_some_and(|leader| {
                handle
                    .region_state(region_id)
                    .is_some_and(|state| state.leader == Some(leader))
            })
        })
        .unwrap();
    let leader_store = leader.leader_of(region_id).unwrap().store_id as usize - 1;
    let leader = cluster.stores[leader_store].handle();
    let (sender, receiver) = channel();
    let (writers, writes) = (256, 20_000);
    let begin = Instant::now();
    let (mut sent, mut answered, mut failed) = (0, 0, 0);
    while answered < writes {
        while sent < writes && sent - answered < writers {
            let header = RequestHeader {
                region_id,
                deadline: leader.now() + Duration::from_secs(10),
                ..RequestHeader::default()
            };
            let sender = sender.clone();
            let request = Request {
                header,
                body: put(&format!("a{}", sent % 1000), "0123456789"),
            };
            leader
                .execute(
                    request,
                    Box::new(move |result| {
                        let _ = sender.send(result.is_ok());
                    }),
                )
                .detach();
            sent += 1;
        }
        let done = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        answered += 1;
        failed += usize::from(!done);
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{writes} writes, {failed} refused, {:.0} a second",
        writes as f64 / seconds
    );
    assert_eq!(answered, writes);
    cluster.shutdown();
}
