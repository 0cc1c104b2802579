//! Many Raft regions on one store: routing, peers, apply, reads.
//!
//! How work flows
//!
//! Write   [`Gate`] checks, the region's [`Shard`] proposes (small writes waiting for
//!         one region share an entry), the log writer syncs, a quorum answers, an
//!         apply shard writes one kv batch and answers.
//! Read    Under the leader's lease on an engine snapshot outside the shard; else the
//!         shard asks for a read index and the read is served when it is applied.
//! Start   The [`StoreFsm`] loads every region, checks it and hands its peer to the shard.
//!
//! What always holds
//! * All logic is stepped: an event with a time value goes in, actions come out. Only the
//!   runtime module knows threads, clocks and channels.
//! * A region belongs to one shard, which owns its peer outright.
//! * An entry is applied only when it is committed and synced in this store's raft engine.
//! * Every request is answered exactly once.

mod addresses;
mod apply;
mod apply_admin;
mod apply_command;
mod apply_extent;
mod apply_task;
mod change_peers;
mod check;
mod claim;
mod compact_log;
mod core;
mod create;
mod destroy;
mod directory;
mod emit;
mod error;
mod expiry;
mod gate;
mod heartbeat;
mod histogram;
mod job;
mod log_gc_worker;
mod metrics;
mod options;
mod outbox;
mod overlay;
mod peer;
mod propose;
mod read_index;
mod region_worker;
mod replicate;
mod request;
mod rest;
mod runtime;
mod serve;
mod session_table;
mod shard;
mod snapshot_install;
mod snapshot_send;
mod snapshot_transfer;
mod stale_peer;
mod stamp;
mod store_fsm;
mod store_request;
mod system;
mod task;
mod time;
mod transfer;
mod write_queue;
mod write_stages;
mod write_window;

pub use self::core::{ApplyWork, DataWrite, StoreCore, StoreEffect, StoreEvent, Workers};
pub use apply::{
    Applied, ApplyFault, ApplyOutput, ApplyShard, ApplyTask, EntriesTask, Proposal, RegionChange,
    Waiting,
};
pub use directory::{
    Directory, DirectoryCell, DirectoryEntry, PeerNumbers, PeerView, SYSTEM_REGION_ID, find_peer,
    find_peer_on,
};
pub use error::{Error, InvalidRequest, PeerChangeFault};
pub use expiry::RegionClocks;
pub use gate::{Gate, GateAction, ReadOutcome, serve_task};
pub use histogram::{Histogram, HistogramSnapshot};
pub use job::{JobDone, RegionJob};
pub use log_gc_worker::LogGcWorker;
pub use metrics::{Counter, StoreMetrics};
pub use options::StoreOptions;
pub use peer::Peer;
pub use region_worker::{RegionWorker, WorkerFault};
pub use request::{
    Answer, Cancellation, CommandOutcome, PeerChange, PeerChangeKind, ReadCommand, Reply, ReplyFn,
    Request, RequestBody, RequestHeader, RequestToken, RequestWatch,
};
pub use runtime::{
    HeartbeatSink, RegionState, RegionSummary, StartError, Store, StoreHandle, Surroundings,
    Transport,
};
pub use serve::{ReadFault, Served, serve};
pub use shard::{LogBatch, Shard, ShardAction, ShardEvent, apply_shard_of, shard_of};
pub use snapshot_transfer::{
    NextFrame, RateLimit, ReceiveSlots, Received, SendFault, SendRetry, SlotRefused,
    SnapshotReceiver, SnapshotSender, TransferOptions, WINDOW_CHUNKS, refusal,
};
pub use store_fsm::{LoadError, LoadedStore, StoreFsm};
pub use store_request::{StoreAnswer, StoreRequest};
pub use system::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};
pub use task::{Expiry, PendingRequest, ReadBody, ReadTask};
pub use time::{DueTicks, Now, Ticker};
pub use write_stages::{WriteStages, WriteTimes};
