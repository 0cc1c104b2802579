//! The index against a plain map of keys, mostly at the bounds of ranges.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::maker;
use crate::keys;
use crate::raft_log::index::{Held, Index, Key, Place, Wanted};

/// A place of its own for each value, in one of three files.
fn place(number: u32) -> Place {
    Place {
        file: number % 3,
        length: number % 50,
        offset: u64::from(number) * 100,
        checksum: number,
    }
}

type Model = BTreeMap<Vec<u8>, Place>;

/// Keys around all bounds: regions 0 and the last one, indexes 0 and the last one, keys that are
/// shorter and longer than an entry's.
fn bounds() -> Vec<Vec<u8>> {
    let mut found: BTreeSet<Vec<u8>> = BTreeSet::new();
    found.extend([vec![], vec![0], vec![1], vec![1, 1], vec![1, 3], vec![b'z']]);
    for region_id in [0, 1, u64::MAX - 1, u64::MAX] {
        let (start, end) = keys::region_raft_range(region_id);
        found.extend([start.clone(), end, start[..5].to_vec()]);
        let (start, end) = keys::raft_log_range(region_id);
        found.extend([start, end]);
        for index in [0, 1, 255, 256, u64::MAX - 1, u64::MAX] {
            let key = keys::raft_log(region_id, index);
            found.extend([key.clone(), key[..key.len() - 1].to_vec()]);
            found.insert([&key[..], &[0]].concat());
            found.insert([&key[..], &[0xff, 0xff]].concat());
        }
    }
    found.into_iter().collect()
}

fn put(index: &mut Index, model: &mut Model, key: &[u8], number: u32) {
    let value = vec![number as u8; place(number).length as usize];
    index.put(key, &value, place(number));
    model.insert(key.to_vec(), place(number));
}

/// An index with something under each bound, or under each other one.
fn filled(step: usize) -> (Index, Model) {
    let (mut index, mut model) = (Index::default(), Model::new());
    for (number, key) in bounds().iter().enumerate().step_by(step) {
        put(&mut index, &mut model, key, number as u32);
    }
    (index, model)
}

fn check_item((key, held): &(Key, Held), expected: (&Vec<u8>, &Place)) {
    key.with(|key| assert_eq!(key, &expected.0[..]));
    let is_entry = keys::parse_raft_log(expected.0).is_some();
    match held {
        Held::Entry(place) => assert!(is_entry && place == expected.1, "{expected:?}"),
        Held::Record(value) => {
            let number = expected.1.checksum;
            let expected = vec![number as u8; expected.1.length as usize];
            assert!(!is_entry && value[..] == expected[..]);
        }
    }
}

fn check_range(index: &Index, model: &Model, start: &[u8], end: Option<&[u8]>) {
    let found = index.range(start, end);
    let is_within = |key: &[u8]| start <= key && end.is_none_or(|end| key < end);
    let expected: Vec<_> = model.iter().filter(|(key, _)| is_within(key)).collect();
    assert_eq!(found.len(), expected.len(), "in {start:?}..{end:?}");
    for (item, expected) in found.iter().zip(expected) {
        check_item(item, expected);
    }
}

/// What is counted for each file is what a plain sum gives.
fn check_counts(index: &Index, model: &Model) {
    let mut sums: BTreeMap<u32, Wanted> = BTreeMap::new();
    for place in model.values() {
        let sum = sums.entry(place.file).or_default();
        sum.values += 1;
        sum.bytes += u64::from(place.length) + 48;
    }
    for file in 0..4 {
        let expected = sums.get(&file).copied().unwrap_or_default();
        assert_eq!(index.wanted_of(file), expected, "file {file}");
    }
    let all: u64 = sums.values().map(|sum| sum.bytes).sum();
    assert_eq!(index.wanted_bytes(), all);
}

#[test]
fn index_finds_every_range_between_any_two_bounds() {
    for step in [1, 2, 3] {
        let (index, model) = filled(step);
        let bounds = bounds();
        for start in &bounds {
            check_range(&index, &model, start, None);
            for end in &bounds {
                check_range(&index, &model, start, Some(end));
            }
            assert_eq!(index.place_of(start), model.get(start).copied());
            assert_eq!(index.get(start).is_some(), model.contains_key(start));
        }
    }
}

#[test]
fn index_removes_every_range_between_any_two_bounds() {
    let bounds = bounds();
    for step in [1, 2] {
        let (whole, model) = filled(step);
        for start in &bounds {
            for end in &bounds {
                let (mut index, mut model) = (whole.clone(), model.clone());
                index.delete_range(start, end);
                model.retain(|key, _| !(start <= key && key < end));
                check_range(&index, &model, b"", None);
                check_counts(&index, &model);
            }
            let (mut index, mut model) = (whole.clone(), model.clone());
            index.delete(start);
            model.remove(start);
            check_range(&index, &model, b"", None);
            check_counts(&index, &model);
        }
    }
}

#[test]
fn index_counts_what_is_wanted_through_any_changes() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut index, mut model) = (Index::default(), Model::new());
        for number in 0..2_000 {
            let key = maker::key(&mut rng);
            match rng.random_range(0..20) {
                0 => {
                    let end = maker::key(&mut rng);
                    index.delete_range(&key, &end);
                    model.retain(|at, _| !(key <= *at && *at < end));
                }
                1..4 => {
                    index.delete(&key);
                    model.remove(&key);
                }
                _ => put(&mut index, &mut model, &key, number),
            }
            if number % 50 == 0 {
                check_counts(&index, &model);
                check_range(&index, &model, b"", None);
            }
        }
        index.delete_range(b"", &[0xff; 20]);
        check_counts(&index, &Model::new());
        check_range(&index, &Model::new(), b"", None);
    }
}

/// A log that is appended to and cut at its front, as peers do it; with a hole now and then.
#[test]
fn index_finds_entries_of_a_log_that_moves_on() {
    let (mut index, mut model) = (Index::default(), Model::new());
    let mut at = 5;
    for number in 0..5_000 {
        at += if number % 97 == 0 { 3 } else { 1 };
        put(&mut index, &mut model, &keys::raft_log(4, at), number);
        if number % 200 == 199 {
            let (start, end) = (keys::raft_log_range(4).0, keys::raft_log(4, at - 20));
            index.delete_range(&start, &end);
            model.retain(|key, _| !(start <= *key && *key < end));
        }
        for back in [0, 1, 19, 30, 500, 50_000] {
            let key = keys::raft_log(4, u64::saturating_sub(at, back));
            assert_eq!(index.place_of(&key), model.get(&key).copied());
        }
    }
    check_counts(&index, &model);
}
