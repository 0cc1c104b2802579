//! The interface of an engine: an ordered key-value store with column families.
//!
//! A node has two engines. The *raft* engine holds the logs and hard states of all its
//! regions; everything in it is written synced, because a vote or an append may only be
//! answered when it survives a power cut. The *kv* engine holds data and apply state; it
//! is mostly written unsynced, because what it loses is replayed from the logs.
//!
//! Data passes in as a [`WriteBatch`], which takes effect whole or not at all, and comes
//! out through a [`ReadView`]: the engine itself (the newest state) or a snapshot of it.
//!
//! Invariants
//! * All batches of one engine form one sequence: what a crash leaves is a prefix
//!   of the batches in the order they were written. A synced write therefore makes every
//!   earlier write of the same engine durable too.
//! * After the first failed write or sync an engine refuses every further write; it is
//!   never retried (crash rule 9). Ending the process is the caller's.
//!
//! Elsewhere: the raft engine on disk (`raft_log`), RocksDB (`rocks`), both behind one type
//! (`disk`), the in-memory engine of the simulator (`mem`).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::WriteBatch;
use crate::expiry::ExpiryLookup;

/// One of a node's two engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineKind {
    /// Data and apply state, in the folder `kv`.
    Kv,
    /// Logs and hard states, in the folder `raft`.
    Raft,
}

impl EngineKind {
    /// The column families of this engine, in a fixed order.
    #[must_use]
    pub fn column_families(self) -> &'static [Cf] {
        match self {
            Self::Kv => &[
                Cf::Default,
                Cf::Lock,
                Cf::Write,
                Cf::Raft,
                Cf::Raw,
                Cf::Raw2,
            ],
            Self::Raft => &[Cf::RaftLog],
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kv => "kv",
            Self::Raft => "raft",
        })
    }
}

/// A column family: an ordered map of its own within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cf {
    /// kv engine: state records of regions and of the store, and the system region's data.
    Raft,
    /// kv engine: raw keys of API v1.
    Raw,
    /// kv engine: raw keys of API v2.
    Raw2,
    /// kv engine: values of transactions.
    Default,
    /// kv engine: locks of transactions.
    Lock,
    /// kv engine: commit records of transactions.
    Write,
    /// raft engine: its only column family, logs and hard states.
    RaftLog,
}

impl Cf {
    /// Its name; that under which RocksDB knows those of the kv engine.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Raw => "raw",
            Self::Raw2 => "raw2",
            Self::Default | Self::RaftLog => "default",
            Self::Lock => "lock",
            Self::Write => "write",
        }
    }

    /// The engine that holds it.
    #[must_use]
    pub fn engine(self) -> EngineKind {
        match self {
            Self::RaftLog => EngineKind::Raft,
            Self::Raft | Self::Raw | Self::Raw2 | Self::Default | Self::Lock | Self::Write => {
                EngineKind::Kv
            }
        }
    }

    /// Place in [`EngineKind::column_families`] of its engine.
    pub(crate) fn position(self) -> usize {
        match self {
            Self::Default | Self::RaftLog => 0,
            Self::Lock => 1,
            Self::Write => 2,
            Self::Raft => 3,
            Self::Raw => 4,
            Self::Raw2 => 5,
        }
    }
}

impl fmt::Display for Cf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.engine(), self.name())
    }
}

/// What a write promises when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives the end of the process, but maybe not a power cut.
    Unsynced,
    /// It and all earlier writes of the engine survive a power cut.
    Synced,
}

/// The order in which a scan visits keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending, from the start of the range.
    Forward,
    /// Descending, from the end of the range.
    Backward,
}

/// Why an engine could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A write or a sync failed. The state on disk is unknown: the process must end
    /// (crash rule 9). The engine refuses all further writes.
    #[error("{engine} engine: write failed, the process must end: {detail}")]
    WriteFailed {
        /// The engine.
        engine: EngineKind,
        /// What the layer below reported.
        detail: String,
    },
    /// A write was refused because an earlier one failed; it was not tried.
    #[error("{engine} engine: refused after an earlier failed write: {first}")]
    Poisoned {
        /// The engine.
        engine: EngineKind,
        /// The failure that came first.
        first: String,
    },
    /// A read failed. Nothing was changed; what was read before stays true.
    #[error("{engine} engine: read failed: {detail}")]
    ReadFailed {
        /// The engine.
        engine: EngineKind,
        /// What the layer below reported.
        detail: String,
    },
    /// Data on disk do not match their checksum.
    #[error("{engine} engine: corrupt data: {detail}")]
    Corruption {
        /// The engine.
        engine: EngineKind,
        /// What the layer below reported.
        detail: String,
    },
    /// The engine has no such column family; a mistake of the caller, nothing was done.
    #[error("{engine} engine: has no column family {cf}")]
    ForeignColumnFamily {
        /// The engine.
        engine: EngineKind,
        /// The column family asked for.
        cf: Cf,
    },
    /// The node that this handle belonged to has crashed (simulator only).
    #[error("{engine} engine: handle of a crashed node")]
    Crashed {
        /// The engine.
        engine: EngineKind,
    },
}

