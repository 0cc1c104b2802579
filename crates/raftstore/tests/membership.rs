//! Changes of a region's peers on whole stores: who votes, who is created, who goes.

mod common;

use std::time::Duration;

use common::*;
use strata_proto::eraftpb::{HardState, Message, MessageType};
use strata_proto::metapb::{self, PeerRole, Region, RegionEpoch};
use strata_proto::raft_serverpb::{PeerState, RaftLocalState, RaftMessage};
use strata_raftstore::{
    Answer, CommandOutcome, Error, InvalidRequest, JobDone, PeerChange, PeerChangeFault,
    PeerChangeKind, RequestBody, StoreEvent, StoreOptions, find_peer_on,
};
use strata_storage::{
    Cf, Durability, Engine, ReadView, WriteBatch, keys, read_apply_state, read_raft_state,
    read_region_state, write_raft_state,
};

use PeerChangeKind::{AddLearner, AddVoter, Remove};
use PeerRole::{DemotingVoter, IncomingVoter, Learner, Voter};

/// Stale peers ask after a second.
fn cluster(stores: u64) -> Cluster {
    let options = StoreOptions {
        peer_stale_time: Duration::from_secs(1),
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(stores, options);
    cluster.elect_all();
    cluster
}

fn change(kind: PeerChangeKind, id: u64, store_id: u64) -> PeerChange {
    let peer = metapb::Peer {
        id,
        store_id,
        ..metapb::Peer::default()
    };
    PeerChange { kind, peer }
}

fn change_peers(cluster: &mut Cluster, region_id: u64, changes: &[PeerChange]) -> Outcome {
    let changes = changes.to_vec();
    cluster.call(region_id, RequestBody::ChangePeers { changes })
}

/// The region after a change that must succeed.
fn changed(cluster: &mut Cluster, region_id: u64, changes: &[PeerChange]) -> Region {
    match change_peers(cluster, region_id, changes) {
        Ok(Answer::Region(region)) => region,
        other => panic!("not changed: {other:?}"),
    }
}

fn refused(cluster: &mut Cluster, region_id: u64, changes: &[PeerChange]) -> PeerChangeFault {
    match change_peers(cluster, region_id, changes) {
        Err(Error::Invalid(InvalidRequest::PeerChange { fault, .. })) => fault,
        other => panic!("not refused: {other:?}"),
    }
}

/// The region as a store's directory has it.
fn region_on(cluster: &Cluster, id: u64, region_id: u64) -> Option<Region> {
    let node = cluster.nodes.get(&id)?;
    let entry = node.core.directory().entry(region_id)?;
    Some((*entry.region).clone())
}

/// The region as a store's engine has it.
fn stored_region(cluster: &Cluster, id: u64, region_id: u64) -> (PeerState, Region) {
    let kv = &cluster.nodes[&id].engines.kv;
    let state = read_region_state(kv, region_id).unwrap().unwrap();
    (state.state(), state.region.unwrap())
}

fn roles(region: &Region) -> Vec<(u64, PeerRole)> {
    let peers = region.peers.iter();
    peers.map(|peer| (peer.store_id, peer.role())).collect()
}

fn conf_ver(region: &Region) -> u64 {
    region.region_epoch.unwrap().conf_ver
}

/// True if one of the store's shards owns a peer of the region.
fn has_peer(cluster: &Cluster, id: u64, region_id: u64) -> bool {
    let shards = cluster.nodes[&id].core.shards();
    let mut peers = shards.iter().flat_map(|shard| shard.peers());
    peers.any(|peer| peer.region_id() == region_id)
}

fn peer_on(cluster: &Cluster, region_id: u64, store_id: u64) -> metapb::Peer {
    let region = cluster.regions.iter().find(|region| region.id == region_id);
    *find_peer_on(region.unwrap(), store_id).unwrap()
}

/// A region, its leader's store, and the two other stores with a peer.
fn some_region(cluster: &Cluster) -> (u64, u64, [u64; 2]) {
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let region = region_on(cluster, leader, region_id).unwrap();
    let others = region.peers.iter().map(|peer| peer.store_id);
    let others: Vec<u64> = others.filter(|id| *id != leader).collect();
    (region_id, leader, [others[0], others[1]])
}

/// True if nothing of the region's log and hard state is in a store's raft engine.
fn no_raft_state(cluster: &Cluster, id: u64, region_id: u64) -> bool {
    let raft = &cluster.nodes[&id].engines.raft;
    let entry = raft
        .get(Cf::RaftLog, &keys::raft_log(region_id, 6))
        .unwrap();
    read_raft_state(raft, region_id).unwrap().is_none() && entry.is_none()
}

/// True if a store has destroyed its peer of the region whole, and shows it nowhere.
fn is_gone(cluster: &Cluster, id: u64, region_id: u64) -> bool {
    let kv = &cluster.nodes[&id].engines.kv;
    let state = read_region_state(kv, region_id).unwrap();
    state.is_some_and(|state| state.state() == PeerState::Tombstone)
        && read_apply_state(kv, region_id).unwrap().is_none()
        && no_raft_state(cluster, id, region_id)
        && region_on(cluster, id, region_id).is_none()
        && !has_peer(cluster, id, region_id)
}

fn tombstone_message(region: &Region, to: metapb::Peer, conf_ver: u64) -> RaftMessage {
    let from = region.peers.iter().find(|peer| peer.id != to.id);
    RaftMessage {
        region_id: region.id,
        from_peer: from.copied(),
        to_peer: Some(to),
        region_epoch: Some(RegionEpoch {
            conf_ver,
            version: 1,
        }),
        is_tombstone: true,
        ..RaftMessage::default()
    }
}

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

/// A leader's first heartbeat to a peer.
fn heartbeat(region: &Region, leader: u64, to: metapb::Peer, conf_ver: u64) -> RaftMessage {
    let from = *find_peer_on(region, leader).unwrap();
    first_message(
        region,
        (from, to),
        conf_ver,
        Message {
            msg_type: MessageType::MsgHeartbeat.into(),
            term: 20,
            index: 1,
            ..Message::default()
        },
    )
}

fn first_message(
    region: &Region,
    (from, to): (metapb::Peer, metapb::Peer),
    conf_ver: u64,
    message: Message,
) -> RaftMessage {
    RaftMessage {
        region_id: region.id,
        from_peer: Some(from),
        to_peer: Some(to),
        message: Some(Message {
            from: from.id,
            to: to.id,
            ..message
        }),
        region_epoch: Some(RegionEpoch {
            conf_ver,
            version: region.region_epoch.map_or(1, |epoch| epoch.version),
        }),
        start_key: region.start_key.clone(),
        end_key: region.end_key.clone(),
        ..RaftMessage::default()
    }
}

fn vote_request(term: u64, pre_vote: bool) -> Message {
    let msg_type = if pre_vote {
        MessageType::MsgRequestPreVote
    } else {
        MessageType::MsgRequestVote
    };
    Message {
        msg_type: msg_type.into(),
        term,
        index: 100,
        log_term: 10,
        ..Message::default()
    }
}

/// The hard state of a region in a store's raft engine.
fn hard_state(cluster: &Cluster, id: u64, region_id: u64) -> Option<HardState> {
    let raft = &cluster.nodes[&id].engines.raft;
    let state = read_raft_state(raft, region_id).unwrap()?;
    state.hard_state
}

/// A region of three of four stores, and the store without a peer.
fn region_and_spare_store(cluster: &Cluster) -> (Region, u64) {
    let region_id = cluster.region_of(b"a");
    let leader = cluster.leader(region_id).unwrap();
    let region = region_on(cluster, leader, region_id).unwrap();
    let spare = (1..=4).find(|id| find_peer_on(&region, *id).is_none());
    (region, spare.unwrap())
}

/// No store makes or installs snapshots from now on.
fn hold_jobs(cluster: &mut Cluster) {
    for node in cluster.nodes.values_mut() {
        node.jobs_work = false;
    }
}

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
