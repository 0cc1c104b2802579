//! Requests that wait for a leader, a quorum or room: each is answered by its deadline, and with
//! what may have become of it.
//!
//! A cluster in memory is cut apart, filled up or stopped while requests are under way; what is
//! looked at is the answer of each, and what the cluster holds once it is whole again.

mod common;

use std::sync::mpsc::channel;
use std::time::Duration;

use common::*;
use strata_raftstore::{Error, Reply, Request, RequestBody, StoreEvent, StoreOptions};

#[test]
fn request_without_a_leader_parks_and_is_refused() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    cluster.cut.insert(old);
    cluster.run(Duration::from_secs(2));
    let begin = cluster.now;
    let body = write(&[("a", Some("1"), 0)]);
    let answer = cluster.send(old, region_id, body);
    assert!(
        answer.try_recv().is_err(),
        "answered without waiting for a leader"
    );
    let error = refused(cluster.wait(&answer));
    assert_eq!(
        error,
        Error::NotLeader {
            region_id,
            leader: None
        }
    );
    let waited = cluster.now - begin;
    assert!(
        waited >= Duration::from_millis(300) && waited < Duration::from_millis(400),
        "{waited:?}"
    );
}

#[test]
fn parked_request_is_served_when_a_leader_comes_up() {
    let options = StoreOptions {
        park_time: Duration::from_secs(5),
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(3, options);
    let region_id = cluster.region_of(b"a");
    let body = write(&[("a", Some("1"), 0)]);
    let first = cluster
        .regions
        .iter()
        .find(|region| region.id == region_id)
        .unwrap();
    let answer = cluster.send(first.peers[0].store_id, region_id, body);
    assert_eq!(written(cluster.wait(&answer)).len(), 1);
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
}

/// A write that was proposed and cannot be committed is not called failed.
#[test]
fn proposed_write_without_a_quorum_is_undetermined() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    cluster.cut.insert(old);
    let answer = cluster.send(old, region_id, write(&[("a", Some("1"), 0)]));
    let error = refused(cluster.wait(&answer));
    assert!(matches!(error, Error::Undetermined { .. }), "{error:?}");
}

/// The deadline answers a proposed write even while its leader goes on leading.
#[test]
fn proposed_write_is_answered_at_its_deadline() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    for id in 1..=3 {
        cluster.nodes.get_mut(&id).unwrap().disk_works = false;
    }
    let begin = cluster.now;
    let answer = cluster.send(leader, region_id, write(&[("a", Some("1"), 0)]));
    let error = refused(cluster.wait(&answer));
    assert!(matches!(error, Error::Undetermined { .. }), "{error:?}");
    assert!(cluster.now - begin <= Duration::from_secs(2));
    for id in 1..=3 {
        cluster.release_disk(id);
    }
    cluster.run(Duration::from_secs(2));
    assert_eq!(
        cluster.get("a").as_deref(),
        Some("1"),
        "it was executed late"
    );
}

#[test]
fn passed_deadline_and_cancellation_are_refused_before_they_propose() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let mut header = cluster.header(region_id);
    header.deadline = cluster.now;
    let answer = cluster.send_with(leader, header, write(&[("a", Some("1"), 0)]));
    assert_eq!(refused(cluster.wait(&answer)), Error::DeadlineExceeded);

    // A request that is parked, and given up meanwhile.
    cluster.cut.insert(leader);
    cluster.run(Duration::from_secs(2));
    let (sender, receiver) = channel();
    let request = Request {
        header: cluster.header(region_id),
        body: write(&[("a", Some("2"), 0)]),
    };
    let reply = Reply::new(move |result| drop(sender.send(result)));
    let now = cluster.clock(leader);
    let node = cluster.nodes.get_mut(&leader).unwrap();
    let (token, effects) = node.core.execute(now, request, reply);
    assert!(effects.is_empty(), "{effects:?}");
    drop(token);
    assert_eq!(refused(cluster.wait(&receiver)), Error::Cancelled);
    cluster.cut.clear();
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.get("a"), None);
}

