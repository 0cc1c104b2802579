//! The receiving side of streams between stores.
//!
//! A stream is refused with one line, on both sides, unless its greeting names this
//! cluster, this store, a member as its sender and that member's known incarnation. The
//! answer is sent only when the sender's incarnation is synced here.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slog::{Logger, info, warn};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{StoreFrame, StoreHello, StoreReply};
use strata_raftstore::StoreHandle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Incarnations, RaftTransport};
use crate::cluster::Cluster;
use crate::metrics::ServerMetrics;

/// Answers of one stream.
pub(crate) type ReplyStream =
    Pin<Box<dyn Stream<Item = Result<StoreReply, Status>> + Send + 'static>>;

/// Serves `Exchange`.
#[derive(Clone)]
pub(crate) struct ExchangeServer {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) incarnations: Arc<Incarnations>,
    pub(crate) transport: Arc<RaftTransport>,
    pub(crate) store: StoreHandle,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) logger: Logger,
    pub(crate) handshake_time: Duration,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) stopping: watch::Receiver<bool>,
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

impl ExchangeServer {
    /// Takes a stream: checks its greeting, answers it, and delivers what follows.
    pub(crate) async fn exchange(
        &self,
        request: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<ReplyStream>, Status> {
        let mut frames = request.into_inner();
        let first = timeout(self.handshake_time, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream did not greet"))??;
        let hello = first
            .and_then(|frame| frame.hello)
            .ok_or_else(|| Status::invalid_argument("the first frame must be a greeting"))?;
        match self.accept(hello.clone()).await {
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
        info!(self.logger, "stream from a store stands"; "peer_store" => hello.store_id);
        let (replies, stream) = mpsc::channel(1);
        let reply = StoreReply {
            store_id: self.cluster.store_id,
            incarnation: self.cluster.incarnation,
        };
        let _ = replies.send(Ok(reply)).await;
        let server = self.clone();
        tokio::spawn(async move { server.receive(hello.store_id, frames, replies).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn accept(&self, hello: StoreHello) -> Result<(), Status> {
        check_hello(&self.cluster, &hello).map_err(Status::failed_precondition)?;
        let incarnations = self.incarnations.clone();
        tokio::task::spawn_blocking(move || incarnations.meet(hello.store_id, hello.incarnation))
            .await
            .map_err(|_| Status::internal("the greeting could not be checked"))?
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }

    /// Delivers messages until the stream ends; dropping `replies` then ends the answers.
    async fn receive(
        self,
        from_store_id: u64,
        mut frames: Streaming<StoreFrame>,
        replies: mpsc::Sender<Result<StoreReply, Status>>,
    ) {
        let mut stopping = self.stopping.clone();
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = replies.closed() => return,
                _ = stopping.changed() => return,
            };
            let Ok(Some(frame)) = frame else {
                return;
            };
            let (fitting, refused) =
                split_fitting(frame.messages, from_store_id, self.cluster.store_id);
            self.metrics.transport_refused.inc_by(refused);
            if !fitting.is_empty() {
                self.store.deliver(fitting);
            }
        }
    }
}

/// Messages that come from and go to the stores of the stream, and how many do not.
fn split_fitting(messages: Vec<RaftMessage>, from: u64, to: u64) -> (Vec<RaftMessage>, u64) {
    let all = messages.len();
    let fits = |message: &RaftMessage| {
        let on = |peer: &Option<strata_proto::metapb::Peer>, store| {
            peer.as_ref().is_some_and(|peer| peer.store_id == store)
        };
        on(&message.from_peer, from) && on(&message.to_peer, to)
    };
    let fitting: Vec<_> = messages.into_iter().filter(fits).collect();
    let refused = all - fitting.len();
    (fitting, refused as u64)
}

/// The line that refuses a greeting from another cluster or for another store.
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use strata_proto::metapb::Peer;

    fn hello() -> StoreHello {
        StoreHello {
            cluster_id: 9,
            store_id: 2,
            incarnation: 7,
            to_store_id: 1,
            address: "b:1".to_owned(),
        }
    }

    #[test]
    fn bad_input_stranger_greets_another_cluster_store_or_id() {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let cluster = Cluster::new(9, 1, 7, 0, addresses, Config::default().transport);
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

    #[test]
    fn messages_of_other_stores_are_refused() {
        let peer = |store_id| Peer {
            id: 1,
            store_id,
            ..Default::default()
        };
        let message = |from, to| RaftMessage {
            from_peer: Some(peer(from)),
            to_peer: Some(peer(to)),
            ..Default::default()
        };
        let messages = vec![
            message(2, 1),
            message(3, 1),
            message(2, 3),
            RaftMessage::default(),
        ];
        let (fitting, refused) = split_fitting(messages, 2, 1);
        assert_eq!((fitting.len(), refused), (1, 3));
    }
}
