//! Histories known to be good and bad, and a plainly correct second search.

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::history::{Action, Outcome};

fn operation(action: Action, invoked: u64, returned: Option<(u64, Outcome)>) -> Operation {
    let at = (invoked, returned.as_ref().map(|(place, _)| *place));
    Operation {
        client: 1,
        key: Bytes::from_static(b"k"),
        action,
        invoked,
        returned,
        at,
    }
}

fn put(value: &'static str, invoked: u64, returned: u64) -> Operation {
    operation(
        Action::Put(value.into()),
        invoked,
        Some((returned, Outcome::Done)),
    )
}

fn open_put(value: &'static str, invoked: u64) -> Operation {
    operation(Action::Put(value.into()), invoked, None)
}

fn append(value: &'static str, invoked: u64, returned: u64) -> Operation {
    operation(
        Action::Append(value.into()),
        invoked,
        Some((returned, Outcome::Done)),
    )
}

fn delete(invoked: u64, returned: u64) -> Operation {
    operation(Action::Delete, invoked, Some((returned, Outcome::Done)))
}

fn get(value: Option<&'static str>, invoked: u64, returned: u64) -> Operation {
    let value = value.map(Bytes::from);
    operation(
        Action::Get,
        invoked,
        Some((returned, Outcome::Value(value))),
    )
}

