//! One random schedule: trouble of all kinds for some seconds, then healing and agreement.
//!
//! Trouble   Between short pauses an action is drawn by weight: proposals, and whatever the
//!           `Schedule` asks for. Sizes and delays of the group come from the seed, too.
//! Healing   Faults end, everything is up; the members of the newest leader must agree on a
//!           new command within simulated 30 s.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use strata_proto::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use strata_raft::{Index, PeerId, Term};

use crate::final_checks::{check_log_limits, check_logs_match, check_replicas_equal};
use crate::harness::group::Group;
use crate::harness::options::{Options, SNAPSHOT_INTERVAL};
use crate::rules::{Coverage, Rule, Violation};
use crate::schedule::Schedule;

/// How long after healing a group may take to agree.
const HEALING: Duration = Duration::from_secs(30);
/// Weight of proposals among the actions.
const PROPOSALS: u32 = 100;
/// Servers that ever take part in one schedule.
const SERVERS_MAX: u64 = 10;

/// A schedule at work on its group.
pub struct Run<'a> {
    schedule: &'a Schedule,
    /// The group.
    pub group: Group,
}

/// Runs one schedule. Err holds the first violation.
pub fn run_schedule(schedule: &Schedule, seed: u64) -> Result<Coverage, Violation> {
    let mut run = Run::new(schedule, seed);
    run.trouble()?;
    run.heal_and_agree()?;
    Ok(run.group.history.coverage())
}

/// The worst case for a lease: the leader's clock is slow, the others' are fast, and the
/// leader is cut off while the others elect another and commit. Err holds the violation;
/// Ok tells whether the leader held a lease when it was cut off.
pub fn isolate_slow_leader(slow_ppm: u64, fast_ppm: u64, seed: u64) -> Result<bool, Violation> {
    let mut group = Group::new(Options::new(3, seed));
    for server in group.servers.values_mut() {
        server.clock.rate_ppm = if server.id == 1 { slow_ppm } else { fast_ppm };
    }
    group.run(Duration::from_secs(2));
    for (leader, _) in group.leaders() {
        group.transfer(leader, 1);
    }
    let quiet = group.rng.random_range(500..1_500);
    group.run(Duration::from_millis(quiet));
    let local = group.servers[&1].clock.read(group.now);
    let until = group.life(1).and_then(|life| life.node.lease_until());
    group.network.disconnected.insert(1);
    for _ in 0..200 {
        for (leader, _) in group.leaders() {
            _ = group.propose(leader, 0);
        }
        group.run(Duration::from_millis(10));
    }
    match group.history.violations.first() {
        Some(violation) => Err(violation.clone()),
        None => Ok(until.is_some_and(|until| local < until)),
    }
}

impl<'a> Run<'a> {
    /// A group whose settings follow from `seed`.
    pub fn new(schedule: &'a Schedule, seed: u64) -> Self {
        let mut options = Options::new(if seed % 3 == 2 { 5 } else { 3 }, seed);
        options.snapshot_interval = schedule.snapshots.then_some(SNAPSHOT_INTERVAL);
        options.drift_ppm = schedule.drift_ppm;
        options.fault = schedule.fault;
        options.kept_entries = [0, 5, 20][(seed / 3 % 3) as usize];
        options.snapshot_every = [1, 3][(seed / 9 % 2) as usize];
        options.sync_us = (0, [1_000, 10_000, 80_000][(seed / 2 % 3) as usize]);
        options.apply_us = (0, [0, 0, 5_000, 60_000][(seed / 5 % 4) as usize]);
        options.reports_failures = seed.is_multiple_of(2);
        options.service_may_survive = seed % 4 < 2;
        options.bytes_per_message = [1 << 20, 64][(seed / 7 % 2) as usize];
        options.inflight_messages = [256, 3][(seed / 11 % 2) as usize];
        let mut group = Group::new(options);
        group.network.latency_us = (200, [1_000, 5_000, 30_000][(seed / 13 % 3) as usize]);
        Self { schedule, group }
    }

