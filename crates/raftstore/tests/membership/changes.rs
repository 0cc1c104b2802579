//! Changes of the membership: what is entered and left, what is refused, who leads meanwhile.

use super::*;

#[test]
fn conf_change_simple_reaches_engines_directory_and_reports() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    written(cluster.put("a", "1"));
    let peer = peer_on(&cluster, region_id, other);
    let before = conf_ver(&region_on(&cluster, leader, region_id).unwrap());
    cluster.reports.clear();
    let region = changed(
        &mut cluster,
        region_id,
        &[change(AddLearner, peer.id, other)],
    );
    assert_eq!(conf_ver(&region), before + 1);
    assert_eq!(find_peer_on(&region, other).unwrap().role(), Learner);
    cluster.run(Duration::from_millis(300));
    for id in 1..=3 {
        assert_eq!(region_on(&cluster, id, region_id).as_ref(), Some(&region));
        let stored = stored_region(&cluster, id, region_id);
        assert_eq!(stored, (PeerState::Normal, region.clone()), "store {id}");
    }
    let reported = cluster.reports.iter().rev();
    let reported = reported.filter_map(|report| report.region.as_ref());
    let reported = reported.filter(|reported| reported.id == region_id);
    assert_eq!(
        reported.max_by_key(|region| conf_ver(region)),
        Some(&region)
    );
    // A learner's log counts for nothing: without the other voter there is no majority.
    written(cluster.put("a", "2"));
    let voter = (1..=3).find(|id| *id != leader && *id != other).unwrap();
    cluster.cut.insert(voter);
    let answer = cluster.send(leader, region_id, write(&[("a", Some("3"), 0)]));
    cluster.run(Duration::from_millis(200));
    assert!(
        answer.try_recv().is_err(),
        "committed with a learner's help"
    );
    cluster.cut.clear();
    assert_eq!(written(cluster.wait(&answer)), [CommandOutcome::Done]);
    let region = changed(&mut cluster, region_id, &[change(AddVoter, peer.id, other)]);
    assert_eq!(conf_ver(&region), before + 2);
    assert!(region.peers.iter().all(|peer| peer.role() == Voter));
}

#[test]
fn conf_change_with_a_stale_epoch_is_refused() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    let region = region_on(&cluster, leader, region_id).unwrap();
    changed(
        &mut cluster,
        region_id,
        &[change(AddLearner, peer.id, other)],
    );
    let mut header = cluster.header(region_id);
    header.epoch = region.region_epoch;
    let changes = vec![change(AddVoter, peer.id, other)];
    let leader = cluster.leader(region_id).unwrap();
    let answer = cluster.send_with(leader, header.clone(), RequestBody::ChangePeers { changes });
    let result = cluster.wait(&answer);
    assert!(
        matches!(result, Err(Error::EpochNotMatch { .. })),
        "{result:?}"
    );
    // Clients may go on with the old membership.
    header.deadline = cluster.now + Duration::from_secs(2);
    let answer = cluster.send_with(leader, header, write(&[("a", Some("1"), 0)]));
    assert_eq!(written(cluster.wait(&answer)), [CommandOutcome::Done]);
}

/// Found by seed 1138 of the default swarm: a change that waited for the removal of a peer
/// brought that peer back, whose store refuses an id that is used up.
#[test]
fn conf_change_that_has_waited_for_another_is_not_for_what_that_made() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    let mut header = cluster.header(region_id);
    header.epoch = region_on(&cluster, leader, region_id).unwrap().region_epoch;
    let answers = [Remove, AddLearner].map(|kind| {
        let changes = vec![change(kind, peer.id, other)];
        cluster.send_with(leader, header.clone(), RequestBody::ChangePeers { changes })
    });
    let [removed, added] = answers.map(|answer| cluster.wait(&answer));
    assert!(matches!(removed, Ok(Answer::Region(_))), "{removed:?}");
    assert!(
        matches!(added, Err(Error::EpochNotMatch { .. })),
        "{added:?}"
    );
    let region = region_on(&cluster, leader, region_id).unwrap();
    assert_eq!(find_peer_on(&region, other), None);
}

#[test]
fn conf_change_that_cannot_be_made_is_refused_by_the_leader() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, third]) = some_region(&cluster);
    let own = peer_on(&cluster, region_id, leader).id;
    let peer = peer_on(&cluster, region_id, other).id;
    let none = refused(&mut cluster, region_id, &[]);
    assert_eq!(none, PeerChangeFault::NoChange);
    let leads = PeerChangeFault::Leads { peer_id: own };
    let removed = refused(&mut cluster, region_id, &[change(Remove, own, leader)]);
    assert_eq!(removed, leads);
    let demoted = refused(&mut cluster, region_id, &[change(AddLearner, own, leader)]);
    assert_eq!(demoted, leads);
    let voter = refused(&mut cluster, region_id, &[change(AddVoter, peer, other)]);
    assert_eq!(voter, PeerChangeFault::NothingToDo { peer_id: peer });
    let second = refused(&mut cluster, region_id, &[change(AddVoter, 990, third)]);
    assert!(matches!(second, PeerChangeFault::OtherPeerOnStore { .. }));
    // Two more voters without a log: a majority of five would wait for them only if one of
    // the three were down; three of five have the log.
    let region = region_on(&cluster, leader, region_id).unwrap();
    assert_eq!(region.peers.len(), 3, "nothing has changed");
}

