//! Threads, channels and clocks around the stepped core.
//!
//! Tasks     One per raft shard, on the network's runtime (see `shard_task`).
//! Threads   One log writer per raft shard, one per apply shard, and a few readers. A request
//!           goes caller, shard, log writer, shard, reply: small batches are applied by the
//!           shard's task. A read under the lease stays on the caller's thread if it is small.
//! Queues    From outside into a shard: bounded by count, refused or dropped beyond it.
//!           Between threads: bounded by the shards' credits, so sending never blocks.
//! Time      Each event is stamped after it was received: a promise that hangs on its time
//!           must not begin before the message that it answers was sent.
//! Failure   A failed write, a broken invariant or a panic in any thread or task ends the process
//!           with one line (crash rule 9).
//!
//! Elsewhere: all decisions. Nothing here looks into an event or an action.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod applier;
mod clock;
mod inbox;
mod log_gc;
mod log_writer;
mod mailbox;
mod region_jobs;
mod running;
mod shard_task;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use slog::Logger;
use strata_proto::stratapb::SnapshotMeta;
use strata_proto::{metapb, pdpb, raft_serverpb::RaftMessage};
use strata_storage::Engines;
use strata_storage::snapshot::{SnapshotEngine, SnapshotError, SnapshotManager};
use tokio::runtime::Handle;

use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::request::{Reply, ReplyFn, Request, RequestToken};
use crate::store_fsm::LoadError;
use crate::system::SystemStateMachine;
use running::Running;

/// Takes raft messages to other stores.
pub trait Transport: Send + Sync + 'static {
    /// Hands messages over for a store, in order. Never blocks; drops them, with a
    /// counter, when its bounded queue is full. Raft repeats what was lost.
    fn send(&self, to_store_id: u64, messages: Vec<RaftMessage>);

    /// Takes a snapshot over for a store: `message` holds its description, the files are
    /// those of the snapshot manager. Never blocks. Always answered, once, by
    /// [`StoreHandle::report_snapshot`]: also when the queue is full, or the files are
    /// gone.
    fn send_snapshot(&self, to_store_id: u64, message: RaftMessage);
}

/// Takes the reports of region leaders.
pub trait HeartbeatSink: Send + Sync + 'static {
    /// Hands reports over: at once when leader or region changed, else every
    /// `heartbeat_interval`. Never blocks.
    fn report(&self, reports: Vec<pdpb::RegionHeartbeatRequest>);
}

/// What `GET /debug/regions/ID` shows of a region's peer on this store.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionState {
    /// The region as this peer has applied it.
    pub region: metapb::Region,
    /// Leader that this peer knows.
    pub leader: Option<metapb::Peer>,
    /// Term of this peer.
    pub term: u64,
    /// First index of the log.
    pub first_index: u64,
    /// Index of the last entry that compaction removed.
    pub truncated_index: u64,
    /// Term of that entry.
    pub truncated_term: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Last committed index that this peer knows.
    pub committed_index: u64,
    /// Last index of the log.
    pub last_index: u64,
    /// The region's clock as applied, in milliseconds since 1970.
    pub region_clock_ms: u64,
}

/// One region of this store, in short.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionSummary {
    /// The region as this peer has applied it.
    pub region: metapb::Region,
    /// Leader that this peer knows.
    pub leader: Option<metapb::Peer>,
    /// Term of this peer.
    pub term: u64,
    /// Last applied index.
    pub applied_index: u64,
}

/// A store could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error("{0}")]
    Options(String),
    /// State on disk cannot be read or breaks a rule; the process must not go on.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What a handle calls; erases the type of the engines.
trait StoreApi: Send + Sync {
    fn execute(&self, request: Request, reply: Reply) -> RequestToken;
    fn now(&self) -> Duration;
    fn deliver(&self, messages: Vec<RaftMessage>);
    fn report_unreachable(&self, store_id: u64);
    fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool);
    fn check_snapshot(
        &self,
        meta: &SnapshotMeta,
        to_peer: &metapb::Peer,
    ) -> Result<(), SnapshotError>;
    fn leader_of(&self, region_id: u64) -> Option<metapb::Peer>;
    fn region_state(&self, region_id: u64) -> Option<RegionState>;
    fn regions(&self) -> Vec<RegionSummary>;
    fn report_all_regions(&self);
    fn set_admitted(&self, admitted: bool);
    fn set_disk_nearly_full(&self, full: bool);
    fn metrics(&self) -> Arc<StoreMetrics>;
    fn shutdown(&self);
}

