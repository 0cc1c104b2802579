//! Streams of snapshots to a running node, wrong in any frame behind a right greeting.
//!
//! The node is store 1 of three; the others are this test. Whatever comes in place of a frame,
//! the stream ends in time, the node goes on, and what is really a snapshot it takes and
//! installs.

use std::time::Duration;

use prost::Message as _;
use strata_fuzz::Mutator;
use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::{Peer, Region};
use strata_proto::raft_serverpb::{RaftMessage, RegionLocalState};
use strata_proto::stratapb::{
    RaftApplyState, SnapshotEnd, SnapshotFrame, SnapshotOffer, SnapshotReply, StoreHello,
    snapshot_frame::Frame, snapshot_reply::Reply,
};
use strata_storage::snapshot::{Generated, Generator, SnapshotRef, to_raft};
use strata_storage::{Cf, Durability, Engine, WriteBatch, write_apply_state, write_region_state};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use super::fuzz::Raw;
use super::*;

/// Streams of a run; `FUZZ_CASES` gives another number.
const STREAMS: u64 = 250;
/// Time after which a stream hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time that a test lets a stream without an end stand.
const SILENCE: Duration = Duration::from_millis(30);
const CHUNK_BYTES: usize = 4 << 10;
const CHUNKS: u64 = 6;
const TERM: u64 = 6;
const INDEX: u64 = 17;
const SENDER: u64 = 2;

