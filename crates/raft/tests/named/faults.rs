//! Faults that the source documents report of other implementations, and their kin.

use strata_proto::eraftpb::{ConfState, Message, MessageType, Snapshot};
use strata_raft::{
    Config, ProgressState, RawNode, Role, SnapshotStatus, Storage as _, StorageError,
};

use crate::network::Network;
use crate::snapshot::{carry, snapshot};
use crate::support::disk::Disk;
use crate::support::node::{Node, START, append, append_answer, change, config, message};

/// `nodes = []` after a restart: the membership must come from the snapshot.
#[test]
fn conf_state_restored_from_snapshot() {
    let mut node = Node::of(4, &[]);
    let mut received = snapshot(7, 3, &[1, 2, 4]);
    let wanted = ConfState {
        voters: vec![1, 2, 4],
        learners: vec![5],
        ..ConfState::default()
    };
    received.metadata.as_mut().unwrap().conf_state = Some(wanted.clone());
    node.step(carry(1, 4, 3, received));
    assert_eq!(node.status().conf_state, wanted);
    node.restart();
    assert_eq!(node.status().conf_state, wanted);
    // It acts on it: it stands for election and needs two votes of three.
    node.campaign();
    assert_eq!(node.role(), Role::Candidate);
    node.sent();
    node.step(crate::support::node::vote_answer(2, 4, node.term(), false));
    assert_eq!(node.role(), Role::Leader);
    assert_eq!(
        node.sent_of(MessageType::MsgAppend)
            .iter()
            .map(|m| m.to)
            .collect::<Vec<_>>(),
        [1, 2, 5]
    );
}

/// What a former term knew of the followers is void.
#[test]
fn new_leader_resets_next() {
    let mut net = Network::of(3);
    net.campaign(1);
    for _ in 0..5 {
        net.propose(1, "some data");
    }
    assert_eq!(net.nodes[&1].progress(2).matched, 6);
    // Node 3 leads for a term in which node 2 is away and node 1 loses nothing.
    net.campaign(3);
    net.propose(3, "some data");
    net.isolate(2);
    net.start_campaign(1);
    net.ignore(MessageType::MsgAppend);
    net.settle();
    let leader = &net.nodes[&1];
    assert_eq!((leader.role(), leader.last_index()), (Role::Leader, 9));
    for id in [2, 3] {
        let progress = leader.progress(id);
        assert_eq!(progress.state, ProgressState::Probe, "progress of {id}");
        assert_eq!(
            (progress.matched, progress.next),
            (0, 9),
            "progress of {id}"
        );
        assert_eq!(
            progress.inflights.len(),
            0,
            "appends of the old term to {id}"
        );
    }
}

/// A leader whose follower 2 of two needs the snapshot at `index` 5.
fn leader_with_compacted_log() -> Node {
    let mut node = Node::at(1, &[1, 2, 3], 1, 0, &[1, 1, 1, 1, 1], 5);
    node.settle();
    node.compact_at_applied();
    node.lead();
    node.step(append_answer(3, 1, 2, 6));
    node.sent();
    node
}

fn refusal(node: &Node) -> Message {
    Message {
        index: node.progress(2).next - 1,
        reject: true,
        ..message(MessageType::MsgAppendResponse, 2, 1, node.term())
    }
}

#[test]
fn snapshot_temporarily_unavailable_is_no_panic_and_asked_again() {
    let mut node = leader_with_compacted_log();
    node.disk.set_snapshot_unavailable(true);
    node.step(refusal(&node));
    assert!(node.disk.snapshot_requests() > 0);
    assert!(node.sent_of(MessageType::MsgSnapshot).is_empty());
    assert_eq!(node.role(), Role::Leader);
    // The others are served meanwhile.
    node.propose("some data").unwrap();
    assert!(
        node.sent_of(MessageType::MsgAppend)
            .iter()
            .any(|m| m.to == 3)
    );
    // Each heartbeat's answer asks again; a refused round must not block the follower.
    node.disk.set_snapshot_unavailable(false);
    node.tick();
    node.step(message(
        MessageType::MsgHeartbeatResponse,
        2,
        1,
        node.term(),
    ));
    let sent = node.sent_of(MessageType::MsgSnapshot);
    assert_eq!(sent.iter().map(|m| m.to).collect::<Vec<_>>(), [2]);
    assert_eq!(node.progress(2).state, ProgressState::Snapshot);
}

