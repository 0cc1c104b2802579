//! The simulation of one group: virtual time, events, crashes and restarts.
//!
//! Each step takes the earliest event, gives it to its server, and lets the server carry
//! out its Readys (`pump`). Proposals do not pump: everything proposed between two events
//! is in one Ready, as commands that arrive while a batch is collected.
//!
//! Elsewhere: carrying out a Ready, syncs and apply (`pump`), what must hold (`checkers`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{ConfChangeV2, ConfState, Message, MessageType};
use strata_raft::{Error, Index, PeerId, RawNode, Role, SnapshotStatus, Storage, Term};

use super::disk::Disk;
use super::faults::Fault;
use super::network::{Counters, Network, SendContext, is_request, render};
use super::options::{Options, TICK};
use super::server::{Clock, Life, Server};
use super::service::{CommandId, command};
use crate::checkers::History;

/// Something that happens to a server at some time.
#[derive(Debug)]
pub enum Event {
    /// The server's clock ticks.
    Tick,
    /// A message arrives.
    Deliver(Box<Message>),
    /// The write of this sequence number, and all before it, are durable.
    Synced(u64),
    /// The service gets to what it was given.
    Apply,
    /// A request to this peer failed; true for a snapshot.
    Failed(PeerId, bool),
    /// The snapshot to this peer has arrived.
    SnapshotDelivered(PeerId),
}

/// An event and the life of the server that it belongs to.
#[derive(Debug)]
struct Scheduled {
    server: PeerId,
    /// None for what comes from outside and meets whatever life there is.
    incarnation: Option<u64>,
    event: Event,
}

/// A simulated group.
pub struct Group {
    /// Settings.
    pub options: Options,
    /// Simulated time since the start.
    pub now: Duration,
    /// All servers by id, up or down.
    pub servers: BTreeMap<PeerId, Server>,
    /// The disks again, for the checkers.
    pub disks: BTreeMap<PeerId, Disk>,
    /// Faults of the network.
    pub network: Network,
    /// What was sent.
    pub counters: Counters,
    /// What happened, and what it broke.
    pub history: History,
    /// Source of all randomness.
    pub rng: ChaCha8Rng,
    /// Messages that the core refused, by the kind of refusal; never a reason to stop.
    pub refused: u64,
    /// Highest number of entries that any log held.
    pub log_entries_max: usize,
    events: BTreeMap<(Duration, u64), Scheduled>,
    event_number: u64,
    touched: BTreeSet<PeerId>,
    next_command: CommandId,
    next_read: u64,
    /// Events are printed.
    pub traced: bool,
}

impl Group {
    /// Starts all servers at once, with empty logs.
    pub fn new(options: Options) -> Self {
        let mut group = Self {
            now: Duration::ZERO,
            servers: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: Network {
                latency_us: (1_000, 1_000),
                ..Network::default()
            },
            counters: Counters::default(),
            history: History::new(),
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            refused: 0,
            log_entries_max: 0,
            events: BTreeMap::new(),
            event_number: 0,
            touched: BTreeSet::new(),
            next_command: 0,
            next_read: 0,
            traced: std::env::var_os("RAFT_LAB_TRACE").is_some(),
            options,
        };
        let voters = group.options.voters.clone();
        let conf_state = ConfState {
            voters: voters.clone(),
            ..ConfState::default()
        };
        for id in voters {
            group.add_server(id, conf_state.clone());
        }
        group
    }

    /// Adds a server that knows of `conf_state` only, and starts it. A server that is to
    /// join later begins with an empty one.
    pub fn add_server(&mut self, id: PeerId, conf_state: ConfState) {
        let disk = Disk::new(conf_state, self.options.snapshot_every);
        // The extremes are where leases fail, if they do.
        let drift = self.options.drift_ppm;
        let rate_ppm = match self.rng.random_range(0..3) {
            0 => 1_000_000 - drift,
            1 => 1_000_000 + drift,
            _ => 1_000_000 - drift + self.rng.random_range(0..=2 * drift),
        };
        let clock = Clock {
            offset: Duration::from_millis(self.rng.random_range(0..1_000_000)),
            rate_ppm,
        };
        self.disks.insert(id, disk.clone());
        let server = Server {
            id,
            disk,
            clock,
            incarnation: 0,
            paused_until: Duration::ZERO,
            life: None,
        };
        self.servers.insert(id, server);
        self.start(id);
    }

    /// The ids of all servers.
    pub fn ids(&self) -> Vec<PeerId> {
        self.servers.keys().copied().collect()
    }

    /// A server's life, if it is up.
    pub fn life(&self, id: PeerId) -> Option<&Life> {
        self.servers[&id].life.as_ref()
    }

    /// A server's life for a change, if it is up.
    pub fn life_mut(&mut self, id: PeerId) -> Option<&mut Life> {
        self.servers
            .get_mut(&id)
            .and_then(|server| server.life.as_mut())
    }

