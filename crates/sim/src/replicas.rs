//! Replicas and logs, compared byte for byte.
//!
//! Two replicas that have applied the same index must hold the same data, the same region
//! and the same clock, whatever leaders, crashes and restarts they went through. Logs must
//! be whole behind their truncation point, equal as far as both are committed, and not
//! longer than their limits let them be.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message as _;
use strata_proto::eraftpb::Entry;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::PeerState;
use strata_proto::stratapb::RaftApplyState;
use strata_raftstore::SYSTEM_REGION_ID;
use strata_storage::bootstrap::BOOTSTRAP_INDEX;
use strata_storage::snapshot::Origin;
use strata_storage::{
    Cf, Direction, EngineKind, Engines, MemEngine, PeerStorageOptions, ReadView, keys,
    read_apply_state, read_raft_state, read_region_state,
};

use crate::cluster::Cluster;
use crate::store::SimStore;
use crate::violation::Violation;

/// How many limits a follower's log may be longer than its leader's: what a snapshot under
/// way may hold at most.
const FOLLOWER_LIMITS: u64 = 4;

/// Everything that a replica holds beside its log: records and data.
type Content = BTreeMap<(Cf, Bytes), Bytes>;

/// Compares the replicas of every region.
#[must_use]
pub fn check_replicas(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Vec::new();
    for region in &cluster.present_regions() {
        // First store seen at each applied index.
        let mut seen: BTreeMap<u64, (u64, Content)> = BTreeMap::new();
        for peer in &region.peers {
            let store_id = peer.store_id;
            match content(region, &cluster.store(store_id).engines) {
                Err(detail) => found.push(Violation::StoreStopped {
                    store_id,
                    reason: detail,
                }),
                Ok((index, content)) => {
                    let (first, expected) = seen
                        .entry(index)
                        .or_insert_with(|| (store_id, content.clone()));
                    if let Some(detail) = difference(expected, &content) {
                        found.push(Violation::ReplicasDiffer {
                            region_id: region.id,
                            first: *first,
                            second: store_id,
                            index,
                            detail,
                        });
                    }
                }
            }
        }
    }
    found
}

fn content(region: &Region, engines: &Engines<MemEngine>) -> Result<(u64, Content), String> {
    let mut content = Content::new();
    let index = visit_content(region, engines, &mut |cf, key, value| {
        let entry = (cf, Bytes::copy_from_slice(key));
        content.insert(entry, Bytes::copy_from_slice(value));
    })?;
    Ok((index, content))
}

/// Applied index and a sum over the content of a replica; `None` where there is none, or one
/// that is being replaced.
pub(crate) fn replica_sum(
    region: &Region,
    engines: &Engines<MemEngine>,
) -> Result<Option<(u64, u32)>, String> {
    let state = read_region_state(&engines.kv, region.id).map_err(|error| error.to_string())?;
    if state.is_none_or(|state| state.state() != PeerState::Normal) {
        return Ok(None);
    }
    let mut sum = crc32fast::Hasher::new();
    let index = visit_content(region, engines, &mut |cf, key, value| {
        sum.update(&[cf as u8, key.len() as u8]);
        sum.update(key);
        sum.update(&(value.len() as u32).to_le_bytes());
        sum.update(value);
    })?;
    Ok(Some((index, sum.finalize())))
}

/// Takes a column family, a key and its value.
type Visit<'a> = dyn FnMut(Cf, &[u8], &[u8]) + 'a;

/// Hands out all that a replica holds beside its log, in a fixed order; its applied index.
fn visit_content(
    region: &Region,
    engines: &Engines<MemEngine>,
    visit: &mut Visit<'_>,
) -> Result<u64, String> {
    let say = |error: strata_storage::Error| error.to_string();
    let applied = read_apply_state(&engines.kv, region.id)
        .map_err(say)?
        .ok_or_else(|| format!("region {} has no apply state", region.id))?;
    // A replica that installed a snapshot has less of the log than others.
    let comparable = RaftApplyState {
        truncated_index: 0,
        truncated_term: 0,
        ..applied
    };
    let state = read_region_state(&engines.kv, region.id)
        .map_err(say)?
        .ok_or_else(|| format!("region {} has no region state", region.id))?;
    visit(
        Cf::Raft,
        &keys::apply_state(region.id),
        &comparable.encode_to_vec(),
    );
    visit(
        Cf::Raft,
        &keys::region_state(region.id),
        &state.encode_to_vec(),
    );
    let (start, end) = keys::session_range(region.id);
    visit_range(engines, Cf::Raft, &start, &end, visit)?;
    if region.id == SYSTEM_REGION_ID {
        let (start, end) = keys::system_range();
        visit_range(engines, Cf::Raft, &start, &end, visit)?;
    } else {
        let (start, end) = keys::data_range(&region.start_key, &region.end_key);
        for cf in EngineKind::Kv.column_families() {
            if *cf != Cf::Raft {
                visit_range(engines, *cf, &start, &end, visit)?;
            }
        }
    }
    Ok(applied.applied_index)
}

