//! The client against a server that answers as it is told: three regions of one store,
//! with pairs in a map, and a list of faults for the next requests.
//!
//! Here is the server; `calls` has what the client does with it.

mod calls;

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strata_client::{Options, RawClient};
use strata_proto::pdpb::pd_server::{Pd, PdServer};
use strata_proto::tikvpb::tikv_server::{Tikv, TikvServer};
use strata_proto::{errorpb, kvrpcpb, metapb, pdpb};
use tonic::{Request, Response, Status, Streaming};

/// What happens to the next raw request instead of its answer.
#[derive(Clone)]
enum Fault {
    /// This region error, nothing executed.
    Refuse(Box<errorpb::Error>),
    /// Executed, and the answer never comes.
    Lose,
    /// Nothing executed, and no answer either.
    Hang,
}

#[derive(Default)]
struct State {
    pairs: BTreeMap<Bytes, Bytes>,
    faults: VecDeque<Fault>,
    requests: usize,
    /// Most bytes of keys and values in an answer, beyond one pair.
    answer_bytes_max: Option<usize>,
    look_ups: usize,
    version: u64,
}

#[derive(Clone)]
struct Scripted {
    address: Arc<str>,
    state: Arc<Mutex<State>>,
}

const BOUNDS: [&[u8]; 4] = [b"", b"h", b"p", b""];
const STORE: u64 = 7;

type Answer<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn header() -> Option<pdpb::ResponseHeader> {
    Some(pdpb::ResponseHeader {
        cluster_id: 9,
        error: None,
    })
}

fn peer(id: u64) -> metapb::Peer {
    metapb::Peer {
        id,
        store_id: STORE,
        ..Default::default()
    }
}

impl Scripted {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scripted = Self {
            address: listener.local_addr().unwrap().to_string().into(),
            state: Arc::default(),
        };
        scripted.state.lock().unwrap().version = 1;
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(PdServer::new(scripted.clone()))
                .add_service(TikvServer::new(scripted.clone()))
                .serve_with_incoming(incoming),
        );
        scripted
    }

    async fn client(&self, change: impl FnOnce(&mut Options)) -> RawClient {
        let mut options = Options {
            operation_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_millis(200),
            ..Options::default()
        };
        change(&mut options);
        RawClient::connect(&[&*self.address], options)
            .await
            .unwrap()
    }

    fn plant(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }

    fn region(&self, place: usize) -> metapb::Region {
        metapb::Region {
            id: place as u64 + 2,
            start_key: Bytes::from_static(BOUNDS[place]),
            end_key: Bytes::from_static(BOUNDS[place + 1]),
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version: self.state.lock().unwrap().version,
            }),
            peers: vec![peer(place as u64 + 20)],
            ..Default::default()
        }
    }

    fn found(&self, place: usize) -> pdpb::GetRegionResponse {
        self.state.lock().unwrap().look_ups += 1;
        pdpb::GetRegionResponse {
            header: header(),
            region: Some(self.region(place)),
            leader: Some(peer(place as u64 + 20)),
            ..Default::default()
        }
    }

    /// Executes on the pairs, unless a fault comes first. Checks that the range asked for
    /// lies in the region addressed.
    async fn execute<T>(
        &self,
        context: Option<kvrpcpb::Context>,
        execute: impl FnOnce(&mut BTreeMap<Bytes, Bytes>) -> T,
        refuse: impl FnOnce(errorpb::Error) -> T,
    ) -> Answer<T> {
        let context = context.expect("every request has a context");
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.requests += 1;
            state.faults.pop_front()
        };
        if let Some(Fault::Refuse(error)) = fault {
            return ok(refuse(*error));
        }
        if let Some(Fault::Hang) = fault {
            std::future::pending::<()>().await;
        }
        let current = self.region((context.region_id - 2) as usize);
        if context.region_epoch != current.region_epoch {
            return ok(refuse(errorpb::Error {
                epoch_not_match: Some(errorpb::EpochNotMatch {
                    current_regions: (0..3).map(|place| self.region(place)).collect(),
                }),
                ..Default::default()
            }));
        }
        let answer = execute(&mut self.state.lock().unwrap().pairs);
        if let Some(Fault::Lose) = fault {
            std::future::pending::<()>().await;
        }
        ok(answer)
    }
}

