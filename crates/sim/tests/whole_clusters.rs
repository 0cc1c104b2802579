//! Many regions, the system region, leaders that move, stores that restart or come back
//! empty.

mod common;

use common::{SECOND, leader_at, move_leader, ms, started, started_with, stored};
use strata_proto::stratapb::RawSpace;
use strata_raftstore::SYSTEM_REGION_ID;
use strata_sim::{
    ClientOperation, Cluster, ClusterOptions, Crash, FaultKind, Faults, Mix, Scenario, Violation,
    Workload,
};

#[test]
fn many_regions_on_three_stores() {
    Scenario {
        stores: 3,
        regions: 60,
        mix: Mix::all(),
        crashes: true,
        rounds: 2,
        ..Scenario::new(1)
    }
    .run_clean();
}

#[test]
fn many_regions_on_five_stores() {
    Scenario {
        regions: 60,
        mix: Mix::all(),
        unreliable: true,
        crashes: true,
        rounds: 2,
        ..Scenario::new(2)
    }
    .run_clean();
}

#[test]
fn more_stores_than_replicas() {
    let options = ClusterOptions {
        replicas: 3,
        regions: 12,
        ..ClusterOptions::new(5, 3)
    };
    let mut cluster = started_with(options);
    for region in cluster.regions() {
        let count = region.peers.len();
        assert_eq!(count, if region.id == SYSTEM_REGION_ID { 5 } else { 3 });
    }
    for number in 0..40u8 {
        cluster.put(&format!("{}key", char::from(b'A' + number)), "v");
    }
    cluster.crash_store(2, Crash::Power);
    for number in 0..40u8 {
        let key = format!("{}key", char::from(b'A' + number));
        assert_eq!(cluster.get(&key).as_deref(), Some(&b"v"[..]));
    }
    cluster.finish_clean();
}

#[test]
fn single_store_serves_alone() {
    let mut cluster = started(1, 4);
    cluster.put("k", "v");
    cluster.crash_store(1, Crash::Power);
    cluster.start_store(1);
    assert_eq!(cluster.get("k").as_deref(), Some(&b"v"[..]));
    cluster.finish_clean();
}

#[test]
fn system_region_replicates_its_state_machine() {
    for seed in 0..3 {
        let mut cluster = started(3, seed);
        let mix = Mix {
            system: 1,
            ..Mix::none()
        };
        for _ in 0..4 {
            cluster.add_client(Workload::new(vec![vec!["unused".into()]], mix));
        }
        let kinds = [
            FaultKind::Transfer,
            FaultKind::PowerCut,
            FaultKind::Partition,
        ];
        cluster.start_faults(Faults::new(&kinds, (ms(200), ms(800))));
        cluster.run_for(4 * SECOND);
        let report = cluster.finish_clean();
        assert_eq!(report.keys, 2, "two records were put and read");
        assert!(report.acknowledged > 50, "{report:?}");
    }
}

#[test]
fn keys_of_version_two_are_kept_apart() {
    let options = ClusterOptions {
        space: RawSpace::RawV2,
        ..ClusterOptions::new(3, 5)
    };
    let mut cluster = started_with(options);
    for client in 0..4u64 {
        let groups = [0u8, 1].map(|keyspace| {
            let key = |name: &u8| bytes::Bytes::from(vec![b'r', 0, 0, keyspace, *name]);
            b"abc".iter().map(key).collect()
        });
        let mix = Mix {
            system: 0,
            expiring: 0,
            ..Mix::all()
        };
        let mut workload = Workload::new(groups.to_vec(), mix);
        workload.values = client * 10_000;
        cluster.add_client(workload);
    }
    cluster.start_faults(Faults::new(&[FaultKind::PowerCut], (ms(300), ms(900))));
    cluster.run_for(3 * SECOND);
    let report = cluster.finish_clean();
    assert_eq!(report.keys, 6);
}

#[test]
fn leaders_move_and_nothing_is_lost() {
    let mut cluster = started(3, 6);
    let keys = ["a", "b", "c"];
    for client in 0..4u64 {
        let groups = vec![keys.iter().map(|key| (*key).into()).collect()];
        let mut workload = Workload::new(
            groups,
            Mix {
                append: 2,
                get: 1,
                ..Mix::none()
            },
        );
        workload.values = client * 10_000;
        cluster.add_client(workload);
    }
    for turn in 0..30 {
        move_leader(&mut cluster, "a", turn % 3 + 1);
        assert_eq!(leader_at(&mut cluster, "a"), turn % 3 + 1);
        cluster.run_for(ms(50));
    }
    let report = cluster.finish_clean();
    assert!(report.acknowledged > 200, "{report:?}");
}

