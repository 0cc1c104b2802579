//! What each store says of its own replica of a region: `GET /debug/regions/ID`.
//!
//! The scheduler knows where replicas are and who leads; how far each one is, only its
//! store knows. A store that does not answer is a row too, with the reason.

use crate::args::Global;
use crate::exit::Failure;
use crate::http_get::http_get;
use crate::output;
use serde_json::{Value, json};
use std::time::Duration;
use strata_client::{RegionInfo, Scheduler};
use strata_proto::metapb::{Peer, PeerRole};

/// A node that is up answers far sooner.
const PAGE_TIME: Duration = Duration::from_secs(2);

/// Numbers of the page, in the order of the columns.
const NUMBERS: [&str; 5] = [
    "term",
    "first_index",
    "applied_index",
    "committed_index",
    "last_index",
];

/// Counters of snapshots on the page, for programs.
const SNAPSHOTS: [&str; 4] = [
    "snapshots_sent",
    "snapshots_received",
    "snapshot_chunks_sent",
    "snapshots_under_way",
];

/// One replica.
pub struct Replica {
    peer: Peer,
    address: String,
    /// The store's page, or why there is none.
    state: Result<Value, String>,
}

/// Asks all stores of a region, one after the other.
///
/// # Errors
/// When the scheduler does not answer; a store that does not is part of the result.
pub async fn ask_all(
    global: &Global,
    scheduler: &Scheduler,
    region: &RegionInfo,
) -> Result<Vec<Replica>, Failure> {
    let time = PAGE_TIME.min(Duration::from_secs_f64(global.timeout));
    let mut replicas = Vec::new();
    for peer in &region.region.peers {
        let address = scheduler.store(peer.store_id).await?.address;
        let path = format!("/debug/regions/{}", region.region.id);
        let state = match http_get(&address, &path, time).await {
            Ok((200, body)) => serde_json::from_str(&body).map_err(|error| error.to_string()),
            Ok((status, _)) => Err(format!("HTTP status {status}")),
            Err(reason) => Err(reason),
        };
        replicas.push(Replica {
            peer: *peer,
            address,
            state,
        });
    }
    Ok(replicas)
}

impl Replica {
    /// What the membership says.
    fn role(&self) -> &'static str {
        match self.peer.role() {
            PeerRole::Voter => "voter",
            PeerRole::Learner => "learner",
            PeerRole::IncomingVoter => "incoming voter",
            PeerRole::DemotingVoter => "demoting voter",
        }
    }

    /// What the replica itself says.
    fn raft_state(&self) -> &'static str {
        match &self.state {
            Err(_) => "unreachable",
            Ok(state) if state["leader"]["peer_id"] == self.peer.id => "leader",
            Ok(state) if state["leader"].is_null() => "without leader",
            Ok(_) => "follower",
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "store_id": self.peer.store_id,
            "peer_id": self.peer.id,
            "address": self.address,
            "role": self.role(),
            "state": self.raft_state(),
        });
        match &self.state {
            Ok(state) => {
                for name in NUMBERS.into_iter().chain(SNAPSHOTS) {
                    json[name] = state[name].clone();
                }
            }
            Err(reason) => json["error"] = json!(reason),
        }
        json
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![
            self.peer.store_id.to_string(),
            self.peer.id.to_string(),
            self.role().into(),
            self.raft_state().into(),
        ];
        match &self.state {
            Ok(state) => {
                row.extend(NUMBERS.map(|name| state[name].to_string()));
                row.push(under_way(state));
            }
            Err(reason) => {
                row.extend(NUMBERS.map(|_| "-".to_string()));
                row.push(format!("{}: {reason}", self.address));
            }
        }
        row.resize(COLUMNS.len(), String::new());
        row
    }
}

/// The snapshots that a replica sends or receives now, in a few words.
fn under_way(state: &Value) -> String {
    let transfers = state["snapshots_under_way"].as_array();
    let words = transfers.into_iter().flatten().map(|transfer| {
        let bytes = |name: &str| u128::from(transfer[name].as_u64().unwrap_or_default());
        let percent = bytes("held_bytes") * 100 / bytes("total_bytes").max(1);
        let direction = transfer["direction"].as_str().unwrap_or_default();
        format!("snapshot {direction} {}: {percent} %", transfer["store_id"])
    });
    words.collect::<Vec<_>>().join(", ")
}

const COLUMNS: [&str; 10] = [
    "store",
    "peer",
    "role",
    "state",
    "term",
    "first",
    "applied",
    "committed",
    "last",
    "",
];

/// For people.
pub fn table(replicas: &[Replica]) -> String {
    let rows: Vec<_> = replicas.iter().map(Replica::row).collect();
    output::table(&COLUMNS, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_what_its_store_says() {
        let peer = Peer {
            id: 7,
            store_id: 2,
            ..Default::default()
        };
        let state = |leader: Value| Replica {
            peer,
            address: "a:1".into(),
            state: Ok(json!({ "leader": leader, "term": 6, "last_index": 9 })),
        };
        assert_eq!(state(json!({ "peer_id": 7 })).raft_state(), "leader");
        assert_eq!(state(json!({ "peer_id": 8 })).raft_state(), "follower");
        assert_eq!(state(Value::Null).raft_state(), "without leader");
        assert_eq!(state(Value::Null).to_json()["last_index"], 9);
        let sending = Replica {
            peer,
            address: "a:1".into(),
            state: Ok(json!({ "snapshots_sent": 2, "snapshots_under_way": [
                { "direction": "to", "store_id": 3, "held_bytes": 45, "total_bytes": 90 },
                { "direction": "from", "store_id": 1, "held_bytes": 0, "total_bytes": 0 },
            ] })),
        };
        assert_eq!(sending.to_json()["snapshots_sent"], 2);
        assert!(table(&[sending]).contains("snapshot to 3: 50 %, snapshot from 1: 0 %"));
        let silent = Replica {
            peer,
            address: "a:1".into(),
            state: Err("refused".into()),
        };
        assert_eq!(silent.to_json()["error"], "refused");
        assert_eq!(silent.row().len(), COLUMNS.len());
        assert!(table(&[silent]).contains("a:1: refused"));
    }

    #[test]
    fn fuzz_pages_of_stores() {
        let page = json!({
            "leader": { "peer_id": 7, "store_id": 2 }, "term": 6, "first_index": 6,
            "applied_index": 9, "committed_index": 9, "last_index": 9,
            "snapshots_under_way": [
                { "direction": "to", "store_id": 3, "held_bytes": u64::MAX, "total_bytes": 1 },
            ],
        });
        let page = page.to_string();
        let mut shown = 0;
        strata_fuzz::run("pages of stores", 5_000, |mutator| {
            let replica = Replica {
                peer: Peer {
                    id: mutator.near(7),
                    role: mutator.number() as i32,
                    ..Default::default()
                },
                address: mutator.text(&["a:1"]),
                state: serde_json::from_str(&mutator.damaged_text(&page))
                    .map_err(|error| error.to_string()),
            };
            shown += u64::from(replica.state.is_ok());
            assert!(replica.to_json().is_object());
            assert_eq!(table(&[replica]).lines().count(), 2);
        });
        if strata_fuzz::is_whole_run() {
            assert!(shown > 200, "{shown} pages could be read");
        }
    }
}
