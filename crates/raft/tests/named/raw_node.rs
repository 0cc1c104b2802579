//! TinyKV 2A and 3A: the handle itself, seen through its Readys.

use prost::Message as _;
use strata_proto::eraftpb::{
    ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, EntryType, HardState,
};
use strata_raft::{Config, EntryId, RawNode, Role, SoftState};

use crate::snapshot::snapshot;
use crate::support::disk::Disk;
use crate::support::node::{
    ELECTION_TIMEOUT, Node, START, append_answer, change, changes, config, disk_at, entries_of,
};

use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};

#[test]
fn raw_node_propose_and_conf_change() {
    let explicit = |list: &[_]| ConfChangeV2 {
        transition: ConfChangeTransition::Explicit.into(),
        ..changes(list)
    };
    let conf =
        |voters: &[u64], outgoing: &[u64], learners: &[u64], next: &[u64], auto_leave| ConfState {
            voters: voters.to_vec(),
            voters_outgoing: outgoing.to_vec(),
            learners: learners.to_vec(),
            learners_next: next.to_vec(),
            auto_leave,
        };
    // A change proposed to the single node 1; the membership right after it, and, where
    // that is joint, after leaving it.
    let cases: [(ConfChangeV2, ConfState, Option<ConfState>); 7] = [
        (
            change(AddNode, 2),
            conf(&[1, 2], &[], &[], &[], false),
            None,
        ),
        (
            change(AddLearnerNode, 2),
            conf(&[1], &[], &[2], &[], false),
            None,
        ),
        (
            explicit(&[(AddLearnerNode, 2)]),
            conf(&[1], &[1], &[2], &[], false),
            Some(conf(&[1], &[], &[2], &[], false)),
        ),
        (
            ConfChangeV2 {
                transition: ConfChangeTransition::Implicit.into(),
                ..change(AddLearnerNode, 2)
            },
            conf(&[1], &[1], &[2], &[], true),
            Some(conf(&[1], &[], &[2], &[], false)),
        ),
        (
            changes(&[(AddNode, 2), (AddNode, 1), (AddLearnerNode, 3)]),
            conf(&[1, 2], &[1], &[3], &[], true),
            Some(conf(&[1, 2], &[], &[3], &[], false)),
        ),
        (
            explicit(&[(AddLearnerNode, 2), (AddNode, 1), (AddLearnerNode, 3)]),
            conf(&[1], &[1], &[2, 3], &[], false),
            Some(conf(&[1], &[], &[2, 3], &[], false)),
        ),
        (
            // The voter that becomes a learner stays a voter of the outgoing half until then.
            explicit(&[(AddNode, 2), (AddLearnerNode, 1), (AddLearnerNode, 3)]),
            conf(&[2], &[1], &[3], &[1], false),
            Some(conf(&[2], &[], &[1, 3], &[], false)),
        ),
    ];
    for (change, entered, left) in cases {
        propose_and_apply(&change, &entered, left.as_ref());
    }
}

/// Proposes a command and `change` on a single node and follows it through its Readys.
fn propose_and_apply(change: &ConfChangeV2, entered: &ConfState, left: Option<&ConfState>) {
    let mut node = Node::of(1, &[1]);
    node.lead();
    let mut seen = Vec::new();
    let at = node.last_index() + 2;
    node.raw
        .propose(Default::default(), "somedata".into())
        .unwrap();
    assert_eq!(
        node.raw
            .propose_conf_change(Default::default(), change.clone()),
        Ok(at)
    );
    while node.raw.has_ready() && seen.is_empty() {
        let ready = node.raw.ready(node.now);
        node.disk.append(&ready.entries);
        let light = node.raw.advance_append(ready.clone());
        for entry in ready
            .committed_entries
            .iter()
            .chain(&light.committed_entries)
        {
            if entry.index == at {
                seen.push(entry.clone());
                let state = node.raw.apply_conf_change(change).unwrap();
                assert_eq!(sorted(state), *entered, "{change:?}");
            }
            node.raw.advance_apply_to(entry.index);
        }
    }
    // The entry holds the change as it was proposed.
    let entry = seen.first().expect("the change was committed");
    assert_eq!(entry.entry_type(), EntryType::EntryConfChangeV2);
    let held = ConfChangeV2::decode(entry.data.clone()).unwrap();
    assert_eq!(held.changes, change.changes);
    // Whoever is told to leave by itself does so: an entry of its own is in the log.
    assert_eq!(
        node.status().last_index,
        at + u64::from(entered.auto_leave),
        "{change:?}"
    );
    if let Some(left) = left {
        let state = node
            .raw
            .apply_conf_change(&ConfChangeV2::default())
            .unwrap();
        assert_eq!(sorted(state), *left, "{change:?}");
    }
}

fn sorted(mut state: ConfState) -> ConfState {
    let lists = [
        &mut state.voters,
        &mut state.voters_outgoing,
        &mut state.learners,
        &mut state.learners_next,
    ];
    lists.into_iter().for_each(|list| list.sort_unstable());
    state
}

