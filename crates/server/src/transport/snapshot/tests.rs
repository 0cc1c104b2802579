//! Two nodes' links over real sockets on the loopback, with files in memory, and a wire
//! between them that a test can cut or freeze.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::{Region, RegionEpoch};
use strata_proto::raft_serverpb::RegionLocalState;
use strata_proto::stratapb::store_transport_client::StoreTransportClient;
use strata_proto::stratapb::store_transport_server::{StoreTransport, StoreTransportServer};
use strata_proto::stratapb::*;
use strata_raftstore::WINDOW_CHUNKS;
use strata_storage::snapshot::{Generated, Generator, MemFiles, SnapshotRef, to_raft};
use strata_storage::{
    Cf, Durability, Engine, MemEngine, WriteBatch, write_apply_state, write_region_state,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Streaming};

use super::super::snapshot::SnapshotServer;
use super::super::{Greeter, greet};
use super::*;
use crate::config::{Config, Size};

const LEADER: u64 = 1;
const FOLLOWER: u64 = 2;
const TERM: u64 = 6;
const INDEX: u64 = 17;
const CHUNK: u64 = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that writes down what it is told.
struct FakeStore {
    reports: mpsc::UnboundedSender<(u64, u64, bool)>,
    delivered: mpsc::UnboundedSender<RaftMessage>,
    wanted: Mutex<Result<(), SnapshotError>>,
    leads: AtomicBool,
}

impl SnapshotStore for FakeStore {
    fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool) {
        let _ = self.reports.send((region_id, to_peer_id, ok));
    }

    fn deliver_snapshot(&self, message: RaftMessage) {
        let _ = self.delivered.send(message);
    }

    fn check_snapshot(&self, _: &SnapshotMeta, _: &Peer) -> Result<(), SnapshotError> {
        self.wanted.lock().clone()
    }

    fn leads(&self, _: u64, term: u64) -> bool {
        term == TERM && self.leads.load(Ordering::Relaxed)
    }
}

/// One node: its link, its store, its files.
struct Node {
    link: Arc<SnapshotLink<MemFiles>>,
    store: Arc<FakeStore>,
    reports: mpsc::UnboundedReceiver<(u64, u64, bool)>,
    delivered: mpsc::UnboundedReceiver<RaftMessage>,
    manager: SnapshotManager<MemFiles>,
    metrics: Arc<ServerMetrics>,
    server: SnapshotServer,
    _stop: watch::Sender<bool>,
}

fn small_config() -> Config {
    let mut config = Config::default();
    config.snapshot.chunk_size = Size(CHUNK);
    config.transport.handshake_time = Duration::from_secs(1);
    config
}

