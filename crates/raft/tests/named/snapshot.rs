//! TinyKV 2C: snapshots at the raft level.

use strata_proto::eraftpb::{ConfState, Message, MessageType, Snapshot, SnapshotMetadata};
use strata_raft::{Index, PeerId, ProgressState, Role, Storage as _, Term};

use crate::network::Network;
use crate::support::disk::Disk;
use crate::support::node::{Node, append_answer, config, message};

/// A snapshot of a group of `voters`.
pub fn snapshot(index: Index, term: Term, voters: &[PeerId]) -> Snapshot {
    Snapshot {
        data: "state".into(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: voters.to_vec(),
                ..ConfState::default()
            }),
            index,
            term,
        }),
    }
}

/// The message that carries `snapshot` from `from` to `to`.
pub fn carry(from: PeerId, to: PeerId, term: Term, snapshot: Snapshot) -> Message {
    Message {
        snapshot: Some(Box::new(snapshot)),
        ..message(MessageType::MsgSnapshot, from, to, term)
    }
}

#[test]
fn restore_snapshot() {
    let mut node = Node::of(1, &[1, 2]);
    let wanted = snapshot(11, 11, &[1, 2, 3]);
    node.step(carry(2, 1, 11, wanted.clone()));
    assert_eq!(node.installed, std::slice::from_ref(&wanted));
    assert_eq!((node.last_index(), node.commit()), (11, 11));
    assert_eq!(node.disk.term(11), Ok(11));
    assert_eq!(node.voters(), [1, 2, 3]);
    let answers = node.sent_of(MessageType::MsgAppendResponse);
    assert_eq!(
        answers
            .iter()
            .map(|m| (m.to, m.index, m.reject))
            .collect::<Vec<_>>(),
        [(2, 11, false)]
    );
    // The same snapshot again changes nothing.
    node.step(carry(2, 1, 11, wanted));
    assert_eq!(node.installed.len(), 1);
    assert_eq!((node.last_index(), node.commit()), (11, 11));
}

#[test]
fn restore_snapshot_pending_stops_campaigns_until_installed() {
    let mut node = Node::of(1, &[1, 2, 3]);
    let now = node.now;
    node.raw
        .step(now, carry(2, 1, 11, snapshot(11, 11, &[1, 2, 3])))
        .unwrap();
    for tick in 1..100 {
        node.raw.tick(now + crate::support::node::TICK * tick);
    }
    assert_eq!(
        node.role(),
        Role::Follower,
        "campaigned on data that is not there yet"
    );
}

#[test]
fn restore_ignore_snapshot() {
    let mut node = Node::at(1, &[1, 2], 1, 0, &[1, 1, 1], 1);
    // At the commit index: the follower has all of it.
    node.step(carry(2, 1, 1, snapshot(1, 1, &[1, 2])));
    assert_eq!(
        (node.installed.len(), node.commit(), node.last_index()),
        (0, 1, 3)
    );
    let answers = node.sent_of(MessageType::MsgAppendResponse);
    assert_eq!(answers.iter().map(|m| m.index).collect::<Vec<_>>(), [1]);
    // Beyond it, but the log holds an entry of that index and term: the log stays, and all
    // up to there is known to be committed.
    node.step(carry(2, 1, 1, snapshot(2, 1, &[1, 2])));
    assert_eq!(
        (node.installed.len(), node.commit(), node.last_index()),
        (0, 2, 3)
    );
}

#[test]
fn provide_snap() {
    let mut node = Node::new(config(1), Disk::with_snapshot(snapshot(11, 11, &[1, 2])));
    node.lead();
    // The follower holds nothing; what it needs is compacted.
    node.step(Message {
        index: node.progress(2).next - 1,
        reject: true,
        ..message(MessageType::MsgAppendResponse, 2, 1, node.term())
    });
    let sent = node.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].msg_type(), MessageType::MsgSnapshot);
    let metadata = sent[0]
        .snapshot
        .as_ref()
        .and_then(|s| s.metadata.clone())
        .unwrap();
    assert_eq!((metadata.index, metadata.term), (11, 11));
    let progress = node.progress(2);
    assert_eq!(
        (progress.state, progress.pending_snapshot),
        (ProgressState::Snapshot, 11)
    );
}

