//! Two engines, the key layout, and the state of each replica in step.
//!
//! Engines    [`Engine`] and [`ReadView`] with the disk ([`DiskEngine`]: a [`RaftLogEngine`] and a
//!            [`RocksEngine`]) and memory ([`MemEngine`]) behind them; [`WriteBatch`] is what goes
//!            in.
//! Layout     [`keys`], [`memcomparable`], [`raw_value`], [`record`]: every byte on disk.
//! Replica    [`PeerStorage`] keeps log, hard state, apply state and region state of one
//!            replica in step, and is what `strata-raft` reads.
//! Snapshots  [`snapshot`] makes, keeps, receives and installs the files of a region.
//! Checksum   [`region_checksum`] sums up what a region holds.
//! Folder     [`DataFolder`] opens a node's folder, or says in one line why not;
//!            [`FolderReader`] looks at one; [`bootstrap`] lays out a new cluster.
//!
//! Invariants that callers rely on
//! * What a crash leaves of an engine is a prefix of its batches; a synced write makes
//!   all before it durable.
//! * A damaged record, log or identity is a typed error, never a wrong answer.
//! * Nothing here reads a clock, draws randomness or starts a thread, except RocksDB
//!   itself behind `rocks`, and the folder of the raft log, which marks its files.

mod batch;
pub mod bootstrap;
mod disk;
mod engine;
mod entry_cache;
mod error;
mod expiry;
mod folder;
pub mod keys;
mod mem;
pub mod memcomparable;
mod peer_storage;
mod raft_log;
pub mod raw_value;
pub mod record;
mod region_checksum;
mod region_records;
mod rocks;
pub mod snapshot;
mod wal;

#[cfg(test)]
mod fuzz_tests;

pub use batch::{Change, WriteBatch};
pub use disk::{DiskEngine, DiskReader, DiskSnapshot};
pub use engine::{
    Cf, Direction, Durability, Engine, EngineError, EngineKind, Engines, ReadView, Visitor,
};
pub use error::{Error, IdentFault, RecordFault, StartFault};
pub use expiry::{ExpiryClocks, ExpiryLookup, SnapshotGuard, may_drop};
pub use folder::{Claim, DataFolder, FolderError, FolderReader};
pub use mem::{Fault, MemDurable, MemEngine, MemSnapshot};
pub use peer_storage::{PeerStorage, PeerStorageOptions};
pub use raft_log::{LogDamage, LogFault, RaftLogEngine, RaftLogSnapshot};
pub use record::RecordKind;
pub use region_checksum::{RegionChecksum, region_checksum};
pub use region_records::{
    conf_state_of, read_all_region_states, read_apply_state, read_durable_apply_state,
    read_raft_state, read_region_state, write_apply_state, write_raft_state, write_region_state,
};
pub use rocks::{EngineOptions, OpenError, OptionsError, RocksEngine, RocksReader, RocksSnapshot};
pub use wal::{WalDamage, WalFault};
