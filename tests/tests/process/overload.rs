//! More is offered than is served: the excess is told so, and nobody else notices.
//!
//! What is served is measured first, by clients that wait for their answers. The disks of the
//! logs are slow by [`SLOW_SYNC`], and few writes share a round to the followers, so that it is
//! the disk that sets the pace and neither the processor nor the generator. What a test asserts
//! in seconds has the same machine's own figures as the other bound: a busy machine is slow
//! with any load.

use crate::direct::{place, store};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use strata_tests::{
    Cluster, ClusterOptions, DirectPuts, LoadAnswers, SyncShim, closed_loop, open_loop, percentile,
};

/// What each sync of a raft engine's log takes longer.
const SLOW_SYNC: Duration = Duration::from_millis(20);
/// How long a call may take.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// What an accepted write may take, on a machine that has nothing else to do.
const ACCEPTED_MAX: Duration = Duration::from_secs(1);
/// What a refusal may take, likewise: far less than the deadline.
const REFUSED_MAX: Duration = Duration::from_millis(400);
/// How long small writes may stand still beside a largest one, likewise.
const STALL_MAX: Duration = Duration::from_millis(200);
/// Times that this is tried: a machine that others use pauses now and then, and what is wrong
/// with a node shows each time.
const STALL_ROUNDS: usize = 3;
/// Resident memory of a node with small values.
pub const MEMORY_MAX: u64 = 150 << 20;
/// Clients in front of which the pace of the disk shows.
const CLOSED_CLIENTS: usize = 128;
/// Holds the scheduler's state.
const SYSTEM_REGION: u64 = 1;
/// How much is offered of what is served.
const OFFERED_TIMES: f64 = 3.0;
/// For how long.
const OFFERED_TIME: Duration = Duration::from_secs(6);

/// Three nodes whose logs are slow to sync.
pub fn slow_disks() -> ClusterOptions {
    let mut environment = SyncShim::build().slow_environment(SLOW_SYNC);
    for (key, value) in [
        ("STRATA_RAFT_MAX_INFLIGHT_MESSAGES", "1"),
        ("STRATA_RAFT_MAX_MESSAGE_SIZE", "4KiB"),
        ("STRATA_RAFT_SHARED_ENTRY_COMMANDS", "32"),
    ] {
        environment.push((key.into(), value.into()));
    }
    ClusterOptions {
        environment,
        ..ClusterOptions::default()
    }
}

/// Puts of small values into the region of `prefix`, over so many connections to its leader.
pub async fn direct_puts(
    cluster: &Cluster,
    prefix: &'static [u8],
    connections: usize,
) -> DirectPuts {
    let client = cluster.client().await;
    let place = place(cluster, &client, prefix).await;
    let mut stores = Vec::new();
    for _ in 0..connections {
        stores.push(store(cluster, place.store_id).await);
    }
    DirectPuts {
        connections: stores,
        context: place.context,
        prefix: Bytes::from_static(prefix),
        value: Bytes::from(vec![b'v'; 100]),
        deadline: DEADLINE,
    }
}

/// Runs clients that wait for their answers.
async fn closed(puts: &DirectPuts, clients: usize, seconds: u64) -> LoadAnswers {
    let puts = puts.clone();
    let time = Duration::from_secs(seconds);
    closed_loop(clients, time, move |number| puts.put(number)).await
}

/// The term of every region on every node.
pub async fn terms(cluster: &Cluster) -> BTreeMap<(u64, u64), u64> {
    let client = cluster.client().await;
    let regions = client.scheduler().all_regions().await.unwrap();
    let region_ids: Vec<u64> = regions.iter().map(|info| info.region.id).collect();
    let mut terms = BTreeMap::new();
    for id in cluster.ids() {
        for region_id in [SYSTEM_REGION].iter().chain(&region_ids) {
            let state = cluster.region_state(id, *region_id).unwrap();
            terms.insert((id, *region_id), state["term"].as_u64().expect("a term"));
        }
    }
    terms
}

/// Asserts what no node may exceed, and returns the largest in MiB.
pub fn assert_memory(cluster: &mut Cluster, bytes_max: u64) -> u64 {
    let ids = cluster.ids();
    let peaks: Vec<u64> = ids
        .iter()
        .map(|id| cluster.node(*id).peak_memory())
        .collect();
    let most = peaks.iter().copied().max().expect("a node");
    assert!(
        most <= bytes_max,
        "resident bytes {peaks:?}, at most {bytes_max}"
    );
    most >> 20
}

