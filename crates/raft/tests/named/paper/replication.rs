//! Sections 5.3 and 5.4.2: the log, and what is committed.

use std::collections::BTreeSet;

use strata_proto::eraftpb::{Entry, Message, MessageType};
use strata_raft::{Index, PeerId, Role, Term};

use crate::network::Network;
use crate::support::node::{Node, append, append_answer, entries_of, vote_answer};

/// A leader of term 1 among `voters` whose first entry is committed and known to be.
fn settled_leader(voters: &[PeerId]) -> Node {
    let mut node = Node::of(1, voters);
    node.lead();
    node.acknowledge_all();
    assert_eq!(node.commit(), 1);
    node
}

fn data(entry: &Entry) -> (Index, Term, &[u8]) {
    (entry.index, entry.term, &entry.data)
}

/// Section 5.3: the leader appends a command to its log and sends it to all in parallel.
#[test]
fn leader_start_replication() {
    let mut node = settled_leader(&[1, 2, 3]);
    let index = node.propose("some data").unwrap();
    assert_eq!((index, node.last_index(), node.commit()), (2, 2, 1));
    let sent = node.sent();
    assert_eq!(
        sent.iter().map(|m| m.to).collect::<BTreeSet<_>>(),
        BTreeSet::from([2, 3])
    );
    for m in &sent {
        assert_eq!(m.msg_type(), MessageType::MsgAppend);
        assert_eq!((m.term, m.index, m.log_term, m.commit), (1, 1, 1, 1));
        assert_eq!(
            m.entries.iter().map(data).collect::<Vec<_>>(),
            [(2, 1, &b"some data"[..])]
        );
    }
    assert_eq!(node.log(), [(1, 1), (2, 1)]);
}

/// Section 5.3: once safely replicated, an entry is applied, and followers learn of it.
#[test]
fn leader_commit_entry() {
    let mut node = settled_leader(&[1, 2, 3]);
    node.propose("some data").unwrap();
    for m in node.sent() {
        node.step(append_answer(m.to, 1, 1, 2));
    }
    assert_eq!(node.commit(), 2);
    assert_eq!(
        node.applied.last().map(data),
        Some((2, 1, &b"some data"[..]))
    );
    let told: BTreeSet<_> = node
        .sent()
        .iter()
        .map(|m| (m.to, m.msg_type(), m.commit))
        .collect();
    let append = MessageType::MsgAppend;
    assert_eq!(told, BTreeSet::from([(2, append, 2), (3, append, 2)]));
}

/// Section 5.3: committed means: on a majority.
#[test]
fn leader_acknowledge_commit() {
    let cases: [(u64, &[PeerId], bool); 9] = [
        (1, &[], true),
        (3, &[], false),
        (3, &[2], true),
        (3, &[2, 3], true),
        (5, &[], false),
        (5, &[2], false),
        (5, &[2, 3], true),
        (5, &[2, 3, 4], true),
        (5, &[2, 3, 4, 5], true),
    ];
    for (size, acceptors, committed) in cases {
        let voters: Vec<PeerId> = (1..=size).collect();
        let mut node = settled_leader(&voters);
        node.propose("some data").unwrap();
        for &from in acceptors {
            node.step(append_answer(from, 1, 1, 2));
        }
        assert_eq!(
            node.commit() > 1,
            committed,
            "{size} voters, accepted by {acceptors:?}"
        );
    }
}

/// Section 5.3: a commit covers all entries before it, also those of earlier leaders.
#[test]
fn leader_commit_preceding_entries() {
    let cases: [&[Term]; 4] = [&[], &[2], &[1, 2], &[1]];
    for terms in cases {
        let mut net = Network::with(vec![
            Some(Node::at(1, &[1, 2, 3], 2, 0, terms, 0)),
            Some(Node::of(2, &[1, 2, 3])),
            Some(Node::of(3, &[1, 2, 3])),
        ]);
        net.campaign(1);
        net.propose(1, "some data");
        let last = terms.len() as u64;
        let mut wanted: Vec<(Index, Term)> = (1..).zip(terms.iter().copied()).collect();
        wanted.extend([(last + 1, 3), (last + 2, 3)]);
        let applied = &net.nodes[&1].applied;
        assert_eq!(
            applied
                .iter()
                .map(|e| (e.index, e.term))
                .collect::<Vec<_>>(),
            wanted
        );
        assert_eq!(applied.last().map(|e| &e.data[..]), Some(&b"some data"[..]));
    }
}

