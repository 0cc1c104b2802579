//! Memberships that change while clients work and everything goes wrong: roles are swapped
//! in joint changes, leaders become learners, stores lose their power in between.
//!
//! `SIM_SEEDS=A..B` runs other seeds; a failing one is named.

mod common;

use std::panic::catch_unwind;
use std::time::Duration;

use common::{SECOND, ms, seeds_or};
use strata_proto::metapb::{PeerRole, Region};
use strata_raftstore::{Answer, PeerChange, PeerChangeKind, RequestBody, StoreOptions};
use strata_sim::{AttemptResult, CallOptions, Cluster, FaultKind, Scenario};

/// Seeds of an ordinary run.
const SEEDS: std::ops::Range<u64> = 1..21;

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
    let change = |kind, peer: &strata_proto::metapb::Peer| PeerChange { kind, peer: *peer };
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

/// Returns how many changes were acknowledged, and how many snapshots were installed.
fn swap_roles_under_faults(seed: u64) -> (u64, u64) {
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
            log_gc_count_limit: 5,
            log_gc_threshold: 5,
            log_gc_tick_interval: ms(50),
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
    (applied, report.snapshots)
}

#[test]
fn conf_change_under_faults_loses_nothing() {
    let seeds = seeds_or(SEEDS);
    let count = seeds.end - seeds.start;
    let (mut applied, mut snapshots, mut failed) = (0, 0, Vec::new());
    for seed in seeds {
        match catch_unwind(|| swap_roles_under_faults(seed)) {
            Ok((changes, installed)) => {
                applied += changes;
                snapshots += installed;
            }
            Err(_) => failed.push(seed),
        }
    }
    assert!(
        failed.is_empty(),
        "failing seeds: {failed:?}; again with SIM_SEEDS=SEED..SEED+1"
    );
    println!("{count} seeds, {applied} changes, {snapshots} snapshots");
    assert!(applied > 3 * count, "only {applied} changes were made");
    assert!(snapshots * 10 > count, "only {snapshots} snapshots");
}