impl Node {
    fn new(config: &Config, store_id: u64, files: &MemFiles, addresses: [&str; 2]) -> Node {
        let addresses = [(LEADER, addresses[0]), (FOLLOWER, addresses[1])];
        let addresses: BTreeMap<_, _> = addresses
            .map(|(id, address)| (id, address.to_owned()))
            .into();
        let transport = config.transport.clone();
        let cluster = Cluster::new(9, store_id, 70 + store_id, 0, addresses, transport.clone());
        let cluster = Arc::new(cluster);
        let manager = SnapshotManager::open(files.clone(), 1 << 30).unwrap();
        let metrics = Arc::new(ServerMetrics::new());
        let logger = Logger::root(slog::Discard, slog::o!());
        let runtime = Handle::current();
        let link = SnapshotLink::new(
            cluster.clone(),
            (&config.snapshot, transport.clone()),
            manager.clone(),
            metrics.clone(),
            logger.clone(),
            runtime.clone(),
        );
        let incarnations = Arc::new(Incarnations::new(Vec::new(), Box::new(|_| Ok(()))));
        let admission = Arc::new(Admission::new(
            true,
            [],
            Box::new(|| Ok(())),
            logger.clone(),
        ));
        let ((reports_to, reports), (delivered_to, delivered)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let store = Arc::new(FakeStore {
            reports: reports_to,
            delivered: delivered_to,
            wanted: Mutex::new(Ok(())),
            leads: AtomicBool::new(true),
        });
        let stop = watch::Sender::new(false);
        link.attach(Attached {
            store: store.clone(),
            admission,
            incarnations: incarnations.clone(),
            stopping: stop.subscribe(),
        });
        let handshake_time = transport.handshake_time;
        let raft = RaftTransport::new(
            cluster.clone(),
            transport,
            1 << 20,
            metrics.clone(),
            logger.clone(),
            runtime,
        );
        let greeter = Greeter {
            cluster,
            incarnations,
            transport: raft,
            logger,
            refusals: Arc::new(greet::Refusals::default()),
        };
        Node {
            server: SnapshotServer {
                greeter,
                snapshots: link.clone(),
                handshake_time,
            },
            link,
            store,
            reports,
            delivered,
            manager,
            metrics,
            _stop: stop,
        }
    }

    async fn report(&mut self) -> (u64, u64, bool) {
        let report = timeout(PATIENCE, self.reports.recv()).await;
        report.expect("a report comes").expect("the store lives")
    }

    async fn delivered(&mut self) -> RaftMessage {
        let message = timeout(PATIENCE, self.delivered.recv()).await;
        message.expect("a message comes").expect("the store lives")
    }

    /// Serves its port until the answer is dropped.
    fn serve(&self, listener: TcpListener) -> Serving {
        let service = StoreTransportServer::new(OnlySnapshots(self.server.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        Serving(tokio::spawn(async move {
            let _ = server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await;
        }))
    }

    fn chunks_sent(&self, region_id: u64) -> u64 {
        self.link.of_region(region_id).chunks_sent
    }
}

struct Serving(tokio::task::JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The part of the service that these tests need.
struct OnlySnapshots(SnapshotServer);

#[tonic::async_trait]
impl StoreTransport for OnlySnapshots {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<StoreReply, Status>> + Send>>;
    type SendSnapshotStream = SnapshotReplyStream;

    async fn exchange(
        &self,
        _: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        Err(Status::unimplemented("only snapshots"))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotReplyStream>, Status> {
        self.0.send_snapshot(request).await
    }

    async fn report_regions(
        &self,
        _: Request<RegionReports>,
    ) -> Result<Response<RegionReportsReply>, Status> {
        Err(Status::unimplemented("only snapshots"))
    }
}

/// A wire between two nodes. It carries a number of bytes in front of each fault.
struct Wire {
    address: String,
    /// Connections that were made.
    connections: Arc<AtomicUsize>,
    /// Faults that have happened.
    faults: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Copy)]
enum Fault {
    /// The connection is closed.
    Cut,
    /// Nothing arrives any more, either way.
    Freeze,
}

impl Wire {
    /// Connection number i has fault number i; those after the last have none.
    async fn to(target: String, faults: Vec<(usize, Fault)>) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let happened = Arc::new(AtomicUsize::new(0));
        let faults_happened = happened.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let fault = faults.get(number).copied();
                let (target, happened) = (target.clone(), happened.clone());
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(target).await {
                        carry(near, far, fault, &happened).await;
                    }
                });
            }
        });
        Wire {
            address,
            connections,
            faults: faults_happened,
            task,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    near: TcpStream,
    far: TcpStream,
    fault: Option<(usize, Fault)>,
    happened: &AtomicUsize,
) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let back = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
    });
    let mut left = fault.map_or(usize::MAX, |(bytes, _)| bytes);
    let mut buffer = vec![0; 4 << 10];
    while left > 0 {
        let room = buffer.len().min(left);
        match near_read.read(&mut buffer[..room]).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => {
                if far_write.write_all(&buffer[..bytes]).await.is_err() {
                    return;
                }
                left -= bytes;
            }
        }
    }
    back.abort();
    happened.fetch_add(1, Ordering::Relaxed);
    if let Some((_, Fault::Freeze)) = fault {
        std::future::pending::<()>().await;
    }
}

fn region(id: u64) -> Region {
    let peer = |store_id| Peer {
        id: id * 10 + store_id,
        store_id,
        ..Peer::default()
    };
    Region {
        id,
        start_key: Bytes::from(format!("r{id:02}")),
        end_key: Bytes::from(format!("r{:02}", id + 1)),
        region_epoch: Some(RegionEpoch {
            conf_ver: 2,
            version: 3,
        }),
        peers: vec![peer(LEADER), peer(FOLLOWER)],
        ..Region::default()
    }
}

