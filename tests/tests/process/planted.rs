//! Planted faults: each of the checkers that process tests end in can fail.

use std::panic::AssertUnwindSafe;
use strata_tests::linearizable::{Action, Operation};
use strata_tests::{
    Cluster, ClusterOptions, Load, LoadOptions, Recorded, SyncRecord, cut_to_synced,
};

/// What the checks say of a run that ended well: nothing. `run` must be so before a fault
/// is planted, else the test shows nothing.
fn judge_registers(recorded: &Recorded) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| recorded.assert_linearizable())).map_err(|cause| {
        let text = cause.downcast_ref::<String>();
        text.cloned().unwrap_or_default()
    })
}

async fn small_run(cluster: &Cluster) -> Recorded {
    let options = LoadOptions {
        registers: 6,
        ..LoadOptions::default()
    };
    let load = Load::start(&cluster.endpoints(), options).await;
    load.wait_for(600).await;
    let mut recorded = load.stop().await;
    let client = cluster.client().await;
    recorded.acknowledged.assert_present(&client).await;
    recorded.read_registers(&client).await;
    assert_eq!(judge_registers(&recorded), Ok(()));
    recorded
}

/// A history in which one read, long after, saw a value that was overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_stale_read_is_found() {
    let cluster = Cluster::start().await;
    let mut recorded = small_run(&cluster).await;
    let history = recorded
        .histories
        .iter_mut()
        .find(|history| {
            history
                .iter()
                .filter(|of| matches!(of.action, Action::Put(_)))
                .count()
                > 3
        })
        .expect("a register that was written several times");
    let oldest = history
        .iter()
        .filter(|of| of.end.is_some())
        .filter_map(|of| match of.action {
            Action::Put(value) => Some((of.start, value)),
            _ => None,
        })
        .min()
        .expect("a put");
    let last: &mut Operation = history.last_mut().expect("the read at the end");
    assert_ne!(
        last.action,
        Action::Get(Some(oldest.1)),
        "the fault is none"
    );
    last.action = Action::Get(Some(oldest.1));
    let verdict = judge_registers(&recorded).unwrap_err();
    assert!(verdict.contains("not linearizable"), "{verdict}");
}

/// Acknowledged data is taken from every replica, behind the harness's back.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_removed_write_is_found() {
    let cluster = Cluster::start().await;
    let recorded = small_run(&cluster).await;
    let client = cluster.client().await;
    let victim = recorded.acknowledged.first().expect("a write").clone();
    client.delete(&victim).await.unwrap();
    assert_eq!(
        recorded.acknowledged.missing(&client).await.unwrap(),
        std::slice::from_ref(&victim)
    );
    client.put(&victim, "another value").await.unwrap();
    assert_eq!(
        recorded.acknowledged.missing(&client).await.unwrap(),
        [victim]
    );
}

/// A disk that lied: the power cut takes a synced part of the raft logs too. The nodes
/// refuse to start over the hole, or acknowledged writes are missing; a harness that calls
/// this run good would be blind.
#[tokio::test(flavor = "multi_thread")]
async fn planted_fault_process_harness_lying_disk_is_found() {
    let mut cluster = Cluster::start_with(ClusterOptions {
        record_syncs: true,
        ..ClusterOptions::default()
    })
    .await;
    let early: Vec<Vec<SyncRecord>> = cluster
        .ids()
        .into_iter()
        .map(|id| cluster.syncs(id))
        .collect();
    let recorded = small_run(&cluster).await;
    cluster.kill_all();
    for (id, syncs) in cluster.ids().into_iter().zip(early) {
        // What was synced after the start counts for nothing.
        cut_to_synced(&cluster.spec(id).folder, &syncs).unwrap();
    }
    cluster.start_all();
    let good = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        let client = cluster.client().await;
        loop {
            if let Ok(missing) = recorded.acknowledged.missing(&client).await {
                return missing.is_empty();
            }
        }
    })
    .await;
    assert_ne!(good, Ok(true), "the checks passed over a disk that lied");
}
