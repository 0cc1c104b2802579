//! A group of replicas over memory, driven to the end after each input: the plainest use of
//! the interface, and a check that all its parts work together.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, Message, Snapshot,
};
use strata_raft::{
    Config, Error, Index, LightReady, MemStorage, PeerId, RawNode, ReadState, Role, SnapshotStatus,
    Storage, conf_change_of,
};

struct Member {
    node: RawNode<MemStorage>,
    storage: MemStorage,
    applied: Vec<(Index, Bytes)>,
    reads: Vec<ReadState>,
}

struct Group {
    members: BTreeMap<PeerId, Member>,
    cut_off: Vec<PeerId>,
    now: Duration,
}

fn config(id: PeerId) -> Config {
    Config {
        id,
        quiet_after_start: false,
        seed: 7,
        ..Config::default()
    }
}

impl Member {
    fn new(config: &Config, storage: MemStorage) -> Self {
        Self {
            node: RawNode::new(config, storage.clone(), Duration::ZERO).unwrap(),
            storage,
            applied: Vec::new(),
            reads: Vec::new(),
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if let Some(change) = conf_change_of(&entry).unwrap() {
                let state = self.node.apply_conf_change(&change).unwrap();
                self.storage.set_conf_state(state);
            }
            self.applied.push((entry.index, entry.data));
        }
    }

    /// Handles one Ready; returns what it sends.
    fn drive(&mut self, now: Duration) -> Vec<Message> {
        let mut ready = self.node.ready(now);
        let mut out = std::mem::take(&mut ready.messages);
        if let Some(snapshot) = ready.snapshot.clone() {
            self.storage.apply_snapshot(snapshot).unwrap();
        }
        self.storage.append(&ready.entries);
        if let Some(hard_state) = ready.hard_state {
            self.storage.set_hard_state(hard_state);
        }
        out.append(&mut ready.persisted_messages);
        self.reads.append(&mut ready.read_states);
        self.apply(std::mem::take(&mut ready.committed_entries));
        let LightReady {
            commit_index,
            committed_entries,
            messages,
        } = self.node.advance(ready);
        if let Some(commit) = commit_index {
            let mut hard_state = self.storage.hard_state();
            hard_state.commit = commit;
            self.storage.set_hard_state(hard_state);
        }
        out.extend(messages);
        self.apply(committed_entries);
        self.node.advance_apply();
        out
    }
}

impl Group {
    fn new(ids: &[PeerId]) -> Self {
        let member = |&id: &PeerId| {
            let storage = MemStorage::new_with_conf_state(ids.to_vec(), []);
            (id, Member::new(&config(id), storage))
        };
        Self {
            members: ids.iter().map(member).collect(),
            cut_off: Vec::new(),
            now: Duration::ZERO,
        }
    }

    fn at(&mut self, id: PeerId) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    fn settle(&mut self) {
        let mut wire = VecDeque::new();
        loop {
            for member in self.members.values_mut() {
                while member.node.has_ready() {
                    wire.extend(member.drive(self.now));
                }
            }
            let Some(message) = wire.pop_front() else {
                return;
            };
            self.deliver(message);
        }
    }

    fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        let lost = self.cut_off.contains(&from) || self.cut_off.contains(&to);
        let snapshot = message.snapshot.is_some();
        if let Some(member) = self.members.get_mut(&to).filter(|_| !lost) {
            match member.node.step(self.now, message) {
                Ok(()) | Err(Error::UnknownPeer { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if snapshot {
            let status = if lost {
                SnapshotStatus::Failure
            } else {
                SnapshotStatus::Finish
            };
            self.at(from).node.report_snapshot(to, status);
        }
    }

    fn pass(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += Duration::from_millis(50);
            for member in self.members.values_mut() {
                member.node.tick(self.now);
            }
            self.settle();
        }
    }

    fn campaign(&mut self, id: PeerId) {
        let now = self.now;
        self.at(id).node.campaign(now).unwrap();
        self.settle();
        assert_eq!(self.role(id), Role::Leader);
    }

    fn role(&mut self, id: PeerId) -> Role {
        self.at(id).node.status().soft_state.role
    }

    fn propose(&mut self, id: PeerId, data: &'static str) -> Index {
        let data = Bytes::from_static(data.as_bytes());
        let index = self.at(id).node.propose(Bytes::new(), data).unwrap();
        self.settle();
        index
    }

    fn change(&mut self, id: PeerId, changes: &[(ConfChangeType, PeerId)]) {
        let changes = changes
            .iter()
            .map(|&(change_type, node_id)| ConfChangeSingle {
                change_type: change_type as i32,
                node_id,
            })
            .collect();
        let change = ConfChangeV2 {
            changes,
            ..ConfChangeV2::default()
        };
        let node = &mut self.at(id).node;
        node.propose_conf_change(Bytes::new(), change).unwrap();
        self.settle();
    }

    fn data(&mut self, id: PeerId) -> Vec<String> {
        let text = |(_, data): &(Index, Bytes)| String::from_utf8_lossy(data).into_owned();
        let all = self.at(id).applied.iter().map(text);
        all.filter(|data| data.chars().all(|c| c.is_ascii_lowercase()) && !data.is_empty())
            .collect()
    }
}

#[test]
fn a_group_elects_replicates_and_catches_up() {
    let mut group = Group::new(&[1, 2, 3]);
    group.campaign(1);
    group.propose(1, "a");
    group.cut_off = vec![3];
    for data in ["b", "c", "d"] {
        group.propose(1, data);
    }
    group.cut_off.clear();
    group.pass(4);
    for id in [1, 2, 3] {
        assert_eq!(group.data(id), ["a", "b", "c", "d"], "replica {id}");
    }
}

#[test]
fn a_leader_alone_steps_down_and_another_takes_over() {
    let mut group = Group::new(&[1, 2, 3]);
    group.campaign(1);
    group.cut_off = vec![1];
    group.pass(40);
    assert_ne!(group.role(1), Role::Leader);
    let leaders = [2, 3]
        .into_iter()
        .filter(|&id| group.role(id) == Role::Leader);
    assert_eq!(leaders.count(), 1);
    let term = group.at(1).node.status().hard_state.term;
    assert_eq!(term, 1, "pre-vote keeps the term of one that is cut off");
}

#[test]
fn a_follower_behind_the_truncation_point_gets_a_snapshot() {
    let mut group = Group::new(&[1, 2, 3]);
    group.campaign(1);
    group.cut_off = vec![3];
    for data in ["a", "b", "c"] {
        group.propose(1, data);
    }
    let storage = group.at(1).storage.clone();
    storage
        .create_snapshot(3, None, Bytes::from_static(b"ab"))
        .unwrap();
    storage.compact(3).unwrap();
    group.cut_off.clear();
    group.pass(4);
    let Snapshot { data, metadata } = group.at(3).storage.kept_snapshot();
    assert_eq!((&data[..], metadata.unwrap().index), (&b"ab"[..], 3));
    assert_eq!(group.data(3), ["c"]);
    assert_eq!(group.at(3).storage.first_index(), Ok(4));
    group.propose(1, "d");
    assert_eq!(group.data(3), ["c", "d"]);
}

#[test]
fn leases_and_read_rounds_confirm_the_leader() {
    let mut group = Group::new(&[1, 2, 3]);
    group.campaign(1);
    assert_eq!(
        group.at(1).node.lease_until(),
        None,
        "no round was answered"
    );
    let ask = Bytes::from_static(b"ask");
    group.at(1).node.read_index(ask.clone()).unwrap();
    group.at(2).node.read_index(ask.clone()).unwrap();
    group.settle();
    for id in [1, 2] {
        let read = ReadState {
            index: 1,
            request_context: ask.clone(),
        };
        assert_eq!(group.at(id).reads, [read], "replica {id}");
    }
    let sent = group.now;
    let lease = Some(sent + Duration::from_millis(360));
    assert_eq!(group.at(1).node.lease_until(), lease);
    group.at(1).node.transfer_leader(2);
    assert_eq!(group.at(1).node.lease_until(), None);
    group.settle();
    assert_eq!(group.role(2), Role::Leader);
}

#[test]
fn members_come_and_go_one_by_one_and_jointly() {
    use ConfChangeType::{AddNode, RemoveNode};
    let mut group = Group::new(&[1]);
    group.campaign(1);
    group.propose(1, "a");
    for id in [2, 3, 4] {
        let storage = MemStorage::new_with_conf_state([1], []);
        group.members.insert(id, Member::new(&config(id), storage));
        if id < 4 {
            group.change(1, &[(AddNode, id)]);
        }
    }
    group.pass(4);
    assert_eq!(group.data(3), ["a"]);
    group.change(1, &[(AddNode, 4), (RemoveNode, 1)]);
    group.pass(40);
    assert_ne!(group.role(1), Role::Leader);
    let leader = [2, 3, 4]
        .into_iter()
        .find(|&id| group.role(id) == Role::Leader);
    let leader = leader.expect("the rest elects a leader");
    group.propose(leader, "b");
    group.pass(4);
    for id in [2, 3, 4] {
        let status = group.at(id).node.status();
        assert_eq!(status.conf_state.voters, [2, 3, 4]);
        assert!(status.conf_state.voters_outgoing.is_empty());
        assert_eq!(group.data(id), ["a", "b"]);
    }
}
