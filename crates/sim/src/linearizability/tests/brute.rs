//! A second search that is plainly correct: it tries every order and every subset of the
//! operations of unknown outcome. For tiny histories only.

use super::*;
use crate::linearizability::bench::{self, BenchOptions};

/// A value for each key that has one.
type State = BTreeMap<Bytes, Bytes>;

fn explains(left: &mut Vec<Operation>, state: &State) -> bool {
    if left.iter().all(|o| o.returned.is_none()) {
        return true;
    }
    let horizon = left.iter().filter_map(|o| o.returned).min();
    for index in 0..left.len() {
        if left[index].invoked > horizon.unwrap_or(u64::MAX) {
            continue;
        }
        let operation = left.remove(index);
        let found = step(&operation, state).is_some_and(|after| explains(left, &after));
        left.insert(index, operation);
        if found {
            return true;
        }
    }
    false
}

fn step(operation: &Operation, state: &State) -> Option<State> {
    let mut after = state.clone();
    for touch in &operation.touches {
        let held = state.get(&touch.key);
        let value = value_after(touch, held)?;
        match value {
            Some(value) => after.insert(touch.key.clone(), value),
            None => after.remove(&touch.key),
        };
    }
    Some(after)
}

/// The value after a touch; `None` if the answer says something else.
fn value_after(touch: &Touch, held: Option<&Bytes>) -> Option<Option<Bytes>> {
    match (&touch.action, &touch.outcome) {
        (Action::Get, Some(Outcome::Value(seen))) => (seen.as_ref() == held).then(|| held.cloned()),
        (Action::Get, _) => Some(held.cloned()),
        (Action::Put(new), _) => Some(Some(new.clone())),
        (Action::Delete, _) => Some(None),
        (Action::Append(tail), _) => {
            let mut new = held.map_or(Vec::new(), |v| v.to_vec());
            new.extend_from_slice(tail);
            Some(Some(new.into()))
        }
        (Action::CompareAndSwap { expected, new }, outcome) => {
            let matches = expected.as_ref() == held;
            match outcome {
                Some(Outcome::Swapped {
                    succeeded,
                    previous,
                }) if *succeeded != matches
                    || previous.as_ref().is_some_and(|p| p.as_ref() != held) =>
                {
                    None
                }
                _ => Some(if matches { new.clone() } else { held.cloned() }),
            }
        }
    }
}

fn brute_force(operations: &[Operation]) -> bool {
    explains(&mut operations.to_vec(), &State::new())
}

const VALUES: [&str; 4] = ["a", "b", "ab", ""];

fn some_value(rng: &mut ChaCha8Rng) -> Option<Bytes> {
    // The empty value is rare, and tricky: an append to it is one to an absent key.
    let index = rng.random_range(0..=9);
    VALUES
        .get(index / 2)
        .filter(|_| index < 7)
        .map(|value| Bytes::from(*value))
}

/// An operation that saw anything, right or wrong.
fn random_touch(key: Bytes, rng: &mut ChaCha8Rng) -> (Touch, Outcome) {
    let (action, outcome) = match rng.random_range(0..8) {
        0..3 => (Action::Get, Outcome::Value(some_value(rng))),
        3 => (Action::Delete, Outcome::Done),
        4 => (
            Action::Append(VALUES[rng.random_range(1..VALUES.len())].into()),
            Outcome::Done,
        ),
        5 => {
            let action = Action::CompareAndSwap {
                expected: some_value(rng),
                new: some_value(rng),
            };
            let previous = rng.random_bool(0.7).then(|| some_value(rng));
            let succeeded = rng.random();
            (
                action,
                Outcome::Swapped {
                    succeeded,
                    previous,
                },
            )
        }
        _ => (
            Action::Put(VALUES[rng.random_range(0..VALUES.len())].into()),
            Outcome::Done,
        ),
    };
    let touch = Touch {
        key,
        action,
        outcome: None,
    };
    (touch, outcome)
}

/// A few operations on up to `keys` keys with random answers at random places.
fn random_history(keys: usize, rng: &mut ChaCha8Rng) -> Vec<Operation> {
    let count = rng.random_range(2..=6);
    let mut places: Vec<u64> = (1..=2 * count as u64).collect();
    for index in (1..places.len()).rev() {
        places.swap(index, rng.random_range(0..=index));
    }
    let mut operations: Vec<Operation> = (0..count)
        .map(|index| {
            let (one, two) = (places[2 * index], places[2 * index + 1]);
            let answered = rng.random_bool(0.7);
            let mut names: Vec<usize> = (0..keys).collect();
            for place in (1..keys).rev() {
                names.swap(place, rng.random_range(0..=place));
            }
            names.truncate(rng.random_range(1..=keys));
            let touches = names
                .into_iter()
                .map(|name| {
                    let (touch, outcome) = random_touch(format!("k{name}").into(), rng);
                    let outcome = answered.then_some(outcome);
                    Touch { outcome, ..touch }
                })
                .collect();
            let (invoked, returned) = (one.min(two), one.max(two));
            Operation {
                client: index as u64,
                touches,
                invoked,
                returned: answered.then_some(returned),
                at: (invoked, None),
            }
        })
        .collect();
    operations.sort_by_key(|operation| operation.invoked);
    operations
}

