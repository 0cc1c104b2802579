//! What travels on a stream of raft messages: a preface, then frames behind their lengths.
//!
//! ```text
//! sender   d7 "strata" 01 | length, StoreHello | length, messages | 0 (a ping) | ...
//! receiver                  length, StoreReply                      0 (a word)
//! ```
//!
//! The receiver says a word when it gets a ping, and now and then while bytes come: a large frame
//! on a slow link takes longer than the sender waits for an answer, and the ping stands behind it.
//!
//! Messages are `RaftMessage`s, each behind its length as Protobuf writes it. Lengths of frames
//! are 4 bytes, little-endian; one above what the reader allows ends the stream.
//!
//! Why no HTTP/2, which everything else here speaks: a frame of raft messages is a few hundred
//! bytes, there are several for each write, and each passed three tasks and two buffers on either
//! side. What HTTP/2 gives in return is of no use here: there is one stream on a connection, its
//! reader never holds it up, and the peer's life is asked for by pings. A byte that no method
//! of HTTP and no TLS record begins with tells the port apart ([`PREFACE`]).

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a stream begins with. The last byte is the version.
pub(crate) const PREFACE: [u8; 8] = *b"\xd7strata\x01";
/// An empty frame: a ping from the sender, a word from the receiver.
pub(crate) const EMPTY_FRAME: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];
const LENGTH_BYTES: usize = size_of::<u32>();
/// Room for reading; what one read brings is at most this much.
const READ_BYTES: usize = 64 << 10;
/// A frame that is smaller is copied out of what was read: entries that stay in memory shall not
/// keep all that arrived beside them.
const COPIED_BYTES_MAX: usize = 32 << 10;

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Failed(#[from] io::Error),
    #[error("not the preface of a stream of raft messages that this version knows")]
    Preface,
    #[error("a frame of {bytes} bytes, {bytes_max} are allowed")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("nothing was said for {0:?}")]
    Silent(Duration),
    #[error("a frame is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Appends a frame with one message, for greetings and their answers.
pub(crate) fn put_frame(into: &mut Vec<u8>, message: &impl Message) {
    let bytes = message.encoded_len();
    put_length(into, bytes);
    into.reserve(bytes);
    message
        .encode(into)
        .expect("a buffer that grows has room for any message");
}

/// Appends a frame with raft messages, each with its encoded length.
pub(crate) fn put_messages(into: &mut Vec<u8>, messages: &[(RaftMessage, usize)]) {
    let bytes = messages.iter().map(|(_, bytes)| framed_bytes(*bytes)).sum();
    put_length(into, bytes);
    into.reserve(bytes);
    let end = into.len() + bytes;
    for (message, _) in messages {
        message
            .encode_length_delimited(into)
            .expect("a buffer that grows has room for any message");
    }
    assert!(
        into.len() == end,
        "a frame ends at {}, not at {end} as its length says",
        into.len()
    );
}

/// The messages of a frame that go from one store to another, and how many do not. Those are let
/// go one by one: an empty message takes one byte of a frame, and much more memory.
pub(crate) fn messages_between(
    mut frame: Bytes,
    from: u64,
    to: u64,
) -> Result<(Vec<RaftMessage>, u64), prost::DecodeError> {
    let is_on = |peer: &Option<Peer>, store| peer.is_some_and(|peer| peer.store_id == store);
    let (mut fitting, mut refused) = (Vec::new(), 0);
    while frame.has_remaining() {
        let message = RaftMessage::decode_length_delimited(&mut frame)?;
        if is_on(&message.from_peer, from) && is_on(&message.to_peer, to) {
            fitting.push(message);
        } else {
            refused += 1;
        }
    }
    Ok((fitting, refused))
}

/// What a message of so many bytes takes within a frame.
pub(super) fn framed_bytes(bytes: usize) -> usize {
    prost::length_delimiter_len(bytes) + bytes
}

fn put_length(into: &mut Vec<u8>, bytes: usize) {
    let length = u32::try_from(bytes).expect("a frame is bounded far below 4 GiB");
    into.extend_from_slice(&length.to_le_bytes());
}

/// Takes frames out of a connection. Every call may be given up and made again.
pub(crate) struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    /// Counts reads that brought something.
    reads: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(from: R) -> Self {
        FrameReader {
            from,
            buffer: BytesMut::new(),
            reads: 0,
        }
    }

    /// Goes up when bytes come.
    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// Takes the preface.
    pub(crate) async fn preface(&mut self) -> Result<(), FrameError> {
        while self.buffer.len() < PREFACE.len() {
            self.read(PREFACE.len()).await?;
        }
        if self.buffer[..PREFACE.len()] != PREFACE {
            return Err(FrameError::Preface);
        }
        self.buffer.advance(PREFACE.len());
        Ok(())
    }

    /// The next frame, which is at most `bytes_max` long.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Result<Bytes, FrameError> {
        loop {
            let mut missing = LENGTH_BYTES;
            if let Some(length) = self.buffer.first_chunk() {
                let bytes = u32::from_le_bytes(*length) as usize;
                if bytes > bytes_max {
                    return Err(FrameError::TooLarge { bytes, bytes_max });
                }
                if self.buffer.len() - LENGTH_BYTES >= bytes {
                    self.buffer.advance(LENGTH_BYTES);
                    return Ok(self.take(bytes));
                }
                missing += bytes;
            }
            self.read(missing - self.buffer.len()).await?;
        }
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        if bytes > COPIED_BYTES_MAX {
            let frame = self.buffer.split_to(bytes).freeze();
            // What is left would keep the memory of the frame.
            self.buffer = BytesMut::from(&self.buffer[..]);
            return frame;
        }
        let frame = Bytes::copy_from_slice(&self.buffer[..bytes]);
        self.buffer.advance(bytes);
        frame
    }

    /// Reads once. Of a long frame no more is reserved than what came so far and a piece: its
    /// length is only a claim.
    async fn read(&mut self, missing: usize) -> Result<(), FrameError> {
        let known = self.buffer.len().max(READ_BYTES);
        self.buffer.reserve(missing.clamp(READ_BYTES / 4, known));
        if self.from.read_buf(&mut self.buffer).await? == 0 {
            return Err(FrameError::Closed);
        }
        self.reads += 1;
        Ok(())
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
