//! 6.824 lab 2C: persistence, under crashes and a bad network.
//!
//! A crash here is harder than in the course: what was written and not synced is lost, but
//! for a random prefix.

use std::time::Duration;

use strata_raft::{Index, PeerId};

use crate::harness::lab::{Figures, Lab, RAFT_ELECTION_TIMEOUT};
use crate::harness::service::CommandId;

fn figures(seconds: f64) -> Figures {
    Figures {
        seconds,
        limit: None,
    }
}

/// Crashes and starts `id` again, connected.
fn bounce(lab: &mut Lab, id: PeerId) {
    lab.restart(id);
    lab.connect(id);
}

/// Restarts of all, of a leader, of a follower.
#[test]
fn basic_persistence() {
    let mut lab = Lab::begin("(2C): basic persistence", 3, figures(4.9));
    lab.one(3, true);
    (1..=3).for_each(|id| bounce(&mut lab, id));
    lab.one(3, true);

    let leader = lab.check_one_leader();
    lab.disconnect(leader);
    bounce(&mut lab, leader);
    lab.one(3, true);

    let leader = lab.check_one_leader();
    lab.disconnect(leader);
    let index = lab.one(2, true);
    bounce(&mut lab, leader);
    // The old leader joins before the next one goes.
    lab.wait(index, 3, None);

    let leader = lab.check_one_leader();
    let follower = lab.after(leader, 1);
    lab.disconnect(follower);
    lab.one(2, true);
    bounce(&mut lab, follower);
    lab.one(3, true);
    lab.end();
}

/// Majorities that overlap in one server take turns, each server restarted in between.
#[test]
fn more_persistence() {
    let mut lab = Lab::begin("(2C): more persistence", 5, figures(19.3));
    for _ in 0..5 {
        lab.one(5, true);
        let leader = lab.check_one_leader();
        let ring: Vec<PeerId> = (0..5).map(|step| lab.after(leader, step)).collect();
        lab.disconnect(ring[1]);
        lab.disconnect(ring[2]);
        lab.one(3, true);

        [0, 3, 4].iter().for_each(|at| lab.disconnect(ring[*at]));
        bounce(&mut lab, ring[1]);
        bounce(&mut lab, ring[2]);
        lab.sleep(RAFT_ELECTION_TIMEOUT);
        bounce(&mut lab, ring[3]);
        lab.one(3, true);

        lab.connect(ring[4]);
        lab.connect(ring[0]);
    }
    lab.one(5, true);
    lab.end();
}

/// Of the two that agreed, one restarts and must not forget.
#[test]
fn partitioned_leader_and_one_follower_crash() {
    let title = "(2C): partitioned leader and one follower crash, leader restarts";
    let mut lab = Lab::begin(title, 3, figures(2.3));
    lab.one(3, true);
    let leader = lab.check_one_leader();
    let (second, third) = (lab.after(leader, 1), lab.after(leader, 2));
    lab.disconnect(third);
    lab.one(2, true);

    lab.crash(leader);
    lab.crash(second);
    lab.connect(third);
    bounce(&mut lab, leader);
    lab.one(2, true);

    bounce(&mut lab, second);
    lab.one(3, true);
    lab.end();
}

/// Figure 8 of the paper: leaders crash right after they took a command, mostly before it
/// is agreed on, a thousand times.
#[test]
fn figure_8() {
    let mut lab = Lab::begin("(2C): Figure 8", 5, figures(29.5));
    lab.one(1, true);
    for _ in 0..1_000 {
        let leader = start_anywhere(&mut lab);
        figure_8_pause(&mut lab);
        if let Some(leader) = leader {
            lab.crash(leader);
        }
        let up = (1..=5).filter(|id| lab.group.is_up(*id)).count();
        let revived = lab.any();
        if up < 3 && !lab.group.is_up(revived) {
            bounce(&mut lab, revived);
        }
    }
    lab.heal();
    lab.one(5, true);
    lab.end();
}

/// Gives a command to every server that takes one and returns the last that did.
fn start_anywhere(lab: &mut Lab) -> Option<PeerId> {
    let mut leader = None;
    for id in 1..=5 {
        if lab.start(id).is_some() && lab.is_connected(id) {
            leader = Some(id);
        }
    }
    leader
}

/// One pause of ten is up to half an election timeout, the others up to 12 ms.
fn figure_8_pause(lab: &mut Lab) {
    let longest = if lab.random(10) == 0 { 500 } else { 13 };
    let pause = lab.random(longest);
    lab.sleep_ms(pause);
}