fn visit_range(
    engines: &Engines<MemEngine>,
    cf: Cf,
    start: &[u8],
    end: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), String> {
    let mut each = |key: &[u8], value: &[u8]| {
        visit(cf, key, value);
        ControlFlow::Continue(())
    };
    engines
        .kv
        .scan(cf, start, Some(end), Direction::Forward, &mut each)
        .map_err(|error| error.to_string())
}

fn difference(one: &Content, other: &Content) -> Option<String> {
    let all = one.keys().chain(other.keys());
    let key = all
        .into_iter()
        .find(|key| one.get(*key) != other.get(*key))?;
    let shown = |content: &Content| match content.get(key) {
        Some(value) => format!("\"{}\"", value.escape_ascii()),
        None => "absent".to_owned(),
    };
    Some(format!(
        "{} key \"{}\": {} and {}",
        key.0,
        key.1.escape_ascii(),
        shown(one),
        shown(other)
    ))
}

/// Checks the logs of every region.
#[must_use]
pub fn check_logs(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Vec::new();
    for region in &cluster.present_regions() {
        let mut longest: Option<(u64, BTreeMap<u64, Bytes>)> = None;
        for peer in &region.peers {
            let store_id = peer.store_id;
            let report = |detail| Violation::Log {
                region_id: region.id,
                store_id,
                detail,
            };
            match committed_log(region.id, &cluster.store(store_id).engines) {
                Err(detail) => found.push(report(detail)),
                Ok(log) => {
                    let (other, expected) = longest.get_or_insert_with(|| (store_id, log.clone()));
                    let differs = log
                        .iter()
                        .find(|(index, data)| expected.get(index).is_some_and(|e| e != *data));
                    if let Some((index, _)) = differs {
                        let detail = format!("entry {index} is not that of store {other}");
                        found.push(report(detail));
                    }
                    if log.len() > expected.len() {
                        longest = Some((store_id, log));
                    }
                }
            }
        }
    }
    found
}

/// Checks that every log is within its limits. For a cluster at rest that has had the time
/// of some log gc ticks. The leader looks at its own log alone: if that began with a snapshot,
/// the others keep what they had until it has grown again.
#[must_use]
pub fn check_log_limits(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Vec::new();
    for region in &cluster.present_regions() {
        let leader = cluster.leader_of(region.id);
        let members = &cluster.present_region(region.id).peers;
        let silent = members
            .iter()
            .any(|peer| cluster.store(peer.store_id).is_out());
        for peer in &region.peers {
            let store = cluster.store(peer.store_id);
            let options = &store.options;
            // One entry more is the last compaction itself. For the sake of a member that is
            // silent for good the leader keeps as much as the limit allows.
            let own = if silent {
                options.log_gc_count_limit + 1
            } else {
                options.log_gc_count_limit.min(options.log_gc_threshold) + 1
            };
            let limit = if leader == Some(peer.store_id) {
                own
            } else {
                own + FOLLOWER_LIMITS * options.log_gc_count_limit.max(options.log_gc_threshold)
            };
            let entries = match read_apply_state(&store.engines.kv, region.id) {
                Ok(Some(state)) => state.applied_index - state.truncated_index,
                _ => 0,
            };
            if entries > limit {
                found.push(Violation::Log {
                    region_id: region.id,
                    store_id: peer.store_id,
                    detail: format!("{entries} entries, the limit is {limit}"),
                });
            }
        }
    }
    found
}

