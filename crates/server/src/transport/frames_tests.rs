//! Frames that were put into a buffer and come out of it in pieces of any size, whole or damaged.

use super::*;
use strata_fuzz::Mutator;
use strata_proto::stratapb::StoreHello;

const FRAME_BYTES_MAX: usize = 1 << 20;

fn peer(store_id: u64) -> Peer {
    Peer {
        id: store_id + 70,
        store_id,
        ..Peer::default()
    }
}

fn messages_of(frame: Bytes) -> Vec<RaftMessage> {
    let (messages, refused) = messages_between(frame, 2, 1).unwrap();
    assert_eq!(refused, 0);
    messages
}

fn message(region_id: u64, bytes: usize) -> (RaftMessage, usize) {
    let message = RaftMessage {
        region_id,
        from_peer: Some(peer(2)),
        to_peer: Some(peer(1)),
        extra_ctx: Bytes::from(vec![7; bytes]),
        ..RaftMessage::default()
    };
    let bytes = message.encoded_len();
    (message, bytes)
}

/// Gives out its bytes in pieces of a size.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let size = self.size.min(self.rest.len()).min(into.remaining());
        let (piece, rest) = self.rest.split_at(size);
        into.put_slice(piece);
        self.rest = rest;
        std::task::Poll::Ready(Ok(()))
    }
}

fn reader(rest: &[u8], size: usize) -> FrameReader<Pieces<'_>> {
    FrameReader::new(Pieces { rest, size })
}

#[tokio::test]
async fn frames_come_out_as_they_went_in() {
    let hello = StoreHello {
        cluster_id: 9,
        ..StoreHello::default()
    };
    let small = [message(1, 0), message(2, 300)];
    let large = [message(3, 100_000), message(4, 5)];
    let mut bytes = PREFACE.to_vec();
    put_frame(&mut bytes, &hello);
    put_messages(&mut bytes, &small);
    bytes.extend_from_slice(&EMPTY_FRAME);
    put_messages(&mut bytes, &large);
    put_messages(&mut bytes, &small);
    for size in [1, 3, 100, 4096, bytes.len()] {
        let mut reader = reader(&bytes, size);
        reader.preface().await.unwrap();
        let mut next = async || reader.next(FRAME_BYTES_MAX).await;
        assert_eq!(StoreHello::decode(next().await.unwrap()).unwrap(), hello);
        for expected in [&small[..], &[], &large, &small] {
            let messages = messages_of(next().await.unwrap());
            let expected: Vec<_> = expected
                .iter()
                .map(|(message, _)| message.clone())
                .collect();
            assert_eq!(messages, expected, "in pieces of {size}");
        }
        assert!(matches!(next().await, Err(FrameError::Closed)));
    }
}

#[tokio::test]
async fn small_frames_share_no_memory_with_what_came_beside_them() {
    let mut bytes = Vec::new();
    put_messages(&mut bytes, &[message(1, 300)]);
    put_messages(&mut bytes, &[message(2, 50_000)]);
    let mut reader = reader(&bytes, bytes.len());
    let small = reader.next(FRAME_BYTES_MAX).await.unwrap();
    let large = reader.next(FRAME_BYTES_MAX).await.unwrap();
    assert!(small.try_into_mut().is_ok(), "it is alone in its memory");
    assert_eq!(messages_of(large)[0], message(2, 50_000).0);
}

#[test]
fn messages_of_other_stores_are_let_go() {
    let fits = message(1, 10).0;
    let between = |from, to| RaftMessage {
        from_peer: Some(peer(from)),
        to_peer: Some(peer(to)),
        ..RaftMessage::default()
    };
    let all = [
        between(1, 2),
        fits.clone(),
        between(3, 1),
        between(2, 3),
        RaftMessage::default(),
    ];
    let mut frame = Vec::new();
    for message in all {
        message.encode_length_delimited(&mut frame).unwrap();
    }
    // An empty message is one byte.
    frame.extend([0; 1000]);
    let (messages, refused) = messages_between(frame.into(), 2, 1).unwrap();
    assert_eq!(messages, [fits]);
    assert_eq!(refused, 1004);
}

#[tokio::test]
async fn what_is_read_behind_a_large_frame_keeps_none_of_it() {
    let mut bytes = Vec::new();
    put_messages(&mut bytes, &[message(1, 1 << 20)]);
    put_messages(&mut bytes, &[message(2, 10)]);
    let mut reader = reader(&bytes, bytes.len());
    let large = reader.next(2 * FRAME_BYTES_MAX).await.unwrap();
    assert!(reader.buffer.capacity() <= 2 * READ_BYTES);
    assert!(large.try_into_mut().is_ok(), "it is alone in its memory");
    let small = reader.next(FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(messages_of(small)[0], message(2, 10).0);
}

#[tokio::test]
async fn bad_input_lengths_and_prefaces() {
    let refused = reader(b"\xd7strata\x02....", 100).preface().await;
    assert!(matches!(refused, Err(FrameError::Preface)), "{refused:?}");
    let refused = reader(b"\xd7stra", 100).preface().await;
    assert!(matches!(refused, Err(FrameError::Closed)), "{refused:?}");
    let refused = reader(&[0, 16, 0, 0, 1], 100).next(4095).await;
    let Err(FrameError::TooLarge { bytes, bytes_max }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((bytes, bytes_max), (4096, 4095));
    // A claim alone takes no memory.
    let mut claims = reader(&[0, 0, 0, 0x40, 1, 2, 3], 100);
    let refused = claims.next(usize::MAX).await;
    assert!(matches!(refused, Err(FrameError::Closed)), "{refused:?}");
    assert!(claims.buffer.capacity() <= 2 * READ_BYTES);
}

#[test]
fn fuzz_damaged_streams_end_and_do_not_panic() {
    let mut good = Vec::new();
    put_messages(&mut good, &[message(1, 10), message(2, 200)]);
    good.extend_from_slice(&EMPTY_FRAME);
    put_messages(&mut good, &[message(3, 40)]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for seed in 0..2_000 {
        let mutator = &mut Mutator::new(seed);
        let damaged = mutator.bytes(&good);
        let mut reader = reader(&damaged, 1 + mutator.number() as usize % 50);
        let frames = runtime.block_on(async {
            let mut frames = 0;
            while let Ok(frame) = reader.next(FRAME_BYTES_MAX).await {
                let _ = messages_between(frame, 2, 1);
                frames += 1;
            }
            frames
        });
        assert!(
            frames <= damaged.len() / LENGTH_BYTES,
            "seed {seed}: {frames}"
        );
    }
}