    fn check(&self) -> Result<(), Violation> {
        self.group
            .history
            .violations
            .first()
            .map_or(Ok(()), |first| Err(first.clone()))
    }

    /// The troubled part.
    pub fn trouble(&mut self) -> Result<(), Violation> {
        while self.group.now < self.schedule.span {
            let pause = self.group.rng.random_range(0..50);
            self.group.run(Duration::from_millis(pause));
            self.check()?;
            self.act();
        }
        Ok(())
    }

    fn act(&mut self) {
        self.recover();
        let schedule = self.schedule;
        let weights = [
            PROPOSALS,
            schedule.weather,
            schedule.partitions,
            schedule.crashes,
            schedule.pauses,
            schedule.membership,
            schedule.transfers,
            schedule.reads,
        ];
        let mut drawn = self.group.rng.random_range(0..weights.iter().sum::<u32>());
        let action = weights
            .iter()
            .position(|weight| match drawn.checked_sub(*weight) {
                Some(left) => {
                    drawn = left;
                    false
                }
                None => true,
            });
        match action {
            Some(1) => self.change_weather(),
            Some(2) => self.change_partitions(),
            Some(3) => self.crash_or_restart(),
            Some(4) => self.pause(),
            Some(5) => self.change_membership(),
            Some(6) => self.change_leader(),
            Some(7) => self.read(),
            _ => self.propose(),
        }
    }

    /// Trouble does not last: else a group would be without a leader most of the time, and
    /// a schedule in which nothing is committed proves little.
    fn recover(&mut self) {
        if self.group.rng.random_bool(0.02) {
            self.group.network.disconnected.clear();
            self.group.network.cut.clear();
        }
        for id in self.group.ids() {
            if !self.group.is_up(id) && self.group.rng.random_bool(0.04) {
                self.group.start(id);
            }
        }
    }

    fn any(&mut self) -> PeerId {
        *self
            .group
            .ids()
            .choose(&mut self.group.rng)
            .expect("there are servers")
    }

    /// A random server that believes to lead, mostly.
    fn any_leader(&mut self) -> PeerId {
        let leaders = self.group.leaders();
        match leaders.choose(&mut self.group.rng) {
            Some((id, _)) => *id,
            None => self.any(),
        }
    }

    fn propose(&mut self) {
        let id = self.any_leader();
        for _ in 0..self.group.rng.random_range(1..6) {
            // A follower refuses; nothing else is expected of it.
            _ = self.group.propose(id, 0);
        }
    }

    fn change_weather(&mut self) {
        let rng = &mut self.group.rng;
        let network = &mut self.group.network;
        network.unreliable = rng.random_bool(0.5);
        network.long_reordering = rng.random_bool(0.2);
        network.long_delays = rng.random_bool(0.2);
        network.duplicate_percent = [0, 0, 5, 30][rng.random_range(0..4)];
    }

    fn change_partitions(&mut self) {
        // A leader that is cut off and does not know it yet is the hardest to get right.
        let leads = self.group.rng.random_bool(0.5);
        let one = if leads { self.any_leader() } else { self.any() };
        let other = self.any();
        let ids = self.group.ids();
        let network = &mut self.group.network;
        match self.group.rng.random_range(0..8) {
            0..3 => _ = network.disconnected.insert(one),
            3 => _ = network.disconnected.remove(&one),
            4 | 5 => _ = network.cut.insert((one, other)),
            6 => {
                network.cut.clear();
                let side = self.group.rng.random_range(1..ids.len());
                for left in &ids[..side] {
                    for right in &ids[side..] {
                        network.cut.insert((*left, *right));
                        network.cut.insert((*right, *left));
                    }
                }
            }
            _ => {
                network.disconnected.clear();
                network.cut.clear();
            }
        }
    }

