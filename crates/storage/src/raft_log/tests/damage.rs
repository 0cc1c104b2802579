//! Damaged files: refused with file and offset, or at the very end taken for a torn write.
//!
//! Each batch of the logs here is synced before the next one is written, so that each record says
//! of all before it that they were on disk. The witness says it of the last one, too: without it, as
//! a power cut may leave it, that one alone counts as torn.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::maker::Maker;
use super::mem_folder::{MemFolder, WITNESS};
use super::{
    Content, FILE_BYTES, all, change, delete_entries, open, open_with, put_entry, refusal,
    try_open, write, write_synced,
};
use crate::raft_log::form::{
    FILE_HEADER_BYTES, FileHeader, RECORD_HEADER_BYTES, RecordBuilder, RecordHeader,
};
use crate::raft_log::recovery::{LogFault, RecoveryError};

/// Bytes of a header that mean something.
const HEADER_BYTES: usize = 44;

/// A file whose records count.
struct Counting {
    number: u32,
    life: u64,
    /// Offset and bytes of each record.
    records: Vec<(u64, usize)>,
}

/// A log in several files, and its states after each batch.
fn log(seed: u64) -> (MemFolder, Vec<Content>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut maker = Maker::new(false);
    let folder = MemFolder::default();
    let log = open(&folder);
    let mut states = vec![Content::new()];
    while states.len() < 150 {
        let batch = maker.batch(&mut rng);
        let mut state = states.last().unwrap().clone();
        change(&mut state, &batch);
        write_synced(&log, &batch);
        if !batch.is_empty() {
            states.push(state);
        }
    }
    (folder.copy(), states)
}

/// The files that count, by life.
fn counting(folder: &MemFolder) -> Vec<Counting> {
    let mut found = Vec::new();
    for number in folder.numbers() {
        let bytes = folder.bytes(number);
        if let Some(header) = FileHeader::decode(&bytes) {
            found.push((header, number, bytes));
        }
    }
    found.sort_by_key(|(header, ..)| header.life);
    let oldest = found.last().unwrap().0.oldest_life;
    found.retain(|(header, ..)| header.life >= oldest);
    let files = found.iter().map(|(header, number, bytes)| Counting {
        number: *number,
        life: header.life,
        records: records(header.mark, bytes),
    });
    files.collect()
}

fn records(mark: u64, bytes: &[u8]) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    let mut at = FILE_HEADER_BYTES as usize;
    while let Some(header) = RecordHeader::decode(&bytes[at..]) {
        if header.mark != mark || !header.holds(&bytes[at..]) {
            break;
        }
        let length = RECORD_HEADER_BYTES + header.length;
        found.push((at as u64, length));
        at += length;
    }
    found
}

/// The log is refused, or opened with one of `states`.
fn check_taken_or_refused(folder: &MemFolder, states: &[Content]) -> bool {
    match try_open(folder, FILE_BYTES) {
        Ok(log) => {
            let found = all(&log);
            assert!(states.contains(&found), "{} keys", found.len());
            true
        }
        Err(RecoveryError::Damage(_)) => false,
        Err(RecoveryError::System(error)) => panic!("no damage is named: {error}"),
    }
}

#[test]
fn any_flipped_bit_in_the_header_of_a_file_that_counts_is_refused() {
    let (folder, _) = log(1);
    let files = counting(&folder);
    assert!(files.len() > 2, "{} files", files.len());
    for file in files {
        for bit in 0..HEADER_BYTES * 8 {
            let damaged = folder.copy();
            damaged.flip_bit(file.number, bit);
            assert_eq!(refusal(&damaged), (file.number, LogFault::Header));
        }
    }
}

#[test]
fn flipped_bit_in_a_record_is_refused_and_in_the_very_last_one_without_witness_taken_for_torn() {
    for seed in 0..3 {
        let (folder, states) = log(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let files = counting(&folder);
        let last = *files.last().unwrap().records.last().unwrap();
        for file in &files {
            for (at, length) in &file.records {
                for place in 0..RECORD_HEADER_BYTES + 8 {
                    let is_of_header = place < RECORD_HEADER_BYTES;
                    let anywhere = rng.random_range(0..*length);
                    let byte = if is_of_header { place } else { anywhere };
                    let bit = (*at as usize + byte) * 8 + rng.random_range(0..8);
                    let damaged = folder.copy();
                    damaged.flip_bit(file.number, bit);
                    let expected = (file.number, LogFault::Record(*at));
                    assert_eq!(refusal(&damaged), expected, "byte {byte}");
                    damaged.lose(WITNESS);
                    let is_newest = file.life == files.last().unwrap().life;
                    if is_newest && *at == last.0 {
                        assert_eq!(all(&open(&damaged)), states[states.len() - 2]);
                    } else {
                        assert_eq!(refusal(&damaged), expected, "byte {byte}");
                    }
                }
            }
        }
    }
}

/// What nobody was promised may go: the witness is no further than the last sync.
#[test]
fn records_that_were_not_synced_may_be_torn_beside_the_witness() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, b"synced"));
    let kept = all(&log);
    write(&log, &put_entry(1, 2, b"written"));
    write(&log, &put_entry(1, 3, b"written"));
    let file = &counting(&folder)[0];
    let (at, _) = file.records[1];
    let torn = folder.copy();
    torn.flip_bit(file.number, (at as usize + 40) * 8);
    assert_eq!(all(&open(&torn)), kept);
    // Made durable by a start, they are promised.
    drop(log);
    assert_eq!(all(&open(&folder)).len(), 3);
    folder.flip_bit(file.number, (at as usize + 40) * 8);
    assert_eq!(refusal(&folder), (file.number, LogFault::Record(at)));
}

