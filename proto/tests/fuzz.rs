//! Every message that comes from the network or from a disk, made of any bytes.
//!
//! The corpus is made by the test itself: the fields that a message has are found by trying
//! (a field that a message does not know leaves nothing behind when it is encoded again), and
//! a message with all its fields, some levels deep, is its own example.
//!
//! What holds for any bytes: decoding ends, takes memory in proportion to them, whatever
//! lengths they claim, and refuses or gives a message that encodes and decodes to itself.

use prost::Message;
use strata_fuzz::memory::{CountingAllocator, peak_of};
use strata_fuzz::wire::{self, Field, Value};
use strata_fuzz::{Mutator, run};
use strata_proto::{eraftpb, errorpb, kvrpcpb, metapb, pdpb, raft_cmdpb, raft_serverpb, stratapb};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Cases of each message.
const CASES: u64 = 400;
/// Numbers that are tried for fields.
const FIELD_MAX: u32 = 70;
/// Levels of messages within messages in an example.
const DEPTH: u32 = 5;
/// Bytes in memory that a byte of input may cost: an empty message in a list takes two bytes
/// on the wire and a few hundred here, and lists grow by doubling.
const BYTES_PER_BYTE: usize = 1_000;
/// Bytes that any decoding may cost.
const BYTES_AT_LEAST: usize = 64 << 10;

fn within(path: &[u32], bytes: Vec<u8>) -> Vec<u8> {
    path.iter().rev().fold(bytes, |bytes, number| {
        wire::write(&[Field {
            number: *number,
            value: Value::Bytes(bytes),
        }])
    })
}

/// Bytes that `M` keeps of what stands at a path of messages; `None` if it is malformed.
fn kept<M: Message + Default>(path: &[u32], bytes: Vec<u8>) -> Option<usize> {
    let message = M::decode(&within(path, bytes)[..]).ok()?;
    Some(message.encoded_len())
}

/// True if `M` keeps this field at this path.
fn knows<M: Message + Default>(path: &[u32], field: &Field) -> bool {
    let bytes = wire::write(std::slice::from_ref(field));
    kept::<M>(path, bytes) > kept::<M>(path, Vec::new())
}

/// The message at `path` of `M` with all the fields that it has.
fn example<M: Message + Default>(path: &mut Vec<u32>, depth: u32) -> Vec<Field> {
    let mut fields = Vec::new();
    for number in 1..=FIELD_MAX {
        // Text and bytes take the first of these, and messages do not: a key without value.
        let plain = [
            Value::Varint(1),
            Value::Fixed64(f64::to_bits(1.5)),
            Value::Fixed32(f32::to_bits(1.5)),
            Value::Bytes(b"a".to_vec()),
        ];
        let mut plain = plain.into_iter().map(|value| Field { number, value });
        if let Some(field) = plain.find(|field| knows::<M>(path, field)) {
            fields.push(field);
            continue;
        }
        let empty = Field {
            number,
            value: Value::Bytes(Vec::new()),
        };
        if depth > 0 && knows::<M>(path, &empty) {
            path.push(number);
            let value = Value::Bytes(wire::write(&example::<M>(path, depth - 1)));
            path.pop();
            fields.push(Field { number, value });
        }
    }
    fields
}

fn try_bytes<M: Message + Default + PartialEq>(name: &str, bytes: &[u8]) -> bool {
    let (decoded, peak) = peak_of(|| M::decode(bytes));
    let bound = BYTES_AT_LEAST + BYTES_PER_BYTE * bytes.len();
    let length = bytes.len();
    assert!(
        peak <= bound,
        "{name}: {length} bytes cost {peak}: {bytes:02x?}"
    );
    let Ok(message) = decoded else {
        return false;
    };
    let again = message.encode_to_vec();
    assert_eq!(again.len(), message.encoded_len(), "{name}: {bytes:02x?}");
    // A number that is none is not equal to itself: then the bytes are compared.
    let same =
        M::decode(&again[..]).is_ok_and(|back| back == message || back.encode_to_vec() == again);
    assert!(same, "{name} does not come back: {bytes:02x?}");
    true
}

/// A length that claims far more than there is, or nesting without end.
fn claims(mutator: &mut Mutator) -> Vec<u8> {
    let number = rand_field(mutator);
    if mutator.one_in(2) {
        return within(&[number; 200], Vec::new());
    }
    let mut bytes = within(&[number], Vec::new());
    bytes.pop();
    bytes.extend([0xff, 0xff, 0xff, 0xff, *mutator.pick(&[0x01, 0x07, 0x0f])]);
    bytes
}

