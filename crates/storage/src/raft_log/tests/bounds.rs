//! What the log takes on disk stays within its bounds, whatever is written for however long.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::mem_folder::MemFolder;
use super::{
    Content, all, change, delete_entries, get, open_with, put_entry, put_record, write,
    write_synced,
};
use crate::engine::{Cf, Direction, Durability};
use crate::keys;
use crate::raft_log::log::Log;
use crate::raft_log::state::SPARE_MAX;

const FILE_BYTES: u64 = 128 << 10;
/// Bytes that a value is counted with beside itself.
const VALUE_OVERHEAD_BYTES: u64 = 48;
/// Files beside those of the bound: the one that grows, the oldest while it is walked, and what
/// is taken along from it.
const FILES_BESIDE: u64 = 3;

/// Bytes that files may have in use while they hold `content`.
fn bound(content: &Content, file_bytes: u64) -> u64 {
    let values = content.values();
    let wanted: u64 = values
        .map(|value| value.len() as u64 + VALUE_OVERHEAD_BYTES)
        .sum();
    // While what is wanted is walked and nothing else lies there, a third of it is written besides.
    (2 * (wanted + file_bytes)).max(4 * file_bytes) + wanted / 3 + FILES_BESIDE * file_bytes
}

/// Regions that write once and never again, among them one with a whole log.
fn idle_regions() -> Vec<crate::batch::WriteBatch> {
    let mut batches = vec![put_record(keys::store_ident(), b"the store")];
    batches.extend((100..120).map(|region| put_record(keys::raft_state(region), b"idle")));
    batches.extend((0..300).map(|index| put_entry(200, index, &[3; 500])));
    batches
}

/// Writes entries of `length` bytes to a region, whose log keeps the last `kept`.
fn write_on(
    log: &Log<MemFolder>,
    content: &mut Content,
    (first, count): (u64, u64),
    (length, kept): (usize, u64),
) {
    for index in first..first + count {
        let mut batch = put_entry(1, index, &vec![index as u8; length]);
        batch.append(put_record(keys::raft_state(1), &index.to_le_bytes()));
        batch.append(delete_entries(1, 0, index.saturating_sub(kept)));
        write(log, &batch);
        change(content, &batch);
        let (used, bound) = (log.used_bytes(), bound(content, FILE_BYTES));
        assert!(used <= bound, "{length} bytes, {index}: {used} of {bound}");
    }
}

#[test]
fn files_stay_within_the_bound_however_much_is_written() {
    for length in [40, 1_000, 30_000, 60_000, 120_000] {
        let folder = MemFolder::default();
        let log = open_with(&folder, FILE_BYTES);
        let mut content = Content::new();
        for batch in idle_regions() {
            write(&log, &batch);
            change(&mut content, &batch);
        }
        let count = (4_000_000 / length as u64).min(20_000);
        write_on(&log, &mut content, (0, count), (length, 5));
        assert_eq!(all(&log), content);
        let files = folder.numbers().len() as u64;
        let live = log.used_bytes().div_ceil(FILE_BYTES);
        let most = live + SPARE_MAX as u64 + 2;
        assert!(files <= most, "{files} files, {live} in use");
        let log = open_with(&folder, FILE_BYTES);
        assert_eq!(all(&log), content);
    }
}

/// The oldest file has small records of which some are wanted; what follows is written in large
/// ones. All of it must be walked in time.
#[test]
fn files_stay_within_the_bound_when_batches_are_large() {
    let file_bytes = 1 << 20;
    for length in [100_000, 900_000] {
        let folder = MemFolder::default();
        let log = open_with(&folder, file_bytes);
        let mut content = Content::new();
        for index in 0..40_000 {
            let batch = match index % 50 {
                0 => put_record(keys::raft_state(1_000 + index), b"idle"),
                _ => put_record(keys::raft_state(1), &[1; 60]),
            };
            write(&log, &batch);
            change(&mut content, &batch);
        }
        let mut most = 0;
        for index in 0..100 {
            let mut batch = put_entry(1, index, &vec![1; length]);
            batch.append(delete_entries(1, 0, index));
            write(&log, &batch);
            change(&mut content, &batch);
            most = most.max(log.used_bytes());
        }
        let bound = bound(&content, file_bytes);
        assert!(most <= bound, "{length}: {most} of {bound} bytes");
        assert_eq!(all(&log), content);
    }
}

