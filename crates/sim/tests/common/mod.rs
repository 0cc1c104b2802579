//! What the rows share: settings, calls to a chosen store with its bare answer, and looks into
//! what a store holds.

#![allow(dead_code)] // Every row uses some of it.

pub mod peers;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use strata_proto::stratapb::RawSpace;
use strata_raftstore::{Answer, Error, ReadCommand, RequestBody, StoreOptions};
use strata_sim::{AttemptResult, CallOptions, ClientOperation, Cluster, ClusterOptions, Mix};

pub const SECOND: Duration = Duration::from_secs(1);

/// The seeds that `SIM_SEEDS=A..B` asks for, else those of an ordinary run.
pub fn seeds_or(ordinary: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("SIM_SEEDS") else {
        return ordinary;
    };
    let (first, end) = text.split_once("..").expect("SIM_SEEDS is A..B");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Milliseconds.
pub fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A cluster that has elected leaders everywhere.
pub fn started(stores: u64, seed: u64) -> Cluster {
    started_with(ClusterOptions::new(stores, seed))
}

/// A cluster that has elected leaders everywhere.
pub fn started_with(options: ClusterOptions) -> Cluster {
    let mut cluster = Cluster::new(options);
    let rested = cluster.run_until(20 * SECOND, |cluster| cluster.unrest().is_none());
    assert!(rested, "{:?}", cluster.unrest());
    cluster
}

/// Reads a key at one store, without retries.
pub fn get_at(
    cluster: &mut Cluster,
    store: u64,
    key: &str,
    replica_read: bool,
) -> Result<Option<Bytes>, Error> {
    let region = cluster.region_of(key.as_bytes()).id;
    let command = ReadCommand::Get {
        space: RawSpace::RawV1,
        key: key.to_owned().into(),
    };
    let options = CallOptions {
        replica_read,
        ..CallOptions::default()
    };
    let call = cluster.call(store, region, RequestBody::Read(command), &options);
    match cluster.wait_for(call) {
        AttemptResult::Answered(Answer::Value(value)) => Ok(value),
        AttemptResult::Refused(error) => Err(error),
        other => panic!("get of {key} at store {store}: {other:?}"),
    }
}

/// The body of a put.
pub fn put_body(key: &str, value: &str) -> RequestBody {
    ClientOperation::Put(key.to_owned().into(), value.to_owned().into()).body(RawSpace::RawV1)
}

/// The store that leads the region of a key, once there is one.
pub fn leader_at(cluster: &mut Cluster, key: &str) -> u64 {
    let region = cluster.region_of(key.as_bytes()).id;
    assert!(
        cluster.run_until(20 * SECOND, |cluster| cluster.leader_of(region).is_some()),
        "region {region} gets no leader"
    );
    cluster.leader_of(region).expect("waited for it")
}

/// Hands the leadership of a key's region to a store, with retries.
pub fn move_leader(cluster: &mut Cluster, key: &str, to_store_id: u64) {
    let region = cluster.region_of(key.as_bytes()).id;
    for _ in 0..20 {
        let leader = leader_at(cluster, key);
        if leader == to_store_id {
            return;
        }
        let body = RequestBody::TransferLeader { to_store_id };
        let call = cluster.call(leader, region, body, &CallOptions::default());
        if let AttemptResult::Answered(Answer::Done) = cluster.wait_for(call) {
            let moved = cluster.run_until(SECOND, |c| c.leader_of(region) == Some(to_store_id));
            assert!(moved, "the hand-over was acknowledged and is not seen");
            return;
        }
        cluster.run_for(ms(100));
    }
    panic!("region {region}: the leadership does not go to store {to_store_id}");
}

/// A value as it lies in a store's kv engine, without header; `None` if there is none.
pub fn stored(cluster: &Cluster, store: u64, key: &str) -> Option<Bytes> {
    use strata_storage::{ReadView, keys, raw_value};
    let engine_key = keys::raw_key(RawSpace::RawV1, key.as_bytes());
    let cf = keys::raw_cf(RawSpace::RawV1);
    let kv = &cluster.store(store).engines.kv;
    let bytes = kv.get(cf, &engine_key).expect("the engine reads")?;
    Some(
        raw_value::decode_bytes(&bytes)
            .expect("the value decodes")
            .value,
    )
}

/// Logs of at most `count` entries, looked at every 50 ms.
pub fn short_logs(count: u64) -> StoreOptions {
    StoreOptions {
        log_gc_count_limit: count,
        log_gc_threshold: count,
        log_gc_tick_interval: Duration::from_millis(50),
        ..StoreOptions::default()
    }
}

/// Index up to which a store's log of a region is compacted.
pub fn truncated(cluster: &Cluster, store: u64, region: u64) -> u64 {
    let state = strata_storage::read_apply_state(&cluster.store(store).engines.kv, region).unwrap();
    state.expect("the region is there").truncated_index
}

/// Appends and reads, as the lab's generic test has them.
pub fn appends() -> Mix {
    Mix {
        append: 1,
        get: 1,
        ..Mix::none()
    }
}

/// All that a clerk can do, on keys that all share.
pub fn random_keys() -> Mix {
    Mix {
        append: 4,
        put: 3,
        get: 5,
        swap: 3,
        delete: 1,
        ..Mix::none()
    }
}

/// Every value holds each piece once, and the pieces of one clerk in the order in which it
/// appended them. Returns the number of pieces.
pub fn check_pieces(cluster: &mut Cluster) -> usize {
    let keys: Vec<Bytes> = cluster.history.by_key().into_keys().collect();
    let mut count = 0;
    for key in keys {
        let Answer::Value(Some(value)) = cluster.must(ClientOperation::Get(key.clone())) else {
            continue;
        };
        let text = String::from_utf8(value.to_vec()).unwrap();
        let mut last = std::collections::BTreeMap::new();
        for piece in text.split_terminator(';') {
            let (clerk, number) = piece.split_once('.').unwrap();
            let number: u64 = number.parse().unwrap();
            let before = last.insert(clerk.to_owned(), number);
            assert!(
                before.is_none_or(|before| before < number),
                "key {key:?}: piece {piece} stands behind {before:?}"
            );
            count += 1;
        }
    }
    count
}
