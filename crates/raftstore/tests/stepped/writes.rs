//! Writes: what shares an entry, what waits for the disk, what is refused.

use super::*;

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
    // The follower learns of the last ones with a heartbeat.
    cluster.run(Duration::from_millis(200));
    let held: usize = cluster.nodes[&slow].held.iter().map(held_bytes).sum();
    // A part may wait for a credit of the apply shard.
    assert!((1000..4000).contains(&held), "{held} bytes are held");
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

/// Small writes fit into every limit of bytes by the hundred thousand. Those that would wait too
/// long are refused as they come, and none any more when the others are executed.
#[test]
fn writes_that_come_faster_than_they_are_executed_are_busy_at_once() {
    const BURST: usize = 1000;
    let mut cluster = cluster(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    for id in 1..=3 {
        cluster.nodes.get_mut(&id).unwrap().disk_works = false;
    }
    let send =
        |cluster: &mut Cluster| cluster.send(leader, region_id, write(&[("a", Some("1"), 0)]));
    let burst: Vec<_> = (0..BURST).map(|_| send(&mut cluster)).collect();
    assert!(
        burst.iter().all(|one| one.try_recv().is_err()),
        "a burst is taken"
    );
    // Longer than a quarter of the longest wait, shorter than an election timeout.
    cluster.run(Duration::from_millis(200));
    for _ in 0..10 {
        let refused = send(&mut cluster)
            .try_recv()
            .expect("it is answered at once");
        assert!(
            matches!(refused, Err(Error::ServerIsBusy { .. })),
            "{refused:?}"
        );
    }
    for id in 1..=3 {
        cluster.release_disk(id);
    }
    cluster.run(Duration::from_millis(50));
    for one in &burst {
        written(one.try_recv().expect("what was accepted is executed"));
    }
    let next = send(&mut cluster);
    written(cluster.wait(&next));
}