    fn crash_or_restart(&mut self) {
        let id = match self.group.rng.random_bool(0.3) {
            true => self.any_leader(),
            false => self.any(),
        };
        match self.group.is_up(id) {
            true => self.group.crash(id),
            false => self.group.start(id),
        }
    }

    fn pause(&mut self) {
        let id = self.any_leader();
        let span = Duration::from_millis(self.group.rng.random_range(1..1_000));
        self.group.pause(id, span);
    }

    fn change_leader(&mut self) {
        let (from, to) = (self.any_leader(), self.any());
        if self.group.rng.random_bool(0.7) {
            self.group.transfer(from, to);
        } else {
            let local = self.group.servers[&to].clock.read(self.group.now);
            // Refused where a promise stands against it.
            self.group.with_node(to, |node| _ = node.campaign(local));
        }
    }

    fn read(&mut self) {
        let id = match self.group.rng.random_bool(0.5) {
            true => self.any_leader(),
            false => self.any(),
        };
        self.group.read(id);
    }

    fn change_membership(&mut self) {
        let leader = self.any_leader();
        let Some(life) = self.group.life(leader) else {
            return;
        };
        let conf = life.service.conf_state.clone();
        let joint = !conf.voters_outgoing.is_empty();
        let mut change = ConfChangeV2::default();
        if !joint {
            let several = self.group.rng.random_bool(0.5);
            let count = if several {
                self.group.rng.random_range(1..4)
            } else {
                1
            };
            let mut voters = conf.voters.len();
            for _ in 0..count {
                let single = self.any_change(&conf, &mut voters);
                let named = change
                    .changes
                    .iter()
                    .any(|other| other.node_id == single.node_id);
                if !named {
                    change.changes.push(single);
                }
            }
            let transition = match self.group.rng.random_range(0..3) {
                _ if !several => ConfChangeTransition::Auto,
                0 => ConfChangeTransition::Auto,
                1 => ConfChangeTransition::Implicit,
                _ => ConfChangeTransition::Explicit,
            };
            change.set_transition(transition);
        }
        // Refused while another change is open, or where nobody leads.
        _ = self.group.propose_conf_change(leader, change);
    }

    /// One random change; `voters` counts those that stay.
    fn any_change(&mut self, conf: &ConfState, voters: &mut usize) -> ConfChangeSingle {
        let fresh = self.group.ids().len() as PeerId + 1;
        let member = *conf.voters.choose(&mut self.group.rng).unwrap_or(&1);
        let learner = conf.learners.choose(&mut self.group.rng).copied();
        let draw = self.group.rng.random_range(0..6);
        let (kind, id) = match (draw, learner) {
            (0 | 1, Some(learner)) => (ConfChangeType::AddNode, learner),
            (2, Some(learner)) => (ConfChangeType::RemoveNode, learner),
            (3, _) if *voters > 2 => (ConfChangeType::RemoveNode, member),
            (4, _) if *voters > 2 => (ConfChangeType::AddLearnerNode, member),
            (5, _) if fresh <= SERVERS_MAX => (ConfChangeType::AddLearnerNode, fresh),
            _ if fresh <= SERVERS_MAX => (ConfChangeType::AddNode, fresh),
            _ => (ConfChangeType::AddNode, member),
        };
        if conf.voters.contains(&id) && kind != ConfChangeType::AddNode {
            *voters -= 1;
        }
        if id == fresh {
            // It starts without members and is told of them by the leader.
            self.group.add_server(id, ConfState::default());
        }
        ConfChangeSingle {
            change_type: kind as i32,
            node_id: id,
        }
    }

