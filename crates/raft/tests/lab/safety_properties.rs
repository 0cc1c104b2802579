//! Random schedules, thousands of them, each from its seed: drops, duplicates, reordering,
//! partitions, crashes that lose what was not synced, pauses, membership changes, leader
//! transfers, snapshots, reads under drifting clocks.
//!
//! Every step of every schedule is checked for the five safety properties of the Raft paper
//! and the other rules of `checkers`. At its end all faults are healed and the group must
//! agree on a new command everywhere.
//!
//! A failing seed is printed. `RAFT_LAB_SEED=n` runs that one only, `RAFT_LAB_SEEDS=n` as
//! many as one likes.

use crate::random_schedule::{Run, isolate_slow_leader, run_schedule};
use crate::rules::Coverage;
use crate::schedule::Schedule;

/// Prints which seed failed when a checker or the core panics in the middle of a schedule.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {} failed; repeat with RAFT_LAB_SEED={}",
                self.0, self.0
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `schedule` under `seeds` seeds and returns what they covered together.
fn run_seeds(schedule: Schedule, seeds: u64) -> Coverage {
    let range = match number("RAFT_LAB_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RAFT_LAB_SEEDS").unwrap_or(seeds),
    };
    let mut total = Coverage::default();
    for seed in range {
        let _announce = Announce(seed);
        match run_schedule(&schedule, seed) {
            Ok(covered) => total.add(covered),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    println!("{total:?}");
    total
}

/// A schedule that never gets anywhere would prove nothing.
fn assert_covers(total: Coverage, wanted: Coverage) {
    if number("RAFT_LAB_SEED").is_none() && number("RAFT_LAB_SEEDS").is_none() {
        assert!(total.covers(&wanted), "{total:?} is less than {wanted:?}");
    }
}

#[test]
fn safety_holds_over_a_bad_network() {
    let total = run_seeds(Schedule::NETWORK, 300);
    assert_covers(
        total,
        Coverage {
            elections: 300,
            commands: 3_000,
            ..Coverage::default()
        },
    );
}

#[test]
fn safety_holds_through_crashes_that_lose_unsynced_writes() {
    let total = run_seeds(Schedule::CRASHES, 400);
    let wanted = Coverage {
        elections: 400,
        commands: 4_000,
        starts: 4_000,
        ..Coverage::default()
    };
    assert_covers(total, wanted);
}

#[test]
fn safety_holds_with_snapshots_and_compacted_logs() {
    let total = run_seeds(Schedule::SNAPSHOTS, 400);
    let wanted = Coverage {
        elections: 400,
        commands: 4_000,
        installs: 200,
        ..Coverage::default()
    };
    assert_covers(total, wanted);
}

#[test]
fn safety_holds_while_members_change() {
    let total = run_seeds(Schedule::MEMBERSHIP, 400);
    let wanted = Coverage {
        conf_changes: 400,
        installs: 200,
        ..Coverage::default()
    };
    assert_covers(total, wanted);
}

#[test]
fn reads_are_never_stale_under_drifting_clocks() {
    let total = run_seeds(Schedule::READS, 400);
    let wanted = Coverage {
        reads: 2_000,
        leased_steps: 7_000,
        ..Coverage::default()
    };
    assert_covers(total, wanted);
}

/// Clocks that drift apart by all that leases allow for: 5 % each way make 10 %.
#[test]
fn leases_end_in_time_at_the_worst_drift() {
    let mut held = 0;
    for seed in 0..300 {
        let _announce = Announce(seed);
        match isolate_slow_leader(950_000, 1_050_000, seed) {
            Ok(had_lease) => held += u32::from(had_lease),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    assert!(
        held > 240,
        "only {held} of 300 leaders held a lease when they were cut off"
    );
}

#[test]
fn safety_holds_under_everything_at_once() {
    let total = run_seeds(Schedule::EVERYTHING, 400);
    let wanted = Coverage {
        conf_changes: 200,
        installs: 70,
        reads: 700,
        ..Coverage::default()
    };
    assert_covers(total, wanted);
}

/// The same seed gives the same run, down to the last byte sent.
#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let run = || {
            let mut run = Run::new(&Schedule::EVERYTHING, seed);
            let outcome = run.trouble().map_err(|violation| violation.rule);
            let counters = &run.group.counters;
            (
                outcome,
                counters.calls,
                counters.bytes,
                run.group.history.coverage(),
            )
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}