#[test]
fn raw_node_propose_add_duplicate_node() {
    let mut node = Node::of(1, &[1]);
    node.lead();
    let first = node.propose_change(change(AddNode, 1)).unwrap();
    let again = node.propose_change(change(AddNode, 1)).unwrap();
    // The change to the same effect did not block the next ones.
    let other = node.propose_change(change(AddNode, 2)).unwrap();
    assert_eq!((first, again, other), (2, 3, 4));
    let applied: Vec<_> = node
        .applied
        .iter()
        .map(EntryId::of)
        .map(|id| id.index)
        .collect();
    assert_eq!(applied, [1, 2, 3, 4]);
    assert_eq!(node.applied[1].data, node.applied[2].data);
    assert_eq!(node.voters(), [1, 2]);
    node.step(append_answer(2, 1, 1, 4));
    node.propose_change(change(RemoveNode, 2)).unwrap();
}

#[test]
fn raw_node_start() {
    let disk = Disk::with_voters(&[1]);
    let mut raw = RawNode::new(&config(1), disk.clone(), START).unwrap();
    assert!(!raw.has_ready(), "an idle node has something to do");
    let now = START + ELECTION_TIMEOUT;
    raw.campaign(now).unwrap();

    // The election and the new leader's empty entry are to be saved.
    let mut entries = Vec::new();
    let mut roles = Vec::new();
    while raw.has_ready() {
        let ready = raw.ready(now);
        assert!(ready.snapshot.is_none());
        assert!(ready.messages.is_empty() && ready.persisted_messages.is_empty());
        roles.extend(ready.soft_state.map(|s| s.role));
        entries.extend(ready.entries.clone());
        disk.append(&ready.entries);
        if let Some(hard_state) = ready.hard_state {
            assert_eq!((hard_state.term, hard_state.vote), (1, 1));
        }
        raw.advance(ready);
    }
    assert_eq!(entries, entries_of(&[(1, 1)]));
    assert_eq!(roles.last(), Some(&Role::Leader));

    raw.propose(Default::default(), "foo".into()).unwrap();
    assert!(raw.has_ready());
    let ready = raw.ready(now);
    let saved: Vec<_> = ready
        .entries
        .iter()
        .map(|e| (e.index, e.term, &e.data[..]))
        .collect();
    assert_eq!(saved, [(2, 1, &b"foo"[..])]);
    assert!(ready.must_sync);
    assert!(
        ready.committed_entries.is_empty(),
        "applied before it was synced"
    );
    disk.append(&ready.entries);
    let light = raw.advance(ready);
    let committed: Vec<_> = light.committed_entries.iter().map(|e| e.index).collect();
    assert_eq!((committed, light.commit_index), (vec![2], Some(2)));
    raw.advance_apply_to(2);
    while raw.has_ready() {
        let ready = raw.ready(now);
        assert!(ready.committed_entries.is_empty() && ready.entries.is_empty());
        raw.advance(ready);
    }
}

#[test]
fn raw_node_restart() {
    let disk = disk_at(&[1], 1, 0, &[1, 1], 1);
    let mut raw = RawNode::new(&config(1), disk, START).unwrap();
    assert!(raw.has_ready());
    let ready = raw.ready(START);
    // Nothing to save: it is saved already. The committed entry is to be applied.
    assert_eq!(
        (
            ready.hard_state,
            ready.snapshot.as_ref(),
            ready.entries.len()
        ),
        (None, None, 0)
    );
    assert!(!ready.must_sync);
    assert_eq!(ready.committed_entries, entries_of(&[(1, 1)]));
    let light = raw.advance(ready);
    assert!(light.committed_entries.is_empty());
    raw.advance_apply_to(1);
    assert!(!raw.has_ready());
}

#[test]
fn raw_node_restart_with_applied_index_hands_nothing_out_twice() {
    let disk = disk_at(&[1], 1, 0, &[1, 1, 1], 2);
    let config = Config {
        applied: 2,
        ..config(1)
    };
    let raw = RawNode::new(&config, disk, START).unwrap();
    assert!(!raw.has_ready());
    assert_eq!(raw.status().applied, 2);
}

#[test]
fn raw_node_restart_from_snapshot() {
    let disk = Disk::with_snapshot(snapshot(2, 1, &[1, 2]));
    disk.append(&entries_of(&[(3, 1)]));
    disk.set_hard_state(HardState {
        term: 1,
        vote: 0,
        commit: 3,
    });
    disk.sync();
    let mut raw = RawNode::new(&config(1), disk, START).unwrap();
    assert_eq!(raw.status().first_index, 3);
    let ready = raw.ready(START);
    assert_eq!(
        ready.snapshot, None,
        "a restarted node reports its old snapshot"
    );
    assert_eq!(
        (ready.hard_state, ready.entries.len(), ready.must_sync),
        (None, 0, false)
    );
    assert_eq!(ready.committed_entries, entries_of(&[(3, 1)]));
    raw.advance(ready);
    raw.advance_apply_to(3);
    assert!(!raw.has_ready());
    assert_eq!(raw.status().soft_state, SoftState::default());
}