/// Five commands at a time are agreed on over a network that drops and delays.
#[test]
fn unreliable_agreement() {
    let mut lab = Lab::begin("(2C): unreliable agreement", 5, figures(3.5));
    lab.group.network.unreliable = true;
    for _ in 1..50 {
        (0..4).for_each(|_| lab.one_in_background());
        lab.one(1, true);
    }
    lab.group.network.unreliable = false;
    lab.wait_for_background();
    lab.one(5, true);
    assert!(lab.group.history.commands() >= 246);
    lab.end();
}

/// Figure 8 over a network that drops, delays and reorders, with leaders cut off.
#[test]
fn figure_8_unreliable() {
    let mut lab = Lab::begin("(2C): Figure 8 (unreliable)", 5, figures(44.5));
    lab.group.network.unreliable = true;
    lab.one(1, true);
    for round in 0..1_000 {
        if round == 200 {
            lab.group.network.long_reordering = true;
        }
        let leader = start_anywhere(&mut lab);
        figure_8_pause(&mut lab);
        if let (Some(leader), true) = (leader, lab.random(2) == 0) {
            lab.disconnect(leader);
        }
        let up = (1..=5).filter(|id| lab.is_connected(*id)).count();
        let back = lab.any();
        if up < 3 {
            lab.connect(back);
        }
    }
    lab.heal();
    lab.one(5, true);
    lab.end();
}

/// Three clients write while servers crash, restart and are cut off.
#[test]
fn churn() {
    internal_churn("(2C): churn", false);
}

/// As `churn`, over a network that drops and delays.
#[test]
fn unreliable_churn() {
    internal_churn("(2C): unreliable churn", true);
}

/// A client that gives its command to all servers, waits a little for it to be committed,
/// and goes on to the next.
struct ChurnClient {
    number: u64,
    waits_for: Option<(Index, CommandId)>,
    patience: std::slice::Iter<'static, u64>,
    next_at: Duration,
}

/// How long a client waits between its looks, in ms; then it gives up the command.
const PATIENCE_MS: [u64; 5] = [10, 20, 50, 100, 200];

impl ChurnClient {
    fn new(number: u64) -> Self {
        Self {
            number,
            waits_for: None,
            patience: [].iter(),
            next_at: Duration::ZERO,
        }
    }

    /// One step at its time. Returns a command that it saw committed.
    fn poll(&mut self, lab: &mut Lab) -> Option<(Index, CommandId)> {
        let now = lab.group.now;
        if now < self.next_at {
            return None;
        }
        let Some((index, command)) = self.waits_for else {
            let taken: Vec<_> = (1..=5).filter_map(|id| lab.start(id)).collect();
            self.waits_for = taken.last().map(|(index, command, _)| (*index, *command));
            self.patience = PATIENCE_MS.iter();
            let idle = 79 + self.number * 17;
            let pause = if self.waits_for.is_some() { 0 } else { idle };
            self.next_at = now + Duration::from_millis(pause);
            return None;
        };
        let (count, found) = lab.n_committed(index);
        if count > 0 {
            self.waits_for = None;
            return (found == Some(command)).then_some((index, command));
        }
        match self.patience.next() {
            Some(pause) => self.next_at = now + Duration::from_millis(*pause),
            None => self.waits_for = None,
        }
        None
    }
}

fn sleep_with_clients(lab: &mut Lab, clients: &mut [ChurnClient], span: Duration) {
    let end = lab.group.now + span;
    while lab.group.now < end {
        for client in clients.iter_mut() {
            if let Some((index, command)) = client.poll(lab) {
                lab.acknowledge(index, command);
            }
        }
        lab.sleep_ms(1);
    }
}

fn internal_churn(title: &'static str, unreliable: bool) {
    let mut lab = Lab::begin(title, 5, figures(16.3));
    lab.group.network.unreliable = unreliable;
    let mut clients: Vec<_> = (0..3).map(ChurnClient::new).collect();
    for _ in 0..20 {
        if lab.random(1_000) < 200 {
            let id = lab.any();
            lab.disconnect(id);
        }
        if lab.random(1_000) < 500 {
            let id = lab.any();
            if !lab.group.is_up(id) {
                lab.group.start(id);
            }
            lab.connect(id);
        }
        if lab.random(1_000) < 200 {
            let id = lab.any();
            lab.crash(id);
        }
        sleep_with_clients(&mut lab, &mut clients, RAFT_ELECTION_TIMEOUT * 7 / 10);
    }
    sleep_with_clients(&mut lab, &mut clients, RAFT_ELECTION_TIMEOUT);
    lab.group.network.unreliable = false;
    lab.heal();
    sleep_with_clients(&mut lab, &mut clients, RAFT_ELECTION_TIMEOUT);
    lab.one(5, true);
    lab.end();
}