/// Offers three times what `puts` show to be served, and asserts what must hold meanwhile and
/// afterwards. No node may have more than `memory_max` resident bytes.
pub async fn assert_excess_is_refused(cluster: &mut Cluster, puts: &DirectPuts, memory_max: u64) {
    let idle = closed(puts, 1, 2).await;
    let served = closed(puts, CLOSED_CLIENTS, 4).await;
    println!("idle: {}", idle.summary());
    println!("served: {}", served.summary());
    assert!(
        served.other.is_empty() && served.busy.is_empty(),
        "{:?}",
        served.other
    );

    let before = terms(cluster).await;
    let load = puts.clone();
    let rate = OFFERED_TIMES * served.rate();
    let offered = open_loop(rate, OFFERED_TIME, move |number| load.put(number)).await;
    let after = closed(puts, 1, 2).await;
    let memory = assert_memory(cluster, memory_max);
    println!("offered {rate:.0} a second: {}", offered.summary());
    println!(
        "afterwards: {}; at most {memory} MiB a node",
        after.summary()
    );

    assert_eq!(before, terms(cluster).await, "somebody was elected");
    assert_eq!((&offered.other, offered.unsent), (&BTreeMap::new(), 0));
    // A third is served, the rest refused; the bounds leave room for a machine whose pace
    // changes on the way.
    let all = offered.acknowledged.len() + offered.busy.len();
    assert!(offered.busy.len() * 4 >= all, "too few are refused");
    assert!(
        offered.acknowledged.len() * 8 >= all,
        "too few are acknowledged"
    );
    // Where the machine is quiet the second figure is the smaller one, here and below.
    let usual = percentile(&served.acknowledged, 0.99);
    let accepted = percentile(&offered.acknowledged, 0.99);
    assert!(
        accepted <= ACCEPTED_MAX.max(usual * 8),
        "an accepted write takes {accepted:?}, usual is {usual:?}"
    );
    let refused = percentile(&offered.busy, 0.99);
    assert!(
        refused <= REFUSED_MAX.max(usual * 4),
        "a refusal takes {refused:?}, a served write {usual:?}"
    );
    // All that was accepted is answered; the first put behind it meets an idle region.
    let (usual, first) = (percentile(&idle.acknowledged, 0.99), after.acknowledged[0]);
    assert!(
        first <= ACCEPTED_MAX.max(usual * 8),
        "the first put afterwards takes {first:?}, usual is {usual:?}"
    );
    let later = percentile(&after.acknowledged, 0.99);
    assert!(
        later <= ACCEPTED_MAX.max(usual * 8),
        "puts afterwards take {later:?}, usual is {usual:?}"
    );
    assert!(
        after.other.is_empty() && after.busy.is_empty(),
        "{:?}",
        after.other
    );
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_excess_is_refused_and_what_is_accepted_is_in_time() {
    let mut cluster = Cluster::start_with(slow_disks()).await;
    let puts = direct_puts(&cluster, b"overload", 8).await;
    assert_excess_is_refused(&mut cluster, &puts, MEMORY_MAX).await;
}

/// What small writes took at most beside largest ones, and what they may: [`STALL_MAX`], or half as
/// much again as both take without the other if that is more, as on a busy machine.
async fn stall_of_small_clients(cluster: &mut Cluster) -> (Duration, Duration) {
    const SMALL_CLIENTS: usize = 255;
    const SECONDS: u64 = 3;
    let puts = direct_puts(cluster, b"large", 8).await;
    closed(&puts, SMALL_CLIENTS, 1).await;
    let usual = closed(&puts, SMALL_CLIENTS, SECONDS).await;
    println!("alone: {}", usual.summary());

    let large = DirectPuts {
        connections: direct_puts(cluster, b"large", 1).await.connections,
        prefix: Bytes::from_static(b"large-one"),
        // Room for the entry around it.
        value: Bytes::from(vec![b'L'; (8 << 20) - 1024]),
        ..puts.clone()
    };
    let large_alone = closed(&large, 1, 1).await;
    println!("large alone: {}", large_alone.summary());
    let before = terms(cluster).await;
    let large = tokio::spawn(async move {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut answers = Vec::new();
        while begun.elapsed() < Duration::from_secs(SECONDS - 1) {
            let sent = Instant::now();
            let answer = large.put(answers.len() as u64).await;
            answers.push((answer, sent.elapsed()));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        answers
    });
    let beside = closed(&puts, SMALL_CLIENTS, SECONDS).await;
    let large = large.await.unwrap();
    let memory = assert_memory(cluster, 3 * MEMORY_MAX);
    println!(
        "beside: {}; large: {large:?}; at most {memory} MiB a node",
        beside.summary()
    );

    assert_eq!(before, terms(cluster).await, "somebody was elected");
    assert!(!large.is_empty(), "no large value was sent");
    for (answer, _) in &large {
        assert_eq!(*answer, strata_tests::CallAnswer::Acknowledged);
    }
    assert!(
        beside.other.is_empty() && beside.busy.is_empty(),
        "{:?}",
        beside.other
    );
    // The nodes share this machine's disk and processor, which write the value three times.
    let alone = percentile(&usual.acknowledged, 1.0) + percentile(&large_alone.acknowledged, 1.0);
    let bound = STALL_MAX.max(alone * 6 / 5);
    (percentile(&beside.acknowledged, 1.0), bound)
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_largest_value_beside_small_clients() {
    let mut cluster = Cluster::start().await;
    let mut rounds = Vec::new();
    for _ in 0..STALL_ROUNDS {
        let (stall, bound) = stall_of_small_clients(&mut cluster).await;
        rounds.push((stall, bound));
        if stall <= bound {
            return;
        }
    }
    panic!("small writes stood still, and might have for: {rounds:?}");
}
