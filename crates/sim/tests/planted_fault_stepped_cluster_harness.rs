//! The checkers can fail: three faults that are built in on purpose, each in a row like all
//! others, and each found by the checkers that all rows share.

mod common;

use common::{SECOND, leader_at, move_leader, ms, started};
use strata_sim::{
    ClientOperation, Cluster, Crash, FaultKind, Mix, Planted, RATE_ONE, Scenario, Violation,
};

/// The first of some seeds at which the checkers report what `telling` looks for.
fn found(
    play: impl Fn(u64) -> Cluster,
    telling: impl Fn(&Violation) -> bool,
) -> Result<u64, Vec<String>> {
    let mut others = Vec::new();
    for seed in 0..20 {
        let mut cluster = play(seed);
        match cluster.finish() {
            Ok(_) => {}
            Err(violations) if violations.iter().any(&telling) => return Ok(seed),
            Err(violations) => others.extend(violations.iter().map(|v| v.to_string())),
        }
    }
    Err(others)
}

/// Writes are acknowledged before they are synced: disks report syncs and do none.
#[test]
fn planted_fault_stepped_cluster_harness_acknowledge_before_sync() {
    let play = |seed| {
        let mut cluster = started(3, seed);
        for store in 1..=3 {
            cluster.store_mut(store).disk.lies = true;
        }
        for number in 0..20 {
            cluster.put(&format!("k{number}"), "acknowledged");
        }
        for store in 1..=3 {
            cluster.crash_store(store, Crash::Power);
        }
        cluster
    };
    let telling = |violation: &Violation| {
        matches!(
            violation,
            Violation::AcknowledgedWriteLost { .. } | Violation::History(_)
        )
    };
    found(play, telling).expect("lost writes were not found");
}

/// One follower applies nothing of one entry.
#[test]
fn planted_fault_stepped_cluster_harness_skipped_command() {
    let play = |seed| {
        let scenario = Scenario {
            stores: 3,
            mix: Mix {
                append: 2,
                get: 1,
                ..Mix::none()
            },
            rounds: 1,
            round: SECOND,
            ..Scenario::new(seed)
        };
        let mut cluster = scenario.play();
        cluster.planted = Planted {
            skip_apply: Some((2, 5)),
        };
        for number in 0..10 {
            cluster.must(ClientOperation::Append(
                "k".into(),
                format!("{number};").into(),
            ));
        }
        assert_eq!(cluster.planted, Planted::default(), "nothing was skipped");
        cluster
    };
    let telling = |violation: &Violation| matches!(violation, Violation::ReplicasDiffer { .. });
    found(play, telling).expect("a replica that differs was not found");
}

/// A leader trusts its lease while its clock runs far slower than it may.
#[test]
fn planted_fault_stepped_cluster_harness_clock_beyond_drift() {
    let play = |seed| {
        let mut cluster = started(3, seed);
        move_leader(&mut cluster, "k", 1);
        cluster.put("k", "old");
        // Long enough for a round of heartbeats, which the lease counts from.
        cluster.run_for(ms(500));
        let now = cluster.now();
        cluster.store_mut(1).clock.set_rate(now, RATE_ONE / 20);
        // The slow leader is cut off; the others elect a leader, which takes a write.
        cluster.run_for(ms(60));
        cluster.network.isolate(1, &[1, 2, 3]);
        cluster.run_for(2 * SECOND);
        cluster.put("k", "new");
        cluster.must(ClientOperation::Get("k".into()));
        let _ = read_at_1(&mut cluster);
        cluster
    };
    let telling = |violation: &Violation| matches!(violation, Violation::History(_));
    found(play, telling).expect("a stale read was not found");
}

/// A client that believes in store 1 reads there, and its answer enters the history.
fn read_at_1(cluster: &mut Cluster) -> bool {
    cluster
        .execute_at(1, ClientOperation::Get("k".into()), SECOND)
        .is_some()
}

/// The same rows without a planted fault are clean.
#[test]
fn rows_without_planted_faults_are_clean() {
    let mut cluster = started(3, 5);
    move_leader(&mut cluster, "k", 1);
    cluster.put("k", "old");
    cluster.run_for(ms(60));
    cluster.network.isolate(1, &[1, 2, 3]);
    cluster.run_for(2 * SECOND);
    cluster.put("k", "new");
    let _ = read_at_1(&mut cluster);
    for store in 1..=3 {
        cluster.crash_store(store, Crash::Power);
    }
    cluster.strike(FaultKind::Weather);
    let leader = {
        cluster.heal();
        leader_at(&mut cluster, "k")
    };
    assert!((1..=3).contains(&leader));
    cluster.finish_clean();
}
