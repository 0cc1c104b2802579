//! Logs that stay short: who proposes, who truncates, what is deleted, and what a crash in
//! between leaves (crash rule 6).

mod common;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use common::Cluster;
use prost::Message as _;
use strata_proto::eraftpb::{Entry, HardState};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::{RaftLocalState, RegionLocalState};
use strata_proto::stratapb::RaftApplyState;
use strata_raft::Storage as _;
use strata_raftstore::{JobDone, LogGcWorker, RegionJob, StoreEffect, StoreEvent, StoreOptions};
use strata_storage::{
    Cf, Direction, Durability, Engine, Engines, Error, MemEngine, PeerStorage, PeerStorageOptions,
    ReadView, StartFault, WriteBatch, keys, read_apply_state, write_apply_state, write_raft_state,
    write_region_state,
};

const REGION: u64 = 7;
const PEER: u64 = 70;

fn state(applied: u64, truncated: u64) -> RaftApplyState {
    RaftApplyState {
        applied_index: applied,
        applied_term: 5,
        truncated_index: truncated,
        truncated_term: 5,
        region_clock_ms: 0,
    }
}

/// A region whose log goes from 6 to `last`, applied to its end, nothing truncated.
fn region_with_log(last: u64) -> Engines<MemEngine> {
    let engines = MemEngine::new_pair();
    let region = Region {
        id: REGION,
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        peers: vec![Peer {
            id: PEER,
            store_id: 1,
            ..Peer::default()
        }],
        ..Region::default()
    };
    let mut kv = WriteBatch::new();
    let record = RegionLocalState {
        region: Some(region),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &record);
    write_apply_state(&mut kv, REGION, &state(last, 5));
    engines.kv.write(&kv, Durability::Synced).unwrap();
    let mut raft = WriteBatch::new();
    for index in 6..=last {
        let entry = Entry {
            index,
            term: 5,
            ..Entry::default()
        };
        raft.put(
            Cf::RaftLog,
            keys::raft_log(REGION, index),
            entry.encode_to_vec(),
        );
    }
    let local = RaftLocalState {
        hard_state: Some(HardState {
            term: 5,
            vote: 0,
            commit: last,
        }),
        last_index: last,
    };
    write_raft_state(&mut raft, REGION, &local);
    engines.raft.write(&raft, Durability::Synced).unwrap();
    engines
}

/// Applying a CompactLog, as far as the engines see it: not synced.
fn truncate(engines: &Engines<MemEngine>, applied: u64, truncated: u64) {
    let mut kv = WriteBatch::new();
    write_apply_state(&mut kv, REGION, &state(applied, truncated));
    engines.kv.write(&kv, Durability::Unsynced).unwrap();
}

fn log_indexes(engines: &Engines<MemEngine>, region_id: u64) -> Vec<u64> {
    let (start, end) = keys::raft_log_range(region_id);
    let mut found = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        found.extend(keys::parse_raft_log(key).map(|(_, index)| index));
        ControlFlow::Continue(())
    };
    engines
        .raft
        .scan(
            Cf::RaftLog,
            &start,
            Some(&end),
            Direction::Forward,
            &mut visit,
        )
        .unwrap();
    found
}

fn gc(worker: &mut LogGcWorker<MemEngine>, to_index: u64) -> Vec<JobDone> {
    worker.push(&RegionJob::GcLog {
        region_id: REGION,
        to_index,
    });
    worker.step().unwrap()
}

/// The worker deletes what the kv engine has truncated and the region's shard knows to be
/// truncated, and nothing of other regions.
#[test]
fn gc_raft_log() {
    let engines = region_with_log(30);
    let mut other = WriteBatch::new();
    other.put(Cf::RaftLog, keys::raft_log(REGION + 1, 8), "other");
    engines.raft.write(&other, Durability::Synced).unwrap();
    let mut worker = LogGcWorker::new(engines.clone());

    gc(&mut worker, 20);
    assert_eq!(
        log_indexes(&engines, REGION),
        (6..=30).collect::<Vec<_>>(),
        "nothing is truncated yet"
    );
    // The truncated index of the kv engine, what the shard knows of it, and the first index
    // that is left.
    for (truncated, known, first) in [(10, 10, 11), (15, 11, 12), (29, 29, 30), (29, 29, 30)] {
        truncate(&engines, 30, truncated);
        let done = gc(&mut worker, known);
        assert_eq!(
            done,
            [JobDone::LogGone {
                region_id: REGION,
                index: known
            }]
        );
        assert_eq!(
            log_indexes(&engines, REGION),
            (first..=30).collect::<Vec<_>>()
        );
    }
    assert_eq!(log_indexes(&engines, REGION + 1), [8]);
    assert!(!worker.has_work());
}