fn assert_agree(operations: &[Operation], what: &str) -> bool {
    let expected = brute_force(operations);
    let found = verdict(operations);
    assert_eq!(
        found,
        if expected {
            Verdict::Linearizable
        } else {
            Verdict::Violated
        },
        "{what}: {}",
        operations
            .iter()
            .map(|o| format!("\n  {o}, {:?}", (o.invoked, o.returned)))
            .collect::<String>()
    );
    expected
}

fn agree_on_random_histories(keys: usize, rounds: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(7 + keys as u64);
    let mut good = 0;
    for round in 0..rounds {
        let operations = random_history(keys, &mut rng);
        good += usize::from(assert_agree(&operations, &format!("round {round}")));
    }
    assert!(
        (rounds / 50..rounds * 49 / 50).contains(&good),
        "{good} good histories of {rounds} say little"
    );
}

#[test]
fn search_agrees_with_brute_force_on_one_key() {
    agree_on_random_histories(1, 40_000);
}

#[test]
fn search_agrees_with_brute_force_on_several_keys() {
    agree_on_random_histories(2, 40_000);
    agree_on_random_histories(3, 40_000);
}

/// Real registers, few values: most histories are good, and much is ambiguous.
fn real_history(rng: &mut ChaCha8Rng) -> Vec<Operation> {
    let options = BenchOptions {
        seed: rng.random(),
        operations: rng.random_range(4..=7),
        keys: 2,
        clients: 4,
        unknown: 0.25,
        several: 0.4,
        group: 2,
    };
    bench::history(&options).operations().cloned().collect()
}

/// Changes one answer, or how long one operation took.
fn mutate(operations: &mut [Operation], rng: &mut ChaCha8Rng) {
    for operation in operations.iter_mut() {
        // Room between the places for another one.
        operation.invoked *= 2;
        operation.returned = operation.returned.map(|place| place * 2);
    }
    let seen: Vec<Option<Bytes>> = operations
        .iter()
        .flat_map(|o| &o.touches)
        .filter_map(|touch| match &touch.outcome {
            Some(Outcome::Value(value)) => Some(value.clone()),
            _ => None,
        })
        .collect();
    let place = rng.random_range(0..operations.len());
    let operation = &mut operations[place];
    let touch = rng.random_range(0..operation.touches.len());
    match (
        &mut operation.touches[touch].outcome,
        rng.random_range(0..3),
    ) {
        (Some(Outcome::Value(value)), 0 | 1) => {
            *value = seen[rng.random_range(0..seen.len())].clone();
        }
        (Some(Outcome::Swapped { succeeded, .. }), 0 | 1) => *succeeded = !*succeeded,
        _ => {
            // It was over sooner than it was.
            if let Some(returned) = operation.returned {
                let steps = rng.random_range(0..(returned - operation.invoked) / 2);
                operation.returned = Some(operation.invoked + 2 * steps + 1);
            }
        }
    }
}

#[test]
fn search_agrees_with_brute_force_on_mutations_of_good_histories() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let mut operations = real_history(&mut rng);
        if round % 4 == 0 {
            assert!(assert_agree(&operations, &format!("real, round {round}")));
        }
        mutate(&mut operations, &mut rng);
        match assert_agree(&operations, &format!("mutation, round {round}")) {
            true => good += 1,
            false => bad += 1,
        }
    }
    assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
}

#[test]
fn executions_of_real_registers_are_accepted() {
    for seed in 0..60 {
        let options = BenchOptions {
            seed,
            operations: 600,
            keys: 12,
            clients: 4 + seed % 13,
            unknown: 0.03,
            several: 0.2,
            group: 4,
        };
        let checked = bench::run(&options).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert_eq!(checked.keys, 12, "seed {seed}");
        assert_eq!(checked.components, 3, "seed {seed}");
    }
}

/// One answer of a long good history is changed to a value that was there at another time:
/// the report must be about it, short, and wrong in itself.
#[test]
fn planted_wrong_reads_in_long_histories_are_found_and_narrowed() {
    let mut found = 0;
    for seed in 0..40 {
        let options = BenchOptions {
            seed,
            operations: 400,
            keys: 6,
            clients: 6,
            unknown: 0.02,
            several: 0.3,
            group: 3,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let text = bench::history(&options).to_text();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        // The last read of something is made a read of nothing.
        let Some(line) = lines
            .iter()
            .rposition(|line| line.contains("\"outcome\":{\"value\":\"") && rng.random_bool(0.5))
        else {
            continue;
        };
        let start = lines[line]
            .find("\"outcome\":{\"value\":\"")
            .expect("found above")
            + 19;
        let end = start + 1 + lines[line][start + 1..].find('"').expect("a string ends") + 1;
        lines[line].replace_range(start..end, "null");
        let history = History::from_text(&lines.join("\n")).expect("still well-formed");
        // A concurrent removal may explain it.
        if let Err(Fault::NotLinearizable(violation)) = check(&history) {
            found += 1;
            assert!(violation.operations.len() <= 12, "seed {seed}: {violation}");
            let (verdict, _) = check_operations(&violation.operations, &BTreeMap::new(), 100_000);
            assert_eq!(verdict, Verdict::Violated, "seed {seed}: {violation}");
        }
    }
    assert!(found >= 30, "{found} of 40 were found");
}
