//! TinyKV 3A: who is a member.

use strata_proto::eraftpb::{ConfChangeTransition, ConfChangeType, ConfChangeV2, MessageType};
use strata_raft::{ConfChangeError, Error, ProgressState, Role};

use crate::network::Network;
use crate::support::disk::Disk;
use crate::support::node::{Node, append_answer, change, changes, config};

use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};

#[test]
fn add_node() {
    let mut node = Node::of(1, &[1]);
    node.lead();
    let conf_state = node.raw.apply_conf_change(&change(AddNode, 2)).unwrap();
    assert_eq!(conf_state.voters, [1, 2]);
    assert_eq!(node.voters(), [1, 2]);
    assert_eq!(node.progress(2).matched, 0);
}

#[test]
fn add_node_twice_keeps_its_progress() {
    let mut node = Node::of(1, &[1, 2]);
    node.lead();
    node.step(append_answer(2, 1, 1, 1));
    node.raw.apply_conf_change(&change(AddNode, 2)).unwrap();
    assert_eq!(node.voters(), [1, 2]);
    assert_eq!(
        node.progress(2).matched,
        1,
        "a peer added again lost its progress"
    );
}

#[test]
fn add_learner_then_promote() {
    let mut node = Node::of(1, &[1]);
    node.lead();
    node.raw
        .apply_conf_change(&change(AddLearnerNode, 2))
        .unwrap();
    assert_eq!((node.voters(), node.learners()), (vec![1], vec![2]));
    // A learner gets the log but is in no quorum.
    assert_eq!(node.propose("alone"), Ok(2));
    assert_eq!(node.commit(), 2);
    node.step(append_answer(2, 1, 1, 2));
    node.raw.apply_conf_change(&change(AddNode, 2)).unwrap();
    assert_eq!((node.voters(), node.learners()), (vec![1, 2], vec![]));
    assert_eq!(
        node.progress(2).matched,
        2,
        "promotion forgot what the learner holds"
    );
}

#[test]
fn learner_never_campaigns() {
    let disk = Disk::with_voters(&[1, 2]);
    let mut conf_state = disk.content().conf_state;
    conf_state.learners = vec![3];
    disk.set_conf_state(conf_state);
    let mut node = Node::new(config(3), disk);
    node.ticks(100);
    assert_eq!((node.role(), node.term()), (Role::Follower, 0));
    assert_eq!(node.raw.campaign(node.now), Err(Error::NotPromotable));
}

#[test]
fn remove_node() {
    let mut node = Node::of(1, &[1, 2]);
    node.lead();
    node.raw.apply_conf_change(&change(RemoveNode, 2)).unwrap();
    assert_eq!(node.voters(), [1]);
    // The last voter cannot go: no one could ever decide anything again.
    let refused = node.raw.apply_conf_change(&change(RemoveNode, 1));
    assert_eq!(refused, Err(Error::ConfChange(ConfChangeError::NoVoters)));
    assert_eq!(node.voters(), [1]);
}

#[test]
fn remove_node_of_the_leader_itself() {
    let mut net = Network::of(3);
    net.campaign(1);
    net.node(1).propose_change(change(RemoveNode, 1)).unwrap();
    net.settle();
    for id in 2..=3 {
        assert_eq!(net.nodes[&id].voters(), [2, 3], "membership on {id}");
    }
    // The others go on without it.
    net.campaign(2);
    net.propose(2, "after");
    assert_eq!(net.nodes[&3].applied_data(), ["after"]);
    assert_ne!(net.role(1), Role::Leader);
}

#[test]
fn commit_after_remove_node() {
    let mut node = Node::of(1, &[1, 2]);
    node.lead();
    let at = node.propose_change(change(RemoveNode, 2)).unwrap();
    assert!(node.applied.is_empty());
    node.propose("hello").unwrap();
    // Node 2 acknowledges its own removal, which commits with both votes; from then on the
    // quorum is node 1 alone, so the command behind it commits too.
    node.step(append_answer(2, 1, 1, at));
    let applied: Vec<_> = node.applied.iter().map(|e| e.index).collect();
    assert_eq!(applied, [1, 2, 3]);
    assert_eq!(node.applied_data(), ["hello"]);
    assert_eq!(node.voters(), [1]);
}

