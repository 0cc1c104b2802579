//! The checkers can fail: faults that are built in on purpose, each in a row like all others,
//! and each found by the checkers that all rows share.

mod common;

use common::peers::{change_peers, replace_for, settle};
use common::{SECOND, leader_at, move_leader, ms, random_keys, short_logs, started, started_with};
use strata_proto::raft_serverpb::PeerState;
use strata_raftstore::{PeerChange, PeerChangeKind, StoreOptions};
use strata_sim::{
    ClientOperation, Cluster, ClusterOptions, Crash, FaultKind, Mix, Planted, RATE_ONE, Scenario,
    Violation,
};

/// The first of some seeds at which the checkers report what `telling` looks for.
fn found(
    play: impl Fn(u64) -> Cluster,
    telling: impl Fn(&Violation) -> bool,
) -> Result<u64, Vec<String>> {
    let mut others = Vec::new();
    for seed in 0..60 {
        let mut cluster = play(seed);
        match cluster.finish() {
            Ok(_) => {}
            Err(violations) => match violations.iter().find(|violation| telling(violation)) {
                Some(violation) => {
                    println!("found at seed {seed}: {violation}");
                    return Ok(seed);
                }
                None => others.extend(violations.iter().map(|v| v.to_string())),
            },
        }
    }
    Err(others)
}