/// Makes a snapshot on a node, of about `chunks` chunks.
fn make(node: &Node, region_id: u64, chunks: u64) -> SnapshotRef<MemFiles> {
    let kv = MemEngine::new_pair().kv;
    let mut batch = WriteBatch::new();
    let state = RegionLocalState {
        region: Some(region(region_id)),
        ..RegionLocalState::default()
    };
    write_region_state(&mut batch, &state);
    let apply = RaftApplyState {
        applied_index: INDEX,
        applied_term: TERM,
        ..RaftApplyState::default()
    };
    write_apply_state(&mut batch, region_id, &apply);
    for number in 0..chunks {
        let value = vec![number as u8; CHUNK as usize];
        batch.put(Cf::Write, format!("zr{region_id:02}{number:06}"), value);
    }
    kv.write(&batch, Durability::Synced).unwrap();
    let mut generator =
        Generator::<MemEngine>::begin(&node.manager, kv.snapshot(), region_id).unwrap();
    loop {
        if let Generated::Done(snapshot) = generator.step(1 << 20).unwrap() {
            return snapshot;
        }
    }
}

fn chunks_of(snapshot: &SnapshotRef<MemFiles>) -> u64 {
    let files = snapshot.meta().files.iter();
    files.map(|file| file.length.div_ceil(CHUNK)).sum()
}

fn message(snapshot: &SnapshotRef<MemFiles>) -> RaftMessage {
    let region = snapshot.region();
    let raft = Message {
        msg_type: MessageType::MsgSnapshot.into(),
        term: TERM,
        snapshot: Some(to_raft(snapshot.meta())),
        ..Message::default()
    };
    RaftMessage {
        region_id: region.id,
        from_peer: Some(region.peers[0]),
        to_peer: Some(region.peers[1]),
        message: Some(raft),
        ..RaftMessage::default()
    }
}

/// Both nodes with a wire from the first to the second.
struct Pair {
    leader: Node,
    follower: Node,
    wire: Wire,
    _serving: Serving,
}

async fn pair_with(config: &Config, faults: Vec<(usize, Fault)>) -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let wire = Wire::to(address, faults).await;
    let addresses = ["127.0.0.1:1", &wire.address];
    let leader = Node::new(config, LEADER, &MemFiles::new(), addresses);
    let follower = Node::new(config, FOLLOWER, &MemFiles::new(), addresses);
    Pair {
        _serving: follower.serve(listener),
        leader,
        follower,
        wire,
    }
}

async fn pair() -> Pair {
    pair_with(&small_config(), Vec::new()).await
}

impl Pair {
    fn send(&self, snapshot: &SnapshotRef<MemFiles>) {
        self.leader.link.clone().send(FOLLOWER, message(snapshot));
    }

    /// The snapshot arrives: it is complete, then delivered, then reported.
    async fn arrives(&mut self, snapshot: &SnapshotRef<MemFiles>) {
        assert_eq!(self.follower.delivered().await, message(snapshot));
        let region_id = snapshot.region().id;
        let peer_id = region_id * 10 + FOLLOWER;
        assert_eq!(self.leader.report().await, (region_id, peer_id, true));
        assert_same(snapshot, &self.follower.manager);
    }
}

