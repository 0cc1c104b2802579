//! Peers that are destroyed: what goes, what stays, and in which order.

use super::*;

#[test]
fn peer_destroyed_leaves_tombstone() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    written(cluster.put("a", "1"));
    cluster.run(Duration::from_millis(300));
    assert_eq!(cluster.stored(other, "a").as_deref(), Some("1"));
    let peer = peer_on(&cluster, region_id, other);
    let region = changed(&mut cluster, region_id, &[change(Remove, peer.id, other)]);
    cluster.until("the peer is destroyed", |cluster| {
        is_gone(cluster, other, region_id)
    });
    assert_eq!(cluster.stored(other, "a"), None, "its data are cleared");
    let (state, tombstone) = stored_region(&cluster, other, region_id);
    assert_eq!(state, PeerState::Tombstone);
    assert_eq!(tombstone.region_epoch, region.region_epoch);
    assert_eq!(find_peer_on(&tombstone, other).unwrap().id, peer.id);
    // Every other region of the store goes on.
    written(cluster.put("b", "2"));
    assert_eq!(cluster.leader(region_id), Some(leader));

    // No message for the old peer brings it back, however late and of whatever epoch; one
    // for a newer peer creates that one.
    let beat = |to: metapb::Peer, conf_ver| heartbeat(&region, leader, to, conf_ver);
    for conf_ver in [1, conf_ver(&region), 99] {
        cluster.event(other, StoreEvent::Message(beat(peer, conf_ver)));
        assert!(!has_peer(&cluster, other, region_id), "{conf_ver}");
    }
    let newer = metapb::Peer {
        id: peer.id + 1_000_000,
        ..peer
    };
    cluster.event(other, StoreEvent::Message(beat(newer, conf_ver(&region))));
    assert!(!has_peer(&cluster, other, region_id), "of the same epoch");
    cluster.event(
        other,
        StoreEvent::Message(beat(newer, conf_ver(&region) + 1)),
    );
    assert!(has_peer(&cluster, other, region_id));
    // The tombstone survives a restart, and so does what it forbids.
    let engines = cluster.power_cut(other);
    cluster.start(other, engines);
    cluster.event(other, StoreEvent::Message(beat(peer, 99)));
    assert!(!has_peer(&cluster, other, region_id));
}

/// The log gc worker answers a job of a peer that was destroyed meanwhile: the region's newer
/// peer takes no notice.
#[test]
fn peer_destroyed_while_its_log_is_deleted() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    let region = changed(&mut cluster, region_id, &[change(Remove, peer.id, other)]);
    cluster.until("the peer is destroyed", |cluster| {
        is_gone(cluster, other, region_id)
    });
    let newer = metapb::Peer {
        id: peer.id + 1_000_000,
        ..peer
    };
    let created = heartbeat(&region, leader, newer, conf_ver(&region) + 1);
    cluster.event(other, StoreEvent::Message(created));
    assert!(has_peer(&cluster, other, region_id));
    let late = JobDone::LogGone {
        region_id,
        index: 20,
    };
    cluster.event(other, StoreEvent::JobDone(late));
    assert!(has_peer(&cluster, other, region_id));
}

/// A peer that is removed while it installs a snapshot: the install ends first, or it would
/// write over the tombstone.
#[test]
fn peer_destroyed_in_the_middle_of_an_install() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    written(cluster.put("a", "1"));
    cluster.nodes.get_mut(&spare).unwrap().jobs_work = false;
    let added = change(AddLearner, 777_777, spare);
    let region = changed(&mut cluster, region.id, &[added]);
    cluster.until("the install has begun", |cluster| {
        let kv = &cluster.nodes[&spare].engines.kv;
        let state = read_region_state(kv, region.id).unwrap();
        state.is_some_and(|state| state.state() == PeerState::Applying)
    });
    let own = *find_peer_on(&region, spare).unwrap();
    let word = tombstone_message(&region, own, conf_ver(&region) + 1);
    cluster.cut.insert(spare);
    cluster.event(spare, StoreEvent::Message(word));
    cluster.run(Duration::from_millis(200));
    assert_eq!(
        stored_region(&cluster, spare, region.id).0,
        PeerState::Applying
    );
    cluster.release_jobs(spare);
    cluster.until("the peer is destroyed", |cluster| {
        is_gone(cluster, spare, region.id)
    });
    assert_eq!(cluster.stored(spare, "a"), None);
}

/// Crash rule 5: power is cut behind each step of a destroy. What is left is a live region
/// with all of its log, or a destroy that the start finishes; never data or votes of a peer
/// that is gone.
#[test]
fn crash_rule_destroy() {
    for step in 0..=4 {
        let mut cluster = cluster(3);
        let (region_id, leader, [other, _]) = some_region(&cluster);
        written(cluster.put("a", "1"));
        cluster.run(Duration::from_millis(300));
        let region = region_on(&cluster, leader, region_id).unwrap();
        let own = peer_on(&cluster, region_id, other);
        cluster.cut.insert(other);
        let node = cluster.nodes.get_mut(&other).unwrap();
        // So that the entries are here after the power cut as well.
        node.engines.kv.make_durable().unwrap();
        match step {
            0 => node.data_works = false,
            1 => node.disk_works = false,
            2 => node.jobs_work = false,
            _ => {}
        }
        let word = tombstone_message(&region, own, 99);
        cluster.event(other, StoreEvent::Message(word.clone()));
        let answer = cluster.send(other, region_id, get("a"));
        let result = cluster.wait(&answer);
        assert!(
            matches!(result, Err(Error::RegionNotFound { .. })),
            "step {step}: {result:?}"
        );
        let before = conf_ver(&stored_region(&cluster, other, region_id).1);
        assert_eq!(before, 1, "the tombstone keeps the epoch");
        let engines = cluster.power_cut(other);
        let state = read_region_state(&engines.kv, region_id).unwrap().unwrap();
        let log = read_raft_state(&engines.raft, region_id).unwrap();
        let applied = read_apply_state(&engines.kv, region_id).unwrap();
        let expected = match step {
            0 => (PeerState::Normal, true, true),
            1 => (PeerState::Tombstone, true, true),
            2 => (PeerState::Tombstone, false, true),
            _ => (PeerState::Tombstone, false, false),
        };
        let found = (state.state(), log.is_some(), applied.is_some());
        assert_eq!(found, expected, "step {step}");

        // A vote of a newer peer, which a message has created since, is not the old one's.
        if step == 4 {
            let vote = HardState {
                term: 30,
                vote: 7,
                commit: 0,
            };
            let state = RaftLocalState {
                hard_state: Some(vote),
                last_index: 0,
            };
            let mut batch = WriteBatch::new();
            write_raft_state(&mut batch, region_id, &state);
            engines.raft.write(&batch, Durability::Synced).unwrap();
        }
        cluster.start(other, engines);
        assert_eq!(has_peer(&cluster, other, region_id), step == 0);
        if step == 0 {
            cluster.event(other, StoreEvent::Message(word));
        }
        if step == 4 {
            let kept = hard_state(&cluster, other, region_id).unwrap();
            assert_eq!((kept.term, kept.vote), (30, 7));
            continue;
        }
        assert!(is_gone(&cluster, other, region_id), "step {step}");
        assert_eq!(cluster.stored(other, "a"), None, "step {step}");
        let own_regions = cluster.nodes[&other].core.directory().load();
        assert!(own_regions.iter().count() > 1, "the other regions are here");
    }
}