/// Writes for which there is no room wait for it, and are refused as busy in vain.
#[test]
fn writes_beyond_the_uncommitted_limit_are_busy() {
    let options = StoreOptions {
        max_uncommitted_bytes: 2000,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(3, options);
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    for id in 1..=3 {
        cluster.nodes.get_mut(&id).unwrap().disk_works = false;
    }
    let value = "v".repeat(900);
    let answers: Vec<_> = (0..6)
        .map(|_| cluster.send(leader, region_id, write(&[("a", Some(&value), 0)])))
        .collect();
    cluster.run(Duration::from_millis(400));
    let results: Vec<_> = answers
        .iter()
        .filter_map(|one| one.try_recv().ok())
        .collect();
    assert!(
        !results.is_empty() && results.len() < 6,
        "{}",
        results.len()
    );
    for result in results {
        let error = refused(result);
        assert!(matches!(error, Error::ServerIsBusy { .. }), "{error:?}");
    }
    for id in 1..=3 {
        cluster.release_disk(id);
    }
    written(cluster.put("a", "1"));
}

/// Whatever happens to a store, each request gets one answer: dropping it answers too. A
/// write that was proposed may still be executed, and only its answer may say so.
#[test]
fn dropped_store_answers_what_waits() {
    let mut cluster = elected(3);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    cluster.cut.insert(leader);
    let proposed = cluster.send(leader, region_id, write(&[("a", Some("2"), 0)]));
    let (sender, read) = channel();
    let request = Request {
        header: cluster.header(region_id),
        body: get("a"),
    };
    let reply = Reply::new(move |result| drop(sender.send(result)));
    cluster.run(cluster.options.election_timeout());
    cluster.event(leader, StoreEvent::Request { request, reply });
    cluster.nodes.remove(&leader);
    assert!(matches!(
        proposed.try_recv(),
        Ok(Err(Error::Undetermined { .. }))
    ));
    assert!(matches!(read.try_recv(), Ok(Err(Error::Stopping(_)))));
}

/// A leader whose log holds other entries where an older proposal of its own stood does
/// not know that the proposal is dead: a replica that kept it may yet win and commit it.
#[test]
fn overwritten_proposal_is_undetermined_and_may_be_executed() {
    let options = StoreOptions {
        // Nobody gives up before the logs have changed.
        park_time: Duration::from_secs(10),
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(5, options);
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let old = cluster.leader(region_id).unwrap();
    let others: Vec<u64> = (1..=5).filter(|id| *id != old).collect();
    let (keeper, elsewhere) = (others[0], others[1..].to_vec());
    // Three writes reach the leader's own log and one other, which is no quorum.
    cluster.cut.extend(&elsewhere);
    let put = |cluster: &mut Cluster, value: usize| {
        let mut header = cluster.header(region_id);
        header.deadline = cluster.now + Duration::from_secs(60);
        let body = write(&[("a", Some(&value.to_string()), 0)]);
        cluster.send_with(old, header, body)
    };
    let answers: Vec<_> = (1..=3).map(|value| put(&mut cluster, value)).collect();
    // The rest elects a leader, whose first entry reaches the old one alone.
    cluster.cut = [old, keeper].into();
    cluster.no_entries_to.extend(&elsewhere);
    cluster.until("another leader", |cluster| {
        cluster.leader(region_id).is_some()
    });
    let new = cluster.leader(region_id).unwrap();
    cluster.cut = others.iter().copied().filter(|id| *id != new).collect();
    let term = |cluster: &Cluster, id| {
        let directory = cluster.nodes[&id].core.directory();
        directory.entry(region_id).unwrap().view.term()
    };
    let behind = |cluster: &Cluster| term(cluster, old) < term(cluster, new);
    while behind(&cluster) {
        cluster.tick();
    }
    for answer in &answers {
        let early = answer.try_recv();
        assert!(
            early.is_err(),
            "before the old leader leads again: {early:?}"
        );
    }
    // The old leader leads again, and its new entries take the place of its old ones.
    cluster.cut = [keeper].into();
    let hand_over = RequestBody::TransferLeader { to_store_id: old };
    let handed_over = cluster.send(new, region_id, hand_over);
    cluster.wait(&handed_over).unwrap();
    cluster.cut = others.iter().copied().collect();
    let late: Vec<_> = (4..=6).map(|value| put(&mut cluster, value)).collect();
    let overwritten = refused(answers[2].try_recv().unwrap());
    assert!(
        matches!(overwritten, Error::Undetermined { .. }),
        "{overwritten:?}"
    );
    assert!(late.iter().all(|answer| answer.try_recv().is_err()));
    // The one that kept the old entries wins and commits them.
    cluster.cut = [old, new].into();
    cluster.no_entries_to.clear();
    cluster.until("the keeper leads", |cluster| {
        cluster.leader(region_id) == Some(keeper)
    });
    assert_eq!(cluster.get("a").as_deref(), Some("3"));
}
