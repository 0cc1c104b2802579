//! Three replicas in one thread, and the work that they are given.
//!
//! A round: each replica in turn takes its messages, the leader also its proposals, then one
//! Ready is taken and carried out; messages go straight into the others' inboxes. The leader
//! reads its inbox every `in_flight` rounds only: so many batches are on their way when the
//! first of them is answered.

use bytes::Bytes;

/// The replicas' ids.
pub const PEERS: [u64; 3] = [1, 2, 3];

/// Bytes of one proposal.
pub const PAYLOAD_BYTES: usize = 256;

/// Payloads are parts of one buffer of so many of them, as requests are of what a socket gave.
const PAYLOADS: usize = 4096;

/// Rounds in which an election, or the last answers, must have come through.
const CLOSING_ROUNDS: u64 = 10;

/// Place of the replica that leads.
const LEADER: usize = 0;

/// One replica with its log, of either crate.
pub trait Node {
    /// What replicas send one another.
    type Message;
    /// Starts an election.
    fn campaign(&mut self);
    /// Whether this replica leads.
    fn leads(&self) -> bool;
    /// Takes a message.
    fn step(&mut self, message: Self::Message);
    /// Appends a command at the leader.
    fn propose(&mut self, data: Bytes);
    /// Takes a Ready if there is one and carries it out.
    fn turn(&mut self, send: &mut impl FnMut(u64, Self::Message));
    /// What was applied so far.
    fn applied(&self) -> Applied;
}

/// What a replica has applied: enough to tell that all replicas applied the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries with data.
    pub entries: u64,
    /// Depends on their first bytes and on their order.
    mark: u64,
}

impl Applied {
    /// Counts one entry; a leader's empty one does not count.
    pub fn add(&mut self, data: &[u8]) {
        if let Some(&first) = data.first() {
            self.entries += 1;
            self.mark = self.mark.rotate_left(5) ^ u64::from(first);
        }
    }
}

/// What limits a replica, the same in both crates.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of entries in one append.
    pub message_bytes: u64,
    /// Appends on their way to one follower.
    pub inflight_messages: usize,
    /// Bytes of entries proposed and not committed.
    pub uncommitted_bytes: u64,
    /// Bytes of committed entries in one Ready.
    pub committed_bytes_per_ready: u64,
}

/// Those of the regions of a store, but for the appends on their way: without `batch_append`
/// the published crate sends one for each entry, so there are more than entries in flight.
pub const STORE_LIMITS: Limits = Limits {
    message_bytes: 1 << 20,
    inflight_messages: 1024,
    uncommitted_bytes: 16 << 20,
    committed_bytes_per_ready: 1 << 20,
};

/// How the proposals come.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Proposals before each Ready of the leader.
    pub batch: u64,
    /// Rounds until answers are read.
    pub in_flight: u64,
}

/// A group whose first replica leads.
pub struct Group<N: Node> {
    nodes: Vec<N>,
    inboxes: [Vec<N::Message>; PEERS.len()],
    /// Empty between turns; keeps its memory.
    taken: Vec<N::Message>,
    payloads: Bytes,
    proposed: u64,
    round: u64,
}

impl<N: Node> Group<N> {
    /// Makes the replicas and lets the first one be elected.
    pub fn new(make: impl Fn(u64) -> N) -> Self {
        let payloads: Vec<u8> = (0..PAYLOADS * PAYLOAD_BYTES)
            .map(|at| (at / PAYLOAD_BYTES % 251) as u8)
            .collect();
        let mut group = Self {
            nodes: PEERS.map(make).into(),
            inboxes: Default::default(),
            taken: Vec::new(),
            payloads: Bytes::from(payloads),
            proposed: 0,
            round: 0,
        };
        group.nodes[LEADER].campaign();
        for _ in 0..CLOSING_ROUNDS {
            group.round(0, true, false);
        }
        assert!(group.nodes[LEADER].leads(), "no leader was elected");
        group
    }

    /// Proposes `entries` in batches and returns when all replicas have applied them.
    pub fn run(&mut self, mix: Mix, entries: u64) {
        let end = self.proposed + entries;
        while self.proposed < end {
            let batch = mix.batch.min(end - self.proposed);
            let answers = self.round.is_multiple_of(mix.in_flight);
            self.round(batch, answers, false);
        }
        let behind = |node: &N| node.applied().entries < end;
        for _ in 0..CLOSING_ROUNDS {
            if self.nodes.iter().any(behind) {
                // A follower learns of a commit index from the append that comes after it.
                self.round(0, true, true);
            }
        }
        let applied = self.nodes[0].applied();
        assert_eq!(applied.entries, end, "entries applied by the leader");
        for node in &self.nodes {
            assert_eq!(node.applied(), applied, "replicas differ");
        }
    }

    /// One round: `batch` proposals, and an empty one if `empty`.
    fn round(&mut self, batch: u64, answers: bool, empty: bool) {
        self.round += 1;
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            if at != LEADER || answers {
                std::mem::swap(&mut self.taken, &mut self.inboxes[at]);
                for message in self.taken.drain(..) {
                    node.step(message);
                }
            }
            if at == LEADER {
                for _ in 0..batch {
                    let from = self.proposed as usize % PAYLOADS * PAYLOAD_BYTES;
                    node.propose(self.payloads.slice(from..from + PAYLOAD_BYTES));
                    self.proposed += 1;
                }
                if empty {
                    node.propose(Bytes::new());
                }
            }
            let inboxes = &mut self.inboxes;
            node.turn(&mut |to, message| inboxes[to as usize - 1].push(message));
        }
    }
}
