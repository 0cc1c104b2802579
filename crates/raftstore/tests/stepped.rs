//! Whole stores, stepped: elections, writes and reads, what waits and what is lost.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{AppendCommand, RawSpace, data_command::Body};
use strata_raftstore::{
    Answer, CommandOutcome, Error, ReadCommand, Reply, Request, RequestBody, StoreEvent,
    StoreOptions,
};
use strata_storage::Engines;

fn cluster(stores: u64) -> Cluster {
    let mut cluster = Cluster::new(stores, StoreOptions::default());
    cluster.elect_all();
    cluster
}

fn applied(cluster: &Cluster, id: u64, region_id: u64) -> u64 {
    cluster.nodes[&id]
        .core
        .directory()
        .entry(region_id)
        .unwrap()
        .view
        .numbers()
        .applied
}

fn clock_of(cluster: &Cluster, id: u64, region_id: u64) -> u64 {
    cluster.nodes[&id]
        .core
        .directory()
        .entry(region_id)
        .unwrap()
        .view
        .numbers()
        .clock_ms
}

#[test]
fn one_store_puts_and_gets() {
    let mut cluster = cluster(1);
    assert_eq!(written(cluster.put("a", "1")), [CommandOutcome::Done]);
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    assert_eq!(cluster.get("b"), None);
}

#[test]
fn three_stores_hold_the_same() {
    let mut cluster = cluster(3);
    for at in 0..20 {
        written(cluster.put(&format!("key-{at}"), &format!("value-{at}")));
    }
    assert_eq!(cluster.get("key-7").as_deref(), Some("value-7"));
    cluster.run(Duration::from_millis(300));
    for id in 1..=3 {
        assert_eq!(
            cluster.stored(id, "key-19").as_deref(),
            Some("value-19"),
            "store {id}"
        );
    }
}

#[test]
fn first_leaders_are_spread() {
    let cluster = cluster(3);
    for region in &cluster.regions {
        assert_eq!(
            cluster.leader(region.id),
            Some(region.peers[0].store_id),
            "{region:?}"
        );
    }
}

/// An entry that a quorum of others has committed is not applied, and not answered, while
/// it is not synced in this store's own raft engine.
#[test]
fn crash_rule_applied_synced() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    cluster.nodes.get_mut(&leader).unwrap().disk_works = false;
    let before = applied(&cluster, leader, region_id);
    let answer = cluster.send(leader, region_id, write(&[("a", Some("1"), 0)]));
    cluster.run(Duration::from_millis(150));
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    assert_eq!(
        cluster.stored(follower, "a").as_deref(),
        Some("1"),
        "committed by the others"
    );
    assert_eq!(applied(&cluster, leader, region_id), before);
    assert_eq!(cluster.stored(leader, "a"), None);
    assert!(answer.try_recv().is_err(), "answered before the own sync");

    cluster.release_disk(leader);
    assert_eq!(written(cluster.wait(&answer)), [CommandOutcome::Done]);
    // The kv engine is not synced: after a power cut it may hold less than the log, which
    // the start check accepts, and the log brings it back.
    let node = cluster.nodes.remove(&leader).unwrap();
    let engines = Engines::new(
        node.engines.kv.crash_keeping(0),
        node.engines.raft.crash_keeping(0),
    );
    cluster.start(leader, engines);
    assert_eq!(
        cluster.stored(leader, "a"),
        None,
        "the unsynced batch is lost"
    );
    cluster.run(Duration::from_secs(3));
    assert_eq!(
        cluster.stored(leader, "a").as_deref(),
        Some("1"),
        "replayed from the log"
    );
}

#[test]
fn heartbeats_do_not_wait_for_the_disk() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let term = |cluster: &Cluster| {
        cluster.nodes[&leader]
            .core
            .directory()
            .entry(region_id)
            .unwrap()
            .view
            .term()
    };
    let before = term(&cluster);
    cluster.nodes.get_mut(&leader).unwrap().disk_works = false;
    let answers: Vec<_> = (0..5)
        .map(|_| cluster.send(leader, region_id, write(&[("a", Some("1"), 0)])))
        .collect();
    cluster.run(Duration::from_millis(1500));
    assert_eq!(
        (cluster.leader(region_id), term(&cluster)),
        (Some(leader), before)
    );
    cluster.release_disk(leader);
    for answer in answers {
        written(cluster.wait(&answer));
    }
}