fn rand_field(mutator: &mut Mutator) -> u32 {
    *mutator.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
}

fn fuzz<M: Message + Default + PartialEq>(name: &str) {
    let corpus = wire::write(&example::<M>(&mut Vec::new(), DEPTH));
    assert!(try_bytes::<M>(name, &corpus), "{name}: no example");
    let (mut taken, mut refused) = (0, 0);
    run(name, CASES, |mutator| {
        for bytes in [
            mutator.message(&corpus),
            mutator.bytes(&corpus),
            mutator.noise(40),
            claims(mutator),
        ] {
            if try_bytes::<M>(name, &bytes) {
                taken += 1;
            } else {
                refused += 1;
            }
        }
    });
    println!(
        "{name}: {} bytes, {taken} taken, {refused} refused",
        corpus.len()
    );
    if corpus.len() > 20 && strata_fuzz::is_whole_run() {
        assert!(
            taken * 10 > refused && refused > 0,
            "{name}: {taken}, {refused}"
        );
    }
}

/// The examples reach as deep as they should.
#[test]
fn examples_have_all_fields() {
    let encoded = wire::write(&example::<raft_serverpb::RaftMessage>(
        &mut Vec::new(),
        DEPTH,
    ));
    let message = raft_serverpb::RaftMessage::decode(&encoded[..]).unwrap();
    assert_eq!((message.region_id, message.is_tombstone), (1, true));
    assert_eq!(message.to_peer.map(|peer| peer.store_id), Some(1));
    let inner = message.message.unwrap();
    assert_eq!((inner.term, inner.entries.len()), (1, 1));
    assert_eq!(&inner.entries[0].data[..], b"a");
    let meta = inner.snapshot.unwrap().metadata.unwrap();
    assert_eq!(meta.conf_state.unwrap().voters, [1]);
}

macro_rules! fuzz_messages {
    ($($test:ident: $($package:ident :: { $($message:ident),+ $(,)? }),+;)+) => {
        $(#[test]
        fn $test() {
            $($(fuzz::<$package::$message>(stringify!($message));)+)+
        })+
    };
}

fuzz_messages! {
    fuzz_raft_messages:
        raft_serverpb::{RaftMessage},
        eraftpb::{Message, Entry, Snapshot, HardState, ConfState, ConfChange, ConfChangeV2},
        stratapb::{StoreHello, StoreReply};
    fuzz_snapshot_messages:
        stratapb::{SnapshotFrame, SnapshotReply, SnapshotMeta, SnapshotChunk, SnapshotProgress};
    fuzz_entry_messages:
        stratapb::{EntryCommand, DataCommand, SystemRequest, SystemResponse},
        raft_cmdpb::{AdminRequest};
    fuzz_state_messages:
        raft_serverpb::{RaftLocalState, RegionLocalState},
        stratapb::{RaftApplyState, StoreIdent, StoreIncarnation, ClientSession},
        metapb::{Region, Store};
    fuzz_raw_requests:
        kvrpcpb::{
            RawGetRequest, RawBatchGetRequest, RawGetKeyTtlRequest, RawPutRequest,
            RawBatchPutRequest, RawDeleteRequest, RawBatchDeleteRequest, RawDeleteRangeRequest,
            RawScanRequest, RawBatchScanRequest, RawCompareAndSwapRequest, RawChecksumRequest,
        };
    fuzz_raw_answers:
        kvrpcpb::{
            RawGetResponse, RawBatchGetResponse, RawPutResponse, RawScanResponse,
            RawCompareAndSwapResponse, RawChecksumResponse,
        },
        errorpb::{Error};
    fuzz_scheduler_messages:
        pdpb::{
            GetMembersRequest, GetMembersResponse, TsoRequest, TsoResponse, GetRegionRequest,
            GetRegionByIdRequest, GetRegionResponse, GetStoreRequest, GetStoreResponse,
            GetAllStoresRequest, GetAllStoresResponse, ScanRegionsRequest, ScanRegionsResponse,
            GetClusterInfoRequest, GetClusterInfoResponse, AllocIdRequest, AllocIdResponse,
            RegionHeartbeatRequest,
        };
    fuzz_own_service_messages:
        stratapb::{
            OpenSessionRequest, OpenSessionResponse, ExecuteRequest, ExecuteResponse,
            RegionReports, WatchRegionsRequest, WatchRegionsResponse, TransferLeaderRequest,
            TransferLeaderResponse, StatusRequest, StatusResponse,
        };
}