#[test]
fn restart_of_all_stores_keeps_everything() {
    for (seed, crash) in [(7, Crash::Power), (8, Crash::Kill)] {
        let mut cluster = started(3, seed);
        for round in 0..5 {
            for number in 0..10 {
                cluster.put(&format!("k{number}"), &format!("{round}.{number}"));
            }
            for store in 1..=3 {
                cluster.crash_store(store, crash);
            }
            for store in 1..=3 {
                cluster.start_store(store);
            }
            for number in 0..10 {
                let expected = format!("{round}.{number}");
                let value = cluster.get(&format!("k{number}"));
                assert_eq!(value.as_deref(), Some(expected.as_bytes()));
            }
        }
        cluster.finish_clean();
    }
}

#[test]
fn late_store_catches_up_from_the_log() {
    let mut cluster = started(3, 9);
    let leader = leader_at(&mut cluster, "k");
    let late = leader % 3 + 1;
    cluster.crash_store(late, Crash::Power);
    for number in 0..500 {
        cluster.put(&format!("k{}", number % 50), &format!("value {number}"));
    }
    cluster.start_store(late);
    let caught_up = cluster.run_until(20 * SECOND, |cluster| cluster.unrest().is_none());
    assert!(caught_up, "{:?}", cluster.unrest());
    assert_eq!(
        stored(&cluster, late, "k49").as_deref(),
        Some(&b"value 499"[..])
    );
    cluster.finish_clean();
}

#[test]
fn wiped_store_does_not_vote() {
    let mut cluster = started(3, 10);
    move_leader(&mut cluster, "k", 1);
    cluster.network.isolate(3, &[1, 2, 3]);
    // Stores 1 and 2 alone hold this write.
    cluster.put("k", "acknowledged");
    cluster.crash_store(2, Crash::Power);
    cluster.wipe_store(2);
    cluster.start_store(2);
    cluster.network.heal();
    cluster.network.isolate(1, &[1, 2, 3]);
    // Store 2 has forgotten that it holds it: with its vote, store 3 would lead without.
    let region = cluster.region_of(b"k").id;
    let led = cluster.run_until(10 * SECOND, |cluster| {
        [2, 3].iter().any(|store| {
            let core = cluster.store(*store).core.as_ref().expect("it is up");
            core.directory()
                .entry(region)
                .expect("it holds the region")
                .leads()
        })
    });
    assert!(!led, "a store that lost its log has voted");
    cluster.network.heal();
    assert_eq!(cluster.get("k").as_deref(), Some(&b"acknowledged"[..]));
}

/// What would happen if the wiped store voted: the checkers find the lost write. This shows
/// that the test above tests something.
#[test]
fn wiped_store_that_votes_loses_a_write() {
    let mut cluster = started(3, 10);
    move_leader(&mut cluster, "k", 1);
    cluster.network.isolate(3, &[1, 2, 3]);
    cluster.put("k", "acknowledged");
    cluster.crash_store(2, Crash::Power);
    cluster.wipe_store(2);
    cluster.store_mut(2).options.admitted = true;
    cluster.network.heal();
    cluster.network.isolate(1, &[1, 2, 3]);
    cluster.start_store(2);
    cluster.must(ClientOperation::Get("k".into()));
    cluster.crash_store(1, Crash::Power);
    cluster.wipe_store(1);
    cluster.store_mut(1).options.admitted = true;
    let violations = cluster.finish().expect_err("a write was lost");
    assert!(
        violations
            .iter()
            .any(|v| matches!(v, Violation::History(_))),
        "{violations:?}"
    );
}

#[test]
fn crash_rule_applied_synced_in_clusters() {
    for seed in 0..8 {
        let mut cluster: Cluster = started(3, 200 + seed);
        for store in 1..=3 {
            // Applying is much faster than syncing: the rule is all that holds it back.
            let disk = &mut cluster.store_mut(store).disk;
            disk.sync = (ms(5), ms(40));
            disk.apply = (ms(0), ms(0));
        }
        for _ in 0..4 {
            let groups = vec![vec!["a".into(), "b".into()]];
            cluster.add_client(Workload::new(
                groups,
                Mix {
                    append: 1,
                    ..Mix::none()
                },
            ));
        }
        for _ in 0..12 {
            cluster.run_for(ms(137));
            for store in 1..=3 {
                cluster.crash_store(store, Crash::Power);
            }
            assert_eq!(cluster.watch.violations(), []);
            for store in 1..=3 {
                cluster.start_store(store);
            }
            cluster.run_for(ms(900));
        }
        cluster.finish_clean();
    }
}
