//! The nodes of a script, the messages between them, and the driver's work.
//!
//! Every input to a node is followed by `drive`, which takes its Readys until there is none:
//! writes to the node's disk, sends, applies. What is written counts as synced at once,
//! unless the node's disk is slow (`persist N slow`): then `persist N` syncs the oldest
//! write, and answers that promise something wait for it. A crash loses what is not synced.
//! Messages wait in one queue, in the order in which they were sent, until a command
//! delivers or loses them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use strata_proto::eraftpb::{ConfState, Entry, Message, MessageType};
use strata_raft::{Config, Index, PeerId, RawNode, Ready, Role, Status, Term, conf_change_of};

use crate::render;
use crate::support::disk::{Content, Disk};
use crate::support::node::{START, TICK};

/// A write on its way to the disk.
struct Write {
    number: u64,
    content: Content,
    messages: Vec<Message>,
}

/// One node with its disk and its state machine.
pub struct Peer {
    pub raw: RawNode<Disk>,
    pub disk: Disk,
    pub config: Config,
    pub up: bool,
    pub slow_disk: bool,
    writes: VecDeque<Write>,
    applied: Index,
}

/// All of it.
#[derive(Default)]
pub struct World {
    pub peers: BTreeMap<PeerId, Peer>,
    pub elapsed: Duration,
    pub queue: VecDeque<Message>,
    /// One-way links that lose everything.
    pub cut: BTreeSet<(PeerId, PeerId)>,
    /// Kinds of messages that are lost.
    pub dropped: Vec<MessageType>,
    /// The membership at the beginning of the script.
    pub members: ConfState,
    /// Settings of nodes that are made from now on.
    pub config: Config,
    pub output: Vec<String>,
    leaders: BTreeMap<Term, PeerId>,
    applied: BTreeMap<Index, Entry>,
}

impl World {
    pub fn now(&self) -> Duration {
        START + self.elapsed
    }

    pub fn say(&mut self, line: String) {
        self.output.push(line);
    }

    pub fn add_peer(&mut self, id: PeerId, disk: Disk) {
        let config = Config {
            id,
            seed: id,
            ..self.config.clone()
        };
        let raw = RawNode::new(&config, disk.clone(), self.now()).expect("the node starts");
        let peer = Peer {
            raw,
            disk,
            config,
            up: true,
            slow_disk: false,
            writes: VecDeque::new(),
            applied: 0,
        };
        self.peers.insert(id, peer);
    }

    pub fn peer(&mut self, id: PeerId) -> &mut Peer {
        self.peers
            .get_mut(&id)
            .unwrap_or_else(|| panic!("there is no node {id}"))
    }

    pub fn status(&self, id: PeerId) -> Status {
        self.peers[&id].raw.status()
    }

    pub fn tick(&mut self, id: PeerId) {
        let now = self.now();
        self.peer(id).raw.tick(now);
        self.drive(id);
    }

    pub fn pass_tick(&mut self) {
        self.elapsed += TICK;
    }

