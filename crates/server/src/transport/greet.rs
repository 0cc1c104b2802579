//! How two stores meet: who connects, what both say first, and what each checks.
//!
//! A stream is refused with one line, on both sides, unless its greeting names this
//! cluster, this store, a member as its sender, that member's known incarnation, and the election
//! time-out of this store. The answer is sent only when the sender's incarnation is synced here.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use slog::{Logger, warn};
use strata_proto::stratapb::{StoreHello, StoreReply};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use super::{Admission, Incarnations, RaftTransport};
use crate::cluster::{Cluster, endpoint};
use crate::config::TransportConfig;

/// Why a stream is not there.
pub(super) enum Lost {
    /// Nothing listens at the store's address.
    Refused(String),
    /// The store answered that it will not have this store.
    Rejected(String),
    /// Anything else.
    Broken(String),
}

impl Lost {
    pub(super) fn reason(&self) -> &str {
        match self {
            Lost::Refused(reason) | Lost::Rejected(reason) | Lost::Broken(reason) => reason,
        }
    }
}

/// Connects to a store.
pub(super) async fn connect(
    cluster: &Cluster,
    config: &TransportConfig,
    store_id: u64,
) -> Result<Channel, Lost> {
    let address = cluster.address(store_id).unwrap_or_default();
    let endpoint = endpoint(&address, config)
        .ok_or_else(|| Lost::Broken(format!("{address} is no address")))?;
    timeout(config.handshake_time, endpoint.connect())
        .await
        .map_err(|_| Lost::Broken("connecting took too long".to_owned()))?
        .map_err(|error| not_connected(&error))
}

/// What this store says first to another.
pub(super) fn hello(cluster: &Cluster, to_store_id: u64) -> StoreHello {
    StoreHello {
        cluster_id: cluster.cluster_id,
        store_id: cluster.store_id,
        incarnation: cluster.incarnation,
        to_store_id,
        address: cluster.address(cluster.store_id).unwrap_or_default(),
        keepalive_ms: 0,
        election_timeout_us: cluster.election_timeout.as_micros() as u64,
    }
}

/// Checks who answered, and counts the answer for this store's own admission.
pub(super) async fn accept_reply(
    incarnations: Arc<Incarnations>,
    admission: Arc<Admission>,
    store_id: u64,
    reply: StoreReply,
) -> Result<(), Lost> {
    if reply.store_id != store_id {
        return Err(Lost::Rejected(format!(
            "store {} answers at the address of store {store_id}",
            reply.store_id
        )));
    }
    // Both sync to disk.
    tokio::task::spawn_blocking(move || {
        incarnations
            .meet(store_id, reply.incarnation)
            .map_err(|error| Lost::Rejected(error.to_string()))?;
        admission.on_recorded_by(store_id).map_err(Lost::Broken)
    })
    .await
    .unwrap_or_else(|_| Err(Lost::Broken("the answer could not be checked".to_owned())))
}

pub(super) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn not_connected(error: &tonic::transport::Error) -> Lost {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    let mut refused = false;
    while let Some(cause) = source {
        reason = cause.to_string();
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            refused |= io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = cause.source();
    }
    let reason = one_line(&reason);
    if refused {
        Lost::Refused(reason)
    } else {
        Lost::Broken(reason)
    }
}

/// Checks the greetings of other stores.
#[derive(Clone)]
pub(crate) struct Greeter {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) incarnations: Arc<Incarnations>,
    pub(crate) transport: Arc<RaftTransport>,
    pub(crate) logger: Logger,
    pub(crate) refusals: Arc<Refusals>,
}

impl Greeter {
    /// Accepts a greeting: the sender's incarnation is synced, its address is noted.
    /// Returns the answer.
    pub(super) async fn accept(&self, hello: &StoreHello) -> Result<StoreReply, Status> {
        match self.check(hello.clone()).await {
            Ok(()) => self.refusals.forget(hello.store_id),
            Err(status) => {
                if self.refusals.is_new(hello.store_id, status.message()) {
                    warn!(self.logger, "a store was refused";
                        "peer_store" => hello.store_id, "address" => &hello.address,
                        "reason" => status.message());
                }
                return Err(status);
            }
        }
        self.cluster.set_address(hello.store_id, &hello.address);
        // The sender lives, so the way back to it is worth an attempt now.
        self.transport.poke(hello.store_id);
        Ok(StoreReply {
            store_id: self.cluster.store_id,
            incarnation: self.cluster.incarnation,
            refusal: String::new(),
        })
    }

