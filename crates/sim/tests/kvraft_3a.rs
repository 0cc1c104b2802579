//! The 6.824 course's lab 3A on whole stepped clusters: a replicated service whose clerks
//! repeat what got lost, and whose writes take effect once all the same.
//!
//! The clerks take their decisions with the code of the production clerk. A write is one
//! operation of the history over all its attempts, so the search for an order fails where
//! one was executed twice; that each appended piece is there once and in order is looked at
//! directly, too.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{SECOND, appends, check_pieces, leader_at, ms, random_keys, started, stored};
use strata_raftstore::{Answer, StoreOptions};
use strata_sim::{ClientOperation, Cluster, FaultKind, Scenario, Workload};

/// Plays a row and checks everything.
fn row(seed: u64, change: impl FnOnce(&mut Scenario)) {
    let mut scenario = Scenario {
        mix: appends(),
        clerks: true,
        round: 5 * SECOND,
        ..Scenario::new(seed)
    };
    change(&mut scenario);
    let mut cluster = scenario.play();
    let report = cluster.finish_clean();
    let least = scenario.clients * u64::from(scenario.rounds) * 5;
    assert!(
        report.acknowledged >= least,
        "seed {seed}: {} operations were acknowledged, {least} are expected",
        report.acknowledged
    );
    if scenario.mix == appends() {
        let pieces = check_pieces(&mut cluster);
        assert!(pieces > 0, "seed {seed}: nothing was appended");
    }
    println!("{report:?}");
}

fn put(key: &str, value: &str) -> ClientOperation {
    ClientOperation::Put(key.to_owned().into(), value.to_owned().into())
}

#[test]
fn one_client() {
    row(31, |row| row.clients = 1);
}

#[test]
fn many_clients() {
    row(32, |_| {});
}

#[test]
fn unreliable_many_clients() {
    row(33, |row| row.unreliable = true);
}

/// Five clerks append to one key while messages, requests and answers get lost: each piece
/// is there, once, those of one clerk in order.
#[test]
fn concurrent_append_to_same_key() {
    let mut cluster = started(3, 34);
    cluster
        .network
        .set_weather(strata_sim::Weather::unreliable());
    cluster.options.client_loss = 0.1;
    let (clerks, appends) = (5, 10);
    let key = Bytes::from_static(b"k");
    for _ in 0..clerks {
        let clerk = cluster.add_clerk(None);
        for number in 0..appends {
            let piece = format!("{clerk}.{number};");
            cluster.order(clerk, ClientOperation::Append(key.clone(), piece.into()));
        }
    }
    let done = cluster.run_until(60 * SECOND, Cluster::clients_are_idle);
    assert!(done, "the clerks are not done");
    cluster.heal();
    let pieces = check_pieces(&mut cluster);
    assert_eq!(pieces, clerks * appends);
    cluster.finish_clean();
}

/// A majority and a minority with the former leader; the clerk of each side.
fn divided(seed: u64) -> (Cluster, Vec<u64>, Vec<u64>) {
    let mut cluster = started(5, seed);
    cluster.put("k", "13");
    let leader = leader_at(&mut cluster, "k");
    let mut others: Vec<u64> = (1..=5).filter(|store| *store != leader).collect();
    let majority = others.split_off(1);
    let minority = vec![leader, others[0]];
    cluster.network.partition(&[&minority, &majority]);
    // The former leader may serve reads until its lease has run out: nobody else leads yet.
    cluster.run_for(SECOND);
    (cluster, majority, minority)
}

#[test]
fn progress_in_majority() {
    let (mut cluster, majority, minority) = divided(35);
    let clerk = cluster.add_clerk(None);
    cluster.order(clerk, put("k", "14"));
    cluster.order(clerk, ClientOperation::Get("k".into()));
    let done = cluster.run_until(10 * SECOND, |cluster| cluster.has_done_all(clerk));
    assert!(done, "the majority does not go on");
    match cluster.last_answer(clerk) {
        Some(Answer::Value(Some(value))) => assert_eq!(&value[..], b"14"),
        other => panic!("{other:?}"),
    }
    let region = cluster.region_of(b"k").id;
    let leader = cluster.leader_of(region).unwrap();
    assert!(majority.contains(&leader), "store {leader} leads");
    for store in minority {
        assert_eq!(stored(&cluster, store, "k").as_deref(), Some(&b"13"[..]));
    }
    cluster.network.heal();
    cluster.finish_clean();
}

#[test]
fn no_progress_in_minority() {
    let (mut cluster, majority, minority) = divided(36);
    // Nobody reaches the majority.
    for store in &majority {
        cluster.crash_store(*store, strata_sim::Crash::Kill);
    }
    let writer = cluster.add_clerk(None);
    cluster.order(writer, put("k", "15"));
    let reader = cluster.add_clerk(None);
    cluster.order(reader, ClientOperation::Get("k".into()));
    cluster.run_for(5 * SECOND);
    assert!(
        !cluster.has_done_all(writer),
        "a minority acknowledged a put"
    );
    assert!(!cluster.has_done_all(reader), "a minority answered a get");
    for store in minority {
        assert_eq!(stored(&cluster, store, "k").as_deref(), Some(&b"13"[..]));
    }
    cluster.finish_clean();
}