/// Checks that what compaction gave up and what was sent is gone: entries behind the
/// truncation points, and files of snapshots that nobody can want. Of what a leader made the
/// latest of each region stays for `snapshot_keep_time`. For a cluster at rest that has had
/// the time of some log gc ticks and of four `snapshot_gc_interval`s.
#[must_use]
pub fn check_released(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Vec::new();
    for store_id in cluster.store_ids() {
        let store = cluster.store(store_id);
        let mut held: Vec<(String, bool)> = Vec::new();
        let snapshots = store.core.as_ref().map(|core| core.snapshots().list());
        let snapshots = snapshots.unwrap_or_default();
        for region in cluster.regions() {
            let Ok(Some(state)) = read_apply_state(&store.engines.kv, region.id) else {
                continue;
            };
            // A crash may bring deleted entries back; they go with the next compaction.
            let before = store.truncated_at_start.get(&region.id).copied();
            let gone = match before {
                Some(before) if before == state.truncated_index => {
                    store.log_gone.get(&region.id).copied().unwrap_or(0)
                }
                _ => state.truncated_index,
            };
            let log = whole_log(region.id, &store.engines).unwrap_or_default();
            let left = log.range(..=gone).count();
            if left > 0 {
                let what = format!(
                    "{left} entries of region {} up to {gone}, where its log was truncated",
                    region.id
                );
                held.push((what, false));
            }
            let own = snapshots
                .iter()
                .filter(|info| info.key.region_id == region.id);
            let (made, received): (Vec<_>, Vec<_>) =
                own.partition(|info| info.key.origin == Origin::Generated);
            let newest = made.iter().map(|info| info.key.index).max();
            let older = made.iter().filter(|info| Some(info.key.index) != newest);
            let applied = received
                .iter()
                .filter(|info| info.key.index <= state.applied_index);
            held.extend(older.chain(applied).map(|info| (format!("{info:?}"), true)));
        }
        held.extend(cached_too_much(store).map(|what| (what, false)));
        let violation = |(what, file)| Violation::NotReleased {
            store_id,
            what,
            file,
        };
        found.extend(held.into_iter().map(violation));
    }
    found
}

/// What the entry caches of a store's peers hold in memory beyond their limit, or up to where
/// their logs were truncated.
fn cached_too_much(store: &SimStore) -> impl Iterator<Item = String> {
    let bytes_max = PeerStorageOptions::default().entry_cache_bytes_max;
    let cores = store.core.iter();
    let peers = cores.flat_map(|core| core.shards().iter().flat_map(|shard| shard.peers()));
    peers.filter_map(move |peer| {
        let storage = peer.raft().storage();
        let (bytes, first) = (storage.cached_bytes(), storage.cached_first_index());
        let truncated = storage.truncated().index;
        let too_much = bytes > bytes_max || first.is_some_and(|first| first <= truncated);
        too_much.then(|| {
            format!(
                "{bytes} bytes of entries in memory from index {first:?} on in region {}; the \
                 limit is {bytes_max}, its log was truncated at {truncated}",
                peer.region_id()
            )
        })
    })
}

/// The committed entries of a replica, encoded; an error if the log is not whole.
fn committed_log(
    region_id: u64,
    engines: &Engines<MemEngine>,
) -> Result<BTreeMap<u64, Bytes>, String> {
    let say = |error: strata_storage::Error| error.to_string();
    let state = read_raft_state(&engines.raft, region_id)
        .map_err(say)?
        .ok_or("there is no raft state")?;
    let applied = read_apply_state(&engines.kv, region_id)
        .map_err(say)?
        .ok_or("there is no apply state")?;
    let truncated = applied.truncated_index;
    if truncated < BOOTSTRAP_INDEX || truncated > applied.applied_index {
        let applied = applied.applied_index;
        return Err(format!("truncated at {truncated}, applied is {applied}"));
    }
    // What lies before may not be deleted yet.
    let mut log = whole_log(region_id, engines)?.split_off(&(truncated + 1));
    let held = log.keys().copied();
    let whole = held.eq(truncated + 1..=state.last_index);
    if !whole {
        let ends = (log.keys().next(), log.keys().next_back());
        return Err(format!(
            "{} entries from {ends:?}, the last index is {}",
            log.len(),
            state.last_index
        ));
    }
    log.split_off(&(applied.applied_index + 1));
    Ok(log)
}

/// All entries of a replica's log by index, encoded.
fn whole_log(region_id: u64, engines: &Engines<MemEngine>) -> Result<BTreeMap<u64, Bytes>, String> {
    let (start, end) = keys::raft_log_range(region_id);
    let mut log = BTreeMap::new();
    let mut fault = None;
    let mut visit = |key: &[u8], value: &[u8]| {
        let index = keys::parse_raft_log(key).map(|(_, index)| index);
        let entry = Entry::decode(value)
            .ok()
            .filter(|entry| Some(entry.index) == index);
        match entry {
            Some(entry) => {
                log.insert(entry.index, Bytes::copy_from_slice(value));
                ControlFlow::Continue(())
            }
            None => {
                fault = Some(format!("the entry under {index:?} is another one"));
                ControlFlow::Break(())
            }
        }
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
        .map_err(|error| error.to_string())?;
    if let Some(fault) = fault {
        return Err(fault);
    }
    Ok(log)
}