fn cas(
    expected: Option<&'static str>,
    new: &'static str,
    (succeeded, previous): (bool, Option<&'static str>),
    (invoked, returned): (u64, u64),
) -> Operation {
    let action = Action::CompareAndSwap {
        expected: expected.map(Bytes::from),
        new: Some(new.into()),
    };
    let previous = Some(previous.map(Bytes::from));
    operation(
        action,
        invoked,
        Some((
            returned,
            Outcome::Swapped {
                succeeded,
                previous,
            },
        )),
    )
}

fn verdict(operations: &[Operation]) -> Verdict {
    check_register(operations, None, 100_000).0
}

fn assert_good(operations: &[Operation]) {
    assert_eq!(
        verdict(operations),
        Verdict::Linearizable,
        "{operations:#?}"
    );
}

fn assert_bad(operations: &[Operation]) {
    assert_eq!(verdict(operations), Verdict::Violated, "{operations:#?}");
}

#[test]
fn nothing_and_sequences_are_good() {
    assert_good(&[]);
    assert_good(&[
        get(None, 1, 2),
        put("a", 3, 4),
        get(Some("a"), 5, 6),
        delete(7, 8),
        get(None, 9, 10),
    ]);
}

#[test]
fn concurrent_writes_may_fall_either_way() {
    assert_good(&[put("a", 1, 4), put("b", 2, 3), get(Some("a"), 5, 6)]);
    assert_good(&[put("a", 1, 4), put("b", 2, 3), get(Some("b"), 5, 6)]);
    assert_good(&[put("a", 1, 10), get(None, 2, 3), get(Some("a"), 4, 5)]);
}

#[test]
fn stale_read_is_found() {
    assert_bad(&[put("a", 1, 2), put("b", 3, 4), get(Some("a"), 5, 6)]);
    assert_bad(&[put("a", 1, 2), get(None, 3, 4)]);
}

#[test]
fn readers_that_disagree_on_the_order_are_found() {
    assert_bad(&[
        put("a", 1, 20),
        put("b", 2, 21),
        get(Some("a"), 3, 4),
        get(Some("b"), 5, 6),
        get(Some("a"), 7, 8),
    ]);
    // A read that saw the new value forbids the old one from then on.
    assert_bad(&[put("a", 1, 20), get(Some("a"), 2, 3), get(None, 4, 5)]);
}

#[test]
fn lost_acknowledged_write_is_found() {
    assert_bad(&[append("x", 1, 2), append("y", 3, 4), get(Some("y"), 5, 6)]);
    assert_bad(&[put("a", 1, 2), delete(3, 4), get(Some("a"), 5, 6)]);
}

#[test]
fn append_that_ran_twice_is_found() {
    assert_bad(&[append("x", 1, 2), get(Some("xx"), 3, 4)]);
    assert_good(&[append("x", 1, 2), append("x", 3, 4), get(Some("xx"), 5, 6)]);
}

#[test]
fn unknown_outcome_may_take_effect_late_or_never() {
    assert_good(&[open_put("a", 1), get(None, 2, 3)]);
    assert_good(&[open_put("a", 1), get(None, 2, 3), get(Some("a"), 4, 5)]);
    assert_good(&[
        open_put("a", 1),
        put("b", 2, 3),
        get(Some("b"), 4, 5),
        get(Some("a"), 6, 7),
    ]);
    assert_bad(&[open_put("a", 3), get(Some("a"), 1, 2)]);
    // It takes effect at most once.
    assert_bad(&[
        open_put("a", 1),
        get(Some("a"), 2, 3),
        put("b", 4, 5),
        get(Some("a"), 6, 7),
    ]);
    assert_good(&[
        open_put("a", 1),
        open_put("a", 2),
        get(Some("a"), 3, 4),
        put("b", 5, 6),
        get(Some("a"), 7, 8),
    ]);
}

#[test]
fn compare_and_swap_verdicts_are_checked() {
    assert_good(&[
        cas(None, "a", (true, None), (1, 2)),
        cas(Some("x"), "b", (false, Some("a")), (3, 4)),
        cas(Some("a"), "c", (true, Some("a")), (5, 6)),
        get(Some("c"), 7, 8),
    ]);
    // Two cannot both win from the same value.
    assert_bad(&[
        cas(None, "a", (true, None), (1, 5)),
        cas(None, "b", (true, None), (2, 6)),
    ]);
    assert_bad(&[
        put("a", 1, 2),
        cas(Some("a"), "b", (false, Some("c")), (3, 4)),
    ]);
    assert_bad(&[
        put("a", 1, 2),
        cas(Some("a"), "b", (false, Some("a")), (3, 4)),
    ]);
}

#[test]
fn initial_value_counts() {
    let read = [get(Some("old"), 1, 2)];
    let initial = Some(Bytes::from_static(b"old"));
    assert_eq!(check_register(&read, initial, 100).0, Verdict::Linearizable);
    assert_bad(&read);
}

#[test]
fn shortest_part_ends_with_the_operation_that_is_not_explained() {
    let mut history = History::new();
    for value in ["a", "b", "c"] {
        let id = history.invoke(1, "k".into(), Action::Put(value.into()), 0);
        history.complete(id, Outcome::Done, 1);
    }
    let stale = history.invoke(2, "k".into(), Action::Get, 2);
    history.complete(stale, Outcome::Value(Some("b".into())), 3);
    let later = history.invoke(2, "k".into(), Action::Put("d".into()), 4);
    history.complete(later, Outcome::Done, 5);
    let Err(Fault::NotLinearizable(violation)) = check(&history) else {
        panic!("the stale read was not found");
    };
    assert_eq!(violation.operations.len(), 4);
    assert_eq!(
        violation.unexplained.as_ref().map(|o| &o.action),
        Some(&Action::Get)
    );
    assert!(
        violation
            .to_string()
            .contains("not explained: client 2 get -> \"b\"")
    );
}

#[test]
fn keys_are_judged_alone() {
    let mut history = History::new();
    for key in ["a", "b"] {
        let id = history.invoke(1, key.into(), Action::Put("1".into()), 0);
        history.complete(id, Outcome::Done, 1);
    }
    let id = history.invoke(1, "a".into(), Action::Get, 2);
    history.complete(id, Outcome::Value(Some("1".into())), 3);
    let refused = history.invoke(1, "b".into(), Action::Delete, 4);
    history.retract(refused);
    let checked = check(&history).expect("both keys are good");
    assert_eq!((checked.keys, checked.operations), (2, 3));
}

/// Tries every order and every subset of the unknown; for at most a few operations.
fn brute_force(operations: &[Operation]) -> bool {
    fn explains(left: &mut Vec<Operation>, value: Option<&Bytes>) -> bool {
        if left.iter().all(|o| o.returned.is_none()) {
            return true;
        }
        let horizon = left
            .iter()
            .filter_map(|o| o.returned.as_ref().map(|(place, _)| *place))
            .min()
            .unwrap_or(u64::MAX);
        for index in 0..left.len() {
            if left[index].invoked > horizon {
                continue;
            }
            let operation = left.remove(index);
            let found = step(&operation, value).is_some_and(|after| explains(left, after.as_ref()));
            left.insert(index, operation);
            if found {
                return true;
            }
        }
        false
    }
    fn step(operation: &Operation, value: Option<&Bytes>) -> Option<Option<Bytes>> {
        let outcome = operation.returned.as_ref().map(|(_, outcome)| outcome);
        match (&operation.action, outcome) {
            (Action::Get, Some(Outcome::Value(seen))) => {
                (seen.as_ref() == value).then(|| value.cloned())
            }
            (Action::Get, _) => Some(value.cloned()),
            (Action::Put(new), _) => Some(Some(new.clone())),
            (Action::Delete, _) => Some(None),
            (Action::Append(tail), _) => {
                let mut new = value.map_or(Vec::new(), |v| v.to_vec());
                new.extend_from_slice(tail);
                Some(Some(new.into()))
            }
            (Action::CompareAndSwap { expected, new }, outcome) => {
                let matches = expected.as_ref() == value;
                match outcome {
                    Some(Outcome::Swapped {
                        succeeded,
                        previous,
                    }) if *succeeded != matches
                        || previous.as_ref().is_some_and(|p| p.as_ref() != value) =>
                    {
                        None
                    }
                    _ => Some(if matches { new.clone() } else { value.cloned() }),
                }
            }
        }
    }
    explains(&mut operations.to_vec(), None)
}

fn random_history(rng: &mut ChaCha8Rng) -> Vec<Operation> {
    const VALUES: [&str; 3] = ["a", "b", "ab"];
    let count = rng.random_range(2..=6);
    let mut places: Vec<u64> = (1..=2 * count as u64).collect();
    for index in (1..places.len()).rev() {
        places.swap(index, rng.random_range(0..=index));
    }
    let some = |rng: &mut ChaCha8Rng| -> Option<Bytes> {
        let index = rng.random_range(0..=VALUES.len());
        VALUES.get(index).map(|value| Bytes::from(*value))
    };
    let mut operations: Vec<Operation> = (0..count)
        .map(|index| {
            let (one, two) = (places[2 * index], places[2 * index + 1]);
            let (action, outcome) = match rng.random_range(0..8) {
                0..3 => (Action::Get, Outcome::Value(some(rng))),
                3 => (Action::Delete, Outcome::Done),
                4 => (Action::Append("b".into()), Outcome::Done),
                5 => {
                    let (expected, new) = (some(rng), some(rng));
                    let previous = Some(some(rng));
                    let succeeded = rng.random();
                    let action = Action::CompareAndSwap { expected, new };
                    (
                        action,
                        Outcome::Swapped {
                            succeeded,
                            previous,
                        },
                    )
                }
                _ => (
                    Action::Put(VALUES[rng.random_range(0..2)].into()),
                    Outcome::Done,
                ),
            };
            let returned = rng.random_bool(0.7).then_some((one.max(two), outcome));
            operation(action, one.min(two), returned)
        })
        .collect();
    operations.sort_by_key(|operation| operation.invoked);
    operations
}

#[test]
fn appends_of_unknown_outcome_are_decided_by_the_last_read() {
    let mut history = History::new();
    let mut value = String::new();
    for round in 0..400u64 {
        let piece = format!("{round};");
        let id = history.invoke(
            round % 8,
            "k".into(),
            Action::Append(piece.clone().into()),
            0,
        );
        if round % 5 != 0 {
            history.complete(id, Outcome::Done, 0);
        }
        if round % 10 != 0 {
            value.push_str(&piece);
        }
    }
    let id = history.invoke(9, "k".into(), Action::Get, 0);
    let mut bad = history.clone();
    history.complete(id, Outcome::Value(Some(value.clone().into())), 0);
    check(&history).expect("an order is in the value");
    let torn = value.replacen("7;", "", 1);
    bad.complete(id, Outcome::Value(Some(torn.into())), 0);
    assert!(matches!(check(&bad), Err(Fault::NotLinearizable(_))));
}

#[test]
fn search_agrees_with_brute_force() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut good = 0;
    for round in 0..30_000 {
        let operations = random_history(&mut rng);
        let expected = brute_force(&operations);
        good += usize::from(expected);
        assert_eq!(
            verdict(&operations) == Verdict::Linearizable,
            expected,
            "round {round}: {operations:#?}"
        );
    }
    assert!(
        (3_000..27_000).contains(&good),
        "{good} good histories of 30000 say little"
    );
}

