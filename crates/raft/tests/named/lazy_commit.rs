//! A commit index without a message of its own (`Config::lazy_commit`).

use strata_proto::eraftpb::{ConfChangeType, Message};
use strata_raft::Config;

use crate::network::Network;
use crate::support::disk::Disk;
use crate::support::node::{Node, change, config};

/// Three nodes of which 1 leads, and whose commit indices are lazy.
fn lazy() -> Network {
    let voters = [1, 2, 3];
    let node = |id| {
        let config = Config {
            lazy_commit: true,
            check_quorum: true,
            ..config(id)
        };
        Some(Node::new(config, Disk::with_voters(&voters)))
    };
    let mut net = Network::with(voters.map(node).into());
    net.campaign(1);
    net.beat(1);
    net
}

#[test]
fn followers_learn_of_a_commit_with_the_next_append() {
    let mut net = lazy();
    let first = net.propose(1, "first");
    assert_eq!(net.commit(1), first);
    assert_eq!((net.commit(2), net.commit(3)), (first - 1, first - 1));
    let second = net.propose(1, "second");
    assert_eq!(net.commit(1), second);
    assert_eq!((net.commit(2), net.commit(3)), (first, first));
}

#[test]
fn followers_learn_of_the_last_commit_with_the_next_heartbeat() {
    let mut net = lazy();
    let last = net.propose(1, "last");
    net.beat(1);
    assert_eq!((net.commit(2), net.commit(3)), (last, last));
    assert_eq!(net.nodes[&2].applied_data(), ["last"]);
}

#[test]
fn an_entry_costs_an_append_and_an_answer_for_each_follower() {
    let mut net = lazy();
    net.propose(1, "one before, so that its commit index travels along");
    let leader = net.node(1);
    leader.propose("counted").unwrap();
    let appends = leader.sent();
    assert_eq!(appends.len(), 2);
    let mut answers = Vec::new();
    for append in appends {
        let node = net.node(append.to);
        node.step(append);
        answers.extend(node.sent());
    }
    assert_eq!(answers.len(), 2);
    let leader = net.node(1);
    for answer in answers {
        leader.step(answer);
    }
    assert_eq!(leader.applied_data().last().unwrap(), "counted");
    assert!(leader.sent().is_empty(), "nothing is left to be said");
}

/// Hands `messages` to their receivers and returns what those send.
fn pass_on(net: &mut Network, messages: Vec<Message>) -> Vec<Message> {
    let mut sent = Vec::new();
    for message in messages {
        let node = net.node(message.to);
        node.step(message);
        sent.extend(node.sent());
    }
    sent
}

#[test]
fn a_follower_whose_read_waits_learns_of_the_commit_at_once() {
    let mut net = lazy();
    let leader = net.node(1);
    let index = leader.propose("read me").unwrap();
    let appends = leader.sent();
    // Node 2 has the entry, but its answer is slow: the leader commits by that of node 3.
    let mut answers = pass_on(&mut net, appends);
    answers.retain(|answer| answer.from == 3);
    assert!(pass_on(&mut net, answers).is_empty());
    assert_eq!((net.commit(1), net.commit(2)), (index, index - 1));
    let reader = net.node(2);
    reader.raw.read_index("who reads".into()).unwrap();
    let question = reader.sent();
    let round = pass_on(&mut net, question);
    assert!(round.iter().all(|beat| beat.commit < index || beat.to == 3));
    let answers = pass_on(&mut net, round);
    let answer = pass_on(&mut net, answers);
    pass_on(&mut net, answer);
    assert_eq!(net.nodes[&2].reads[0].index, index);
    assert_eq!(net.commit(2), index, "the read can be served");
}

#[test]
fn membership_changes_are_not_lazy() {
    let mut net = lazy();
    let at = net
        .node(1)
        .propose_change(change(ConfChangeType::RemoveNode, 3))
        .unwrap();
    net.settle();
    assert_eq!((net.commit(1), net.commit(2)), (at, at));
    assert_eq!(net.nodes[&3].voters(), [1, 2], "the one that goes knows");
}

#[test]
fn who_takes_over_commits_what_it_was_not_told_of() {
    let mut net = lazy();
    let last = net.propose(1, "before the transfer");
    assert!(net.commit(2) < last && net.commit(3) < last);
    net.transfer(1, 2);
    assert_eq!(net.nodes[&2].leader(), Some(2));
    assert!(
        net.commit(2) > last,
        "its own first entry, and all before it"
    );
    assert_eq!(net.nodes[&2].applied_data(), ["before the transfer"]);
}
