//! One node in this process, over engines in memory and a real socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use strata_proto::kvrpcpb::*;
use strata_proto::pdpb::pd_client::PdClient;
use strata_proto::pdpb::*;
use strata_proto::stratapb::clerk_client::ClerkClient;
use strata_proto::stratapb::strata_client::StrataClient;
use strata_proto::stratapb::{
    AppendCommand, DataCommand, ExecuteRequest, Executed, OpenSessionRequest, SequenceMismatch,
    SessionAnswer, SessionExpired, SessionOperation, StatusRequest, WatchRegionsRequest,
    data_command::Body, execute_response, session_answer,
};
use strata_proto::tikvpb::tikv_client::TikvClient;
use strata_storage::MemEngine;
use strata_storage::bootstrap::ClusterSpec;
use strata_storage::snapshot::{MemFiles, SnapshotManager};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::*;

#[path = "node_forward_tests.rs"]
mod forward;
#[path = "node_fuzz_tests.rs"]
mod fuzz;
#[path = "node_reset_tests.rs"]
mod reset;
#[path = "node_snapshot_fuzz_tests.rs"]
mod snapshot_fuzz;
#[path = "node_stream_tests.rs"]
mod stream;

/// Panics of all threads since this was first called: one within a connection's task ends nothing
/// but the connection.
fn panics() -> u64 {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            hook(panic);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

/// A served node; stops when it is told.
struct Served {
    address: String,
    cluster_id: u64,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), NodeError>>,
}

/// A listening socket with its address, before anything is served on it.
async fn port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// The folder of a store of the cluster that has these ids, as its first start leaves it.
fn new_folder(stores: &[u64], id: u64, incarnation: u64) -> Opened<MemEngine> {
    let replicas = if stores.len() < 3 { 1 } else { 3 };
    let spec = ClusterSpec::new(stores, "test", 6, replicas).unwrap();
    let mut ident = spec.ident(id, incarnation);
    let engines = MemEngine::new_pair();
    let layout = spec.layout();
    strata_storage::bootstrap::write_bootstrap(&engines, &ident, &layout).unwrap();
    ident.admitted = stores.len() == 1;
    Opened {
        snapshots: SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap(),
        engines,
        layout,
        persist_admission: Box::new(|| Ok(())),
        ident,
    }
}

impl Served {
    async fn start() -> Served {
        let (listener, address) = port().await;
        let addresses = BTreeMap::from([(1, address)]);
        Served::start_store(1, listener, addresses, new_folder(&[1], 1, 7)).await
    }

    async fn start_store(
        id: u64,
        listener: TcpListener,
        addresses: BTreeMap<u64, String>,
        opened: Opened<MemEngine>,
    ) -> Served {
        let address = addresses[&id].clone();
        let options = NodeOptions {
            id,
            addr: address.clone(),
            advertise_addr: None,
            data_dir: PathBuf::from("."),
            initial_cluster: addresses,
            cluster_token: None,
            regions: None,
            replicas: None,
            config: Config::default(),
            config_warnings: Vec::new(),
        };
        options.check().unwrap();
        let metrics = Arc::new(ServerMetrics::new());
        let logger = Logger::root(slog::Discard, slog::o!());
        let node = Node::start(&options, opened, metrics, logger)
            .await
            .unwrap();
        let cluster_id = node.cluster.cluster_id;
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(node.serve(listener, async {
            let _ = stopped.await;
        }));
        Served {
            address,
            cluster_id,
            stop,
            serving,
        }
    }

    async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.address);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    async fn get_page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
    }
}

