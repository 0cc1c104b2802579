//! The log of one replica as storage keeps it, up to the batch that an engine would write.
//!
//! What the raft engine does with such a batch is a path of its own (`raft_log`).

use std::hint::black_box;

use anyhow::{Context, ensure};
use bytes::Bytes;
use strata_proto::eraftpb::{Entry, HardState};
use strata_raft::Storage;
use strata_storage::bootstrap::{ClusterSpec, peer_id, write_bootstrap};
use strata_storage::{MemEngine, PeerStorage, PeerStorageOptions, WriteBatch};

use crate::paths::HotPath;

/// Entries of an append, and of a read.
const ENTRIES: u64 = 16;
/// Bytes of an entry's data.
const ENTRY_BYTES: usize = 256;
/// Appends before the first read; all of their entries fit into the cache.
const APPENDS_TO_READ: u64 = 64;
/// Term of all entries.
const TERM: u64 = 7;

/// The log of a region's only replica.
struct PeerLog {
    storage: PeerStorage<MemEngine>,
    data: Bytes,
    /// Index of the first entry that is appended here.
    first: u64,
    /// Number of the last Ready.
    number: u64,
}

impl PeerLog {
    fn new() -> anyhow::Result<Self> {
        let spec = ClusterSpec::new(&[1], "hot-paths", 6, 1)?;
        let engines = MemEngine::new_pair();
        let regions = spec.layout();
        write_bootstrap(&engines, &spec.ident(1, 1), &regions)?;
        let region_id = regions[1].id;
        let options = PeerStorageOptions::default();
        let storage = PeerStorage::load(&engines, region_id, peer_id(region_id, 0), &options)?
            .context("the layout has no such region")?;
        Ok(Self {
            first: storage.last().index + 1,
            storage,
            data: Bytes::from(vec![b'd'; ENTRY_BYTES]),
            number: 0,
        })
    }

    /// One Ready: entries and the commit index of those before them, then the report that
    /// they are synced. Returns what would be written.
    fn append(&mut self) -> WriteBatch {
        let last = self.storage.last().index;
        let entries: Vec<Entry> = (last + 1..=last + ENTRIES)
            .map(|index| Entry {
                term: TERM,
                index,
                data: self.data.clone(),
                ..Entry::default()
            })
            .collect();
        let hard_state = HardState {
            term: TERM,
            vote: self.storage.peer_id(),
            commit: last,
        };
        let mut batch = WriteBatch::new();
        self.number += 1;
        self.storage
            .append(self.number, &entries, Some(&hard_state), &mut batch);
        self.storage.on_persisted(self.number);
        batch
    }

    fn appended(&self) -> u64 {
        (self.storage.last().index + 1 - self.first) / ENTRIES
    }
}

/// Appends entries.
pub struct LogAppend {
    log: PeerLog,
    changes: usize,
}

impl LogAppend {
    /// A log as a new cluster has it.
    ///
    /// # Errors
    /// The replica does not open.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            log: PeerLog::new()?,
            changes: 0,
        })
    }
}

impl HotPath for LogAppend {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            self.changes += self.log.append().len();
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        let appended = self.log.appended();
        ensure!(appended == operations, "{appended} appends of {operations}");
        // Each entry, and the state that names the last one.
        let wanted = operations * (ENTRIES + 1);
        let changes = self.changes as u64;
        ensure!(changes == wanted, "{changes} changes of {wanted}");
        Ok(())
    }
}

/// Reads entries.
pub struct LogRead {
    log: PeerLog,
    reads: u64,
    entries: u64,
}

impl LogRead {
    /// A log whose entries are in the cache.
    ///
    /// # Errors
    /// The replica does not open, or its cache lacks some entry.
    pub fn new() -> anyhow::Result<Self> {
        let mut log = PeerLog::new()?;
        for _ in 0..APPENDS_TO_READ {
            drop(log.append());
        }
        let cached = log.storage.cached_first_index();
        ensure!(cached == Some(log.first), "the cache begins at {cached:?}");
        Ok(Self {
            log,
            reads: 0,
            entries: 0,
        })
    }
}

impl HotPath for LogRead {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            let low = self.log.first + self.reads % APPENDS_TO_READ * ENTRIES;
            let read = self.log.storage.entries(low, low + ENTRIES, u64::MAX)?;
            self.entries += black_box(read).len() as u64;
            self.reads += 1;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        let wanted = operations * ENTRIES;
        ensure!(
            self.entries == wanted,
            "{} entries of {wanted}",
            self.entries
        );
        Ok(())
    }
}
