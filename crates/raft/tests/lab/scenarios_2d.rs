//! 6.824 lab 2D: the service takes a snapshot at every tenth entry and the log before it
//! goes, on every server.
//!
//! These rows are bound: not more calls for a committed command than the better of the
//! documents' two columns.

use crate::harness::lab::{Figures, Lab};
use crate::harness::options::SNAPSHOT_INTERVAL;

fn figures(seconds: f64, calls: u64, commands: u64) -> Figures {
    Figures {
        seconds,
        limit: Some((calls, commands)),
    }
}

/// What happens to the server that falls behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Stays,
    Disconnects,
    Crashes,
}

/// Thirty rounds: a server goes away (a leader in each third round), about an interval of
/// commands comes at once, the server returns and must have everything.
fn snap_common(title: &'static str, victim_does: Victim, reliable: bool, figures: Figures) {
    let mut lab = Lab::begin_with_snapshots(title, 3, figures);
    lab.group.network.unreliable = !reliable;
    lab.one(3, true);
    let mut leader = lab.check_one_leader();
    for round in 0..30 {
        let next = lab.after(leader, 1);
        let (sender, victim) = if round % 3 == 1 {
            (next, leader)
        } else {
            (leader, next)
        };
        match victim_does {
            Victim::Stays => {}
            Victim::Disconnects => lab.disconnect(victim),
            Victim::Crashes => lab.crash(victim),
        }
        if victim_does != Victim::Stays {
            lab.one(2, true);
        }
        let burst = SNAPSHOT_INTERVAL / 2 + lab.random(SNAPSHOT_INTERVAL);
        (0..burst).for_each(|_| _ = lab.start(sender));
        let alive = if victim_does == Victim::Stays { 3 } else { 2 };
        lab.one(alive, true);
        lab.check_limits();
        if victim_does == Victim::Crashes {
            lab.group.start(victim);
        }
        if victim_does != Victim::Stays {
            lab.connect(victim);
            lab.one(3, true);
            leader = lab.check_one_leader();
        }
    }
    lab.end();
}

/// Nobody falls behind.
#[test]
fn snapshots_basic() {
    let figures = figures(11.6, 176, 192);
    snap_common("(2D): snapshots basic", Victim::Stays, true, figures);
}

/// The server that was cut off gets a snapshot where the log does not reach back.
#[test]
fn install_snapshots_disconnect() {
    let figures = figures(64.2, 878, 336);
    snap_common(
        "(2D): install snapshots (disconnect)",
        Victim::Disconnects,
        true,
        figures,
    );
}

/// The same over a network that drops and delays.
#[test]
fn install_snapshots_disconnect_unreliable() {
    let title = "(2D): install snapshots (disconnect+unreliable)";
    snap_common(title, Victim::Disconnects, false, figures(81.1, 1_059, 341));
}

/// The server starts again from its own snapshot and log.
#[test]
fn install_snapshots_crash() {
    let figures = figures(53.5, 601, 339);
    snap_common(
        "(2D): install snapshots (crash)",
        Victim::Crashes,
        true,
        figures,
    );
}

/// The same over a network that drops and delays.
#[test]
fn install_snapshots_unreliable_crash() {
    let title = "(2D): install snapshots (unreliable+crash)";
    snap_common(title, Victim::Crashes, false, figures(63.5, 687, 336));
}

/// All servers crash at once and go on where they were, five times.
#[test]
fn crash_and_restart_all_servers() {
    let title = "(2D): crash and restart all servers";
    // 255 calls for 59 commands are fewer for a command than 268 for 58.
    let mut lab = Lab::begin_with_snapshots(title, 3, figures(19.5, 255, 59));
    lab.one(3, true);
    for _ in 0..5 {
        let count = SNAPSHOT_INTERVAL / 2 + lab.random(SNAPSHOT_INTERVAL);
        (0..count).for_each(|_| _ = lab.one(3, true));
        let before = lab.one(3, true);
        (1..=3).for_each(|id| lab.crash(id));
        for id in 1..=3 {
            lab.group.start(id);
            lab.connect(id);
        }
        let after = lab.one(3, true);
        assert!(after > before, "index {after} after {before}");
    }
    lab.end();
}