    /// Hands `message` to its receiver, or loses it.
    pub fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        let lost = self.cut.contains(&(from, to))
            || self.dropped.contains(&message.msg_type())
            || self.peers.get(&to).is_none_or(|peer| !peer.up);
        if lost {
            return self.lose(&message);
        }
        self.say(render::message(&message, ">"));
        let now = self.now();
        if let Err(error) = self.peer(to).raw.step(now, message) {
            self.say(format!("{to} refuses: {error}"));
        }
        self.drive(to);
    }

    pub fn lose(&mut self, message: &Message) {
        self.say(render::message(message, "x>"));
    }

    /// Takes every Ready of `id`.
    pub fn drive(&mut self, id: PeerId) {
        while self.peers[&id].raw.has_ready() {
            let now = self.now();
            let ready = self.peer(id).raw.ready(now);
            self.carry_out(id, ready);
        }
        self.check();
    }

    fn carry_out(&mut self, id: PeerId, mut ready: Ready) {
        if let Some(soft_state) = ready.soft_state {
            let term = self.status(id).hard_state.term;
            let leader = match soft_state.leader {
                Some(leader) if leader != id => format!(" of {leader}"),
                _ => String::new(),
            };
            self.say(format!(
                "{id} is {}{leader} in term {term}",
                render::role(soft_state.role)
            ));
        }
        self.queue.extend(ready.messages.drain(..));
        for read in &ready.read_states {
            let context = String::from_utf8_lossy(&read.request_context).into_owned();
            self.say(format!("{id} may read {context} at {}", read.index));
        }
        self.write(id, &ready);
        let messages = std::mem::take(&mut ready.persisted_messages);
        let committed = std::mem::take(&mut ready.committed_entries);
        let number = ready.number;
        let peer = self.peer(id);
        peer.writes.push_back(Write {
            number,
            content: peer.disk.content(),
            messages,
        });
        let snapshot = ready
            .snapshot
            .as_ref()
            .and_then(|s| s.metadata.as_ref())
            .map(|m| m.index);
        peer.raw.advance_append_async(ready);
        if !peer.slow_disk {
            while self.sync_one(id) {}
        }
        if let Some(index) = snapshot {
            let peer = self.peer(id);
            peer.applied = index;
            peer.raw.advance_apply_to(index);
        }
        self.apply(id, committed);
    }

    fn write(&mut self, id: PeerId, ready: &Ready) {
        let disk = self.peer(id).disk.clone();
        if let Some(snapshot) = &ready.snapshot {
            let metadata = snapshot.metadata.clone().expect("a snapshot has metadata");
            disk.install(snapshot);
            self.say(format!(
                "{id} installs snapshot {}@{}",
                metadata.index, metadata.term
            ));
        }
        if !ready.entries.is_empty() {
            self.say(format!("{id} appends {}", render::entries(&ready.entries)));
        }
        disk.append(&ready.entries);
        if let Some(hard_state) = ready.hard_state {
            disk.set_hard_state(hard_state);
        }
    }

    /// Syncs the oldest write of `id` that is not synced; false if there is none.
    pub fn sync_one(&mut self, id: PeerId) -> bool {
        let peer = self.peer(id);
        let Some(write) = peer.writes.pop_front() else {
            return false;
        };
        peer.disk.sync_to(write.content);
        peer.raw.on_persist_ready(write.number);
        self.queue.extend(write.messages);
        true
    }

    fn apply(&mut self, id: PeerId, entries: Vec<Entry>) {
        for entry in entries {
            self.say(format!("{id} applies {}", render::entry(&entry)));
            let known = self
                .applied
                .entry(entry.index)
                .or_insert_with(|| entry.clone());
            assert_eq!(
                *known, entry,
                "state machine safety at index {}",
                entry.index
            );
            let peer = self.peers.get_mut(&id).expect("the node exists");
            if let Some(change) = conf_change_of(&entry).expect("our own change decodes") {
                match peer.raw.apply_conf_change(&change) {
                    Ok(state) => {
                        peer.disk.set_conf_state_durably(state.clone());
                        self.output
                            .push(format!("{id} knows {}", render::conf_state(&state)));
                    }
                    Err(error) => self
                        .output
                        .push(format!("{id} refuses the change: {error}")),
                }
            }
            let peer = self.peers.get_mut(&id).expect("the node exists");
            peer.applied = entry.index;
            peer.raw.advance_apply_to(entry.index);
        }
    }

    /// Loses memory and unsynced writes of `id`.
    pub fn crash(&mut self, id: PeerId) {
        let peer = self.peer(id);
        peer.up = false;
        peer.writes.clear();
        peer.disk.crash();
    }

    /// Starts `id` again from its disk; what its state machine applied is kept.
    pub fn restart(&mut self, id: PeerId, quiet_after_start: bool) {
        let now = self.now();
        let peer = self.peer(id);
        let config = Config {
            applied: peer.applied,
            quiet_after_start,
            ..peer.config.clone()
        };
        peer.raw = RawNode::new(&config, peer.disk.clone(), now).expect("the node restarts");
        peer.up = true;
        self.drive(id);
    }

    /// No two leaders in one term, none in a term that had another.
    fn check(&mut self) {
        for (&id, peer) in self.peers.iter().filter(|(_, peer)| peer.up) {
            let status = peer.raw.status();
            if status.soft_state.role == Role::Leader {
                let term = status.hard_state.term;
                let known = *self.leaders.entry(term).or_insert(id);
                assert_eq!(known, id, "two leaders in term {term}");
            }
        }
    }
}
