//! A network of nodes in one process that delivers at once.
//!
//! `deliver` passes messages on, in the order in which they were sent, until nothing is on
//! its way. Links can be cut and kinds of messages ignored. All nodes share one clock, which
//! moves with ticks and with `pass`; nothing else makes time pass, so a test decides whether
//! a promise to a leader has run out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::{Index, PeerId, Role};

use crate::support::disk::Disk;
use crate::support::node::{ELECTION_TIMEOUT, Node, START, TICK, config};

/// Nodes 1 to n and what is between them.
pub struct Network {
    pub nodes: BTreeMap<PeerId, Node>,
    pub now: Duration,
    cut: BTreeSet<(PeerId, PeerId)>,
    ignored: Vec<MessageType>,
}

impl Network {
    /// `count` fresh nodes.
    pub fn of(count: u64) -> Network {
        let voters: Vec<PeerId> = (1..=count).collect();
        Network::with(
            voters
                .iter()
                .map(|&id| Some(Node::of(id, &voters)))
                .collect(),
        )
    }

    /// `count` fresh nodes with pre-vote and quorum check, as in production.
    pub fn guarded(count: u64) -> Network {
        let voters: Vec<PeerId> = (1..=count).collect();
        let node = |&id: &PeerId| {
            let config = strata_raft::Config {
                check_quorum: true,
                pre_vote: true,
                ..config(id)
            };
            Some(Node::new(config, Disk::with_voters(&voters)))
        };
        Network::with(voters.iter().map(node).collect())
    }

    /// The given nodes; `None` is a peer that never answers.
    pub fn with(nodes: Vec<Option<Node>>) -> Network {
        let nodes = nodes
            .into_iter()
            .flatten()
            .map(|node| (node.id, node))
            .collect();
        Network {
            nodes,
            now: START,
            cut: BTreeSet::new(),
            ignored: Vec::new(),
        }
    }

    pub fn node(&mut self, id: PeerId) -> &mut Node {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.now = now;
        node
    }

    /// Lets `elapsed` pass without ticks.
    pub fn pass(&mut self, elapsed: Duration) {
        self.now += elapsed;
    }

    /// Loses everything between `one` and `other` from now on.
    pub fn cut(&mut self, one: PeerId, other: PeerId) {
        self.cut.extend([(one, other), (other, one)]);
    }

    /// Cuts `id` off from all others.
    pub fn isolate(&mut self, id: PeerId) {
        let others: Vec<PeerId> = self.nodes.keys().copied().filter(|&o| o != id).collect();
        others.into_iter().for_each(|other| self.cut(id, other));
    }

    /// Loses all messages of `kind` from now on.
    pub fn ignore(&mut self, kind: MessageType) {
        self.ignored.push(kind);
    }

    /// Messages pass everywhere again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.ignored.clear();
    }

    fn passes(&self, message: &Message) -> bool {
        !self.cut.contains(&(message.from, message.to))
            && !self.ignored.contains(&message.msg_type())
    }

    /// Collects what all nodes have sent.
    fn collect(&mut self) -> Vec<Message> {
        let now = self.now;
        let outboxes = self.nodes.values_mut().map(|node| {
            node.now = now;
            node.sent()
        });
        outboxes.flatten().collect()
    }

    /// Steps `first`, then everything that follows from it.
    pub fn deliver(&mut self, first: Vec<Message>) {
        let mut queue = VecDeque::from(first);
        queue.extend(self.collect());
        while let Some(message) = queue.pop_front() {
            if !self.passes(&message) {
                continue;
            }
            let now = self.now;
            if let Some(node) = self.nodes.get_mut(&message.to) {
                node.now = now;
                // A refused message is a dropped one: the sender may be out of date.
                let _ = node.try_step(message);
                queue.extend(node.sent());
            }
        }
    }

    /// Lets everything that is on its way arrive.
    pub fn settle(&mut self) {
        self.deliver(Vec::new());
    }

    /// `id` campaigns after a quiet election timeout.
    pub fn campaign(&mut self, id: PeerId) {
        self.start_campaign(id);
        self.settle();
    }

    /// `id` campaigns; nothing is delivered yet.
    pub fn start_campaign(&mut self, id: PeerId) {
        self.pass(ELECTION_TIMEOUT);
        let node = self.node(id);
        node.raw.campaign(node.now).expect("the node may campaign");
        node.settle();
    }

    /// `id` proposes `data`, which must be taken.
    pub fn propose(&mut self, id: PeerId, data: &str) -> Index {
        let index = self
            .node(id)
            .propose(data)
            .expect("the leader takes the proposal");
        self.settle();
        index
    }

    /// One tick passes on the clock, but only `id` takes notice: a leader sends heartbeats.
    pub fn beat(&mut self, id: PeerId) {
        self.pass(TICK);
        let node = self.node(id);
        node.raw.tick(node.now);
        self.settle();
    }

    /// One tick passes on all nodes.
    pub fn tick(&mut self) {
        self.pass(TICK);
        let now = self.now;
        for node in self.nodes.values_mut() {
            node.now = now;
            node.raw.tick(now);
        }
        self.settle();
    }

    pub fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }

    /// `id` begins to hand leadership to `to`.
    pub fn transfer(&mut self, id: PeerId, to: PeerId) {
        self.node(id).raw.transfer_leader(to);
        self.settle();
    }

    pub fn role(&self, id: PeerId) -> Role {
        self.nodes[&id].role()
    }

    pub fn commit(&self, id: PeerId) -> Index {
        self.nodes[&id].commit()
    }

    /// Asserts that `leader` leads, and that each other node follows and knows it.
    pub fn assert_leader(&self, leader: PeerId) {
        for (&id, node) in &self.nodes {
            let wanted = if id == leader {
                Role::Leader
            } else {
                Role::Follower
            };
            assert_eq!(
                node.role(),
                wanted,
                "role of node {id} under leader {leader}"
            );
            assert_eq!(node.leader(), Some(leader), "leader known to node {id}");
        }
    }

    /// Asserts that all nodes hold the same log and commit index.
    pub fn assert_same_logs(&self) {
        let first = self.nodes.values().next().expect("there is a node");
        for node in self.nodes.values() {
            assert_eq!(
                node.disk.content().entries,
                first.disk.content().entries,
                "log of {}",
                node.id
            );
            assert_eq!(node.commit(), first.commit(), "commit index of {}", node.id);
        }
    }
}