/// As a store judges it: a single pair always goes.
fn exceeds(pairs: &[kvrpcpb::KvPair], bytes_max: Option<usize>) -> bool {
    let bytes: usize = pairs.iter().map(|p| p.key.len() + p.value.len()).sum();
    pairs.len() > 1 && bytes_max.is_some_and(|max| bytes > max)
}

fn too_large() -> errorpb::Error {
    errorpb::Error {
        message: "the answer is too large".into(),
        raft_entry_too_large: Some(errorpb::RaftEntryTooLarge {
            region_id: 2,
            entry_size: 100,
        }),
        ..Default::default()
    }
}

fn place_of(key: &[u8]) -> usize {
    (0..3).rev().find(|place| BOUNDS[*place] <= key).unwrap()
}

#[tonic::async_trait]
impl Pd for Scripted {
    async fn get_members(
        &self,
        _: Request<pdpb::GetMembersRequest>,
    ) -> Answer<pdpb::GetMembersResponse> {
        ok(pdpb::GetMembersResponse {
            header: header(),
            ..Default::default()
        })
    }
    type TsoStream = tokio_stream::Empty<Result<pdpb::TsoResponse, Status>>;
    async fn tso(&self, _: Request<Streaming<pdpb::TsoRequest>>) -> Answer<Self::TsoStream> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn alloc_id(&self, _: Request<pdpb::AllocIdRequest>) -> Answer<pdpb::AllocIdResponse> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn get_store(
        &self,
        request: Request<pdpb::GetStoreRequest>,
    ) -> Answer<pdpb::GetStoreResponse> {
        ok(pdpb::GetStoreResponse {
            header: header(),
            store: Some(metapb::Store {
                id: request.get_ref().store_id,
                address: self.address.to_string(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }
    async fn get_all_stores(
        &self,
        _: Request<pdpb::GetAllStoresRequest>,
    ) -> Answer<pdpb::GetAllStoresResponse> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn get_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        ok(self.found(place_of(&request.get_ref().region_key)))
    }
    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        ok(self.found(place_of(&request.get_ref().region_key) - 1))
    }
    async fn get_region_by_id(
        &self,
        _: Request<pdpb::GetRegionByIdRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn scan_regions(
        &self,
        _: Request<pdpb::ScanRegionsRequest>,
    ) -> Answer<pdpb::ScanRegionsResponse> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn get_cluster_info(
        &self,
        _: Request<pdpb::GetClusterInfoRequest>,
    ) -> Answer<pdpb::GetClusterInfoResponse> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// Answers that hold nothing but a region error.
macro_rules! refusing {
    ($name:ident) => {
        |error| kvrpcpb::$name {
            region_error: Some(error),
            ..Default::default()
        }
    };
}

/// Written out as `async_trait` would, which does not look into macros.
macro_rules! not_scripted {
    ($($method:ident $request:ident $response:ident),*) => {
        $(fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: Request<kvrpcpb::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<kvrpcpb::$response>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("not scripted")) })
        })*
    };
}

#[tonic::async_trait]
impl Tikv for Scripted {
    async fn raw_get(
        &self,
        request: Request<kvrpcpb::RawGetRequest>,
    ) -> Answer<kvrpcpb::RawGetResponse> {
        let request = request.into_inner();
        self.execute(
            request.context,
            |pairs| kvrpcpb::RawGetResponse {
                not_found: !pairs.contains_key(&request.key),
                value: pairs.get(&request.key).cloned().unwrap_or_default(),
                ..Default::default()
            },
            refusing!(RawGetResponse),
        )
        .await
    }

    async fn raw_put(
        &self,
        request: Request<kvrpcpb::RawPutRequest>,
    ) -> Answer<kvrpcpb::RawPutResponse> {
        let request = request.into_inner();
        self.execute(
            request.context,
            |pairs| {
                pairs.insert(request.key, request.value);
                kvrpcpb::RawPutResponse::default()
            },
            refusing!(RawPutResponse),
        )
        .await
    }