#[test]
fn ignore_providing_snap_to_inactive_or_paused_follower() {
    let mut node = Node::new(config(1), Disk::with_snapshot(snapshot(11, 11, &[1, 2])));
    node.lead();
    let refusal = Message {
        index: node.progress(2).next - 1,
        reject: true,
        ..message(MessageType::MsgAppendResponse, 2, 1, node.term())
    };
    node.step(refusal.clone());
    assert_eq!(node.sent().len(), 1);
    // While the snapshot is on its way, neither proposals nor old answers send more.
    node.propose("somedata").unwrap();
    let _ = node.try_step(refusal);
    assert!(node.sent().iter().all(
        |m| m.msg_type() != MessageType::MsgSnapshot && m.msg_type() != MessageType::MsgAppend
    ));
}

#[test]
fn restore_from_snap_msg() {
    let mut node = Node::of(2, &[1, 2]);
    node.step(carry(1, 2, 2, snapshot(11, 1, &[1, 2])));
    assert_eq!(
        (node.leader(), node.term(), node.role()),
        (Some(1), 2, Role::Follower)
    );
    assert_eq!(
        (node.last_index(), node.commit(), node.status().applied),
        (11, 11, 11)
    );
    assert_eq!(node.voters(), [1, 2]);
}

#[test]
fn restore_from_snap_with_overlapping_peers() {
    // The node knows the group {1, 2, 3}; by the snapshot it is {2, 3, 4}.
    let mut node = Node::of(3, &[1, 2, 3]);
    node.step(carry(2, 3, 2, snapshot(11, 1, &[2, 3, 4])));
    assert_eq!(node.voters(), [2, 3, 4]);
    node.sent();
    // It acts on it: only members are asked for votes, and strangers' votes do not count.
    node.campaign();
    let asked: Vec<PeerId> = node.sent().iter().map(|m| m.to).collect();
    assert_eq!(asked, [2, 4]);
    let _ = node.try_step(crate::support::node::vote_answer(1, 3, node.term(), false));
    assert_eq!(node.role(), Role::Candidate);
    node.step(crate::support::node::vote_answer(4, 3, node.term(), false));
    assert_eq!(node.role(), Role::Leader);
}

#[test]
fn slow_node_restore() {
    let mut net = Network::of(3);
    net.campaign(1);
    net.isolate(3);
    for _ in 0..=100 {
        net.propose(1, "some data");
    }
    net.node(1).compact_at_applied();
    net.heal();
    // The leader learns from a heartbeat's answer that node 3 is there again.
    net.beat(1);
    net.propose(1, "some data");
    net.propose(1, "some data");
    assert_eq!(net.nodes[&3].installed.len(), 1);
    assert_eq!(net.commit(3), net.commit(1));
    assert_eq!(net.nodes[&1].progress(3).state, ProgressState::Replicate);
    assert_eq!(net.nodes[&3].last_index(), net.nodes[&1].last_index());
}

#[test]
fn follower_keeps_its_log_after_snapshot_and_goes_on_from_it() {
    let mut node = Node::of(2, &[1, 2]);
    node.step(carry(1, 2, 2, snapshot(11, 1, &[1, 2])));
    node.sent();
    node.step(crate::support::node::append(
        1,
        2,
        2,
        (11, 1),
        &[(12, 2)],
        12,
    ));
    assert_eq!((node.log(), node.commit()), (vec![(12, 2)], 12));
    // A leader takes the same way: entry 12 on the follower counts.
    let mut leader = Node::new(config(1), Disk::with_snapshot(snapshot(11, 1, &[1, 2])));
    leader.lead();
    leader.step(append_answer(2, 1, leader.term(), 12));
    assert_eq!(leader.commit(), 12);
}

/// A node that was added lately may get a snapshot from before that: the log behind it adds
/// the node, and until then it cannot stand.
#[test]
fn restore_snapshot_older_than_own_membership() {
    let mut node = Node::of(4, &[]);
    node.step(carry(1, 4, 2, snapshot(11, 1, &[1, 2, 3])));
    assert_eq!((node.installed.len(), node.voters()), (1, vec![1, 2, 3]));
    node.pass(crate::support::node::ELECTION_TIMEOUT);
    let now = node.now;
    assert_eq!(
        node.raw.campaign(now),
        Err(strata_raft::Error::NotPromotable)
    );
}
