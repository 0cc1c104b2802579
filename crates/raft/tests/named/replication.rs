//! TinyKV 2A: the log.

use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::{Error, Index, PeerId, ProgressState, Role, Term};

use crate::network::Network;
use crate::support::node::{Node, append, append_answer, message};

#[test]
fn log_replication() {
    // A proposal on the first leader, then one on the peer that takes over, if any.
    for (then, commit) in [(None, 2), (Some((2, "somedata2")), 4)] {
        let mut net = Network::of(3);
        net.campaign(1);
        net.propose(1, "somedata");
        let mut proposed = vec!["somedata"];
        if let Some((leader, data)) = then {
            net.campaign(leader);
            net.propose(leader, data);
            proposed.push(data);
        }
        for (id, node) in &net.nodes {
            assert_eq!(node.commit(), commit, "commit of {id}");
            assert_eq!(node.applied_data(), proposed, "applied by {id}");
        }
    }
}

#[test]
fn single_node_commit() {
    let mut net = Network::of(1);
    net.campaign(1);
    net.propose(1, "some data");
    net.propose(1, "some data");
    assert_eq!(net.commit(1), 3);
}

/// Node 1 of five leads; two entries are on nodes 1 and 2 only.
fn two_entries_on_a_minority() -> Network {
    let mut net = Network::of(5);
    net.campaign(1);
    for far in [3, 4, 5] {
        net.cut(1, far);
    }
    net.propose(1, "some data");
    net.propose(1, "some data");
    assert_eq!(net.commit(1), 1);
    net.heal();
    net
}

#[test]
fn cannot_commit_without_new_term_entry() {
    let mut net = two_entries_on_a_minority();
    // Node 2 is elected, but its own first entry does not get through.
    net.ignore(MessageType::MsgAppend);
    net.campaign(2);
    assert_eq!(net.role(2), Role::Leader);
    assert_eq!(
        net.commit(2),
        1,
        "an entry of an old term was committed by counting"
    );
    net.heal();
    net.beat(2);
    net.propose(2, "some data");
    assert_eq!(net.commit(2), 5);
}

#[test]
fn commit_without_new_term_entry() {
    let mut net = two_entries_on_a_minority();
    net.campaign(2);
    // The new leader's own entry commits all before it, without any proposal.
    assert_eq!(net.commit(2), 4);
    net.beat(2);
    net.assert_same_logs();
}

#[test]
fn commit_with_heartbeat() {
    let mut net = Network::of(5);
    net.campaign(1);
    net.isolate(5);
    net.propose(1, "some data");
    net.propose(1, "some data");
    assert_eq!((net.commit(1), net.commit(5)), (3, 1));
    // A heartbeat alone must not move the commit index beyond what the follower holds.
    net.heal();
    net.ignore(MessageType::MsgAppend);
    net.beat(1);
    assert_eq!(net.commit(5), 1);
    // The answer to a heartbeat shows the leader that the follower is behind.
    net.heal();
    net.beat(1);
    assert_eq!(net.commit(5), 3);
    net.assert_same_logs();
}

#[test]
fn heartbeat_update_commit() {
    for (failures, successes) in [(1, 1), (5, 3), (5, 10)] {
        let mut net = Network::of(5);
        net.campaign(1);
        // Nothing commits while only two nodes are in touch.
        for far in [3, 4, 5] {
            net.isolate(far);
        }
        for _ in 0..failures {
            net.propose(1, "some data");
        }
        assert_eq!(net.commit(1), 1, "{failures} proposals on a minority");
        net.heal();
        net.beat(1);
        // Everything commits on four nodes; node 5 sees none of it.
        net.isolate(5);
        for _ in 0..successes {
            net.propose(1, "some data");
        }
        let commit = 1 + failures + successes;
        assert_eq!(net.commit(1), commit);
        assert!(net.commit(5) < commit, "node 5 was cut off");
        net.heal();
        net.beat(1);
        for id in 1..=5 {
            assert_eq!(net.commit(id), commit, "commit of {id} after a heartbeat");
        }
    }
}

#[test]
fn handle_heartbeat_moves_commit_but_never_back() {
    for (told, wanted) in [(3, 3), (1, 2)] {
        let mut node = Node::at(1, &[1, 2], 2, 0, &[1, 2, 2], 2);
        node.step(Message {
            commit: told,
            ..message(MessageType::MsgHeartbeat, 2, 1, 2)
        });
        assert_eq!(node.commit(), wanted);
        let sent = node.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].msg_type(), MessageType::MsgHeartbeatResponse);
    }
}

#[test]
fn old_messages() {
    let mut net = Network::of(3);
    for leader in [1, 2, 1] {
        net.campaign(leader);
    }
    // Node 1 leads in term 3. A late append of node 2's term arrives and is dropped.
    net.deliver(vec![append(2, 1, 2, (2, 2), &[(3, 2)], 0)]);
    net.propose(1, "somedata");
    for (id, node) in &net.nodes {
        assert_eq!(node.log(), [(1, 1), (2, 2), (3, 3), (4, 3)], "log of {id}");
        assert_eq!(node.commit(), 4, "commit of {id}");
    }
}

