//! Messages between bytes and structures, as the gRPC codec turns them.

use std::hint::black_box;

use anyhow::ensure;
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use strata_proto::eraftpb::{Entry, Message, MessageType};
use strata_proto::kvrpcpb::{Context, RawPutRequest, RawPutResponse};
use strata_proto::metapb::{Peer, RegionEpoch};
use strata_proto::raft_serverpb::RaftMessage;

use crate::paths::HotPath;

/// Bytes of a value and of an entry's data.
const VALUE_BYTES: usize = 256;
/// Entries of a raft message.
const ENTRIES: u64 = 16;
const TERM: u64 = 7;
const FIRST_INDEX: u64 = 100_000;

fn peer(store_id: u64) -> Peer {
    Peer {
        id: 100_016 + store_id,
        store_id,
        ..Peer::default()
    }
}

fn epoch() -> RegionEpoch {
    RegionEpoch {
        conf_ver: 3,
        version: 6,
    }
}

fn raw_put() -> RawPutRequest {
    RawPutRequest {
        context: Some(Context {
            region_id: 2,
            region_epoch: Some(epoch()),
            peer: Some(peer(1)),
            term: TERM,
            ..Context::default()
        }),
        key: Bytes::from_static(b"hot-path-key-0000000000000001"),
        value: Bytes::from(vec![b'v'; VALUE_BYTES]),
        ..RawPutRequest::default()
    }
}

fn raft_message() -> RaftMessage {
    let entries = (0..ENTRIES)
        .map(|at| Entry {
            term: TERM,
            index: FIRST_INDEX + at,
            data: Bytes::from(vec![b'd'; VALUE_BYTES]),
            ..Entry::default()
        })
        .collect();
    let message = Message {
        msg_type: MessageType::MsgAppend.into(),
        to: peer(2).id,
        from: peer(1).id,
        term: TERM,
        log_term: TERM,
        index: FIRST_INDEX - 1,
        commit: FIRST_INDEX - 1,
        entries,
        ..Message::default()
    };
    RaftMessage {
        region_id: 2,
        from_peer: Some(peer(1)),
        to_peer: Some(peer(2)),
        region_epoch: Some(epoch()),
        message: Some(message),
        ..RaftMessage::default()
    }
}

fn check(good: u64, operations: u64) -> anyhow::Result<()> {
    ensure!(good == operations, "{good} messages of {operations}");
    Ok(())
}

/// Decodes a put and encodes its answer.
pub struct PutMessages {
    request: Bytes,
    good: u64,
}

impl PutMessages {
    /// A request as it comes from a client.
    pub fn new() -> Self {
        Self {
            request: raw_put().encode_to_vec().into(),
            good: 0,
        }
    }
}

impl HotPath for PutMessages {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        let mut buffer = BytesMut::with_capacity(VALUE_BYTES);
        for _ in 0..operations {
            let request = black_box(RawPutRequest::decode(self.request.clone())?);
            let answer = black_box(RawPutResponse::default());
            buffer.clear();
            answer.encode(&mut buffer)?;
            black_box(&buffer);
            self.good += u64::from(request.value.len() == VALUE_BYTES);
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        check(self.good, operations)
    }
}

/// Encodes an append.
pub struct RaftMessageEncode {
    message: RaftMessage,
    length: usize,
    good: u64,
}

impl RaftMessageEncode {
    /// An append as a leader makes it.
    pub fn new() -> Self {
        let message = raft_message();
        Self {
            length: message.encoded_len(),
            message,
            good: 0,
        }
    }
}

impl HotPath for RaftMessageEncode {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        let mut buffer = BytesMut::with_capacity(2 * self.length);
        for _ in 0..operations {
            buffer.clear();
            black_box(&self.message).encode(&mut buffer)?;
            self.good += u64::from(black_box(&buffer).len() == self.length);
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        check(self.good, operations)
    }
}

/// Decodes an append.
pub struct RaftMessageDecode {
    encoded: Bytes,
    good: u64,
}

impl RaftMessageDecode {
    /// An append as it comes from another store.
    pub fn new() -> Self {
        Self {
            encoded: raft_message().encode_to_vec().into(),
            good: 0,
        }
    }
}

impl HotPath for RaftMessageDecode {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            let decoded = black_box(RaftMessage::decode(self.encoded.clone())?);
            let entries = decoded.message.map_or(0, |inner| inner.entries.len());
            self.good += u64::from(entries as u64 == ENTRIES);
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        check(self.good, operations)
    }
}
