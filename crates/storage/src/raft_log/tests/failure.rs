//! Writes and syncs that fail: the first one refuses all that follow, and reads go on.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::mem_folder::{Fault, MemFolder};
use super::{FILE_BYTES, all, delete_entries, get, open, put_entry, write, write_synced};
use crate::engine::{Cf, Durability, EngineError, EngineKind};
use crate::keys;
use crate::raft_log::log::Log;

fn check_poisoned(log: &Log<MemFolder>, first: &str) {
    let poisoned = EngineError::Poisoned {
        engine: EngineKind::Raft,
        first: first.to_owned(),
    };
    for durability in [Durability::Unsynced, Durability::Synced] {
        let refused = log.write(&put_entry(9, 9, b"more"), durability);
        assert_eq!(refused, Err(poisoned.clone()));
    }
    assert_eq!(log.make_durable(), Err(poisoned));
}

#[test]
fn failed_write_refuses_all_that_follow_and_reads_go_on() {
    for (fault, detail) in [
        (Fault::Write, "injected failure"),
        (Fault::NoRoom, "make room on this disk"),
    ] {
        let folder = MemFolder::default();
        let log = open(&folder);
        write_synced(&log, &put_entry(1, 1, b"first"));
        let before = all(&log);
        let view = log.view();
        folder.fail_next(fault);
        let failed = log.write(&put_entry(1, 2, b"second"), Durability::Unsynced);
        let Err(EngineError::WriteFailed { detail: first, .. }) = failed else {
            panic!("{failed:?}");
        };
        assert!(first.contains(detail), "{first}");
        check_poisoned(&log, &first);
        assert_eq!(all(&log), before);
        let found = view.get(Cf::RaftLog, &keys::raft_log(1, 1)).unwrap();
        assert_eq!(found.as_deref(), Some(&b"first"[..]));
        assert_eq!(all(&open(&folder)), before);
    }
}

#[test]
fn failed_sync_refuses_all_that_follow_and_reads_go_on() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, b"first"));
    let before = all(&log);
    folder.fail_next(Fault::Sync);
    let failed = log.write(&put_entry(1, 2, b"second"), Durability::Synced);
    let Err(EngineError::WriteFailed { detail: first, .. }) = failed else {
        panic!("{failed:?}");
    };
    check_poisoned(&log, &first);
    // What was written is seen, as any unsynced write.
    let mut after = before.clone();
    super::change(&mut after, &put_entry(1, 2, b"second"));
    assert_eq!(all(&log), after);
    for seed in 0..20 {
        let left = folder.crash(&mut ChaCha8Rng::seed_from_u64(seed));
        let found = all(&open(&left));
        assert!(found == before || found == after, "seed {seed}");
    }
}

/// The system tells once of a sync that failed, and holds in memory what is not on disk. The next
/// process reads it there, and must not take it for durable.
#[test]
fn what_a_failed_sync_left_in_memory_is_written_once_more_by_the_next_process() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = MemFolder::default();
        let log = open(&folder);
        write_synced(&log, &put_entry(1, 1, b"first"));
        for index in 2..2 + seed {
            write(&log, &put_entry(1, index, &[7; 500]));
        }
        folder.fail_next(Fault::Sync);
        let failed = log.write(&put_entry(2, 1, b"second"), Durability::Synced);
        assert!(matches!(failed, Err(EngineError::WriteFailed { .. })));
        drop(log);
        let log = open(&folder);
        match seed % 2 {
            0 => log.make_durable().unwrap(),
            _ => write_synced(&log, &put_entry(3, 1, b"third")),
        }
        let expected = all(&log);
        let left = folder.crash(&mut rng);
        assert_eq!(all(&open(&left)), expected, "seed {seed}");
    }
}

/// Lets each change of a history fail that is no filling of a file.
#[test]
fn failure_at_any_change_loses_nothing_that_was_synced() {
    for stop in 0..200 {
        let folder = MemFolder::default();
        let log = open(&folder);
        folder.stop_after(stop);
        let mut states = vec![all(&log)];
        let mut first = None;
        for index in 0..60 {
            let mut batch = put_entry(1, index, &[7; 2_000]);
            batch.append(delete_entries(1, 0, index.saturating_sub(4)));
            let mut state = states.last().unwrap().clone();
            super::change(&mut state, &batch);
            states.push(state);
            if let Err(EngineError::WriteFailed { detail, .. }) =
                log.write(&batch, Durability::Synced)
            {
                first = Some(detail);
                break;
            }
        }
        if let Some(first) = first {
            check_poisoned(&log, &first);
        }
        // The last batch is there or not, to those who read on and to those who come later.
        let last_two = &states[states.len() - 2..];
        assert!(last_two.contains(&all(&log)), "stopped at {stop}");
        folder.go_on();
        assert!(last_two.contains(&all(&open(&folder))), "stopped at {stop}");
    }
}

#[test]
fn failed_read_changes_nothing() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, b"first"));
    folder.fail_next(Fault::Read);
    let failed = get(&log, &keys::raft_log(1, 1));
    assert!(
        matches!(failed, Err(EngineError::ReadFailed { .. })),
        "{failed:?}"
    );
    let found = get(&log, &keys::raft_log(1, 1)).unwrap();
    assert_eq!(found.as_deref(), Some(&b"first"[..]));
    write_synced(&log, &put_entry(1, 2, b"second"));
}

/// What is wanted of the oldest file cannot be taken along: to go on would lose it.
#[test]
fn damage_that_is_found_while_files_are_walked_refuses_all_that_follows() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write(&log, &put_entry(9, 1, &[1; 1_000]));
    folder.damage_in_use(folder.numbers()[0], 4_096 + 500);
    let mut failure = None;
    for index in 0..400 {
        let mut batch = put_entry(1, index, &[2; 2_000]);
        batch.append(delete_entries(1, 0, index));
        if let Err(error) = log.write(&batch, Durability::Unsynced) {
            failure = Some(error);
            break;
        }
    }
    let Some(EngineError::WriteFailed { detail, .. }) = failure else {
        panic!("{failure:?}");
    };
    let place = "memory/000001.log: damaged record at offset 4096; ";
    assert!(detail.starts_with(place), "{detail}");
    check_poisoned(&log, &detail);
    assert!(log.used_bytes() < 10 * FILE_BYTES);
}
