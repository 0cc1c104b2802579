//! Any bytes where this crate reads its own: records, keys, values, entries of a log.
//!
//! What holds for all of them: no bytes make a decoder panic, what it takes it writes the
//! same way again, and what it refuses it refuses by a typed error. Snapshot files have their
//! own tests beside them.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use rand::Rng;
use strata_fuzz::{Mutator, run};
use strata_proto::eraftpb::{Entry, HardState};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::{PeerState, RaftLocalState, RegionLocalState};
use strata_proto::stratapb::{
    ClientSession, CompareAndSwapVerdict, RaftApplyState, RawSpace, SessionAnswer, SnapshotFile,
    SnapshotMeta, SnapshotPart, SnapshotProgress, StoreIdent, StoreIncarnation, session_answer,
};
use strata_raft::Storage as _;

use crate::bootstrap::{ClusterSpec, layout_of_ident, read_ident, write_bootstrap};
use crate::error::{Error, RecordFault};
use crate::keys::ApiVersion;
use crate::record::{self, RecordKind};
use crate::{
    Cf, Direction, Durability, Engine, Engines, MemEngine, PeerStorage, PeerStorageOptions,
    ReadView, WriteBatch, keys, may_drop, memcomparable, raw_value, read_all_region_states,
    region_checksum, write_apply_state, write_raft_state, write_region_state,
};

const REGION: u64 = 7;

fn region() -> Region {
    let peer = |store_id| Peer {
        id: REGION * 10 + store_id,
        store_id,
        ..Peer::default()
    };
    Region {
        id: REGION,
        start_key: Bytes::from(memcomparable::encode(b"b")),
        end_key: Bytes::from(memcomparable::encode(b"m")),
        region_epoch: Some(RegionEpoch {
            conf_ver: 2,
            version: 3,
        }),
        peers: vec![peer(1), peer(2), peer(3)],
        ..Region::default()
    }
}

fn raft_state(last_index: u64) -> RaftLocalState {
    RaftLocalState {
        hard_state: Some(HardState {
            term: 6,
            vote: 71,
            commit: 8,
        }),
        last_index,
    }
}

fn apply_state() -> RaftApplyState {
    RaftApplyState {
        applied_index: 8,
        applied_term: 6,
        truncated_index: 5,
        truncated_term: 5,
        region_clock_ms: 1_700_000_000_000,
    }
}

fn region_state() -> RegionLocalState {
    RegionLocalState {
        state: PeerState::Normal.into(),
        region: Some(region()),
        ..RegionLocalState::default()
    }
}

/// A record of one kind: damaged in any way it is refused, and bytes that only look whole
/// decode to what encodes the same, or are no such message.
fn try_record<M>(mutator: &mut Mutator, kind: RecordKind, key: &[u8], message: &M)
where
    M: Message + Default + PartialEq + std::fmt::Debug,
{
    let stored = record::encode(key, message);
    assert_eq!(
        record::decode::<M>(kind, key, &stored).as_ref(),
        Ok(message),
        "{kind}"
    );
    for damaged in [mutator.flip(&stored), mutator.bytes(&stored)] {
        let answer = record::decode::<M>(kind, key, &Bytes::from(damaged.clone()));
        match answer {
            Ok(back) => assert!(
                damaged == stored && back == *message,
                "{kind}: {damaged:02x?}"
            ),
            Err(Error::CorruptRecord { kind: named, .. }) => assert_eq!(named, kind),
            Err(other) => panic!("{kind}: refused as {other}"),
        }
    }
    // The checksum of its own: the message itself is no message, or another one.
    let body = mutator.message(&message.encode_to_vec());
    let stored = with_checksum(key, &body);
    match record::decode::<M>(kind, key, &stored) {
        Ok(other) => {
            let again = record::encode(key, &other);
            assert_eq!(record::decode(kind, key, &again), Ok(other), "{kind}");
        }
        Err(Error::CorruptRecord { fault, .. }) => assert_eq!(fault, RecordFault::Protobuf),
        Err(other) => panic!("{kind}: refused as {other}"),
    }
}

