//! The engine on disk: RocksDB.
//!
//! [`options`] says how the two engines are tuned and refuses what would lose data,
//! [`engine`] opens, writes and reads, [`filter`] drops expired raw values in compaction,
//! [`table`] writes and takes in the sorted tables of snapshots, [`reader`] opens without
//! writing.
//! RocksDB has threads of its own for flushes and compaction; nothing else here has.

mod engine;
mod filter;
mod options;
mod reader;
mod table;

pub(crate) use engine::OpenWith;
pub use engine::{OpenError, RocksEngine, RocksSnapshot};
pub use options::{EngineOptions, OptionsError};
pub use reader::RocksReader;
pub use table::SstWriter;

#[cfg(test)]
mod tests;
