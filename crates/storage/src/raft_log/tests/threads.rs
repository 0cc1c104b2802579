//! Several threads on one log. No test waits for a time: each waits for what the others did.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::mem_folder::{MemFolder, WITNESS};
use super::{FILE_BYTES, all, delete_entries, get, open, put_entry, refusal, write, write_synced};
use crate::batch::WriteBatch;
use crate::engine::{Cf, Durability};
use crate::keys;
use crate::raft_log::log::Log;
use crate::raft_log::recovery::LogFault;

const THREADS: u64 = 8;

/// A life that begins syncs what was written before. Who waits for that hears of it only when the
/// witness says so.
#[test]
fn what_another_has_synced_is_promised_with_the_witness() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, b"first"));
    let before = folder.bytes(WITNESS);
    write(&log, &put_entry(1, 2, b"second"));
    // Too large for the file: a life begins, and syncs the one before.
    write(&log, &put_entry(1, 3, &[7; FILE_BYTES as usize]));
    assert_eq!(folder.bytes(WITNESS), before);
    let syncs = folder.counts().syncs;
    log.sync_to(2).unwrap();
    assert_eq!(folder.counts().syncs, syncs, "it is on disk");
    assert_ne!(folder.bytes(WITNESS), before);
    log.make_durable().unwrap();
    let newest = *folder.numbers().last().unwrap();
    folder.lose(newest);
    assert_eq!(refusal(&folder), (WITNESS, LogFault::NewestMissing(2)));
}

#[test]
fn records_that_come_during_a_sync_share_the_next_one() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(0, 1, b"begins the first file"));
    let before = folder.counts();
    folder.shut_gate();
    thread::scope(|scope| {
        for region in 0..THREADS {
            let log = &log;
            scope.spawn(move || write_synced(log, &put_entry(region, 5, b"value")));
        }
        // The first one holds the sync up until all have written.
        folder.wait_until(|counts| {
            let written = counts.writes - before.writes;
            written as u64 == THREADS && counts.syncs > before.syncs
        });
        folder.open_gate();
    });
    let counts = folder.counts();
    assert!(counts.syncs - before.syncs <= 2, "{counts:?}");
    let left = folder.crash(&mut ChaCha8Rng::seed_from_u64(1));
    assert_eq!(all(&open(&left)), all(&log));
}

