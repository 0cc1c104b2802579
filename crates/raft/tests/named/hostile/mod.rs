//! Malformed messages: whatever arrives, a node does not panic, takes nothing back, and goes
//! on working.
//!
//! The messages are made of values at the edges of what is valid. They are fed to a node in
//! each role; by tables here, at random in `random`. A peer that lies well can of course ruin the group; what must not be is a node
//! that falls over by a message, or whose own state contradicts itself.

mod random;

use strata_proto::eraftpb::{
    ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};
use strata_raft::{Config, Error, Index, PeerId, Role, Term};

use crate::snapshot::{carry, snapshot};
use crate::support::disk::Disk;
use crate::support::node::{
    Node, append, append_answer, change, changes, config, disk_at, message, vote_answer,
};

/// Node 1 of {1, 2, 3} in each role and state that treats messages differently.
fn nodes() -> Vec<(&'static str, Node)> {
    let with_log = || {
        let mut node = Node::at(1, &[1, 2, 3], 3, 0, &[1, 2, 3, 3], 2);
        node.settle();
        node
    };
    let mut pre_candidate = Node::new(
        Config {
            pre_vote: true,
            check_quorum: true,
            ..config(1)
        },
        disk_at(&[1, 2, 3], 3, 0, &[1, 2, 3], 1),
    );
    pre_candidate.campaign();
    let mut candidate = with_log();
    candidate.campaign();
    let mut leader = with_log();
    leader.lead();
    let mut settled = with_log();
    settled.lead();
    settled.acknowledge_all();
    let mut handing_over = with_log();
    handing_over.lead();
    handing_over.raw.transfer_leader(2);
    let mut compacted = with_log();
    compacted.compact_at_applied();
    compacted.lead();
    let mut joint = Node::of(1, &[1, 2, 3]);
    joint.lead();
    joint.acknowledge_all();
    use strata_proto::eraftpb::ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    let change = changes(&[(AddNode, 4), (RemoveNode, 3), (AddLearnerNode, 5)]);
    joint.propose_change(change).unwrap();
    joint.step(append_answer(2, 1, 1, 2));
    assert!(!joint.status().conf_state.voters_outgoing.is_empty());
    let installed = Node::new(config(1), Disk::with_snapshot(snapshot(11, 3, &[1, 2, 3])));
    let mut removed = Node::of(1, &[1, 2, 3]);
    removed
        .raw
        .apply_conf_change(&self::change(RemoveNode, 1))
        .unwrap();
    vec![
        ("fresh follower", Node::of(1, &[1, 2, 3])),
        ("follower with a log", with_log()),
        ("follower with a snapshot", installed),
        ("pre-candidate", pre_candidate),
        ("candidate", candidate),
        ("leader", leader),
        ("settled leader", settled),
        ("leader handing over", handing_over),
        ("leader with a compacted log", compacted),
        ("leader of a joint membership", joint),
        ("removed node", removed),
        ("learner", Node::of(1, &[2, 3])),
    ]
}

/// Steps `message` and checks what must hold whatever it was.
fn survive(node: &mut Node, message: &Message) -> Result<(), Error> {
    let before = node.status();
    let result = node.try_step(message.clone());
    let after = node.status();
    let shown = format!("by {message:?}");
    assert!(
        after.hard_state.term >= before.hard_state.term,
        "term went back {shown}"
    );
    assert!(
        after.hard_state.commit >= before.hard_state.commit,
        "commit went back {shown}"
    );
    assert!(after.applied >= before.applied, "applied went back {shown}");
    assert!(
        after.applied <= after.hard_state.commit,
        "applied beyond commit {shown}"
    );
    assert!(
        after.hard_state.commit <= after.last_index,
        "commit beyond the log {shown}"
    );
    assert!(
        after.first_index <= after.last_index + 1,
        "log before its start {shown}"
    );
    if after.hard_state.term == before.hard_state.term {
        let kept = before.hard_state.vote == 0 || after.hard_state.vote == before.hard_state.vote;
        assert!(kept, "vote changed within a term {shown}");
    }
    for (id, progress) in &after.progress {
        assert!(progress.matched < progress.next, "progress of {id} {shown}");
        assert!(
            progress.matched <= after.last_index,
            "match of {id} beyond the log {shown}"
        );
    }
    if result.is_err() {
        assert_eq!(
            after.hard_state.commit, before.hard_state.commit,
            "refused, yet committed {shown}"
        );
        assert_eq!(
            after.last_index, before.last_index,
            "refused, yet in the log {shown}"
        );
    }
    result
}

