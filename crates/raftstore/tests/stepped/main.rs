//! Whole stores, stepped: elections, writes and reads, what waits and what is lost.

#[path = "../common/mod.rs"]
mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{AppendCommand, RawSpace, data_command::Body};
use strata_raftstore::{
    Answer, CommandOutcome, Error, ReadCommand, Reply, Request, RequestBody, RequestHeader,
    StoreEvent, StoreOptions,
};
use strata_storage::Engines;

mod leaders;
mod reads;
mod time_to_live;
mod write_stages;
mod writes;

fn cluster(stores: u64) -> Cluster {
    let mut cluster = Cluster::new(stores, StoreOptions::default());
    cluster.elect_all();
    cluster
}

fn applied(cluster: &Cluster, id: u64, region_id: u64) -> u64 {
    cluster.nodes[&id]
        .core
        .directory()
        .entry(region_id)
        .unwrap()
        .view
        .numbers()
        .applied
}

#[test]
fn one_store_puts_and_gets() {
    let mut cluster = cluster(1);
    assert_eq!(written(cluster.put("a", "1")), [CommandOutcome::Done]);
    assert_eq!(cluster.get("a").as_deref(), Some("1"));
    assert_eq!(cluster.get("b"), None);
}

#[test]
fn three_stores_hold_the_same() {
    let mut cluster = cluster(3);
    for at in 0..20 {
        written(cluster.put(&format!("key-{at}"), &format!("value-{at}")));
    }
    assert_eq!(cluster.get("key-7").as_deref(), Some("value-7"));
    cluster.run(Duration::from_millis(300));
    for id in 1..=3 {
        assert_eq!(
            cluster.stored(id, "key-19").as_deref(),
            Some("value-19"),
            "store {id}"
        );
    }
}
