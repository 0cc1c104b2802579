//! Tests of the log: each of its parts, alone and over a storage.

use bytes::Bytes;
use strata_proto::eraftpb::SnapshotMetadata;

use super::*;
use crate::mem_storage::MemStorage;

fn id(term: Term, index: Index) -> EntryId {
    EntryId { term, index }
}

fn run(first: Index, terms: &[Term]) -> Vec<Entry> {
    let entry = |(at, &term): (usize, &Term)| Entry {
        term,
        index: first + at as u64,
        data: Bytes::from_static(b"0123456789"),
        ..Entry::default()
    };
    terms.iter().enumerate().map(entry).collect()
}

/// A log whose entries 1.. have `terms`, all stored and persisted.
fn stored(terms: &[Term], committed: Index, applied: Index) -> (MemStorage, RaftLog<MemStorage>) {
    let storage = MemStorage::new();
    storage.append(&run(1, terms));
    let log = RaftLog::new(storage.clone(), committed, applied).unwrap();
    (storage, log)
}

/// Does what a driver does, but for the sync.
fn write(storage: &MemStorage, log: &mut RaftLog<MemStorage>, number: u64) {
    let entries = log.take_write(number, false);
    if let Some(snapshot) = log.snapshot() {
        storage.apply_snapshot(snapshot.clone()).unwrap();
    }
    storage.append(&entries);
    log.stable(number);
}

fn snapshot(term: Term, index: Index) -> Snapshot {
    Snapshot {
        metadata: Some(SnapshotMetadata {
            index,
            term,
            ..SnapshotMetadata::default()
        }),
        ..Snapshot::default()
    }
}

#[test]
fn term_answers_at_the_truncation_point_and_nowhere_before() {
    let (storage, _) = stored(&[1, 1, 2, 2, 3], 5, 5);
    storage.compact(3).unwrap();
    let log = RaftLog::new(storage, 5, 5).unwrap();
    assert_eq!(log.first_index(), 4);
    assert_eq!(log.term(2), Err(StorageError::Compacted));
    assert_eq!(log.term(3), Ok(2));
    assert_eq!(log.term(5), Ok(3));
    assert_eq!(log.term(6), Err(StorageError::Unavailable));
    assert_eq!(log.term(u64::MAX), Err(StorageError::Unavailable));
    assert_eq!(
        log.entries(2, 5, u64::MAX).unwrap_err(),
        StorageError::Compacted
    );
}