#[test]
fn any_flipped_bit_in_the_witness_is_refused_and_without_it_the_log_is_whole() {
    let (folder, states) = log(9);
    let length = folder.bytes(WITNESS).len();
    for bit in 0..length * 8 {
        let damaged = folder.copy();
        damaged.flip_bit(WITNESS, bit);
        assert_eq!(refusal(&damaged), (WITNESS, LogFault::Witness));
    }
    let cut = folder.copy();
    cut.replace(WITNESS, folder.bytes(WITNESS)[..length - 1].to_vec());
    assert_eq!(refusal(&cut), (WITNESS, LogFault::Witness));
    cut.lose(WITNESS);
    assert_eq!(all(&open(&cut)), states[states.len() - 1]);
    assert_eq!(cut.bytes(WITNESS), folder.bytes(WITNESS), "it is made anew");
}

/// A log whose end was cut off at any place, after a kill.
#[test]
fn log_that_ends_before_what_was_synced_is_refused_wherever_it_was_cut() {
    let folder = MemFolder::default();
    let log = open_with(&folder, 1 << 20);
    for index in 0..20 {
        write_synced(&log, &put_entry(1, index, &[1; 100]));
    }
    drop(log);
    let file = &counting(&folder)[0];
    let bytes = folder.bytes(file.number);
    for (place, (at, length)) in file.records.iter().enumerate() {
        for left in [*at as usize, *at as usize + length - 1] {
            let cut = folder.copy();
            cut.replace(file.number, bytes[..left].to_vec());
            assert_eq!(refusal(&cut), (file.number, LogFault::Record(*at)));
            cut.lose(WITNESS);
            assert_eq!(all(&open(&cut)).len(), place);
        }
    }
}

#[test]
fn damaged_last_record_of_a_file_is_refused_once_another_life_has_begun() {
    let folder = MemFolder::default();
    write_synced(&open(&folder), &put_entry(1, 1, b"first"));
    write_synced(&open(&folder), &put_entry(1, 2, b"second"));
    let files = counting(&folder);
    let (at, _) = files[0].records[0];
    folder.flip_bit(files[0].number, (at as usize + 40) * 8);
    assert_eq!(refusal(&folder), (files[0].number, LogFault::Record(at)));
}

#[test]
fn missing_file_is_refused() {
    let (folder, states) = log(2);
    let files = counting(&folder);
    for (place, lost) in files.iter().enumerate() {
        let damaged = folder.copy();
        damaged.lose(lost.number);
        match files.get(place + 1) {
            Some(next) => {
                let expected = (next.number, LogFault::Missing(lost.life));
                assert_eq!(refusal(&damaged), expected);
            }
            // But for the witness nothing tells of the newest, unless it took the place of one
            // that is missed.
            None => {
                assert_eq!(
                    refusal(&damaged),
                    (WITNESS, LogFault::NewestMissing(lost.life))
                );
                damaged.lose(WITNESS);
                check_taken_or_refused(&damaged, &states);
            }
        }
    }
}

#[test]
fn two_files_of_the_same_life_are_refused() {
    let (folder, _) = log(3);
    for file in counting(&folder) {
        let damaged = folder.copy();
        damaged.replace(900, damaged.bytes(file.number));
        assert_eq!(refusal(&damaged), (900, LogFault::Twin(file.life)));
    }
}

#[test]
fn file_whose_header_was_blanked_is_refused() {
    let (folder, _) = log(4);
    for file in counting(&folder) {
        let damaged = folder.copy();
        let mut bytes = damaged.bytes(file.number);
        bytes[..FILE_HEADER_BYTES as usize].fill(0);
        damaged.replace(file.number, bytes);
        // Of the newest file nothing else tells.
        assert_eq!(refusal(&damaged), (file.number, LogFault::Header));
    }
}