#[test]
fn old_messages_answers_of_a_lower_term_are_dropped() {
    let mut node = Node::at(1, &[1, 2, 3], 4, 0, &[4], 0);
    node.lead();
    let _ = node.try_step(append_answer(2, 1, 4, 2));
    assert_eq!((node.progress(2).matched, node.commit()), (0, 0));
}

#[test]
fn proposal() {
    let cases: [(&[bool], bool); 5] = [
        (&[true, true, true], true),
        (&[true, true, false], true),
        (&[true, false, false], false),
        (&[true, false, false, true], false),
        (&[true, false, false, true, true], true),
    ];
    for (answers, success) in cases {
        let voters: Vec<PeerId> = (1..=answers.len() as u64).collect();
        let nodes = voters.iter().zip(answers);
        let nodes = nodes.map(|(&id, &answers)| answers.then(|| Node::of(id, &voters)));
        let mut net = Network::with(nodes.collect());
        net.campaign(1);
        let proposed = net.node(1).propose("somedata");
        net.settle();
        let (log, commit) = if success {
            (vec![(1, 1), (2, 1)], 2)
        } else {
            (vec![], 0)
        };
        match proposed {
            Ok(index) => assert_eq!((index, success), (2, true), "{answers:?}"),
            Err(error) => {
                assert_eq!((error, success), (Error::NotLeader { leader: None }, false));
            }
        }
        for (id, node) in &net.nodes {
            assert_eq!(
                (node.log(), node.commit()),
                (log.clone(), commit),
                "{answers:?} node {id}"
            );
        }
        assert_eq!(net.nodes[&1].term(), 1);
    }
}

#[test]
fn proposal_to_follower_is_refused_and_names_the_leader() {
    let mut net = Network::of(3);
    net.campaign(1);
    let refused = net.node(2).propose("somedata");
    assert_eq!(refused, Err(Error::NotLeader { leader: Some(1) }));
    net.settle();
    assert_eq!(
        net.nodes[&1].last_index(),
        1,
        "followers never forward proposals"
    );
}

#[test]
fn handle_msg_append() {
    // An append, then the follower's last index and commit index, and whether it refuses.
    // The follower's log is 1@1 2@2.
    type Case = (
        (Index, Term),
        &'static [(Index, Term)],
        Index,
        (Index, Index, bool),
    );
    let cases: [Case; 11] = [
        // The entry before does not match, or is not there.
        ((2, 3), &[], 3, (2, 0, true)),
        ((3, 3), &[], 3, (2, 0, true)),
        // Conflicting entries are replaced, all others kept.
        ((1, 1), &[], 1, (2, 1, false)),
        ((0, 0), &[(1, 2)], 1, (1, 1, false)),
        ((2, 2), &[(3, 2), (4, 2)], 3, (4, 3, false)),
        ((2, 2), &[(3, 2)], 4, (3, 3, false)),
        ((1, 1), &[(2, 2)], 4, (2, 2, false)),
        // The commit index goes no further than the last entry the message vouches for.
        ((1, 1), &[], 3, (2, 1, false)),
        ((1, 1), &[(2, 2)], 3, (2, 2, false)),
        ((2, 2), &[], 3, (2, 2, false)),
        ((2, 2), &[], 4, (2, 2, false)),
    ];
    for (before, entries, told, (last, commit, refused)) in cases {
        let mut node = Node::at(1, &[1, 2], 2, 0, &[1, 2], 0);
        // No correct leader sends an entry of a later term than its own.
        node.step(append(2, 1, before.1.max(2), before, entries, told));
        let shown = format!("behind {before:?} {entries:?} commit {told}");
        assert_eq!(
            (node.last_index(), node.commit()),
            (last, commit),
            "{shown}"
        );
        let sent = node.sent_of(MessageType::MsgAppendResponse);
        assert_eq!(sent.len(), 1, "{shown}");
        assert_eq!(sent[0].reject, refused, "{shown}");
    }
}

#[test]
fn leader_increase_next() {
    // Three old entries, the leader's own, one proposal.
    for (state, next) in [(ProgressState::Replicate, 6), (ProgressState::Probe, 2)] {
        let mut node = Node::at(1, &[1, 2], 1, 0, &[1, 1, 1], 0);
        node.lead();
        match state {
            // Where the logs meet is known: next runs ahead of the answers.
            ProgressState::Replicate => node.step(append_answer(2, 1, 2, 4)),
            // It is not: the follower says it may go on from 2 and gets one append.
            _ => node.step(Message {
                index: 3,
                reject: true,
                reject_hint: 1,
                log_term: 1,
                ..message(MessageType::MsgAppendResponse, 2, 1, 2)
            }),
        }
        node.sent();
        node.propose("somedata").unwrap();
        let progress = node.progress(2);
        assert_eq!((progress.state, progress.next), (state, next));
    }
}

#[test]
fn everything_proposed_before_one_ready_leaves_in_one_append() {
    let mut node = Node::of(1, &[1, 2, 3]);
    node.lead();
    node.acknowledge_all();
    for data in ["a", "b", "c", "d"] {
        node.raw.propose(Default::default(), data.into()).unwrap();
    }
    let sent = node.sent_of(MessageType::MsgAppend);
    let counts: Vec<(PeerId, usize)> = sent.iter().map(|m| (m.to, m.entries.len())).collect();
    assert_eq!(counts, [(2, 4), (3, 4)]);
}
