//! A node that forwards to the scheduler's leader, and the nodes that it asks lie.
//!
//! The node is store 4 of four, so that it holds no peer of region 1; the others are servers
//! of this test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strata_fuzz::Mutator;
use strata_proto::metapb::{Peer, Region, Store};
use strata_proto::pdpb::pd_server::{Pd, PdServer};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;

/// Time after which a call hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const KNOWN: u64 = 77;

/// What a server of this test does with the calls that it gets.
type Lie = Arc<dyn Fn() -> Option<Status> + Send + Sync>;

/// Answers with a region and a store that it makes up, unless the lie is a refusal.
#[derive(Clone)]
struct Liar {
    lie: Lie,
    mutator: Arc<Mutex<Mutator>>,
}

impl Liar {
    fn answer<T: prost::Message + Default>(&self, honest: T) -> Result<Response<T>, Status> {
        if let Some(refusal) = (self.lie)() {
            return Err(refusal);
        }
        let mut mutator = self.mutator.lock();
        let changed = mutator.message(&honest.encode_to_vec());
        Ok(Response::new(T::decode(&changed[..]).unwrap_or(honest)))
    }
}

#[tonic::async_trait]
impl Pd for Liar {
    async fn get_members(
        &self,
        _: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        self.answer(GetMembersResponse::default())
    }
    type TsoStream = tokio_stream::Empty<Result<TsoResponse, Status>>;
    async fn tso(
        &self,
        _: Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        Err(Status::unimplemented("no stream is forwarded"))
    }
    async fn alloc_id(
        &self,
        _: Request<AllocIdRequest>,
    ) -> Result<Response<AllocIdResponse>, Status> {
        self.answer(AllocIdResponse::default())
    }
    async fn get_store(
        &self,
        _: Request<GetStoreRequest>,
    ) -> Result<Response<GetStoreResponse>, Status> {
        let store = Store {
            id: KNOWN,
            ..Store::default()
        };
        self.answer(GetStoreResponse {
            store: Some(store),
            ..GetStoreResponse::default()
        })
    }
    async fn get_all_stores(
        &self,
        _: Request<GetAllStoresRequest>,
    ) -> Result<Response<GetAllStoresResponse>, Status> {
        self.answer(GetAllStoresResponse::default())
    }
    async fn get_region(
        &self,
        _: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let region = Region {
            id: KNOWN,
            peers: vec![Peer::default()],
            ..Region::default()
        };
        self.answer(GetRegionResponse {
            region: Some(region),
            ..GetRegionResponse::default()
        })
    }
    async fn get_prev_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.get_region(request).await
    }
    async fn get_region_by_id(
        &self,
        _: Request<GetRegionByIdRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.answer(GetRegionResponse::default())
    }
    async fn scan_regions(
        &self,
        _: Request<ScanRegionsRequest>,
    ) -> Result<Response<ScanRegionsResponse>, Status> {
        self.answer(ScanRegionsResponse::default())
    }
    async fn get_cluster_info(
        &self,
        _: Request<GetClusterInfoRequest>,
    ) -> Result<Response<GetClusterInfoResponse>, Status> {
        self.answer(GetClusterInfoResponse::default())
    }
}

/// Store 4, and a server in the place of each other store.
async fn node_among(lie: Lie) -> (Served, Vec<JoinHandle<()>>) {
    let liar = Liar {
        lie,
        mutator: Arc::new(Mutex::new(Mutator::new(1))),
    };
    let (mut addresses, mut liars) = (BTreeMap::new(), Vec::new());
    for id in 1..=3 {
        let (listener, address) = port().await;
        addresses.insert(id, address);
        let server = tonic::transport::Server::builder().add_service(PdServer::new(liar.clone()));
        liars.push(tokio::spawn(async move {
            let _ = server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await;
        }));
    }
    let (listener, address) = port().await;
    addresses.insert(4, address);
    let folder = new_folder(&[1, 2, 3, 4], 4, 14);
    let has_peer = |region: &Region| region.peers.iter().any(|peer| peer.store_id == 4);
    assert!(
        !folder
            .layout
            .iter()
            .any(|region| region.id == 1 && has_peer(region))
    );
    (
        Served::start_store(4, listener, addresses, folder).await,
        liars,
    )
}

/// A refusal that names a store as the leader.
fn named(leader: &str) -> Status {
    let mut status = Status::unavailable("not the leader");
    let leader = MetadataValue::try_from(leader).unwrap();
    status.metadata_mut().insert("strata-leader", leader);
    status
}

async fn look_up(served: &Served) -> Result<Option<Store>, Code> {
    let mut pd = PdClient::new(served.channel().await);
    let request = GetStoreRequest {
        store_id: KNOWN,
        ..GetStoreRequest::default()
    };
    let answer = tokio::time::timeout(PATIENCE, pd.get_store(request)).await;
    match answer.expect("an answer in time") {
        Ok(answer) => Ok(answer.into_inner().store),
        Err(status) => Err(status.code()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_does_not_exist_is_not_asked_for_ever() {
    for wrong in ["999", "4", "0", "none", "18446744073709551616"] {
        let left = Arc::new(AtomicU64::new(2));
        let count = left.clone();
        let lie: Lie = Arc::new(move || {
            let before = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            before.is_ok().then(|| named(wrong))
        });
        let (served, liars) = node_among(lie).await;
        // The first call may end over the wrong words, but not those after it.
        let _ = look_up(&served).await;
        let found = look_up(&served).await;
        assert!(found.is_ok(), "{wrong}: {found:?}");
        served.stop().await;
        liars.into_iter().for_each(|liar| liar.abort());
    }
}

/// Each call is answered or refused within its time, whatever the leader says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz_answers_that_a_node_passes_on() {
    let draws = Arc::new(Mutex::new(Mutator::new(7)));
    let lie: Lie = Arc::new(move || {
        let mut mutator = draws.lock();
        match mutator.number() % 4 {
            0 => Some(named(&mutator.number().to_string())),
            1 => {
                let code = Code::from_i32((1 + mutator.number() % 16) as i32);
                Some(Status::new(code, mutator.text(&["a\nb", "no"])))
            }
            _ => None,
        }
    });
    let (served, liars) = node_among(lie).await;
    let mut pd = PdClient::new(served.channel().await);
    let mut passed = 0;
    for _ in 0..60 {
        let key = Bytes::from_static(b"k");
        let request = GetRegionRequest {
            region_key: key,
            ..GetRegionRequest::default()
        };
        let calls = async {
            let _ = pd.scan_regions(ScanRegionsRequest::default()).await;
            let members = pd.get_members(GetMembersRequest::default()).await;
            members.expect("every node knows the members");
            pd.get_region(request).await.is_ok()
        };
        let ended = tokio::time::timeout(PATIENCE, calls).await;
        passed += u64::from(ended.expect("answers in time"));
    }
    assert!(passed > 20, "{passed} of 60 were passed on");
    served.stop().await;
    liars.into_iter().for_each(|liar| liar.abort());
}