    /// True if the server is up.
    pub fn is_up(&self, id: PeerId) -> bool {
        self.life(id).is_some()
    }

    /// The terms that live servers believe to lead.
    pub fn leaders(&self) -> Vec<(PeerId, Term)> {
        let lives = self
            .servers
            .values()
            .filter_map(|server| Some((server.id, server.life.as_ref()?)));
        lives
            .filter(|(_, life)| life.view.role == Role::Leader)
            .map(|(id, life)| (id, life.view.term))
            .collect()
    }

    /// Lets a server stand still for `span`; its clock runs on.
    pub fn pause(&mut self, id: PeerId, span: Duration) {
        let until = self.now + span;
        let server = self.servers.get_mut(&id).expect("the server exists");
        server.paused_until = server.paused_until.max(until);
    }

    /// Proposes a new command on a server. Nothing is sent before the next event.
    pub fn propose(&mut self, id: PeerId, padding: usize) -> Result<(Index, CommandId), Error> {
        self.next_command += 1;
        let number = self.next_command;
        let life = self.life_mut(id).ok_or(Error::ProposalDropped)?;
        let index = life.node.propose(Bytes::new(), command(number, padding))?;
        self.touch(id);
        Ok((index, number))
    }

    /// Proposes a membership change on a server.
    pub fn propose_conf_change(
        &mut self,
        id: PeerId,
        change: ConfChangeV2,
    ) -> Result<Index, Error> {
        let life = self.life_mut(id).ok_or(Error::ProposalDropped)?;
        let index = life.node.propose_conf_change(Bytes::new(), change)?;
        self.touch(id);
        Ok(index)
    }

    /// Asks a server for a read point; the checkers compare its answer with what is
    /// committed now.
    pub fn read(&mut self, id: PeerId) {
        self.next_read += 1;
        let number = self.next_read;
        let floor = self.history.committed_index();
        let trusting = self.options.fault == Some(Fault::ReadWithoutQuorum);
        let Some(life) = self.life_mut(id) else {
            return;
        };
        if trusting && life.view.role == Role::Leader {
            let index = life.view.commit;
            return self.history.on_read(id, floor, index);
        }
        if life
            .node
            .read_index(Bytes::copy_from_slice(&number.to_be_bytes()))
            .is_ok()
        {
            life.reads.insert(number, floor);
        }
        self.touch(id);
    }

    /// Asks a leader to hand over.
    pub fn transfer(&mut self, id: PeerId, to: PeerId) {
        if let Some(life) = self.life_mut(id) {
            life.node.transfer_leader(to);
            self.touch(id);
        }
    }