/// Both majorities decide in between, and the leader leaves the joint membership: also a
/// leader that has come to office since.
#[test]
fn conf_change_joint_is_entered_and_left_by_the_next_leader() {
    let mut cluster = cluster(5);
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let others: Vec<u64> = (1..=5).filter(|id| *id != leader).collect();
    let (coming, going) = (others[0], others[1]);
    let learner = peer_on(&cluster, region_id, coming).id;
    let voter = peer_on(&cluster, region_id, going).id;
    let demote = change(AddLearner, learner, coming);
    let start = changed(&mut cluster, region_id, &[demote]);
    cluster.run(Duration::from_millis(300));

    // The leader does not apply: it cannot leave what it has entered.
    cluster.nodes.get_mut(&leader).unwrap().apply_works = false;
    let changes = vec![
        change(AddVoter, learner, coming),
        change(AddLearner, voter, going),
    ];
    let body = RequestBody::ChangePeers { changes };
    let answer = cluster.send(leader, region_id, body);
    cluster.run(Duration::from_millis(300));
    assert!(answer.try_recv().is_err());
    let joint = region_on(&cluster, coming, region_id).unwrap();
    let role = |region: &Region, store| find_peer_on(region, store).unwrap().role();
    assert_eq!(role(&joint, leader), Voter);
    assert_eq!(role(&joint, coming), IncomingVoter);
    assert_eq!(role(&joint, going), DemotingVoter);
    assert_eq!(conf_ver(&joint), conf_ver(&start) + 2);
    assert_eq!(stored_region(&cluster, coming, region_id).1, joint);

    // Everybody restarts in the joint membership, but for the leader.
    let engines = cluster.power_cut(leader);
    for id in others {
        let engines = cluster.power_cut(id);
        cluster.start(id, engines);
    }
    cluster.until("another leader", |cluster| {
        cluster.leader(region_id).is_some()
    });
    cluster.until("the joint membership is left", |cluster| {
        let region = region_on(cluster, coming, region_id).unwrap();
        role(&region, coming) == Voter && role(&region, going) == Learner
    });
    cluster.start(leader, engines);
    cluster.run(Duration::from_secs(2));
    for id in 1..=5 {
        let region = region_on(&cluster, id, region_id).unwrap();
        assert_eq!(conf_ver(&region), conf_ver(&joint) + 2, "store {id}");
        assert_eq!(role(&region, going), Learner, "store {id}");
    }
    written(cluster.put("a", "1"));
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
}

/// While two majorities decide, one of them alone commits nothing.
#[test]
fn conf_change_joint_needs_both_majorities() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, third]) = some_region(&cluster);
    let learner = peer_on(&cluster, region_id, other).id;
    let voter = peer_on(&cluster, region_id, third).id;
    changed(
        &mut cluster,
        region_id,
        &[change(AddLearner, learner, other)],
    );
    cluster.nodes.get_mut(&leader).unwrap().apply_works = false;
    let changes = vec![
        change(AddVoter, learner, other),
        change(AddLearner, voter, third),
    ];
    let answer = cluster.send(leader, region_id, RequestBody::ChangePeers { changes });
    cluster.run(Duration::from_millis(200));
    // Outgoing: leader and `third`; incoming: leader and `other`. Without `third`, the
    // incoming half alone must not leave the joint membership.
    cluster.no_entries_to.insert(third);
    cluster.release_apply(leader);
    cluster.run(Duration::from_millis(300));
    match cluster.wait(&answer) {
        Ok(Answer::Region(joint)) => {
            let mut expected = vec![
                (leader, Voter),
                (other, IncomingVoter),
                (third, DemotingVoter),
            ];
            expected.sort_by_key(|(store, _)| *store);
            let mut found = roles(&joint);
            found.sort_by_key(|(store, _)| *store);
            assert_eq!(found, expected);
        }
        other => panic!("{other:?}"),
    }
    let region = region_on(&cluster, leader, region_id).unwrap();
    assert_eq!(find_peer_on(&region, third).unwrap().role(), DemotingVoter);
    cluster.no_entries_to.clear();
    cluster.until("the joint membership is left", |cluster| {
        let region = region_on(cluster, leader, region_id).unwrap();
        find_peer_on(&region, third).unwrap().role() == Learner
    });
}