#[test]
fn writes_of_one_drain_share_an_entry() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    written(cluster.put("a", "0"));
    let bodies = vec![
        write(&[("a", Some("1"), 0), ("b", Some("x"), 0)]),
        RequestBody::Write(vec![
            cas("a", Some("1"), Some("2")),
            cas("a", Some("1"), Some("3")),
        ]),
        RequestBody::Write(vec![delete_range("a", "b"), cas("a", None, Some("4"))]),
        RequestBody::Write(vec![cas("b", Some("x"), None), cas("b", None, None)]),
    ];
    let metrics = cluster.nodes[&1].core.metrics().clone();
    let before = (metrics.proposals.get(), metrics.log_batches.get());
    let mut receivers = Vec::new();
    let events: Vec<StoreEvent> = bodies
        .into_iter()
        .map(|body| {
            let (sender, receiver) = std::sync::mpsc::channel();
            receivers.push(receiver);
            let request = Request {
                header: cluster.header(region_id),
                body,
            };
            let reply = Reply::new(move |result| drop(sender.send(result)));
            StoreEvent::Request { request, reply }
        })
        .collect();
    cluster.events(1, events);
    let outcomes: Vec<_> = receivers
        .iter()
        .map(|one| written(cluster.wait(one)))
        .collect();
    let verdict = |succeeded, previous: Option<&str>| CommandOutcome::CompareAndSwap {
        succeeded,
        previous: previous.map(bytes),
    };
    assert_eq!(outcomes[0], [CommandOutcome::Done]);
    assert_eq!(
        outcomes[1],
        [verdict(true, Some("1")), verdict(false, Some("2"))]
    );
    assert_eq!(outcomes[2], [CommandOutcome::Done, verdict(true, None)]);
    assert_eq!(outcomes[3], [verdict(true, Some("x")), verdict(true, None)]);
    assert_eq!(metrics.proposals.get(), before.0 + 1);
    assert_eq!(cluster.get("a").as_deref(), Some("4"));
    assert_eq!(cluster.get("b"), None);
}

#[test]
fn disk_nearly_full_refuses_writes_that_need_room() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    written(cluster.put("a", "0"));
    cluster.event(1, StoreEvent::DiskNearlyFull(true));
    let full = Error::DiskFull { store_id: 1 };
    let refused = [
        write(&[("a", Some("1"), 0)]),
        write(&[("a", None, 0), ("b", Some("1"), 0)]),
        RequestBody::Write(vec![cas("a", Some("0"), Some("1"))]),
    ];
    for body in refused {
        let answer = cluster.send(1, region_id, body);
        assert_eq!(cluster.wait(&answer).unwrap_err(), full);
    }
    assert_eq!(cluster.get("a").as_deref(), Some("0"), "reads go on");
    let makes_room = [
        RequestBody::Write(vec![cas("a", Some("0"), None)]),
        write(&[("a", None, 0)]),
        RequestBody::Write(vec![delete_range("a", "b")]),
    ];
    for body in makes_room {
        let answer = cluster.send(1, region_id, body);
        written(cluster.wait(&answer));
    }
    assert_eq!(cluster.get("a"), None);
    cluster.event(1, StoreEvent::DiskNearlyFull(false));
    written(cluster.put("a", "2"));
}

#[test]
fn few_rewrites_share_an_entry() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    written(cluster.put("a", "0"));
    let metrics = cluster.nodes[&1].core.metrics().clone();
    let before = metrics.proposals.get();
    let limit = StoreOptions::default().shared_entry_rewrites;
    let mut receivers = Vec::new();
    let events: Vec<StoreEvent> = (0..=limit)
        .map(|_| {
            let (sender, receiver) = std::sync::mpsc::channel();
            receivers.push(receiver);
            let request = Request {
                header: cluster.header(region_id),
                body: RequestBody::Write(vec![cas("a", Some("0"), Some("0"))]),
            };
            let reply = Reply::new(move |result| drop(sender.send(result)));
            StoreEvent::Request { request, reply }
        })
        .collect();
    cluster.events(1, events);
    for receiver in &receivers {
        written(cluster.wait(receiver));
    }
    assert_eq!(metrics.proposals.get(), before + 2, "one more than {limit}");
}