/// The context of the region that holds a raw v1 key, once it has a leader.
async fn context(pd: &mut PdClient<Channel>, key: &'static [u8]) -> Context {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let request = GetRegionRequest {
            region_key: Bytes::from_static(key),
            ..Default::default()
        };
        if let Ok(answer) = pd.get_region(request).await {
            let answer = answer.into_inner();
            let header = answer.header.expect("every answer has a header");
            assert_eq!(header.error, None);
            let region = answer.region.expect("the directory covers every key");
            assert_ne!(region.id, 1);
            if let Some(leader) = answer.leader {
                return Context {
                    region_id: region.id,
                    region_epoch: region.region_epoch,
                    peer: Some(leader),
                    ..Default::default()
                };
            }
        }
        assert!(Instant::now() < deadline, "no leader within 60 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_serves_raw_calls_over_a_socket() {
    let served = Served::start().await;
    let channel = served.channel().await;
    let mut pd = PdClient::new(channel.clone());
    let mut tikv = TikvClient::new(channel);
    let context = context(&mut pd, b"k").await;
    let put = RawPutRequest {
        context: Some(context.clone()),
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        ..Default::default()
    };
    let answer = tikv.raw_put(put.clone()).await.unwrap().into_inner();
    assert_eq!(answer, RawPutResponse::default());
    let get = RawGetRequest {
        context: Some(context.clone()),
        key: Bytes::from_static(b"k"),
        ..Default::default()
    };
    let answer = tikv.raw_get(get).await.unwrap().into_inner();
    assert_eq!((&answer.value[..], answer.not_found), (&b"v"[..], false));
    let swap = RawCompareAndSwapRequest {
        context: Some(context.clone()),
        key: Bytes::from_static(b"k"),
        previous_value: Bytes::from_static(b"other"),
        ..Default::default()
    };
    let answer = tikv.raw_compare_and_swap(swap).await.unwrap().into_inner();
    assert_eq!(
        (answer.succeed, &answer.previous_value[..]),
        (false, &b"v"[..])
    );
    // Refusals are in the fields where clients look.
    let mut wrong = put.clone();
    wrong.cf = "lock".to_owned();
    let answer = tikv.raw_put(wrong).await.unwrap().into_inner();
    assert!(answer.region_error.is_none() && answer.error.contains("lock"));
    let mut wrong = put.clone();
    wrong.key = Bytes::new();
    let answer = tikv.raw_put(wrong).await.unwrap().into_inner();
    assert!(answer.region_error.is_none() && answer.error.contains("empty"));
    let mut wrong = put;
    wrong.context.as_mut().unwrap().region_id = 1;
    let answer = tikv.raw_put(wrong).await.unwrap().into_inner();
    assert!(answer.region_error.unwrap().region_not_found.is_some());
    let scan = RawScanRequest {
        context: Some(context),
        start_key: Bytes::from_static(b"z"),
        end_key: Bytes::from_static(b"a"),
        limit: 10,
        ..Default::default()
    };
    let answer = tikv.raw_scan(scan).await.unwrap().into_inner();
    assert_eq!(answer, RawScanResponse::default());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_runs_the_writes_of_a_session_once() {
    let served = Served::start().await;
    let channel = served.channel().await;
    let mut pd = PdClient::new(channel.clone());
    let mut tikv = TikvClient::new(channel.clone());
    let mut clerk = ClerkClient::new(channel);
    let context = context(&mut pd, b"k").await;
    let opening = OpenSessionRequest {
        context: Some(context.clone()),
    };
    let opened = clerk.open_session(opening.clone()).await.unwrap();
    let opened = opened.into_inner();
    assert!(opened.region_error.is_none() && opened.error.is_empty());
    assert_eq!(opened.session_id.len(), 20);
    let mut request = ExecuteRequest {
        context: Some(context.clone()),
        command: Some(DataCommand {
            session: Some(SessionOperation {
                session_id: opened.session_id,
                sequence: 1,
            }),
            body: Some(Body::Append(AppendCommand {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"v"),
                ..Default::default()
            })),
        }),
    };
    // Sent again, it is answered again and not executed again.
    for _ in 0..2 {
        let answer = clerk.execute(request.clone()).await.unwrap().into_inner();
        let executed = SessionAnswer {
            outcome: Some(session_answer::Outcome::Executed(Executed {})),
        };
        assert_eq!(
            answer.outcome,
            Some(execute_response::Outcome::Answer(executed))
        );
    }
    let get = RawGetRequest {
        context: Some(context.clone()),
        key: Bytes::from_static(b"k"),
        ..Default::default()
    };
    let answer = tikv.raw_get(get).await.unwrap().into_inner();
    assert_eq!(&answer.value[..], b"v");
    // Refusals say what a client needs to go on.
    let session = |request: &mut ExecuteRequest, change: &dyn Fn(&mut SessionOperation)| {
        let command = request.command.as_mut().unwrap();
        change(command.session.as_mut().unwrap());
    };
    session(&mut request, &|session| session.sequence = 7);
    let answer = clerk.execute(request.clone()).await.unwrap().into_inner();
    let mismatch = SequenceMismatch {
        sequence: 7,
        last_sequence: 1,
    };
    assert_eq!(
        answer.outcome,
        Some(execute_response::Outcome::SequenceMismatch(mismatch))
    );
    session(&mut request, &|session| {
        session.session_id = vec![9; 20].into();
    });
    let answer = clerk.execute(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        answer.outcome,
        Some(execute_response::Outcome::SessionExpired(SessionExpired {}))
    );
    session(&mut request, &|session| session.session_id = Bytes::new());
    let answer = clerk.execute(request.clone()).await.unwrap().into_inner();
    assert!(answer.error.contains("20"), "{answer:?}");
    request.command.as_mut().unwrap().session = None;
    let answer = clerk.execute(request.clone()).await.unwrap().into_inner();
    assert!(answer.error.contains("session"), "{answer:?}");
    request.context.as_mut().unwrap().region_id = 1;
    request.command.as_mut().unwrap().session = Some(SessionOperation {
        session_id: vec![9; 20].into(),
        sequence: 1,
    });
    let answer = clerk.execute(request).await.unwrap().into_inner();
    assert!(answer.region_error.unwrap().region_not_found.is_some());
    let mut elsewhere = opening;
    elsewhere.context.as_mut().unwrap().region_id = 4711;
    let answer = clerk.open_session(elsewhere).await.unwrap().into_inner();
    assert!(answer.region_error.unwrap().region_not_found.is_some());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_answers_the_scheduler_calls() {
    let served = Served::start().await;
    let channel = served.channel().await;
    let mut pd = PdClient::new(channel.clone());
    context(&mut pd, b"k").await;
    let members = pd.get_members(GetMembersRequest::default()).await.unwrap();
    let members = members.into_inner();
    assert_eq!(members.header.unwrap().cluster_id, served.cluster_id);
    assert_eq!(members.leader.as_ref(), members.members.first());
    let scan = pd
        .scan_regions(ScanRegionsRequest::default())
        .await
        .unwrap();
    let scan = scan.into_inner();
    assert_eq!(scan.regions.len(), 6);
    assert!(scan.regions.iter().all(|found| found.leader.is_some()));
    let by_id = |region_id| GetRegionByIdRequest {
        region_id,
        ..Default::default()
    };
    let hidden = pd.get_region_by_id(by_id(1)).await.unwrap().into_inner();
    assert_eq!((hidden.region, hidden.leader), (None, None));
    let ids: Vec<_> = [1, 3]
        .map(|count| AllocIdRequest {
            count,
            ..Default::default()
        })
        .into();
    let mut last = 0;
    for request in ids {
        let answer = pd.alloc_id(request).await.unwrap().into_inner();
        assert!(answer.id > last && answer.id >= 1_000_000);
        last = answer.id;
    }
    let store = |store_id| GetStoreRequest {
        store_id,
        ..Default::default()
    };
    let known = pd.get_store(store(1)).await.unwrap().into_inner();
    assert_eq!(known.store.unwrap().address, served.address);
    let unknown = pd.get_store(store(9)).await.unwrap().into_inner();
    assert!(unknown.header.unwrap().error.is_some());
    let foreign = GetStoreRequest {
        header: Some(RequestHeader {
            cluster_id: served.cluster_id ^ 1,
            ..Default::default()
        }),
        store_id: 1,
    };
    assert!(pd.get_store(foreign).await.is_err());
    let requests = [1, 64, 5].map(|count| TsoRequest {
        count,
        ..Default::default()
    });
    let stream = tokio_stream::iter(requests);
    let mut answers = pd.tso(stream).await.unwrap().into_inner();
    let mut last = (0, 0);
    for count in [1, 64, 5] {
        let answer = answers.message().await.unwrap().unwrap();
        let timestamp = answer.timestamp.unwrap();
        assert_eq!(answer.count, count);
        assert!((timestamp.physical, timestamp.logical - i64::from(count)) >= last);
        last = (timestamp.physical, timestamp.logical);
    }
    assert!(answers.message().await.unwrap().is_none());
    let mut tools = StrataClient::new(channel);
    let status = tools.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.stores.len(), status.scheduler_store_id), (1, 1));
    let mut watch = tools
        .watch_regions(WatchRegionsRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert!(!first.regions.is_empty());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_serves_pages_and_survives_strangers() {
    let served = Served::start().await;
    // Not HTTP at all, and HTTP/2 with a body that is no protobuf.
    let mut stranger = TcpStream::connect(&served.address).await.unwrap();
    stranger.write_all(&[0xff; 64]).await.unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer).await;
    let mut pd = PdClient::new(served.channel().await);
    context(&mut pd, b"k").await;
    for (path, holds) in [
        ("/healthz", "ok"),
        ("/status", "\"store_id\":1"),
        ("/metrics", "strata_store_applied_entries"),
        ("/debug/regions/2", "\"region_id\":2"),
        ("/debug/regions/77", "404"),
        ("/pd/api/v1/regions", "\"count\":6"),
        ("/pd/api/v1/stores", "\"count\":1"),
        ("/pd/api/v1/members", "client_urls"),
        ("/no/such/page", "404"),
    ] {
        let page = served.get_page(path).await;
        assert!(page.contains(holds), "{path}: {page}");
    }
    served.stop().await;
}

