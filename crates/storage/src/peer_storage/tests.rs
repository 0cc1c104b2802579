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

/// Rule 1: an entry is applied only when it is synced here. An apply state that is ahead
/// of the writer's report is a broken invariant and stops the process.
#[test]
#[should_panic(expected = "applied 6 is above persisted 5")]
fn crash_rule_applied_synced() {
    let (_, mut storage) = three_four_five();
    let mut batch = WriteBatch::new();
    storage.append(
        1,
        &entries(&[(6, 5)]),
        Some(&hard_state(5, 0, 6)),
        &mut batch,
    );
    storage.set_apply_state(apply_state((3, 3), (5, 5)));
    storage.set_apply_state(apply_state((3, 3), (6, 5)));
}

/// Rule 1 between its two writes: entries are synced, then applied unsynced. Whatever a
/// power cut takes of either engine, the start check passes, and nothing synced is lost.
#[test]
fn crash_rule_applied_synced_after_power_cuts() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (engines, mut storage) = three_four_five();
        let mut persisted = 5;
        let mut writing: VecDeque<(u64, WriteBatch)> = VecDeque::new();
        for number in 1..40 {
            match rng.random_range(0..3) {
                0 => {
                    let mut batch = WriteBatch::new();
                    let next = storage.last().index + 1;
                    storage.append(number, &entries(&[(next, 5)]), None, &mut batch);
                    writing.push_back((number, batch));
                }
                1 => {
                    if let Some((number, batch)) = writing.pop_front() {
                        engines.raft.write(&batch, Durability::Synced).unwrap();
                        storage.on_persisted(number);
                        persisted = storage.persisted_index();
                    }
                }
                _ => {
                    let applied = rng.random_range(storage.applied_index()..=persisted);
                    if applied < 4 {
                        continue;
                    }
                    let term = storage.term(applied).unwrap();
                    let state = apply_state((3, 3), (applied, term));
                    let mut kv = WriteBatch::new();
                    write_apply_state(&mut kv, REGION, &state);
                    engines.kv.write(&kv, Durability::Unsynced).unwrap();
                    storage.set_apply_state(state);
                }
            }
        }
        // Batches of which the writer died in the middle may be there or not.
        for (_, batch) in &writing {
            engines.raft.write(batch, Durability::Unsynced).unwrap();
        }
        let after = Engines::new(engines.kv.crash(&mut rng), engines.raft.crash(&mut rng));
        let again = load(&after).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(again.last().index >= persisted, "seed {seed}");
        assert!(again.applied_index() <= again.last().index);
    }
}

/// Rule 4: a replica reads hard state and log of its region before anything else, also
/// when a message creates it and the kv engine knows nothing.
#[test]
fn crash_rule_hard_state_kept() {
    let engines = MemEngine::new_pair();
    let options = PeerStorageOptions::default();
    let unknown = Region {
        id: REGION,
        ..Region::default()
    };
    let open = |engines: &Engines<MemEngine>| {
        PeerStorage::open(engines, unknown.clone(), PEER, &options).unwrap()
    };
    let mut storage = open(&engines);
    assert!(!storage.is_initialized());
    assert_eq!(storage.hard_state(), &HardState::default());
    // It votes in term 8; the vote is synced before it is sent. Then the power fails.
    append(&mut storage, 1, &[], Some(hard_state(8, 3, 0)));
    let engines = Engines::new(engines.kv.crash_keeping(0), engines.raft.crash_keeping(0));
    let storage = open(&engines);
    assert_eq!(storage.hard_state(), &hard_state(8, 3, 0));
    assert_eq!(storage.initial_state().unwrap().hard_state.vote, 3);

    // The same with a log: term, vote and entries come back.
    let (engines, mut storage) = three_four_five();
    append(&mut storage, 1, &[(6, 9)], Some(hard_state(9, 2, 4)));
    let engines = Engines::new(engines.kv.crash_keeping(0), engines.raft.crash_keeping(0));
    let storage = load(&engines).unwrap();
    assert_eq!(storage.hard_state(), &hard_state(9, 2, 4));
    assert_eq!(
        ids(&storage.entries(4, 7, u64::MAX).unwrap()),
        [(4, 4), (5, 5), (6, 9)]
    );
}

fn start_fault(engines: &Engines<MemEngine>) -> StartFault {
    match load(engines) {
        Err(Error::StartCheck { region_id, fault }) => {
            assert_eq!(region_id, REGION);
            fault
        }
        other => panic!("expected a start fault, got {other:?}"),
    }
}

