//! Snapshots that are cut off: by the receiver's end, a broken connection, the sender's end.

use crate::snapshot::{
    MIB, assert_written, compacted_past, held, last_index_of_the_dead, leader, number,
    patient_client, reached, received_names, short_logs, under_way, write_mib,
};
use strata_client::RawClient;
use strata_tests::{Cluster, ClusterOptions, Proxy, eventually_sync};

const WRITTEN_MIB: u64 = 48;
/// What the receiver holds when the snapshot is cut off.
const CUT_AT_MIB: u64 = 24;
/// Chunks of 1 MiB that may be lost: 16 MiB are not yet synced, a window of 8 is under way, and
/// some were taken and not yet answered.
const LOST_CHUNKS_MAX: u64 = 28;

fn slow() -> ClusterOptions {
    short_logs(&[("STRATA_SNAPSHOT_RATE_LIMIT", "8MiB")])
}

/// A follower that needs a snapshot and has begun to take it.
struct Begun {
    client: RawClient,
    region: u64,
    sender: u64,
    receiver: u64,
    total: u64,
}

impl Begun {
    /// Chunks of a whole snapshot, each file's last being a part.
    fn chunks(&self) -> u64 {
        self.total / MIB
    }
}

/// Brings a follower behind the log and lets the snapshot begin.
async fn begin(cluster: &mut Cluster, receiver: u64) -> Begun {
    let client = patient_client(cluster).await;
    client.put(crate::snapshot::KEY, "0").await.unwrap();
    let (_, region) = leader(cluster, &client).await;
    cluster.kill(receiver);
    let last = last_index_of_the_dead(cluster, receiver, region);
    write_mib(&client, WRITTEN_MIB).await;
    compacted_past(cluster, region, last).await;
    let (sender, _) = leader(cluster, &client).await;
    cluster.start_node(receiver);
    let (_, total) = held(cluster, receiver, region, CUT_AT_MIB).await;
    Begun {
        client,
        region,
        sender,
        receiver,
        total,
    }
}

/// Waits for the snapshot, and shows that only what was not synced was sent again.
async fn assert_resumed(cluster: &Cluster, begun: &Begun) {
    let (sender, region) = (begun.sender, begun.region);
    reached(cluster, begun.receiver, region, "snapshots_received", 1).await;
    reached(cluster, sender, region, "snapshots_sent", 1).await;
    let sent = number(cluster, sender, region, "snapshot_chunks_sent");
    let whole = begun.chunks();
    println!("{sent} chunks were sent for a snapshot of {whole}");
    assert!(
        sent >= whole && sent <= whole + LOST_CHUNKS_MAX,
        "{sent} chunks were sent for a snapshot of {whole}"
    );
    cluster.assert_replicas_equal().await;
    assert_written(&begun.client, WRITTEN_MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_receiver_killed_resumes_at_what_was_synced() {
    let mut cluster = Cluster::start_with(slow()).await;
    let begun = begin(&mut cluster, 3).await;
    let names = received_names(&cluster, 3, begun.region);
    cluster.kill(3);
    begun.client.put(b"meanwhile", "1").await.unwrap();
    cluster.start_node(3);
    // It goes on behind what was synced, with the same snapshot.
    let (first, total) = held(&cluster, 3, begun.region, CUT_AT_MIB / 2).await;
    assert_eq!(total, begun.total, "another snapshot is under way");
    assert_eq!(received_names(&cluster, 3, begun.region), names);
    println!("it went on with {} MiB", first / MIB);
    assert_resumed(&cluster, &begun).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_broken_connection_resumes_at_what_was_synced() {
    let mut cluster = Cluster::prepare(slow());
    // The others know node 3 by the proxy's address alone.
    let real = cluster.address(3);
    let proxy = Proxy::start(real.clone()).await;
    for id in cluster.ids() {
        let spec = cluster.spec_mut(id);
        for word in &mut spec.words {
            *word = word.replace(&real, proxy.address());
        }
        if id == 3 {
            let advertised = ["--advertise-addr".into(), proxy.address().into()];
            spec.words.extend(advertised);
        }
    }
    cluster.start_all();
    cluster.wait_ready().await;
    let begun = begin(&mut cluster, 3).await;
    proxy.cut();
    eventually_sync("the sender to see the end of its stream", || {
        let said = cluster.output(begun.sender);
        let line = "a snapshot's stream ended, another follows";
        said.contains(line).then_some(()).ok_or("no line yet")
    })
    .await;
    assert_resumed(&cluster, &begun).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_sender_killed_next_leaders_begins_anew() {
    let mut cluster = Cluster::start_with(slow()).await;
    let client = cluster.client().await;
    client.put(crate::snapshot::KEY, "0").await.unwrap();
    let (first, _) = leader(&cluster, &client).await;
    let receiver = cluster.ids().into_iter().find(|id| *id != first).unwrap();
    let begun = begin(&mut cluster, receiver).await;
    let old = received_names(&cluster, receiver, begun.region);
    assert_eq!(old.len(), 1, "{old:?}");
    cluster.kill(begun.sender);
    let next = cluster.ids().into_iter();
    let next = next
        .filter(|id| ![receiver, begun.sender].contains(id))
        .min()
        .unwrap();
    // What the next leader sends is another snapshot, and takes the place of the first.
    eventually_sync("the next leader's snapshot", || {
        let names = received_names(&cluster, receiver, begun.region);
        let begins = under_way(&cluster, receiver, begun.region);
        match begins {
            Some(_) if names.len() == 1 && names.is_disjoint(&old) => Ok(()),
            _ => Err((names, begins)),
        }
    })
    .await;
    reached(&cluster, receiver, begun.region, "snapshots_received", 1).await;
    reached(&cluster, next, begun.region, "snapshots_sent", 1).await;
    let sent = number(&cluster, next, begun.region, "snapshot_chunks_sent");
    assert!(
        sent >= begun.chunks(),
        "{sent} chunks of {}",
        begun.chunks()
    );
    assert!(received_names(&cluster, receiver, begun.region).is_disjoint(&old));
    cluster.start_node(begun.sender);
    cluster.wait_ready().await;
    cluster.assert_replicas_equal().await;
    assert_written(&begun.client, WRITTEN_MIB).await;
    eventually_sync("no part to be left", || {
        match received_names(&cluster, receiver, begun.region) {
            names if names.is_empty() => Ok(()),
            names => Err(names),
        }
    })
    .await;
}