#[test]
fn append_keeps_what_was_there() {
    let mut cluster = cluster(1);
    let append = |value: &str| {
        RequestBody::Write(vec![command(Body::Append(AppendCommand {
            space: RawSpace::RawV1.into(),
            key: bytes("a"),
            value: bytes(value),
            max_value_bytes: 0,
        }))])
    };
    let region_id = cluster.region_of(b"a");
    written(cluster.call(region_id, append("x")));
    written(cluster.call(region_id, append("yz")));
    assert_eq!(cluster.get("a").as_deref(), Some("xyz"));
}

/// The limit is the leader's, and stands in the entry.
#[test]
fn append_keeps_the_expiry_and_stays_below_the_entry_limit() {
    let options = StoreOptions {
        max_entry_bytes: 1000,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(1, options);
    cluster.elect_all();
    let append = |value: &str| {
        RequestBody::Write(vec![command(Body::Append(AppendCommand {
            space: RawSpace::RawV1.into(),
            key: bytes("a"),
            value: bytes(value),
            max_value_bytes: 0,
        }))])
    };
    let region_id = cluster.region_of(b"a");
    written(cluster.call(region_id, write(&[("a", Some("x"), 2)])));
    let long = "y".repeat(600);
    assert_eq!(
        written(cluster.call(region_id, append(&long))),
        [CommandOutcome::Done]
    );
    let refused = CommandOutcome::ValueTooLarge {
        bytes: 1201,
        limit_bytes: 1000,
    };
    assert_eq!(written(cluster.call(region_id, append(&long))), [refused]);
    assert_eq!(cluster.get("a").map(|value| value.len()), Some(601));
    cluster.run(Duration::from_secs(3));
    assert_eq!(cluster.get("a"), None);
}

/// A value is gone when the log says so: the read that finds it expired by the leader's
/// wall clock moves the region's clock first.
#[test]
fn ttl_expires_by_region_clock() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    written(cluster.call(region_id, write(&[("a", Some("1"), 1)])));
    cluster.run(Duration::from_millis(100));
    let leader = cluster.leader(region_id).unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let written_at = clock_of(&cluster, leader, region_id);
    assert!(written_at > EPOCH_MS);
    cluster.run(Duration::from_secs(2));
    assert_eq!(
        clock_of(&cluster, leader, region_id),
        written_at,
        "an idle region stands still"
    );

    let replica_read = |cluster: &mut Cluster| {
        let mut header = cluster.header(region_id);
        header.replica_read = true;
        let answer = cluster.send_with(follower, header, get("a"));
        match cluster.wait(&answer) {
            Ok(Answer::Value(value)) => value.map(|value| text(&value)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        replica_read(&mut cluster).as_deref(),
        Some("1"),
        "by the region's clock"
    );
    let metrics = cluster.nodes[&leader].core.metrics().clone();
    assert_eq!(cluster.get("a"), None);
    assert_eq!(metrics.clock_proposals.get(), 1);
    assert!(clock_of(&cluster, leader, region_id) >= written_at + 1000);
    assert_eq!(
        replica_read(&mut cluster),
        None,
        "expired once, expired everywhere"
    );
    // Further reads and commands need no further entry.
    assert_eq!(cluster.get("a"), None);
    let verdict = cluster.call(
        region_id,
        RequestBody::Write(vec![cas("a", None, Some("2"))]),
    );
    assert!(matches!(
        written(verdict)[..],
        [CommandOutcome::CompareAndSwap {
            succeeded: true,
            previous: None
        }]
    ));
    assert_eq!(metrics.clock_proposals.get(), 1);
}

/// The wall clock of a new leader may lie behind: what has expired stays so.
#[test]
fn ttl_stays_expired_on_a_leader_with_an_older_clock() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    cluster.wall_offset_ms.insert(old, 60_000);
    written(cluster.call(region_id, write(&[("a", Some("1"), 1)])));
    cluster.run(Duration::from_secs(2));
    assert_eq!(cluster.get("a"), None);
    let to = (1..=3).find(|id| *id != old).unwrap();
    let moved = cluster.call(region_id, RequestBody::TransferLeader { to_store_id: to });
    assert!(matches!(moved, Ok(Answer::Done)), "{moved:?}");
    assert_eq!(cluster.leader(region_id), Some(to));
    assert_eq!(cluster.get("a"), None);
}

/// Within a second of a clock entry the region's clock alone decides.
#[test]
fn ttl_clock_entries_are_at_most_one_a_second() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    written(cluster.call(
        region_id,
        write(&[("a", Some("1"), 1), ("b", Some("2"), 2)]),
    ));
    cluster.run(Duration::from_millis(1900));
    assert_eq!(cluster.get("a"), None);
    cluster.run(Duration::from_millis(200));
    assert_eq!(
        cluster.get("b").as_deref(),
        Some("2"),
        "expired by the wall clock alone"
    );
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.get("b"), None);
    assert_eq!(cluster.nodes[&1].core.metrics().clock_proposals.get(), 2);
}