/// Rule 8: each way in which something can be missing is refused with region and numbers.
#[test]
fn crash_rule_start_check() {
    let check = |apply: RaftApplyState, last: u64, hard: HardState, log: &[(u64, u64)]| {
        let engines = MemEngine::new_pair();
        write_kv(&engines, &apply);
        write_raft(&engines, last, hard, log);
        start_fault(&engines)
    };
    let hard = hard_state(5, 0, 3);
    let log = &[(4, 4), (5, 5)];
    assert_eq!(
        check(apply_state((3, 3), (6, 5)), 5, hard, log),
        StartFault::AppliedAboveLast {
            applied: 6,
            last: 5
        }
    );
    assert_eq!(
        check(apply_state((5, 5), (4, 4)), 5, hard, log),
        StartFault::TruncatedAboveApplied {
            truncated: 5,
            applied: 4
        }
    );
    assert_eq!(
        check(apply_state((3, 3), (3, 3)), 5, hard_state(5, 0, 6), log),
        StartFault::CommitAboveLast { commit: 6, last: 5 }
    );
    let missing = |index| StartFault::MissingEntry {
        index,
        truncated: 3,
        last: 6,
    };
    let start = apply_state((3, 3), (3, 3));
    assert_eq!(check(start, 6, hard, &[(5, 5), (6, 5)]), missing(4));
    assert_eq!(check(start, 6, hard, &[(4, 4), (6, 5)]), missing(5));
    assert_eq!(check(start, 6, hard, &[(4, 4), (5, 5)]), missing(6));
    assert_eq!(
        check(start, 4, hard, log),
        StartFault::EntryBehindLast { index: 5, last: 4 }
    );
    assert_eq!(
        check(apply_state((3, 3), (4, 5)), 5, hard, log),
        StartFault::TermMismatch {
            index: 4,
            found: 4,
            expected: 5
        }
    );
    assert_eq!(
        check(start, 5, hard_state(4, 0, 3), log),
        StartFault::TermBehindLog {
            term: 4,
            last_term: 5
        }
    );
}

#[test]
fn crash_rule_start_check_of_a_lost_engine() {
    let engines = MemEngine::new_pair();
    write_kv(&engines, &apply_state((3, 3), (5, 5)));
    assert_eq!(
        start_fault(&engines),
        StartFault::MissingRaftState { applied: 5 }
    );
    let engines = MemEngine::new_pair();
    write_raft(&engines, 5, hard_state(5, 0, 3), &[(4, 4), (5, 5)]);
    let options = PeerStorageOptions::default();
    let error = PeerStorage::open(&engines, region(), PEER, &options).unwrap_err();
    let fault = StartFault::MissingApplyState { last: 5 };
    assert_eq!(
        error,
        Error::StartCheck {
            region_id: REGION,
            fault
        }
    );
    assert_eq!(
        error.to_string(),
        "region 7: start check failed: apply state is missing, last index is 5; \
         replace the store by a new one"
    );
    assert!(error.is_fatal());
}

#[test]
fn crash_rule_start_check_raises_commit_to_applied() {
    let engines = MemEngine::new_pair();
    write_kv(&engines, &apply_state((3, 3), (5, 5)));
    write_raft(&engines, 5, hard_state(5, 0, 3), &[(4, 4), (5, 5)]);
    assert_eq!(load(&engines).unwrap().hard_state().commit, 5);
}

/// Rule 9: after a failed sync nothing more is written; the error says that the process
/// must end, and what comes back after it is a state from before or with the batch.
#[test]
fn crash_rule_failed_sync() {
    let (engines, mut storage) = three_four_five();
    engines.raft.fail_next(Fault::Sync);
    let mut batch = WriteBatch::new();
    storage.append(
        1,
        &entries(&[(6, 5)]),
        Some(&hard_state(6, 2, 3)),
        &mut batch,
    );
    let first = engines.raft.write(&batch, Durability::Synced).unwrap_err();
    assert!(matches!(first, EngineError::WriteFailed { .. }));
    assert!(first.is_fatal());
    for durability in [Durability::Synced, Durability::Unsynced] {
        let again = engines.raft.write(&batch, durability).unwrap_err();
        assert!(matches!(again, EngineError::Poisoned { .. }), "{again}");
        assert!(again.is_fatal());
    }
    assert!(engines.raft.make_durable().unwrap_err().is_fatal());
    assert_eq!(
        storage.persisted_index(),
        5,
        "nothing was reported as synced"
    );
    for kept in [0, 1] {
        let (engines, mut storage) = three_four_five();
        engines.raft.fail_next(Fault::Sync);
        let mut batch = WriteBatch::new();
        storage.append(1, &entries(&[(6, 5)]), None, &mut batch);
        engines.raft.write(&batch, Durability::Synced).unwrap_err();
        let raft = engines.raft.crash_keeping(kept);
        let after = load(&Engines::new(engines.kv.kill(), raft)).unwrap();
        assert_eq!(after.last().index, 5 + kept as u64);
    }
}