#[test]
fn entries_span_storage_and_unstable_within_the_limit() {
    let (_, mut log) = stored(&[1, 1], 0, 0);
    for entry in run(3, &[2, 2]) {
        log.push(entry);
    }
    let all = log.entries(1, 5, u64::MAX).unwrap();
    assert_eq!(
        all.iter().map(|e| e.index).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    let one = crate::types::entry_bytes(&all[0]);
    for fit in 1..=4u64 {
        assert_eq!(log.entries(1, 5, fit * one).unwrap().len() as u64, fit);
        let less = fit * one - 1;
        assert_eq!(
            log.entries(1, 5, less).unwrap().len() as u64,
            (fit - 1).max(1)
        );
    }
    assert_eq!(log.entries(3, 5, 0).unwrap().len(), 1);
    assert!(log.entries(5, 5, 100).unwrap().is_empty());
}

#[test]
fn append_keeps_what_is_the_same_and_replaces_from_the_first_difference() {
    let (_, mut log) = stored(&[1, 2, 3], 1, 1);
    let refused = log.append_from_leader(id(9, 3), Vec::new());
    assert_eq!(refused, Err(AppendRefusal::PrevMismatch));
    assert_eq!(log.append_from_leader(id(1, 1), run(2, &[2])), Ok(2));
    assert_eq!(log.last(), id(3, 3), "an old append removes nothing");
    assert_eq!(log.append_from_leader(id(1, 1), run(2, &[2, 4, 4])), Ok(4));
    assert_eq!(log.last(), id(4, 4));
    assert_eq!((log.term(2), log.term(3)), (Ok(2), Ok(4)));
    let refused = log.append_from_leader(id(0, 0), run(1, &[5]));
    assert_eq!(refused, Err(AppendRefusal::ConflictWithCommitted));
}

#[test]
fn only_what_is_committed_and_persisted_is_handed_out() {
    let (storage, mut log) = stored(&[1], 1, 0);
    assert_eq!(log.take_committed(u64::MAX).len(), 1);
    for entry in run(2, &[1, 1]) {
        log.push(entry);
    }
    write(&storage, &mut log, 1);
    log.push(run(4, &[1]).remove(0));
    write(&storage, &mut log, 2);
    log.commit_to(4);
    assert!(!log.has_committed());
    assert!(log.on_persist(1));
    let handed = log.take_committed(u64::MAX);
    assert_eq!(handed.iter().map(|e| e.index).collect::<Vec<_>>(), [2, 3]);
    log.applied_to(3);
    assert!(log.take_committed(u64::MAX).is_empty());
    assert!(log.on_persist(2));
    assert_eq!(log.take_committed(u64::MAX).len(), 1);
}

#[test]
fn a_write_under_way_counts_up_to_the_cut_only() {
    let (storage, mut log) = stored(&[1], 1, 1);
    log.append_from_leader(id(1, 1), run(2, &[1, 1])).unwrap();
    write(&storage, &mut log, 1);
    log.append_from_leader(id(1, 1), run(2, &[2])).unwrap();
    write(&storage, &mut log, 2);
    // The same entries as at first come back; on the disk they are replaced meanwhile.
    log.append_from_leader(id(1, 1), run(2, &[1, 1])).unwrap();
    write(&storage, &mut log, 3);
    assert!(!log.on_persist(2));
    assert_eq!(log.persisted(), 1);
    assert!(log.on_persist(3));
    assert_eq!(log.persisted(), 3);
}

#[test]
fn a_cut_between_ready_and_advance_leaves_the_rest_to_be_written() {
    let (storage, mut log) = stored(&[1], 1, 1);
    log.append_from_leader(id(1, 1), run(2, &[1, 1])).unwrap();
    let taken = log.take_write(1, false);
    log.append_from_leader(id(1, 1), run(2, &[2])).unwrap();
    storage.append(&taken);
    log.stable(1);
    assert_eq!(log.term(2), Ok(2));
    write(&storage, &mut log, 2);
    assert_eq!(
        storage.all_entries().last().map(EntryId::of),
        Some(id(2, 2))
    );
    log.on_persist(2);
    assert_eq!(log.persisted(), 2);
}

#[test]
fn a_snapshot_comes_out_once_and_before_anything_is_applied() {
    let (storage, mut log) = stored(&[1, 1, 1], 1, 1);
    log.push(run(4, &[1]).remove(0));
    write(&storage, &mut log, 1);
    log.restore(snapshot(5, 10));
    assert_eq!((log.first_index(), log.last_index()), (11, 10));
    assert_eq!(log.term(10), Ok(5));
    assert_eq!(log.term(3), Err(StorageError::Compacted));
    assert!(!log.has_committed());
    log.append_from_leader(id(5, 10), run(11, &[5])).unwrap();
    log.commit_to(11);
    write(&storage, &mut log, 2);
    assert!(!log.has_write());
    assert_eq!(log.handed(), 10);
    assert!(log.awaits_snapshot());
    assert!(!log.on_persist(1), "the old log's writes do not count");
    assert!(!log.has_committed());
    assert!(log.on_persist(2));
    assert_eq!(log.take_committed(u64::MAX)[0].index, 11);
    log.applied_to(11);
    assert!(!log.awaits_snapshot());
}

#[test]
fn conflict_search_skips_whole_terms() {
    let (_, log) = stored(&[1, 1, 4, 4, 4, 7, 7], 0, 0);
    assert_eq!(log.find_conflict_by_term(7, 5), (5, Some(4)));
    assert_eq!(log.find_conflict_by_term(7, 3), (2, Some(1)));
    assert_eq!(log.find_conflict_by_term(2, 9), (2, Some(1)));
    assert_eq!(log.find_conflict_by_term(99, 9), (99, None));
    assert_eq!(log.find_conflict_by_term(7, 0), (0, Some(0)));
}

#[test]
#[should_panic(expected = "commit 9 is behind the last index 1")]
fn commit_behind_the_end_is_a_broken_invariant() {
    stored(&[1], 0, 0).1.commit_to(9);
}

#[test]
#[should_panic(expected = "applied 0 -> 2, handed out 0")]
fn applied_before_handed_out_is_a_broken_invariant() {
    stored(&[1, 1], 2, 0).1.applied_to(2);
}