/// Time passes, messages go out, proposals are answered: the node works.
fn still_works(node: &mut Node) {
    node.ticks(40);
    if node.role() == Role::Leader {
        let _ = node.propose("some data");
    }
    let _ = node.raw.read_index("read".into());
    node.raw.report_unreachable(2);
    node.raw.transfer_leader(3);
    node.sent();
    node.restart();
    node.settle();
}

#[test]
fn local_messages_are_refused() {
    use MessageType::{MsgBeat, MsgCheckQuorum, MsgHup, MsgPropose, MsgSnapStatus, MsgUnreachable};
    for kind in [
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
    ] {
        for (name, mut node) in nodes() {
            let role = node.role();
            for from in [1, 2, 9] {
                let local = message(kind, from, 1, node.term());
                let refused = survive(&mut node, &local);
                assert!(refused.is_err(), "{name} took {kind:?} of {from}");
            }
            assert_eq!(node.role(), role, "{name} {kind:?}");
        }
    }
}

#[test]
fn answers_of_strangers_are_refused() {
    use MessageType::{
        MsgAppendResponse, MsgHeartbeatResponse, MsgRequestPreVoteResponse, MsgRequestVoteResponse,
    };
    let kinds = [
        MsgAppendResponse,
        MsgHeartbeatResponse,
        MsgRequestVoteResponse,
        MsgRequestPreVoteResponse,
    ];
    for kind in kinds {
        for (name, mut node) in nodes() {
            let (role, term) = (node.role(), node.term());
            for from in [0, 9, u64::MAX] {
                let stranger = Message {
                    index: node.last_index(),
                    ..message(kind, from, 1, term + 5)
                };
                assert!(
                    survive(&mut node, &stranger).is_err(),
                    "{name} took {kind:?} of {from}"
                );
            }
            assert_eq!((node.role(), node.term()), (role, term), "{name} {kind:?}");
        }
    }
}

#[test]
fn unknown_types_and_wrong_addresses_are_refused() {
    for (name, mut node) in nodes() {
        let before = node.status();
        let term = node.term() + 1;
        for msg_type in [-1, 19, 1000, i32::MAX, i32::MIN] {
            let unknown = Message {
                msg_type,
                ..message(MessageType::MsgAppend, 2, 1, term)
            };
            assert!(
                survive(&mut node, &unknown).is_err(),
                "{name} took type {msg_type}"
            );
        }
        for (from, to) in [(1, 1), (0, 1), (2, 7)] {
            let astray = message(MessageType::MsgHeartbeat, from, to, term);
            assert!(
                survive(&mut node, &astray).is_err(),
                "{name} took {from}>{to}"
            );
        }
        assert_eq!(node.status(), before, "{name}");
    }
}

#[test]
fn appends_out_of_range_do_no_harm() {
    let max = u64::MAX;
    let places = [
        (0, 0),
        (0, max),
        (max, 0),
        (max, 1),
        (max - 1, 1),
        (1, max),
        (3, 9),
        (100, 1),
    ];
    let lists: [&[(Index, Term)]; 9] = [
        &[],
        &[(0, 0)],
        &[(0, 1)],
        &[(1, 0)],
        &[(max, 1)],
        &[(1, max)],
        &[(1, 1), (1, 1)],
        &[(2, 3), (3, 2)],
        &[(4, 3), (6, 3)],
    ];
    for before in places {
        for entries in lists {
            for commit in [0, 5, max] {
                for (_, mut node) in nodes() {
                    for term in [0, node.term(), node.term() + 1, max] {
                        let _ = survive(&mut node, &append(2, 1, term, before, entries, commit));
                    }
                }
            }
        }
    }
}

#[test]
fn commit_beyond_what_the_append_vouches_for_is_not_taken() {
    let mut node = Node::at(1, &[1, 2, 3], 3, 0, &[1, 2, 3, 3], 1);
    node.step(append(2, 1, 3, (2, 2), &[], u64::MAX));
    assert_eq!(node.commit(), 2);
    let refused = survive(
        &mut node,
        &Message {
            commit: u64::MAX,
            ..message(MessageType::MsgHeartbeat, 2, 1, 3)
        },
    );
    assert!(
        refused.is_err(),
        "a heartbeat that knows entries that are not there"
    );
    assert_eq!(node.commit(), 2);
}

