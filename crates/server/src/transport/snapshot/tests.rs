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

mod bad_input;
mod many;
mod streams;

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
        let cluster = Cluster::new(9, store_id, 70 + store_id, 0, addresses, config);
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
    type SendSnapshotStream = SnapshotReplyStream;

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
        snapshot: Some(Box::new(to_raft(snapshot.meta()))),
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
