//! The key layout of both engines.
//!
//! | engine | key | value |
//! |---|---|---|
//! | both | 0x01 0x01 | StoreIdent |
//! | raft | 0x01 0x02 region_id 0x01 log_index | Entry |
//! | raft | 0x01 0x02 region_id 0x02 | RaftLocalState |
//! | kv, CF `raft` | 0x01 0x02 region_id 0x03 | RaftApplyState |
//! | kv, CF `raft` | 0x01 0x02 region_id 0x04 | copy of RaftLocalState during an install |
//! | kv, CF `raft` | 0x01 0x03 region_id 0x01 | RegionLocalState |
//! | kv, CF `raft` | 0x01 0x04 region_id session_id | client session |
//! | kv, CF `raft` | 0x01 0x05 ... | system region data |
//! | kv, CF `raft` | 0x01 0x06 store_id | StoreIncarnation |
//! | kv, CF `raw` | `z` + plain key | raw v1 value |
//! | kv, CF `raw2` | `z` + enc(`r` + keyspace + key) | raw v2 value |
//! | kv, CFs `default`, `lock`, `write` | `z` + enc(key) + API byte + inverted timestamp | MVCC |
//!
//! Integers in keys are big-endian. Engine keys sort, byte for byte, as the form that is
//! compared with region boundaries: raw v1 keys as they are, all others encoded
//! ([`compared_form`]). A region's range is therefore the same slice of each data column
//! family ([`data_range`]).
//!
//! Nothing here panics on what is read from disk or network: parsing answers `None`.

use std::borrow::Cow;

use strata_proto::stratapb::RawSpace;

use crate::engine::Cf;
use crate::memcomparable;

const LOCAL: u8 = 0x01;
const LOCAL_IDENT: u8 = 0x01;
const LOCAL_REGION_RAFT: u8 = 0x02;
const LOCAL_REGION_META: u8 = 0x03;
const LOCAL_SESSION: u8 = 0x04;
const LOCAL_SYSTEM: u8 = 0x05;
const LOCAL_INCARNATION: u8 = 0x06;

const SUFFIX_LOG: u8 = 0x01;
const SUFFIX_RAFT_STATE: u8 = 0x02;
const SUFFIX_APPLY_STATE: u8 = 0x03;
const SUFFIX_RAFT_STATE_COPY: u8 = 0x04;
const SUFFIX_REGION_STATE: u8 = 0x01;

/// First byte of every data key.
pub const DATA_PREFIX: u8 = b'z';
/// First data key's prefix and the first key behind all data keys.
const DATA_END: u8 = DATA_PREFIX + 1;

/// Bytes of a session id: region id, index, place in the entry.
pub const SESSION_ID_BYTES: usize = 20;

/// Which API wrote an MVCC key; the byte behind its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    /// API v1, byte 1.
    V1,
    /// API v2, byte 2.
    V2,
}