fn assert_same(snapshot: &SnapshotRef<MemFiles>, manager: &SnapshotManager<MemFiles>) {
    let region_id = snapshot.region().id;
    let found = manager.find_received(region_id, INDEX, TERM).unwrap();
    assert_eq!(found.meta(), snapshot.meta());
    for file in 0..snapshot.meta().files.len() as u32 {
        found.verify_file(file).unwrap();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let held = timeout(PATIENCE, wait).await;
    held.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

#[tokio::test]
async fn a_snapshot_travels_over_its_own_stream() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 50);
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    let sent = pair.leader.link.of_region(7);
    assert_eq!((sent.sent, sent.received), (1, 0));
    assert_eq!(sent.chunks_sent, chunks_of(&snapshot));
    assert_eq!(pair.leader.metrics.snapshots_sent.get(), 1);
    let received = pair.follower.link.of_region(7);
    assert_eq!((received.sent, received.received), (0, 1));
    // Offered again it is there already: no chunk travels.
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.leader.chunks_sent(7), chunks_of(&snapshot));
    eventually("nothing is under way", || {
        pair.leader.link.of_region(7).under_way.is_empty()
            && pair.follower.link.of_region(7).under_way.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_broken_connection_resumes_at_what_was_synced() {
    let half = 100 * CHUNK as usize;
    let faults = vec![(half, Fault::Cut), (half / 2, Fault::Cut)];
    let mut pair = pair_with(&small_config(), faults).await;
    let snapshot = make(&pair.leader, 7, 200);
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.wire.connections.load(Ordering::Relaxed), 3);
    // Of each broken stream only what was under way is sent again.
    let (sent, all) = (pair.leader.chunks_sent(7), chunks_of(&snapshot));
    assert!(
        (all + 1..=all + 2 * (WINDOW_CHUNKS + 1)).contains(&sent),
        "{sent} of {all}"
    );
    assert_eq!(pair.leader.metrics.snapshot_streams_broken.get(), 2);
}

#[tokio::test]
async fn a_restarted_receiver_resumes_at_what_was_synced() {
    let config = small_config();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Behind the first sync of 8 MiB.
    let wire = Wire::to(address, vec![(9 << 20, Fault::Freeze)]).await;
    let addresses = ["127.0.0.1:1", &wire.address];
    let mut leader = Node::new(&config, LEADER, &MemFiles::new(), addresses);
    let files = MemFiles::new();
    let first = Node::new(&config, FOLLOWER, &files, addresses);
    let serving = first.serve(listener);
    let snapshot = make(&leader, 7, 3000);
    leader.link.clone().send(FOLLOWER, message(&snapshot));
    eventually("the wire is frozen", || {
        wire.faults.load(Ordering::Relaxed) == 1
    })
    .await;
    // What is on the wire has arrived when 8.5 MiB have; none of it is answered any more.
    eventually("more than 8 MiB arrived", || {
        let held = first.link.of_region(7).under_way;
        held.iter().any(|transfer| transfer.held_bytes > 17 << 19)
    })
    .await;
    // A power cut: what was not synced is gone, and nothing is closed in order.
    let files = files.crash_hard();
    drop((serving, first));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut second = Node::new(&config, FOLLOWER, &files, addresses);
    let _serving = second.serve(listener);
    leader.link.cluster.set_address(FOLLOWER, &address);
    drop(wire);
    assert_eq!(second.delivered().await, message(&snapshot));
    assert!(leader.report().await.2);
    assert_same(&snapshot, &second.manager);
    let (sent, all) = (leader.chunks_sent(7), chunks_of(&snapshot));
    let again = sent - all;
    // Between the synced 8 MiB and the 9 MiB and a window that had left.
    assert!(
        (1..=256 + WINDOW_CHUNKS + 1).contains(&again),
        "{again} chunks again"
    );
}

#[tokio::test]
async fn bad_input_stream_of_an_absent_region_is_refused_before_a_chunk() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 50);
    *pair.follower.store.wanted.lock() = Err(SnapshotError::NoSuchRegion { region_id: 7 });
    pair.send(&snapshot);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert_eq!(pair.leader.chunks_sent(7), 0);
    assert!(pair.follower.manager.list().is_empty());
    assert_eq!(pair.follower.metrics.snapshots_refused.get(), 1);
    assert_eq!(
        pair.wire.connections.load(Ordering::Relaxed),
        1,
        "not tried again"
    );
}

#[tokio::test]
async fn too_many_snapshots_at_once_are_refused_as_busy_and_come_again() {
    let mut config = small_config();
    config.snapshot.max_concurrent = 1;
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshot = make(&pair.leader, 7, 20);
    let other = {
        let mut slots = pair.follower.link.slots.lock();
        slots.slots.enter(99, 3, TERM).unwrap()
    };
    pair.send(&snapshot);
    eventually("a refusal and another stream", || {
        pair.follower.metrics.snapshots_refused.get() >= 2
    })
    .await;
    assert_eq!(pair.leader.chunks_sent(7), 0);
    pair.follower.link.slots.lock().slots.leave(other);
    pair.arrives(&snapshot).await;
}

#[tokio::test]
async fn many_snapshots_pass_through_few_permits() {
    let mut config = small_config();
    config.snapshot.max_concurrent = 2;
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshots: Vec<_> = (7..17).map(|id| make(&pair.leader, id, 20)).collect();
    for snapshot in &snapshots {
        pair.send(snapshot);
    }
    for _ in &snapshots {
        assert!(pair.leader.report().await.2);
    }
    for snapshot in &snapshots {
        assert_same(snapshot, &pair.follower.manager);
    }
}