/// The world around a store.
pub struct Surroundings {
    /// Takes raft messages to other stores.
    pub transport: Arc<dyn Transport>,
    /// Takes the reports of region leaders.
    pub heartbeats: Arc<dyn HeartbeatSink>,
    /// The state machine behind region 1.
    pub system: Arc<dyn SystemStateMachine>,
    /// Takes what is worth a line.
    pub logger: Logger,
    /// The network's runtime: the raft shards are tasks on it, and need its timers. It must
    /// outlive the store, and [`Store::shutdown`] must not be called on its last free thread,
    /// as it waits for the shards; nor may [`Store::start`], which does so if it fails.
    pub runtime: Handle,
}

/// A running store.
pub struct Store {
    handle: StoreHandle,
}

/// Access to a running store, cheap to clone.
#[derive(Clone)]
pub struct StoreHandle {
    api: Arc<dyn StoreApi>,
}

impl Store {
    /// Loads all regions and starts the tasks and threads. `options.seed` must differ from start to
    /// start.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub fn start<E: SnapshotEngine>(
        store_id: u64,
        options: StoreOptions,
        engines: Engines<E>,
        snapshots: SnapshotManager<E::Files>,
        surroundings: Surroundings,
    ) -> Result<Store, StartError> {
        options.check().map_err(StartError::Options)?;
        let running = Running::start(store_id, options, engines, snapshots, surroundings)?;
        Ok(Store {
            handle: StoreHandle {
                api: Arc::new(running),
            },
        })
    }

    /// Access for those who use the store.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Stops all tasks and threads in order, answers what waits with
    /// [`Error::Stopping`](crate::Error::Stopping) and makes
    /// both engines durable.
    pub fn shutdown(self) {
        self.handle.api.shutdown();
    }
}

impl StoreHandle {
    /// Executes a request. `reply` is called exactly once, on any thread, perhaps on this
    /// one before the call returns; it must not block. Dropping the token gives the
    /// request up if it is not yet proposed.
    pub fn execute(&self, request: Request, reply: ReplyFn) -> RequestToken {
        self.api.execute(request, Reply::new(reply))
    }

    /// The store's monotonic clock (CLOCK_BOOTTIME), by which deadlines are given.
    pub fn now(&self) -> Duration {
        self.api.now()
    }

    /// Takes raft messages from the network. Never blocks; what finds no room is dropped.
    pub fn deliver(&self, messages: Vec<RaftMessage>) {
        self.api.deliver(messages);
    }

    /// Tells all peers that messages to a store did not arrive.
    pub fn report_unreachable(&self, store_id: u64) {
        self.api.report_unreachable(store_id);
    }

    /// Tells a region how the sending of a snapshot has ended. Must follow every
    /// [`Transport::send_snapshot`].
    pub fn report_snapshot(&self, region_id: u64, to_peer_id: u64, ok: bool) {
        self.api.report_snapshot(region_id, to_peer_id, ok);
    }

    /// Takes the raft message of a snapshot whose files are complete here. Never blocks;
    /// dropped where there is no room, and sent again by its leader then.
    pub fn deliver_snapshot(&self, message: RaftMessage) {
        self.api.deliver(vec![message]);
    }

    /// Whether a snapshot that is offered for a peer of this store can be of use, before
    /// any of it is sent. What is found fit may be refused later all the same.
    ///
    /// # Errors
    /// `NoSuchRegion` if the peer is neither here nor being created; `Stale`, `StaleEpoch`,
    /// `Overlapping`; `BadMeta`.
    pub fn check_snapshot(
        &self,
        meta: &SnapshotMeta,
        to_peer: &metapb::Peer,
    ) -> Result<(), SnapshotError> {
        self.api.check_snapshot(meta, to_peer)
    }

    /// The leader of a region as this store's own peer knows it.
    pub fn leader_of(&self, region_id: u64) -> Option<metapb::Peer> {
        self.api.leader_of(region_id)
    }

    /// State of this store's peer of a region; `None`: there is none.
    pub fn region_state(&self, region_id: u64) -> Option<RegionState> {
        self.api.region_state(region_id)
    }

    /// All regions of this store in the order of their ids, region 1 among them.
    pub fn regions(&self) -> Vec<RegionSummary> {
        self.api.regions()
    }

    /// Reports every region that is led here at once, in one batch per shard.
    pub fn report_all_regions(&self) {
        self.api.report_all_regions();
    }

    /// Admits the store to its cluster, or bars it: until admitted it drops all raft
    /// messages both ways and its peers do not tick.
    pub fn set_admitted(&self, admitted: bool) {
        self.api.set_admitted(admitted);
    }

    /// Tells the store that its disk is nearly full, or has room again. While it is, writes
    /// that this store would propose are refused; deletes and reads go on.
    pub fn set_disk_nearly_full(&self, full: bool) {
        self.api.set_disk_nearly_full(full);
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        self.api.metrics()
    }
}
