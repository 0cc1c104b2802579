//! Peers that a message creates: by which message, with which vote, and how they become whole.

use super::*;

/// A voter on a new store, from the request to the region that it leads.
#[test]
fn peer_created_by_message_becomes_whole_by_snapshot() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    written(cluster.put("a", "1"));
    let added = change(AddVoter, 777_777, spare);
    let region = changed(&mut cluster, region.id, &[added]);
    cluster.until("the new peer has the data", |cluster| {
        cluster.stored(spare, "a").as_deref() == Some("1")
    });
    cluster.until("the new peer is in the directory", |cluster| {
        region_on(cluster, spare, region.id).as_ref() == Some(&region)
    });
    let directory = cluster.nodes[&spare].core.directory().load();
    assert!(directory.creating.is_empty());
    let stored = stored_region(&cluster, spare, region.id);
    assert_eq!(stored, (PeerState::Normal, region.clone()));
    let to_store_id = spare;
    let moved = cluster.call(region.id, RequestBody::TransferLeader { to_store_id });
    assert!(matches!(moved, Ok(Answer::Done)), "{moved:?}");
    assert_eq!(cluster.leader(region.id), Some(spare));
    written(cluster.put("a", "2"));
    assert_eq!(cluster.get("a").as_deref(), Some("2"));

    // An old voter becomes a learner and goes.
    let old = region.peers[0];
    let demoted = change(AddLearner, old.id, old.store_id);
    changed(&mut cluster, region.id, &[demoted]);
    let removed = change(Remove, old.id, old.store_id);
    let region = changed(&mut cluster, region.id, &[removed]);
    cluster.until("the old peer is destroyed", |cluster| {
        is_gone(cluster, old.store_id, region.id)
    });
    // And a newer peer takes its place on the same store.
    let added = change(AddLearner, 888_888, old.store_id);
    changed(&mut cluster, region.id, &[added]);
    cluster.until("the newer peer has the data", |cluster| {
        cluster.stored(old.store_id, "a").as_deref() == Some("2")
    });
}

#[test]
fn peer_created_by_message_votes_and_waits_for_its_snapshot() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    assert!(!has_peer(&cluster, spare, region.id));
    hold_jobs(&mut cluster);
    let changed = changed(
        &mut cluster,
        region.id,
        &[change(AddLearner, 777_777, spare)],
    );
    cluster.run(Duration::from_millis(400));
    assert!(
        has_peer(&cluster, spare, region.id),
        "by the first heartbeat"
    );
    let new = *find_peer_on(&changed, spare).unwrap();
    let directory = cluster.nodes[&spare].core.directory().load();
    assert!(directory.get(region.id).is_none(), "it serves nothing");
    assert_eq!(directory.creating[&region.id].id, new.id);
    let leader = cluster.leader(region.id).unwrap();
    let term = hard_state(&cluster, leader, region.id).unwrap().term;
    let created = hard_state(&cluster, spare, region.id).unwrap();
    assert_eq!(created.term, term, "it follows the leader");
    let answer = cluster.send(spare, region.id, get("a"));
    let result = cluster.wait(&answer);
    assert!(
        matches!(result, Err(Error::RegionNotFound { .. })),
        "{result:?}"
    );
    let metrics = cluster.nodes[&spare].core.metrics();
    assert_eq!(metrics.peers_created.get(), 1);
    // The group goes on: a learner without a log holds nobody up.
    written(cluster.put("a", "1"));
}

#[test]
fn peer_created_by_message_only_by_a_message_that_may() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    let leader = cluster.leader(region.id).unwrap();
    let from = *find_peer_on(&region, leader).unwrap();
    let to = metapb::Peer {
        id: 777_777,
        store_id: spare,
        ..metapb::Peer::default()
    };
    let beat = heartbeat(&region, leader, to, 9);
    let mut known = beat.clone();
    known.message.as_mut().unwrap().commit = 7;
    let append = Message {
        msg_type: MessageType::MsgAppend.into(),
        term: 20,
        index: 8,
        log_term: 6,
        ..Message::default()
    };
    let mut no_epoch = beat.clone();
    no_epoch.region_epoch = None;
    let mut inverted = beat.clone();
    (inverted.start_key, inverted.end_key) = ("b".into(), "a".into());
    let mut elsewhere = beat.clone();
    elsewhere.to_peer.as_mut().unwrap().store_id = leader;
    let mut tombstone = beat.clone();
    tombstone.is_tombstone = true;
    let refused = [
        known,
        first_message(&region, (from, to), 9, append),
        no_epoch,
        inverted,
        elsewhere,
        tombstone,
    ];
    for message in refused {
        cluster.event(spare, StoreEvent::Message(message.clone()));
        assert!(!has_peer(&cluster, spare, region.id), "{message:?}");
    }
    cluster.event(spare, StoreEvent::Message(beat));
    assert!(has_peer(&cluster, spare, region.id));
}

