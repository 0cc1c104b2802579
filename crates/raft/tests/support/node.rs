//! One raw node with its disk, its clock, and what it has sent and applied.
//!
//! `settle` does a driver's work in its plainest form: every Ready is written, synced,
//! applied and advanced at once, and what it sends is kept in `outbox`. Membership changes
//! are applied to the node as they come up.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState, Message,
    MessageType, Snapshot,
};
use strata_raft::{
    Config, Error, Index, PeerId, Progress, RawNode, ReadState, Ready, Role, Status, Storage as _,
    Term, conf_change_of,
};

use super::disk::Disk;

/// What one tick adds to the clock.
pub const TICK: Duration = Duration::from_millis(50);
/// Election timeout of all tests, in ticks: 10 to 19 ticks.
pub const ELECTION_TICKS: usize = 10;
/// The election timeout on the clock.
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(50 * ELECTION_TICKS as u64);
/// The clock at the start of each test: not 0, so that "never" and "at the start" differ.
pub const START: Duration = Duration::from_secs(100);

/// The plain protocol of the Raft paper: no pre-vote, no quorum check, ready to vote at once.
pub fn config(id: PeerId) -> Config {
    Config {
        id,
        election_ticks: ELECTION_TICKS,
        election_ticks_max: 2 * ELECTION_TICKS,
        heartbeat_ticks: 1,
        election_timeout: ELECTION_TIMEOUT,
        check_quorum: false,
        pre_vote: false,
        quiet_after_start: false,
        seed: id,
        ..Config::default()
    }
}

/// A raw node and all that surrounds it.
pub struct Node {
    pub id: PeerId,
    pub raw: RawNode<Disk>,
    pub disk: Disk,
    pub config: Config,
    pub now: Duration,
    /// Messages that left and were not taken yet.
    pub outbox: Vec<Message>,
    /// Entries applied since the start, in order.
    pub applied: Vec<Entry>,
    /// Snapshots installed since the start.
    pub installed: Vec<Snapshot>,
    pub reads: Vec<ReadState>,
}

