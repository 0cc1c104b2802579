//! Ticks that do nothing but count, counted at once.
//!
//! Two replicas with the same seed and the same history: one sees every tick, the other one has
//! those passed over that it calls quiet. They must never differ.

use std::collections::VecDeque;
use std::time::Duration;

use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::{Config, MemStorage, RawNode, Role};

const TICK: Duration = Duration::from_millis(50);

struct Node {
    raft: RawNode<MemStorage>,
    storage: MemStorage,
    now: Duration,
}

impl Node {
    fn new(voters: &[u64], pre_vote: bool, seed: u64) -> Node {
        let storage = MemStorage::new_with_conf_state(voters.to_vec(), Vec::new());
        let config = Config {
            id: 1,
            pre_vote,
            seed,
            quiet_after_start: false,
            ..Config::default()
        };
        let raft = RawNode::new(&config, storage.clone(), Duration::ZERO).unwrap();
        let now = Duration::ZERO;
        Node { raft, storage, now }
    }

    /// Takes Readys until there is none, synced at once, and returns what they send.
    fn sent(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while self.raft.has_ready() {
            let mut ready = self.raft.ready(self.now);
            self.storage.append(&ready.entries);
            if let Some(hard_state) = ready.hard_state {
                self.storage.set_hard_state(hard_state);
            }
            sent.append(&mut ready.messages);
            sent.append(&mut ready.persisted_messages);
            let number = ready.number;
            self.raft.advance_append_async(ready);
            self.raft.on_persist_ready(number);
        }
        sent
    }

    fn tick(&mut self) -> Vec<Message> {
        self.now += TICK;
        self.raft.tick(self.now);
        self.sent()
    }

    fn step(&mut self, message: Message) -> Vec<Message> {
        // Stale and unfit messages are refused by both.
        let _ = self.raft.step(self.now, message);
        self.sent()
    }
}

/// Whatever it asks for is granted, whatever it sends is accepted.
fn answers(sent: &[Message]) -> Vec<Message> {
    let answer = |message: &Message| {
        let msg_type = match message.msg_type() {
            MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
            MessageType::MsgHeartbeat => MessageType::MsgHeartbeatResponse,
            MessageType::MsgAppend => MessageType::MsgAppendResponse,
            _ => return None,
        };
        let entries = message.entries.len() as u64;
        Some(Message {
            msg_type: msg_type.into(),
            from: message.to,
            to: message.from,
            term: message.term,
            index: message.index + entries,
            ..Message::default()
        })
    };
    sent.iter().filter_map(answer).collect()
}

/// Ticks both, with messages in between, and returns how many ticks were passed over.
fn run(voters: &[u64], pre_vote: bool, seed: u64, heard: impl Fn(u64) -> bool) -> (usize, Role) {
    let mut every = Node::new(voters, pre_vote, seed);
    let mut resting = Node::new(voters, pre_vote, seed);
    let (mut waiting, mut passed) = (0, 0);
    for round in 0..400 {
        // The same decision as a driver's: what is quiet now stays so until something happens.
        let expected = every.tick();
        if waiting < resting.raft.quiet_ticks() {
            waiting += 1;
            resting.now += TICK;
            assert_eq!(expected, [], "seed {seed}, tick {round} was no quiet one");
        } else {
            resting.raft.pass_ticks(waiting);
            passed += std::mem::take(&mut waiting);
            assert_eq!(resting.tick(), expected, "seed {seed}, tick {round}");
        }
        let mut messages = VecDeque::from(answers(&expected));
        if heard(round) {
            messages = VecDeque::from([Message {
                msg_type: MessageType::MsgHeartbeat.into(),
                from: 2,
                to: 1,
                term: 1 + round,
                ..Message::default()
            }]);
        }
        while let Some(message) = messages.pop_front() {
            resting.raft.pass_ticks(waiting);
            passed += std::mem::take(&mut waiting);
            let sent = every.step(message.clone());
            assert_eq!(
                resting.step(message),
                sent,
                "seed {seed}, after tick {round}"
            );
            messages.extend(answers(&sent));
        }
        let roles = (
            resting.raft.status().soft_state.role,
            every.raft.status().soft_state.role,
        );
        assert_eq!(roles.0, roles.1, "seed {seed}, after tick {round}");
    }
    (passed, every.raft.status().soft_state.role)
}

#[test]
fn a_leader_rests_between_heartbeats() {
    for seed in 0..20 {
        for pre_vote in [false, true] {
            let (passed, role) = run(&[1, 2, 3], pre_vote, seed, |_| false);
            assert_eq!(role, Role::Leader);
            assert!(passed > 150, "seed {seed}: {passed} of 400 ticks");
        }
    }
}

#[test]
fn a_follower_rests_until_its_election_is_due() {
    for seed in 0..20 {
        // The leader falls silent now and then, for longer than an election takes to begin.
        let (passed, _) = run(&[1, 2, 3], true, seed, |round| {
            round % 60 < 30 && round % 2 == 0
        });
        assert!(passed > 150, "seed {seed}: {passed} of 400 ticks");
    }
}

#[test]
#[should_panic(expected = "would have done nothing")]
fn a_tick_that_does_something_cannot_be_passed_over() {
    let mut node = Node::new(&[1, 2, 3], false, 1);
    let quiet = node.raft.quiet_ticks();
    node.raft.pass_ticks(quiet + 1);
}