impl ApiVersion {
    fn byte(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// Key of the StoreIdent, in both engines.
#[must_use]
pub fn store_ident() -> Vec<u8> {
    vec![LOCAL, LOCAL_IDENT]
}

/// Key of the log entry `index`.
#[must_use]
pub fn raft_log(region_id: u64, index: u64) -> Vec<u8> {
    let mut key = local(LOCAL_REGION_RAFT, region_id, 9);
    key.push(SUFFIX_LOG);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// Range of all log entries of a region.
#[must_use]
pub fn raft_log_range(region_id: u64) -> (Vec<u8>, Vec<u8>) {
    let mut start = local(LOCAL_REGION_RAFT, region_id, 1);
    start.push(SUFFIX_LOG);
    (start, raft_state(region_id))
}

/// Region and index of a log entry's key; `None` for any other key.
#[must_use]
pub fn parse_raft_log(key: &[u8]) -> Option<(u64, u64)> {
    let (region_id, suffix) = parse_local(key, LOCAL_REGION_RAFT)?;
    match suffix.split_first()? {
        (&SUFFIX_LOG, index) => Some((region_id, u64::from_be_bytes(index.try_into().ok()?))),
        _ => None,
    }
}

/// Key of the RaftLocalState, raft engine.
#[must_use]
pub fn raft_state(region_id: u64) -> Vec<u8> {
    region_raft(region_id, SUFFIX_RAFT_STATE)
}

/// Region of a RaftLocalState's key; `None` for any other key.
#[must_use]
pub fn parse_raft_state(key: &[u8]) -> Option<u64> {
    match parse_local(key, LOCAL_REGION_RAFT)? {
        (region_id, [SUFFIX_RAFT_STATE]) => Some(region_id),
        _ => None,
    }
}

/// Region of any key with a region's records in the raft engine, or of what such a key begins
/// with; `None` for any other key.
pub(crate) fn region_of_raft_key(key: &[u8]) -> Option<u64> {
    parse_local(key, LOCAL_REGION_RAFT).map(|(region_id, _)| region_id)
}

/// Range of everything that the raft engine holds of a region: log and RaftLocalState.
/// In the kv engine the same range holds apply state and copy.
#[must_use]
pub fn region_raft_range(region_id: u64) -> (Vec<u8>, Vec<u8>) {
    let start = local(LOCAL_REGION_RAFT, region_id, 0);
    let end = successor(&start);
    (start, end)
}

/// Range of what all regions have in the raft engine.
#[must_use]
pub fn all_region_raft_range() -> (Vec<u8>, Vec<u8>) {
    (
        vec![LOCAL, LOCAL_REGION_RAFT],
        vec![LOCAL, LOCAL_REGION_RAFT + 1],
    )
}

/// Key of the RaftApplyState, kv engine.
#[must_use]
pub fn apply_state(region_id: u64) -> Vec<u8> {
    region_raft(region_id, SUFFIX_APPLY_STATE)
}

/// Key of the copy of RaftLocalState while a snapshot is installed, kv engine.
#[must_use]
pub fn raft_state_copy(region_id: u64) -> Vec<u8> {
    region_raft(region_id, SUFFIX_RAFT_STATE_COPY)
}

/// Key of the RegionLocalState, kv engine.
#[must_use]
pub fn region_state(region_id: u64) -> Vec<u8> {
    let mut key = local(LOCAL_REGION_META, region_id, 1);
    key.push(SUFFIX_REGION_STATE);
    key
}

/// Range of the RegionLocalStates of all regions.
#[must_use]
pub fn all_region_states_range() -> (Vec<u8>, Vec<u8>) {
    (
        vec![LOCAL, LOCAL_REGION_META],
        vec![LOCAL, LOCAL_REGION_META + 1],
    )
}

/// Region of a RegionLocalState's key; `None` for any other key.
#[must_use]
pub fn parse_region_state(key: &[u8]) -> Option<u64> {
    match parse_local(key, LOCAL_REGION_META)? {
        (region_id, [SUFFIX_REGION_STATE]) => Some(region_id),
        _ => None,
    }
}

/// Key of a client session.
#[must_use]
pub fn session(region_id: u64, session_id: &[u8; SESSION_ID_BYTES]) -> Vec<u8> {
    let mut key = local(LOCAL_SESSION, region_id, SESSION_ID_BYTES);
    key.extend_from_slice(session_id);
    key
}

/// Range of a region's client sessions.
#[must_use]
pub fn session_range(region_id: u64) -> (Vec<u8>, Vec<u8>) {
    let start = local(LOCAL_SESSION, region_id, 0);
    let end = successor(&start);
    (start, end)
}

/// Key of a record of the system region; `suffix` is the scheduler's.
#[must_use]
pub fn system(suffix: &[u8]) -> Vec<u8> {
    [&[LOCAL, LOCAL_SYSTEM], suffix].concat()
}

/// Range of all records of the system region.
#[must_use]
pub fn system_range() -> (Vec<u8>, Vec<u8>) {
    (vec![LOCAL, LOCAL_SYSTEM], vec![LOCAL, LOCAL_SYSTEM + 1])
}

/// The scheduler's part of a system record's key; `None` for any other key.
#[must_use]
pub fn parse_system(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[LOCAL, LOCAL_SYSTEM])
}

/// Key of what is known of another store's folder.
#[must_use]
pub fn store_incarnation(store_id: u64) -> Vec<u8> {
    local(LOCAL_INCARNATION, store_id, 0)
}

/// Range of what is known of all other stores' folders.
#[must_use]
pub fn store_incarnation_range() -> (Vec<u8>, Vec<u8>) {
    (
        vec![LOCAL, LOCAL_INCARNATION],
        vec![LOCAL, LOCAL_INCARNATION + 1],
    )
}

/// The column family of raw keys.
#[must_use]
pub fn raw_cf(space: RawSpace) -> Cf {
    match space {
        RawSpace::RawV1 => Cf::Raw,
        RawSpace::RawV2 => Cf::Raw2,
    }
}

/// The form of a raw key that is compared with region boundaries: v1 as it is, v2
/// encoded. For v2 `key` is the whole of `r`, keyspace and user key.
#[must_use]
pub fn compared_form(space: RawSpace, key: &[u8]) -> Cow<'_, [u8]> {
    match space {
        RawSpace::RawV1 => Cow::Borrowed(key),
        RawSpace::RawV2 => Cow::Owned(memcomparable::encode(key)),
    }
}

/// Engine key of a raw key.
#[must_use]
pub fn raw_key(space: RawSpace, key: &[u8]) -> Vec<u8> {
    data_key(&compared_form(space, key))
}

/// The raw key as the client sent it, from its engine key; `None` if it is none.
#[must_use]
pub fn parse_raw_key(space: RawSpace, engine_key: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (&DATA_PREFIX, compared) = engine_key.split_first()? else {
        return None;
    };
    match space {
        RawSpace::RawV1 => Some(Cow::Borrowed(compared)),
        RawSpace::RawV2 => match memcomparable::decode(compared) {
            Ok((key, length)) if length == compared.len() => Some(Cow::Owned(key)),
            _ => None,
        },
    }
}

/// Engine key of a transaction's key, with its timestamp in `default` and `write`,
/// without one in `lock`. Newer versions sort first.
#[must_use]
pub fn mvcc_key(key: &[u8], api: ApiVersion, timestamp: Option<u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(memcomparable::encoded_len(key.len()) + 10);
    out.push(DATA_PREFIX);
    memcomparable::encode_into(&mut out, key);
    out.push(api.byte());
    if let Some(timestamp) = timestamp {
        out.extend_from_slice(&(!timestamp).to_be_bytes());
    }
    out
}

/// Engine key of the compared form of a key: `z` in front.
#[must_use]
pub fn data_key(compared: &[u8]) -> Vec<u8> {
    [&[DATA_PREFIX], compared].concat()
}

/// The compared form (with suffixes, for MVCC) of an engine key; `None` if it is none.
#[must_use]
pub fn parse_data_key(engine_key: &[u8]) -> Option<&[u8]> {
    engine_key.strip_prefix(&[DATA_PREFIX])
}

/// The slice of each data column family that a region covers, half-open. `end_key`
/// empty: to the end of all data.
#[must_use]
pub fn data_range(start_key: &[u8], end_key: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (data_key(start_key), data_end_key(end_key))
}

/// Engine key of an exclusive upper boundary in compared form; empty: behind all data.
#[must_use]
pub fn data_end_key(end_key: &[u8]) -> Vec<u8> {
    if end_key.is_empty() {
        vec![DATA_END]
    } else {
        data_key(end_key)
    }
}

/// True if a key in compared form lies in `[start_key, end_key)`; an empty `end_key` is
/// the end of all keys.
#[must_use]
pub fn range_contains(start_key: &[u8], end_key: &[u8], compared: &[u8]) -> bool {
    start_key <= compared && (end_key.is_empty() || compared < end_key)
}

fn region_raft(region_id: u64, suffix: u8) -> Vec<u8> {
    let mut key = local(LOCAL_REGION_RAFT, region_id, 1);
    key.push(suffix);
    key
}

fn local(area: u8, id: u64, suffix_bytes: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(10 + suffix_bytes);
    key.extend_from_slice(&[LOCAL, area]);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn parse_local(key: &[u8], area: u8) -> Option<(u64, &[u8])> {
    let (id, suffix) = key.strip_prefix(&[LOCAL, area])?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*id), suffix))
}

/// The first key behind all that begin with `prefix`.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    let last = end
        .last_mut()
        .expect("local prefixes begin with a byte below 0xff");
    *last += 1;
    end
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
