//! Thousands of clients, each with a connection of its own: what they ask for is served while it
//! is little, and where it is more than the disks of the logs can take the excess is refused.

use crate::direct::place;
use crate::overload::{
    DEADLINE, MEMORY_MAX, assert_excess_is_refused, assert_memory, slow_disks, terms,
};
use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::Duration;
use strata_proto::tikvpb::tikv_client::TikvClient;
use strata_tests::{Cluster, DirectPuts, eventually, open_loop};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CLIENTS: usize = 5_000;
/// Descriptors of this process, and of a node, beside those of the clients.
const OTHER_DESCRIPTORS: u64 = 4_096;
/// Clients that connect at one time.
const CONNECTING_MAX: usize = 64;
/// Resident memory of a node for each connection.
const CONNECTION_MEMORY_MAX: u64 = 48 << 10;
/// Calls a second of all clients together that are not too many.
const RATE: f64 = 250.0;

/// Raises the limit of open descriptors, for this process and the nodes that it starts, and
/// returns how many clients fit.
fn clients_that_fit() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = (CLIENTS as u64 + OTHER_DESCRIPTORS).max(soft).min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    let fit = wanted.saturating_sub(OTHER_DESCRIPTORS) as usize;
    if fit < CLIENTS {
        println!("only {fit} of {CLIENTS} clients: at most {hard} files may be open");
    }
    fit.min(CLIENTS)
}

async fn connect(address: &str, clients: usize) -> Vec<TikvClient<Channel>> {
    let (mut tasks, mut connections) = (JoinSet::new(), Vec::new());
    for _ in 0..clients {
        if tasks.len() >= CONNECTING_MAX {
            connections.extend(tasks.join_next().await.map(Result::unwrap));
        }
        let address = format!("http://{address}");
        tasks.spawn(async move {
            eventually("a connection", || TikvClient::connect(address.clone())).await
        });
    }
    connections.extend(tasks.join_all().await);
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_five_thousand_clients_are_served_and_their_excess_is_refused() {
    let clients = clients_that_fit();
    assert!(clients >= 100, "too few descriptors to show anything");
    let mut cluster = Cluster::start_with(slow_disks()).await;
    let client = cluster.client().await;
    let place = place(&cluster, &client, b"many").await;
    let puts = DirectPuts {
        connections: connect(&cluster.address(place.store_id), clients).await,
        context: place.context,
        prefix: Bytes::from_static(b"many"),
        value: Bytes::from(vec![b'v'; 100]),
        deadline: DEADLINE,
    };
    let before = terms(&cluster).await;
    let connected = cluster.node(place.store_id).peak_memory() >> 20;
    let time = Duration::from_secs_f64(clients as f64 / RATE);
    let load = puts.clone();
    let answers = open_loop(RATE, time, move |number| load.put(number)).await;
    let bytes_max = MEMORY_MAX + clients as u64 * CONNECTION_MEMORY_MAX;
    let memory = assert_memory(&mut cluster, bytes_max);
    println!(
        "{clients} clients: {}; {connected} MiB when all were connected, at most {memory} MiB",
        answers.summary()
    );
    assert_eq!(before, terms(&cluster).await, "somebody was elected");
    let refused = answers.busy.len() + answers.unsent;
    assert!(
        refused == 0 && answers.other.is_empty(),
        "{refused} refused, {:?}",
        answers.other
    );
    assert_eq!(answers.acknowledged.len(), clients, "each calls once");
    assert_excess_is_refused(&mut cluster, &puts, bytes_max).await;
}