/// Two files begin while a sync of an earlier one is under way: what it makes durable is not
/// taken for more than it is.
#[test]
fn write_into_a_new_life_is_synced_though_an_older_sync_ends_later() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(0, 1, b"begins the first file"));
    let before = folder.counts();
    let crashed = AtomicU64::new(0);
    for round in 0..50 {
        thread::scope(|scope| {
            for region in 0..4 {
                let (log, folder, crashed) = (&log, &folder, &crashed);
                scope.spawn(move || {
                    let key = keys::raft_log(region, round);
                    write_synced(log, &put_entry(region, round, &[1; 6_000]));
                    let mut rng = ChaCha8Rng::seed_from_u64(round);
                    let left = folder.crash(&mut rng);
                    assert!(get(&open(&left), &key).unwrap().is_some());
                    crashed.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        write(&log, &delete_entries(round % 4, 0, round));
    }
    assert_eq!(crashed.into_inner(), 200);
    assert!(folder.counts().lives > before.lives + 20);
}

fn batch_of(region: u64, index: u64, rng: &mut ChaCha8Rng) -> WriteBatch {
    let length = rng.random_range(8..2_000);
    let mut value = vec![region as u8; length];
    value[..8].copy_from_slice(&index.to_le_bytes());
    let mut batch = put_entry(region, index, &value);
    batch.append(delete_entries(region, 0, index.saturating_sub(10)));
    batch
}

/// Writes entries, and after each of the synced ones asks what a crash would leave.
fn write_entries(log: &Log<MemFolder>, folder: &MemFolder, region: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(region);
    for index in 1..=200 {
        let durability = match index % 3 {
            0 => Durability::Synced,
            _ => Durability::Unsynced,
        };
        let batch = batch_of(region, index, &mut rng);
        log.write(&batch, durability).unwrap();
        if index % 30 == 0 {
            let left = open(&folder.crash(&mut rng));
            let found = get(&left, &keys::raft_log(region, index)).unwrap();
            let found = found.unwrap_or_else(|| panic!("region {region} lost {index}"));
            assert_eq!(found[..8], index.to_le_bytes());
        }
    }
}

/// Entries of a region that a view finds: no hole, each with its own value.
fn check_view(log: &Log<MemFolder>, region: u64, rng: &mut ChaCha8Rng) {
    let view = log.view();
    let (start, end) = keys::raft_log_range(region);
    let mut last = None;
    let mut pause = rng.random_range(0..3);
    let visit = &mut |key: &[u8], value: &[u8]| {
        let (_, index) = keys::parse_raft_log(key).unwrap();
        assert_eq!(value[..8], index.to_le_bytes());
        assert!(value[8..].iter().all(|byte| *byte == region as u8));
        assert!(
            last.is_none_or(|last| last + 1 == index),
            "{last:?}, {index}"
        );
        last = Some(index);
        if pause > 0 {
            pause -= 1;
            thread::yield_now();
        }
        std::ops::ControlFlow::Continue(())
    };
    let direction = crate::engine::Direction::Forward;
    view.scan(Cf::RaftLog, (&start, Some(&end)), direction, visit)
        .unwrap();
}

#[test]
fn acknowledged_writes_of_all_threads_survive_and_readers_see_whole_logs() {
    let folder = MemFolder::default();
    let log = open(&folder);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|region| {
                let (log, folder) = (&log, &folder);
                scope.spawn(move || write_entries(log, folder, region))
            })
            .collect();
        for seed in 0..2 {
            let (log, is_over) = (&log, &is_over);
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                while !is_over.load(Ordering::Relaxed) {
                    check_view(log, rng.random_range(0..THREADS), &mut rng);
                }
            });
        }
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    log.make_durable().unwrap();
    let counts = folder.counts();
    assert!(counts.lives > counts.created, "{counts:?}");
    let left = folder.crash(&mut ChaCha8Rng::seed_from_u64(9));
    assert_eq!(all(&open(&left)), all(&log));
}

/// A view reads what it has seen, while all files of then are collected and used again.
#[test]
fn view_keeps_its_files_from_being_used_again() {
    let folder = MemFolder::default();
    let log = open(&folder);
    for index in 0..30 {
        write(&log, &put_entry(1, index, &[index as u8; 1_500]));
    }
    let view = log.view();
    write(&log, &delete_entries(1, 0, 30));
    let before = folder.counts();
    for index in 0..300 {
        write(&log, &put_entry(2, index, &[0xee; 1_500]));
        write(&log, &delete_entries(2, 0, index));
    }
    let counts = folder.counts();
    assert!(counts.lives > before.lives + 20, "{counts:?}");
    for index in 0..30 {
        let found = view.get(Cf::RaftLog, &keys::raft_log(1, index)).unwrap();
        assert_eq!(found.as_deref(), Some(&[index as u8; 1_500][..]));
    }
    drop(view);
    // Then they are.
    let before = folder.counts();
    for index in 300..400 {
        write(&log, &put_entry(2, index, &[0xee; 1_500]));
        write(&log, &delete_entries(2, 0, index));
    }
    assert_eq!(folder.counts().created, before.created);
    assert!(log.used_bytes() < 8 * FILE_BYTES);
}

/// A writer whose sync fails takes the others along: none of them is told that it was synced.
#[test]
fn failed_sync_fails_all_that_wait_for_it() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(0, 1, b"begins the first file"));
    folder.fail_next(super::mem_folder::Fault::Sync);
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|region| {
                let log = &log;
                scope.spawn(move || log.write(&put_entry(region, 5, b"v"), Durability::Synced))
            })
            .collect();
        threads.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(results.iter().all(Result::is_err), "{results:?}");
}
