//! Power cuts at any moment, generation after generation.
//!
//! What is found must be the state after some batch, and after one that was not before the last
//! that was synced. All states since then are kept to compare with.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::maker::Maker;
use super::mem_folder::MemFolder;
use super::{Content, FILE_BYTES, all, change, open_with, put_entry, put_record, write};
use crate::batch::WriteBatch;
use crate::engine::Durability;
use crate::keys;
use crate::raft_log::log::Log;

struct Run {
    folder: MemFolder,
    file_bytes: u64,
    log: Log<MemFolder>,
    /// The state after the last synced batch, and after each one that followed.
    states: Vec<Content>,
    maker: Maker,
    rng: ChaCha8Rng,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = MemFolder::default();
        let file_bytes = [6 << 10, FILE_BYTES][rng.random_range(0..2)];
        Self {
            log: open_with(&folder, file_bytes),
            folder,
            file_bytes,
            states: vec![Content::new()],
            maker: Maker::new(rng.random_bool(0.5)),
            rng,
        }
    }

    /// Writes a batch. False if the node has stopped in the midst of it.
    fn write(&mut self) -> bool {
        let batch = self.maker.batch(&mut self.rng);
        let is_synced = self.rng.random_bool(0.4);
        let mut state = self.states.last().unwrap().clone();
        change(&mut state, &batch);
        self.states.push(state);
        let durability = match is_synced {
            true => Durability::Synced,
            false => Durability::Unsynced,
        };
        if self.log.write(&batch, durability).is_err() {
            return false;
        }
        if is_synced {
            self.states.drain(..self.states.len() - 1);
        }
        true
    }

    /// A life of the node, which ends with a crash, or at once begins anew.
    fn generation(&mut self) {
        let batches = self.rng.random_range(0..60);
        if self.rng.random_bool(0.7) {
            let changes = self.rng.random_range(0..2 * batches + 6);
            self.folder.stop_after(changes);
        }
        let has_stopped = (0..batches).any(|_| !self.write());
        self.folder.go_on();
        if self.rng.random_bool(0.8) {
            self.folder = self.folder.crash(&mut self.rng);
            self.reopen();
            // What a crash left is on disk.
            self.states.drain(..self.states.len() - 1);
        } else {
            // A kill loses at most the batch at which the node stopped.
            let count = self.states.len();
            self.reopen();
            assert!(self.states.len() + usize::from(has_stopped) >= count);
        }
    }

    fn reopen(&mut self) {
        self.log = open_with(&self.folder, self.file_bytes);
        let found = all(&self.log);
        // The newest of equal states: what follows goes on from there.
        let place = self.states.iter().rposition(|state| *state == found);
        let place = place.unwrap_or_else(|| {
            let lengths: Vec<_> = self.states.iter().map(Content::len).collect();
            panic!(
                "{} keys are no state of those with {lengths:?}",
                found.len()
            )
        });
        self.states.truncate(place + 1);
    }
}

#[test]
fn crash_leaves_a_prefix_of_the_batches_with_all_that_were_synced() {
    for seed in 0..150 {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..25 {
            run.generation();
        }
    }
}

/// Crashes after each single change of a short history in which files are taken again.
#[test]
fn crash_between_any_two_changes_of_the_files_loses_nothing_that_was_synced() {
    for has_long_file in [false, true] {
        let whole = MemFolder::default();
        history(&whole, has_long_file, None);
        let counts = whole.counts();
        assert!(counts.lives > counts.created, "{counts:?}");
        for stop in 0..counts.changes {
            let folder = MemFolder::default();
            let stopped = history(&folder, has_long_file, Some(stop));
            for seed in 0..6 {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let left = folder.crash(&mut rng);
                let log = open_with(&left, FILE_BYTES);
                let found = all(&log);
                let is_state = found == stopped.before || found == stopped.after;
                assert!(is_state, "stopped at {stop}, seed {seed}");
                // The log goes on, and what it had is there still.
                write(&log, &put_record("later", b"1"));
                let mut expected = found;
                change(&mut expected, &put_record("later", b"1"));
                assert_eq!(all(&open_with(&left, FILE_BYTES)), expected);
            }
        }
    }
}

/// What came of a history.
struct History {
    /// The last batch that was acknowledged, and the one behind it.
    before: Content,
    after: Content,
}