#[test]
fn ttl_is_told_in_seconds() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    written(cluster.call(
        region_id,
        write(&[("a", Some("1"), 10), ("b", Some("2"), 0)]),
    ));
    let ttl = |cluster: &mut Cluster, key: &str| {
        let read = ReadCommand::Ttl {
            space: RawSpace::RawV1,
            key: bytes(key),
        };
        match cluster.call(region_id, RequestBody::Read(read)) {
            Ok(Answer::Ttl(seconds)) => seconds,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ttl(&mut cluster, "a"), Some(10));
    cluster.run(Duration::from_secs(4));
    assert_eq!(ttl(&mut cluster, "a"), Some(6));
    assert_eq!(ttl(&mut cluster, "b"), Some(0));
    assert_eq!(ttl(&mut cluster, "c"), None);
}

#[test]
fn scans_are_clipped_and_directed() {
    let mut cluster = cluster(1);
    let region_id = cluster.region_of(b"a");
    for key in ["a", "b", "c", "d"] {
        written(cluster.put(key, key));
    }
    let mut scan = |start: &str, end: &str, limit, key_only, reverse| {
        let read = ReadCommand::Scan {
            space: RawSpace::RawV1,
            start: bytes(start),
            end: bytes(end),
            limit,
            key_only,
            reverse,
        };
        match cluster.call(region_id, RequestBody::Read(read)) {
            Ok(Answer::Pairs(pairs)) => pairs
                .iter()
                .map(|(key, value)| format!("{}={}", text(key), text(value)))
                .collect::<Vec<_>>()
                .join(" "),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(scan("", "", 10, false, false), "a=a b=b c=c d=d");
    assert_eq!(scan("b", "d", 10, false, false), "b=b c=c");
    assert_eq!(scan("b", "", 2, true, false), "b= c=");
    assert_eq!(scan("", "", 3, false, true), "d=d c=c b=b");
    assert_eq!(scan("c", "a", 10, false, true), "b=b a=a");
    assert_eq!(scan("a", "b", 0, false, false), "");
    assert_eq!(scan("zz", "zzz", 10, false, false), "");
}

#[test]
fn checksums_are_the_same_on_all_replicas() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    for key in ["a", "b", "c"] {
        written(cluster.put(key, "value"));
    }
    written(cluster.call(region_id, write(&[("d", Some("short"), 1)])));
    let mut sums = Vec::new();
    for id in 1..=3 {
        let mut header = cluster.header(region_id);
        header.replica_read = true;
        let read = ReadCommand::Checksum {
            space: RawSpace::RawV1,
            ranges: vec![(Bytes::new(), Bytes::new())],
        };
        let answer = cluster.send_with(id, header, RequestBody::Read(read));
        match cluster.wait(&answer) {
            Ok(Answer::Checksum {
                crc64,
                pairs,
                bytes,
            }) => sums.push((crc64, pairs, bytes)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((sums[0].1, sums[0].2), (4, 24));
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

#[test]
fn replicas_answer_by_read_index() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    for at in 0..10 {
        written(cluster.put("a", &at.to_string()));
        for id in (1..=3).filter(|id| *id != leader) {
            let mut header = cluster.header(region_id);
            header.replica_read = true;
            let answer = cluster.send_with(id, header, get("a"));
            match cluster.wait(&answer) {
                Ok(Answer::Value(Some(value))) => assert_eq!(text(&value), at.to_string()),
                other => panic!("store {id}: {other:?}"),
            }
        }
    }
    assert!(
        cluster
            .nodes
            .values()
            .any(|node| node.core.metrics().reads_index.get() > 0)
    );
}

#[test]
fn leader_reads_under_its_lease() {
    let mut cluster = cluster(3);
    written(cluster.put("a", "1"));
    cluster.run(Duration::from_millis(500));
    let leader = cluster.leader(cluster.region_of(b"a")).unwrap();
    let metrics = cluster.nodes[&leader].core.metrics().clone();
    let before = (metrics.reads_lease.get(), metrics.read_index_rounds.get());
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    assert_eq!(
        (metrics.reads_lease.get(), metrics.read_index_rounds.get()),
        (before.0 + 1, before.1)
    );
}

/// The lease of a leader that is cut off runs out before another can lead; from then on it
/// answers no read.
#[test]
fn cut_off_leader_answers_no_stale_read() {
    let mut cluster = cluster(3);
    written(cluster.put("a", "old"));
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    cluster.cut.insert(old);
    cluster.until("another leader", |cluster| {
        cluster.leader(region_id).is_some()
    });
    written(cluster.put("a", "new"));
    let answer = cluster.send(old, region_id, get("a"));
    let refused = cluster.wait(&answer);
    assert!(
        matches!(refused, Err(Error::NotLeader { .. })),
        "{refused:?}"
    );
    cluster.cut.clear();
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.stored(old, "a").as_deref(), Some("new"));
}

#[test]
fn hand_over_moves_the_leadership() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    for to in [2, 3, 1, 1] {
        let moved = cluster.call(region_id, RequestBody::TransferLeader { to_store_id: to });
        assert!(matches!(moved, Ok(Answer::Done)), "{moved:?}");
        assert_eq!(cluster.leader(region_id), Some(to));
        written(cluster.put("a", &to.to_string()));
        assert_eq!(cluster.get("a"), Some(to.to_string()));
    }
    let nowhere = cluster.call(region_id, RequestBody::TransferLeader { to_store_id: 9 });
    assert!(matches!(nowhere, Err(Error::Invalid(_))), "{nowhere:?}");
}

#[test]
fn system_region_runs_its_state_machine() {
    let mut cluster = cluster(3);
    let append = |text: &str| RequestBody::SystemWrite(bytes(text));
    match cluster.call(1, append("abc")) {
        Ok(Answer::SystemWritten(length)) => assert_eq!(text(&length), "3"),
        other => panic!("{other:?}"),
    }
    match cluster.call(1, append("de")) {
        Ok(Answer::SystemWritten(length)) => assert_eq!(text(&length), "5"),
        other => panic!("{other:?}"),
    }
    match cluster.call(1, RequestBody::SystemRead) {
        Ok(Answer::System(view)) => {
            assert_eq!(text(&view.get(b"log").unwrap().unwrap()), "abcde");
            assert_eq!(view.get(b"absent").unwrap(), None);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn stopped_follower_catches_up_from_the_log() {
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let down = (1..=3).find(|id| *id != leader).unwrap();
    let node = cluster.nodes.remove(&down).unwrap();
    for at in 0..300 {
        written(cluster.put(&format!("a{at}"), &at.to_string()));
    }
    let engines = Engines::new(node.engines.kv.kill(), node.engines.raft.kill());
    cluster.start(down, engines);
    cluster.run(Duration::from_secs(3));
    assert_eq!(cluster.stored(down, "a0").as_deref(), Some("0"));
    assert_eq!(cluster.stored(down, "a299").as_deref(), Some("299"));
}

#[test]
fn all_stores_crash_and_lose_nothing_acknowledged() {
    let mut cluster = cluster(3);
    for at in 0..50 {
        written(cluster.put(&format!("a{at}"), &at.to_string()));
    }
    let nodes = std::mem::take(&mut cluster.nodes);
    for (id, node) in nodes {
        let engines = Engines::new(
            node.engines.kv.crash_keeping(0),
            node.engines.raft.crash_keeping(0),
        );
        cluster.start(id, engines);
    }
    cluster.elect_all();
    for at in 0..50 {
        assert_eq!(cluster.get(&format!("a{at}")), Some(at.to_string()));
    }
}

#[test]
fn leaders_report_their_regions() {
    let mut cluster = cluster(3);
    let leaders = |cluster: &Cluster| {
        let mut regions: Vec<u64> = cluster
            .reports
            .iter()
            .map(|report| report.region.as_ref().unwrap().id)
            .collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    };
    let all: Vec<u64> = cluster.regions.iter().map(|region| region.id).collect();
    assert_eq!(leaders(&cluster), all, "at once");
    assert!(
        cluster
            .reports
            .iter()
            .all(|one| one.leader.is_some() && one.term > 5)
    );
    cluster.reports.clear();
    cluster.run(Duration::from_secs(4));
    assert!(cluster.reports.is_empty(), "nothing changed");
    cluster.run(Duration::from_secs(2));
    assert_eq!(leaders(&cluster), all, "every five seconds");
    cluster.reports.clear();
    for id in 1..=3 {
        cluster.event(id, StoreEvent::ReportAll);
    }
    assert_eq!(leaders(&cluster), all, "when asked");
}

#[test]
fn store_that_is_not_admitted_keeps_silent() {
    let mut cluster = Cluster::new(
        3,
        StoreOptions {
            admitted: false,
            ..StoreOptions::default()
        },
    );
    cluster.run(Duration::from_secs(3));
    assert!((1..=7).all(|region| cluster.leader(region).is_none()));
    let sent = |cluster: &Cluster| -> u64 {
        cluster
            .nodes
            .values()
            .map(|node| node.core.metrics().messages_sent.get())
            .sum()
    };
    assert_eq!(sent(&cluster), 0);
    for id in 1..=3 {
        cluster.event(id, StoreEvent::Admitted(true));
    }
    cluster.elect_all();
    written(cluster.put("a", "1"));
}

#[test]
fn messages_for_unknown_regions_are_counted_and_dropped() {
    let mut cluster = cluster(1);
    let message = RaftMessage {
        region_id: 4711,
        ..RaftMessage::default()
    };
    cluster.event(1, StoreEvent::Message(message));
    let region_id = cluster.region_of(b"a");
    cluster.event(
        1,
        StoreEvent::Message(RaftMessage {
            region_id,
            ..RaftMessage::default()
        }),
    );
    assert_eq!(
        cluster.nodes[&1]
            .core
            .metrics()
            .messages_dropped_unknown
            .get(),
        2
    );
}

/// Committed entries beyond the limit of the backlog are not held in memory: they come from
/// the log again when it is their turn, and their requests are answered as ever.
#[test]
fn backlog_of_apply_is_bounded() {
    let options = StoreOptions {
        max_apply_backlog_bytes: 2000,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(3, options);
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let slow = (1..=3).find(|id| *id != leader).unwrap();
    cluster.nodes.get_mut(&slow).unwrap().apply_works = false;
    let value = "v".repeat(500);
    for at in 0..30 {
        written(cluster.put(&format!("a{at}"), &value));
    }
    let held: usize = cluster.nodes[&slow].held.iter().map(held_bytes).sum();
    assert!((2000..4000).contains(&held), "{held} bytes are held");
    cluster.release_apply(slow);
    cluster.run(Duration::from_millis(500));
    assert_eq!(cluster.stored(slow, "a29"), Some(value.clone()));

    // The same on the leader, where requests wait for the entries.
    cluster.nodes.get_mut(&leader).unwrap().apply_works = false;
    let answers: Vec<_> = (0..4)
        .map(|at| {
            cluster.send(
                leader,
                region_id,
                write(&[(&format!("b{at}"), Some(&value), 0)]),
            )
        })
        .collect();
    assert!(answers.iter().all(|answer| answer.try_recv().is_err()));
    cluster.release_apply(leader);
    for answer in answers {
        written(cluster.wait(&answer));
    }
    assert_eq!(cluster.get("b3"), Some(value));
}

fn held_bytes(effect: &strata_raftstore::StoreEffect) -> usize {
    match effect {
        strata_raftstore::StoreEffect::Apply(work) => {
            let entries = work.tasks.iter().flat_map(|task| match task {
                strata_raftstore::ApplyTask::Entries(task) => &task.entries[..],
                _ => &[],
            });
            entries.map(|entry| entry.data.len()).sum()
        }
        _ => 0,
    }
}

/// Keys of API v2 live where their encodings do, apart from keys of API v1.
#[test]
fn keys_of_both_versions_live_side_by_side() {
    use strata_proto::stratapb::{Mutation, WriteCommand};
    use strata_storage::keys;
    let mut cluster = cluster(1);
    let key = bytes("r\0\0\x01user");
    let region_id = cluster.region_of(&keys::compared_form(RawSpace::RawV2, &key));
    let mutation = Mutation {
        key: key.clone(),
        value: Some(bytes("two")),
        ttl_seconds: 0,
    };
    let put = WriteCommand {
        space: RawSpace::RawV2.into(),
        mutations: vec![mutation],
    };
    let put = RequestBody::Write(vec![command(Body::Write(put))]);
    written(cluster.call(region_id, put));
    let scan = |space| {
        RequestBody::Read(ReadCommand::Scan {
            space,
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 10,
            key_only: false,
            reverse: false,
        })
    };
    for (space, expected) in [
        (RawSpace::RawV2, vec![(key, bytes("two"))]),
        (RawSpace::RawV1, vec![]),
    ] {
        match cluster.call(region_id, scan(space)) {
            Ok(Answer::Pairs(pairs)) => assert_eq!(pairs, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// A clock entry and the message of a newer leader that come in one drain do not get into
/// each other's way: the read is served by the region's clock.
#[test]
fn clock_entry_does_not_meet_a_newer_leader_in_one_drain() {
    use strata_proto::eraftpb::{Entry, Message, MessageType};
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    written(cluster.call(region_id, write(&[("a", Some("1"), 1)])));
    cluster.run(Duration::from_secs(2));
    let leader = cluster.leader(region_id).unwrap();
    let entry = cluster.nodes[&leader]
        .core
        .directory()
        .entry(region_id)
        .unwrap();
    let (numbers, own) = (entry.view.numbers(), entry.peer);
    let other = *entry
        .region
        .peers
        .iter()
        .find(|peer| peer.id != own.id)
        .unwrap();
    let append = Message {
        msg_type: MessageType::MsgAppend.into(),
        from: other.id,
        to: own.id,
        term: numbers.term + 1,
        index: numbers.last,
        log_term: numbers.term,
        commit: numbers.last,
        entries: vec![Entry {
            term: numbers.term + 1,
            index: numbers.last + 1,
            ..Entry::default()
        }],
        ..Message::default()
    };
    let message = RaftMessage {
        region_id,
        from_peer: Some(other),
        to_peer: Some(own),
        message: Some(append),
        ..RaftMessage::default()
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    let request = Request {
        header: cluster.header(region_id),
        body: get("a"),
    };
    let reply = Reply::new(move |result| drop(sender.send(result)));
    cluster.events(
        leader,
        vec![
            StoreEvent::Request { request, reply },
            StoreEvent::Message(message),
        ],
    );
    match cluster.wait(&receiver) {
        Ok(Answer::Value(Some(value))) => assert_eq!(text(&value), "1"),
        other => panic!("{other:?}"),
    }
}