#[test]
fn many_clients_and_many_unknown_outcomes_are_decided() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut history = History::new();
    let mut value: Option<Bytes> = None;
    let mut open = Vec::new();
    for round in 0..3_000u64 {
        let client = round % 16;
        let action = match rng.random_range(0..3) {
            0 => Action::Get,
            1 => Action::Put(format!("v{round}").into()),
            _ => Action::CompareAndSwap {
                expected: value.clone(),
                new: Some(format!("c{round}").into()),
            },
        };
        let id = history.invoke(client, "k".into(), action.clone(), round);
        if rng.random_bool(0.03) {
            // Its outcome stays unknown; half of them take effect.
            if rng.random()
                && let Action::Put(new) = action
            {
                value = Some(new);
            }
            continue;
        }
        let outcome = match action {
            Action::Get => Outcome::Value(value.clone()),
            Action::Put(new) => {
                value = Some(new);
                Outcome::Done
            }
            Action::CompareAndSwap { new, .. } => {
                let previous = Some(std::mem::replace(&mut value, new));
                Outcome::Swapped {
                    succeeded: true,
                    previous,
                }
            }
            Action::Delete | Action::Append(_) => unreachable!("not drawn"),
        };
        open.push((id, outcome));
        if open.len() > 12 {
            let (id, outcome) = open.swap_remove(rng.random_range(0..open.len()));
            history.complete(id, outcome, round);
        }
    }
    for (id, outcome) in open {
        history.complete(id, outcome, 3_000);
    }
    check(&history).expect("the register was real");
}