/// Synced batches that overwrite each other, up to the change at which the node stops.
fn history(folder: &MemFolder, has_long_file: bool, stop: Option<usize>) -> History {
    if let Some(stop) = stop {
        folder.stop_after(stop);
    }
    let mut before = Content::new();
    // A node may stop before it has a log.
    let Ok(log) = super::try_open(folder, FILE_BYTES) else {
        let after = before.clone();
        return History { before, after };
    };
    for round in 0..60 {
        let batch = history_batch(round, has_long_file);
        let mut after = before.clone();
        change(&mut after, &batch);
        if log.write(&batch, Durability::Synced).is_err() {
            return History { before, after };
        }
        before = after;
    }
    History {
        after: before.clone(),
        before,
    }
}

fn history_batch(round: u64, has_long_file: bool) -> WriteBatch {
    let long = if has_long_file && round.is_multiple_of(8) {
        40_000
    } else {
        3_000
    };
    let mut batch = put_entry(7, round, &vec![round as u8; long]);
    // The log is cut at its front, and a hard state is written anew.
    batch.append(super::delete_entries(7, 0, round.saturating_sub(2)));
    batch.append(put_record(keys::raft_state(7), &round.to_le_bytes()));
    if round == 0 {
        batch.append(put_record(keys::store_ident(), b"written once"));
    }
    batch
}

#[test]
fn process_that_is_killed_loses_nothing_though_nothing_was_synced() {
    let folder = MemFolder::default();
    let mut expected = Content::new();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut maker = Maker::new(false);
    for _ in 0..40 {
        let log = open_with(&folder, FILE_BYTES);
        assert_eq!(all(&log), expected);
        for _ in 0..rng.random_range(0..20) {
            let batch = maker.batch(&mut rng);
            write(&log, &batch);
            change(&mut expected, &batch);
        }
    }
}

/// A killed process had written what it had not synced. The next one shows it, and whoever reads it
/// takes it for promised: it must be on disk before anything is written.
#[test]
fn what_a_start_shows_is_on_disk() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = MemFolder::default();
        let log = open_with(&folder, FILE_BYTES);
        for index in 0..=seed {
            write(&log, &put_entry(1, index, &[1; 700]));
        }
        drop(log);
        let shown = all(&open_with(&folder, FILE_BYTES));
        assert_eq!(shown.len() as u64, seed + 1);
        let left = folder.crash(&mut rng);
        assert_eq!(all(&open_with(&left, FILE_BYTES)), shown, "seed {seed}");
    }
}

/// What the killed process wrote counts as written, so it must become durable with what the
/// next one writes behind it.
#[test]
fn synced_write_after_a_kill_makes_durable_what_the_killed_process_wrote() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = MemFolder::default();
        let log = open_with(&folder, FILE_BYTES);
        for index in 0..seed {
            write(&log, &put_entry(1, index, &[1; 700]));
        }
        drop(log);
        let log = open_with(&folder, FILE_BYTES);
        match seed % 2 {
            0 => log.make_durable().unwrap(),
            _ => super::write_synced(&log, &put_entry(2, 1, b"next")),
        }
        let expected = all(&log);
        let left = folder.crash(&mut rng);
        assert_eq!(all(&open_with(&left, FILE_BYTES)), expected, "seed {seed}");
    }
}

/// Records of one length: what lies behind a torn one would fit behind whatever is written in
/// its place.
#[test]
fn record_behind_a_torn_one_never_comes_back() {
    let mut gaps = 0;
    for seed in 0..60 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut folder = MemFolder::default();
        let mut expected = Content::new();
        for generation in 0..20 {
            let log = open_with(&folder, FILE_BYTES);
            assert_eq!(all(&log), expected, "seed {seed}, generation {generation}");
            let mut states = vec![expected];
            let count = rng.random_range(1..8);
            for index in 0..count {
                let batch = put_entry(1, index, &[generation; 900]);
                let mut state = states[index as usize].clone();
                change(&mut state, &batch);
                states.push(state);
                write(&log, &batch);
            }
            folder = folder.crash(&mut rng);
            let log = open_with(&folder, FILE_BYTES);
            expected = all(&log);
            let kept = states.iter().position(|state| *state == expected);
            gaps += usize::from(kept.unwrap() + 1 < states.len());
            // In the place of the torn one, of the same length and on disk.
            let batch = put_entry(2, u64::from(generation), &[generation; 900]);
            super::write_synced(&log, &batch);
            change(&mut expected, &batch);
            folder = folder.crash(&mut rng);
        }
    }
    assert!(gaps > 200, "{gaps} crashes tore a record");
}