    /// Heals everything and waits until a new command is applied by all members.
    fn heal_and_agree(&mut self) -> Result<(), Violation> {
        let network = &mut self.group.network;
        network.disconnected.clear();
        network.cut.clear();
        network.unreliable = false;
        network.long_reordering = false;
        network.duplicate_percent = 0;
        network.latency_us = (500, 1_500);
        for id in self.group.ids() {
            if !self.group.is_up(id) {
                self.group.start(id);
            }
        }
        let deadline = self.group.now + HEALING;
        let mut proposed = None;
        while self.group.now < deadline {
            self.group.run(Duration::from_millis(100));
            self.check()?;
            if let Some(index) = proposed
                && self.is_agreed(index)
            {
                return self.final_checks();
            }
            // What a replaced leader took is gone, and its places with it: the lowest counts.
            let newer = self.propose_at_newest_leader();
            proposed = proposed.min(newer).or(proposed).or(newer);
        }
        let views: Vec<_> = self
            .group
            .servers
            .values()
            .filter_map(|server| server.life.as_ref().map(|life| (server.id, life)))
            .map(|(id, life)| {
                (
                    id,
                    life.view,
                    life.service.applied,
                    &life.service.conf_state,
                )
            })
            .collect();
        let detail = format!("no agreement on {proposed:?} after healing: {views:?}");
        Err(Violation {
            rule: Rule::Liveness,
            at: self.group.now,
            detail,
        })
    }

    fn newest_leader(&self) -> Option<PeerId> {
        let newest: Option<(Term, PeerId)> = self
            .group
            .leaders()
            .into_iter()
            .map(|(id, term)| (term, id))
            .max();
        newest.map(|(_, id)| id)
    }

    /// 0 while nobody leads.
    fn applied_by_newest_leader(&self) -> Index {
        let life = self.newest_leader().and_then(|id| self.group.life(id));
        life.map_or(0, |life| life.service.applied.index)
    }

    fn propose_at_newest_leader(&mut self) -> Option<Index> {
        let leader = self.newest_leader()?;
        let conf = &self.group.life(leader)?.service.conf_state;
        if !conf.voters_outgoing.is_empty() && !conf.auto_leave {
            _ = self
                .group
                .propose_conf_change(leader, ConfChangeV2::default());
        }
        self.group.propose(leader, 0).ok().map(|(index, _)| index)
    }

    /// All members of the newest leader's membership have applied `index` and are equal at
    /// it; nothing is left open.
    fn is_agreed(&self, index: Index) -> bool {
        let Some(leader) = self.newest_leader() else {
            return false;
        };
        let Some(life) = self.group.life(leader) else {
            return false;
        };
        let conf = &life.service.conf_state;
        let mut members = conf.voters.iter().chain(&conf.learners);
        conf.voters_outgoing.is_empty()
            && life.service.applied.index >= index
            && members.all(|id| {
                self.group
                    .life(*id)
                    .is_some_and(|life| life.service.applied.index >= index)
            })
    }

    fn final_checks(&mut self) -> Result<(), Violation> {
        check_logs_match(&self.group)?;
        check_replicas_equal(&self.group, &self.group.ids())?;
        let Some(interval) = self.group.options.snapshot_interval else {
            return Ok(());
        };
        // Crashes may have lost checkpoints; the next one comes within an interval. A leader
        // that is handing over takes no commands, and what a replaced one took is lost.
        let goal = self.applied_by_newest_leader() + interval;
        for _ in 0..100 {
            if self.applied_by_newest_leader() >= goal {
                break;
            }
            for _ in 0..interval {
                self.propose_at_newest_leader();
            }
            self.group.run(Duration::from_millis(100));
            self.check()?;
        }
        self.group.run(Duration::from_secs(2));
        self.check()?;
        let members = self.newest_leader().and_then(|leader| {
            let conf = &self.group.life(leader)?.service.conf_state;
            Some([conf.voters.clone(), conf.learners.clone()].concat())
        });
        let entries_max = interval + self.group.options.kept_entries;
        let members = members.unwrap_or_default();
        check_log_limits(&self.group, &members, entries_max as usize, usize::MAX)
    }
}
