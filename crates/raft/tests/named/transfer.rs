//! TinyKV 3A: handing over leadership.

use strata_proto::eraftpb::{ConfChangeType, Message, MessageType};
use strata_raft::{Config, Error, PeerId, ProgressState, Role};

use crate::network::Network;
use crate::support::node::{
    ELECTION_TICKS, ELECTION_TIMEOUT, Node, TICK, change, config, disk_at, message, vote_answer,
};

fn led_by_one() -> Network {
    let mut net = Network::of(3);
    net.campaign(1);
    net
}

fn transferee(net: &Network, id: PeerId) -> Option<PeerId> {
    net.nodes[&id].status().transferee
}

#[test]
fn leader_transfer_to_up_to_date_node() {
    for mut net in [Network::of(3), Network::guarded(3)] {
        net.campaign(1);
        net.assert_leader(1);
        // Without waiting for any timeout.
        net.transfer(1, 2);
        net.assert_leader(2);
        net.propose(2, "some data");
        net.transfer(2, 1);
        net.assert_leader(1);
    }
}

#[test]
fn leader_transfer_from_follower() {
    // Asked of a follower, who passes it on to the leader.
    let mut net = led_by_one();
    net.transfer(2, 2);
    net.assert_leader(2);
    net.propose(2, "some data");
    net.transfer(1, 1);
    net.assert_leader(1);
}

#[test]
fn leader_transfer_with_check_quorum() {
    // The others have just heard from the leader; a transfer overrides their promise.
    let mut net = Network::guarded(3);
    net.campaign(1);
    net.ticks(3);
    net.transfer(1, 2);
    net.assert_leader(2);
}

#[test]
fn leader_transfer_to_slow_follower() {
    let mut net = led_by_one();
    net.isolate(3);
    net.propose(1, "some data");
    net.heal();
    assert_eq!(net.nodes[&1].progress(3).matched, 1);
    // Node 3 is brought up to date first.
    net.transfer(1, 3);
    net.beat(1);
    net.assert_leader(3);
    net.assert_same_logs();
}

#[test]
fn leader_transfer_after_snapshot() {
    let mut net = led_by_one();
    net.isolate(3);
    net.propose(1, "some data");
    net.node(1).compact_at_applied();
    net.heal();
    assert_eq!(net.nodes[&1].progress(3).matched, 1);
    net.transfer(1, 3);
    net.beat(1);
    net.assert_leader(3);
    assert_eq!(net.nodes[&3].installed.len(), 1);
}

#[test]
fn leader_transfer_to_self() {
    let mut net = led_by_one();
    net.transfer(1, 1);
    net.assert_leader(1);
    assert_eq!(transferee(&net, 1), None);
}

#[test]
fn leader_transfer_to_non_existing_node() {
    let mut net = led_by_one();
    net.transfer(1, 4);
    net.assert_leader(1);
    assert_eq!(transferee(&net, 1), None);
}

#[test]
fn leader_transfer_to_learner_is_ignored() {
    let mut net = Network::of(1);
    net.campaign(1);
    net.node(1)
        .propose_change(change(ConfChangeType::AddLearnerNode, 2))
        .unwrap();
    net.transfer(1, 2);
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, None));
}

#[test]
fn leader_transfer_higher_term_vote() {
    let mut net = led_by_one();
    net.isolate(3);
    net.transfer(1, 3);
    assert_eq!(transferee(&net, 1), Some(3));
    // An election of another node ends the term and with it the transfer.
    net.campaign(2);
    assert_eq!((net.role(1), net.role(2)), (Role::Follower, Role::Leader));
    assert_eq!(transferee(&net, 1), None);
}

#[test]
fn leader_transfer_remove_node() {
    let mut net = led_by_one();
    net.ignore(MessageType::MsgTimeoutNow);
    net.transfer(1, 3);
    assert_eq!(transferee(&net, 1), Some(3));
    net.node(1)
        .raw
        .apply_conf_change(&change(ConfChangeType::RemoveNode, 3))
        .unwrap();
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, None));
}

#[test]
fn leader_transfer_back() {
    let mut net = led_by_one();
    net.isolate(3);
    net.transfer(1, 3);
    assert_eq!(transferee(&net, 1), Some(3));
    // To itself: the leader calls it off.
    net.transfer(1, 1);
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, None));
    net.propose(1, "goes on");
}