/// A record of any bytes, with the checksum that belongs to them.
fn with_checksum(key: &[u8], body: &[u8]) -> Bytes {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    [body, &hasher.finalize().to_be_bytes()].concat().into()
}

fn session() -> ClientSession {
    ClientSession {
        last_sequence: 3,
        last_answer: Some(SessionAnswer {
            outcome: Some(session_answer::Outcome::CompareAndSwap(
                CompareAndSwapVerdict {
                    succeeded: true,
                    previous: Some(Bytes::from_static(b"before")),
                },
            )),
        }),
        last_used_ms: 9,
        last_used_index: 8,
        ttl_ms: 600_000,
    }
}

fn snapshot_meta() -> SnapshotMeta {
    SnapshotMeta {
        id: 1,
        index: 17,
        term: 6,
        region: Some(region()),
        files: vec![SnapshotFile {
            name: "raw".to_owned(),
            length: 100,
            ..SnapshotFile::default()
        }],
        ..SnapshotMeta::default()
    }
}

#[test]
fn fuzz_state_records_of_every_kind() {
    let spec = ClusterSpec::new(&[1, 2, 3], "strata", 6, 3).unwrap();
    run("state records", 3_000, |mutator| {
        let key = keys::raft_state(REGION);
        try_record(mutator, RecordKind::RaftLocalState, &key, &raft_state(9));
        let key = keys::raft_state_copy(REGION);
        try_record(
            mutator,
            RecordKind::RaftLocalStateCopy,
            &key,
            &raft_state(17),
        );
        let key = keys::apply_state(REGION);
        try_record(mutator, RecordKind::RaftApplyState, &key, &apply_state());
        let key = keys::region_state(REGION);
        try_record(mutator, RecordKind::RegionLocalState, &key, &region_state());
        let key = keys::store_ident();
        try_record(mutator, RecordKind::StoreIdent, &key, &spec.ident(1, 99));
        let key = keys::store_incarnation(2);
        let incarnation = StoreIncarnation {
            store_id: 2,
            incarnation: 98,
        };
        try_record(mutator, RecordKind::StoreIncarnation, &key, &incarnation);
        let key = keys::session(REGION, &[1; keys::SESSION_ID_BYTES]);
        try_record(mutator, RecordKind::Session, &key, &session());
        try_record(mutator, RecordKind::System, &keys::system(b"r1"), &region());
        let name = b"rev_7_6_17_0000000000000001.meta";
        try_record(mutator, RecordKind::SnapshotMeta, name, &snapshot_meta());
        let name = b"rev_7_6_17_0000000000000001.progress";
        let parts = vec![SnapshotPart {
            synced: 50,
            crc32: 7,
        }];
        let progress = SnapshotProgress { id: 1, parts };
        try_record(mutator, RecordKind::SnapshotProgress, name, &progress);
    });
}

#[test]
fn fuzz_engine_keys() {
    let plain: [&[u8]; 4] = [b"", b"k", b"12345678", b"r\0\0\x01user key"];
    run("engine keys", 20_000, |mutator| {
        let (id, index) = (mutator.number(), mutator.number());
        let key = *mutator.pick(&plain);
        let corpus = [
            keys::raft_log(id, index),
            keys::raft_state(id),
            keys::apply_state(id),
            keys::raft_state_copy(id),
            keys::region_state(id),
            keys::session(id, &[7; keys::SESSION_ID_BYTES]),
            keys::system(key),
            keys::store_incarnation(id),
            keys::raw_key(RawSpace::RawV1, key),
            keys::raw_key(RawSpace::RawV2, key),
            keys::mvcc_key(key, ApiVersion::V2, Some(index)),
        ];
        assert_eq!(keys::parse_raft_log(&corpus[0]), Some((id, index)));
        let (one, other) = (mutator.pick(&corpus).clone(), mutator.pick(&corpus).clone());
        for bytes in [mutator.bytes(&one), mutator.splice(&one, &other)] {
            // What a key is taken for, it is.
            if let Some((region_id, index)) = keys::parse_raft_log(&bytes) {
                assert_eq!(keys::raft_log(region_id, index), bytes);
            }
            if let Some(region_id) = keys::parse_raft_state(&bytes) {
                assert_eq!(keys::raft_state(region_id), bytes);
            }
            if let Some(region_id) = keys::parse_region_state(&bytes) {
                assert_eq!(keys::region_state(region_id), bytes);
            }
            if let Some(suffix) = keys::parse_system(&bytes) {
                assert_eq!(keys::system(suffix), bytes);
            }
            for space in [RawSpace::RawV1, RawSpace::RawV2] {
                if let Some(key) = keys::parse_raw_key(space, &bytes) {
                    assert_eq!(keys::raw_key(space, &key), bytes, "{space:?}");
                }
            }
            if let Some(compared) = keys::parse_data_key(&bytes) {
                assert_eq!(keys::data_key(compared), bytes);
            }
        }
        // The ranges of a region hold its keys, also of the last one.
        let (start, end) = keys::region_raft_range(id);
        assert!(start < corpus[0] && corpus[0] < end, "region {id}");
        let (start, end) = keys::session_range(id);
        assert!(start < corpus[5] && corpus[5] < end, "region {id}");
    });
}

