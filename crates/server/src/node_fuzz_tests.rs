//! Bytes of any content at every call and page of a running node.
//!
//! One node in this process; the calls go over a real socket with a codec that sends bytes as
//! they are. Whatever comes, each call is answered or refused in time, no handler panics, and
//! in the end the node serves as before.

use std::time::Duration;

use bytes::{Buf, BufMut};
use prost::Message;
use strata_fuzz::Mutator;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{
    RegionReports, SnapshotFrame, SnapshotOffer, StoreHello, TransferLeaderRequest,
    snapshot_frame::Frame,
};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use super::*;
use crate::transport::PREFACE;

/// Calls of a run; `FUZZ_CASES` gives another number.
const CALLS: u64 = 800;
/// Time that each call gives itself.
const CALL_TIME: Duration = Duration::from_millis(100);
/// Time after which an answer is missing.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The calls of one service with real messages; calls that stream come first.
struct Service {
    name: &'static str,
    streams: &'static [&'static str],
    calls: &'static [&'static str],
    corpus: Vec<Vec<u8>>,
}

fn services(context: &Context, cluster_id: u64) -> Vec<Service> {
    let (context, key) = (Some(context.clone()), Bytes::from_static(b"k"));
    let pd_header = Some(RequestHeader {
        cluster_id,
        ..RequestHeader::default()
    });
    let command = DataCommand {
        session: Some(SessionOperation {
            session_id: vec![0; 20].into(),
            sequence: 1,
        }),
        body: Some(Body::Append(AppendCommand {
            key: key.clone(),
            value: key.clone(),
            ..AppendCommand::default()
        })),
    };
    let hello = StoreHello {
        cluster_id,
        store_id: 1,
        incarnation: 7,
        to_store_id: 1,
        address: "127.0.0.1:1".to_owned(),
        keepalive_ms: 0,
        election_timeout_us: 400_000,
    };
    let frames = [
        Frame::Hello(hello),
        Frame::Offer(SnapshotOffer {
            message: Some(RaftMessage::default()),
        }),
    ];
    let frames = frames.map(|frame| SnapshotFrame { frame: Some(frame) }.encode_to_vec());
    let get = RawGetRequest {
        context: context.clone(),
        key: key.clone(),
        ..RawGetRequest::default()
    };
    let put = RawPutRequest {
        context: context.clone(),
        key: key.clone(),
        value: key.clone(),
        ..RawPutRequest::default()
    };
    let scan = RawScanRequest {
        context: context.clone(),
        limit: 10,
        ..RawScanRequest::default()
    };
    let get_region = GetRegionRequest {
        header: pd_header.clone(),
        region_key: key,
        ..GetRegionRequest::default()
    };
    let tso = TsoRequest {
        header: pd_header,
        count: 1,
        ..TsoRequest::default()
    };
    let open = OpenSessionRequest {
        context: context.clone(),
    };
    let execute = ExecuteRequest {
        context,
        command: Some(command),
    };
    let reports = RegionReports {
        cluster_id,
        store_id: 1,
        ..RegionReports::default()
    };
    let transfer = TransferLeaderRequest {
        region_id: 2,
        to_store_id: 1,
    };
    vec![
        Service {
            name: "tikvpb.Tikv",
            streams: &[],
            calls: &[
                "RawGet",
                "RawBatchGet",
                "RawGetKeyTTL",
                "RawPut",
                "RawBatchPut",
                "RawDelete",
                "RawBatchDelete",
                "RawDeleteRange",
                "RawScan",
                "RawBatchScan",
                "RawCompareAndSwap",
                "RawChecksum",
                "KvGet",
            ],
            corpus: vec![
                get.encode_to_vec(),
                put.encode_to_vec(),
                scan.encode_to_vec(),
            ],
        },
        Service {
            name: "pdpb.PD",
            streams: &["Tso"],
            calls: &[
                "GetMembers",
                "AllocID",
                "GetStore",
                "GetAllStores",
                "GetRegion",
                "GetPrevRegion",
                "GetRegionByID",
                "ScanRegions",
                "GetClusterInfo",
            ],
            corpus: vec![get_region.encode_to_vec(), tso.encode_to_vec()],
        },
        Service {
            name: "stratapb.Clerk",
            streams: &[],
            calls: &["OpenSession", "Execute"],
            corpus: vec![open.encode_to_vec(), execute.encode_to_vec()],
        },
        Service {
            name: "stratapb.StoreTransport",
            streams: &["SendSnapshot"],
            calls: &["ReportRegions"],
            corpus: [vec![reports.encode_to_vec()], frames.to_vec()].concat(),
        },
        Service {
            name: "stratapb.Strata",
            streams: &["WatchRegions"],
            calls: &["TransferLeader", "Status"],
            corpus: vec![transfer.encode_to_vec()],
        },
    ]
}