#[test]
fn probe_below_first_index_leads_to_snapshot_without_panic() {
    let mut node = leader_with_compacted_log();
    // Hints below, at and around the truncation point.
    for hint in [0, 1, 4] {
        let mut node = leader_with_compacted_log();
        node.step(Message {
            reject_hint: hint,
            log_term: 1,
            ..refusal(&node)
        });
        let kinds: Vec<_> = node.sent().iter().map(|m| m.msg_type()).collect();
        assert_eq!(kinds, [MessageType::MsgSnapshot], "hint {hint}");
    }
    // At the truncation point the log still answers with the term it remembers.
    node.step(Message {
        reject_hint: 5,
        log_term: 1,
        ..refusal(&node)
    });
    let sent = node.sent();
    let shown: Vec<_> = sent
        .iter()
        .map(|m| (m.msg_type(), m.index, m.log_term))
        .collect();
    let kinds: Vec<_> = shown.iter().map(|s| s.0).collect();
    assert!(
        kinds
            .iter()
            .all(|&k| k == MessageType::MsgAppend || k == MessageType::MsgSnapshot)
    );
}

#[test]
fn follower_asked_below_its_truncation_point_answers_its_commit() {
    let mut node = Node::of(2, &[1, 2]);
    node.step(carry(1, 2, 2, snapshot(11, 1, &[1, 2])));
    node.sent();
    for index in 0..=10 {
        node.step(append(
            1,
            2,
            2,
            (index, u64::from(index > 0)),
            &[(index + 1, 1)],
            11,
        ));
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "append behind {index}");
        assert_eq!(
            (sent[0].index, sent[0].reject),
            (11, false),
            "append behind {index}"
        );
    }
    assert_eq!((node.last_index(), node.commit()), (11, 11));
    assert_eq!(node.disk.term(10), Err(StorageError::Compacted));
    assert_eq!(node.disk.term(12), Err(StorageError::Unavailable));
}

#[test]
fn restarted_node_has_no_pending_snapshot() {
    let mut node = Node::of(2, &[1, 2]);
    node.step(carry(1, 2, 2, snapshot(11, 1, &[1, 2])));
    assert_eq!(node.installed.len(), 1);
    node.restart();
    assert!(
        !node.raw.has_ready(),
        "there is nothing to do after a restart"
    );
    node.step(append(1, 2, 2, (11, 1), &[(12, 2)], 12));
    assert_eq!(node.installed.len(), 1, "the old snapshot came up again");
    assert_eq!((node.last_index(), node.commit()), (12, 12));
}

#[test]
fn pending_snapshot_shows_once() {
    let mut node = Node::of(2, &[1, 2]);
    let now = node.now;
    node.raw
        .step(now, carry(1, 2, 2, snapshot(11, 1, &[1, 2])))
        .unwrap();
    assert!(node.raw.has_ready());
    let ready = node.raw.ready(now);
    let received = ready
        .snapshot
        .clone()
        .expect("the Ready holds the snapshot");
    let number = ready.number;
    node.disk.install(&received);
    if let Some(hard_state) = ready.hard_state {
        node.disk.set_hard_state(hard_state);
    }
    node.raw.advance_append_async(ready);
    // Not synced yet, and not shown again.
    while node.raw.has_ready() {
        let ready = node.raw.ready(now);
        assert_eq!(ready.snapshot, None);
        node.raw.advance_append_async(ready);
    }
    node.raw.on_persist_ready(number);
    node.raw.advance_apply_to(11);
    while node.raw.has_ready() {
        let ready = node.raw.ready(now);
        assert_eq!(
            (ready.snapshot.as_ref(), ready.committed_entries.len()),
            (None, 0)
        );
        node.raw.advance(ready);
    }
    assert_eq!(node.status().applied, 11);
}

/// No entry of the old log survives beside a newer snapshot.
#[test]
fn old_entries_dropped_by_newer_snapshot() {
    let mut node = Node::at(2, &[1, 2], 1, 0, &[1, 1, 1], 1);
    node.step(carry(1, 2, 4, snapshot(2, 3, &[1, 2])));
    // Entry 2 was of term 1, the snapshot's is of term 3: the tail belonged to another log.
    assert_eq!((node.last_index(), node.log()), (2, vec![]));
    assert_eq!(node.disk.term(2), Ok(3));
    assert_eq!(
        node.disk.entries(2, 3, u64::MAX),
        Err(StorageError::Compacted)
    );
}

#[test]
fn empty_snapshot_is_not_dereferenced() {
    for empty in [None, Some(Snapshot::default())] {
        let mut node = Node::at(2, &[1, 2], 1, 0, &[1], 0);
        let hollow = Message {
            snapshot: empty.map(Box::new),
            ..message(MessageType::MsgSnapshot, 1, 2, 2)
        };
        let _ = node.try_step(hollow);
        assert_eq!((node.installed.len(), node.log()), (0, vec![(1, 1)]));
    }
}