/// Writes are acknowledged before they are synced: disks report syncs and do none.
#[test]
fn planted_fault_stepped_cluster_harness_acknowledge_before_sync() {
    let play = |seed| {
        let mut cluster = started(3, seed);
        cluster.planted.lying_disks = true;
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
            ..Planted::default()
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

/// Clerks over short logs, and stores that lose their power: snapshots are needed, and logs
/// are read again at each start.
fn short_logs_row(seed: u64, planted: Planted) -> Cluster {
    let scenario = Scenario {
        stores: 3,
        clerks: true,
        mix: random_keys(),
        faults: vec![FaultKind::PowerCut],
        rounds: 2,
        store: short_logs(5),
        ..Scenario::new(seed)
    };
    scenario.play_with(|cluster| {
        cluster.planted = planted;
        cluster.run_for(4 * SECOND);
    })
}

/// Peers leave their stores and come back by snapshots, stores lose their power, and reads at
/// any replica wait long for their reader.
fn moving_peers_row(seed: u64, planted: Planted) -> Cluster {
    let scenario = Scenario {
        mix: Mix {
            get: 3,
            put: 1,
            ..Mix::none()
        },
        replica_reads: 0.8,
        faults: vec![FaultKind::PowerCut],
        rounds: 2,
        store: StoreOptions {
            peer_stale_time: SECOND,
            ..short_logs(5)
        },
        ..Scenario::new(seed)
    };
    let mut new_ids = 1_000_000;
    let mut cluster = scenario.play_with(|cluster| {
        cluster.planted = planted;
        cluster.options.peers_move = true;
        for store in cluster.store_ids() {
            cluster.store_mut(store).disk.read = (ms(0), ms(300));
        }
        replace_for(cluster, 24, &mut new_ids);
    });
    settle(&mut cluster, &mut new_ids);
    cluster
}

/// A snapshot is installed without its sessions: what was executed may be executed again.
#[test]
fn planted_fault_stepped_cluster_harness_snapshot_without_sessions() {
    let planted = Planted {
        no_sessions_installed: true,
        ..Planted::default()
    };
    let telling = |violation: &Violation| {
        matches!(
            violation,
            Violation::ReplicasDiffer { .. } | Violation::History(_)
        )
    };
    found(|seed| short_logs_row(seed, planted), telling).expect("lost sessions were not found");
}

/// A log is deleted before the kv engine holds durably where it begins.
#[test]
fn planted_fault_stepped_cluster_harness_early_log_deletion() {
    let planted = Planted {
        early_log_deletion: true,
        ..Planted::default()
    };
    let telling = |violation: &Violation| matches!(violation, Violation::StoreStopped { .. });
    found(|seed| short_logs_row(seed, planted), telling).expect("a torn log was not found");
}

/// A read is served from a range that was cleared since it was let go.
#[test]
fn planted_fault_stepped_cluster_harness_read_of_given_up_data() {
    let planted = Planted {
        reads_of_given_up_data: true,
        ..Planted::default()
    };
    let telling = |violation: &Violation| matches!(violation, Violation::History(_));
    found(|seed| moving_peers_row(seed, planted), telling)
        .expect("a read of cleared data was not found");
}

/// A change of peers is answered and acted on before it is synced.
#[test]
fn planted_fault_stepped_cluster_harness_unsynced_conf_change() {
    let planted = Planted {
        unsynced_state: Some(PeerState::Normal),
        ..Planted::default()
    };
    let telling =
        |violation: &Violation| matches!(violation, Violation::MembershipTakenBack { .. });
    found(|seed| moving_peers_row(seed, planted), telling)
        .expect("an unsynced change of peers was not found");
}

/// An install empties the log before its begin is synced. The power goes soon after it has
/// begun.
#[test]
fn planted_fault_stepped_cluster_harness_unsynced_install() {
    let play = |seed| {
        let mut cluster = started_with(ClusterOptions {
            store: short_logs(10),
            ..ClusterOptions::new(3, seed)
        });
        cluster.planted.unsynced_state = Some(PeerState::Applying);
        let leader = leader_at(&mut cluster, "k");
        let away = leader % 3 + 1;
        cluster.network.isolate(away, &[1, 2, 3]);
        for number in 0..30 {
            cluster.put("k", &number.to_string());
        }
        cluster.run_for(2 * SECOND);
        cluster.network.heal();
        let region = cluster.region_of(b"k").id;
        let begun = cluster.run_until(10 * SECOND, |cluster| {
            let kv = &cluster.store(away).engines.kv;
            let state = strata_storage::read_region_state(kv, region).unwrap();
            state.is_some_and(|state| state.state() == PeerState::Applying)
        });
        assert!(begun, "seed {seed}: store {away} needs no snapshot");
        cluster.run_for(std::time::Duration::from_micros(seed * 500));
        cluster.crash_store(away, Crash::Power);
        cluster
    };
    let telling = |violation: &Violation| matches!(violation, Violation::StoreStopped { .. });
    found(play, telling).expect("an unsynced begin of an install was not found");
}

/// A peer's log goes before its tombstone is synced. The power goes soon after that.
#[test]
fn planted_fault_stepped_cluster_harness_unsynced_tombstone() {
    let play = |seed| {
        let mut cluster = started_with(ClusterOptions {
            peers_move: true,
            ..ClusterOptions::new(3, seed)
        });
        cluster.planted.unsynced_state = Some(PeerState::Tombstone);
        cluster.put("k", "v");
        let leader = leader_at(&mut cluster, "k");
        let region = cluster.region_of(b"k").clone();
        let mut followers = region.peers.iter().filter(|peer| peer.store_id != leader);
        let peer = *followers.next().expect("three peers");
        let kind = PeerChangeKind::Remove;
        let changes = vec![PeerChange { kind, peer }];
        assert!(change_peers(&mut cluster, leader, region.id, changes));
        let gone = cluster.run_until(10 * SECOND, |cluster| {
            let raft = &cluster.store(peer.store_id).engines.raft;
            let state = strata_storage::read_raft_state(raft, region.id);
            state.unwrap().is_none()
        });
        assert!(gone, "seed {seed}: the log stays");
        cluster.crash_store(peer.store_id, Crash::Power);
        cluster
    };
    let telling = |violation: &Violation| matches!(violation, Violation::StoreStopped { .. });
    found(play, telling).expect("an unsynced tombstone was not found");
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
    for seed in 0..5 {
        short_logs_row(seed, Planted::default()).finish_clean();
        moving_peers_row(seed, Planted::default()).finish_clean();
    }
}