impl Node {
    pub fn new(config: Config, disk: Disk) -> Node {
        let raw = RawNode::new(&config, disk.clone(), START).expect("the node starts");
        Node {
            id: config.id,
            raw,
            disk,
            config,
            now: START,
            outbox: Vec::new(),
            applied: Vec::new(),
            installed: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// A fresh node `id` of a group of `voters`.
    pub fn of(id: PeerId, voters: &[PeerId]) -> Node {
        Node::new(config(id), Disk::with_voters(voters))
    }

    /// A fresh node that a test begins in `term`, having voted for `vote` (0: nobody), with
    /// `terms` as the terms of its entries and `commit` of them committed.
    pub fn at(
        id: PeerId,
        voters: &[PeerId],
        term: Term,
        vote: PeerId,
        terms: &[Term],
        commit: Index,
    ) -> Node {
        Node::new(config(id), disk_at(voters, term, vote, terms, commit))
    }

    pub fn status(&self) -> Status {
        self.raw.status()
    }

    pub fn role(&self) -> Role {
        self.status().soft_state.role
    }

    pub fn term(&self) -> Term {
        self.status().hard_state.term
    }

    pub fn vote(&self) -> PeerId {
        self.status().hard_state.vote
    }

    pub fn commit(&self) -> Index {
        self.status().hard_state.commit
    }

    pub fn leader(&self) -> Option<PeerId> {
        self.status().soft_state.leader
    }

    pub fn first_index(&self) -> Index {
        self.status().first_index
    }

    pub fn last_index(&self) -> Index {
        self.status().last_index
    }

    /// The leader's view of `id`.
    pub fn progress(&self, id: PeerId) -> Progress {
        let progress = self.status().progress;
        let found = progress.into_iter().find(|(peer, _)| *peer == id);
        found
            .unwrap_or_else(|| panic!("node {} has no progress of {id}", self.id))
            .1
    }

    /// Sorted voters of the applied membership.
    pub fn voters(&self) -> Vec<PeerId> {
        let mut voters = self.status().conf_state.voters;
        voters.sort_unstable();
        voters
    }

    /// Sorted learners of the applied membership.
    pub fn learners(&self) -> Vec<PeerId> {
        let mut learners = self.status().conf_state.learners;
        learners.sort_unstable();
        learners
    }

    /// Index and term of the whole saved log.
    pub fn log(&self) -> Vec<(Index, Term)> {
        self.disk
            .content()
            .entries
            .iter()
            .map(|e| (e.index, e.term))
            .collect()
    }

    /// Data of the applied ordinary entries that are not empty.
    pub fn applied_data(&self) -> Vec<String> {
        let normal = self.applied.iter().filter(|e| is_command(e));
        normal
            .map(|e| String::from_utf8_lossy(&e.data).into_owned())
            .collect()
    }

    /// Lets `elapsed` pass without a tick.
    pub fn pass(&mut self, elapsed: Duration) {
        self.now += elapsed;
    }

    pub fn tick(&mut self) {
        self.now += TICK;
        self.raw.tick(self.now);
        self.settle();
    }

    pub fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }

    /// Campaigns once nothing promised stands against it any more.
    pub fn campaign(&mut self) {
        self.pass(ELECTION_TIMEOUT);
        self.raw.campaign(self.now).expect("the node may campaign");
        self.settle();
    }

    /// Steps a message that a correct peer may send.
    pub fn step(&mut self, message: Message) {
        let shown = format!("{message:?}");
        if let Err(error) = self.try_step(message) {
            panic!("node {} refuses {shown}: {error}", self.id);
        }
    }

    pub fn try_step(&mut self, message: Message) -> Result<(), Error> {
        let result = self.raw.step(self.now, message);
        self.settle();
        result
    }

    pub fn propose(&mut self, data: &str) -> Result<Index, Error> {
        let result = self
            .raw
            .propose(Bytes::new(), Bytes::copy_from_slice(data.as_bytes()));
        self.settle();
        result
    }

    pub fn propose_change(&mut self, change: ConfChangeV2) -> Result<Index, Error> {
        let result = self.raw.propose_conf_change(Bytes::new(), change);
        self.settle();
        result
    }

    /// Takes what was sent and not taken yet.
    pub fn sent(&mut self) -> Vec<Message> {
        self.settle();
        std::mem::take(&mut self.outbox)
    }

    /// What was sent of one kind; drops the rest.
    pub fn sent_of(&mut self, kind: MessageType) -> Vec<Message> {
        let mut sent = self.sent();
        sent.retain(|m| m.msg_type() == kind);
        sent
    }

    /// Makes the node leader: campaigns, and the first voters that are needed say yes. What
    /// it has sent up to then is dropped; its own entry stays unacknowledged.
    pub fn lead(&mut self) {
        self.campaign();
        for voter in self.voters() {
            if self.role() != Role::Leader && voter != self.id {
                let term = self.term();
                self.step(vote_answer(voter, self.id, term, false));
            }
        }
        assert_eq!(self.role(), Role::Leader, "node {} did not win", self.id);
        self.sent();
    }

    /// Every other voter acknowledges the leader's whole log. What is sent thereby is dropped.
    pub fn acknowledge_all(&mut self) {
        for voter in self.voters() {
            if voter != self.id {
                self.step(append_answer(
                    voter,
                    self.id,
                    self.term(),
                    self.last_index(),
                ));
            }
        }
        self.sent();
    }

    /// Starts the node again from what it had synced.
    pub fn restart(&mut self) {
        self.disk.crash();
        let mut config = self.config.clone();
        config.applied = self.applied.last().map_or(0, |e| e.index);
        let truncated = self.disk.first_index().expect("a disk answers") - 1;
        config.applied = config.applied.max(truncated);
        self.raw = RawNode::new(&config, self.disk.clone(), self.now).expect("the node restarts");
        self.outbox.clear();
        self.reads.clear();
    }

    /// Carries out every Ready there is.
    pub fn settle(&mut self) {
        while self.raw.has_ready() {
            let ready = self.raw.ready(self.now);
            self.carry_out(ready);
        }
    }

    fn carry_out(&mut self, mut ready: Ready) {
        self.outbox.append(&mut ready.messages);
        self.reads.append(&mut ready.read_states);
        self.write(&ready);
        self.outbox.append(&mut ready.persisted_messages);
        let committed = std::mem::take(&mut ready.committed_entries);
        self.apply(committed);
        let mut light = self.raw.advance(ready);
        self.outbox.append(&mut light.messages);
        if let Some(commit) = light.commit_index {
            let mut hard_state = self.disk.content().hard_state;
            hard_state.commit = commit;
            self.disk.set_hard_state(hard_state);
            self.disk.sync();
        }
        let applied = light.committed_entries.last().map(|e| e.index);
        self.apply(light.committed_entries);
        if let Some(applied) = applied {
            self.raw.advance_apply_to(applied);
        }
    }

    fn write(&mut self, ready: &Ready) {
        if let Some(snapshot) = &ready.snapshot {
            self.disk.install(snapshot);
            self.installed.push(snapshot.clone());
        }
        self.disk.append(&ready.entries);
        if let Some(hard_state) = ready.hard_state {
            self.disk.set_hard_state(hard_state);
        }
        self.disk.sync();
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            // A change that makes no sense has no effect, on every replica alike.
            if let Ok(Some(change)) = conf_change_of(&entry)
                && let Ok(conf_state) = self.raw.apply_conf_change(&change)
            {
                self.disk.set_conf_state(conf_state);
                self.disk.sync();
            }
            self.applied.push(entry);
        }
    }

