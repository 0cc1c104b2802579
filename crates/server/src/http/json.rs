//! Messages as JSON, in the forms of the interfaces page and of PD's HTTP interface.
//!
//! Keys are upper-case hexadecimal, as PD writes them.

use serde_json::{Value, json};
use strata_proto::metapb::{Peer, Region, StoreState};
use strata_proto::pdpb::{GetMembersResponse, Member, ScanRegionsResponse};
use strata_proto::stratapb::StatusResponse;
use strata_raftstore::RegionState;

use crate::transport::{RegionSnapshots, SnapshotTransfer};

/// Upper-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A range, its epoch and peers under the names of the interfaces page.
pub(super) fn region_state(state: &RegionState, snapshots: &RegionSnapshots) -> Value {
    let region = &state.region;
    json!({
        "region_id": region.id,
        "range": { "start_key": hex(&region.start_key), "end_key": hex(&region.end_key) },
        "epoch": epoch(region),
        "peers": region.peers.iter().map(named_peer).collect::<Vec<_>>(),
        "leader": state.leader.as_ref().map(named_peer),
        "term": state.term,
        "first_index": state.first_index,
        "truncated_index": state.truncated_index,
        "truncated_term": state.truncated_term,
        "applied_index": state.applied_index,
        "committed_index": state.committed_index,
        "last_index": state.last_index,
        "region_clock_ms": state.region_clock_ms,
        "snapshots_sent": snapshots.sent,
        "snapshots_received": snapshots.received,
        "snapshot_chunks_sent": snapshots.chunks_sent,
        "snapshots_under_way": snapshots.under_way.iter().map(under_way).collect::<Vec<_>>(),
    })
}

fn under_way(transfer: &SnapshotTransfer) -> Value {
    json!({
        "direction": if transfer.outgoing { "to" } else { "from" },
        "store_id": transfer.store_id,
        "held_bytes": transfer.held_bytes,
        "total_bytes": transfer.total_bytes,
    })
}

fn named_peer(peer: &Peer) -> Value {
    json!({ "peer_id": peer.id, "store_id": peer.store_id })
}

fn epoch(region: &Region) -> Value {
    let epoch = region.region_epoch.unwrap_or_default();
    json!({ "conf_ver": epoch.conf_ver, "version": epoch.version })
}

fn pd_peer(peer: &Peer) -> Value {
    json!({ "id": peer.id, "store_id": peer.store_id, "role": peer.role })
}

/// The answer of `/pd/api/v1/regions`.
pub(super) fn regions(found: &ScanRegionsResponse) -> Value {
    let regions: Vec<_> = found
        .regions
        .iter()
        .filter_map(|found| {
            let region = found.region.as_ref()?;
            Some(json!({
                "id": region.id,
                "start_key": hex(&region.start_key),
                "end_key": hex(&region.end_key),
                "epoch": epoch(region),
                "peers": region.peers.iter().map(pd_peer).collect::<Vec<_>>(),
                "leader": found.leader.as_ref().map(pd_peer),
            }))
        })
        .collect();
    json!({ "count": regions.len(), "regions": regions })
}

/// The answer of `/pd/api/v1/stores`.
pub(super) fn stores(status: &StatusResponse) -> Value {
    let stores: Vec<_> = status
        .stores
        .iter()
        .filter_map(|status| {
            let store = status.store.as_ref()?;
            let stats = status.stats.unwrap_or_default();
            Some(json!({
                "store": {
                    "id": store.id,
                    "address": store.address,
                    "peer_address": store.peer_address,
                    "status_address": store.status_address,
                    "version": store.version,
                    "start_timestamp": store.start_timestamp,
                    "last_heartbeat": store.last_heartbeat,
                    "state": store.state,
                    "state_name": state_name(store.state),
                },
                "status": {
                    "capacity": stats.capacity,
                    "available": stats.available,
                    "used_size": stats.used_size,
                    "leader_count": status.leader_count,
                    "region_count": stats.region_count,
                    "last_report_ago_ms": status.last_report_ago_ms,
                },
            }))
        })
        .collect();
    json!({ "count": stores.len(), "stores": stores })
}

fn state_name(state: i32) -> &'static str {
    match StoreState::try_from(state) {
        Ok(StoreState::Up) => "Up",
        Ok(StoreState::Offline) => "Offline",
        Ok(StoreState::Tombstone) => "Tombstone",
        Err(_) => "Unknown",
    }
}

/// The answer of `/pd/api/v1/members`.
pub(super) fn members(found: &GetMembersResponse) -> Value {
    let member = |member: &Member| {
        json!({
            "name": member.name,
            "member_id": member.member_id,
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
        })
    };
    let cluster_id = found.header.as_ref().map_or(0, |header| header.cluster_id);
    json!({
        "header": { "cluster_id": cluster_id },
        "members": found.members.iter().map(member).collect::<Vec<_>>(),
        "leader": found.leader.as_ref().map(member),
        "etcd_leader": found.etcd_leader.as_ref().map(member),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_region_state_has_every_field_that_checks_read() {
        let leader = Peer {
            id: 7,
            store_id: 2,
            ..Default::default()
        };
        let state = RegionState {
            region: Region {
                id: 5,
                start_key: Bytes::from_static(&[0x72, 0]),
                peers: vec![leader],
                ..Default::default()
            },
            leader: Some(leader),
            term: 6,
            first_index: 6,
            truncated_index: 5,
            truncated_term: 5,
            applied_index: 9,
            committed_index: 10,
            last_index: 11,
            region_clock_ms: 12,
        };
        let snapshots = RegionSnapshots {
            sent: 13,
            received: 14,
            chunks_sent: 15,
            under_way: vec![SnapshotTransfer {
                outgoing: true,
                store_id: 3,
                held_bytes: 16,
                total_bytes: 17,
            }],
        };
        let value = region_state(&state, &snapshots);
        for (field, number) in [
            ("region_id", 5),
            ("term", 6),
            ("first_index", 6),
            ("truncated_index", 5),
            ("truncated_term", 5),
            ("applied_index", 9),
            ("committed_index", 10),
            ("last_index", 11),
            ("snapshots_sent", 13),
            ("snapshots_received", 14),
            ("snapshot_chunks_sent", 15),
        ] {
            assert_eq!(value[field], number, "{field}");
        }
        let transfer = json!({
            "direction": "to", "store_id": 3, "held_bytes": 16, "total_bytes": 17,
        });
        assert_eq!(value["snapshots_under_way"], json!([transfer]));
        assert_eq!(value["leader"], json!({ "peer_id": 7, "store_id": 2 }));
        assert_eq!(value["range"]["start_key"], "7200");
        let leaderless = RegionState {
            leader: None,
            ..state
        };
        let leaderless = region_state(&leaderless, &RegionSnapshots::default());
        assert!(leaderless["leader"].is_null());
    }
}
