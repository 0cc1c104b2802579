//! Snapshots of regions as files: made, kept, sent in chunks, received and installed.
//!
//! ```text
//! leader                                        follower
//! engine snapshot                               
//!   Generator ---- tables, id ----> SnapshotManager
//!   SnapshotRef::read_chunk ---- chunks ------> Receiver (parts, progress, whole check)
//!                                               begin_install (kv batch, raft batch)
//!                                               Installer (verify, clear, ingest, Normal)
//! ```
//! A snapshot has one file for each data column family that has keys, one for the
//! sessions and, of the system region, one for its records ([`Content`]). Its description
//! ([`SnapshotMeta`](strata_proto::stratapb::SnapshotMeta)) lists them with length and
//! checksum; its id is a hash over all of it ([`snapshot_id`]).
//!
//! Two forms exist: RocksDB's sorted tables in [`DiskFiles`], and the in-memory engine's
//! own in [`MemFiles`], which loses at a crash what was not synced. All logic is generic
//! over [`SnapshotEngine`] and [`FileStore`], so the simulator runs what a node runs.
//!
//! Invariants
//! * Index, term, membership, range and clock of a snapshot come from the same engine
//!   snapshot as its data.
//! * Memory is bounded by chunks: no step holds more than [`CHUNK_BYTES`] of a file.
//! * What arrives is checked before it is kept, and what is kept before it is installed;
//!   until then nothing of the replica is changed.
//!
//! Elsewhere: who makes, sends and installs when (raftstore), the stream (server).

mod clear;
mod content;
mod direct;
mod disk_files;
mod error;
mod files;
#[cfg(feature = "planted-faults")]
mod foreign_parts;
mod generate;
mod install;
mod manager;
mod mem_files;
mod mem_table;
mod meta;
mod name;
mod receive;
mod reference;
mod scan;
mod table;

pub use clear::clear_region;
pub use content::Content;
pub use disk_files::DiskFiles;
pub use error::{MetaFault, SnapshotError};
pub use files::{FileStamp, FileStore};
pub use generate::{Generated, Generator};
pub use install::{
    BeginInstall, Installed, Installer, RecoverInstall, begin_install, check_install,
    finish_install, recover_install,
};
pub use manager::{SnapshotInfo, SnapshotManager};
pub use mem_files::{FileFault, MemFiles};
pub use mem_table::MemTableWriter;
pub use meta::{check as check_meta, from_raft, snapshot_id, to_raft, total_bytes};
pub use name::{Origin, SnapshotKey};
pub use receive::{Offered, Receiver, SYNC_BYTES};
pub use reference::{CHUNK_BYTES, SnapshotRef};
pub use table::{SnapshotEngine, TableWriter};

pub(crate) use name::INGEST_ENDING;

pub use crate::rocks::SnapshotTable;

#[cfg(test)]
mod tests;
