//! TinyKV 2A: what a node in each role does with votes, higher terms and heartbeats.

use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::{Config, Error, Index, PeerId, Role, Term};

use crate::network::Network;
use crate::support::node::{ELECTION_TICKS, ELECTION_TIMEOUT, Node, config, disk_at, message};

/// Node 1 of three in term 1 and in each role.
fn in_each_role() -> Vec<(Role, Node)> {
    let fresh = || Node::at(1, &[1, 2, 3], 1, 0, &[], 0);
    let follower = fresh();
    let disk = fresh().disk;
    let mut pre_candidate = Node::new(
        Config {
            pre_vote: true,
            ..config(1)
        },
        disk,
    );
    pre_candidate.campaign();
    let mut candidate = Node::at(1, &[1, 2, 3], 0, 0, &[], 0);
    candidate.campaign();
    let mut leader = Node::at(1, &[1, 2, 3], 0, 0, &[], 0);
    leader.lead();
    let roles = [
        Role::Follower,
        Role::PreCandidate,
        Role::Candidate,
        Role::Leader,
    ];
    let nodes: Vec<_> = roles
        .into_iter()
        .zip([follower, pre_candidate, candidate, leader])
        .collect();
    for (role, node) in &nodes {
        assert_eq!((node.role(), node.term()), (*role, 1));
    }
    nodes
}

#[test]
fn vote_from_any_state() {
    for (role, mut node) in in_each_role() {
        node.sent();
        node.pass(ELECTION_TIMEOUT);
        let request = Message {
            log_term: 2,
            index: 42,
            ..message(MessageType::MsgRequestVote, 2, 1, 2)
        };
        node.step(request);
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "{role:?} sent {sent:?}");
        assert_eq!(
            sent[0].msg_type(),
            MessageType::MsgRequestVoteResponse,
            "{role:?}"
        );
        assert!(
            !sent[0].reject,
            "{role:?} refused a newer log in a newer term"
        );
        assert_eq!(
            (node.role(), node.term(), node.vote()),
            (Role::Follower, 2, 2),
            "{role:?}"
        );
    }
}

#[test]
fn pre_vote_from_any_state() {
    for (role, mut node) in in_each_role() {
        node.sent();
        node.pass(ELECTION_TIMEOUT);
        let (term, vote) = (node.term(), node.vote());
        let request = Message {
            log_term: 2,
            index: 42,
            ..message(MessageType::MsgRequestPreVote, 2, 1, 2)
        };
        node.step(request);
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "{role:?} sent {sent:?}");
        assert_eq!(
            sent[0].msg_type(),
            MessageType::MsgRequestPreVoteResponse,
            "{role:?}"
        );
        // A pre-vote is no promise: nothing of the voter's state moves.
        assert_eq!(
            (node.role(), node.term(), node.vote()),
            (role, term, vote),
            "{role:?}"
        );
    }
}

/// Index and log term asked with, the voter's earlier vote, whether it refuses. The voter's
/// log is 1@2 2@2.
const REQUESTS: [(Index, Term, PeerId, bool); 18] = [
    (0, 0, 0, true),
    (0, 1, 0, true),
    (0, 2, 0, true),
    (0, 3, 0, false),
    (1, 0, 0, true),
    (1, 1, 0, true),
    (1, 2, 0, true),
    (1, 3, 0, false),
    (2, 0, 0, true),
    (2, 1, 0, true),
    (2, 2, 0, false),
    (2, 3, 0, false),
    (3, 0, 0, true),
    (3, 1, 0, true),
    (3, 2, 0, false),
    (3, 3, 0, false),
    (3, 2, 2, false),
    (3, 2, 1, true),
];

#[test]
fn recv_msg_request_vote() {
    let request = |term, index, log_term| Message {
        index,
        log_term,
        ..message(MessageType::MsgRequestVote, 2, 1, term)
    };
    for (index, log_term, vote, refused) in REQUESTS {
        let term = log_term.max(2);
        let mut node = Node::at(1, &[1, 2, 3], term, vote, &[2, 2], 0);
        node.step(request(term, index, log_term));
        let sent = node.sent_of(MessageType::MsgRequestVoteResponse);
        assert_eq!(sent.len(), 1, "{index} {log_term} {vote}");
        assert_eq!(
            sent[0].reject, refused,
            "index {index} log term {log_term} vote {vote}"
        );
        assert_eq!(sent[0].term, term);
    }
    // A candidate and a leader have voted for themselves, whatever the log of the other.
    let mut candidate = Node::at(1, &[1, 2, 3], 2, 0, &[2, 2], 0);
    candidate.campaign();
    let mut leader = Node::at(1, &[1, 2, 3], 2, 0, &[2, 2], 0);
    leader.lead();
    for mut node in [candidate, leader] {
        let role = node.role();
        node.sent();
        node.step(request(3, 3, 3));
        let sent = node.sent_of(MessageType::MsgRequestVoteResponse);
        assert_eq!(sent.len(), 1, "{role:?}");
        assert!(sent[0].reject, "{role:?} gave its vote away");
        assert_eq!(node.role(), role);
    }
}

