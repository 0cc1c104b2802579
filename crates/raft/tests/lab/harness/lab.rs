//! The course's vocabulary over a simulated group.
//!
//! A row says what happens to which server and how many must agree; [`Lab::end`] lets the
//! shared checkers decide. Each row begins with `begin`, and its figures are those of the
//! documents: the seconds it runs at least, and where there is one, the limit of calls for
//! a committed command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use strata_proto::eraftpb::MessageType;
use strata_raft::{Index, PeerId, Role, Term};

use super::group::{Group, log_range};
use super::options::{Options, SNAPSHOT_INTERVAL};
use super::service::CommandId;
use crate::final_checks::{
    check_acknowledged, check_log_limits, check_logs_match, check_replicas_equal,
};
use crate::rules::Violation;

/// The course's upper bound of an election, in which its rows measure their waits.
pub const RAFT_ELECTION_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Most bytes of log in 2D, as in the course.
const LOG_BYTES_MAX: usize = 2_000;
/// Most entries of log in 2D: one interval, one burst of up to 15, and empty entries.
const LOG_ENTRIES_MAX: usize = 3 * SNAPSHOT_INTERVAL as usize;
/// How long one command may take to be agreed on, and all servers to become equal. Three
/// times the course's: an election asks twice here (pre-vote), and where two answers of
/// three come up to two seconds late (Figure 8, unreliable) few elections succeed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting client looks.
const POLL: Duration = Duration::from_millis(20);

/// What the documents say of a row.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Wall seconds, the larger where there are two.
    pub seconds: f64,
    /// Calls and commands of the row with the fewest calls for a command, where they bind.
    pub limit: Option<(u64, u64)>,
}

/// A command on its way: proposed anew until it is committed.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    proposed: Option<(Index, CommandId)>,
    since: Duration,
    retry_at: Duration,
}

/// A row at work.
pub struct Lab {
    /// The group.
    pub group: Group,
    title: &'static str,
    figures: Figures,
    connected: BTreeSet<PeerId>,
    /// What some client was told to be committed.
    acknowledged: BTreeMap<Index, CommandId>,
    background: Vec<Pending>,
}

impl Lab {
    /// Starts `servers` servers for the row called `title`.
    pub fn begin(title: &'static str, servers: u64, figures: Figures) -> Self {
        let options = Options::new(servers, seed_for(title));
        Self::with_options(title, options, figures)
    }

    /// Starts servers whose services take snapshots, for a row of 2D.
    pub fn begin_with_snapshots(title: &'static str, servers: u64, figures: Figures) -> Self {
        let mut options = Options::new(servers, seed_for(title));
        options.snapshot_interval = Some(SNAPSHOT_INTERVAL);
        Self::with_options(title, options, figures)
    }

    fn with_options(title: &'static str, options: Options, figures: Figures) -> Self {
        let group = Group::new(options);
        let connected = group.ids().into_iter().collect();
        Self {
            group,
            title,
            figures,
            connected,
            acknowledged: BTreeMap::new(),
            background: Vec::new(),
        }
    }

    /// Number of servers.
    pub fn servers(&self) -> usize {
        self.group.servers.len()
    }

    /// The server `steps` behind `id` in the ring of ids.
    pub fn after(&self, id: PeerId, steps: u64) -> PeerId {
        (id - 1 + steps) % self.servers() as u64 + 1
    }

    /// A random server.
    pub fn any(&mut self) -> PeerId {
        let servers = self.servers() as u64;
        self.group.rng.random_range(1..=servers)
    }

    /// A random number below `end`.
    pub fn random(&mut self, end: u64) -> u64 {
        self.group.rng.random_range(0..end)
    }

    /// Lets simulated time pass; the clients in the background go on.
    pub fn sleep(&mut self, span: Duration) {
        let end = self.group.now + span;
        while self.group.now < end {
            let step = if self.background.is_empty() {
                span
            } else {
                POLL
            };
            self.group.run(step.min(end - self.group.now));
            self.check_violations();
            self.poll_background();
        }
    }

    /// As `sleep`, in milliseconds.
    pub fn sleep_ms(&mut self, ms: u64) {
        self.sleep(Duration::from_millis(ms));
    }

    fn check_violations(&self) {
        if let Some(violation) = self.group.history.violations.first() {
            panic!("{violation}");
        }
    }

    /// Waits for exactly one leader among the connected servers and returns it.
    pub fn check_one_leader(&mut self) -> PeerId {
        for _ in 0..10 {
            let wait = 450 + self.random(100);
            self.sleep_ms(wait);
            let leaders = self.connected_leaders();
            if let Some((&term, &leader)) = leaders.last_key_value() {
                assert!(term > 0, "server {leader} leads term 0");
                return leader;
            }
        }
        panic!("expected one leader among {:?}, got none", self.connected);
    }

    fn connected_leaders(&self) -> BTreeMap<Term, PeerId> {
        let mut leaders = BTreeMap::new();
        for (id, term) in self.group.leaders() {
            if self.connected.contains(&id) {
                let other = leaders.insert(term, id);
                assert_eq!(other, None, "term {term} has two leaders, {id} is one");
            }
        }
        leaders
    }

