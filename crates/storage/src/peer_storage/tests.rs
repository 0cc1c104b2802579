//! One replica's storage: what raft reads, what a crash leaves, what a start refuses.
//!
//! The tests by the names term, entries, append and clear meta follow TinyKV's.

use bytes::Bytes;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RegionLocalState;
use strata_raft::{Storage, StorageError, entry_bytes};

use super::*;
use crate::engine::{Durability, EngineError, ReadView};
use crate::error::{RecordFault, StartFault};
use crate::mem::{Fault, MemEngine};
use crate::record::RecordKind;
use crate::region_records::{write_apply_state, write_region_state};

mod crash_rules;
mod model;

const REGION: u64 = 7;
const PEER: u64 = 71;

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from(format!("{index}@{term}")),
        ..Entry::default()
    }
}

fn entries(ids: &[(u64, u64)]) -> Vec<Entry> {
    ids.iter()
        .map(|&(index, term)| entry(index, term))
        .collect()
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit }
}

fn region() -> Region {
    Region {
        id: REGION,
        peers: vec![Peer {
            id: PEER,
            store_id: 1,
            ..Peer::default()
        }],
        ..Region::default()
    }
}

fn apply_state(truncated: (u64, u64), applied: (u64, u64)) -> RaftApplyState {
    RaftApplyState {
        applied_index: applied.0,
        applied_term: applied.1,
        truncated_index: truncated.0,
        truncated_term: truncated.1,
        region_clock_ms: 0,
    }
}

