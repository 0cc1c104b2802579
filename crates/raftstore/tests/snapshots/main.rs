//! Followers that come back by a snapshot, step by step: what reads see meanwhile, what a
//! crash in each phase leaves, and snapshots that must not be taken.

#[path = "../common/mod.rs"]
mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, get};
use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::{Peer, Region};
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_raftstore::{
    Answer, DirectoryCell, Error, RegionJob, ShardEvent, StoreEffect, StoreEvent, StoreFsm,
    StoreOptions, StoreRequest, SystemStateMachine,
};
use strata_storage::snapshot::{
    Generated, Generator, Origin, SnapshotError, SnapshotInfo, SnapshotKey, to_raft,
};
use strata_storage::{
    Cf, Direction, Durability, Engine, Engines, MemEngine, ReadView, WriteBatch, keys,
    read_apply_state, read_raft_state, read_region_state,
};

mod files;
mod install;

const SECOND: Duration = Duration::from_secs(1);

fn short_logs() -> StoreOptions {
    StoreOptions {
        log_gc_count_limit: 10,
        log_gc_threshold: 10,
        log_gc_tick_interval: Duration::from_millis(100),
        ..StoreOptions::default()
    }
}

/// A cluster of three in which one store was away until the log it needs was compacted;
/// cluster, region of "b" and the store that was away, which still is.
fn one_away() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::new(3, short_logs());
    cluster.elect_all();
    let region = cluster.region_of(b"b");
    cluster.put("b", "old").unwrap();
    cluster.put("b9", "gone later").unwrap();
    cluster.run(SECOND);
    let leader = cluster.leader(region).unwrap();
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.cut.insert(away);
    for number in 0..30 {
        cluster.put("b", &number.to_string()).unwrap();
    }
    cluster
        .call(region, common::write(&[("b9", None, 0)]))
        .unwrap();
    cluster.run(3 * SECOND);
    let first = cluster.nodes[&leader].core.directory().entry(region);
    let truncated = first.unwrap().view.numbers().truncated;
    assert!(truncated > 30, "the leader is truncated at {truncated}");
    (cluster, region, away)
}

fn local_state(cluster: &Cluster, id: u64, region: u64) -> PeerState {
    let kv = &cluster.nodes[&id].engines.kv;
    read_region_state(kv, region).unwrap().unwrap().state()
}
