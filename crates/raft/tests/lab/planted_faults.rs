//! The harness can fail: each planted fault ends in the violation that belongs to it.
//!
//! A group with the fault runs through seeds of a schedule until a checker speaks. That the
//! same schedules are clean without a fault is shown by `safety_properties`.

use crate::checkers::Rule;
use crate::harness::faults::Fault;
use crate::safety_properties::{Schedule, run_schedule};

/// Seeds tried until a fault shows.
const SEEDS: u64 = 100;

/// Runs schedules with `fault` until one breaks a rule, which must be one of `rules`.
fn expect(fault: Fault, schedule: Schedule, rules: &[Rule]) {
    let broken = (0..SEEDS).find_map(|seed| {
        let schedule = Schedule {
            fault: Some(fault),
            ..schedule
        };
        run_schedule(&schedule, seed)
            .err()
            .map(|violation| (seed, violation))
    });
    match broken {
        Some((seed, violation)) => {
            println!(
                "{fault:?}, seed {seed}: {:?}: {}",
                violation.rule, violation.detail
            );
            assert!(
                rules.contains(&violation.rule),
                "{fault:?} is {rules:?}, not {violation:?}"
            );
        }
        None => panic!("{fault:?} was not found with {SEEDS} seeds"),
    }
}

/// Disks, servers, services, messages and clocks that are broken: a checker reports each.
#[test]
fn planted_faults_fail_the_raft_group_harness() {
    let crashes = Schedule::CRASHES;
    expect(Fault::ForgetVote, crashes, &[Rule::Restart]);
    expect(Fault::PromiseBeforeSync, crashes, &[Rule::PromiseSynced]);
    expect(Fault::ApplyTwice, crashes, &[Rule::ApplyOrder]);
    expect(Fault::SkipEntry, crashes, &[Rule::ApplyOrder]);
    expect(Fault::ApplyOther, crashes, &[Rule::StateMachineSafety]);
}

/// A disk that loses what it said was synced: committed entries are missing afterwards.
#[test]
fn planted_fault_lost_sync_fails_the_harness() {
    let lost = [
        Rule::Restart,
        Rule::CommitQuorum,
        Rule::LeaderCompleteness,
        Rule::PromiseSynced,
    ];
    expect(Fault::LoseSyncedEntries, Schedule::CRASHES, &lost);
}

/// Messages changed on the way: entries, the commit index, the length of a candidate's log.
#[test]
fn planted_fault_rewritten_messages_fail_the_harness() {
    expect(
        Fault::ChangeEntries,
        Schedule::NETWORK,
        &[Rule::LogMatching],
    );
    expect(
        Fault::CommitUncommitted,
        Schedule::NETWORK,
        &[Rule::CommitQuorum],
    );
    expect(
        Fault::ClaimLongLog,
        Schedule::NETWORK,
        &[Rule::LeaderCompleteness],
    );
    expect(Fault::SilentNetwork, Schedule::NETWORK, &[Rule::Liveness]);
}

/// Snapshots that are empty, and logs that are never cut.
#[test]
fn planted_fault_snapshots_fail_the_harness() {
    expect(
        Fault::EmptySnapshot,
        Schedule::SNAPSHOTS,
        &[Rule::ReplicasEqual],
    );
    expect(Fault::NeverCompact, Schedule::SNAPSHOTS, &[Rule::LogLimit]);
}

/// Reads that trust the own role, and leases under clocks that differ too much.
#[test]
fn planted_fault_stale_reads_fail_the_harness() {
    expect(
        Fault::ReadWithoutQuorum,
        Schedule::READS,
        &[Rule::StaleRead],
    );
    expect(
        Fault::WildClocks,
        Schedule::READS,
        &[Rule::OneLease, Rule::StaleRead],
    );
}
