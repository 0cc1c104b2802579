//! Random messages, made of values at the edges, against a node in each role.
//!
//! The generator has a fixed seed; a failing list of messages is shrunk to its smallest form.

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRng, TestRunner};
use strata_proto::eraftpb::{
    ConfChangeType, ConfState, Entry, Message, Snapshot, SnapshotMetadata,
};

use super::{nodes, still_works, survive};
use crate::support::node::change;

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0u64..8,
        1 => Just(100u64),
        1 => Just(u64::MAX - 1),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(b"data".to_vec()),
        Just(prost::Message::encode_to_vec(&change(
            ConfChangeType::RemoveNode,
            2
        ))),
        proptest::collection::vec(any::<u8>(), 0..8),
    ];
    (edge(), edge(), 0..4i32, data).prop_map(|(term, index, entry_type, data)| Entry {
        entry_type,
        term,
        index,
        data: data.into(),
        ..Entry::default()
    })
}

/// Entries that follow one another, as the gate demands, half of the time.
fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let list = proptest::collection::vec(any_entry(), 0..4);
    (list, any::<bool>(), edge(), edge()).prop_map(|(mut list, joined, first, term)| {
        if joined {
            for (place, entry) in list.iter_mut().enumerate() {
                entry.index = first.saturating_add(place as u64);
                entry.term = term;
            }
        }
        list
    })
}

fn any_snapshot() -> impl Strategy<Value = Option<Snapshot>> {
    let ids = || proptest::collection::vec(0u64..5, 0..4);
    let conf = (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        },
    );
    let metadata = (edge(), edge(), proptest::option::of(conf));
    let metadata = metadata.prop_map(|(index, term, conf_state)| SnapshotMetadata {
        conf_state,
        index,
        term,
    });
    proptest::option::of(
        proptest::option::of(metadata).prop_map(|metadata| Snapshot {
            metadata,
            ..Snapshot::default()
        }),
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let places = (edge(), edge(), edge(), edge(), edge(), edge());
    let rest = (
        -1..21i32,
        0u64..6,
        any_entries(),
        any_snapshot(),
        any::<bool>(),
        any::<bool>(),
    );
    (places, rest).prop_map(
        |(
            (term, log_term, index, commit, reject_hint, other),
            (msg_type, from, entries, snapshot, reject, transfer),
        )| {
            // Terms of the node's neighbourhood most of the time: others are soon refused.
            let term = if other < 4 { term.min(6) } else { term };
            Message {
                msg_type,
                to: 1,
                from,
                term,
                log_term,
                index,
                entries,
                commit,
                snapshot: snapshot.map(Box::new),
                reject,
                reject_hint,
                context: if transfer {
                    "CampaignTransfer".into()
                } else {
                    "".into()
                },
                ..Message::default()
            }
        },
    )
}

/// Runs random messages against the node of this name; the failing list is shrunk.
fn random_messages_against(name: &str) {
    let cases = Cases {
        cases: 300,
        failure_persistence: None,
        ..Cases::default()
    };
    let rng = TestRng::deterministic_rng(cases.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(cases, rng);
    let lists = proptest::collection::vec(any_message(), 1..40);
    let outcome = runner.run(&lists, |messages| {
        let found = nodes().into_iter().find(|(n, _)| *n == name);
        let (_, mut node) = found.expect("a node of this name");
        for (count, message) in messages.iter().enumerate() {
            let _ = survive(&mut node, message);
            if count % 8 == 7 {
                node.tick();
            }
        }
        still_works(&mut node);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{name}: {failure}");
    }
}

#[test]
fn random_messages_against_followers() {
    for name in [
        "fresh follower",
        "follower with a log",
        "follower with a snapshot",
        "learner",
        "removed node",
    ] {
        random_messages_against(name);
    }
}

#[test]
fn random_messages_against_candidates() {
    for name in ["pre-candidate", "candidate"] {
        random_messages_against(name);
    }
}

#[test]
fn random_messages_against_leaders() {
    for name in [
        "leader",
        "settled leader",
        "leader handing over",
        "leader with a compacted log",
        "leader of a joint membership",
    ] {
        random_messages_against(name);
    }
}
