//! Histories of one key, known to be good and bad. Several keys: `joint`; a plainly correct
//! second search: `brute`.

mod brute;
mod joint;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::history::{Action, Outcome, Touch};

fn operation(action: Action, invoked: u64, returned: Option<(u64, Outcome)>) -> Operation {
    let at = (invoked, returned.as_ref().map(|(place, _)| *place));
    let (returned, outcome) = returned.unzip();
    Operation {
        client: 1,
        touches: vec![Touch {
            key: Bytes::from_static(b"k"),
            action,
            outcome,
        }],
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
    check_operations(operations, &BTreeMap::new(), 100_000).0
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
    let initial = BTreeMap::from([("k".into(), "old".into())]);
    assert_eq!(
        check_operations(&read, &initial, 100).0,
        Verdict::Linearizable
    );
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
    // Nobody saw "a", and "d" came later: put "b", put "c" and the read are wrong enough.
    assert_eq!(violation.operations.len(), 3);
    assert_eq!(violation.left_out, 1);
    assert_eq!(
        violation.unexplained.as_ref().map(|o| &o.first().action),
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
