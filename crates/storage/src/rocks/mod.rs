//! The engine on disk: RocksDB.
//!
//! [`options`] says how the two engines are tuned and refuses what would lose data, [`opening`]
//! looks at a folder before RocksDB does, [`engine`] opens, writes and reads, [`snapshot`] reads
//! an earlier moment, [`filter`] drops expired raw values in compaction, [`table`] writes and
//! takes in the sorted tables of snapshots, [`table_thread`] has each written in a thread of its own,
//! [`reader`] opens without writing. RocksDB has threads for flushes and compaction; nothing else
//! here has.

mod engine;
mod filter;
mod opening;
mod options;
mod reader;
mod snapshot;
mod table;
mod table_thread;

pub(crate) use engine::OpenWith;
pub use engine::RocksEngine;
pub use opening::OpenError;
pub(crate) use opening::check_raft_folder;
pub use options::{EngineOptions, OptionsError};
pub use reader::RocksReader;
pub use snapshot::RocksSnapshot;
pub use table::SnapshotTable;

#[cfg(test)]
mod tests;