#[test]
fn committed_entries_are_never_replaced() {
    let mut node = Node::at(1, &[1, 2, 3], 3, 0, &[1, 2, 3, 3], 3);
    node.settle();
    for before in [(0, 0), (1, 1), (2, 2)] {
        let conflicting: Vec<(Index, Term)> = (before.0 + 1..=4).map(|index| (index, 5)).collect();
        let _ = survive(&mut node, &append(2, 1, 5, before, &conflicting, 4));
        assert_eq!(
            node.log()[..3],
            [(1, 1), (2, 2), (3, 3)],
            "append behind {before:?}"
        );
    }
}

#[test]
fn snapshots_without_a_valid_place_are_refused() {
    let place = |index, term, conf_state| Snapshot {
        metadata: Some(SnapshotMetadata {
            conf_state,
            index,
            term,
        }),
        ..Snapshot::default()
    };
    let voters = |list: &[PeerId]| {
        Some(ConfState {
            voters: list.to_vec(),
            ..ConfState::default()
        })
    };
    let contradiction = ConfState {
        learners: vec![2],
        ..voters(&[1, 2]).unwrap()
    };
    let joint_from_nothing = ConfState {
        learners_next: vec![2],
        ..voters(&[1]).unwrap()
    };
    let bad = [
        Snapshot::default(),
        place(0, 0, voters(&[1, 2, 3])),
        place(0, 5, voters(&[1, 2, 3])),
        place(50, 0, voters(&[1, 2, 3])),
        place(50, u64::MAX, voters(&[1, 2, 3])),
        place(u64::MAX, 5, voters(&[1, 2, 3])),
        place(u64::MAX - 1, 5, voters(&[1, 2, 3])),
        place(50, 5, None),
        place(50, 5, voters(&[])),
        place(50, 5, voters(&[0, 1])),
        place(50, 5, Some(contradiction)),
        place(50, 5, Some(joint_from_nothing)),
    ];
    for snapshot in bad {
        for (name, mut node) in nodes() {
            let before = (node.first_index(), node.last_index(), node.voters());
            let _ = survive(&mut node, &carry(2, 1, 5, snapshot.clone()));
            assert!(node.installed.is_empty(), "{name} installed {snapshot:?}");
            let after = (node.first_index(), node.last_index(), node.voters());
            assert_eq!(after, before, "{name} {snapshot:?}");
            still_works(&mut node);
        }
    }
    for (name, mut node) in nodes() {
        let none = message(MessageType::MsgSnapshot, 2, 1, 9);
        assert!(
            survive(&mut node, &none).is_err(),
            "{name} took a message without a snapshot"
        );
    }
}

#[test]
fn answers_out_of_range_do_no_harm() {
    let max = u64::MAX;
    for index in [0, 1, 4, 6, 100, max - 1, max] {
        for hint in [0, 1, 7, max] {
            for log_term in [0, 1, 9, max] {
                for (_, mut node) in nodes() {
                    for (from, reject) in [(2, true), (2, false), (3, true), (3, false)] {
                        let answer = Message {
                            reject,
                            log_term,
                            reject_hint: hint,
                            commit: max,
                            ..append_answer(from, 1, node.term(), index)
                        };
                        let _ = survive(&mut node, &answer);
                        let msg_type = MessageType::MsgHeartbeatResponse.into();
                        let _ = survive(&mut node, &Message { msg_type, ..answer });
                    }
                }
            }
        }
    }
}

#[test]
fn highest_term_stops_elections_without_panic() {
    for kind in 0..=18 {
        for (_, mut node) in nodes() {
            let highest = Message {
                msg_type: kind,
                ..append(2, 1, u64::MAX, (0, 0), &[], 0)
            };
            let _ = survive(&mut node, &highest);
            let _ = survive(&mut node, &vote_answer(3, 1, u64::MAX, false));
            still_works(&mut node);
        }
    }
}

#[test]
fn undecodable_membership_change_has_no_effect() {
    let mut node = Node::of(1, &[1, 2, 3]);
    for (index, kind) in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
        .iter()
        .enumerate()
    {
        let entry = Entry {
            entry_type: (*kind).into(),
            index: index as u64 + 1,
            term: 1,
            data: vec![0xff; 20].into(),
            ..Entry::default()
        };
        let before = if index == 0 { (0, 0) } else { (1, 1) };
        let entries = vec![entry];
        node.step(Message {
            entries,
            ..append(2, 1, 1, before, &[], index as u64 + 1)
        });
    }
    assert_eq!((node.commit(), node.voters()), (2, vec![1, 2, 3]));
}