/// The start refuses a state in which `lastIndex < appliedIndex`, or a commit beyond the log,
/// with an error that can be reported.
#[test]
fn start_from_inconsistent_state_is_an_error() {
    let beyond = Node::at(1, &[1], 1, 0, &[1, 1], 2).disk;
    let config_beyond = Config {
        applied: 3,
        ..config(1)
    };
    assert!(RawNode::new(&config_beyond, beyond.clone(), START).is_err());
    let mut hard_state = beyond.content().hard_state;
    hard_state.commit = 9;
    beyond.set_hard_state(hard_state);
    assert!(RawNode::new(&config(1), beyond, START).is_err());
}

#[test]
fn failed_snapshot_goes_back_to_probing() {
    let mut node = leader_with_compacted_log();
    node.step(refusal(&node));
    assert_eq!(node.progress(2).state, ProgressState::Snapshot);
    node.sent();
    node.raw.report_snapshot(2, SnapshotStatus::Failure);
    let progress = node.progress(2);
    assert_eq!((progress.state, progress.next), (ProgressState::Probe, 1));
    // It is sent again, after a sign of life and not at once.
    node.settle();
    node.tick();
    node.step(message(
        MessageType::MsgHeartbeatResponse,
        2,
        1,
        node.term(),
    ));
    assert_eq!(node.sent_of(MessageType::MsgSnapshot).len(), 1);
}

#[test]
fn finished_snapshot_goes_on_behind_it() {
    let mut node = leader_with_compacted_log();
    node.step(refusal(&node));
    node.sent();
    node.raw.report_snapshot(2, SnapshotStatus::Finish);
    assert_eq!(node.progress(2).next, 6);
    // Its answer proves more than the report of its sending.
    node.step(append_answer(2, 1, node.term(), 5));
    assert_eq!(node.progress(2).state, ProgressState::Replicate);
    assert_eq!(node.progress(2).matched, 5);
}

/// A peer that is removed and added again has an empty log; its old answers mean nothing.
#[test]
fn peer_added_again_starts_with_unknown_progress() {
    let mut node = Node::of(1, &[1, 2, 3]);
    node.lead();
    node.acknowledge_all();
    use strata_proto::eraftpb::ConfChangeType::{AddNode, RemoveNode};
    node.raw.apply_conf_change(&change(RemoveNode, 3)).unwrap();
    node.raw.apply_conf_change(&change(AddNode, 3)).unwrap();
    assert_eq!(node.progress(3).matched, 0);
}

/// A log that is compacted up to its very end still knows where it ends.
#[test]
fn log_compacted_to_its_end_remembers_index_and_term() {
    let mut node = Node::at(1, &[1, 2], 3, 0, &[1, 3], 2);
    node.settle();
    node.compact_at_applied();
    node.restart();
    assert_eq!((node.status().first_index, node.last_index()), (3, 2));
    node.campaign();
    let request = node.sent_of(MessageType::MsgRequestVote).remove(0);
    assert_eq!((request.index, request.log_term), (2, 3));
}

/// Nothing is applied, on a leader, before its own disk has it (a crash would lose it).
#[test]
fn leader_applies_nothing_that_is_not_synced_here() {
    let disk = Disk::with_voters(&[1, 2, 3]);
    let mut node = Node::new(config(1), disk.clone());
    node.lead();
    node.acknowledge_all();
    let now = node.now;
    let mut numbers = Vec::new();
    for data in ["first", "second"] {
        node.raw.propose(Default::default(), data.into()).unwrap();
        let ready = node.raw.ready(now);
        numbers.push(ready.number);
        assert_eq!(ready.messages.len(), 2, "appends leave before the own sync");
        disk.append(&ready.entries);
        node.raw.advance_append_async(ready);
    }
    for from in [2, 3] {
        node.raw.step(now, append_answer(from, 1, 1, 3)).unwrap();
    }
    let hand_out = |node: &mut Node| {
        let mut indexes = Vec::new();
        while node.raw.has_ready() {
            let ready = node.raw.ready(now);
            indexes.extend(ready.committed_entries.iter().map(|e| e.index));
            node.raw.advance_append_async(ready);
        }
        indexes
    };
    assert!(hand_out(&mut node).is_empty(), "nothing is synced here");
    assert_eq!(node.commit(), 3, "the followers alone commit both");
    node.raw.on_persist_ready(numbers[0]);
    assert_eq!(hand_out(&mut node), [2], "only the first is synced here");
    node.raw.on_persist_ready(numbers[1]);
    assert_eq!(hand_out(&mut node), [3]);
}
