//! Raft messages and snapshots between stores.
//!
//! Raft messages of a pair of stores and direction share one stream:
//!
//! Send      The store hands messages to [`RaftTransport`]; one bounded queue a store, which
//!           the thread that pushes writes to the socket (`queue`, `frames`), and one task a
//!           queue, which keeps the stream and writes what the socket does not take at once
//!           (`sender`).
//! Greet     Each stream opens with cluster id, store id and incarnation; the receiver
//!           syncs the sender's incarnation before it answers (`greet`, `incarnations`).
//! Admit     A store with a new folder votes nothing until every other initial store has
//!           answered its greeting once (`admission`).
//!
//! What is lost is lost: Raft repeats what it needs, and learns from
//! [`StoreHandle::report_unreachable`] that a store cannot be reached.
//!
//! Each snapshot has a connection of its own (`snapshot`), so that its chunks hold up no
//! raft message.

mod admission;
mod frames;
mod greet;
mod incarnations;
mod queue;
mod receiver;
mod sender;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use slog::Logger;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raftstore::StoreHandle;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::config::TransportConfig;
use crate::metrics::ServerMetrics;

pub(crate) use admission::Admission;
pub(crate) use frames::PREFACE;
#[cfg(test)]
pub(crate) use frames::{
    EMPTY_FRAME, FrameError, FrameReader, messages_between, put_frame, put_messages,
};
pub(crate) use greet::Greeter;
pub(crate) use incarnations::Incarnations;
pub(crate) use receiver::ExchangeServer;
pub(crate) use snapshot::{
    Attached, AttachedStore, NodeTransport, RegionSnapshots, SnapshotLink, SnapshotReplyStream,
    SnapshotServer, SnapshotStreams, SnapshotTransfer,
};

use queue::{MessageQueue, QueueLimits};

/// Told when stores come and go.
pub(crate) trait Liveness: Send + Sync + 'static {
    /// A stream to the store stands.
    fn connected(&self, store_id: u64);
    /// The store's machine refuses connections: no process listens there.
    fn refused(&self, store_id: u64);
}

/// The sending side, shared by the store's threads and the sender tasks.
pub(crate) struct RaftTransport {
    cluster: Arc<Cluster>,
    config: TransportConfig,
    /// Largest message in either direction, in bytes.
    message_bytes_max: usize,
    metrics: Arc<ServerMetrics>,
    logger: Logger,
    runtime: Handle,
    queues: Mutex<BTreeMap<u64, Arc<MessageQueue>>>,
    running: OnceLock<Running>,
}

/// What exists only once the store runs.
struct Running {
    store: StoreHandle,
    admission: Arc<Admission>,
    incarnations: Arc<Incarnations>,
    liveness: Arc<dyn Liveness>,
    stopping: watch::Receiver<bool>,
}

impl RaftTransport {
    /// A transport that queues messages and sends none until [`RaftTransport::start`].
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        config: TransportConfig,
        message_bytes_max: usize,
        metrics: Arc<ServerMetrics>,
        logger: Logger,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(RaftTransport {
            cluster,
            config,
            message_bytes_max,
            metrics,
            logger,
            runtime,
            queues: Mutex::new(BTreeMap::new()),
            running: OnceLock::new(),
        })
    }

    /// Starts a sender for every other store, whether there is something to send or not:
    /// greetings carry incarnations and show who lives.
    pub(crate) fn start(
        self: &Arc<Self>,
        store: StoreHandle,
        admission: Arc<Admission>,
        incarnations: Arc<Incarnations>,
        liveness: Arc<dyn Liveness>,
        stopping: watch::Receiver<bool>,
    ) {
        let running = Running {
            store,
            admission,
            incarnations,
            liveness,
            stopping,
        };
        assert!(
            self.running.set(running).is_ok(),
            "the transport of store {} was started twice",
            self.cluster.store_id
        );
        for store_id in self.cluster.others() {
            let queue = self.queue(store_id);
            self.runtime
                .spawn(sender::run(self.clone(), store_id, queue));
        }
    }

    /// Tries a connection at once that waits for its next attempt.
    pub(crate) fn poke(&self, store_id: u64) {
        self.queue(store_id).poke();
    }

    fn queue(&self, store_id: u64) -> Arc<MessageQueue> {
        let mut queues = self.queues.lock();
        queues
            .entry(store_id)
            .or_insert_with(|| {
                let limits = QueueLimits {
                    messages: self.config.queue_messages as usize,
                    bytes: self.config.queue_size.bytes(),
                    frame_bytes: self.config.frame_size.bytes(),
                    message_bytes: self.message_bytes_max,
                };
                let frames = self.metrics.transport_frames.clone();
                Arc::new(MessageQueue::new(limits, frames))
            })
            .clone()
    }
}

impl RaftTransport {
    /// Hands messages over for a store, in order. Never blocks.
    fn send(&self, to_store_id: u64, messages: Vec<RaftMessage>) {
        if !self.cluster.is_member(to_store_id) {
            self.metrics.transport_refused.inc_by(messages.len() as u64);
            return;
        }
        let dropped = self.queue(to_store_id).push(messages);
        self.metrics.transport_dropped_full.inc_by(dropped);
    }
}