#[test]
fn one_change_at_a_time() {
    let mut node = Node::of(1, &[1, 2, 3]);
    node.lead();
    node.acknowledge_all();
    let index = node.propose_change(change(AddNode, 4)).unwrap();
    let second = node.propose_change(change(AddNode, 5));
    assert_eq!(second, Err(Error::ConfChangePending { index }));
    node.acknowledge_all();
    assert_eq!(node.voters(), [1, 2, 3, 4]);
    node.propose_change(change(AddNode, 5)).unwrap();
}

#[test]
fn new_leader_proposes_no_change_before_old_ones_are_applied() {
    let mut net = Network::of(3);
    net.campaign(1);
    net.isolate(1);
    let lone = net.node(1);
    lone.propose_change(change(AddNode, 4)).unwrap();
    lone.sent();
    // Restarted, node 1 holds a change that may yet commit. It wins again and must wait.
    net.heal();
    net.node(1).restart();
    net.ignore(MessageType::MsgAppend);
    net.campaign(1);
    assert_eq!(net.role(1), Role::Leader);
    let early = net.node(1).propose_change(change(AddNode, 5));
    assert!(
        matches!(early, Err(Error::ConfChangePending { .. })),
        "{early:?}"
    );
}

/// Messages to peers that exist in no test network are lost, as those to dead stores are.
#[test]
fn joint_change_needs_both_majorities_and_leaves_by_itself() {
    let mut node = Node::of(1, &[1, 2, 3]);
    node.lead();
    node.acknowledge_all();
    let change = changes(&[(RemoveNode, 2), (RemoveNode, 3), (AddNode, 4), (AddNode, 5)]);
    node.propose_change(change).unwrap();
    node.step(append_answer(2, 1, 1, 2));
    let joint = node.status().conf_state;
    assert_eq!(
        (joint.voters, joint.voters_outgoing),
        (vec![1, 4, 5], vec![1, 2, 3])
    );
    assert!(joint.auto_leave);
    // The leave entry is appended by the leader itself; the old majority is not enough.
    assert_eq!(node.last_index(), 3);
    node.step(append_answer(2, 1, 1, 3));
    node.step(append_answer(3, 1, 1, 3));
    assert_eq!(node.commit(), 2, "committed without the new majority");
    node.step(append_answer(4, 1, 1, 3));
    assert_eq!(node.commit(), 3);
    let left = node.status().conf_state;
    assert_eq!(
        (left.voters, left.voters_outgoing.len()),
        (vec![1, 4, 5], 0)
    );
    assert!(!left.auto_leave);
}

#[test]
fn explicit_joint_change_stays_until_told_to_leave() {
    let mut node = Node::of(1, &[1]);
    node.lead();
    let mut enter = changes(&[(AddNode, 2), (AddLearnerNode, 3)]);
    enter.transition = ConfChangeTransition::Explicit.into();
    node.propose_change(enter).unwrap();
    assert_eq!(node.status().conf_state.voters_outgoing, [1]);
    assert_eq!(
        node.last_index(),
        2,
        "an explicit change was left without being asked"
    );
    node.propose_change(ConfChangeV2::default()).unwrap();
    node.step(append_answer(2, 1, 1, 3));
    let left = node.status().conf_state;
    assert_eq!(
        (left.voters, left.voters_outgoing, left.learners),
        (vec![1, 2], vec![], vec![3])
    );
}

#[test]
fn added_node_is_caught_up_from_the_first_entry() {
    let mut net = Network::of(1);
    net.campaign(1);
    for _ in 0..10 {
        net.propose(1, "some data");
    }
    net.nodes.insert(2, Node::of(2, &[1]));
    net.node(1).propose_change(change(AddNode, 2)).unwrap();
    net.settle();
    net.beat(1);
    assert_eq!(net.nodes[&1].progress(2).state, ProgressState::Replicate);
    net.assert_same_logs();
    assert_eq!(net.nodes[&2].voters(), [1, 2]);
}