#[test]
fn leader_transfer_second_transfer() {
    let mut net = led_by_one();
    net.isolate(3);
    net.transfer(1, 3);
    assert_eq!(transferee(&net, 1), Some(3));
    net.transfer(1, 2);
    assert_eq!((net.role(1), net.role(2)), (Role::Follower, Role::Leader));
}

#[test]
fn leader_transfer_second_transfer_to_same_node_keeps_its_deadline() {
    let mut net = led_by_one();
    net.isolate(3);
    net.transfer(1, 3);
    for _ in 0..ELECTION_TICKS - 1 {
        net.beat(1);
    }
    assert_eq!(transferee(&net, 1), Some(3));
    net.transfer(1, 3);
    net.beat(1);
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, None));
}

#[test]
fn leader_transfer_timeout() {
    let mut net = led_by_one();
    net.isolate(3);
    net.transfer(1, 3);
    assert_eq!(
        net.node(1).propose("refused meanwhile"),
        Err(Error::ProposalDropped)
    );
    for _ in 0..ELECTION_TICKS {
        net.beat(1);
    }
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, None));
    net.propose(1, "goes on");
}

#[test]
fn transfer_non_member() {
    // A node that is not in its own group's membership, as one that was removed.
    let mut node = Node::of(1, &[2, 3, 4]);
    let _ = node.try_step(message(MessageType::MsgTimeoutNow, 2, 1, 1));
    let _ = node.try_step(vote_answer(2, 1, 1, false));
    let _ = node.try_step(vote_answer(3, 1, 1, false));
    assert_eq!(node.role(), Role::Follower);
}

#[test]
fn transfer_order_of_old_term_or_of_non_leader_is_ignored() {
    let mut net = led_by_one();
    net.campaign(2);
    let node = net.node(3);
    for (from, term) in [(1, 1), (1, 2)] {
        let _ = node.try_step(message(MessageType::MsgTimeoutNow, from, 3, term));
        assert_eq!(
            (node.role(), node.term()),
            (Role::Follower, 2),
            "order of {from} in {term}"
        );
    }
    assert!(node.sent().is_empty());
    node.step(message(MessageType::MsgTimeoutNow, 2, 3, 2));
    assert_eq!((node.role(), node.term()), (Role::Candidate, 3));
}

#[test]
fn transfer_campaign_skips_pre_vote_and_says_so() {
    let mut net = Network::guarded(3);
    net.campaign(1);
    let target = net.node(2);
    target.step(message(MessageType::MsgTimeoutNow, 1, 2, 1));
    let requests: Vec<Message> = target.sent();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.msg_type(), MessageType::MsgRequestVote);
        assert!(
            !request.context.is_empty(),
            "voters cannot tell a transfer from a disruption"
        );
    }
}

#[test]
fn transfer_waits_while_the_target_is_sent_a_snapshot() {
    let mut net = led_by_one();
    net.isolate(3);
    net.propose(1, "some data");
    net.node(1).compact_at_applied();
    net.heal();
    net.ignore(MessageType::MsgSnapshot);
    net.transfer(1, 3);
    net.beat(1);
    assert_eq!(net.nodes[&1].progress(3).state, ProgressState::Snapshot);
    assert_eq!((net.role(1), transferee(&net, 1)), (Role::Leader, Some(3)));
}

/// Not even for a transfer does a node vote right after its start: the leader that asked for
/// the transfer may be an older one than the one to which a promise was given.
#[test]
fn transfer_vote_is_withheld_after_a_start() {
    let disk = disk_at(&[1, 2, 3], 1, 1, &[1], 1);
    let quiet = Config {
        check_quorum: true,
        quiet_after_start: true,
        ..config(3)
    };
    let mut node = Node::new(quiet, disk);
    let request = Message {
        index: 1,
        log_term: 1,
        context: "CampaignTransfer".into(),
        ..message(MessageType::MsgRequestVote, 2, 3, 2)
    };
    node.settle();
    node.pass(ELECTION_TIMEOUT - TICK);
    node.step(request.clone());
    assert!(
        node.sent().is_empty(),
        "voted within an election timeout of its start"
    );
    assert_eq!(node.term(), 1);
    node.pass(TICK);
    node.step(request);
    assert_eq!((node.sent().len(), node.vote()), (1, 2));
}
