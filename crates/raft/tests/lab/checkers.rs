//! What must hold in every run: the rules, and the history against which they are checked.
//!
//! The harness reports each event (a role seen, entries written, a commit seen, an entry
//! applied, a message sent, a read answered); [`History`] compares it with all events so
//! far, over all servers, and notes the first violation. The five safety properties are
//! those of figure 3 of the Raft paper; the other rules follow from the architecture.
//!
//! The checkers know what is on the disks, not only what a server claims: a commit counts
//! only if a quorum of disks holds the entry synced, a vote only if it is on the disk of
//! its giver.

use std::collections::BTreeMap;
use std::time::Duration;

use strata_proto::eraftpb::{ConfState, Entry, Message, MessageType};
use strata_raft::{Index, PeerId, Role, Term};

use crate::harness::disk::{BOOTSTRAP, Disk, Image};
use crate::harness::service::{CommandId, Service, entry_digest};
use crate::rules::{Coverage, Rule, View, Violation};

/// One committed entry, and the term of the leader that committed it.
#[derive(Clone, Copy, Debug)]
struct Committed {
    term: Term,
    digest: u64,
    leader_term: Term,
}

/// Everything that happened, as far as the rules need it.
#[derive(Debug)]
pub struct History {
    /// Simulated time of the event at hand.
    pub now: Duration,
    /// What was broken, in order.
    pub violations: Vec<Violation>,
    leaders: BTreeMap<Term, PeerId>,
    votes: BTreeMap<(PeerId, Term), PeerId>,
    /// (index, term) to the entry's digest and the term of the entry before it.
    entries: BTreeMap<(Index, Term), (u64, Term)>,
    /// Last index of the log that a leader has written in its term.
    leader_log: BTreeMap<Term, Index>,
    /// Index i at position i - 1.
    committed: Vec<Committed>,
    /// Index i at position i - 1: entry digest and state digest as first applied.
    applied: Vec<(u64, u64)>,
    /// Where each command was applied.
    command_places: BTreeMap<CommandId, Index>,
    /// Highest index that a leader has applied and so acknowledged.
    pub acknowledged: Index,
    /// The membership after each change, by its index; None where the change was refused.
    conf_states: BTreeMap<Index, Option<ConfState>>,
    conf_changes: u64,
    starts: u64,
    installs: u64,
    reads: u64,
    leased_steps: u64,
}