    async fn check(&self, hello: StoreHello) -> Result<(), Status> {
        check_hello(&self.cluster, &hello).map_err(Status::failed_precondition)?;
        let incarnations = self.incarnations.clone();
        tokio::task::spawn_blocking(move || incarnations.meet(hello.store_id, hello.incarnation))
            .await
            .map_err(|_| Status::internal("the greeting could not be checked"))?
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }
}

/// Stores whose refusal was logged already: they try again every second.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<u64, String>>);

impl Refusals {
    /// Stores that are remembered; strangers may name any id.
    const STORES_MAX: usize = 64;

    /// True if the store was not refused for the same reason before.
    fn is_new(&self, store_id: u64, reason: &str) -> bool {
        let mut logged = self.0.lock();
        if logged.get(&store_id).is_some_and(|known| known == reason) {
            return false;
        }
        if logged.len() >= Self::STORES_MAX {
            logged.clear();
        }
        logged.insert(store_id, reason.to_owned());
        true
    }

    fn forget(&self, store_id: u64) {
        self.0.lock().remove(&store_id);
    }
}

/// The line that refuses a greeting from another cluster, for another store, or of a store whose
/// replicas might vote while a lease of this one's runs.
fn check_hello(cluster: &Cluster, hello: &StoreHello) -> Result<(), String> {
    if hello.cluster_id != cluster.cluster_id {
        return Err(format!(
            "store {} belongs to cluster {:016x}, this is store {} of cluster {:016x}; \
             check --cluster-token and --initial-cluster",
            hello.store_id, hello.cluster_id, cluster.store_id, cluster.cluster_id
        ));
    }
    if hello.to_store_id != cluster.store_id {
        return Err(format!(
            "store {} looks for store {} at the address of store {}; check --initial-cluster",
            hello.store_id, hello.to_store_id, cluster.store_id
        ));
    }
    if hello.store_id == cluster.store_id || !cluster.is_member(hello.store_id) {
        return Err(format!(
            "store {} is no other member of this cluster",
            hello.store_id
        ));
    }
    let own_us = cluster.election_timeout.as_micros() as u64;
    if hello.election_timeout_us != own_us {
        return Err(format!(
            "store {} has an election time-out of {} ms, store {} of {} ms; reads may be stale \
             unless raft.tick-interval times raft.election-ticks is the same on all nodes",
            hello.store_id,
            hello.election_timeout_us as f64 / 1000.0,
            cluster.store_id,
            own_us as f64 / 1000.0
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn hello() -> StoreHello {
        StoreHello {
            cluster_id: 9,
            store_id: 2,
            incarnation: 7,
            to_store_id: 1,
            address: "b:1".to_owned(),
            keepalive_ms: 0,
            election_timeout_us: 400_000,
        }
    }

    #[test]
    fn bad_input_stranger_greets_another_cluster_store_or_id() {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let cluster = Cluster::new(9, 1, 7, 0, addresses, &Config::default());
        check_hello(&cluster, &hello()).unwrap();
        let refused = |change: &dyn Fn(&mut StoreHello)| {
            let mut hello = hello();
            change(&mut hello);
            check_hello(&cluster, &hello).unwrap_err()
        };
        assert!(refused(&|h| h.cluster_id = 8).contains("--cluster-token"));
        assert!(refused(&|h| h.to_store_id = 3).contains("--initial-cluster"));
        assert!(refused(&|h| h.store_id = 1).contains("no other member"));
        assert!(refused(&|h| h.store_id = 5).contains("no other member"));
    }

    /// A leader's lease rests on how long the others keep from voting, by their own settings.
    #[test]
    fn bad_input_store_with_another_election_timeout() {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let cluster = Cluster::new(9, 1, 7, 0, addresses, &Config::default());
        for other_us in [0, 200_000, 399_999, 400_001, u64::MAX] {
            let hello = StoreHello {
                election_timeout_us: other_us,
                ..hello()
            };
            let line = check_hello(&cluster, &hello).unwrap_err();
            assert!(line.contains("raft.election-ticks"), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        // What this store says of itself to another passes there.
        assert_eq!(super::hello(&cluster, 2).election_timeout_us, 400_000);
    }

    #[test]
    fn a_refusal_is_logged_once_for_each_reason() {
        let refusals = Refusals::default();
        assert!(refusals.is_new(2, "a"));
        assert!(!refusals.is_new(2, "a"));
        assert!(refusals.is_new(3, "a"));
        assert!(refusals.is_new(2, "b"));
        refusals.forget(2);
        assert!(refusals.is_new(2, "b"));
        for stranger in 100..1000 {
            assert!(refusals.is_new(stranger, "a"));
        }
        assert!(refusals.0.lock().len() <= Refusals::STORES_MAX);
    }
}
