//! The consensus of one Raft group as a pure state machine.
//!
//! A [`RawNode`] is one replica. Its driver puts in ticks, messages, proposals and the time,
//! and takes out [`Ready`]s: what to write, what to send, what to apply. There is no clock,
//! no thread, no disk and no socket in this crate, and randomness comes from a seed in
//! [`Config`]; the same inputs always give the same outputs.
//!
//! ```text
//! step, tick, propose        replica: election, replication, heartbeat, read,
//!        |                            snapshot, transfer, membership
//!        v                   log: storage + unstable end, writes under way
//!   Ready: write, send,      tracker: membership, votes, progress of each member
//!          apply             quorum: what majorities, single or joint, agree on
//! ```
//!
//! What always holds (Raft paper, figure 3): at most one leader a term; a leader never
//! changes its own entries; logs that share an entry share all before it; what is committed
//! is in the log of every later leader; replicas apply the same entries in the same order.
//! Beyond the paper: an entry is applied only where it is committed and synced; a lease runs
//! from the sending of the heartbeats that a quorum has answered; votes are withheld by time.
//!
//! Paper: Ongaro, Ousterhout: "In Search of an Understandable Consensus Algorithm (Extended
//! Version)"; thesis: Ongaro: "Consensus: Bridging Theory and Practice". Sections in comments
//! without a name are the paper's.

/// True if a fault of [`planted`](crate::planted) is planted here; constant without the
/// feature `planted-faults`.
#[cfg(feature = "planted-faults")]
#[macro_export]
macro_rules! planted {
    ($fault:ident) => {
        $crate::planted::is_planted($crate::planted::Fault::$fault)
    };
}

/// False: this build has no planted faults.
#[cfg(not(feature = "planted-faults"))]
#[macro_export]
macro_rules! planted {
    ($fault:ident) => {
        false
    };
}

mod conf_change;
mod config;
mod error;
mod log;
mod mem_storage;
#[cfg(feature = "planted-faults")]
pub mod planted;
mod progress;
mod quorum;
mod raw_node;
mod read_queue;
mod ready;
mod replica;
mod rounds;
mod status;
mod storage;
mod tracker;
mod types;

pub use conf_change::{Membership, conf_change_of, conf_change_to_v2};
pub use config::Config;
pub use error::{ConfChangeError, Error};
pub use mem_storage::MemStorage;
pub use progress::{Inflights, Progress, ProgressState};
pub use quorum::{Joint, Majority, VoteResult};
pub use raw_node::RawNode;
pub use ready::{LightReady, Ready};
pub use replica::CAMPAIGN_TRANSFER;
pub use status::{Counts, Status};
pub use storage::{RaftState, Storage, StorageError};
pub use types::{
    EntryId, Index, NO_PEER, PeerId, ReadState, Role, SnapshotStatus, SoftState, Term,
    count_within, entry_bytes, limit_entries,
};