#[tokio::test]
async fn a_frozen_stream_is_given_up_and_holds_a_window_at_most() {
    let mut config = small_config();
    config.snapshot.stall_time = Duration::from_millis(300);
    config.snapshot.send_timeout = Duration::from_secs(2);
    config.snapshot.max_waiting = 1;
    let frozen = (40 * CHUNK as usize, Fault::Freeze);
    // Frozen before the greeting is answered from the second connection on.
    let mut faults = vec![(100, Fault::Freeze); 100];
    faults[0] = frozen;
    let mut pair = pair_with(&config, faults).await;
    let snapshot = make(&pair.leader, 7, 200);
    pair.send(&snapshot);
    // There is no place for another one to wait.
    pair.send(&make(&pair.leader, 8, 1));
    assert_eq!(pair.leader.report().await, (8, 82, false));
    assert_eq!(pair.leader.report().await, (7, 72, false));
    let sent = pair.leader.chunks_sent(7);
    assert!(sent <= 40 + WINDOW_CHUNKS, "{sent} chunks left");
    assert_eq!(pair.leader.metrics.snapshots_send_failed.get(), 2);
    // The receiver has let the parts go, and kept what it had.
    eventually("the receiver gives the stream up", || {
        let listed = pair.follower.manager.list();
        listed.len() == 1 && listed[0].uses == 0 && !listed[0].complete
    })
    .await;
    eventually("its slot is free", || {
        pair.follower.link.slots.lock().slots.in_use() == 0
    })
    .await;
}

#[tokio::test]
async fn a_store_that_leads_no_more_stops_sending() {
    let config = {
        let mut config = small_config();
        // Slow enough to be seen under way.
        config.snapshot.rate_limit = Size(50 * CHUNK);
        config
    };
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshot = make(&pair.leader, 7, 1000);
    pair.send(&snapshot);
    eventually("a chunk was taken", || {
        let under_way = pair.follower.link.of_region(7).under_way;
        under_way.iter().any(|transfer| transfer.held_bytes > 0)
    })
    .await;
    pair.leader.store.leads.store(false, Ordering::Relaxed);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert!(pair.leader.chunks_sent(7) < 900);
    pair.send(&snapshot);
    assert_eq!(pair.leader.report().await, (7, 72, false));
}

#[tokio::test]
async fn a_later_snapshot_for_the_same_peer_takes_the_place_of_the_earlier() {
    let mut config = small_config();
    config.snapshot.rate_limit = Size(50 * CHUNK);
    let mut pair = pair_with(&config, Vec::new()).await;
    let slow = make(&pair.leader, 7, 5000);
    pair.send(&slow);
    eventually("a chunk was taken", || pair.leader.chunks_sent(7) > 0).await;
    // Raft has given it up, and sends a newer one.
    let small = make(&pair.leader, 7, 10);
    assert_ne!(small.meta().id, slow.meta().id);
    pair.send(&small);
    pair.arrives(&small).await;
    eventually("the earlier one has gone", || {
        pair.leader.link.of_region(7).under_way.is_empty()
    })
    .await;
    assert!(
        pair.leader.reports.try_recv().is_err(),
        "one report for both"
    );
    assert_eq!(pair.follower.manager.list().len(), 1, "its parts are gone");
}