/// Writes what kv knows of the region: its record and the apply state.
fn write_kv(engines: &Engines<MemEngine>, state: &RaftApplyState) {
    let mut kv = WriteBatch::new();
    let local = RegionLocalState {
        region: Some(region()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &local);
    write_apply_state(&mut kv, REGION, state);
    engines.kv.write(&kv, Durability::Synced).unwrap();
}

fn write_raft(engines: &Engines<MemEngine>, last: u64, hard: HardState, log: &[(u64, u64)]) {
    let mut raft = WriteBatch::new();
    for entry in entries(log) {
        let key = keys::raft_log(REGION, entry.index);
        raft.put(Cf::RaftLog, key, entry.encode_to_vec());
    }
    let state = RaftLocalState {
        hard_state: Some(hard),
        last_index: last,
    };
    write_raft_state(&mut raft, REGION, &state);
    engines.raft.write(&raft, Durability::Synced).unwrap();
}

fn load(engines: &Engines<MemEngine>) -> Result<PeerStorage<MemEngine>, Error> {
    let options = PeerStorageOptions::default();
    let loaded = PeerStorage::load(engines, REGION, PEER, &options)?;
    Ok(loaded.expect("the region is known"))
}

/// A replica whose log is truncated at (3, 3) and holds (4, 4) and (5, 5); everything is
/// on disk and the cache is cold.
fn three_four_five() -> (Engines<MemEngine>, PeerStorage<MemEngine>) {
    let engines = MemEngine::new_pair();
    write_kv(&engines, &apply_state((3, 3), (3, 3)));
    write_raft(&engines, 5, hard_state(5, 0, 3), &[(4, 4), (5, 5)]);
    let storage = load(&engines).unwrap();
    (engines, storage)
}

fn append(
    storage: &mut PeerStorage<MemEngine>,
    number: u64,
    log: &[(u64, u64)],
    hard: Option<HardState>,
) {
    let mut batch = WriteBatch::new();
    storage.append(number, &entries(log), hard.as_ref(), &mut batch);
    let raft = storage.engines().raft.clone();
    raft.write(&batch, Durability::Synced).unwrap();
    storage.on_persisted(number);
}

fn ids(entries: &[Entry]) -> Vec<(u64, u64)> {
    entries.iter().map(|e| (e.index, e.term)).collect()
}

#[test]
fn peer_storage_term() {
    let (_, storage) = three_four_five();
    assert_eq!(storage.term(2), Err(StorageError::Compacted));
    assert_eq!(storage.term(3), Ok(3));
    assert_eq!(storage.term(4), Ok(4));
    assert_eq!(storage.term(5), Ok(5));
    assert_eq!(storage.term(6), Err(StorageError::Unavailable));
}

#[test]
fn peer_storage_first_and_last_index() {
    let (_, mut storage) = three_four_five();
    assert_eq!(
        (storage.first_index(), storage.last_index()),
        (Ok(4), Ok(5))
    );
    append(&mut storage, 1, &[(6, 5)], None);
    assert_eq!(
        (storage.first_index(), storage.last_index()),
        (Ok(4), Ok(6))
    );
}

#[test]
fn peer_storage_entries() {
    let engines = MemEngine::new_pair();
    write_kv(&engines, &apply_state((3, 3), (3, 3)));
    write_raft(&engines, 5, hard_state(6, 0, 3), &[(4, 4), (5, 5)]);
    let mut storage = load(&engines).unwrap();
    // 4 and 5 are read from disk, 6 from the cache.
    append(&mut storage, 1, &[(6, 6)], None);
    let size = |index: u64| entry_bytes(&entry(index, index));
    let all = u64::MAX;
    let (two, three) = (size(4) + size(5), size(4) + size(5) + size(6));
    type Row = (u64, u64, u64, Result<Vec<(u64, u64)>, StorageError>);
    let rows: [Row; 11] = [
        (2, 6, all, Err(StorageError::Compacted)),
        (3, 4, all, Err(StorageError::Compacted)),
        (4, 5, all, Ok(vec![(4, 4)])),
        (4, 6, all, Ok(vec![(4, 4), (5, 5)])),
        (4, 7, all, Ok(vec![(4, 4), (5, 5), (6, 6)])),
        (6, 7, all, Ok(vec![(6, 6)])),
        (4, 8, all, Err(StorageError::Unavailable)),
        // At least one entry, whatever the limit.
        (4, 7, 0, Ok(vec![(4, 4)])),
        (4, 7, two, Ok(vec![(4, 4), (5, 5)])),
        (4, 7, three - 1, Ok(vec![(4, 4), (5, 5)])),
        (4, 7, three, Ok(vec![(4, 4), (5, 5), (6, 6)])),
    ];
    for (low, high, bytes, expected) in rows {
        let answer = storage.entries(low, high, bytes).map(|e| ids(&e));
        assert_eq!(answer, expected, "[{low}, {high}) within {bytes} bytes");
    }
    assert_eq!(storage.entries(4, 4, all), Ok(Vec::new()));
    assert_eq!(
        storage.entries(6, 7, all).unwrap(),
        [entry(6, 6)],
        "data too"
    );
}

#[test]
fn peer_storage_append() {
    let start: &[(u64, u64)] = &[(4, 4), (5, 5)];
    // What is appended and what the log is then.
    type Row<'a> = (&'a [(u64, u64)], &'a [(u64, u64)]);
    let rows: [Row; 5] = [
        (&[(4, 4), (5, 5)], start),
        (&[(4, 4), (5, 6)], &[(4, 4), (5, 6)]),
        (&[(4, 4), (5, 5), (6, 5)], &[(4, 4), (5, 5), (6, 5)]),
        // Truncates the entries behind the new last one.
        (&[(4, 5)], &[(4, 5)]),
        // Direct append.
        (&[(6, 5)], &[(4, 4), (5, 5), (6, 5)]),
    ];
    for (appended, expected) in rows {
        let (engines, mut storage) = three_four_five();
        append(&mut storage, 1, appended, Some(hard_state(6, 0, 3)));
        let last = expected.last().unwrap();
        let check = |storage: &PeerStorage<MemEngine>| {
            let found = storage.entries(4, last.0 + 1, u64::MAX).unwrap();
            assert_eq!(ids(&found), expected, "after {appended:?}");
            assert_eq!(storage.last_index(), Ok(last.0));
            assert_eq!(storage.term(last.0), Ok(last.1));
        };
        check(&storage);
        // The start check finds nothing behind the last entry.
        let engines = Engines::new(engines.kv.kill(), engines.raft.kill());
        check(&load(&engines).unwrap());
    }
}

#[test]
fn peer_storage_append_is_read_before_it_is_written() {
    let (_, mut storage) = three_four_five();
    let mut first = WriteBatch::new();
    storage.append(1, &entries(&[(6, 5), (7, 5)]), None, &mut first);
    let mut second = WriteBatch::new();
    storage.append(
        2,
        &entries(&[(5, 6)]),
        Some(&hard_state(6, 0, 3)),
        &mut second,
    );
    assert_eq!(
        ids(&storage.entries(4, 6, u64::MAX).unwrap()),
        [(4, 4), (5, 6)]
    );
    assert_eq!(storage.persisted_index(), 4);
    let raft = storage.engines().raft.clone();
    raft.write(&first, Durability::Synced).unwrap();
    storage.on_persisted(1);
    assert_eq!(storage.persisted_index(), 4, "5 is being replaced");
    raft.write(&second, Durability::Synced).unwrap();
    storage.on_persisted(2);
    assert_eq!(storage.persisted_index(), 5);
    assert_eq!(load(storage.engines()).unwrap().last(), storage.last());
}

#[test]
fn peer_storage_clear_meta() {
    let (engines, storage) = three_four_five();
    let count = |engines: &Engines<MemEngine>| {
        let mut count = (0, 0);
        let mut visit = |_: &[u8], _: &[u8]| {
            count.0 += 1;
            std::ops::ControlFlow::Continue(())
        };
        let forward = crate::Direction::Forward;
        engines
            .kv
            .scan(Cf::Raft, b"", None, forward, &mut visit)
            .unwrap();
        let mut visit = |_: &[u8], _: &[u8]| {
            count.1 += 1;
            std::ops::ControlFlow::Continue(())
        };
        engines
            .raft
            .scan(Cf::RaftLog, b"", None, forward, &mut visit)
            .unwrap();
        count
    };
    // A session of this region, and records of the neighbours.
    let mut kv = WriteBatch::new();
    kv.put(Cf::Raft, keys::session(REGION, &[1; 20]), "session");
    kv.put(Cf::Raft, keys::apply_state(REGION + 1), "neighbour");
    engines.kv.write(&kv, Durability::Synced).unwrap();
    let mut raft = WriteBatch::new();
    raft.put(Cf::RaftLog, keys::raft_log(REGION - 1, 9), "neighbour");
    engines.raft.write(&raft, Durability::Synced).unwrap();
    assert_eq!(count(&engines), (4, 4));
    let (mut kv, mut raft) = (WriteBatch::new(), WriteBatch::new());
    storage.clear_meta(&mut kv, &mut raft);
    engines.kv.write(&kv, Durability::Synced).unwrap();
    engines.raft.write(&raft, Durability::Synced).unwrap();
    assert_eq!(count(&engines), (1, 1), "the neighbours stay");
    let options = PeerStorageOptions::default();
    let loaded = PeerStorage::load(&engines, REGION, PEER, &options).unwrap();
    assert!(loaded.is_none());
}

#[test]
fn peer_storage_apply_state_frees_truncated_entries() {
    let (_, mut storage) = three_four_five();
    append(
        &mut storage,
        1,
        &[(6, 5), (7, 5)],
        Some(hard_state(5, 0, 7)),
    );
    let before = storage.cached_bytes();
    assert!(before > 0);
    storage.set_apply_state(apply_state((6, 5), (7, 5)));
    assert!(storage.cached_bytes() < before);
    assert_eq!(storage.first_index(), Ok(7));
    assert_eq!(storage.term(6), Ok(5));
    assert_eq!(storage.term(5), Err(StorageError::Compacted));
    assert_eq!(
        storage.entries(6, 8, u64::MAX),
        Err(StorageError::Compacted)
    );
    assert_eq!(ids(&storage.entries(7, 8, 0).unwrap()), [(7, 5)]);
}

#[test]
fn peer_storage_snapshot_is_not_available_yet() {
    let (_, storage) = three_four_five();
    assert_eq!(
        storage.snapshot(0, 1),
        Err(StorageError::SnapshotTemporarilyUnavailable)
    );
}

#[test]
fn peer_storage_tombstone_and_unknown_region_are_none() {
    let engines = MemEngine::new_pair();
    let options = PeerStorageOptions::default();
    let load = |engines| PeerStorage::load(engines, REGION, PEER, &options).unwrap();
    assert!(load(&engines).is_none());
    let mut kv = WriteBatch::new();
    let tombstone = RegionLocalState {
        state: PeerState::Tombstone.into(),
        region: Some(region()),
        merge_state: None,
    };
    write_region_state(&mut kv, &tombstone);
    engines.kv.write(&kv, Durability::Synced).unwrap();
    assert!(load(&engines).is_none());
}
