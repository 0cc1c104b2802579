//! State records: protobuf messages with a checksum of their own.
//!
//! RocksDB checks its blocks, but a record that decides about votes and about what is
//! applied is worth a check from end to end: a record that was damaged in memory, or
//! that ended up under another key, must be found before a peer acts on it.
//! Form: protobuf bytes, then four bytes CRC-32 (IEEE, big-endian) over key and protobuf.
//!
//! A record that does not check is a [`Error::CorruptRecord`]: it names record and key,
//! and the process stops rather than serve wrong data.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::batch::WriteBatch;
use crate::engine::{Cf, ReadView};
use crate::error::{Error, RecordFault};

const CHECKSUM_BYTES: usize = 4;

/// What a record is; named in errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Hard state and last index of a region, raft engine.
    RaftLocalState,
    /// Copy of the above while a snapshot is installed, kv engine.
    RaftLocalStateCopy,
    /// Applied and truncated index, region clock.
    RaftApplyState,
    /// Range, peers and life of a region's replica.
    RegionLocalState,
    /// Identity of the folder.
    StoreIdent,
    /// What is known of another store's folder.
    StoreIncarnation,
    /// A client session.
    Session,
    /// A record of the system region.
    System,
    /// Description of a snapshot, beside its files.
    SnapshotMeta,
    /// How much of a snapshot's files is received, beside them.
    SnapshotProgress,
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RaftLocalState => "RaftLocalState",
            Self::RaftLocalStateCopy => "RaftLocalState copy",
            Self::RaftApplyState => "RaftApplyState",
            Self::RegionLocalState => "RegionLocalState",
            Self::StoreIdent => "StoreIdent",
            Self::StoreIncarnation => "StoreIncarnation",
            Self::Session => "session",
            Self::System => "system record",
            Self::SnapshotMeta => "SnapshotMeta",
            Self::SnapshotProgress => "SnapshotProgress",
        })
    }
}

/// The stored form of `message` under `key`.
#[must_use]
pub fn encode<M: Message>(key: &[u8], message: &M) -> Bytes {
    let mut out = BytesMut::with_capacity(message.encoded_len() + CHECKSUM_BYTES);
    message
        .encode(&mut out)
        .expect("a growing buffer has room for a message");
    let sum = checksum(key, &out);
    out.put_u32(sum);
    out.freeze()
}

/// Reads the stored form found under `key`.
///
/// # Errors
/// `CorruptRecord` if the checksum or the protobuf does not hold.
pub fn decode<M: Message + Default>(
    kind: RecordKind,
    key: &[u8],
    stored: &Bytes,
) -> Result<M, Error> {
    let fault = |fault| Error::CorruptRecord {
        kind,
        key: hex(key),
        fault,
    };
    let body_bytes = stored
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .ok_or_else(|| fault(RecordFault::TooShort(stored.len())))?;
    let (body, tail) = stored.split_at(body_bytes);
    let found = u32::from_be_bytes(tail.try_into().expect("four bytes were split off"));
    let expected = checksum(key, body);
    if found != expected {
        return Err(fault(RecordFault::Checksum { found, expected }));
    }
    M::decode(stored.slice(..body_bytes)).map_err(|_| fault(RecordFault::Protobuf))
}

/// Adds the record to a batch.
pub fn put<M: Message>(batch: &mut WriteBatch, cf: Cf, key: impl Into<Bytes>, message: &M) {
    let key = key.into();
    let value = encode(&key, message);
    batch.put(cf, key, value);
}

/// Reads the record under `key`; `None` if there is none.
///
/// # Errors
/// Errors of the engine, and `CorruptRecord`.
pub fn get<M: Message + Default>(
    view: &impl ReadView,
    cf: Cf,
    kind: RecordKind,
    key: &[u8],
) -> Result<Option<M>, Error> {
    match view.get(cf, key)? {
        None => Ok(None),
        Some(stored) => decode(kind, key, &stored).map(Some),
    }
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// Lower-case hexadecimal digits of `bytes`, for error messages.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::stratapb::RaftApplyState;

    fn state() -> RaftApplyState {
        RaftApplyState {
            applied_index: 17,
            applied_term: 6,
            truncated_index: 5,
            truncated_term: 5,
            region_clock_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn record_round_trips() {
        let stored = encode(b"key", &state());
        let back: RaftApplyState = decode(RecordKind::RaftApplyState, b"key", &stored).unwrap();
        assert_eq!(back, state());
    }

    #[test]
    fn record_finds_every_flipped_bit() {
        let stored = encode(b"key", &state());
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let answer: Result<RaftApplyState, _> =
                decode(RecordKind::RaftApplyState, b"key", &damaged.into());
            assert!(
                matches!(&answer, Err(Error::CorruptRecord { kind, key, .. })
                    if *kind == RecordKind::RaftApplyState && key == "6b6579"),
                "bit {bit}: {answer:?}"
            );
        }
    }

    #[test]
    fn record_under_another_key_is_refused() {
        let stored = encode(b"key", &state());
        let answer: Result<RaftApplyState, _> = decode(RecordKind::RaftApplyState, b"kez", &stored);
        assert!(matches!(answer, Err(Error::CorruptRecord { .. })));
    }

    #[test]
    fn record_too_short_is_refused() {
        let answer: Result<RaftApplyState, _> = decode(
            RecordKind::RaftApplyState,
            b"key",
            &Bytes::from_static(b"abc"),
        );
        assert!(matches!(
            answer,
            Err(Error::CorruptRecord {
                fault: RecordFault::TooShort(3),
                ..
            })
        ));
    }
}
