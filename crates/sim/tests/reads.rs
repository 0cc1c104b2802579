//! Reads see every write that was acknowledged before they began: on leaders under a
//! lease, on replicas by ReadIndex, whatever the clocks and the network do within bounds.

mod common;

use common::{SECOND, get_at, leader_at, move_leader, ms, started};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::Error;
use strata_sim::{
    ClientOperation, Cluster, Crash, FaultKind, Mix, RATE_ONE, Scenario, Verdict, Workload,
};

/// Little is written and much is read.
fn reading() -> Mix {
    Mix {
        get: 10,
        put: 3,
        scan: 2,
        batch_get: 2,
        ..Mix::none()
    }
}

#[test]
fn replica_reads_are_never_stale() {
    for seed in 0..6 {
        Scenario {
            mix: reading(),
            clients: 6,
            replica_reads: 0.7,
            unreliable: seed % 2 == 1,
            faults: vec![
                FaultKind::Partition,
                FaultKind::Transfer,
                FaultKind::SlowDisk,
            ],
            rounds: 1,
            round: 4 * SECOND,
            ..Scenario::new(seed)
        }
        .run_clean();
    }
}

#[test]
fn replica_read_waits_until_it_has_applied() {
    let mut cluster = started(3, 1);
    let leader = leader_at(&mut cluster, "k");
    let follower = (1..=3)
        .find(|store| *store != leader)
        .expect("three stores");
    cluster.put("k", "first");
    // The follower is far behind with applying; its read waits for the write.
    cluster.store_mut(follower).disk.apply = (ms(400), ms(400));
    cluster.put("k", "second");
    let before = cluster.now();
    let value = get_at(&mut cluster, follower, "k", true);
    assert_eq!(
        value.expect("a replica read").as_deref(),
        Some(&b"second"[..])
    );
    assert!(cluster.now() > before + ms(200), "the read did not wait");
    cluster.finish_clean();
}

#[test]
fn replica_without_a_leader_refuses_reads() {
    let mut cluster = started(3, 2);
    let leader = leader_at(&mut cluster, "k");
    let follower = (1..=3)
        .find(|store| *store != leader)
        .expect("three stores");
    cluster.put("k", "first");
    cluster.network.isolate(follower, &[1, 2, 3]);
    cluster.run_for(2 * SECOND);
    cluster.put("k", "second");
    let refused = get_at(&mut cluster, follower, "k", true);
    assert!(
        matches!(
            refused,
            Err(Error::NotLeader { .. } | Error::DeadlineExceeded)
        ),
        "{refused:?}"
    );
    cluster.finish_clean();
}

/// A replica may have applied what the leader, whose disk is slow, has not.
#[test]
fn lease_read_sees_what_replicas_have_shown() {
    let mut cluster = started(3, 3);
    move_leader(&mut cluster, "k", 1);
    cluster.put("k", "old");
    cluster.run_for(SECOND);
    cluster.store_mut(1).disk.sync = (ms(250), ms(250));
    let region = cluster.region_of(b"k").id;
    let options = strata_sim::CallOptions::default();
    let put = cluster.call(1, region, common::put_body("k", "new"), &options);
    let shown = cluster.run_until(ms(200), |cluster| {
        common::stored(cluster, 2, "k").as_deref() == Some(&b"new"[..])
    });
    assert!(shown, "the followers commit without the leader's disk");
    let replica = get_at(&mut cluster, 2, "k", true).expect("a replica read");
    assert_eq!(replica.as_deref(), Some(&b"new"[..]));
    let leader = get_at(&mut cluster, 1, "k", false).expect("a read under the lease");
    assert_eq!(leader, replica, "the leader's read went back in time");
    cluster.wait_for(put);
}

/// Clients that each ask the store which they take for the leader.
fn read_everywhere(cluster: &mut Cluster, rng: &mut ChaCha8Rng) {
    for _ in 0..6 {
        let store = rng.random_range(1..=3);
        cluster.execute_at(store, ClientOperation::Get("k".into()), ms(30));
    }
}

#[test]
fn lease_reads_hold_under_drift_within_the_bound() {
    for seed in 0..12 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut cluster = started(3, seed);
        for round in 0..4 {
            let leader = leader_at(&mut cluster, "k");
            let now = cluster.now();
            // The leader's clock is slow and the others' fast, 9 % apart.
            for store in 1..=3 {
                let rate = if store == leader { 955 } else { 1045 };
                cluster
                    .store_mut(store)
                    .clock
                    .set_rate(now, RATE_ONE / 1000 * rate);
            }
            cluster.run_for(SECOND);
            cluster.network.isolate(leader, &[1, 2, 3]);
            let others: Vec<u64> = (1..=3).filter(|store| *store != leader).collect();
            // The moment at which another leader appears and takes writes is the dangerous one.
            for step in 0..12 {
                let value = format!("{round}.{step}").into();
                let put = ClientOperation::Put("k".into(), value);
                cluster.execute_at(others[step % 2], put, ms(120));
                read_everywhere(&mut cluster, &mut rng);
            }
            cluster.network.heal();
            cluster.run_for(SECOND);
        }
        cluster.finish_clean();
    }
}