    /// The term on which all connected servers agree.
    pub fn check_terms(&self) -> Term {
        let terms: BTreeSet<Term> = self
            .connected
            .iter()
            .filter_map(|id| self.group.life(*id))
            .map(|life| life.view.term)
            .collect();
        assert_eq!(terms.len(), 1, "servers disagree on the term: {terms:?}");
        *terms.first().expect("one term")
    }

    /// No connected server believes to lead.
    pub fn check_no_leader(&self) {
        let leaders = self.connected_leaders();
        assert!(leaders.is_empty(), "expected no leader, got {leaders:?}");
    }

    /// Proposes a command on one server, without letting time pass.
    pub fn start(&mut self, id: PeerId) -> Option<(Index, CommandId, Term)> {
        self.start_sized(id, 0)
    }

    /// As `start`, with `padding` bytes in the command.
    pub fn start_sized(&mut self, id: PeerId, padding: usize) -> Option<(Index, CommandId, Term)> {
        let (index, command) = self.group.propose(id, padding).ok()?;
        let term = self.group.life(id)?.view.term;
        Some((index, command, term))
    }

    /// How many live servers have applied a command at `index`, and which.
    pub fn n_committed(&self, index: Index) -> (usize, Option<CommandId>) {
        let mut count = 0;
        let mut first = None;
        for server in self.group.servers.values() {
            let Some(life) = &server.life else { continue };
            let commands = &life.service.commands;
            let Ok(at) = commands.binary_search_by_key(&index, |applied| applied.index) else {
                continue;
            };
            let command = commands[at].command;
            assert_eq!(
                *first.get_or_insert(command),
                command,
                "servers differ at index {index}"
            );
            count += 1;
        }
        (count, first)
    }

    /// Gets one command agreed on by at least `expected` servers and returns its index. With
    /// `retry` it is proposed anew when a leader loses it.
    pub fn one(&mut self, expected: usize, retry: bool) -> Index {
        self.one_sized(expected, retry, 0)
    }

    /// As `one`, with `padding` bytes in the command.
    pub fn one_sized(&mut self, expected: usize, retry: bool, padding: usize) -> Index {
        let deadline = self.group.now + PATIENCE;
        while self.group.now < deadline {
            let Some((index, command)) = self.propose_anywhere(padding) else {
                self.sleep_ms(50);
                continue;
            };
            let give_up = self.group.now + Duration::from_secs(2);
            while self.group.now < give_up {
                let (count, found) = self.n_committed(index);
                if count >= expected && found == Some(command) {
                    self.acknowledged.insert(index, command);
                    return index;
                }
                self.sleep(POLL);
            }
            assert!(
                retry,
                "command {command} at {index} was not agreed on by {expected}"
            );
        }
        panic!("no agreement of {expected} servers within {PATIENCE:?}");
    }

    fn propose_anywhere(&mut self, padding: usize) -> Option<(Index, CommandId)> {
        let connected: Vec<PeerId> = self.connected.iter().copied().collect();
        // The server with the highest term first: an old leader that is reconnected does
        // not know yet that it was replaced, and would swallow the command.
        let mut order: Vec<(Term, PeerId)> = connected
            .into_iter()
            .filter_map(|id| Some((self.group.life(id)?.view.term, id)))
            .collect();
        order.sort_unstable();
        order
            .into_iter()
            .rev()
            .find_map(|(_, id)| self.group.propose(id, padding).ok())
    }

    /// Waits until at least `expected` servers have applied `index`, and returns the command
    /// there. None if some server has left `term`: the command may be lost.
    pub fn wait(&mut self, index: Index, expected: usize, term: Option<Term>) -> Option<CommandId> {
        let mut pause = Duration::from_millis(10);
        for _ in 0..30 {
            if self.n_committed(index).0 >= expected {
                break;
            }
            self.sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
            let mut lives = self
                .group
                .servers
                .values()
                .filter_map(|server| server.life.as_ref());
            if term.is_some_and(|term| lives.any(|life| life.view.term > term)) {
                return None;
            }
        }
        let (count, command) = self.n_committed(index);
        assert!(
            count >= expected,
            "only {count} of {expected} have applied {index}"
        );
        let command = command?;
        self.acknowledged.insert(index, command);
        Some(command)
    }

    /// Notes that a client was told that `command` is committed at `index`.
    pub fn acknowledge(&mut self, index: Index, command: CommandId) {
        self.acknowledged.insert(index, command);
    }

    /// A client in the background gets one command committed, however often it takes.
    pub fn one_in_background(&mut self) {
        self.background.push(Pending::default());
        self.poll_background();
    }

    /// Waits until all clients in the background are done.
    pub fn wait_for_background(&mut self) {
        let deadline = self.group.now + PATIENCE;
        while !self.background.is_empty() {
            assert!(
                self.group.now < deadline,
                "clients wait: {:?}",
                self.background
            );
            self.sleep(POLL);
        }
    }