/// One call with damaged messages; its outcome does not matter, that it has one does.
async fn call(channel: Channel, path: String, messages: Vec<Bytes>, streams: bool) {
    let path = PathAndQuery::try_from(path).expect("a path of words");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("the node goes on");
    if streams {
        let mut request = Request::new(tokio_stream::iter(messages));
        request.set_timeout(CALL_TIME);
        let answers = grpc.streaming(request, path, Raw).await;
        if let Ok(answers) = answers {
            let mut answers = answers.into_inner();
            let drained = async { while let Ok(Some(_)) = answers.message().await {} };
            // A stream may stay open as long as its client wants it.
            let _ = tokio::time::timeout(CALL_TIME / 2, drained).await;
        }
    } else {
        let mut request = Request::new(messages.into_iter().next().unwrap_or_default());
        request.set_timeout(CALL_TIME);
        drop(grpc.unary(request, path, Raw).await);
    }
}

impl Served {
    /// Opens a stream of raft messages with a damaged greeting, and reads until the node ends it.
    async fn greet(&self, mutator: &mut Mutator, hello: &StoreHello) {
        let mut sent = PREFACE.to_vec();
        let hello = hello.encode_to_vec();
        sent.extend((hello.len() as u32).to_le_bytes());
        sent.extend(hello);
        sent.extend(mutator.noise(60));
        if mutator.one_in(4) {
            sent = mutator.bytes(&sent);
            // Any other first byte is a matter of HTTP.
            sent.insert(0, PREFACE[0]);
        } else {
            let end = mutator.number() as usize % sent.len();
            let damaged = mutator.bytes(&sent[end..]);
            sent.truncate(end.max(1));
            sent.extend(damaged);
        }
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // The node may have ended the stream before all was said.
        let _ = stream.write_all(&sent).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

fn damaged(mutator: &mut Mutator, corpus: &[Vec<u8>]) -> Bytes {
    let real = mutator.pick(corpus).clone();
    match mutator.number() % 8 {
        0 => real.into(),
        1 => mutator.bytes(&real).into(),
        2 => mutator.noise(60).into(),
        _ => mutator.message(&real).into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz_every_call_and_page_of_a_node() {
    let before = panics();
    let served = Served::start().await;
    let channel = served.channel().await;
    let context = context(&mut PdClient::new(channel.clone()), b"k").await;
    let services = services(&context, served.cluster_id);
    let calls = std::env::var("FUZZ_CASES").map_or(CALLS, |text| text.parse().expect("a number"));
    for seed in 0..calls {
        let mutator = &mut Mutator::new(seed);
        let service = mutator.pick(&services);
        let streams = !service.streams.is_empty() && mutator.one_in(3);
        let names = if streams {
            service.streams
        } else {
            service.calls
        };
        let path = format!("/{}/{}", service.name, mutator.pick(names));
        let messages = (0..1 + mutator.number() % 3).map(|_| damaged(mutator, &service.corpus));
        let messages: Vec<Bytes> = messages.collect();
        let one = call(channel.clone(), path.clone(), messages, streams);
        let answered = tokio::time::timeout(ANSWER_TIME, one).await;
        assert!(answered.is_ok(), "seed {seed}: {path} was not answered");
        assert_eq!(panics(), before, "seed {seed}: {path}");
    }
    let hello = StoreHello {
        cluster_id: served.cluster_id,
        store_id: 2,
        to_store_id: 1,
        election_timeout_us: 400_000,
        ..StoreHello::default()
    };
    for seed in 0..200 {
        let mutator = &mut Mutator::new(seed);
        let answered = tokio::time::timeout(ANSWER_TIME, served.greet(mutator, &hello)).await;
        assert!(answered.is_ok(), "seed {seed}: a stream was not ended");
        assert_eq!(panics(), before, "seed {seed}: a stream");
    }
    for seed in 0..200 {
        let mutator = &mut Mutator::new(seed);
        let pages = [
            "/debug/regions/2",
            "/status",
            "/pd/api/v1/regions?a=1",
            "/metrics",
            "/x",
        ];
        let page = mutator.pick(&pages).as_bytes().to_vec();
        let mut page = mutator.bytes(&page);
        page.retain(|byte| byte.is_ascii_graphic());
        let page = format!("/{}", String::from_utf8_lossy(&page));
        let answer = tokio::time::timeout(ANSWER_TIME, served.get_page(&page)).await;
        assert!(answer.is_ok(), "seed {seed}: {page} was not answered");
    }
    assert_eq!(panics(), before);
    let health = served.get_page("/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let put = RawPutRequest {
        context: Some(context),
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"after all"),
        ..RawPutRequest::default()
    };
    let answer = TikvClient::new(channel)
        .raw_put(put)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer, RawPutResponse::default());
    served.stop().await;
}