/// Crash rule 4: a peer that a message created has voted; created again after a crash, it
/// still has.
#[test]
fn crash_rule_peer_created_by_message_keeps_vote() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    let to = metapb::Peer {
        id: 777_777,
        store_id: spare,
        ..metapb::Peer::default()
    };
    // The leader of the region says nothing to it: only the test does.
    cluster.cut.insert(spare);
    let (first, second) = (region.peers[0], region.peers[1]);
    let ask = |from| first_message(&region, (from, to), 9, vote_request(50, false));
    cluster.event(spare, StoreEvent::Message(ask(first)));
    let voted = hard_state(&cluster, spare, region.id).unwrap();
    assert_eq!((voted.term, voted.vote), (50, first.id));

    let engines = cluster.power_cut(spare);
    cluster.start(spare, engines);
    assert!(!has_peer(&cluster, spare, region.id), "nothing names it");
    // Created by the other candidate's request. It is quiet for an election timeout; what
    // it is asked then meets the vote of before the crash.
    for _ in 0..3 {
        cluster.event(spare, StoreEvent::Message(ask(second)));
        cluster.run(Duration::from_secs(1));
    }
    assert!(has_peer(&cluster, spare, region.id));
    let kept = hard_state(&cluster, spare, region.id).unwrap();
    assert_eq!(
        (kept.term, kept.vote),
        (50, first.id),
        "voted twice in a term"
    );
}

/// Crash rule 12: while a live region covers the range of a message, no peer comes of it,
/// and the vote that lies in the raft engine under its region's id stays. Once the range is
/// free, the peer is created and has that vote.
#[test]
fn crash_rule_uncreated_child_is_held_and_keeps_its_vote() {
    let mut cluster = cluster(3);
    let parent_id = cluster.region_of(b"a");
    let parent = cluster.regions.iter().find(|region| region.id == parent_id);
    let parent = parent.unwrap().clone();
    let id = 2;
    cluster.cut.insert(id);
    // A child as a split would make it, of which this store has not heard.
    let child = Region {
        id: 5000,
        end_key: parent.end_key.clone(),
        start_key: parent.start_key.clone(),
        ..parent.clone()
    };
    let vote = HardState {
        term: 9,
        vote: 41,
        commit: 0,
    };
    let state = RaftLocalState {
        hard_state: Some(vote),
        last_index: 0,
    };
    let mut batch = WriteBatch::new();
    write_raft_state(&mut batch, child.id, &state);
    let raft = cluster.nodes[&id].engines.raft.clone();
    raft.write(&batch, Durability::Synced).unwrap();
    let peer = |peer_id, store_id| metapb::Peer {
        id: peer_id,
        store_id,
        ..metapb::Peer::default()
    };
    let (from, to) = (peer(40, 1), peer(42, id));
    let ask = |term| first_message(&child, (from, to), 2, vote_request(term, false));
    for _ in 0..100 {
        cluster.event(id, StoreEvent::Message(ask(9)));
    }
    assert!(!has_peer(&cluster, id, child.id), "under a live parent");
    assert_eq!(hard_state(&cluster, id, child.id), Some(vote));
    let metrics = cluster.nodes[&id].core.metrics().clone();
    assert_eq!(metrics.messages_held.get(), 100);
    let kept = metrics.messages_held.get() - metrics.messages_dropped_held.get();
    assert!(kept <= 16, "{kept} messages are held of one region");

    // The parent goes: what was held creates the child, which has voted already.
    let own = *find_peer_on(&parent, id).unwrap();
    cluster.event(id, StoreEvent::Message(tombstone_message(&parent, own, 99)));
    assert!(is_gone(&cluster, id, parent_id));
    assert!(has_peer(&cluster, id, child.id), "the range is free");
    cluster.run(Duration::from_secs(1));
    cluster.event(id, StoreEvent::Message(ask(9)));
    assert_eq!(
        hard_state(&cluster, id, child.id),
        Some(vote),
        "voted twice"
    );
    cluster.event(id, StoreEvent::Message(ask(10)));
    let later = hard_state(&cluster, id, child.id).unwrap();
    assert_eq!((later.term, later.vote), (10, from.id), "it is not dead");
}

/// What was held for long creates nothing: its sender has long asked again.
#[test]
fn uncreated_child_is_forgotten_after_a_while() {
    let mut cluster = cluster(3);
    let parent_id = cluster.region_of(b"a");
    let parent = cluster.regions.iter().find(|region| region.id == parent_id);
    let parent = parent.unwrap().clone();
    let child = Region {
        id: 5000,
        ..parent.clone()
    };
    let peer = |peer_id, store_id| metapb::Peer {
        id: peer_id,
        store_id,
        ..metapb::Peer::default()
    };
    let ask = first_message(&child, (peer(40, 1), peer(42, 2)), 2, vote_request(9, true));
    cluster.event(2, StoreEvent::Message(ask));
    cluster.run(Duration::from_secs(11));
    cluster.cut.insert(2);
    let own = *find_peer_on(&parent, 2).unwrap();
    cluster.event(2, StoreEvent::Message(tombstone_message(&parent, own, 99)));
    assert!(is_gone(&cluster, 2, parent_id));
    assert!(!has_peer(&cluster, 2, child.id));
}