#[tokio::test]
async fn the_rate_limit_holds_over_all_sends() {
    let mut config = small_config();
    config.snapshot.rate_limit = Size(200 * CHUNK);
    let mut pair = pair_with(&config, Vec::new()).await;
    let snapshots: Vec<_> = (7..9).map(|id| make(&pair.leader, id, 100)).collect();
    let begun = Instant::now();
    for snapshot in &snapshots {
        pair.send(snapshot);
    }
    for _ in &snapshots {
        assert!(pair.leader.report().await.2);
    }
    // 200 chunks at 200 a second, less the burst of a tenth.
    assert!(
        begun.elapsed() >= Duration::from_millis(850),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_snapshot_whose_files_are_gone_is_reported_as_failed() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 5);
    let message = message(&snapshot);
    drop(snapshot);
    assert_eq!(pair.leader.manager.retain(|_| false).unwrap().len(), 1);
    pair.leader.link.clone().send(FOLLOWER, message);
    assert_eq!(pair.leader.report().await, (7, 72, false));
    assert_eq!(pair.wire.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn bad_input_damaged_own_file_is_found_and_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (config, files) = (small_config(), MemFiles::new());
    let addresses = ["127.0.0.1:1", &address];
    let mut leader = Node::new(&config, LEADER, &files, addresses);
    let mut follower = Node::new(&config, FOLLOWER, &MemFiles::new(), addresses);
    let _serving = follower.serve(listener);
    let snapshot = make(&leader, 7, 5);
    let names = strata_storage::snapshot::FileStore::list(&files).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    files.flip_bit(&names[0].0, 999);
    leader.link.clone().send(FOLLOWER, message(&snapshot));
    assert_eq!(leader.report().await, (7, 72, false));
    assert!(follower.manager.find_received(7, INDEX, TERM).is_err());
    assert!(leader.manager.find_generated(snapshot.meta()).is_none());
    // The same snapshot made again is whole.
    drop(snapshot);
    let again = make(&leader, 7, 5);
    leader.link.clone().send(FOLLOWER, message(&again));
    assert_eq!(leader.report().await, (7, 72, true));
    follower.delivered().await;
    assert_same(&again, &follower.manager);
}

/// A stream of a test's own, greeted as the leader.
async fn raw_stream(pair: &Pair) -> (mpsc::Sender<SnapshotFrame>, Streaming<SnapshotReply>) {
    let address = format!("http://{}", pair.wire.address);
    let mut client = StoreTransportClient::connect(address).await.unwrap();
    let (frames, stream) = mpsc::channel(4);
    let hello = greet::hello(&pair.leader.link.cluster, FOLLOWER);
    frames
        .send(frame(snapshot_frame::Frame::Hello(hello)))
        .await
        .unwrap();
    let replies = client.send_snapshot(ReceiverStream::new(stream)).await;
    let mut replies = replies.unwrap().into_inner();
    let first = replies.message().await.unwrap().unwrap().reply;
    assert!(
        matches!(first, Some(snapshot_reply::Reply::Hello(_))),
        "{first:?}"
    );
    (frames, replies)
}

fn frame(frame: snapshot_frame::Frame) -> SnapshotFrame {
    SnapshotFrame { frame: Some(frame) }
}

#[tokio::test]
async fn a_later_stream_of_the_same_store_takes_the_place_of_a_dead_one() {
    let mut pair = pair().await;
    let snapshot = make(&pair.leader, 7, 20);
    let (frames, mut replies) = raw_stream(&pair).await;
    let offer = snapshot_frame::Frame::Offer(SnapshotOffer {
        message: Some(message(&snapshot)),
    });
    frames.send(frame(offer)).await.unwrap();
    let progress = replies.message().await.unwrap().unwrap().reply;
    assert!(
        matches!(progress, Some(snapshot_reply::Reply::Progress(_))),
        "{progress:?}"
    );
    // It says nothing more, and would only be given up after ten seconds.
    pair.send(&snapshot);
    pair.arrives(&snapshot).await;
    assert_eq!(pair.follower.metrics.snapshots_refused.get(), 1);
    assert!(replies.message().await.unwrap().is_none());
    drop(frames);
}

#[tokio::test]
async fn bad_input_stranger_sends_a_snapshot() {
    let pair = pair().await;
    let address = format!("http://{}", pair.wire.address);
    let greeting = |change: &dyn Fn(&mut StoreHello)| {
        let mut hello = greet::hello(&pair.leader.link.cluster, FOLLOWER);
        change(&mut hello);
        frame(snapshot_frame::Frame::Hello(hello))
    };
    let offer = frame(snapshot_frame::Frame::Offer(SnapshotOffer::default()));
    for (first, code) in [
        (
            greeting(&|h| h.cluster_id = 8),
            tonic::Code::FailedPrecondition,
        ),
        (
            greeting(&|h| h.store_id = 5),
            tonic::Code::FailedPrecondition,
        ),
        (
            greeting(&|h| h.to_store_id = 1),
            tonic::Code::FailedPrecondition,
        ),
        (offer, tonic::Code::InvalidArgument),
        (SnapshotFrame::default(), tonic::Code::InvalidArgument),
    ] {
        let mut client = StoreTransportClient::connect(address.clone())
            .await
            .unwrap();
        let stream = tokio_stream::once(first);
        let refused = client.send_snapshot(stream).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert!(pair.follower.manager.list().is_empty());
}

#[tokio::test]
async fn bad_input_stream_that_never_greets_is_let_go() {
    let pair = pair().await;
    let address = format!("http://{}", pair.wire.address);
    let mut client = StoreTransportClient::connect(address).await.unwrap();
    let refused = client.send_snapshot(tokio_stream::pending()).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::DeadlineExceeded);
}