#[test]
fn fuzz_memcomparable_encodings_keep_their_order() {
    run("memcomparable", 20_000, |mutator| {
        let plain = mutator.noise(40);
        let encoded = memcomparable::encode(&plain);
        assert_eq!(
            memcomparable::decode(&encoded),
            Ok((plain.clone(), encoded.len()))
        );
        let damaged = mutator.bytes(&encoded);
        if let Ok((other, length)) = memcomparable::decode(&damaged) {
            assert_eq!(
                memcomparable::encode(&other),
                damaged[..length],
                "not canonical"
            );
            assert_eq!(
                other.cmp(&plain),
                memcomparable::encode(&other).cmp(&encoded)
            );
        }
    });
}

#[test]
fn fuzz_raw_values_and_what_compaction_may_drop() {
    run("raw values", 20_000, |mutator| {
        let expiry = mutator.rng().random::<bool>().then(|| mutator.number());
        let value = mutator.noise(20);
        let stored = raw_value::encode(&value, expiry);
        for bytes in [stored.to_vec(), mutator.bytes(&stored)] {
            let clock = mutator.near(expiry.unwrap_or(0));
            let droppable = may_drop(&move |_, _| Some(clock), Cf::Raw, b"zk", &bytes);
            match raw_value::decode(&bytes) {
                Ok(read) => {
                    let again = raw_value::encode(read.value, read.expires_at_ms);
                    assert_eq!(again, bytes);
                    assert_eq!(droppable, read.is_expired(clock));
                    let left = read.ttl_seconds(clock);
                    assert_eq!(left == Some(0), read.is_expired(clock));
                }
                // Nobody knows whether it has expired.
                Err(_) => assert!(!droppable),
            }
        }
    });
}

/// A store with one region whose log has entries 6 to 9.
fn engines() -> Engines<MemEngine> {
    let engines = MemEngine::new_pair();
    let mut kv = WriteBatch::new();
    write_region_state(&mut kv, &region_state());
    write_apply_state(&mut kv, REGION, &apply_state());
    for (key, value) in [(&b"c1"[..], &b"value"[..]), (b"d", b"")] {
        let key = keys::raw_key(RawSpace::RawV1, &memcomparable::encode(key));
        kv.put(Cf::Raw, key, raw_value::encode(value, Some(5)));
    }
    engines.kv.write(&kv, Durability::Synced).unwrap();
    let mut raft = WriteBatch::new();
    write_raft_state(&mut raft, REGION, &raft_state(9));
    for index in 6..10 {
        let entry = Entry {
            index,
            term: 6,
            data: Bytes::from_static(b"command"),
            ..Entry::default()
        };
        raft.put(
            Cf::RaftLog,
            keys::raft_log(REGION, index),
            entry.encode_to_vec(),
        );
    }
    engines.raft.write(&raft, Durability::Synced).unwrap();
    engines
}