/// A flipped bit in any state record is found, and the error names record and key.
#[test]
fn bad_input_flipped_bit_state_record() {
    let of_kv = [
        (RecordKind::RegionLocalState, keys::region_state(REGION)),
        (RecordKind::RaftApplyState, keys::apply_state(REGION)),
    ];
    let of_raft = (RecordKind::RaftLocalState, keys::raft_state(REGION));
    let flip = |engine: &MemEngine, cf: Cf, key: &[u8], bit: usize| {
        let mut value = engine.get(cf, key).unwrap().unwrap().to_vec();
        value[bit / 8] ^= 1 << (bit % 8);
        let mut batch = WriteBatch::new();
        batch.put(cf, key.to_vec(), value);
        engine.write(&batch, Durability::Synced).unwrap();
    };
    let check = |engines: &Engines<MemEngine>, expected: RecordKind, expected_key: &[u8]| {
        let error = load(engines).unwrap_err();
        assert!(error.is_fatal());
        let Error::CorruptRecord { kind, key, fault } = &error else {
            panic!("expected a corrupt record, got {error}");
        };
        assert_eq!((*kind, key), (expected, &crate::record::hex(expected_key)));
        assert!(matches!(fault, RecordFault::Checksum { .. }));
    };
    for (kind, key) in of_kv {
        for bit in [0, 9, 33] {
            let (engines, _) = three_four_five();
            flip(&engines.kv, Cf::Raft, &key, bit);
            check(&engines, kind, &key);
        }
    }
    for bit in [0, 9, 33] {
        let (engines, _) = three_four_five();
        flip(&engines.raft, Cf::RaftLog, &of_raft.1, bit);
        check(&engines, of_raft.0, &of_raft.1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Appends at `last + 1 - back`, `count` entries, in a term raised by `raise`.
    Append { back: u64, count: u64, raise: u64 },
    /// The writer syncs its oldest batch.
    Sync,
    /// Applies up to `permille` of what is persisted, and truncates half of that.
    Apply { truncate: bool },
    /// The node is killed, batches that were not written are lost.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u64, 1..5u64, 0..2u64)
            .prop_map(|(back, count, raise)| Step::Append { back, count, raise }),
        3 => Just(Step::Sync),
        1 => any::<bool>().prop_map(|truncate| Step::Apply { truncate }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Index and term of each entry of a log.
type Ids = Vec<(u64, u64)>;

/// The model: the whole log as a list, and what of it is written.
struct Model {
    log: Ids,
    written: Ids,
    writing: VecDeque<(u64, WriteBatch, Ids)>,
    term: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Random appends, syncs, applies and restarts against a plain list.
    #[test]
    fn peer_storage_entries_match_a_plain_list(steps in steps()) {
        let (mut engines, _) = three_four_five();
        let options = PeerStorageOptions { entry_cache_bytes_max: 60 };
        let open = |engines: &Engines<MemEngine>| {
            PeerStorage::load(engines, REGION, PEER, &options).unwrap().unwrap()
        };
        let mut storage = open(&engines);
        let start = vec![(4, 4), (5, 5)];
        let mut model = Model {
            log: start.clone(), written: start, writing: VecDeque::new(), term: 5,
        };
        for (number, step) in (1u64..).zip(steps) {
            match step {
                Step::Append { back, count, raise } => {
                    model.term += raise;
                    let last = storage.last().index;
                    let first = (last + 1 - back).max(storage.applied_index() + 1);
                    model.log.retain(|(index, _)| *index < first);
                    let new: Vec<_> = (first..first + count).map(|i| (i, model.term)).collect();
                    model.log.extend(&new);
                    let mut batch = WriteBatch::new();
                    let hard = hard_state(model.term, 0, storage.hard_state().commit);
                    storage.append(number, &entries(&new), Some(&hard), &mut batch);
                    model.writing.push_back((number, batch, model.log.clone()));
                }
                Step::Sync => {
                    if let Some((number, batch, log)) = model.writing.pop_front() {
                        engines.raft.write(&batch, Durability::Synced).unwrap();
                        storage.on_persisted(number);
                        model.written = log;
                    }
                }
                Step::Apply { truncate } => {
                    let applied = storage.persisted_index();
                    let truncated = if truncate { applied } else { storage.truncated().index };
                    let state = apply_state(
                        (truncated, storage.term(truncated).unwrap()),
                        (applied, storage.term(applied).unwrap()),
                    );
                    let mut kv = WriteBatch::new();
                    write_apply_state(&mut kv, REGION, &state);
                    engines.kv.write(&kv, Durability::Unsynced).unwrap();
                    storage.set_apply_state(state);
                }
                Step::Restart => {
                    engines = Engines::new(engines.kv.kill(), engines.raft.kill());
                    storage = open(&engines);
                    model.writing.clear();
                    model.log = model.written.clone();
                    model.term = storage.hard_state().term;
                }
            }
            let (first, last) = (storage.truncated().index + 1, storage.last().index);
            let expected: Vec<_> =
                model.log.iter().copied().filter(|(index, _)| *index >= first).collect();
            let found = storage.entries(first, last + 1, u64::MAX).unwrap();
            prop_assert_eq!(ids(&found), expected.clone());
            for (index, term) in expected {
                prop_assert_eq!(storage.term(index), Ok(term));
            }
        }
    }
}
