//! Changes of a region's peers on whole stores: who votes, who is created, who goes.

#[path = "../common/mod.rs"]
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

mod changes;
mod created;
mod destroyed;
mod stale;

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
