//! The stream of raft messages of a node whose other store is this test.

use prost::Message as _;
use strata_fuzz::Mutator;
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{StoreHello, StoreReply};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::*;
use crate::transport::{EMPTY_FRAME, FrameError, FrameReader, PREFACE, put_frame, put_messages};

const PATIENCE: Duration = Duration::from_secs(60);
const FRAME_BYTES_MAX: usize = 1 << 20;

/// One end of a stream.
struct End {
    frames: FrameReader<OwnedReadHalf>,
    socket: OwnedWriteHalf,
}

impl End {
    fn new(stream: TcpStream) -> End {
        let (from, socket) = stream.into_split();
        let frames = FrameReader::new(from);
        End { frames, socket }
    }

    async fn next(&mut self) -> Result<Bytes, FrameError> {
        let next = self.frames.next(FRAME_BYTES_MAX);
        timeout(PATIENCE, next).await.expect("a frame or an end")
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// Skips what is no ping.
    async fn ping(&mut self) {
        while !self.next().await.expect("the node goes on").is_empty() {}
    }
}

/// Store 1 of two, and where it looks for store 2.
async fn with_other_store() -> (Served, TcpListener) {
    let (listener, address) = port().await;
    let (other, other_address) = port().await;
    let addresses = BTreeMap::from([(1, address), (2, other_address)]);
    let folder = new_folder(&[1, 2], 1, 7);
    (
        Served::start_store(1, listener, addresses, folder).await,
        other,
    )
}

/// Takes the node's next stream in and answers its greeting.
async fn accept(listener: &TcpListener, refusal: &str) -> End {
    let accepted = timeout(PATIENCE, listener.accept()).await;
    let (stream, _) = accepted.expect("the node connects").unwrap();
    let mut end = End::new(stream);
    timeout(PATIENCE, end.frames.preface())
        .await
        .unwrap()
        .unwrap();
    let hello = StoreHello::decode(end.next().await.unwrap()).unwrap();
    assert_eq!((hello.store_id, hello.to_store_id), (1, 2));
    let mut reply = Vec::new();
    put_frame(
        &mut reply,
        &StoreReply {
            store_id: 2,
            incarnation: 8,
            refusal: refusal.to_owned(),
        },
    );
    end.say(&reply).await;
    end
}

/// Opens a stream to the node in the name of store 2.
async fn greet(served: &Served, keepalive_ms: u64) -> End {
    let hello = StoreHello {
        cluster_id: served.cluster_id,
        store_id: 2,
        incarnation: 8,
        to_store_id: 1,
        address: "127.0.0.1:1".to_owned(),
        keepalive_ms,
        election_timeout_us: 400_000,
    };
    let mut end = End::new(TcpStream::connect(&served.address).await.unwrap());
    let mut greeting = PREFACE.to_vec();
    put_frame(&mut greeting, &hello);
    end.say(&greeting).await;
    let reply = StoreReply::decode(end.next().await.unwrap()).unwrap();
    assert_eq!((reply.store_id, reply.incarnation), (1, 7));
    assert_eq!(reply.refusal, "");
    end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_pings_are_not_answered_is_opened_again() {
    let (served, listener) = with_other_store().await;
    let mut end = accept(&listener, "").await;
    for _ in 0..2 {
        end.ping().await;
        end.say(&EMPTY_FRAME).await;
    }
    end.ping().await;
    // No answer: the node closes, and connects anew.
    while end.next().await.is_ok() {}
    let mut end = accept(&listener, "").await;
    end.ping().await;
    drop(end);
    accept(&listener, "").await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_store_asks_again() {
    let (served, listener) = with_other_store().await;
    for _ in 0..3 {
        let mut end = accept(&listener, "not this one").await;
        assert!(matches!(end.next().await, Err(FrameError::Closed)));
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_a_store_that_says_what_no_store_says() {
    let (served, _listener) = with_other_store().await;
    let mut end = greet(&served, 60_000).await;
    // A message that is not for this store is dropped; the stream stays.
    let stray = RaftMessage::default();
    let bytes = stray.encoded_len();
    let mut said = Vec::new();
    put_messages(&mut said, &[(stray, bytes)]);
    said.extend_from_slice(&EMPTY_FRAME);
    end.say(&said).await;
    assert!(end.next().await.unwrap().is_empty(), "the ping's answer");
    page_holds(&served, "/metrics", "strata_transport_refused_total 1").await;
    for damaged in [
        &b"\x03\0\0\0\x05ab"[..],
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\xff",
    ] {
        let mut end = greet(&served, 60_000).await;
        end.say(damaged).await;
        let ended = end.next().await;
        assert!(
            matches!(ended, Err(FrameError::Closed | FrameError::Failed(_))),
            "{damaged:?}: {ended:?}"
        );
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_words_while_a_large_frame_comes_slowly_and_ends_a_silent_stream() {
    let (served, _listener) = with_other_store().await;
    let mut end = greet(&served, 1_000).await;
    end.say(&1_000_000_u32.to_le_bytes()).await;
    for _ in 0..3 {
        // Much less than a frame, and a word for it all the same.
        end.say(&[0; 100]).await;
        assert!(end.next().await.unwrap().is_empty());
    }
    let ended = end.next().await;
    assert!(
        ended.is_err(),
        "nothing came for five times a second: {ended:?}"
    );
    served.stop().await;
}

/// Damaged frames of a store that was accepted: the stream ends or goes on, the node serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz_streams_of_a_store_that_was_accepted() {
    let before = panics();
    let (served, _listener) = with_other_store().await;
    let peer = |store_id| Peer {
        id: 900 + store_id,
        store_id,
        ..Peer::default()
    };
    let message = RaftMessage {
        // No region of this cluster.
        region_id: 4711,
        from_peer: Some(peer(2)),
        to_peer: Some(peer(1)),
        ..RaftMessage::default()
    };
    let bytes = message.encoded_len();
    let mut good = Vec::new();
    put_messages(&mut good, &[(message.clone(), bytes), (message, bytes)]);
    good.extend_from_slice(&EMPTY_FRAME);
    for seed in 0..200 {
        let mutator = &mut Mutator::new(seed);
        let mut end = greet(&served, 60_000).await;
        // The node may end the stream before all was said.
        let _ = end.socket.write_all(&good).await;
        let _ = end.socket.write_all(&mutator.bytes(&good)).await;
        let _ = end.socket.shutdown().await;
        while end.next().await.is_ok() {}
        assert_eq!(panics(), before, "seed {seed}");
    }
    let mut end = greet(&served, 60_000).await;
    end.say(&good).await;
    assert!(end.next().await.unwrap().is_empty(), "the ping's answer");
    served.stop().await;
}
