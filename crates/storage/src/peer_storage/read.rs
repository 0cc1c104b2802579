//! What raft reads: entries and terms, from the cache or the raft engine.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use strata_proto::eraftpb::{Entry, Snapshot};
use strata_raft::{RaftState, Storage, StorageError, entry_bytes};

use super::PeerStorage;
use crate::engine::{Cf, Direction, Engine, ReadView};
use crate::error::Error;
use crate::keys;

/// Entries that are looked up at once: a scan costs its whole range, and a follower that is far
/// behind wants only a part of it.
const ENTRIES_AT_ONCE: u64 = 256;

/// Reads entries `[low, high)` from the raft engine, as many as fit into `bytes_max`, at
/// least one; stops at a hole. Returns them and whether the limit was what ended it.
pub(super) fn read_entries(
    raft: &impl ReadView,
    region_id: u64,
    (low, high): (u64, u64),
    bytes_max: u64,
) -> Result<(Vec<Entry>, bool), Error> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0u64;
    let mut full = false;
    let mut corrupt = None;
    let mut from = low;
    while from < high {
        let to = high.min(from.saturating_add(ENTRIES_AT_ONCE));
        let mut visit = |key: &[u8], value: &[u8]| {
            let index = low + entries.len() as u64;
            if keys::parse_raft_log(key) != Some((region_id, index)) {
                return ControlFlow::Break(());
            }
            let Some(entry) = decode_entry(Bytes::copy_from_slice(value), index) else {
                corrupt = Some(index);
                return ControlFlow::Break(());
            };
            bytes = bytes.saturating_add(entry_bytes(&entry));
            if bytes > bytes_max && !entries.is_empty() {
                full = true;
                return ControlFlow::Break(());
            }
            entries.push(entry);
            ControlFlow::Continue(())
        };
        let (start, end) = (
            keys::raft_log(region_id, from),
            keys::raft_log(region_id, to),
        );
        let forward = Direction::Forward;
        raft.scan(Cf::RaftLog, &start, Some(&end), forward, &mut visit)?;
        // Fewer than were asked for: the limit, a hole, or damage.
        if low + (entries.len() as u64) < to {
            break;
        }
        from = to;
    }
    match corrupt {
        Some(index) => Err(Error::CorruptEntry { region_id, index }),
        None => Ok((entries, full)),
    }
}

/// Reads one entry; `None` if it is absent.
pub(super) fn read_entry(
    raft: &impl ReadView,
    region_id: u64,
    index: u64,
) -> Result<Option<Entry>, Error> {
    match raft.get(Cf::RaftLog, &keys::raft_log(region_id, index))? {
        None => Ok(None),
        Some(stored) => decode_entry(stored, index)
            .map(Some)
            .ok_or(Error::CorruptEntry { region_id, index }),
    }
}

fn decode_entry(stored: Bytes, index: u64) -> Option<Entry> {
    Entry::decode(stored)
        .ok()
        .filter(|entry| entry.index == index)
}

fn other(error: Error) -> StorageError {
    StorageError::Other(error.to_string())
}

impl<E: Engine> PeerStorage<E> {
    fn missing(&self, index: u64) -> StorageError {
        StorageError::Other(format!(
            "region {}: log entry {index} is missing",
            self.region.id
        ))
    }
}

impl<E: Engine> Storage for PeerStorage<E> {
    fn initial_state(&self) -> Result<RaftState, StorageError> {
        Ok(RaftState {
            hard_state: self.hard_state,
            conf_state: self.conf_state(),
        })
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if low <= self.apply_state.truncated_index {
            return Err(StorageError::Compacted);
        }
        if high > self.last_index + 1 {
            return Err(StorageError::Unavailable);
        }
        if low >= high {
            return Ok(Vec::new());
        }
        // Entries that are not on disk yet are in the cache, so disk is read only before.
        let cached_from = self.cache.first_index().unwrap_or(u64::MAX).min(high);
        let mut entries = Vec::new();
        if low < cached_from {
            let range = (low, cached_from);
            let (found, full) = read_entries(&self.engines.raft, self.region.id, range, max_bytes)
                .map_err(other)?;
            let next = low + found.len() as u64;
            if full {
                return Ok(found);
            }
            if next < cached_from {
                return Err(self.missing(next));
            }
            entries = found;
        }
        let mut bytes: u64 = entries.iter().map(entry_bytes).sum();
        for entry in self.cache.range(low.max(cached_from), high) {
            bytes = bytes.saturating_add(entry_bytes(entry));
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        let truncated = self.truncated();
        if index < truncated.index {
            return Err(StorageError::Compacted);
        }
        if index > self.last_index {
            return Err(StorageError::Unavailable);
        }
        if index == truncated.index {
            return Ok(truncated.term);
        }
        if index == self.last_index {
            return Ok(self.last_term);
        }
        if let Some(term) = self.cache.term(index) {
            return Ok(term);
        }
        match read_entry(&self.engines.raft, self.region.id, index).map_err(other)? {
            Some(entry) => Ok(entry.term),
            None => Err(self.missing(index)),
        }
    }

    fn first_index(&self) -> Result<u64, StorageError> {
        Ok(self.apply_state.truncated_index + 1)
    }

    fn last_index(&self) -> Result<u64, StorageError> {
        Ok(self.last_index)
    }

    /// The snapshot that was made, or a note that one is wanted.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot, StorageError> {
        self.snapshot.borrow_mut().offer(request_index, to)
    }
}