    /// Makes a snapshot at the applied index and deletes the log up to it.
    pub fn compact_at_applied(&mut self) {
        let applied = self.status().applied;
        self.disk.make_snapshot(applied, self.status().conf_state);
        self.disk.compact(applied);
        self.disk.sync();
    }
}

/// Whether `entry` is a command: neither a leader's first entry nor a membership change.
pub fn is_command(entry: &Entry) -> bool {
    entry.entry_type() == EntryType::EntryNormal && !entry.data.is_empty()
}

/// The disk that [`Node::at`] starts from.
pub fn disk_at(voters: &[PeerId], term: Term, vote: PeerId, terms: &[Term], commit: Index) -> Disk {
    let disk = Disk::with_terms(voters, terms);
    disk.set_hard_state(HardState { term, vote, commit });
    disk.sync();
    disk
}

/// A message of `kind`, to be completed with struct update syntax.
pub fn message(kind: MessageType, from: PeerId, to: PeerId, term: Term) -> Message {
    Message {
        msg_type: kind.into(),
        from,
        to,
        term,
        ..Message::default()
    }
}

/// An append behind the entry `(index, log_term)` with `entries` of `(index, term)`.
pub fn append(
    from: PeerId,
    to: PeerId,
    term: Term,
    (index, log_term): (Index, Term),
    entries: &[(Index, Term)],
    commit: Index,
) -> Message {
    Message {
        index,
        log_term,
        commit,
        entries: entries_of(entries),
        ..message(MessageType::MsgAppend, from, to, term)
    }
}

/// Empty entries with these indexes and terms.
pub fn entries_of(ids: &[(Index, Term)]) -> Vec<Entry> {
    let entries = ids.iter().map(|&(index, term)| Entry {
        index,
        term,
        ..Entry::default()
    });
    entries.collect()
}

/// The answer that `from` holds everything up to `index`.
pub fn append_answer(from: PeerId, to: PeerId, term: Term, index: Index) -> Message {
    Message {
        index,
        ..message(MessageType::MsgAppendResponse, from, to, term)
    }
}

/// The answer to a vote request.
pub fn vote_answer(from: PeerId, to: PeerId, term: Term, reject: bool) -> Message {
    Message {
        reject,
        ..message(MessageType::MsgRequestVoteResponse, from, to, term)
    }
}

/// The membership change of one peer.
pub fn change(kind: ConfChangeType, peer: PeerId) -> ConfChangeV2 {
    changes(&[(kind, peer)])
}

/// Membership changes of several peers in one entry.
pub fn changes(list: &[(ConfChangeType, PeerId)]) -> ConfChangeV2 {
    let singles = list.iter().map(|&(kind, node_id)| ConfChangeSingle {
        change_type: kind.into(),
        node_id,
    });
    ConfChangeV2 {
        changes: singles.collect(),
        ..ConfChangeV2::default()
    }
}
