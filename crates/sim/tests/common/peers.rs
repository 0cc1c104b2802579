//! Changes of a region's peers while a cluster runs.

use std::time::Duration;

use strata_proto::metapb::{Peer, PeerRole, Region};
use strata_raftstore::{Answer, PeerChange, PeerChangeKind, RequestBody, find_peer_on};
use strata_sim::{AttemptResult, CallOptions, Cluster};

use super::{SECOND, ms};

/// The store that leads a region, and the region as it has it.
pub fn region_at_leader(cluster: &Cluster, region_id: u64) -> Option<(u64, Region)> {
    let leader = cluster.leader_of(region_id)?;
    let core = cluster.store(leader).core.as_ref()?;
    let entry = core.directory().entry(region_id)?;
    Some((leader, (*entry.region).clone()))
}

/// Asks a region's leader for changes; true if they were acknowledged.
pub fn change_peers(
    cluster: &mut Cluster,
    leader: u64,
    region_id: u64,
    changes: Vec<PeerChange>,
) -> bool {
    let options = CallOptions {
        allowed: SECOND,
        ..CallOptions::default()
    };
    let body = RequestBody::ChangePeers { changes };
    let call = cluster.call(leader, region_id, body, &options);
    matches!(
        cluster.wait_for(call),
        AttemptResult::Answered(Answer::Region(_))
    )
}

fn of_role(region: &Region, role: PeerRole) -> impl Iterator<Item = &Peer> {
    region.peers.iter().filter(move |peer| peer.role() == role)
}

fn change(kind: PeerChangeKind, peer: &Peer) -> PeerChange {
    PeerChange { kind, peer: *peer }
}

/// One voter, the leader too, changes places with the learner; without a learner a follower
/// becomes one.
pub fn swap_roles(region: &Region, leader: u64, turn: usize) -> Vec<PeerChange> {
    let voters: Vec<_> = of_role(region, PeerRole::Voter).collect();
    let chosen = voters[turn % voters.len()];
    match of_role(region, PeerRole::Learner).next() {
        Some(learner) => vec![
            change(PeerChangeKind::AddVoter, learner),
            change(PeerChangeKind::AddLearner, chosen),
        ],
        None => {
            let follower = voters.iter().find(|peer| peer.store_id != leader);
            let follower = follower.expect("a region of three peers has a follower");
            vec![change(PeerChangeKind::AddLearner, follower)]
        }
    }
}

/// What brings a region to a voter on every one of `stores`; `None` if it has that. The
/// peer of a store that has none gets `new_id`.
pub fn fill_up(region: &Region, stores: &[u64], new_id: u64) -> Option<Vec<PeerChange>> {
    if let Some(learner) = of_role(region, PeerRole::Learner).next() {
        return Some(vec![change(PeerChangeKind::AddVoter, learner)]);
    }
    let store_id = *stores
        .iter()
        .find(|store| find_peer_on(region, **store).is_none())?;
    let peer = Peer {
        id: new_id,
        store_id,
        ..Peer::default()
    };
    Some(vec![change(PeerChangeKind::AddLearner, &peer)])
}

/// A follower goes; who is missing comes back under a new id.
pub fn replace(
    region: &Region,
    leader: u64,
    stores: &[u64],
    turn: usize,
    new_id: u64,
) -> Vec<PeerChange> {
    fill_up(region, stores, new_id).unwrap_or_else(|| {
        let followers: Vec<_> = of_role(region, PeerRole::Voter)
            .filter(|peer| peer.store_id != leader)
            .collect();
        let follower = followers[turn % followers.len()];
        vec![change(PeerChangeKind::Remove, follower)]
    })
}

/// Lets some turns pass in each of which a peer goes or comes. Returns the number of changes
/// that were acknowledged.
pub fn replace_for(cluster: &mut Cluster, turns: usize, new_ids: &mut u64) -> u64 {
    let stores = cluster.store_ids();
    let mut applied = 0;
    for turn in 0..turns {
        cluster.run_for(ms(150));
        // Few regions, so that each peer goes and comes more than once.
        let region_id = cluster.regions()[1 + turn % 2].id;
        if let Some((leader, region)) = region_at_leader(cluster, region_id) {
            *new_ids += 1;
            let changes = replace(&region, leader, &stores, turn / 2, *new_ids);
            applied += u64::from(change_peers(cluster, leader, region_id, changes));
        }
    }
    applied
}

/// Waits until no membership is joint, then gives every region a voter on every store; false
/// if that takes more than a minute.
pub fn settle(cluster: &mut Cluster, new_ids: &mut u64) -> bool {
    let end = cluster.now() + Duration::from_secs(60);
    loop {
        // A change that nobody waits for any more may come to pass behind the first look.
        match settle_once(cluster, new_ids, end) {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
    }
}

/// Returns whether there was anything to do; `None` if it was not done in time.
fn settle_once(cluster: &mut Cluster, new_ids: &mut u64, end: Duration) -> Option<bool> {
    cluster.run_for(2 * SECOND);
    let stores = cluster.store_ids();
    let regions: Vec<u64> = cluster.regions().iter().map(|region| region.id).collect();
    let mut asked = false;
    for region_id in regions {
        loop {
            let found = region_at_leader(cluster, region_id);
            if cluster.now() >= end {
                return None;
            }
            let plain = |peer: &Peer| matches!(peer.role(), PeerRole::Voter | PeerRole::Learner);
            let Some((leader, region)) = found.filter(|(_, region)| region.peers.iter().all(plain))
            else {
                cluster.run_for(ms(50));
                continue;
            };
            *new_ids += 1;
            let Some(changes) = fill_up(&region, &stores, *new_ids) else {
                break;
            };
            asked = true;
            if !change_peers(cluster, leader, region_id, changes) {
                cluster.run_for(ms(50));
            }
        }
    }
    Some(asked)
}