#[test]
fn completion_after_heal() {
    let (mut cluster, majority, _) = divided(37);
    for store in &majority {
        cluster.crash_store(*store, strata_sim::Crash::Kill);
    }
    let writer = cluster.add_clerk(None);
    cluster.order(writer, put("k", "15"));
    let reader = cluster.add_clerk(None);
    cluster.order(reader, ClientOperation::Get("k".into()));
    cluster.run_for(3 * SECOND);
    assert!(!cluster.has_done_all(writer) && !cluster.has_done_all(reader));
    cluster.heal();
    let done = cluster.run_until(10 * SECOND, Cluster::clients_are_idle);
    assert!(done, "the clerks do not get done");
    assert_eq!(cluster.get("k").as_deref(), Some(&b"15"[..]));
    // The clerk sent its put many times; it is in the log as often, and took effect once.
    cluster.finish_clean();
}

#[test]
fn partitions_one_client() {
    row(38, |row| {
        row.clients = 1;
        row.partitions = true;
    });
}

#[test]
fn partitions_many_clients() {
    row(39, |row| row.partitions = true);
}

#[test]
fn restarts_one_client() {
    row(40, |row| {
        row.clients = 1;
        row.crashes = true;
    });
}

#[test]
fn restarts_many_clients() {
    row(41, |row| row.crashes = true);
}

#[test]
fn restarts_partitions_many_clients() {
    row(42, |row| {
        row.partitions = true;
        row.crashes = true;
    });
}

#[test]
fn unreliable_restarts_partitions_random_keys() {
    row(144, |row| {
        row.mix = random_keys();
        row.clients = 7;
        row.unreliable = true;
        row.partitions = true;
        row.crashes = true;
        row.faults = vec![
            FaultKind::Kill,
            FaultKind::PowerCut,
            FaultKind::Transfer,
            FaultKind::IsolateLeader,
        ];
    });
}

/// An operation takes a third of a heartbeat interval at most: the log does not wait for
/// the next heartbeat.
#[test]
fn ops_complete_fast_enough() {
    let mut cluster = started(3, 44);
    let clerk = cluster.add_clerk(None);
    let count = 1_000;
    let key = Bytes::from_static(b"k");
    for number in 0..count {
        let piece = format!("{clerk}.{number};");
        cluster.order(clerk, ClientOperation::Append(key.clone(), piece.into()));
    }
    let begun = cluster.now();
    let done = cluster.run_until(60 * SECOND, |cluster| cluster.has_done_all(clerk));
    assert!(done, "{count} operations take longer than a minute");
    let each = (cluster.now() - begun) / count;
    let options = StoreOptions::default();
    let heartbeat = options.tick_interval * options.heartbeat_ticks as u32;
    assert!(each < heartbeat / 3, "an operation takes {each:?}");
    assert_eq!(check_pieces(&mut cluster), count as usize);
    cluster.finish_clean();
}

/// Sessions that expire while their clerks work: what was not sent before goes on in a new
/// session, the rest is reported as unknown and stays open in the history.
#[test]
fn sessions_expire_under_clerks_that_go_on() {
    let mut scenario = Scenario {
        mix: appends(),
        clerks: true,
        clients: 6,
        unreliable: true,
        partitions: true,
        ..Scenario::new(45)
    };
    scenario.store.max_sessions_per_region = 2;
    scenario.store.session_ttl = ms(300);
    let mut cluster = scenario.play();
    cluster.finish_clean();
    assert!(check_pieces(&mut cluster) > 0);
}

/// A clerk that goes on for a while leaves a bounded table behind.
#[test]
fn table_of_sessions_is_bounded() {
    let mut cluster = started(3, 46);
    let limit = StoreOptions::default().max_sessions_per_region;
    assert!(limit > 3);
    for _ in 0..5 {
        let keys = vec![vec![Bytes::from_static(b"k")]];
        let mut workload = Workload::new(keys, appends());
        workload.left = Some(20);
        cluster.add_clerk(Some(workload));
    }
    assert!(cluster.run_until(30 * SECOND, Cluster::clients_are_idle));
    cluster.run_for(Duration::from_millis(500));
    let region = cluster.region_of(b"k").id;
    for store in 1..=3 {
        assert_eq!(sessions_on(&cluster, store, region), 5, "store {store}");
    }
    cluster.finish_clean();
}

/// Records of sessions in a store's engine.
fn sessions_on(cluster: &Cluster, store: u64, region_id: u64) -> usize {
    use strata_storage::{Cf, Direction, ReadView, keys};
    let (start, end) = keys::session_range(region_id);
    let mut count = 0;
    let kv = &cluster.store(store).engines.kv;
    kv.scan(
        Cf::Raft,
        &start,
        Some(&end),
        Direction::Forward,
        &mut |_, _| {
            count += 1;
            std::ops::ControlFlow::Continue(())
        },
    )
    .unwrap();
    count
}