    fn poll_background(&mut self) {
        let now = self.group.now;
        for mut client in std::mem::take(&mut self.background) {
            if let Some((index, command)) = client.proposed {
                if self.n_committed(index).1 == Some(command) {
                    self.acknowledged.insert(index, command);
                    continue;
                }
                if now - client.since >= Duration::from_secs(2) {
                    client.proposed = None;
                }
            } else if now >= client.retry_at {
                client.proposed = self.propose_anywhere(0);
                client.since = now;
                client.retry_at = now + Duration::from_millis(50);
            }
            self.background.push(client);
        }
    }

    /// Cuts a server off.
    pub fn disconnect(&mut self, id: PeerId) {
        self.connected.remove(&id);
        self.group.network.disconnected.insert(id);
    }

    /// Connects a server again.
    pub fn connect(&mut self, id: PeerId) {
        self.connected.insert(id);
        self.group.network.disconnected.remove(&id);
    }

    /// True if the server is not cut off.
    pub fn is_connected(&self, id: PeerId) -> bool {
        self.connected.contains(&id)
    }

    /// Crashes a server; it stays cut off until `connect`.
    pub fn crash(&mut self, id: PeerId) {
        self.disconnect(id);
        self.group.crash(id);
    }

    /// Starts a server from its disk, crashing it first if it is up; it stays cut off until
    /// `connect` if it was.
    pub fn restart(&mut self, id: PeerId) {
        self.group.crash(id);
        self.group.start(id);
    }

    /// Brings every server up and connects it.
    pub fn heal(&mut self) {
        for id in self.group.ids() {
            if !self.group.is_up(id) {
                self.group.start(id);
            }
            self.connect(id);
        }
    }

    /// Ends the row: runs for the documents' seconds, lets the checkers decide, prints the
    /// figures.
    pub fn end(mut self) {
        let least = Duration::from_secs_f64(self.figures.seconds);
        let left = least.saturating_sub(self.group.now);
        self.sleep(left);
        self.check_agreement();
        self.check_limits();
        let (counters, commands) = (&self.group.counters, self.group.history.commands());
        println!("Test {} ...", self.title);
        println!(
            "  ... Passed -- {:5.1} {:2} {:5} {:8} {:4}",
            self.group.now.as_secs_f64(),
            self.servers(),
            counters.calls,
            counters.bytes,
            commands
        );
        println!(
            "      {} of them without pre-votes, empty entries and idle heartbeats",
            counters.busy_calls
        );
        let kinds: Vec<String> = counters
            .busy_by_kind
            .iter()
            .filter_map(|(kind, count)| {
                let kind = MessageType::try_from(*kind).ok()?;
                Some(format!("{} {count}", kind.as_str_name()))
            })
            .collect();
        println!("      {}", kinds.join(", "));
        if let Some((calls, for_commands)) = self.figures.limit {
            assert!(
                counters.busy_calls * for_commands <= calls * commands,
                "{} calls for {commands} commands are more than {calls} for {for_commands}",
                counters.busy_calls
            );
        }
    }

    /// Acknowledged commands stand on all servers, which are equal, each command once.
    fn check_agreement(&mut self) {
        let deadline = self.group.now + PATIENCE;
        while !self.is_settled() {
            let ranges: Vec<_> = self.group.disks.values().map(log_range).collect();
            assert!(
                self.group.now < deadline,
                "servers do not become equal: {ranges:?}"
            );
            self.sleep(POLL);
        }
        let ids = self.group.ids();
        self.pass(check_acknowledged(&self.group, &ids, &self.acknowledged));
        self.pass(check_replicas_equal(&self.group, &ids));
        self.pass(check_logs_match(&self.group));
    }

    fn pass(&self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            panic!("{violation}");
        }
    }

    /// True when all servers are up and have applied all that the leader has.
    fn is_settled(&self) -> bool {
        let lives: Option<Vec<_>> = self
            .group
            .servers
            .values()
            .map(|server| server.life.as_ref())
            .collect();
        let Some(lives) = lives else { return false };
        let digests: BTreeSet<u64> = lives.iter().map(|life| life.service.digest).collect();
        let leader = lives.iter().find(|life| life.view.role == Role::Leader);
        // A group that never agreed on anything is equal, too.
        digests.len() == 1
            && leader.is_none_or(|life| {
                life.node.storage().current(|log| log.last_index()) == life.service.applied.index
            })
    }

    /// In 2D: neither bytes nor entries of any log are above the limit.
    pub fn check_limits(&self) {
        if self.group.options.snapshot_interval.is_none() {
            return;
        }
        let ids = self.group.ids();
        self.pass(check_log_limits(
            &self.group,
            &ids,
            LOG_ENTRIES_MAX,
            LOG_BYTES_MAX,
        ));
        let most = self.group.log_entries_max;
        assert!(most <= 2 * LOG_ENTRIES_MAX, "a log once had {most} entries");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed at {:?}; repeat with RAFT_LAB_SEED={}",
                self.group.now, self.group.options.seed
            );
        }
    }
}

/// The seed of a row: fixed by its title, or given by the environment.
fn seed_for(title: &str) -> u64 {
    let fixed = super::service::digest(0, title.as_bytes());
    std::env::var("RAFT_LAB_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(fixed)
}
