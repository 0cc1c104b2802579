//! Values with a time to live: the clock of the region decides.

use super::*;

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
