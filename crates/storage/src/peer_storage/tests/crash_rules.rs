//! What a crash leaves, and what a start makes of it.

use super::*;

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