#[test]
fn walking_reads_and_writes_little_beside_what_is_written() {
    let folder = MemFolder::default();
    let log = open_with(&folder, 4 << 20);
    let mut content = Content::new();
    for batch in idle_regions() {
        write(&log, &batch);
        change(&mut content, &batch);
    }
    let (mut rng, mut given) = (ChaCha8Rng::seed_from_u64(1), 0);
    for index in 0..100_000 {
        let length = rng.random_range(100..1_500);
        let mut batch = put_entry(1, index, &vec![1; length]);
        batch.append(delete_entries(1, 0, index.saturating_sub(3)));
        if index.is_multiple_of(200) {
            // So there is something wanted in each file, and all must be walked.
            batch.append(put_record(keys::raft_state(1_000 + index), b"idle"));
        }
        given += batch.approximate_bytes() as u64;
        write(&log, &batch);
    }
    let counts = folder.counts();
    assert!(counts.bytes < 2 * given, "{given} bytes given: {counts:?}");
    let most = 4 * counts.bytes;
    assert!(counts.bytes_read <= most, "{most} at most: {counts:?}");
    assert!(counts.bytes_read > 0, "nothing was walked: {counts:?}");
}

#[test]
fn record_of_an_idle_region_lives_as_long_as_the_log() {
    let folder = MemFolder::default();
    let mut content = Content::new();
    let idle = put_record(keys::raft_state(77), b"voted for 3 in term 9");
    let log = open_with(&folder, FILE_BYTES);
    write(&log, &idle);
    change(&mut content, &idle);
    drop(log);
    for round in 0..6 {
        let log = open_with(&folder, FILE_BYTES);
        write_on(&log, &mut content, (1_000 * round, 1_000), (900, 10));
        let found = get(&log, &keys::raft_state(77)).unwrap();
        assert_eq!(found.as_deref(), Some(&b"voted for 3 in term 9"[..]));
    }
    let counts = folder.counts();
    assert!(counts.lives > 40, "few rounds of collection: {counts:?}");
}

/// Each start that writes begins a file. A node that starts often and writes little must not be
/// left with all of them.
#[test]
fn many_starts_with_little_written_leave_few_files() {
    for file_bytes in [16 << 10, FILE_BYTES, 8 << 20] {
        let folder = MemFolder::default();
        let mut content = Content::new();
        let mut most = 0;
        for start in 0..300 {
            let log = open_with(&folder, file_bytes);
            assert_eq!(all(&log), content, "start {start}");
            let batch = match start % 10 {
                0 => put_record(keys::raft_state(1_000 + start), b"voted once"),
                _ => put_record(keys::raft_state(1), &start.to_le_bytes()),
            };
            write(&log, &batch);
            change(&mut content, &batch);
            most = most.max(folder.numbers().len());
        }
        assert!(most <= 12, "{most} files of {file_bytes} bytes");
    }
}

#[test]
fn few_spare_files_are_kept() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    for index in 0..100 {
        write(&log, &put_entry(1, index, &[1; 50_000]));
    }
    let before = folder.numbers().len();
    assert!(before >= 50, "{before} files");
    write(&log, &delete_entries(1, 0, 100));
    // Each begins a life, and removes a few.
    for index in 100..140 {
        write(&log, &put_entry(1, index, &[1; 50_000]));
        write(&log, &delete_entries(1, 0, index));
    }
    let after = folder.numbers().len();
    assert!(after <= SPARE_MAX + 4, "{after} files of {before}");
}

fn reclaim_all(log: &Log<MemFolder>) {
    while log.reclaim().unwrap() {}
}