/// One follower does not hear the leader and campaigns; the other one does hear it, and is
/// the vote that counts. Reads at the leader go on all the time.
fn read_while_one_is_deaf(seed: u64, voter_restarts: bool) {
    let mut cluster = started(3, seed);
    let region = cluster.region_of(b"k").id;
    for round in 0..6 {
        let leader = leader_at(&mut cluster, "k");
        let (deaf, voter) = (leader % 3 + 1, (leader + 1) % 3 + 1);
        cluster.put("k", &format!("{round}"));
        cluster.run_for(ms(700));
        cluster.network.cut_both(leader, deaf);
        for step in 0..400 {
            // Nothing is written before it leads, so its log is as good as the others'.
            let core = cluster.store(deaf).core.as_ref().expect("it is up");
            if core.directory().entry(region).expect("region").leads() {
                let put = ClientOperation::Put("k".into(), format!("{round}.{step}").into());
                cluster.execute_at(deaf, put, ms(50));
            }
            cluster.execute_at(leader, ClientOperation::Get("k".into()), ms(5));
            if voter_restarts && step % 25 == 10 {
                cluster.crash_store(voter, Crash::Power);
                cluster.start_store(voter);
            }
        }
        cluster.network.heal();
        cluster.run_for(SECOND);
    }
    cluster.finish_clean();
}

/// A voter that has heard the leader does not vote while that may count on its lease.
#[test]
fn lease_reads_hold_while_one_follower_is_deaf() {
    for seed in 0..8 {
        read_while_one_is_deaf(seed, false);
    }
}

/// A voter that has just started does not know whom it has heard before.
#[test]
fn lease_reads_hold_while_a_voter_restarts() {
    for seed in 0..12 {
        read_while_one_is_deaf(seed, true);
    }
}

#[test]
fn lease_reads_hold_while_processes_stand_still() {
    for seed in 0..6 {
        Scenario {
            stores: 3,
            mix: reading(),
            clients: 6,
            faults: vec![
                FaultKind::Pause,
                FaultKind::Drift,
                FaultKind::IsolateLeader,
                FaultKind::Partition,
            ],
            rounds: 1,
            round: 4 * SECOND,
            ..Scenario::new(seed)
        }
        .run_clean();
    }
}

#[test]
fn leader_that_hands_over_reads_by_quorum() {
    for seed in 0..8 {
        let mut cluster = started(3, seed);
        move_leader(&mut cluster, "k", 1);
        cluster.put("k", "old");
        cluster.run_for(SECOND);
        // The old leader never hears of the new one, and its lease would still run.
        let deaf = cluster.network.add_filter(|envelope| {
            if envelope.to == 1 {
                Verdict::Drop
            } else {
                Verdict::Pass
            }
        });
        let region = cluster.region_of(b"k").id;
        let body = strata_raftstore::RequestBody::TransferLeader { to_store_id: 2 };
        cluster.call(1, region, body, &strata_sim::CallOptions::default());
        let moved = cluster.run_until(2 * SECOND, |c| {
            let core = c.store(2).core.as_ref().expect("store 2 is up");
            core.directory().entry(region).expect("region").leads()
        });
        assert!(moved, "seed {seed}: store 2 does not take over");
        let put = ClientOperation::Put("k".into(), "new".into());
        cluster.execute_at(2, put, ms(50)).expect("store 2 leads");
        let read = cluster.execute_at(1, ClientOperation::Get("k".into()), ms(300));
        if let Some(strata_raftstore::Answer::Value(value)) = read {
            assert_eq!(
                value.as_deref(),
                Some(&b"new"[..]),
                "seed {seed}: a stale read"
            );
        }
        cluster.network.remove_filter(deaf);
        cluster.finish_clean();
    }
}

/// A batch of one region is one atomic step, and so is a scan.
#[test]
fn scans_see_whole_batches() {
    for seed in 0..4 {
        let mut cluster = started(3, seed);
        let keys: Vec<bytes::Bytes> = (0..5).map(|key| format!("b{key}").into()).collect();
        for client in 0..3u64 {
            let mix = Mix {
                batch_put: 1,
                ..Mix::none()
            };
            let mut workload = Workload::new(vec![keys.clone()], mix);
            workload.values = client * 1_000;
            // Every batch writes all keys, so that a mix of two batches would be seen.
            workload.whole_batches = true;
            cluster.add_client(workload);
        }
        cluster.start_faults(strata_sim::Faults::new(
            &[FaultKind::Transfer, FaultKind::SlowDisk],
            (ms(100), ms(400)),
        ));
        for _ in 0..200 {
            let scan = ClientOperation::Scan {
                start: "b".into(),
                end: "c".into(),
                limit: 100,
                reverse: false,
            };
            let answer = cluster.must(scan);
            let strata_raftstore::Answer::Pairs(pairs) = answer else {
                panic!("{answer:?} answers a scan");
            };
            let whole = pairs.windows(2).all(|two| two[0].1 == two[1].1);
            assert!(
                whole && matches!(pairs.len(), 0 | 5),
                "seed {seed}: torn batch {pairs:?}"
            );
        }
        cluster.finish_clean();
    }
}