fn all(view: &impl ReadView, cf: Cf) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    view.scan(cf, b"", None, Direction::Forward, &mut |key, value| {
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// Damages one key or value of a column family. State records get the checksum of what they
/// are then in half of the cases, so that more than the checksum is asked.
fn damage(mutator: &mut Mutator, engine: &MemEngine, cf: Cf) {
    let stored = all(engine, cf);
    let (key, value) = mutator.pick(&stored).clone();
    let mut batch = WriteBatch::new();
    let is_entry = keys::parse_raft_log(&key).is_some();
    if mutator.one_in(6) {
        batch.delete(cf, key.clone());
    }
    if mutator.one_in(6) {
        batch.put(cf, mutator.bytes(&key), value);
    } else if is_entry {
        batch.put(cf, key, mutator.message(&value));
    } else if cf == Cf::Raw || mutator.one_in(2) {
        batch.put(cf, key, mutator.bytes(&value));
    } else {
        let body = mutator.message(&value[..value.len().saturating_sub(4)]);
        batch.put(cf, key.clone(), with_checksum(&key, &body));
    }
    engine.write(&batch, Durability::Synced).unwrap();
}

/// A damaged store starts or says what is wrong; what it then reads is there or an error.
#[test]
fn fuzz_start_check_and_reads_of_a_damaged_log() {
    let (mut opened, mut refused) = (0, 0);
    run("damaged store", 10_000, |mutator| {
        let engines = engines();
        for _ in 0..mutator.rng().random_range(1..4) {
            match mutator.rng().random_range(0..3) {
                0 => damage(mutator, &engines.kv, Cf::Raft),
                1 => damage(mutator, &engines.kv, Cf::Raw),
                _ => damage(mutator, &engines.raft, Cf::RaftLog),
            }
        }
        let _ = read_all_region_states(&engines.kv);
        let _ = region_checksum(&engines.kv, &region(), mutator.number());
        let options = PeerStorageOptions::default();
        match PeerStorage::load(&engines, REGION, 71, &options) {
            Err(error) => {
                assert!(error.is_fatal(), "{error}");
                refused += 1;
            }
            Ok(None) => {}
            Ok(Some(storage)) => {
                opened += 1;
                let (first, last) = (
                    storage.first_index().unwrap(),
                    storage.last_index().unwrap(),
                );
                let applied = storage.applied_index();
                assert!(
                    first <= applied + 1 && applied <= last,
                    "{first} {applied} {last}"
                );
                let at = mutator.near(last);
                let _ = storage.term(at);
                match storage.entries(first, last + 1, u64::MAX) {
                    Ok(entries) => assert!(
                        entries.iter().map(|entry| entry.index).eq(first..=last),
                        "a hole that nobody found"
                    ),
                    Err(error) => drop(error.to_string()),
                }
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            opened > 500 && refused > 500,
            "{opened} opened, {refused} refused"
        );
    }
}

#[test]
fn fuzz_identity_of_a_folder() {
    let spec = ClusterSpec::new(&[1, 2, 3], "strata", 8, 3).unwrap();
    run("identity", 1_000, |mutator| {
        let engines = MemEngine::new_pair();
        write_bootstrap(&engines, &spec.ident(1, 99), &spec.layout()).unwrap();
        let key = keys::store_ident();
        let body = mutator.message(&spec.ident(1, 99).encode_to_vec());
        let mut batch = WriteBatch::new();
        let cf = if mutator.one_in(2) {
            Cf::Raft
        } else {
            Cf::RaftLog
        };
        batch.put(cf, key.clone(), with_checksum(&key, &body));
        let engine = if cf == Cf::Raft {
            &engines.kv
        } else {
            &engines.raft
        };
        engine.write(&batch, Durability::Synced).unwrap();
        drop(read_ident(&engines));
        // The layout follows from the identity, or the identity is none.
        if let Ok(ident) = StoreIdent::decode(&body[..])
            && let Ok(layout) = layout_of_ident(&ident)
        {
            assert!(layout.len() as u64 <= 10_001, "{} regions", layout.len());
        }
    });
}
