//! Who leads and who keeps silent, what leaders report, and what stores that were away get.

use super::*;

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
