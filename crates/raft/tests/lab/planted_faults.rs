//! The harness can fail: each planted fault ends in the violation that belongs to it.
//!
//! A group with the fault runs through seeds of a schedule until a checker speaks. That the
//! same schedules are clean without a fault is shown by `safety_properties`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::final_checks::check_acknowledged;
use crate::harness::faults::Fault;
use crate::harness::group::Group;
use crate::harness::options::Options;
use crate::random_schedule::{isolate_slow_leader, run_schedule};
use crate::rules::Rule;
use crate::schedule::Schedule;

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
    // Clocks that differ by far more than leases allow for.
    let found = (0..20).find_map(|seed| isolate_slow_leader(700_000, 1_300_000, seed).err());
    let found = found.map(|violation| violation.rule);
    assert!(
        matches!(found, Some(Rule::OneLease | Rule::StaleRead)),
        "{found:?}"
    );
}

/// A service that acknowledges a command when it is proposed: its leader is cut off, and the
/// command is nowhere to be found in the end.
#[test]
fn planted_fault_early_acknowledgement_fails_the_harness() {
    let mut group = Group::new(Options::new(3, 1));
    group.run(Duration::from_secs(3));
    let (leader, _) = *group
        .leaders()
        .last()
        .expect("a leader after three quiet seconds");
    let (index, kept) = group.propose(leader, 0).expect("the leader takes commands");
    let mut acknowledged = BTreeMap::from([(index, kept)]);
    group.run(Duration::from_secs(1));
    assert!(check_acknowledged(&group, &[1, 2, 3], &acknowledged).is_ok());

    group.network.disconnected.insert(leader);
    let (index, lost) = group
        .propose(leader, 0)
        .expect("the leader knows no better");
    acknowledged.insert(index, lost);
    group.run(Duration::from_secs(3));
    group.network.disconnected.clear();
    group.run(Duration::from_secs(3));
    let found = check_acknowledged(&group, &[1, 2, 3], &acknowledged);
    assert_eq!(
        found.map_err(|violation| violation.rule),
        Err(Rule::Acknowledged)
    );
}
