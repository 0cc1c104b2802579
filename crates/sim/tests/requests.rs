//! What becomes of requests on their way: deadlines, cancellation, shared entries.

mod common;

use bytes::Bytes;
use common::{SECOND, get_at, leader_at, ms, put_body, started, stored};
use strata_proto::stratapb::RawSpace;
use strata_raftstore::{Answer, CommandOutcome, Error};
use strata_sim::{AttemptResult, CallOptions, ClientOperation, Cluster, Mix, Scenario};

fn allowed(allowed: std::time::Duration) -> CallOptions {
    CallOptions {
        allowed,
        ..CallOptions::default()
    }
}

/// A cluster whose stores do not hear each other and know no leader.
fn leaderless(seed: u64) -> Cluster {
    let mut cluster = started(3, seed);
    cluster.network.partition(&[&[1], &[2], &[3]]);
    cluster.run_for(3 * SECOND);
    cluster
}

fn assert_never_written(cluster: &mut Cluster, key: &str) {
    cluster.heal();
    cluster.put("k-after", "the region works");
    assert_eq!(cluster.get(key), None, "a refused write took effect");
    cluster.run_for(3 * SECOND);
    for store in 1..=3 {
        assert_eq!(stored(cluster, store, key), None, "store {store}");
    }
    cluster.finish_clean();
}

#[test]
fn parked_request_is_never_proposed_past_its_deadline() {
    let mut cluster = leaderless(1);
    let region = cluster.region_of(b"k").id;
    let calls: Vec<_> = (1..=3)
        .map(|store| cluster.call(store, region, put_body("k", "late"), &allowed(ms(120))))
        .collect();
    // The leader is back right after the deadline, when the requests still lie there.
    cluster.run_for(ms(125));
    cluster.network.heal();
    for call in calls {
        let result = cluster.wait_for(call);
        assert!(
            matches!(result, AttemptResult::Refused(Error::DeadlineExceeded)),
            "{result:?}"
        );
    }
    assert_never_written(&mut cluster, "k");
}

#[test]
fn parked_request_is_refused_after_park_time() {
    let mut cluster = leaderless(2);
    let region = cluster.region_of(b"k").id;
    let before = cluster.now();
    let call = cluster.call(1, region, put_body("k", "parked"), &allowed(5 * SECOND));
    let result = cluster.wait_for(call);
    assert!(
        matches!(
            result,
            AttemptResult::Refused(Error::NotLeader { leader: None, .. })
        ),
        "{result:?}"
    );
    let waited = cluster.now() - before;
    assert!(
        (ms(290)..ms(420)).contains(&waited),
        "parked for {waited:?}"
    );
    assert_never_written(&mut cluster, "k");
}

#[test]
fn parked_request_is_served_when_a_leader_appears() {
    let mut cluster = started(3, 3);
    let leader = leader_at(&mut cluster, "k");
    let region = cluster.region_of(b"k").id;
    let to_store_id = leader % 3 + 1;
    let body = strata_raftstore::RequestBody::TransferLeader { to_store_id };
    cluster.call(leader, region, body, &CallOptions::default());
    // While the leadership is handed over the old leader takes no proposals.
    let put = cluster.call(
        leader,
        region,
        put_body("k", "waited"),
        &CallOptions::default(),
    );
    let result = cluster.wait_for(put);
    match result {
        AttemptResult::Answered(Answer::Written(_)) => {
            let value = get_at(&mut cluster, to_store_id, "k", true);
            assert_eq!(
                value.expect("a replica read").as_deref(),
                Some(&b"waited"[..])
            );
        }
        AttemptResult::Refused(Error::NotLeader {
            leader: Some(new), ..
        }) => {
            assert_eq!(new.store_id, to_store_id);
        }
        other => panic!("{other:?}"),
    }
    cluster.finish_clean();
}

#[test]
fn cancelled_before_propose_never_takes_effect() {
    let mut cluster = leaderless(4);
    let region = cluster.region_of(b"k").id;
    let call = cluster.call(
        1,
        region,
        put_body("k", "cancelled"),
        &CallOptions::default(),
    );
    cluster.run_for(ms(50));
    cluster.cancel(call);
    cluster.network.heal();
    let result = cluster.wait_for(call);
    assert!(
        matches!(result, AttemptResult::Refused(Error::Cancelled)),
        "{result:?}"
    );
    assert_never_written(&mut cluster, "k");
}

#[test]
fn cancelled_after_propose_takes_effect_or_not_but_never_lies() {
    for seed in 0..6 {
        Scenario {
            stores: 3,
            mix: Mix::all(),
            cancelled: 0.5,
            rounds: 1,
            round: 3 * SECOND,
            ..Scenario::new(seed)
        }
        .run_clean();
    }
}

fn swap(key: &str, expected: Option<&str>, new: &str) -> strata_raftstore::RequestBody {
    ClientOperation::CompareAndSwap {
        key: key.to_owned().into(),
        expected: expected.map(|value| value.to_owned().into()),
        new: Some(new.to_owned().into()),
    }
    .body(RawSpace::RawV1)
}

#[test]
fn small_writes_share_entries_and_keep_their_verdicts() {
    let mut cluster = started(3, 6);
    let leader = leader_at(&mut cluster, "k");
    let region = cluster.region_of(b"k").id;
    // The leader stands still while they come in, so they meet in its inbox.
    cluster.pause_store(leader, ms(30));
    let options = CallOptions::default();
    let first = cluster.last_index(leader, region);
    let mut calls = Vec::new();
    for number in 0..20 {
        let new = format!("v{number}");
        calls.push(cluster.call(leader, region, swap("k", None, &new), &options));
        calls.push(cluster.call(
            leader,
            region,
            put_body(&format!("k{number}"), &new),
            &options,
        ));
    }
    let mut winners: Vec<Bytes> = Vec::new();
    let mut lost = 0;
    for (place, call) in calls.into_iter().enumerate() {
        match cluster.wait_for(call) {
            AttemptResult::Answered(Answer::Written(outcomes)) => match &outcomes[..] {
                [CommandOutcome::Done] => {}
                [
                    CommandOutcome::CompareAndSwap {
                        succeeded: true,
                        previous: None,
                    },
                ] => {
                    winners.push(format!("v{}", place / 2).into());
                }
                [
                    CommandOutcome::CompareAndSwap {
                        succeeded: false,
                        previous: Some(was),
                    },
                ] => {
                    assert!(
                        winners.is_empty() || winners[0] == was,
                        "another winner: {was:?}"
                    );
                    lost += 1;
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((winners.len(), lost), (1, 19));
    assert_eq!(
        get_at(&mut cluster, leader, "k", false),
        Ok(Some(winners[0].clone()))
    );
    let entries = cluster.last_index(leader, region) - first;
    assert!(entries <= 10, "40 writes took {entries} entries");
    cluster.finish_clean();
}

#[test]
fn concurrent_swaps_have_one_winner_each() {
    for seed in 0..4 {
        Scenario {
            stores: 3,
            clients: 8,
            mix: Mix {
                get: 3,
                swap: 5,
                ..Mix::none()
            },
            unreliable: seed % 2 == 1,
            rounds: 1,
            round: 3 * SECOND,
            ..Scenario::new(seed)
        }
        .run_clean();
    }
}