impl History {
    /// A history that begins with the bootstrap: its entries are committed and applied.
    pub fn new() -> Self {
        let bootstrap = Committed {
            term: BOOTSTRAP.term,
            digest: 0,
            leader_term: BOOTSTRAP.term,
        };
        Self {
            now: Duration::ZERO,
            violations: Vec::new(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            entries: BTreeMap::new(),
            leader_log: BTreeMap::new(),
            committed: vec![bootstrap; BOOTSTRAP.index as usize],
            applied: vec![(0, 0); BOOTSTRAP.index as usize],
            command_places: BTreeMap::new(),
            acknowledged: BOOTSTRAP.index,
            conf_states: BTreeMap::new(),
            conf_changes: 0,
            starts: 0,
            installs: 0,
            reads: 0,
            leased_steps: 0,
        }
    }

    /// How much has happened.
    pub fn coverage(&self) -> Coverage {
        Coverage {
            elections: self.leaders.len() as u64,
            commands: self.commands(),
            starts: self.starts,
            installs: self.installs,
            conf_changes: self.conf_changes,
            reads: self.reads,
            leased_steps: self.leased_steps,
        }
    }

    /// Notes a violation.
    pub fn violate(&mut self, rule: Rule, detail: String) {
        self.violations.push(Violation {
            rule,
            at: self.now,
            detail,
        });
    }

    /// Highest index known to be committed by any leader.
    pub fn committed_index(&self) -> Index {
        self.committed.len() as u64
    }

    /// Number of commands committed and applied anywhere.
    pub fn commands(&self) -> u64 {
        self.command_places.len() as u64
    }

    /// Where `command` was applied.
    pub fn place_of(&self, command: CommandId) -> Option<Index> {
        self.command_places.get(&command).copied()
    }

    /// A server's role, term or commit index has changed. `disks` are those of all servers,
    /// `conf` is the membership that this server has applied.
    pub fn on_view(
        &mut self,
        id: PeerId,
        old: View,
        new: View,
        disks: &BTreeMap<PeerId, Disk>,
        conf: &ConfState,
    ) {
        if new.term < old.term {
            self.violate(
                Rule::Monotonic,
                format!("{id}: term {} -> {}", old.term, new.term),
            );
        }
        if new.commit < old.commit {
            let detail = format!("{id}: commit {} -> {}", old.commit, new.commit);
            self.violate(Rule::Monotonic, detail);
        }
        let leads = new.role == Role::Leader;
        if leads && (old.role != Role::Leader || old.term != new.term) {
            disks[&id].current(|image| self.on_leader(id, new.term, image));
        }
        if new.commit > old.commit {
            // One that has just stepped down, as a leader that applies its own removal,
            // committed as the leader of that term.
            let led = old.role == Role::Leader && old.term == new.term;
            if leads || led {
                self.on_leader_commit(id, new, disks, conf);
            } else {
                disks[&id].current(|image| self.on_follower_commit(id, new.commit, image));
            }
        }
    }

    fn on_leader(&mut self, id: PeerId, term: Term, log: &Image) {
        let first = *self.leaders.entry(term).or_insert(id);
        if first != id {
            let detail = format!("{first} and {id} both lead term {term}");
            self.violate(Rule::ElectionSafety, detail);
        }
        self.leader_log.insert(term, log.last_index());
        let held_from = log.truncated.index.max(1);
        for index in held_from..=self.committed_index() {
            let committed = self.committed[index as usize - 1];
            if committed.leader_term < term && log.term(index) != Some(committed.term) {
                let detail = format!(
                    "leader {id} of term {term} has {:?} at {index}, committed in term {} was \
                     an entry of term {}",
                    log.term(index),
                    committed.leader_term,
                    committed.term
                );
                return self.violate(Rule::LeaderCompleteness, detail);
            }
        }
    }

    fn on_leader_commit(
        &mut self,
        id: PeerId,
        view: View,
        disks: &BTreeMap<PeerId, Disk>,
        conf: &ConfState,
    ) {
        let known = self.committed_index();
        if view.commit <= known {
            return;
        }
        let term = disks[&id].current(|log| log.term(view.commit));
        if term != Some(view.term) {
            let detail = format!(
                "leader {id} of term {} committed {} by counting, an entry of term {term:?}",
                view.term, view.commit
            );
            self.violate(Rule::CommitQuorum, detail);
        }
        let holders: Vec<PeerId> = disks
            .iter()
            .filter(|(_, disk)| disk.synced(|log| log.holds(view.commit, term.unwrap_or(0))))
            .map(|(holder, _)| *holder)
            .collect();
        if !is_quorum(conf, &holders) {
            let detail = format!(
                "leader {id} committed {} of term {term:?}, synced only on {holders:?} of {conf:?}",
                view.commit
            );
            self.violate(Rule::CommitQuorum, detail);
        }
        disks[&id].current(|log| {
            for index in known + 1..=view.commit {
                match log.entry(index) {
                    Some(entry) => self.committed.push(Committed {
                        term: entry.term,
                        digest: entry_digest(entry),
                        leader_term: view.term,
                    }),
                    None => {
                        let detail = format!("leader {id} committed {index}, not in its log");
                        return self.violate(Rule::CommitQuorum, detail);
                    }
                }
            }
        });
    }

    fn on_follower_commit(&mut self, id: PeerId, commit: Index, log: &Image) {
        if commit > self.committed_index() {
            let detail = format!(
                "{id} takes {commit} as committed, leaders have committed {}",
                self.committed_index()
            );
            return self.violate(Rule::CommitQuorum, detail);
        }
        if commit > 0 && commit > log.truncated.index {
            let expected = self.committed[commit as usize - 1].term;
            if log.term(commit) != Some(expected) {
                let detail = format!(
                    "{id} takes {commit} of term {:?} as committed, it was of term {expected}",
                    log.term(commit)
                );
                self.violate(Rule::CommitQuorum, detail);
            }
        }
    }

    /// A server writes `entries`. `before` is its log before the write, `leading` the term
    /// that it leads.
    pub fn on_write(
        &mut self,
        id: PeerId,
        entries: &[Entry],
        before: &Image,
        leading: Option<Term>,
    ) {
        let Some(first) = entries.first() else { return };
        if let Some(written) = leading.and_then(|term| self.leader_log.get(&term).copied()) {
            if first.index != written + 1 {
                let detail = format!("leader {id} writes at {} after {written}", first.index);
                self.violate(Rule::LeaderAppendOnly, detail);
            }
            let last = first.index + entries.len() as u64 - 1;
            self.leader_log.insert(leading.unwrap_or(0), last);
        }
        let mut previous = before.term(first.index - 1);
        for (offset, entry) in entries.iter().enumerate() {
            if entry.index != first.index + offset as u64 {
                let detail = format!("{id} writes {} in a row from {}", entry.index, first.index);
                self.violate(Rule::LogMatching, detail);
            }
            let Some(previous_term) = previous else {
                let detail = format!("{id} writes at {} behind a hole", entry.index);
                return self.violate(Rule::LogMatching, detail);
            };
            let content = (entry_digest(entry), previous_term);
            let known = *self
                .entries
                .entry((entry.index, entry.term))
                .or_insert(content);
            if known != content {
                let detail = format!(
                    "{id} writes {}@{} with {content:?}, it was {known:?} elsewhere",
                    entry.index, entry.term
                );
                self.violate(Rule::LogMatching, detail);
            }
            if let Some(committed) = self.committed.get(entry.index as usize - 1) {
                let replaced = before.term(entry.index) == Some(committed.term);
                if replaced && committed.term != entry.term {
                    let detail = format!("{id} overwrites the committed entry {}", entry.index);
                    self.violate(Rule::LeaderCompleteness, detail);
                }
            }
            previous = Some(entry.term);
        }
    }

    /// A server applies `entry`; `service` is its state after it, `before` the index applied
    /// before it.
    pub fn on_apply(
        &mut self,
        id: PeerId,
        entry: &Entry,
        before: Index,
        service: &Service,
        disk: &Disk,
    ) {
        let index = entry.index;
        if index != before + 1 {
            self.violate(
                Rule::ApplyOrder,
                format!("{id} applies {index} after {before}"),
            );
        }
        if index > self.committed_index() {
            let detail = format!("{id} applies {index}, which no leader has committed");
            return self.violate(Rule::ApplyOrder, detail);
        }
        if !disk.synced(|log| log.holds(index, entry.term)) {
            self.violate(
                Rule::ApplyOrder,
                format!("{id} applies {index}, not synced here"),
            );
        }
        let digest = entry_digest(entry);
        if self.committed[index as usize - 1].digest != digest {
            let detail = format!("{id} applies another entry at {index} than was committed");
            self.violate(Rule::StateMachineSafety, detail);
        }
        let at = index as usize - 1;
        if at == self.applied.len() {
            self.applied.push((digest, service.digest));
            self.on_command(index, service);
        } else if at < self.applied.len() {
            if self.applied[at].0 != digest {
                let detail = format!("{id} applies another entry at {index} than another did");
                self.violate(Rule::StateMachineSafety, detail);
            }
            self.check_state(id, index, service.digest);
        }
    }

    fn on_command(&mut self, index: Index, service: &Service) {
        let Some(last) = service.commands.last().filter(|last| last.index == index) else {
            return;
        };
        if let Some(first) = self.command_places.insert(last.command, index) {
            let detail = format!("command {} applied at {first} and {index}", last.command);
            self.violate(Rule::ApplyOrder, detail);
        }
    }

    fn check_state(&mut self, id: PeerId, index: Index, digest: u64) {
        let Some(first) = self.applied.get(index as usize - 1) else {
            let detail = format!("{id} has the state of {index}, which nobody has applied");
            return self.violate(Rule::ReplicasEqual, detail);
        };
        if first.1 != digest {
            let detail = format!("{id} has another state at {index} than the first to apply it");
            self.violate(Rule::ReplicasEqual, detail);
        }
    }

    /// A server has applied the membership change at `index`; None if it was refused, which
    /// must be so on every server.
    pub fn on_conf_change(&mut self, id: PeerId, index: Index, state: Option<ConfState>) {
        self.conf_changes += u64::from(state.is_some());
        let first = self
            .conf_states
            .entry(index)
            .or_insert_with(|| state.clone());
        if *first != state {
            let detail = format!("{id} has {state:?} from {index} on, another has {first:?}");
            self.violate(Rule::ReplicasEqual, detail);
        }
    }

    /// A server takes over the state of a snapshot in place of `before`.
    pub fn on_install(&mut self, id: PeerId, before: Index, service: &Service) {
        self.installs += 1;
        let index = service.applied.index;
        if index <= before {
            let detail = format!("{id} installs a snapshot of {index} over {before}");
            self.violate(Rule::ApplyOrder, detail);
        }
        self.check_state(id, index, service.digest);
    }

    /// A server sends `message`; `disk` is its own.
    pub fn on_send(&mut self, message: &Message, disk: &Disk) {
        let (from, term) = (message.from, message.term);
        match message.msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.on_vote(from, term, message.to, disk);
            }
            MessageType::MsgRequestVote => self.on_vote(from, term, from, disk),
            MessageType::MsgAppendResponse if !message.reject => {
                let held = disk
                    .synced(|log| log.hard_state.term > term || log.last_index() >= message.index);
                if !held {
                    let detail = format!("{from} acknowledges {} before the sync", message.index);
                    self.violate(Rule::PromiseSynced, detail);
                }
            }
            _ => {}
        }
    }

    fn on_vote(&mut self, from: PeerId, term: Term, candidate: PeerId, disk: &Disk) {
        let first = *self.votes.entry((from, term)).or_insert(candidate);
        if first != candidate {
            let detail = format!("{from} votes for {first} and {candidate} in term {term}");
            self.violate(Rule::OneVote, detail);
        }
        let saved = disk.synced(|log| {
            log.hard_state.term > term
                || (log.hard_state.term == term && log.hard_state.vote == candidate)
        });
        if !saved {
            let detail = format!("{from} votes for {candidate} in term {term} before the sync");
            self.violate(Rule::PromiseSynced, detail);
        }
    }

    /// A server starts (again) from `disk` with the service at `applied`.
    pub fn on_start(&mut self, id: PeerId, applied: Index, log: &Image) {
        self.starts += 1;
        if log.truncated.index > applied || applied > log.last_index() {
            let detail = format!(
                "{id} starts with first {}, applied {applied}, last {}",
                log.truncated.index + 1,
                log.last_index()
            );
            self.violate(Rule::Restart, detail);
        }
        let term = log.hard_state.term;
        let voted = self.votes.range((id, 0)..=(id, Term::MAX)).next_back();
        if let Some((&(_, voted_term), &candidate)) = voted {
            let kept =
                term > voted_term || (term == voted_term && log.hard_state.vote == candidate);
            if !kept {
                let detail =
                    format!("{id} starts in term {term} and forgot the vote of {voted_term}");
                self.violate(Rule::Restart, detail);
            }
        }
    }

    /// A read that was asked for when `floor` was committed is answered at `index`.
    pub fn on_read(&mut self, id: PeerId, floor: Index, index: Index) {
        self.reads += 1;
        if index < floor {
            let detail = format!("{id} answers a read at {index}, {floor} was there before it");
            self.violate(Rule::StaleRead, detail);
        }
    }

    /// The leaders whose lease holds now, each with the index it has applied.
    pub fn on_leases(&mut self, holders: &[(PeerId, Index)]) {
        self.leased_steps += u64::from(!holders.is_empty());
        if holders.len() > 1 {
            self.violate(Rule::OneLease, format!("leases are held by {holders:?}"));
        }
        for (id, applied) in holders {
            if *applied < self.acknowledged {
                let detail = format!(
                    "{id} may read at {applied} by its lease, {} is acknowledged",
                    self.acknowledged
                );
                self.violate(Rule::StaleRead, detail);
            }
        }
    }
}

/// True if `holders` are a majority of the voters, and of the outgoing voters if there are.
pub fn is_quorum(conf: &ConfState, holders: &[PeerId]) -> bool {
    let majority = |voters: &[PeerId]| {
        let count = voters
            .iter()
            .filter(|voter| holders.contains(voter))
            .count();
        voters.is_empty() || count > voters.len() / 2
    };
    majority(&conf.voters) && majority(&conf.voters_outgoing)
}
