//! A group of three replicas in one thread and in memory, for two crates, and the log below.
//!
//! Group     [`Group`] drives three [`Node`]s and hands their messages over as they are.
//! Replicas  [`Ours`] is this project's crate, [`Published`] the published one.
//! Log       [`KeptLog`] is the same code under both.
//!
//! The binary `raft-bench` measures time and allocations with these, `hot-paths`
//! instructions.

mod group;
mod kept_log;
mod ours;
mod published;

pub use group::{Applied, Group, Limits, Mix, Node, PAYLOAD_BYTES, PEERS, STORE_LIMITS};
pub use kept_log::{KeptLog, LogEntry, Missing};
pub use ours::Ours;
pub use published::Published;
