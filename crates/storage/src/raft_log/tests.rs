//! The raft engine's log against a plain map: its answers, crashes, damage, threads and bounds.
//!
//! All of it works on a folder in memory ([`mem_folder`]) but for a few tests of the disk's own.
//! Random tests are played from seeds, and name the seed that failed.

mod bounds;
mod crash;
mod damage;
mod disk;
mod failure;
mod index;
mod maker;
mod mem_folder;
mod model;
mod threads;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::log::Log;
use super::recovery::{LogFault, RecoveryError};
use crate::batch::{Change, WriteBatch};
use crate::engine::{Cf, Direction, Durability, EngineError};
use crate::keys;
use mem_folder::MemFolder;

/// Bytes of a file, so few that files change all the time.
const FILE_BYTES: u64 = 16 << 10;

/// What the log should hold.
type Content = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(folder: &MemFolder) -> Log<MemFolder> {
    open_with(folder, FILE_BYTES)
}

fn open_with(folder: &MemFolder, file_bytes: u64) -> Log<MemFolder> {
    try_open(folder, file_bytes).unwrap_or_else(|error| panic!("the log is refused: {error}"))
}

fn try_open(folder: &MemFolder, file_bytes: u64) -> Result<Log<MemFolder>, RecoveryError> {
    Log::open(folder.clone(), file_bytes, true)
}

/// The file and the fault for which the log is refused.
fn refusal(folder: &MemFolder) -> (u32, LogFault) {
    match try_open(folder, FILE_BYTES) {
        Ok(_) => panic!("the log is damaged and was opened"),
        Err(RecoveryError::System(error)) => panic!("no damage is named: {error}"),
        Err(RecoveryError::Damage(damage)) => {
            let number = damage.file.file_stem().unwrap().to_str().unwrap();
            (number.parse().unwrap(), damage.fault)
        }
    }
}

/// Makes a batch's changes to a plain map.
fn change(content: &mut Content, batch: &WriteBatch) {
    for change in batch.changes() {
        match change {
            Change::Put { key, value, .. } => {
                content.insert(key.to_vec(), value.to_vec());
            }
            Change::Delete { key, .. } => {
                content.remove(&key[..]);
            }
            Change::DeleteRange { start, end, .. } => {
                content.retain(|key, _| !(start[..] <= key[..] && key[..] < end[..]));
            }
        }
    }
}

/// Everything that the log holds.
fn all(log: &Log<MemFolder>) -> Content {
    let mut found = Content::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        let before = found.insert(key.to_vec(), value.to_vec());
        assert_eq!(before, None, "visited twice: {key:?}");
        ControlFlow::Continue(())
    };
    log.scan(Cf::RaftLog, (b"", None), Direction::Forward, visit)
        .unwrap_or_else(|error| panic!("cannot be read: {error}"));
    found
}

fn put_entry(region_id: u64, index: u64, value: &[u8]) -> WriteBatch {
    put_record(keys::raft_log(region_id, index), value)
}

fn put_record(key: impl Into<Vec<u8>>, value: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(Cf::RaftLog, key.into(), value.to_vec());
    batch
}

/// Removes the entries of a region with indexes `[low, high)`.
fn delete_entries(region_id: u64, low: u64, high: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let (low, high) = (
        keys::raft_log(region_id, low),
        keys::raft_log(region_id, high),
    );
    batch.delete_range(Cf::RaftLog, low, high);
    batch
}

fn write(log: &Log<MemFolder>, batch: &WriteBatch) {
    log.write(batch, Durability::Unsynced).unwrap();
}

fn write_synced(log: &Log<MemFolder>, batch: &WriteBatch) {
    log.write(batch, Durability::Synced).unwrap();
}

fn get(log: &Log<MemFolder>, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
    let found = log.get(Cf::RaftLog, key)?;
    Ok(found.map(|value| value.to_vec()))
}