/// A snapshot of a region at a later index, as its leader would make it.
fn snapshot(region: &Region) -> SnapshotRef<MemFiles> {
    let kv = MemEngine::new_pair().kv;
    let mut batch = WriteBatch::new();
    let state = RegionLocalState {
        region: Some(region.clone()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut batch, &state);
    let apply = RaftApplyState {
        applied_index: INDEX,
        applied_term: TERM,
        ..RaftApplyState::default()
    };
    write_apply_state(&mut batch, region.id, &apply);
    for number in 0..CHUNKS {
        let key = [&b"z"[..], &region.start_key, &number.to_be_bytes()].concat();
        batch.put(Cf::Write, key, vec![number as u8; CHUNK_BYTES]);
    }
    kv.write(&batch, Durability::Synced).unwrap();
    let manager = SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap();
    let mut generator = Generator::<MemEngine>::begin(&manager, kv.snapshot(), region.id).unwrap();
    loop {
        if let Generated::Done(snapshot) = generator.step(1 << 20).unwrap() {
            return snapshot;
        }
    }
}

/// All frames of a right stream but the greeting.
fn frames(snapshot: &SnapshotRef<MemFiles>) -> Vec<SnapshotFrame> {
    let region = snapshot.region();
    let peer_on = |store_id| -> Peer {
        let mut peers = region.peers.iter();
        *peers.find(|peer| peer.store_id == store_id).unwrap()
    };
    let raft = Message {
        msg_type: MessageType::MsgSnapshot.into(),
        from: peer_on(SENDER).id,
        to: peer_on(1).id,
        term: TERM,
        snapshot: Some(Box::new(to_raft(snapshot.meta()))),
        ..Message::default()
    };
    let message = RaftMessage {
        region_id: region.id,
        from_peer: Some(peer_on(SENDER)),
        to_peer: Some(peer_on(1)),
        region_epoch: region.region_epoch,
        message: Some(raft),
        ..RaftMessage::default()
    };
    let mut frames = vec![Frame::Offer(SnapshotOffer {
        message: Some(message),
    })];
    for (place, file) in snapshot.meta().files.iter().enumerate() {
        for offset in (0..file.length).step_by(CHUNK_BYTES) {
            let chunk = snapshot.read_chunk_of(place as u32, offset, CHUNK_BYTES);
            frames.push(Frame::Chunk(chunk.unwrap()));
        }
    }
    frames.push(Frame::End(SnapshotEnd {
        id: snapshot.meta().id,
    }));
    let frame = |frame| SnapshotFrame { frame: Some(frame) };
    frames.into_iter().map(frame).collect()
}

/// A stream with one to three faults: a frame is damaged, missing, twice, elsewhere, another
/// stream's, or the last.
fn damaged(mutator: &mut Mutator, right: &[SnapshotFrame], other: &[SnapshotFrame]) -> Vec<Bytes> {
    let encode = |frame: &SnapshotFrame| frame.encode_to_vec();
    let mut stream: Vec<Vec<u8>> = right.iter().map(encode).collect();
    for _ in 0..1 + mutator.number() % 3 {
        let at = mutator.number() as usize % stream.len().max(1);
        if stream.is_empty() {
            break;
        }
        match mutator.number() % 12 {
            0 => drop(stream.remove(at)),
            1 => stream.insert(at, stream[at].clone()),
            2 => {
                let to = mutator.number() as usize % stream.len();
                stream.swap(at, to);
            }
            3 => stream.truncate(at),
            4 => stream[at] = encode(mutator.pick(other)),
            5 => stream[at] = mutator.noise(60),
            6 => stream[at] = Vec::new(),
            _ => stream[at] = mutator.message(&stream[at]),
        }
    }
    stream.into_iter().map(Bytes::from).collect()
}

/// The last answer to a stream, if there was one before it ended or fell silent.
async fn send(served: &Served, stream: Vec<Bytes>, goes_on: bool) -> Option<Reply> {
    let mut grpc = Grpc::new(served.channel().await);
    grpc.ready().await.expect("the node goes on");
    let hello = StoreHello {
        cluster_id: served.cluster_id,
        store_id: SENDER,
        incarnation: 22,
        to_store_id: 1,
        address: "127.0.0.1:1".to_owned(),
        keepalive_ms: 0,
        election_timeout_us: 400_000,
    };
    let hello = SnapshotFrame {
        frame: Some(Frame::Hello(hello)),
    };
    let (frames, outgoing) = tokio::sync::mpsc::channel::<Bytes>(4);
    let feeding = tokio::spawn(async move {
        let hello = Bytes::from(hello.encode_to_vec());
        for frame in std::iter::once(hello).chain(stream) {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
        if goes_on {
            tokio::time::sleep(SILENCE).await;
        }
    });
    let path = PathAndQuery::from_static("/stratapb.StoreTransport/SendSnapshot");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let answered: Result<Option<Reply>, Status> = async {
        let answers = grpc.streaming(Request::new(outgoing), path, Raw).await?;
        let mut answers = answers.into_inner();
        let mut last = None;
        while let Ok(Some(bytes)) = answers.message().await {
            let bytes: Bytes = bytes;
            last = SnapshotReply::decode(bytes).expect("a reply").reply;
        }
        Ok(last)
    }
    .await;
    feeding.abort();
    answered.expect("the greeting is right")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz_streams_of_snapshots_to_a_node() {
    let before = panics();
    let (listener, address) = port().await;
    let nobody = "127.0.0.1:1".to_owned();
    let addresses = BTreeMap::from([(1, address), (2, nobody.clone()), (3, nobody)]);
    let mut folder = new_folder(&[1, 2, 3], 1, 21);
    folder.ident.admitted = true;
    let layout = folder.layout.clone();
    let served = Served::start_store(1, listener, addresses, folder).await;
    let of_region = |id: u64| frames(&snapshot(layout.iter().find(|one| one.id == id).unwrap()));
    let (right, other) = (of_region(2), of_region(3));
    assert!(right.len() > 4, "{} frames", right.len());

    let mut refused = 0;
    let seeds = strata_fuzz::seeds("streams of snapshots", STREAMS);
    for seed in seeds {
        let mutator = &mut Mutator::new(seed);
        let stream = damaged(mutator, &right, &other);
        let sent = send(&served, stream, mutator.one_in(4));
        let ended = tokio::time::timeout(PATIENCE, sent).await;
        let last = ended.unwrap_or_else(|_| panic!("no end; repeat it with FUZZ_SEED={seed}"));
        if let Some(Reply::Refused(refusal)) = last {
            refused += 1;
            assert!(!refusal.reason.contains('\n'), "{}", refusal.reason);
        }
        assert_eq!(panics(), before, "repeat it with FUZZ_SEED={seed}");
    }
    if strata_fuzz::is_whole_run() {
        assert!(refused > 100, "{refused} refused");
    }
    // A stream that ends may leave its slot a moment later.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stream = other.iter().map(|frame| frame.encode_to_vec().into());
        match send(&served, stream.collect(), false).await {
            Some(Reply::Done(_)) => break,
            reply => assert!(Instant::now() < deadline, "{reply:?}"),
        }
        tokio::time::sleep(SILENCE).await;
    }
    page_holds(
        &served,
        "/debug/regions/3",
        &format!("\"applied_index\":{INDEX}"),
    )
    .await;
    assert_eq!(panics(), before);
    served.stop().await;
}
