//! Histories in which operations touch several keys in one step.

use super::*;

/// Builds a history from steps that name their keys.
struct Story(Vec<Operation>);

impl Story {
    fn new() -> Self {
        Story(Vec::new())
    }

    /// An operation that was answered.
    fn did(mut self, invoked: u64, returned: u64, touches: &[(&str, Action, Outcome)]) -> Self {
        let touches = touches.iter().map(|(key, action, outcome)| Touch {
            key: Bytes::copy_from_slice(key.as_bytes()),
            action: action.clone(),
            outcome: Some(outcome.clone()),
        });
        self.0.push(Operation {
            client: 1,
            touches: touches.collect(),
            invoked,
            returned: Some(returned),
            at: (invoked, Some(returned)),
        });
        self
    }

    fn puts(self, invoked: u64, returned: u64, pairs: &[(&str, &'static str)]) -> Self {
        let touches: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (*key, Action::Put((*value).into()), Outcome::Done))
            .collect();
        self.did(invoked, returned, &touches)
    }

    fn deletes(self, invoked: u64, returned: u64, keys: &[&str]) -> Self {
        let touches: Vec<_> = keys
            .iter()
            .map(|key| (*key, Action::Delete, Outcome::Done))
            .collect();
        self.did(invoked, returned, &touches)
    }

    fn scan(self, invoked: u64, returned: u64, pairs: &[(&str, Option<&'static str>)]) -> Self {
        let touches: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (*key, Action::Get, Outcome::Value(value.map(Bytes::from))))
            .collect();
        self.did(invoked, returned, &touches)
    }

    /// The last operation never got an answer.
    fn open(mut self) -> Self {
        let last = self.0.last_mut().expect("there is one");
        last.returned = None;
        for touch in &mut last.touches {
            touch.outcome = None;
        }
        self
    }

    fn judged_good(mut self) -> bool {
        self.0.sort_by_key(|operation| operation.invoked);
        match verdict(&self.0) {
            Verdict::Linearizable => true,
            Verdict::Violated => false,
            Verdict::Undecided => panic!("undecided: {:#?}", self.0),
        }
    }
}

#[test]
fn scan_that_saw_half_a_batch_is_found() {
    let batch = || Story::new().puts(1, 10, &[("a", "1"), ("b", "1")]);
    assert!(
        batch()
            .scan(2, 3, &[("a", None), ("b", None)])
            .judged_good()
    );
    assert!(
        batch()
            .scan(2, 3, &[("a", Some("1")), ("b", Some("1"))])
            .judged_good()
    );
    assert!(
        !batch()
            .scan(2, 3, &[("a", Some("1")), ("b", None)])
            .judged_good()
    );
    assert!(
        !batch()
            .scan(2, 3, &[("a", None), ("b", Some("1"))])
            .judged_good()
    );
    // Each key by itself has an order.
    for key in ["a", "b"] {
        let seen = if key == "a" { Some("1") } else { None };
        let alone = Story::new()
            .puts(1, 10, &[(key, "1")])
            .scan(2, 3, &[(key, seen)]);
        assert!(alone.judged_good());
    }
}

#[test]
fn scan_that_saw_a_batch_of_two_regions_half_is_good() {
    // One part for each region, within the call.
    let call = || {
        Story::new()
            .puts(1, 10, &[("a", "1"), ("b", "1")])
            .puts(2, 9, &[("x", "1"), ("y", "1")])
    };
    let one = [("a", Some("1")), ("b", Some("1"))];
    assert!(
        call()
            .scan(3, 5, &one)
            .scan(4, 6, &[("x", None), ("y", None)])
            .judged_good()
    );
    let torn = [("x", None), ("y", Some("1"))];
    assert!(!call().scan(3, 5, &one).scan(4, 6, &torn).judged_good());
}

#[test]
fn batch_that_was_over_is_seen_whole() {
    let batch = || Story::new().puts(1, 2, &[("a", "1"), ("b", "1")]);
    assert!(
        !batch()
            .scan(3, 4, &[("a", None), ("b", None)])
            .judged_good()
    );
    assert!(
        batch()
            .scan(3, 4, &[("a", Some("1")), ("b", Some("1"))])
            .judged_good()
    );
}

#[test]
fn batch_of_unknown_outcome_takes_effect_whole_or_not_at_all() {
    let batch = || Story::new().puts(1, 2, &[("a", "1"), ("b", "1")]).open();
    assert!(
        batch()
            .scan(3, 4, &[("a", None), ("b", None)])
            .judged_good()
    );
    assert!(
        batch()
            .scan(3, 4, &[("a", Some("1")), ("b", Some("1"))])
            .judged_good()
    );
    assert!(
        !batch()
            .scan(3, 4, &[("a", Some("1")), ("b", None)])
            .judged_good()
    );
    // Not at first, then late.
    let late = batch()
        .scan(3, 4, &[("a", None), ("b", None)])
        .scan(5, 6, &[("b", Some("1"))])
        .scan(7, 8, &[("a", Some("1"))]);
    assert!(late.judged_good());
    // Once it is seen in one key it is there in the other.
    let torn = batch()
        .scan(3, 4, &[("b", Some("1"))])
        .scan(5, 6, &[("a", None)]);
    assert!(!torn.judged_good());
    // Half of it may be overwritten before it is seen.
    let covered =
        batch()
            .puts(3, 4, &[("a", "2")])
            .scan(5, 6, &[("a", Some("2")), ("b", Some("1"))]);
    assert!(covered.judged_good());
    let under = batch()
        .puts(3, 4, &[("a", "2")])
        .scan(5, 6, &[("a", Some("2")), ("b", None)])
        .scan(7, 8, &[("a", Some("2")), ("b", Some("1"))]);
    assert!(!under.judged_good());
}

#[test]
fn removal_of_a_range_is_one_step() {
    let both = || {
        Story::new()
            .puts(1, 2, &[("a", "1"), ("b", "1")])
            .deletes(3, 10, &["a", "b"])
    };
    assert!(both().scan(4, 5, &[("a", None), ("b", None)]).judged_good());
    assert!(
        !both()
            .scan(4, 5, &[("a", None), ("b", Some("1"))])
            .judged_good()
    );
    let between = both()
        .puts(4, 5, &[("a", "2")])
        .scan(11, 12, &[("a", Some("2")), ("b", None)]);
    assert!(between.judged_good());
}

#[test]
fn real_time_order_holds_over_several_keys() {
    // x is written after y was over: who sees x sees y.
    let writes = || {
        Story::new()
            .puts(1, 2, &[("y", "1")])
            .puts(3, 4, &[("x", "1")])
    };
    assert!(
        !writes()
            .scan(5, 6, &[("x", Some("1")), ("y", None)])
            .judged_good()
    );
    // Two scans may not disagree on the order of two writes.
    let racing = || {
        Story::new()
            .puts(1, 20, &[("x", "1")])
            .puts(2, 21, &[("y", "1")])
    };
    let one = [("x", Some("1")), ("y", None)];
    let other = [("x", None), ("y", Some("1"))];
    assert!(racing().scan(3, 4, &one).judged_good());
    assert!(racing().scan(3, 4, &other).judged_good());
    assert!(!racing().scan(3, 10, &one).scan(4, 11, &other).judged_good());
}

#[test]
fn swaps_and_appends_join_with_scans() {
    let swap = Action::CompareAndSwap {
        expected: Some("1".into()),
        new: Some("2".into()),
    };
    let won = Outcome::Swapped {
        succeeded: true,
        previous: Some(Some("1".into())),
    };
    let story = || {
        Story::new()
            .puts(1, 2, &[("a", "1"), ("b", "1")])
            .did(3, 4, &[("a", swap.clone(), won.clone())])
            .did(5, 6, &[("b", Action::Append("+".into()), Outcome::Done)])
    };
    assert!(
        story()
            .scan(7, 8, &[("a", Some("2")), ("b", Some("1+"))])
            .judged_good()
    );
    assert!(
        !story()
            .scan(7, 8, &[("a", Some("1")), ("b", Some("1+"))])
            .judged_good()
    );
    // An append of a session that was repeated ran once.
    assert!(
        !story()
            .scan(7, 8, &[("a", Some("2")), ("b", Some("1++"))])
            .judged_good()
    );
}

#[test]
fn shortest_part_of_a_joint_violation_leaves_out_other_keys_and_reads() {
    let mut history = History::new();
    let done = |history: &mut History, actions: Vec<(&str, Action)>, seen: Vec<Option<&str>>| {
        let actions = actions
            .into_iter()
            .map(|(key, action)| (Bytes::copy_from_slice(key.as_bytes()), action))
            .collect::<Vec<_>>();
        let reads = actions[0].1 == Action::Get;
        let id = history.invoke_all(1, actions, 0);
        let outcomes = seen.into_iter().map(|value| {
            let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
            Some(if reads {
                Outcome::Value(value)
            } else {
                Outcome::Done
            })
        });
        history.complete_all(id, outcomes.collect(), 1);
    };
    for round in 0..20 {
        let value = Bytes::from(format!("v{round}"));
        let put = || Action::Put(value.clone());
        done(
            &mut history,
            vec![("a", put()), ("b", put()), ("c", put())],
            vec![None; 3],
        );
        let seen = String::from_utf8_lossy(&value).into_owned();
        done(
            &mut history,
            vec![("a", Action::Get), ("c", Action::Get)],
            vec![Some(&seen); 2],
        );
    }
    let batch = history.invoke_all(
        2,
        vec![
            ("a".into(), Action::Put("half".into())),
            ("b".into(), Action::Put("half".into())),
        ],
        0,
    );
    done(
        &mut history,
        vec![("a", Action::Get), ("b", Action::Get), ("c", Action::Get)],
        vec![Some("half"), Some("v19"), Some("v19")],
    );
    history.complete_all(batch, vec![Some(Outcome::Done); 2], 2);
    let Err(Fault::NotLinearizable(violation)) = check(&history) else {
        panic!("half a batch was not found");
    };
    assert_eq!(violation.keys, [Bytes::from("a"), Bytes::from("b")]);
    // The batch before, the torn one, and the scan.
    assert_eq!(violation.operations.len(), 3, "{violation}");
    let shown = violation.to_string();
    for part in [
        "keys \"a\", \"b\" are not linearizable",
        "(\"a\" put \"half\", \"b\" put \"half\") -> not known",
        "not explained: client 1 (\"a\" get -> \"half\", \"b\" get -> \"v19\")",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
}

#[test]
fn scan_that_ended_at_its_limit_says_nothing_of_the_rest() {
    let mut history = History::new();
    let put = history.invoke(1, "c".into(), Action::Put("1".into()), 0);
    history.complete(put, Outcome::Done, 0);
    let reads = ["a", "b", "c"].map(|key| (Bytes::from(key), Action::Get));
    let scan = history.invoke_all(1, reads.to_vec(), 0);
    let absent = Some(Outcome::Value(None));
    history.complete_all(scan, vec![absent.clone(), absent, None], 0);
    let last = history.operations().last().expect("the scan");
    assert_eq!(last.touches.len(), 2);
    let checked = check(&history).expect("c was not looked at");
    assert_eq!((checked.keys, checked.components), (3, 2));
}
