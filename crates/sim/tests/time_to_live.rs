//! Expiry is an event of the log: it happens once, on every replica, for good.

mod common;

use bytes::Bytes;
use common::{SECOND, get_at, leader_at, move_leader, ms, started_with};
use strata_proto::stratapb::RawSpace;
use strata_raftstore::{Answer, ReadCommand, RequestBody};
use strata_sim::{AttemptResult, CallOptions, ClientOperation, Cluster, ClusterOptions, Crash};

/// A cluster whose wall clocks agree until the test steps them.
fn agreed(stores: u64, seed: u64) -> Cluster {
    let options = ClusterOptions {
        wall_spread_ms: 0,
        ..ClusterOptions::new(stores, seed)
    };
    started_with(options)
}

fn put_expiring(cluster: &mut Cluster, key: &str, value: &str, seconds: u64) {
    let key = key.to_owned().into();
    cluster.must(ClientOperation::PutExpiring(
        key,
        value.to_owned().into(),
        seconds,
    ));
}

fn held(value: &str) -> Option<Bytes> {
    Some(value.to_owned().into())
}

fn region_clock(cluster: &Cluster, store: u64, key: &str) -> u64 {
    let region = cluster.region_of(key.as_bytes()).id;
    let core = cluster.store(store).core.as_ref().expect("the store is up");
    core.directory()
        .entry(region)
        .expect("the region is here")
        .view
        .numbers()
        .clock_ms
}

fn checksum_at(cluster: &mut Cluster, store: u64, key: &str) -> (u64, u64) {
    let region = cluster.region_of(key.as_bytes()).id;
    let command = ReadCommand::Checksum {
        space: RawSpace::RawV1,
        ranges: vec![(Bytes::new(), Bytes::new())],
    };
    let options = CallOptions {
        replica_read: true,
        ..CallOptions::default()
    };
    let call = cluster.call(store, region, RequestBody::Read(command), &options);
    match cluster.wait_for(call) {
        AttemptResult::Answered(Answer::Checksum { crc64, pairs, .. }) => (crc64, pairs),
        other => panic!("checksum at store {store}: {other:?}"),
    }
}

#[test]
fn ttl_expires_by_region_clock() {
    let mut cluster = agreed(3, 1);
    let leader = leader_at(&mut cluster, "k");
    put_expiring(&mut cluster, "k", "short", 3);
    cluster.run_for(2 * SECOND);
    assert_eq!(get_at(&mut cluster, leader, "k", false), Ok(held("short")));

    // The wall clock passes the expiry, nothing is written: the region's clock stands still
    // until the leader's read lets the log decide.
    let before = region_clock(&cluster, leader, "k");
    cluster.run_for(2 * SECOND);
    assert_eq!(region_clock(&cluster, leader, "k"), before);
    assert_eq!(get_at(&mut cluster, leader, "k", false), Ok(None));
    assert!(region_clock(&cluster, leader, "k") >= before + 3_000);
    cluster.finish_clean();
}

#[test]
fn ttl_swap_judges_by_region_clock() {
    let mut cluster = agreed(3, 2);
    put_expiring(&mut cluster, "k", "short", 1);
    cluster.run_for(2 * SECOND);
    // The swap's own entry moves the clock first, so it meets an absent key.
    let swap = ClientOperation::CompareAndSwap {
        key: "k".into(),
        expected: None,
        new: Some("new".into()),
    };
    let answer = cluster.must(swap);
    let Answer::Written(outcomes) = answer else {
        panic!("{answer:?} answers a swap")
    };
    assert_eq!(
        outcomes,
        [strata_raftstore::CommandOutcome::CompareAndSwap {
            succeeded: true,
            previous: None
        }]
    );
    cluster.finish_clean();
}

#[test]
fn ttl_same_on_every_replica() {
    let mut cluster = agreed(3, 3);
    // The wall clocks differ by 80 s; the region has one clock.
    for (store, by) in [(1, -40_000), (3, 40_000)] {
        cluster.store_mut(store).clock.step_wall(by);
    }
    for number in 0..10 {
        put_expiring(&mut cluster, &format!("k{number}"), "short", 1 + number % 3);
    }
    cluster.put("k-stays", "long");
    let rested = cluster.run_until(5 * SECOND, |cluster| cluster.unrest().is_none());
    assert!(rested, "{:?}", cluster.unrest());
    let sums: Vec<_> = (1..=3)
        .map(|store| checksum_at(&mut cluster, store, "k"))
        .collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");

    let leader = leader_at(&mut cluster, "k");
    cluster.run_for(5 * SECOND);
    assert_eq!(get_at(&mut cluster, leader, "k0", false), Ok(None));
    let rested = cluster.run_until(5 * SECOND, |cluster| cluster.unrest().is_none());
    assert!(rested, "{:?}", cluster.unrest());
    for store in 1..=3 {
        for number in 0..10 {
            assert_eq!(
                get_at(&mut cluster, store, &format!("k{number}"), true),
                Ok(None)
            );
        }
        assert_eq!(
            get_at(&mut cluster, store, "k-stays", true),
            Ok(held("long"))
        );
        assert_eq!(checksum_at(&mut cluster, store, "k").1, 1);
    }
    cluster.finish_clean();
}

#[test]
fn ttl_never_comes_back_after_failover() {
    for seed in 0..10 {
        let mut cluster = agreed(3, 100 + seed);
        move_leader(&mut cluster, "k", 1);
        // The leader's wall clock is a minute ahead of the others'.
        cluster.store_mut(1).clock.step_wall(60_000);
        cluster.put("k-clock", "moves the region's clock");
        put_expiring(&mut cluster, "k", "short", 2);
        assert_eq!(get_at(&mut cluster, 1, "k", false), Ok(held("short")));
        cluster.run_for(3 * SECOND);
        assert_eq!(get_at(&mut cluster, 1, "k", false), Ok(None));

        // The next leader's clock is before the expiry, and yet the value stays away.
        match seed % 3 {
            0 => cluster.crash_store(1, Crash::Power),
            1 => cluster.network.isolate(1, &[1, 2, 3]),
            _ => move_leader(&mut cluster, "k", 2),
        }
        let region = cluster.region_of(b"k").id;
        let moved = cluster.run_until(20 * SECOND, |cluster| {
            cluster.leader_of(region).is_some_and(|leader| leader != 1)
        });
        assert!(moved, "seed {seed}: nobody takes over");
        for _ in 0..20 {
            let value = cluster.must(ClientOperation::Get("k".into()));
            assert!(
                matches!(value, Answer::Value(None)),
                "seed {seed}: {value:?} came back"
            );
            cluster.run_for(ms(100));
        }
        cluster.finish_clean();
    }
}