/// Entries of which two do not fit into a file: however often they are written anew, the files hold
/// more than twice what is wanted.
#[test]
fn reclaiming_ends_where_nothing_can_be_gained() {
    let folder = MemFolder::default();
    let log = open_with(&folder, 64 << 10);
    let mut content = Content::new();
    for index in 0..60 {
        let batch = put_entry(1, index, &[1; 31_000]);
        write(&log, &batch);
        change(&mut content, &batch);
    }
    for index in [3, 5] {
        let batch = delete_entries(1, index, index + 1);
        write(&log, &batch);
        change(&mut content, &batch);
    }
    let rounds = (0..1_000).take_while(|_| log.reclaim().unwrap()).count();
    assert!(rounds < 1_000, "it goes on for ever");
    assert_eq!(all(&log), content);
}

/// On a full disk a new file would end the node, which only wanted to give others back.
#[test]
fn reclaiming_makes_no_file_on_a_full_disk() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    write(&log, &put_record(keys::raft_state(77), b"idle"));
    for index in 0..50 {
        write(&log, &put_entry(1, index, &[1; 120_000]));
    }
    write(&log, &delete_entries(1, 0, 50));
    let before = (folder.counts().lives, folder.numbers());
    folder.tell_free_bytes(FILE_BYTES);
    reclaim_all(&log);
    let after = (folder.counts().lives, folder.numbers());
    assert_eq!(
        after, before,
        "what is wanted of the oldest file has no room"
    );
    folder.tell_free_bytes(100 * FILE_BYTES);
    reclaim_all(&log);
    assert!(folder.numbers().len() <= SPARE_MAX + 5);
}

/// What is wholly unwanted needs no room to go.
#[test]
fn reclaiming_on_a_full_disk_gives_back_what_needs_no_room() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    for index in 0..50 {
        write(&log, &put_entry(1, index, &[1; 100_000]));
    }
    write(&log, &delete_entries(1, 0, 50));
    folder.tell_free_bytes(FILE_BYTES);
    let before = folder.counts();
    reclaim_all(&log);
    assert_eq!(folder.counts().created, before.created);
    let files = folder.numbers().len();
    assert!(files <= SPARE_MAX + 5, "{files} files");
}

/// Readers, writers and deletions beside it, and a view of what goes meanwhile.
#[test]
fn reclaiming_beside_readers_takes_no_file_from_them() {
    const SEEN: u64 = 200;
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    let value = |index: u64| vec![index as u8; 5_000];
    for index in 0..SEEN {
        write(&log, &put_entry(1, index, &value(index)));
    }
    let view = log.view();
    let check = |key: &[u8], found: &[u8]| {
        if let Some((_, index)) = keys::parse_raft_log(key) {
            assert!(found == value(index), "entry {index}");
        }
        ControlFlow::Continue(())
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for index in SEEN..2_000 {
                let mut batch = put_entry(1, index, &value(index));
                if index % 64 == 63 {
                    batch.append(delete_entries(1, 0, index - 8));
                }
                log.write(&batch, Durability::Unsynced).unwrap();
            }
        });
        let reclaimer = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                reclaim_all(&log);
            }
        });
        while !writer.is_finished() {
            log.scan(Cf::RaftLog, (b"", None), Direction::Forward, &mut { check })
                .unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        reclaimer.join().unwrap();
    });
    reclaim_all(&log);
    let before = folder.counts().bytes_read;
    let mut seen = 0;
    let visit = &mut |key: &[u8], found: &[u8]| {
        seen += 1;
        check(key, found)
    };
    view.scan(Cf::RaftLog, (b"", None), Direction::Forward, visit)
        .unwrap();
    assert_eq!(seen, SEEN);
    assert!(folder.counts().bytes_read >= before + SEEN * 5_000);
    drop(view);
    assert!(log.used_bytes() <= 16 * FILE_BYTES);
    assert_eq!(all(&open_with(&folder, FILE_BYTES)), all(&log));
}

