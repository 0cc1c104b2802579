//! Snapshots between stores: a connection and a stream of its own for each.
//!
//! Send      The store hands a raft message over ([`SnapshotLink::send`]). A task waits for
//!           one of `snapshot.max-concurrent` permits, connects, greets, and feeds the
//!           stepped [`SnapshotSender`](strata_raftstore::SnapshotSender) (`send`). A
//!           stream that breaks has a successor, which resumes. However it ends, the store
//!           is told, once.
//! Receive   A stream that has greeted feeds a stepped
//!           [`SnapshotReceiver`](strata_raftstore::SnapshotReceiver) (`receive`). The
//!           store is asked before anything is taken; it gets the raft message once all
//!           files are synced.
//! Show      Counters of each region since the start, and what is under way (`counts`).
//!
//! Files are read, written and synced on the runtime's blocking threads. Of a stream, no
//! more than a window of chunks is in memory on either side, and on the way.
//!
//! Elsewhere: the protocol and its faults (`strata_raftstore`), the greeting (`greet`).

mod accept;
mod counts;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slog::{Logger, crit};
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{SnapshotFrame, SnapshotMeta, SnapshotReply};
use strata_raftstore::{RateLimit, ReceiveSlots, StoreHandle, TransferOptions, Transport};
use strata_storage::snapshot::{FileStore, SnapshotError, SnapshotManager};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tonic::Status;

use super::{Admission, Incarnations, RaftTransport};
use crate::cluster::Cluster;
use crate::config::{SnapshotConfig, TransportConfig};
use crate::metrics::ServerMetrics;
use crate::settings::transfer_options;

pub(crate) use accept::SnapshotServer;
pub(crate) use counts::{RegionSnapshots, SnapshotTransfer};
use counts::{SnapshotCounts, UnderWay};

/// Time that the line about a fatal error is given to be written.
const LAST_LINE_WAIT: Duration = Duration::from_millis(200);

/// What snapshots want of the store.
pub(crate) trait SnapshotStore: Send + Sync + 'static {
    /// The sending of a snapshot has ended.
    fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool);
    /// A snapshot is complete here.
    fn deliver_snapshot(&self, message: RaftMessage);
    /// Is a snapshot of use here?
    fn check_snapshot(&self, meta: &SnapshotMeta, to_peer: &Peer) -> Result<(), SnapshotError>;
    /// True if this store leads the region in that term.
    fn leads(&self, region_id: u64, term: u64) -> bool;
}

/// A running store with its id.
pub(crate) struct AttachedStore {
    pub(crate) store_id: u64,
    pub(crate) handle: StoreHandle,
}

impl SnapshotStore for AttachedStore {
    fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool) {
        self.handle.report_snapshot(region_id, to_peer_id, ok);
    }

    fn deliver_snapshot(&self, message: RaftMessage) {
        self.handle.deliver_snapshot(message);
    }

    fn check_snapshot(&self, meta: &SnapshotMeta, to_peer: &Peer) -> Result<(), SnapshotError> {
        self.handle.check_snapshot(meta, to_peer)
    }

    fn leads(&self, region_id: u64, term: u64) -> bool {
        let state = self.handle.region_state(region_id);
        state.is_some_and(|state| {
            let leader = state.leader.map(|leader| leader.store_id);
            state.term == term && leader == Some(self.store_id)
        })
    }
}

/// What exists only once the store runs.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) store: Arc<dyn SnapshotStore>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) incarnations: Arc<Incarnations>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Answers of one stream.
pub(crate) type SnapshotReplyStream =
    Pin<Box<dyn Stream<Item = Result<SnapshotReply, Status>> + Send + 'static>>;

/// Frames of one stream, from the network or from a test.
pub(crate) type SnapshotFrames =
    Pin<Box<dyn Stream<Item = Result<SnapshotFrame, Status>> + Send + 'static>>;

type ReplySender = mpsc::Sender<Result<SnapshotReply, Status>>;

/// A [`SnapshotLink`], whatever the form of its files.
pub(crate) trait SnapshotStreams: Send + Sync + 'static {
    /// Takes a snapshot over for a store, and reports once how that ended. Never blocks.
    /// A later snapshot for the same peer takes the place of an earlier one, whose sender
    /// has given it up; only the later one is reported then.
    fn send(self: Arc<Self>, to_store_id: u64, message: RaftMessage);
    /// Takes a stream in whose greeting was answered.
    fn receive(
        self: Arc<Self>,
        from_store_id: u64,
        frames: SnapshotFrames,
        replies: ReplySender,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Begins to send: the store runs.
    fn attach(&self, attached: Attached);
    /// What was sent and received of a region.
    fn of_region(&self, region_id: u64) -> RegionSnapshots;
}

