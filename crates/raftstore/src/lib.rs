//! Many Raft regions on one store: routing, peers, apply, reads.
//!
//! How work flows
//!
//! Write   [`Gate`](gate) checks, the region's [`Shard`] proposes (small writes waiting for
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

mod error;
mod metrics;
mod options;
mod request;
mod runtime;
mod system;
mod time;

pub use error::{Error, InvalidRequest};
pub use metrics::{Counter, StoreMetrics};
pub use options::StoreOptions;
pub use request::{
    Answer, Cancellation, CommandOutcome, ReadCommand, Reply, Request, RequestBody, RequestHeader,
    RequestToken,
};
pub use runtime::{
    HeartbeatSink, RegionState, RegionSummary, StartError, Store, StoreHandle, Transport,
};
pub use system::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};
pub use time::Now;