#[test]
fn file_that_was_cut_short_is_refused_unless_it_is_the_newest_without_witness() {
    let (folder, states) = log(5);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let files = counting(&folder);
    let newest = files.last().unwrap().number;
    for file in &files {
        let bytes = folder.bytes(file.number);
        let (at, length) = *file.records.last().unwrap();
        let end = at as usize + length;
        let anywhere = (0..200).map(|_| rng.random_range(0..end));
        for left in (0..HEADER_BYTES + 4).chain(anywhere).chain([end - 1]) {
            let damaged = folder.copy();
            damaged.replace(file.number, bytes[..left].to_vec());
            assert!(
                !check_taken_or_refused(&damaged, &states),
                "{left} bytes left"
            );
            damaged.lose(WITNESS);
            let is_taken = check_taken_or_refused(&damaged, &states);
            assert!(!is_taken || file.number == newest, "{left} bytes left");
        }
        let whole = folder.copy();
        whole.replace(file.number, bytes[..end].to_vec());
        assert_eq!(all(&open(&whole)), states[states.len() - 1]);
    }
}

#[test]
fn record_that_checks_and_does_not_parse_is_refused() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, b"first"));
    write_synced(&log, &put_entry(1, 2, b"second"));
    drop(log);
    let file = &counting(&folder)[0];
    let (at, length) = file.records[1];
    let mut bytes = folder.bytes(file.number);
    let record = &mut bytes[at as usize..at as usize + length];
    // A kind of change that there is not.
    record[RECORD_HEADER_BYTES] = 77;
    let sum = crc32fast::hash(&record[4..]).to_le_bytes();
    record[..4].copy_from_slice(&sum);
    folder.replace(file.number, bytes);
    assert_eq!(refusal(&folder), (file.number, LogFault::Form(at)));
}

#[test]
fn overwritten_bytes_are_refused_or_end_the_log_and_never_change_it() {
    let mut taken = 0;
    let (folder, states) = log(6);
    folder.lose(WITNESS);
    for seed in 0..600 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let damaged = folder.copy();
        let numbers = damaged.numbers();
        let number = numbers[rng.random_range(0..numbers.len())];
        let mut bytes = damaged.bytes(number);
        let from = rng.random_range(0..bytes.len());
        let until = rng.random_range(from..bytes.len()).min(from + 3_000);
        match rng.random_range(0..3) {
            0 => bytes[from..until].fill(0),
            1 => rng.fill(&mut bytes[from..until]),
            _ => bytes.copy_within(from..until, (from / 2).max(100)),
        }
        damaged.replace(number, bytes);
        taken += usize::from(check_taken_or_refused(&damaged, &states));
    }
    assert!((50..500).contains(&taken), "{taken}");
}

#[test]
fn file_that_begins_with_no_header_is_refused() {
    let (folder, _) = log(7);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for length in [1, 43, 44, 45, 100, 4095, 4096, 4097, 20_000] {
        let mut noise = vec![0; length];
        rng.fill(&mut noise[..]);
        noise[0] |= 1;
        let damaged = folder.copy();
        damaged.replace(800, noise);
        assert_eq!(refusal(&damaged), (800, LogFault::Header));
        // A file gets its name with its header in it.
        let blank = folder.copy();
        blank.replace(800, vec![0; length]);
        assert_eq!(refusal(&blank), (800, LogFault::Header));
    }
}

/// What looks like a record, as far as someone can know who writes values: all but the mark.
fn like_records(life: u64) -> Vec<u8> {
    let batch = put_entry(9, 9, b"planted");
    let mut bytes = Vec::new();
    for mark in [life, 0, 1, u64::MAX] {
        let mut record = RecordBuilder::with_capacity(100);
        record.changes(&batch);
        bytes.extend(record.finish(mark, 1 << 40, 1 << 40));
    }
    bytes
}

/// Values lie in files that are used again, and behind torn records: a start that took them for
/// records would refuse the log, or bring back what nobody wrote.
#[test]
fn values_that_look_like_records_are_none() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut folder = MemFolder::default();
    for start in 0..60 {
        let log = open(&folder);
        assert_eq!(super::get(&log, &crate::keys::raft_log(9, 9)), Ok(None));
        for index in 0..if start % 3 == 0 { 20 } else { 1 } {
            write_synced(&log, &put_entry(1, index, &like_records(start + 1)));
            write(&log, &delete_entries(1, 0, index));
        }
        drop(log);
        if start % 2 == 0 {
            folder = folder.crash(&mut rng);
        }
    }
}

/// A change of a value on disk is found when it is read, also without opening the log anew.
#[test]
fn value_that_was_changed_on_disk_is_not_returned() {
    let folder = MemFolder::default();
    let log = open(&folder);
    write_synced(&log, &put_entry(1, 1, &[5; 2_000]));
    let other = folder.copy();
    let file = &counting(&folder)[0];
    other.flip_bit(file.number, (file.records[0].0 as usize + 1_000) * 8);
    let at = file.records[0].0;
    assert_eq!(refusal(&other), (file.number, LogFault::Record(at)));
    folder.damage_in_use(file.number, file.records[0].0 as usize + 1_000);
    let found = super::get(&log, &crate::keys::raft_log(1, 1));
    assert!(
        matches!(found, Err(crate::engine::EngineError::Corruption { .. })),
        "{found:?}"
    );
}