/// Both directions of snapshots of one node.
pub(crate) struct SnapshotLink<F: FileStore> {
    cluster: Arc<Cluster>,
    transport: TransportConfig,
    options: TransferOptions,
    manager: SnapshotManager<F>,
    rate: Mutex<RateLimit>,
    slots: Mutex<Slots>,
    /// One for each snapshot that is being sent.
    permits: Semaphore,
    /// One for each that is being sent or waits for it.
    places: Arc<Semaphore>,
    /// How the sending of a snapshot to each peer of a region is told to end.
    sends: Mutex<BTreeMap<(u64, u64), Arc<Notify>>>,
    counts: Arc<SnapshotCounts>,
    metrics: Arc<ServerMetrics>,
    logger: Logger,
    runtime: Handle,
    started: Instant,
    attached: watch::Sender<Option<Attached>>,
}

/// Who receives, and how each of them is told to end.
struct Slots {
    slots: ReceiveSlots,
    ends: BTreeMap<u64, Arc<Notify>>,
}

impl<F: FileStore> SnapshotLink<F> {
    /// A link that takes snapshots over and sends none until it is attached.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        (config, transport): (&SnapshotConfig, TransportConfig),
        manager: SnapshotManager<F>,
        metrics: Arc<ServerMetrics>,
        logger: Logger,
        runtime: Handle,
    ) -> Arc<Self> {
        let concurrent = config.max_concurrent as usize;
        Arc::new(SnapshotLink {
            cluster,
            transport,
            options: transfer_options(config),
            manager,
            rate: Mutex::new(RateLimit::new(config.rate_limit.0)),
            slots: Mutex::new(Slots {
                slots: ReceiveSlots::new(concurrent),
                ends: BTreeMap::new(),
            }),
            permits: Semaphore::new(concurrent),
            places: Arc::new(Semaphore::new(config.max_waiting as usize)),
            sends: Mutex::default(),
            counts: Arc::default(),
            metrics,
            logger,
            runtime,
            started: Instant::now(),
            attached: watch::Sender::new(None),
        })
    }

    /// The clock of senders and receivers.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the clock shows `time`.
    fn instant(&self, time: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.started + time)
    }

    /// Waits until the store runs.
    async fn attached(&self) -> Option<Attached> {
        let mut attached = self.attached.subscribe();
        let there = attached.wait_for(Option::is_some).await.ok()?;
        there.clone()
    }

    /// Ends the process: what is on disk is unknown, or an invariant is broken.
    fn stop_process(&self, why: &str) -> ! {
        crit!(self.logger, "the store cannot go on, the process ends"; "reason" => why);
        std::thread::sleep(LAST_LINE_WAIT);
        std::process::abort()
    }

    /// Ends the process (crash rule 9) if an error is fatal.
    fn check_fatal(&self, error: &SnapshotError) {
        if error.is_fatal() {
            self.stop_process(&error.to_string());
        }
    }

    /// Does a piece of work with files away from the network's threads.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => {
                self.stop_process(&format!("a snapshot's stream panicked: {error}"))
            }
            // The runtime is being shut down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl<F: FileStore> SnapshotStreams for SnapshotLink<F> {
    fn send(self: Arc<Self>, to_store_id: u64, message: RaftMessage) {
        let place = self.places.clone().try_acquire_owned().ok();
        let turn = send::Turn::take(self.clone(), &message);
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            send::run(&turn, to_store_id, message, place.is_some()).await;
            drop(place);
        });
    }

    fn receive(
        self: Arc<Self>,
        from_store_id: u64,
        frames: SnapshotFrames,
        replies: ReplySender,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { receive::run(&self, from_store_id, frames, replies).await })
    }

    fn attach(&self, attached: Attached) {
        let before = self.attached.send_replace(Some(attached));
        assert!(
            before.is_none(),
            "the snapshots of store {} were attached twice",
            self.cluster.store_id
        );
    }

    fn of_region(&self, region_id: u64) -> RegionSnapshots {
        self.counts.of_region(region_id)
    }
}

/// Everything that a store sends to others.
pub(crate) struct NodeTransport {
    pub(crate) raft: Arc<RaftTransport>,
    pub(crate) snapshots: Arc<dyn SnapshotStreams>,
}

impl Transport for NodeTransport {
    fn send(&self, to_store_id: u64, messages: Vec<RaftMessage>) {
        self.raft.send(to_store_id, messages);
    }

    fn send_snapshot(&self, to_store_id: u64, message: RaftMessage) {
        self.snapshots.clone().send(to_store_id, message);
    }
}

/// Numbers what is under way.
#[derive(Default)]
struct Numbers(AtomicU64);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