    async fn raw_scan(
        &self,
        request: Request<kvrpcpb::RawScanRequest>,
    ) -> Answer<kvrpcpb::RawScanResponse> {
        let request = request.into_inner();
        let place = request.context.as_ref().unwrap().region_id as usize - 2;
        let (low, high) = if request.reverse {
            (&request.end_key, &request.start_key)
        } else {
            (&request.start_key, &request.end_key)
        };
        assert!(low >= BOUNDS[place], "below the region");
        let answer_bytes_max = self.state.lock().unwrap().answer_bytes_max;
        assert!(BOUNDS[place + 1].is_empty() || (!high.is_empty() && high <= BOUNDS[place + 1]));
        self.execute(
            request.context,
            |pairs| {
                let mut rows: Vec<kvrpcpb::KvPair> = pairs
                    .iter()
                    .filter(|(key, _)| *key >= low && (high.is_empty() || *key < high))
                    .map(|(key, value)| kvrpcpb::KvPair {
                        key: key.clone(),
                        value: value.clone(),
                        ..Default::default()
                    })
                    .collect();
                if request.reverse {
                    rows.reverse();
                }
                rows.truncate(request.limit as usize);
                if exceeds(&rows, answer_bytes_max) {
                    return kvrpcpb::RawScanResponse {
                        region_error: Some(too_large()),
                        ..Default::default()
                    };
                }
                kvrpcpb::RawScanResponse {
                    kvs: rows,
                    ..Default::default()
                }
            },
            refusing!(RawScanResponse),
        )
        .await
    }

    async fn raw_batch_get(
        &self,
        request: Request<kvrpcpb::RawBatchGetRequest>,
    ) -> Answer<kvrpcpb::RawBatchGetResponse> {
        let request = request.into_inner();
        let answer_bytes_max = self.state.lock().unwrap().answer_bytes_max;
        self.execute(
            request.context,
            |pairs| {
                let found: Vec<kvrpcpb::KvPair> = request
                    .keys
                    .iter()
                    .filter_map(|key| pairs.get_key_value(key))
                    .map(|(key, value)| kvrpcpb::KvPair {
                        key: key.clone(),
                        value: value.clone(),
                        ..Default::default()
                    })
                    .collect();
                if exceeds(&found, answer_bytes_max) {
                    return kvrpcpb::RawBatchGetResponse {
                        region_error: Some(too_large()),
                        ..Default::default()
                    };
                }
                kvrpcpb::RawBatchGetResponse {
                    pairs: found,
                    ..Default::default()
                }
            },
            refusing!(RawBatchGetResponse),
        )
        .await
    }

    async fn raw_compare_and_swap(
        &self,
        request: Request<kvrpcpb::RawCompareAndSwapRequest>,
    ) -> Answer<kvrpcpb::RawCompareAndSwapResponse> {
        let request = request.into_inner();
        self.execute(
            request.context,
            |pairs| {
                let succeed = request.previous_not_exist && !pairs.contains_key(&request.key);
                pairs.insert(request.key, request.value);
                kvrpcpb::RawCompareAndSwapResponse {
                    succeed,
                    previous_not_exist: succeed,
                    ..Default::default()
                }
            },
            refusing!(RawCompareAndSwapResponse),
        )
        .await
    }

    async fn raw_batch_put(
        &self,
        request: Request<kvrpcpb::RawBatchPutRequest>,
    ) -> Answer<kvrpcpb::RawBatchPutResponse> {
        let request = request.into_inner();
        let place = request.context.as_ref().unwrap().region_id as usize - 2;
        assert!(
            request
                .pairs
                .iter()
                .all(|pair| place_of(&pair.key) == place)
        );
        self.execute(
            request.context,
            |pairs| {
                pairs.extend(request.pairs.into_iter().map(|pair| (pair.key, pair.value)));
                kvrpcpb::RawBatchPutResponse::default()
            },
            refusing!(RawBatchPutResponse),
        )
        .await
    }

    not_scripted!(
        raw_get_key_ttl RawGetKeyTtlRequest RawGetKeyTtlResponse,
        raw_delete RawDeleteRequest RawDeleteResponse,
        raw_batch_delete RawBatchDeleteRequest RawBatchDeleteResponse,
        raw_delete_range RawDeleteRangeRequest RawDeleteRangeResponse,
        raw_batch_scan RawBatchScanRequest RawBatchScanResponse,
        raw_checksum RawChecksumRequest RawChecksumResponse
    );
}

fn not_leader(leader: Option<u64>) -> Fault {
    Fault::Refuse(Box::new(errorpb::Error {
        not_leader: Some(errorpb::NotLeader {
            region_id: 2,
            leader: leader.map(peer),
        }),
        ..Default::default()
    }))
}
