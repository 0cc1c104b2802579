//! The course's project 2B on whole stepped clusters: five stores, clients that append to
//! and scan keys of their own and keys that all share, in three rounds of five seconds.

mod common;

use common::{SECOND, leader_at, ms, started, stored};
use strata_sim::Scenario;

fn row(seed: u64, change: impl FnOnce(&mut Scenario)) {
    let mut scenario = Scenario {
        round: 5 * SECOND,
        ..Scenario::new(seed)
    };
    change(&mut scenario);
    let report = scenario.run_clean();
    println!("{report:?}");
}

#[test]
fn basic() {
    row(1, |row| row.clients = 1);
}

#[test]
fn concurrent() {
    row(2, |row| row.clients = 5);
}

#[test]
fn unreliable() {
    row(3, |row| row.unreliable = true);
}

#[test]
fn one_partition() {
    let mut cluster = started(5, 4);
    let leader = leader_at(&mut cluster, "k1");
    let others: Vec<u64> = (1..=5).filter(|store| *store != leader).collect();
    let key = b"k1".as_slice();
    cluster.put("k0", "before");

    // The leader is in the majority: reads and writes go on, the minority hears nothing.
    cluster
        .network
        .partition(&[&[leader, others[0], others[1]], &[others[2], others[3]]]);
    cluster.put("k1", "v1");
    assert_eq!(cluster.get("k1").as_deref(), Some(&b"v1"[..]));
    assert_eq!(stored(&cluster, others[2], "k1"), None);
    assert_eq!(stored(&cluster, others[3], "k1"), None);
    cluster.network.heal();
    cluster.run_for(2 * SECOND);

    // The leader is in the minority: the others elect one and go on.
    let leader = leader_at(&mut cluster, "k1");
    let others: Vec<u64> = (1..=5).filter(|store| *store != leader).collect();
    cluster
        .network
        .partition(&[&[leader, others[0]], &[others[1], others[2], others[3]]]);
    assert_eq!(cluster.get("k1").as_deref(), Some(&b"v1"[..]));
    cluster.put("k1", "changed");
    let region = cluster.region_of(key).id;
    let new_leader = cluster
        .leader_of(region)
        .expect("somebody acknowledged the put");
    assert!(
        others[1..].contains(&new_leader),
        "store {new_leader} is in the minority"
    );
    assert_eq!(
        stored(&cluster, new_leader, "k1").as_deref(),
        Some(&b"changed"[..])
    );
    assert_eq!(stored(&cluster, leader, "k1").as_deref(), Some(&b"v1"[..]));

    // Healed, the old leader catches up.
    cluster.network.heal();
    cluster.put("k2", "v2");
    let caught_up = cluster.run_until(5 * SECOND, |cluster| {
        stored(cluster, leader, "k2").as_deref() == Some(&b"v2"[..])
    });
    assert!(caught_up, "store {leader} does not catch up");
    assert_eq!(
        stored(&cluster, leader, "k1").as_deref(),
        Some(&b"changed"[..])
    );
    cluster.run_for(ms(100));
    cluster.finish_clean();
}

#[test]
fn many_partitions_one_client() {
    row(5, |row| {
        row.clients = 1;
        row.partitions = true;
    });
}

#[test]
fn many_partitions_many_clients() {
    row(6, |row| row.partitions = true);
}

#[test]
fn persist_one_client() {
    row(7, |row| {
        row.clients = 1;
        row.crashes = true;
    });
}

#[test]
fn persist_concurrent() {
    row(8, |row| row.crashes = true);
}

#[test]
fn persist_concurrent_unreliable() {
    row(9, |row| {
        row.unreliable = true;
        row.crashes = true;
    });
}

#[test]
fn persist_partition() {
    row(10, |row| {
        row.partitions = true;
        row.crashes = true;
    });
}

#[test]
fn persist_partition_unreliable() {
    row(11, |row| {
        row.partitions = true;
        row.unreliable = true;
        row.crashes = true;
    });
}
