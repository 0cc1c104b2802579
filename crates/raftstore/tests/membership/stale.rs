//! Removed peers that did not hear of it: how they learn, and from whom they do not.

use super::*;

/// A removed learner that did not hear of it asks when it has been without a leader, and is
/// told. A member that asks goes on.
#[test]
fn stale_peer_collected() {
    let mut cluster = cluster(3);
    let (region_id, _, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    changed(
        &mut cluster,
        region_id,
        &[change(AddLearner, peer.id, other)],
    );
    cluster.run(Duration::from_millis(300));
    cluster.cut.insert(other);
    changed(&mut cluster, region_id, &[change(Remove, peer.id, other)]);
    cluster.run(Duration::from_secs(2));
    assert!(
        has_peer(&cluster, other, region_id),
        "nobody can have told it"
    );
    let metrics = cluster.nodes[&other].core.metrics().clone();
    assert!(metrics.stale_checks.get() > 0);
    cluster.cut.clear();
    cluster.until("the stale peer is destroyed", |cluster| {
        is_gone(cluster, other, region_id)
    });
    // The others of that store were without a leader as well, and are members.
    for region in cluster.regions.clone() {
        let stays = region.id != region_id && find_peer_on(&region, other).is_some();
        assert!(!stays || has_peer(&cluster, other, region.id), "{region:?}");
    }
    written(cluster.put("a", "1"));
}

/// A removed voter asks for votes: that is answered in the same way, at once.
#[test]
fn stale_peer_collected_when_it_asks_for_votes() {
    let options = StoreOptions::default();
    let mut cluster = Cluster::new(3, options);
    cluster.elect_all();
    let (region_id, _, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    cluster.cut.insert(other);
    changed(&mut cluster, region_id, &[change(Remove, peer.id, other)]);
    cluster.run(Duration::from_secs(2));
    cluster.cut.clear();
    cluster.until("the stale peer is destroyed", |cluster| {
        is_gone(cluster, other, region_id)
    });
}

/// A peer that was created, and removed before it got its snapshot.
#[test]
fn stale_peer_collected_before_its_snapshot() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    hold_jobs(&mut cluster);
    changed(
        &mut cluster,
        region.id,
        &[change(AddLearner, 777_777, spare)],
    );
    cluster.run(Duration::from_millis(400));
    assert!(has_peer(&cluster, spare, region.id));
    cluster.release_jobs(spare);
    cluster.cut.insert(spare);
    changed(&mut cluster, region.id, &[change(Remove, 777_777, spare)]);
    cluster.run(Duration::from_secs(2));
    cluster.cut.clear();
    cluster.until("the stale peer is destroyed", |cluster| {
        is_gone(cluster, spare, region.id)
    });
    assert!(
        cluster.nodes[&spare]
            .core
            .directory()
            .load()
            .creating
            .is_empty()
    );
}

/// The tombstone of a peer that never got its snapshot has an epoch and knows no members: a
/// member that lags must not be told by it that it was removed.
#[test]
fn stale_peer_is_not_told_by_a_tombstone_that_knows_no_members() {
    let mut cluster = cluster(4);
    let (region, spare) = region_and_spare_store(&cluster);
    let leader = cluster.leader(region.id);
    let mut followers = region.peers.iter();
    let member = *followers
        .find(|peer| Some(peer.store_id) != leader)
        .unwrap();
    // It applies neither change.
    cluster.cut.insert(member.store_id);
    hold_jobs(&mut cluster);
    let with_learner = changed(
        &mut cluster,
        region.id,
        &[change(AddLearner, 777_777, spare)],
    );
    cluster.run(Duration::from_millis(400));
    assert!(has_peer(&cluster, spare, region.id));
    let gone = *find_peer_on(&with_learner, spare).unwrap();
    changed(&mut cluster, region.id, &[change(Remove, gone.id, spare)]);
    cluster.until("the new peer is destroyed", |cluster| {
        is_gone(cluster, spare, region.id)
    });
    let (_, tombstone) = stored_region(&cluster, spare, region.id);
    assert_eq!(tombstone.peers, [gone], "it never knew the others");
    assert!(conf_ver(&tombstone) > conf_ver(&region));

    // The member asks, as one does after a long absence, and nobody else can answer.
    let lagging = conf_ver(&region_on(&cluster, member.store_id, region.id).unwrap());
    assert!(lagging < conf_ver(&tombstone));
    let all = region.peers.iter().map(|peer| peer.store_id);
    cluster.cut = all.filter(|id| *id != member.store_id).collect();
    let ask = first_message(&region, (member, gone), lagging, vote_request(50, true));
    cluster.event(spare, StoreEvent::Message(ask));
    cluster.run(Duration::from_millis(200));
    assert!(
        has_peer(&cluster, member.store_id, region.id),
        "it is a member"
    );
    cluster.cut.clear();
    cluster.until("the member follows", |cluster| {
        let own = region_on(cluster, member.store_id, region.id).unwrap();
        conf_ver(&own) > conf_ver(&tombstone)
    });
}

/// A peer is never destroyed by a word that is not newer than what it has applied, or that
/// is not for it.
#[test]
fn stale_peer_collected_by_a_newer_word_only() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    let region = region_on(&cluster, leader, region_id).unwrap();
    let own = peer_on(&cluster, region_id, other);
    let now = conf_ver(&region);
    let mut stranger = own;
    stranger.id -= 50_000;
    for message in [
        tombstone_message(&region, own, now),
        tombstone_message(&region, own, 0),
        tombstone_message(&region, stranger, 99),
    ] {
        cluster.event(other, StoreEvent::Message(message));
        assert!(has_peer(&cluster, other, region_id));
    }
    cluster.cut.insert(other);
    let message = tombstone_message(&region, own, now + 1);
    cluster.event(other, StoreEvent::Message(message));
    assert!(is_gone(&cluster, other, region_id));
}
