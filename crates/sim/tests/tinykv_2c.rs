//! The course's project 2C on whole stepped clusters: logs are compacted at ten entries,
//! and who was away comes back by a snapshot.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{SECOND, leader_at, ms, short_logs, started_with, stored, truncated};
use strata_sim::{ClusterOptions, Crash, RunReport, Scenario};

fn row(seed: u64, change: impl FnOnce(&mut Scenario)) -> RunReport {
    let mut scenario = Scenario {
        round: 5 * SECOND,
        store: short_logs(10),
        ..Scenario::new(seed)
    };
    change(&mut scenario);
    let report = scenario.run_clean();
    println!("{report:?}");
    assert!(report.compactions > 0, "nothing was compacted");
    report
}

#[test]
fn one_snapshot() {
    let mut cluster = started_with(ClusterOptions {
        store: short_logs(10),
        ..ClusterOptions::new(3, 1)
    });
    let region = cluster.region_of(b"k1").id;
    cluster.put("k1", "v1");
    cluster.put("k2", "v2");
    let leader = leader_at(&mut cluster, "k1");
    let away = (1..=3).find(|store| *store != leader).unwrap();
    let others: Vec<u64> = (1..=3).filter(|store| *store != away).collect();
    assert!(cluster.run_until(5 * SECOND, |cluster| {
        stored(cluster, away, "k2").as_deref() == Some(&b"v2"[..])
    }));
    let before = truncated(&cluster, away, region);

    cluster.network.partition(&[&others, &[away]]);
    for number in 100..115 {
        cluster.put(&format!("k{number}"), &format!("v{number}"));
    }
    cluster.must(strata_sim::ClientOperation::Delete(Bytes::from_static(
        b"k2",
    )));
    // Silent for two election timeouts, it holds nothing any more.
    cluster.run_for(2 * SECOND);
    assert_eq!(stored(&cluster, away, "k114"), None);
    let compacted = truncated(&cluster, leader, region);
    assert!(compacted >= before + 15, "{before} -> {compacted}");

    cluster.network.heal();
    let whole = cluster.run_until(10 * SECOND, |cluster| {
        stored(cluster, away, "k114").as_deref() == Some(&b"v114"[..])
    });
    assert!(whole, "store {away} got no snapshot\n{}", cluster.trace);
    assert_eq!(stored(&cluster, away, "k2"), None, "was deleted meanwhile");
    assert_eq!(stored(&cluster, away, "k1").as_deref(), Some(&b"v1"[..]));
    assert!(truncated(&cluster, away, region) >= compacted);

    // Power is lost right after: what was installed is there again.
    cluster.crash_store(away, Crash::Power);
    cluster.start_store(away);
    cluster.put("k200", "v200");
    let caught_up = cluster.run_until(10 * SECOND, |cluster| {
        stored(cluster, away, "k200").is_some()
    });
    assert!(caught_up, "store {away} does not follow after its restart");
    let report = cluster.finish_clean();
    assert!(report.snapshots > 0);
}

#[test]
fn snapshot_recover() {
    row(2, |row| {
        row.clients = 1;
        row.crashes = true;
    });
}

#[test]
fn snapshot_recover_many_clients() {
    row(3, |row| {
        row.clients = 20;
        row.crashes = true;
    });
}

#[test]
fn snapshot_unreliable() {
    row(4, |row| row.unreliable = true);
}

#[test]
fn snapshot_unreliable_recover() {
    row(5, |row| {
        row.unreliable = true;
        row.crashes = true;
    });
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition() {
    let report = row(6, |row| {
        row.unreliable = true;
        row.crashes = true;
        row.partitions = true;
    });
    assert!(report.snapshots > 0, "nobody needed a snapshot");
}

/// The documents report "logs were not trimmed": followers must compact as leaders do, in
/// their engines too.
#[test]
fn followers_logs_trimmed() {
    let mut cluster = started_with(ClusterOptions {
        store: short_logs(20),
        ..ClusterOptions::new(3, 7)
    });
    let region = cluster.region_of(b"k").id;
    for number in 0..200 {
        cluster.put("k", &number.to_string());
    }
    cluster.run_for(SECOND);
    let held = |cluster: &strata_sim::Cluster, store: u64| {
        use strata_storage::{Cf, Direction, ReadView, keys};
        let (start, end) = keys::raft_log_range(region);
        let mut count = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            count += 1;
            std::ops::ControlFlow::Continue(())
        };
        let raft = &cluster.store(store).engines.raft;
        raft.scan(
            Cf::RaftLog,
            &start,
            Some(&end),
            Direction::Forward,
            &mut visit,
        )
        .unwrap();
        count
    };
    for store in 1..=3 {
        let first = truncated(&cluster, store, region);
        assert!(first > 150, "store {store} is truncated at {first}");
        let entries = held(&cluster, store);
        assert!(entries <= 21, "store {store} holds {entries} entries");
    }
    cluster.run_for(ms(100));
    cluster.finish_clean();
}

/// A silent peer is brought back again and again, each time at another phase of its
/// install.
#[test]
fn crash_rule_snapshot_install_in_every_phase_of_a_cluster() {
    let mut installed = 0;
    for step in 0..60u64 {
        let mut cluster = started_with(ClusterOptions {
            store: short_logs(10),
            ..ClusterOptions::new(3, 100 + step)
        });
        let leader = leader_at(&mut cluster, "k");
        let away = (1..=3).find(|store| *store != leader).unwrap();
        let others: Vec<u64> = (1..=3).filter(|store| *store != away).collect();
        cluster.network.partition(&[&others, &[away]]);
        for number in 0..15 {
            cluster.put("k", &number.to_string());
            cluster.put(&format!("k{number}"), "v");
        }
        cluster.run_for(2 * SECOND);
        cluster.network.heal();
        // The install takes some tens of milliseconds after the first heartbeat.
        let region = cluster.region_of(b"k").id;
        cluster.run_until(10 * SECOND, |cluster| {
            use strata_proto::raft_serverpb::PeerState;
            let kv = &cluster.store(away).engines.kv;
            let state = strata_storage::read_region_state(kv, region).unwrap();
            state.is_some_and(|state| state.state() == PeerState::Applying)
        });
        cluster.run_for(Duration::from_micros(step * 150));
        cluster.crash_store(away, Crash::Power);
        cluster.run_for(ms(200));
        cluster.start_store(away);
        let whole = cluster.run_until(20 * SECOND, |cluster| {
            stored(cluster, away, "k14").is_some()
        });
        assert!(whole, "step {step}: no data after the restart");
        installed += cluster.finish_clean().snapshots;
    }
    assert!(installed >= 60, "{installed} installs in 60 runs");
}
