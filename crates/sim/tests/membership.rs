//! Memberships that change while clients work and everything goes wrong: roles are swapped
//! in joint changes, leaders become learners, stores lose their power in between.

mod common;

use std::time::Duration;

use common::{SECOND, ms};
use strata_proto::metapb::{Peer, PeerRole, Region};
use strata_raftstore::{Answer, PeerChange, PeerChangeKind, RequestBody, StoreOptions};
use strata_sim::{AttemptResult, CallOptions, Cluster, FaultKind, Scenario};

/// The region as the store that leads it has it.
fn region_at_leader(cluster: &Cluster, region_id: u64) -> Option<(u64, Region)> {
    let leader = cluster.leader_of(region_id)?;
    let core = cluster.store(leader).core.as_ref()?;
    let entry = core.directory().entry(region_id)?;
    Some((leader, (*entry.region).clone()))
}

/// The next change of a region: one voter, the leader too, changes places with the learner;
/// without a learner a follower becomes one.
fn next_changes(region: &Region, leader: u64, turn: usize) -> Vec<PeerChange> {
    let of_role = |role: PeerRole| region.peers.iter().filter(move |peer| peer.role() == role);
    let change = |kind, peer: &Peer| PeerChange { kind, peer: *peer };
    let voters: Vec<_> = of_role(PeerRole::Voter).collect();
    let chosen = voters[turn % voters.len()];
    match of_role(PeerRole::Learner).next() {
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

/// Returns how many changes were acknowledged.
fn swap_roles_under_faults(seed: u64) -> u64 {
    let scenario = Scenario {
        clients: 4,
        rounds: 2,
        unreliable: true,
        crashes: true,
        faults: vec![
            FaultKind::PowerCut,
            FaultKind::Kill,
            FaultKind::IsolateLeader,
        ],
        // Those who were away come back by snapshots as well.
        store: StoreOptions {
            log_gc_count_limit: 40,
            log_gc_threshold: 20,
            log_gc_tick_interval: ms(200),
            ..StoreOptions::default()
        },
        ..Scenario::new(seed)
    };
    let (mut applied, mut asked) = (0, 0);
    let mut cluster = scenario.play_with(|cluster| {
        for turn in 0..12 {
            cluster.run_for(ms(150));
            let region_id = cluster.regions()[turn % cluster.regions().len()].id;
            let Some((leader, region)) = region_at_leader(cluster, region_id) else {
                continue;
            };
            asked += 1;
            let changes = next_changes(&region, leader, turn + seed as usize);
            let body = RequestBody::ChangePeers { changes };
            let options = CallOptions {
                allowed: SECOND,
                ..CallOptions::default()
            };
            let call = cluster.call(leader, region_id, body, &options);
            let done = cluster.wait_for(call);
            applied += u64::from(matches!(done, AttemptResult::Answered(Answer::Region(_))));
        }
    });
    cluster.heal();
    let joint = |cluster: &Cluster| {
        let regions = cluster.regions().iter();
        let mut at_leaders = regions.map(|region| region_at_leader(cluster, region.id));
        at_leaders.any(|found| {
            found.is_none_or(|(_, region)| {
                let mut roles = region.peers.iter().map(|peer| peer.role());
                roles.any(|role| !matches!(role, PeerRole::Voter | PeerRole::Learner))
            })
        })
    };
    let left = cluster.run_until(Duration::from_secs(30), |cluster| !joint(cluster));
    assert!(left, "seed {seed}: a joint membership is never left");
    let report = cluster.finish_clean();
    println!("seed {seed}: {applied} of {asked} changes, {report:?}");
    applied
}

#[test]
fn conf_change_under_faults_loses_nothing() {
    let applied: u64 = (1..=20).map(swap_roles_under_faults).sum();
    assert!(applied > 60, "only {applied} changes were made");
}

/// The next step of a region whose peers move: a learner becomes a voter, one voter of four
/// goes, and of three a fourth is added where there is none. `None`: the leader would have
/// to go.
fn next_move(
    region: &Region,
    leader: u64,
    new_id: u64,
    goes: impl Fn(u64) -> bool,
) -> Option<PeerChange> {
    let peers = &region.peers;
    if let Some(learner) = peers.iter().find(|peer| peer.role() == PeerRole::Learner) {
        let (kind, peer) = (PeerChangeKind::AddVoter, *learner);
        return Some(PeerChange { kind, peer });
    }
    if peers.len() > 3 {
        let gone = peers.iter().find(|peer| goes(peer.store_id))?;
        let (kind, peer) = (PeerChangeKind::Remove, *gone);
        return (gone.store_id != leader).then_some(PeerChange { kind, peer });
    }
    let free = (1..=4).find(|id| peers.iter().all(|peer| peer.store_id != *id))?;
    let peer = Peer {
        id: new_id,
        store_id: free,
        ..Default::default()
    };
    let kind = PeerChangeKind::AddLearner;
    Some(PeerChange { kind, peer })
}

fn change(cluster: &mut Cluster, leader: u64, region_id: u64, change: PeerChange) -> bool {
    let changes = vec![change];
    let options = CallOptions {
        allowed: SECOND,
        ..CallOptions::default()
    };
    let body = RequestBody::ChangePeers { changes };
    let call = cluster.call(leader, region_id, body, &options);
    let done = cluster.wait_for(call);
    matches!(done, AttemptResult::Answered(Answer::Region(_)))
}

/// Brings a region back to the stores of the bootstrap, where the checkers look for it.
fn bring_home(cluster: &mut Cluster, home: &Region, new_id: &mut u64) {
    let at_home = |id: u64| home.peers.iter().any(|peer| peer.store_id == id);
    for _ in 0..100 {
        cluster.run_for(ms(200));
        let Some((leader, region)) = region_at_leader(cluster, home.id) else {
            continue;
        };
        let mut peers = region.peers.iter();
        let settled = |peer: &Peer| peer.role() == PeerRole::Voter && at_home(peer.store_id);
        if region.peers.len() == 3 && peers.all(settled) {
            let whole = |id: &u64, cluster: &Cluster| {
                let core = cluster.store(*id).core.as_ref();
                let entry = core.and_then(|core| core.directory().entry(home.id));
                entry.is_some_and(|entry| *entry.region == region && !entry.view.is_installing())
            };
            let stores: Vec<u64> = home.peers.iter().map(|peer| peer.store_id).collect();
            let all = |cluster: &Cluster| stores.iter().all(|id| whole(id, cluster));
            assert!(cluster.run_until(10 * SECOND, all), "region {}", home.id);
            return;
        }
        *new_id += 1;
        match next_move(&region, leader, *new_id, |id| !at_home(id)) {
            Some(next) => drop(change(cluster, leader, home.id, next)),
            None => {
                let other = region.peers.iter().find(|peer| at_home(peer.store_id));
                let to_store_id = other.unwrap().store_id;
                let body = RequestBody::TransferLeader { to_store_id };
                let call = cluster.call(leader, home.id, body, &CallOptions::default());
                cluster.wait_for(call);
            }
        }
    }
    panic!("region {} does not come home", home.id);
}

/// Returns how many changes were acknowledged.
fn move_peers_under_faults(seed: u64) -> u64 {
    let scenario = Scenario {
        stores: 4,
        clients: 4,
        rounds: 2,
        unreliable: true,
        crashes: true,
        faults: vec![
            FaultKind::PowerCut,
            FaultKind::Kill,
            FaultKind::IsolateLeader,
        ],
        store: StoreOptions {
            log_gc_count_limit: 40,
            log_gc_threshold: 20,
            log_gc_tick_interval: ms(200),
            peer_stale_time: SECOND,
            ..StoreOptions::default()
        },
        ..Scenario::new(seed)
    };
    let (mut applied, mut new_id) = (0, 1_000_000);
    let mut cluster = scenario.play_with(|cluster| {
        cluster.options.peers_move = true;
        for turn in 0..30 {
            cluster.run_for(ms(80));
            let region_id = cluster.regions()[turn % 3].id;
            let Some((leader, region)) = region_at_leader(cluster, region_id) else {
                continue;
            };
            new_id += 1;
            let chosen = (1..=4).cycle().skip(turn + seed as usize).take(4);
            let gone = chosen.clone().find(|id| *id != leader).unwrap();
            if let Some(next) = next_move(&region, leader, new_id, |id| id == gone) {
                applied += u64::from(change(cluster, leader, region_id, next));
            }
        }
    });
    cluster.heal();
    for home in cluster.regions().to_vec() {
        bring_home(&mut cluster, &home, &mut new_id);
    }
    let report = cluster.finish_clean();
    println!("seed {seed}: {applied} changes, {report:?}");
    applied
}

/// Peers come and go on four stores, by snapshot and with their data, while everything goes
/// wrong.
#[test]
fn peers_move_between_stores_under_faults() {
    let seeds = match std::env::var("SIM_SEEDS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("SIM_SEEDS is A..B");
            first.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => 1..21,
    };
    let (count, mut applied) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        applied += move_peers_under_faults(seed);
    }
    assert!(applied > count * 5, "only {applied} changes were made");
}