/// A leader that becomes a learner in a joint change leads until that is left, steps down,
/// and is removed by the next one.
#[test]
fn conf_change_removes_leader() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, third]) = some_region(&cluster);
    written(cluster.put("a", "1"));
    let own = peer_on(&cluster, region_id, leader).id;
    let peer = peer_on(&cluster, region_id, other).id;
    changed(&mut cluster, region_id, &[change(AddLearner, peer, other)]);
    let changes = [
        change(AddVoter, peer, other),
        change(AddLearner, own, leader),
    ];
    let joint = changed(&mut cluster, region_id, &changes);
    assert_eq!(find_peer_on(&joint, leader).unwrap().role(), DemotingVoter);
    cluster.until("another one leads", |cluster| {
        cluster.leader(region_id).is_some_and(|id| id != leader)
    });
    let next = cluster.leader(region_id).unwrap();
    assert!([other, third].contains(&next));
    let region = region_on(&cluster, next, region_id).unwrap();
    assert_eq!(find_peer_on(&region, leader).unwrap().role(), Learner);

    let region = changed(&mut cluster, region_id, &[change(Remove, own, leader)]);
    assert_eq!(region.peers.len(), 2);
    cluster.until("the old leader's peer is destroyed", |cluster| {
        is_gone(cluster, leader, region_id)
    });
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    written(cluster.put("a", "2"));
    let answer = cluster.send(leader, region_id, get("a"));
    let result = cluster.wait(&answer);
    assert!(
        matches!(result, Err(Error::RegionNotFound { .. })),
        "{result:?}"
    );
}

/// Crash rule 2: what a change of the region has let out of the apply shard, a power cut
/// does not take back; before the batch is written nothing is out.
#[test]
fn crash_rule_region_state_synced() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, third]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    written(cluster.put("a", "1"));
    cluster.reports.clear();
    cluster.nodes.get_mut(&leader).unwrap().data_works = false;
    let changes = vec![change(AddLearner, peer.id, other)];
    let answer = cluster.send(leader, region_id, RequestBody::ChangePeers { changes });
    cluster.run(Duration::from_millis(100));
    // The batch is made and not written: nobody knows, on this store or elsewhere from it.
    assert!(answer.try_recv().is_err(), "answered before it is written");
    let old = region_on(&cluster, leader, region_id).unwrap();
    assert!(old.peers.iter().all(|peer| peer.role() == Voter));
    let news = |cluster: &Cluster| {
        let reports = cluster.reports.iter();
        let regions = reports.filter_map(|report| report.region.as_ref());
        let of_region = regions.filter(|region| region.id == region_id);
        of_region.map(conf_ver).max().unwrap_or(0) > conf_ver(&old)
    };
    assert!(!news(&cluster), "reported before it is written");
    cluster.release_data(leader);
    let region = match cluster.wait(&answer) {
        Ok(Answer::Region(region)) => region,
        result => panic!("{result:?}"),
    };
    assert!(news(&cluster));

    // Answered and reported: power is cut on every store at once.
    cluster.run(Duration::from_millis(200));
    for id in [leader, other, third] {
        let engines = cluster.power_cut(id);
        let state = read_region_state(&engines.kv, region_id).unwrap().unwrap();
        assert_eq!(state.region.as_ref(), Some(&region), "store {id}");
        let applied = read_apply_state(&engines.kv, region_id).unwrap().unwrap();
        assert!(
            applied.applied_index > 5,
            "the data of the batch came with it"
        );
        cluster.start(id, engines);
    }
    cluster.elect_all();
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    let next = cluster.leader(region_id).unwrap();
    assert_eq!(region_on(&cluster, next, region_id), Some(region));
}

/// A crash before the batch is written: the entry is applied again, and the membership of
/// raft is the region's.
#[test]
fn crash_rule_region_state_synced_or_applied_again() {
    let mut cluster = cluster(3);
    let (region_id, leader, [other, _]) = some_region(&cluster);
    let peer = peer_on(&cluster, region_id, other);
    cluster.nodes.get_mut(&leader).unwrap().data_works = false;
    let changes = vec![change(AddLearner, peer.id, other)];
    let answer = cluster.send(leader, region_id, RequestBody::ChangePeers { changes });
    cluster.run(Duration::from_millis(100));
    let engines = cluster.power_cut(leader);
    drop(answer);
    let state = read_region_state(&engines.kv, region_id).unwrap().unwrap();
    assert!(
        state
            .region
            .unwrap()
            .peers
            .iter()
            .all(|peer| peer.role() == Voter)
    );
    cluster.start(leader, engines);
    cluster.until("the change is applied", |cluster| {
        let region = region_on(cluster, leader, region_id).unwrap();
        find_peer_on(&region, other).unwrap().role() == Learner
    });
}
