//! The consensus of one Raft group as a pure state machine.

mod conf_change;
mod config;
mod error;
mod mem_storage;
mod progress;
mod raw_node;
mod ready;
mod status;
mod storage;
mod types;

pub use conf_change::{conf_change_of, conf_change_to_v2};
pub use config::Config;
pub use error::{ConfChangeError, Error};
pub use mem_storage::MemStorage;
pub use progress::{Inflights, Progress, ProgressState};
pub use raw_node::RawNode;
pub use ready::{LightReady, Ready};
pub use status::Status;
pub use storage::{RaftState, Storage, StorageError};
pub use types::{
    EntryId, Index, NO_PEER, PeerId, ReadState, Role, SnapshotStatus, SoftState, Term,
    count_within, entry_bytes, limit_entries,
};