/// The kv engine holds a later truncation than the shard has heard of when the worker comes
/// to a job of an earlier one: the shard finds every entry that it may still ask for.
#[test]
fn gc_raft_log_ahead_of_the_shard() {
    let mut cluster = Cluster::new(1, short_logs());
    cluster.elect_all();
    let region = cluster.region_of(b"b");
    cluster.nodes.get_mut(&1).unwrap().jobs_work = false;
    for number in 0..30 {
        cluster.put("b", &number.to_string()).unwrap();
    }
    let of_region =
        |effect: &StoreEffect| matches!(effect, StoreEffect::Job(job) if job.region_id() == region);
    cluster.until("a deletion is ordered", |cluster| {
        cluster.nodes[&1].held.iter().any(of_region)
    });
    for number in 0..30 {
        cluster.put("b", &format!("more {number}")).unwrap();
    }
    let known = peer_storage(&cluster, 1, region).truncated().index;
    let truncated = |cluster: &Cluster| {
        let kv = &cluster.nodes[&1].engines.kv;
        read_apply_state(kv, region)
            .unwrap()
            .unwrap()
            .truncated_index
    };
    // Until the next compaction: it is written, and the shard has not heard of it.
    cluster.nodes.get_mut(&1).unwrap().data_works = false;
    let mut untold = None;
    for _ in 0..100 {
        cluster.tick();
        let mut jobs = VecDeque::new();
        while let Some(effect) = cluster.nodes.get_mut(&1).unwrap().held.pop_front() {
            let StoreEffect::WriteData(write) = effect else {
                jobs.push_back(effect);
                continue;
            };
            let kv = cluster.nodes[&1].engines.kv.clone();
            kv.write(write.batch(), write.durability()).unwrap();
            if truncated(&cluster) > known && untold.is_none() {
                untold = Some(write);
            } else {
                cluster.event(1, StoreEvent::DataWritten(write));
            }
        }
        cluster.nodes.get_mut(&1).unwrap().held = jobs;
        if untold.is_some() {
            break;
        }
    }
    let untold = untold.expect("no second compaction");
    let last = peer_storage(&cluster, 1, region).last_index().unwrap();
    assert_eq!(peer_storage(&cluster, 1, region).truncated().index, known);
    cluster.release_jobs(1);
    let held = peer_storage(&cluster, 1, region)
        .entries(known + 1, last + 1, u64::MAX)
        .unwrap();
    assert_eq!(held.len() as u64, last - known);
    cluster.event(1, StoreEvent::DataWritten(untold));
    let now = truncated(&cluster);
    assert_eq!(log_indexes(&cluster.nodes[&1].engines, region)[0], now + 1);
}

fn peer_storage(cluster: &Cluster, id: u64, region: u64) -> &PeerStorage<MemEngine> {
    let shards = cluster.nodes[&id].core.shards();
    let mut peers = shards.iter().flat_map(|shard| shard.peers());
    let peer = peers.find(|peer| peer.region_id() == region);
    peer.unwrap().raft().storage()
}

/// Crash rule 6: what is deleted is truncated in what a power cut leaves of the kv engine,
/// whatever it leaves of the raft engine.
#[test]
fn crash_rule_log_deletion() {
    for raft_kept in [0, usize::MAX] {
        let engines = region_with_log(30);
        let mut worker = LogGcWorker::new(engines.clone());
        truncate(&engines, 30, 20);
        gc(&mut worker, 20);
        let left = Engines::new(
            engines.kv.crash_keeping(0),
            engines.raft.crash_keeping(raft_kept),
        );
        let storage = open(&left).unwrap();
        assert_eq!(storage.first_index().unwrap(), 21);
        assert_eq!(storage.term(20).unwrap(), 5);
    }
    // The rule is needed: without the kv engine's sync the start finds the hole.
    let engines = region_with_log(30);
    truncate(&engines, 30, 20);
    let mut batch = WriteBatch::new();
    batch.delete_range(
        Cf::RaftLog,
        keys::raft_log(REGION, 0),
        keys::raft_log(REGION, 21),
    );
    engines.raft.write(&batch, Durability::Synced).unwrap();
    let left = Engines::new(engines.kv.crash_keeping(0), engines.raft.kill());
    let error = open(&left).unwrap_err();
    let missing = StartFault::MissingEntry {
        index: 6,
        truncated: 5,
        last: 30,
    };
    assert_eq!(
        error,
        Error::StartCheck {
            region_id: REGION,
            fault: missing
        }
    );
}