#[test]
fn all_server_stepdown() {
    for kind in [MessageType::MsgRequestVote, MessageType::MsgAppend] {
        for (role, mut node) in in_each_role() {
            node.sent();
            node.pass(ELECTION_TIMEOUT);
            let last = if role == Role::Leader { 1 } else { 0 };
            let log_term = if kind == MessageType::MsgAppend { 0 } else { 3 };
            node.step(Message {
                log_term,
                ..message(kind, 2, 1, 3)
            });
            assert_eq!(
                (node.role(), node.term()),
                (Role::Follower, 3),
                "{role:?} {kind:?}"
            );
            assert_eq!(node.last_index(), last, "{role:?} {kind:?}");
            assert_eq!(node.log().len() as u64, last, "{role:?} {kind:?}");
            let leader = (kind == MessageType::MsgAppend).then_some(2);
            assert_eq!(node.leader(), leader, "{role:?} {kind:?}");
        }
    }
}

fn candidate_resets_term_on(kind: MessageType) {
    let mut net = Network::of(3);
    net.campaign(1);
    net.isolate(3);
    net.campaign(2);
    net.campaign(1);
    assert_eq!((net.role(1), net.role(2)), (Role::Leader, Role::Follower));
    // Node 3 hears nothing and stands for election in a term of its own.
    let lone = net.node(3);
    for _ in 0..2 * ELECTION_TICKS {
        lone.tick();
        if lone.role() == Role::Candidate {
            break;
        }
    }
    assert_eq!(lone.role(), Role::Candidate);
    lone.sent();
    net.heal();
    let term = net.nodes[&1].term();
    net.deliver(vec![message(kind, 1, 3, term)]);
    assert_eq!(
        (net.role(3), net.nodes[&3].leader()),
        (Role::Follower, Some(1))
    );
    assert_eq!(net.nodes[&3].term(), term);
    assert_eq!(net.nodes[&1].term(), term);
}

#[test]
fn candidate_reset_term_heartbeat() {
    candidate_resets_term_on(MessageType::MsgHeartbeat);
}

#[test]
fn candidate_reset_term_append() {
    candidate_resets_term_on(MessageType::MsgAppend);
}

fn checked(id: PeerId, pre_vote: bool) -> Option<Node> {
    let config = Config {
        check_quorum: true,
        pre_vote,
        ..config(id)
    };
    Some(Node::new(config, disk_at(&[1, 2, 3], 1, 0, &[], 0)))
}

#[test]
fn disruptive_follower() {
    let mut net = Network::with((1..=3).map(|id| checked(id, false)).collect());
    net.campaign(1);
    net.assert_leader(1);
    // The leader's heartbeats to node 3 are late: node 3 alone sees time pass.
    let late = net.node(3);
    while late.role() != Role::Candidate {
        late.tick();
    }
    let requests = late.sent_of(MessageType::MsgRequestVote);
    assert_eq!(requests.len(), 2);
    assert_eq!([1, 2, 3].map(|id| net.nodes[&id].term()), [2, 2, 3]);
    assert_eq!(net.role(1), Role::Leader);
    // The heartbeat arrives. The answer of the higher term makes the leader step down, so
    // that the group can elect again instead of keeping node 3 out for ever.
    net.deliver(vec![message(MessageType::MsgHeartbeat, 1, 3, 2)]);
    assert_eq!(
        [1, 2, 3].map(|id| net.role(id)),
        [Role::Follower, Role::Follower, Role::Candidate]
    );
    assert_eq!([1, 2, 3].map(|id| net.nodes[&id].term()), [3, 2, 3]);
}

#[test]
fn disruptive_follower_with_pre_vote() {
    let mut net = Network::with((1..=3).map(|id| checked(id, true)).collect());
    net.campaign(1);
    net.assert_leader(1);
    net.isolate(3);
    for _ in 0..3 {
        net.propose(1, "somedata");
    }
    net.heal();
    // Nodes 1 and 2 have a leader and a longer log; node 3 gets nowhere and harms nobody.
    net.start_campaign(3);
    net.settle();
    assert_eq!([1, 2, 3].map(|id| net.nodes[&id].term()), [2, 2, 2]);
    assert_eq!([net.role(1), net.role(2)], [Role::Leader, Role::Follower]);
    net.deliver(vec![message(MessageType::MsgHeartbeat, 1, 3, 2)]);
    net.assert_leader(1);
}

#[test]
fn recv_msg_beat() {
    for (role, mut node) in in_each_role() {
        node.sent();
        node.tick();
        let beats = node.sent_of(MessageType::MsgHeartbeat);
        let wanted = if role == Role::Leader { 2 } else { 0 };
        assert_eq!(beats.len(), wanted, "{role:?}");
        // The message of that name is local: nobody can make a node beat from outside.
        let refused = node.try_step(message(MessageType::MsgBeat, 2, 1, 1));
        assert!(
            matches!(refused, Err(Error::LocalMessage { .. })),
            "{role:?}: {refused:?}"
        );
        assert!(node.sent().is_empty(), "{role:?}");
    }
}