impl EngineError {
    /// True if the process must not go on with this engine: the state on disk may
    /// differ from what was promised, or is damaged.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::WriteFailed { .. } | Self::Poisoned { .. } | Self::Corruption { .. } => true,
            Self::ReadFailed { .. } | Self::ForeignColumnFamily { .. } | Self::Crashed { .. } => {
                false
            }
        }
    }
}

/// Called with each key and value of a scan; `Break` ends the scan.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Something that can be read: an engine or a snapshot of one.
pub trait ReadView {
    /// The value under `key`, owned by the caller; `None` if there is none.
    ///
    /// # Errors
    /// `ForeignColumnFamily`, `ReadFailed`, `Corruption`.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the keys in `[start, end)`, or from `start` on where `end` is `None`, in
    /// the order of `direction`. An empty or inverted range visits nothing.
    /// A scan of the engine itself sees one consistent state, as of its begin.
    ///
    /// # Errors
    /// `ForeignColumnFamily`, `ReadFailed`, `Corruption`; keys visited before the error
    /// were true.
    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError>;

    /// A forward scan of a range that is read once, as a whole: what it reads takes no place
    /// in the engine's cache, so that it neither grows nor loses what others read often.
    ///
    /// # Errors
    /// As [`ReadView::scan`].
    fn scan_once(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan(cf, start, end, Direction::Forward, visit)
    }
}

/// An ordered key-value store. Clones are handles of the same store.
pub trait Engine: ReadView + Clone + Send + Sync + 'static {
    /// A consistent state of all column families at one moment. Clones share it; while
    /// one is open it holds disk space (and the compaction filter) back.
    type Snapshot: ReadView + Clone + Send + Sync + 'static;

    /// Which of a node's engines this is.
    fn kind(&self) -> EngineKind;

    /// Writes the whole batch or nothing. An empty batch with [`Durability::Synced`] is
    /// a [`Engine::make_durable`].
    ///
    /// # Errors
    /// `WriteFailed` and `Poisoned` are fatal; `ForeignColumnFamily` leaves everything as
    /// it was.
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError>;

    /// Writes the whole batch unsynced, but only if the engine would not hold the writer up,
    /// because it cannot keep pace, or because another writer waits for the disk; else it writes
    /// nothing. Returns whether it was written. One that begins to wait for the disk at this
    /// very moment may still hold it up.
    ///
    /// # Errors
    /// As [`Engine::write`].
    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool, EngineError> {
        self.write(batch, Durability::Unsynced).map(|()| true)
    }

    /// Returns when everything written so far survives a power cut.
    ///
    /// # Errors
    /// `WriteFailed` and `Poisoned`, both fatal.
    fn make_durable(&self) -> Result<(), EngineError>;

    /// Whether [`Engine::make_durable`] writes a table, as an engine without a log must. The engine
    /// does so by itself once it has gathered enough; who can wait looks what has become durable so
    /// ([`Engine::get_durable`]) rather than have small tables made.
    fn is_durable_by_flush(&self) -> bool {
        false
    }

    /// What is under a key and survives a power cut for certain. It may be older than what is there,
    /// and an engine that cannot tell answers that there is nothing.
    ///
    /// # Errors
    /// As [`ReadView::get`].
    fn get_durable(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let _ = (cf, key);
        Ok(None)
    }

    /// Bytes of what the engine holds, about, where it counts them; else 0.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Gives back to the disk a part of what is held for nobody, as far as the engine leaves that to
    /// those who write, and makes durable what it wrote for it. Writers go on beside it. Returns
    /// whether something may be left; who asks again gives them time in between.
    ///
    /// # Errors
    /// `WriteFailed` and `Poisoned`, both fatal.
    fn reclaim(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// The state as of now.
    fn snapshot(&self) -> Self::Snapshot;

    /// Hands over region clocks by which expired raw values may be dropped in the
    /// background; see [`ExpiryClocks`](crate::ExpiryClocks) for what they must fulfil.
    /// An engine that drops nothing ignores them.
    fn publish_expiry_clocks(&self, clocks: Arc<ExpiryLookup>) {
        drop(clocks);
    }
}

/// The two engines of a node.
#[derive(Clone, Debug)]
pub struct Engines<E> {
    /// Data and apply state.
    pub kv: E,
    /// Logs and hard states.
    pub raft: E,
}

impl<E: Engine> Engines<E> {
    /// Pairs two engines.
    ///
    /// # Panics
    /// If they are swapped.
    pub fn new(kv: E, raft: E) -> Self {
        assert_eq!(
            (kv.kind(), raft.kind()),
            (EngineKind::Kv, EngineKind::Raft),
            "engines swapped"
        );
        Self { kv, raft }
    }
}