/// Crash rule 7: where the kv engine has no log of its own, making it durable is a flush of
/// all families at one moment, and only then the entries go.
#[test]
fn crash_rule_atomic_flush_comes_before_the_truncation() {
    use strata_storage::{DiskEngine, EngineKind, EngineOptions};
    let folder = tempfile::tempdir().unwrap();
    let settings = EngineOptions {
        kv_wal: false,
        kv_atomic_flush: true,
        ..EngineOptions::default()
    };
    let kv = DiskEngine::open(EngineKind::Kv, folder.path(), &settings).unwrap();
    let rafts = tempfile::tempdir().unwrap();
    let raft = DiskEngine::open(EngineKind::Raft, rafts.path(), &settings).unwrap();
    let engines = Engines::new(kv, raft);
    let write = |truncated| {
        let mut batch = WriteBatch::new();
        write_apply_state(&mut batch, REGION, &state(30, truncated));
        batch.put(Cf::Raw, "zkey", truncated.to_string());
        engines.kv.write(&batch, Durability::Unsynced).unwrap();
    };
    write(20);
    let mut worker = LogGcWorker::new(engines.clone());
    worker.push(&RegionJob::GcLog {
        region_id: REGION,
        to_index: 20,
    });
    worker.step().unwrap();
    write(25);

    // What a crash leaves now: the files, without what is in memory.
    let crashed = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        match std::fs::copy(file.path(), crashed.path().join(file.file_name())) {
            // RocksDB removes logs that it no longer needs in the background.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => assert!(copied.is_ok(), "{copied:?}"),
        }
    }
    let left = DiskEngine::open(EngineKind::Kv, crashed.path(), &settings).unwrap();
    let apply = read_apply_state(&left, REGION).unwrap().unwrap();
    assert_eq!(apply.truncated_index, 20);
    let value = left.get(Cf::Raw, b"zkey").unwrap();
    assert_eq!(value.as_deref(), Some(&b"20"[..]), "of the same moment");
}

fn open(engines: &Engines<MemEngine>) -> Result<PeerStorage<MemEngine>, Error> {
    let options = PeerStorageOptions::default();
    PeerStorage::load(engines, REGION, PEER, &options).map(|storage| storage.unwrap())
}

/// A failed write of the worker ends the process: it says so and names the region.
#[test]
fn a_failed_sync_of_the_log_worker_is_fatal() {
    let engines = region_with_log(30);
    let mut worker = LogGcWorker::new(engines.clone());
    truncate(&engines, 30, 20);
    engines.kv.fail_next(strata_storage::Fault::Sync);
    worker.push(&RegionJob::GcLog {
        region_id: REGION,
        to_index: 20,
    });
    let fault = worker.step().unwrap_err();
    assert!(fault.to_string().starts_with("region 7: "), "{fault}");
    assert_eq!(
        log_indexes(&engines, REGION).first(),
        Some(&6),
        "nothing is deleted before the sync"
    );
}

fn short_logs() -> StoreOptions {
    StoreOptions {
        log_gc_count_limit: 20,
        log_gc_threshold: 10,
        log_gc_tick_interval: Duration::from_millis(200),
        ..StoreOptions::default()
    }
}

/// Leader and followers truncate at the same index, free the entries from memory and from
/// the engine, and go on from there after a restart.
#[test]
fn truncated_log_index_out_of_range() {
    let mut cluster = Cluster::new(3, short_logs());
    cluster.elect_all();
    let region = cluster.region_of(b"b");
    for number in 0..60 {
        cluster.put("b", &number.to_string()).unwrap();
    }
    cluster.run(Duration::from_secs(2));
    for id in 1..=3 {
        let node = &cluster.nodes[&id];
        let shard = &node.core.shards()[region as usize % 2];
        let peer = shard.peers().find(|peer| peer.region_id() == region);
        let storage = peer.unwrap().raft().storage();
        let first = storage.first_index().unwrap();
        assert!(first > 50, "store {id} begins at {first}");
        // Every place in front of, at and behind the truncation point has its answer.
        use strata_raft::StorageError;
        assert_eq!(storage.term(first - 2), Err(StorageError::Compacted));
        assert_eq!(storage.term(first - 1), Ok(storage.truncated().term));
        let last = storage.last_index().unwrap();
        assert_eq!(
            storage.entries(first - 1, last + 1, u64::MAX),
            Err(StorageError::Compacted)
        );
        let held = storage.entries(first, last + 1, u64::MAX).unwrap();
        assert_eq!(held.len() as u64, last + 1 - first);
        assert_eq!(storage.term(last + 1), Err(StorageError::Unavailable));
        assert_eq!(log_indexes(&node.engines, region).first(), Some(&first));
        let cached: u64 = held.iter().map(strata_raft::entry_bytes).sum();
        assert!(
            storage.cached_bytes() <= cached,
            "the cache holds what is gone"
        );
    }
    // A follower that lost its power replays from the truncation point.
    let leader = cluster.leader(region).unwrap();
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let node = cluster.nodes.remove(&other).unwrap();
    let engines = Engines::new(
        node.engines.kv.crash_keeping(0),
        node.engines.raft.crash_keeping(0),
    );
    cluster.start_with(other, engines, node.files.kill());
    cluster.put("b", "after").unwrap();
    cluster.until("the follower has it", |cluster| {
        cluster.stored(other, "b").as_deref() == Some("after")
    });
}