/// Section 5.3: a follower applies what it learns to be committed, in order.
#[test]
fn follower_commit_entry() {
    let cases: [(&[&'static str], Index); 4] = [
        (&["some data"], 1),
        (&["some data", "some data2"], 2),
        (&["some data2", "some data"], 2),
        (&["some data", "some data2"], 1),
    ];
    for (commands, commit) in cases {
        let mut node = Node::of(1, &[1, 2, 3]);
        let entries = commands.iter().zip(1..).map(|(data, index)| Entry {
            term: 1,
            index,
            data: (*data).into(),
            ..Entry::default()
        });
        let entries = entries.collect();
        node.step(Message {
            entries,
            ..append(2, 1, 1, (0, 0), &[], commit)
        });
        assert_eq!(node.commit(), commit);
        assert_eq!(
            node.applied_data(),
            commands[..commit as usize],
            "commit {commit}"
        );
    }
}

/// Section 5.3: the entry before the new ones must be there; a refusal names a place to go on.
#[test]
fn follower_check_msg_append() {
    // Entry before, then the answer: index, refused, hint and its term. Log 1@1 2@2.
    let cases = [
        ((0, 0), (1, false, 0, 0)),
        ((1, 1), (1, false, 0, 0)),
        ((2, 2), (2, false, 0, 0)),
        ((2, 1), (2, true, 1, 1)),
        ((3, 3), (3, true, 2, 2)),
    ];
    for (before, (index, refused, hint, hint_term)) in cases {
        let mut node = Node::at(1, &[1, 2, 3], 2, 0, &[1, 2], 1);
        node.step(append(2, 1, before.1.max(2), before, &[], 0));
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "behind {before:?}");
        let answer = &sent[0];
        assert_eq!(answer.msg_type(), MessageType::MsgAppendResponse);
        assert_eq!(
            (answer.index, answer.reject),
            (index, refused),
            "behind {before:?}"
        );
        if refused {
            assert_eq!(
                (answer.reject_hint, answer.log_term),
                (hint, hint_term),
                "{before:?}"
            );
        }
    }
}

/// Section 5.3: conflicting entries and all behind them go, new ones are appended.
#[test]
fn follower_append_entries() {
    type Ids = &'static [(Index, Term)];
    // Entry before, entries sent, log afterwards, entries written for it. Log 1@1 2@2.
    let cases: [((Index, Term), Ids, Ids, Ids); 4] = [
        ((2, 2), &[(3, 3)], &[(1, 1), (2, 2), (3, 3)], &[(3, 3)]),
        (
            (1, 1),
            &[(2, 3), (3, 4)],
            &[(1, 1), (2, 3), (3, 4)],
            &[(2, 3), (3, 4)],
        ),
        ((0, 0), &[(1, 1)], &[(1, 1), (2, 2)], &[]),
        ((0, 0), &[(1, 3)], &[(1, 3)], &[(1, 3)]),
    ];
    for (before, sent, log, written) in cases {
        let mut node = Node::at(1, &[1, 2, 3], 4, 0, &[1, 2], 0);
        let now = node.now;
        node.raw
            .step(now, append(2, 1, 4, before, sent, 0))
            .unwrap();
        let ready = node.raw.ready(now);
        assert_eq!(ready.entries, entries_of(written), "behind {before:?}");
        node.disk.append(&ready.entries);
        node.raw.advance(ready);
        node.settle();
        assert_eq!(node.log(), log, "behind {before:?}");
    }
}

/// Section 5.3, figure 7: the leader brings every log to be like its own.
#[test]
fn leader_sync_follower_log() {
    let leader_terms: &[Term] = &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[Term]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for terms in followers {
        let voters = [1, 2, 3];
        // Node 3 votes but its log stays away: node 2 alone shows what the leader does.
        let mut net = Network::with(vec![
            Some(Node::at(1, &voters, 8, 0, leader_terms, 10)),
            Some(Node::at(2, &voters, 7, 0, terms, 0)),
            None,
        ]);
        net.campaign(1);
        net.deliver(vec![vote_answer(3, 1, 9, false)]);
        assert_eq!(net.role(1), Role::Leader);
        net.propose(1, "some data");
        net.assert_same_logs();
        assert_eq!(net.nodes[&2].log().len(), 12);
    }
}

/// Section 5.4.2: entries of earlier terms are never committed by counting copies.
#[test]
fn leader_only_commits_log_from_current_term() {
    for (acknowledged, commit) in [(1, 0), (2, 0), (3, 3)] {
        let mut node = Node::at(1, &[1, 2], 2, 0, &[1, 2], 0);
        node.lead();
        assert_eq!(node.term(), 3);
        node.propose("some data").unwrap();
        node.step(append_answer(2, 1, 3, acknowledged));
        assert_eq!(node.commit(), commit, "acknowledged up to {acknowledged}");
    }
}