    /// Runs for `span` of simulated time, or up to the first violation: what comes after it
    /// proves nothing.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.history.violations.is_empty() && self.step(end) {}
        self.now = end;
    }

    /// Takes one event that lies before `end`. False if there is none.
    pub fn step(&mut self, end: Duration) -> bool {
        self.pump_touched();
        let Some(entry) = self.events.first_entry() else {
            return false;
        };
        if entry.key().0 > end {
            return false;
        }
        let ((at, _), scheduled) = entry.remove_entry();
        self.now = at;
        self.history.now = at;
        self.dispatch(scheduled);
        self.pump_touched();
        self.check_leases();
        true
    }

    fn dispatch(&mut self, scheduled: Scheduled) {
        let id = scheduled.server;
        let server = &self.servers[&id];
        let stale = scheduled
            .incarnation
            .is_some_and(|life| life != server.incarnation);
        if server.life.is_none() || stale {
            if let Event::Deliver(message) = &scheduled.event {
                self.on_undelivered(message);
            }
            return;
        }
        if server.paused_until > self.now {
            return self.postpone(scheduled);
        }
        let clock = server.clock;
        let local = clock.read(self.now);
        match scheduled.event {
            Event::Tick => {
                self.schedule(clock.simulated(TICK), id, true, Event::Tick);
                self.with_node(id, |node| _ = node.tick(local));
            }
            Event::Deliver(message) => self.deliver(*message, local),
            Event::Synced(sequence) => self.on_synced(id, sequence),
            Event::Apply => self.on_apply(id),
            Event::Failed(to, snapshot) => self.with_node(id, |node| {
                node.report_unreachable(to);
                if snapshot {
                    node.report_snapshot(to, SnapshotStatus::Failure);
                }
            }),
            Event::SnapshotDelivered(to) => {
                self.with_node(id, |node| node.report_snapshot(to, SnapshotStatus::Finish));
            }
        }
    }

    /// A paused server takes its events when it wakes up; the ticks that it missed are
    /// dropped but one.
    fn postpone(&mut self, scheduled: Scheduled) {
        let wake = self.servers[&scheduled.server].paused_until;
        self.event_number += 1;
        self.events.insert((wake, self.event_number), scheduled);
    }

    fn deliver(&mut self, message: Message, local: Duration) {
        if !self.network.is_open(message.from, message.to) {
            return self.on_undelivered(&message);
        }
        let id = message.to;
        if message.msg_type() == MessageType::MsgSnapshot {
            self.schedule(
                Duration::ZERO,
                message.from,
                false,
                Event::SnapshotDelivered(id),
            );
        }
        self.trace(|| render(&message));
        let life = self.life_mut(id).expect("only a live server gets events");
        if life.node.step(local, message).is_err() {
            self.refused += 1;
        }
        self.observe(id, false);
        self.touch(id);
    }

    fn on_undelivered(&mut self, message: &Message) {
        let after = Duration::from_millis(self.rng.random_range(0..100));
        self.report_failure(message, after);
    }

    fn report_failure(&mut self, message: &Message, after: Duration) {
        let snapshot = message.msg_type() == MessageType::MsgSnapshot;
        // Whoever transports a snapshot always knows how that ended.
        if !self.options.reports_failures && !snapshot {
            return;
        }
        let (caller, called) = match is_request(message.msg_type()) {
            true => (message.from, message.to),
            false => (message.to, message.from),
        };
        self.schedule(after, caller, false, Event::Failed(called, snapshot));
    }

    /// Hands a message to the network.
    pub fn send(&mut self, mut message: Message) {
        let from = message.from;
        self.history.on_send(&message, &self.disks[&from]);
        if let Some(fault) = self.options.fault {
            fault.rewrite(&mut message);
            if fault == Fault::SilentNetwork {
                return;
            }
        }
        let context = self.send_context(&message);
        self.counters.on_send(&message, context);
        if !self.servers.contains_key(&message.to) {
            return;
        }
        let fate = self.network.fate(&message, &mut self.rng);
        if let Some(after) = fate.failure {
            self.report_failure(&message, after);
        }
        for flight in fate.arrivals {
            self.schedule(
                flight,
                message.to,
                false,
                Event::Deliver(Box::new(message.clone())),
            );
        }
    }

    fn send_context(&self, message: &Message) -> SendContext {
        self.disks[&message.from].current(|log| SendContext {
            commit_is_no_op: message.commit == log.last_index()
                && log
                    .entry(message.commit)
                    .is_some_and(|entry| entry.data.is_empty()),
        })
    }

    /// Calls the replica of a live server and lets the checkers look at it.
    pub fn with_node(&mut self, id: PeerId, call: impl FnOnce(&mut RawNode<Disk>)) {
        if let Some(life) = self.life_mut(id) {
            call(&mut life.node);
            self.observe(id, false);
            self.touch(id);
        }
    }

    /// Shows the checkers what a server has become. A follower's commit index may cover
    /// entries that came in the same message and are on no disk yet, so it is looked at
    /// only when its write is done (`written`).
    pub fn observe(&mut self, id: PeerId, written: bool) {
        let server = self.servers.get_mut(&id).expect("the server exists");
        let Some(life) = server.life.as_mut() else {
            return;
        };
        let (old, mut new) = (life.view, life.read_view());
        if !written && new.role != Role::Leader {
            new.commit = old.commit;
        }
        life.view = new;
        if old != new {
            if self.traced {
                eprintln!("{:9.3} {id}: {new:?}", self.now.as_secs_f64());
            }
            self.history
                .on_view(id, old, new, &self.disks, &life.service.conf_state);
        }
    }

    /// Tells what happens, for the search after the cause of a failure: RAFT_LAB_TRACE=1.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:9.3} {}", self.now.as_secs_f64(), what());
        }
    }

    /// Marks a server to be pumped before time goes on.
    pub fn touch(&mut self, id: PeerId) {
        self.touched.insert(id);
    }

    /// A server that is down has nothing to be pumped.
    pub fn untouch(&mut self, id: PeerId) {
        self.touched.remove(&id);
    }

    fn pump_touched(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            self.pump(id);
        }
    }

    /// Plans an event; `own` events die with the server's present life.
    pub fn schedule(&mut self, after: Duration, server: PeerId, own: bool, event: Event) {
        let incarnation = own.then(|| self.servers[&server].incarnation);
        self.event_number += 1;
        let key = (self.now + after, self.event_number);
        self.events.insert(
            key,
            Scheduled {
                server,
                incarnation,
                event,
            },
        );
    }

    fn check_leases(&mut self) {
        let mut holders = Vec::new();
        for server in self.servers.values() {
            let Some(life) = &server.life else { continue };
            if life.view.role != Role::Leader {
                continue;
            }
            let local = server.clock.read(self.now);
            if life.node.lease_until().is_some_and(|until| local < until) {
                holders.push((server.id, life.service.applied.index));
            }
        }
        self.history.on_leases(&holders);
    }
}

/// First index of a disk's log, for messages of failed tests.
pub fn log_range(disk: &Disk) -> (Index, Index) {
    (
        disk.first_index().unwrap_or(0),
        disk.last_index().unwrap_or(0),
    )
}