/// Count and sum in seconds of a stage of writes, as `/metrics` has them.
fn stage_of(page: &str, stage: &str) -> (u64, f64) {
    let figure = |kind: &str| {
        let name = format!("strata_store_write_stage_seconds_{kind}{{stage=\"{stage}\"}} ");
        let mut found = page.lines().filter_map(|line| line.strip_prefix(&name));
        let value = found.next().unwrap_or_else(|| panic!("no {name}: {page}"));
        assert_eq!(found.next(), None, "{name} twice");
        value.parse::<f64>().unwrap()
    };
    (figure("count") as u64, figure("sum"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_where_the_time_of_puts_goes() {
    const PUTS: u64 = 20;
    let served = Served::start().await;
    let channel = served.channel().await;
    let mut pd = PdClient::new(channel.clone());
    let mut tikv = TikvClient::new(channel);
    let context = context(&mut pd, b"k").await;
    let begun = Instant::now();
    for _ in 0..PUTS {
        let put = RawPutRequest {
            context: Some(context.clone()),
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ..Default::default()
        };
        let answer = tikv.raw_put(put).await.unwrap().into_inner();
        assert_eq!(answer, RawPutResponse::default());
    }
    // The last put is counted once its answer is on its way.
    let deadline = Instant::now() + Duration::from_secs(60);
    let (page, total) = loop {
        let page = served.get_page("/metrics").await;
        let stages = [
            "inbox",
            "propose",
            "commit",
            "apply_queue",
            "apply_write",
            "reply",
        ]
        .map(|stage| stage_of(&page, stage));
        let (counted, total) = stage_of(&page, "total");
        let all = counted == PUTS && stages.iter().all(|(count, _)| *count == PUTS);
        let sum: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
        // All figures are whole microseconds.
        if all && (sum - total).abs() < 1e-9 {
            break (page, total);
        }
        assert!(Instant::now() < deadline, "{sum} s of {total} s: {page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // One put was under way at a time.
    let later = begun.elapsed().as_secs_f64();
    assert!(total > 0.0 && total <= later, "{total} s of {later} s");
    for stage in ["log_queue", "log_write"] {
        let (count, seconds) = stage_of(&page, stage);
        assert!(
            count >= PUTS,
            "{stage}: a put alone has a log batch of its own"
        );
        assert!(seconds <= 60.0 * 60.0, "{stage}: {seconds} s");
    }
    served.stop().await;
}

/// Waits until a page holds some words.
async fn page_holds(served: &Served, path: &str, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = served.get_page(path).await;
        if page.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "{path} without {words}: {page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_admit_each_other_and_refuse_one_that_lost_its_folder() {
    let ids = [1, 2, 3];
    let mut ports = Vec::new();
    for _ in ids {
        ports.push(port().await);
    }
    let addresses: BTreeMap<u64, String> = ids
        .into_iter()
        .zip(ports.iter().map(|(_, address)| address.clone()))
        .collect();
    let mut listeners: Vec<_> = ports.into_iter().map(|(listener, _)| listener).collect();
    let third = listeners.pop().unwrap();
    let mut nodes = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        let folder = new_folder(&ids, id, id + 10);
        nodes.push(Served::start_store(id, listener, addresses.clone(), folder).await);
    }
    // Two of three stores would be a quorum; a new cluster waits for all of them.
    page_holds(&nodes[0], "/healthz", "[3]").await;
    let folder = new_folder(&ids, 3, 13);
    nodes.push(Served::start_store(3, third, addresses.clone(), folder).await);
    for node in &nodes {
        page_holds(node, "/healthz", "ok").await;
    }
    // Every node answers, whoever leads, and a put at the leader is read there.
    for node in &nodes {
        let mut pd = PdClient::new(node.channel().await);
        let context = context(&mut pd, b"k").await;
        let leader = context.peer.unwrap().store_id as usize;
        let mut tikv = TikvClient::new(nodes[leader - 1].channel().await);
        let put = RawPutRequest {
            context: Some(context),
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ..Default::default()
        };
        let answer = tikv.raw_put(put).await.unwrap().into_inner();
        assert_eq!(answer, RawPutResponse::default());
    }
    // Store 3 comes back with an empty folder, so with another incarnation.
    nodes.pop().unwrap().stop().await;
    let third = TcpListener::bind(&addresses[&3]).await.unwrap();
    let wiped = new_folder(&ids, 3, 99);
    nodes.push(Served::start_store(3, third, addresses.clone(), wiped).await);
    let wiped_waits = "waiting for stores [1, 2]";
    page_holds(&nodes[2], "/healthz", wiped_waits).await;
    let mut pd = PdClient::new(nodes[0].channel().await);
    let found = context(&mut pd, b"k").await;
    assert_ne!(found.peer.unwrap().store_id, 3);
    page_holds(&nodes[2], "/healthz", wiped_waits).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = listener::bind(&address).await.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("taken by another process"));
    assert!(!error.to_string().contains('\n'));
}