/// What is removed from the log goes back to the disk though nobody writes any more, and what is
/// wanted stays, also where the node stops at any moment of it.
#[test]
fn reclaiming_gives_files_back_and_loses_nothing_wherever_it_is_stopped() {
    let filled = || {
        let folder = MemFolder::default();
        let log = open_with(&folder, FILE_BYTES);
        let mut content = Content::new();
        for batch in idle_regions() {
            write(&log, &batch);
            change(&mut content, &batch);
        }
        for index in 0..90 {
            let mut batch = put_entry(1, index, &[1; 50_000]);
            if index % 20 == 0 {
                batch.append(put_record(keys::raft_state(1_000 + index), b"idle"));
            }
            write(&log, &batch);
            change(&mut content, &batch);
        }
        let gone = delete_entries(1, 0, 90);
        write_synced(&log, &gone);
        change(&mut content, &gone);
        (folder, log, content)
    };
    let (folder, log, content) = filled();
    let before = folder.numbers().len();
    assert!(before >= 30, "{before} files");
    reclaim_all(&log);
    assert_eq!(all(&log), content);
    let after = folder.numbers().len();
    assert!(after <= SPARE_MAX + 5, "{after} files of {before}");
    assert!(log.used_bytes() <= bound(&content, FILE_BYTES));
    let counts = folder.counts();
    assert_eq!(log.reclaim(), Ok(false));
    assert_eq!(folder.counts(), counts, "there is nothing left to do");
    assert_eq!(all(&open_with(&folder, FILE_BYTES)), content);

    let changes = counts.changes;
    for stop in 0..changes {
        let (folder, log, content) = filled();
        if folder.counts().changes + stop > changes {
            return assert!(stop > 30, "{stop} changes were stopped");
        }
        folder.stop_after(stop);
        while log.reclaim() == Ok(true) {}
        folder.go_on();
        for seed in 0..3 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let log = open_with(&folder.crash(&mut rng), FILE_BYTES);
            assert_eq!(all(&log), content, "stopped after {stop}, seed {seed}");
        }
        assert_eq!(
            all(&open_with(&folder, FILE_BYTES)),
            content,
            "killed after {stop}"
        );
    }
}

/// Writers go on beside it, and what they retire meanwhile does not go before a header says so.
#[test]
fn reclaiming_beside_writers_loses_nothing() {
    for seed in 0..20 {
        let folder = MemFolder::default();
        let log = open_with(&folder, FILE_BYTES);
        let mut content = Content::new();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for index in 0..400 {
            let mut batch = put_entry(1, index, &vec![1; rng.random_range(1_000..30_000)]);
            if index % 37 == 36 {
                batch.append(delete_entries(1, 0, index));
            }
            write_synced(&log, &batch);
            change(&mut content, &batch);
            if index % 37 == 36 {
                std::thread::scope(|scope| {
                    scope.spawn(|| reclaim_all(&log));
                    let more = put_record(keys::raft_state(1), &index.to_le_bytes());
                    write_synced(&log, &more);
                    change(&mut content, &more);
                });
                let left = folder.crash(&mut rng);
                assert_eq!(all(&open_with(&left, FILE_BYTES)), content, "seed {seed}");
            }
        }
    }
}

/// A file that one record has made long does not stay so.
#[test]
fn file_that_was_long_is_cut_when_it_is_used_again() {
    let folder = MemFolder::default();
    let log = open_with(&folder, FILE_BYTES);
    for round in 0..20 {
        write(&log, &put_entry(1, round, &vec![1; 600_000]));
        write(&log, &delete_entries(1, 0, round + 1));
        for _ in 0..10 {
            write(&log, &put_record(keys::raft_state(1), &[1; 50_000]));
        }
    }
    let long = folder.numbers().into_iter();
    let long = long.filter(|number| folder.bytes(*number).len() as u64 > FILE_BYTES);
    assert!(long.count() <= 3);
    let used = log.used_bytes();
    assert!(used < 600_000 + 8 * FILE_BYTES, "{used} bytes");
}
