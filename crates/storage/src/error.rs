//! Errors of state records and of replicas' storage.

use crate::engine::{Cf, EngineError, EngineKind};
use crate::record::RecordKind;

/// Why a state record cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Shorter than its checksum.
    #[error("{0} bytes are too short")]
    TooShort(usize),
    /// The checksum does not match.
    #[error("checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// The checksum matches, but the bytes are no such message.
    #[error("not a well-formed message")]
    Protobuf,
}

/// What a region's start check found (crash rule 8). Every variant means that something
/// which was promised to others is gone: the process must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartFault {
    /// The kv engine knows the region, the raft engine does not.
    #[error("raft state is missing, applied index is {applied}")]
    MissingRaftState {
        /// Applied index.
        applied: u64,
    },
    /// The raft engine holds a log, the kv engine no apply state.
    #[error("apply state is missing, last index is {last}")]
    MissingApplyState {
        /// Last index.
        last: u64,
    },
    /// The log ends before what is applied.
    #[error("applied index {applied} is above last index {last}")]
    AppliedAboveLast {
        /// Applied index.
        applied: u64,
        /// Last index.
        last: u64,
    },
    /// The log begins behind what is applied.
    #[error("truncated index {truncated} is above applied index {applied}")]
    TruncatedAboveApplied {
        /// Truncated index.
        truncated: u64,
        /// Applied index.
        applied: u64,
    },
    /// More is committed than there is.
    #[error("commit index {commit} is above last index {last}")]
    CommitAboveLast {
        /// Commit index of the hard state.
        commit: u64,
        /// Last index.
        last: u64,
    },
    /// An entry of the log is absent.
    #[error("entry {index} is missing between truncated index {truncated} and last index {last}")]
    MissingEntry {
        /// First absent index.
        index: u64,
        /// Truncated index.
        truncated: u64,
        /// Last index.
        last: u64,
    },
    /// The log goes on behind the recorded last index.
    #[error("entry {index} lies behind last index {last}")]
    EntryBehindLast {
        /// Index found.
        index: u64,
        /// Last index.
        last: u64,
    },
    /// An entry has another term than is recorded beside it.
    #[error("entry {index} has term {found}, recorded is {expected}")]
    TermMismatch {
        /// Index.
        index: u64,
        /// Term of the entry.
        found: u64,
        /// Term in the state record.
        expected: u64,
    },
    /// The log holds a term that the hard state has not reached.
    #[error("hard state has term {term}, last entry has term {last_term}")]
    TermBehindLog {
        /// Term of the hard state.
        term: u64,
        /// Term of the last entry.
        last_term: u64,
    },
}

/// Why two engines are not those of one store's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentFault {
    /// One engine knows the store, the other one was lost or replaced.
    #[error("the {engine} engine has lost the store's identity; replace the store by a new one")]
    Missing {
        /// The engine without identity.
        engine: EngineKind,
    },
    /// The engines come from different folders. Cluster id, store id, incarnation.
    #[error(
        "the engines belong to different stores: kv {kv:?}, raft {raft:?} (cluster, store, incarnation)"
    )]
    Differ {
        /// As found in the kv engine.
        kv: (u64, u64, u64),
        /// As found in the raft engine.
        raft: (u64, u64, u64),
    },
    /// A bootstrap was asked for in a folder that has one.
    #[error("the folder is already initialised")]
    NotNew,
}

/// Errors of this crate, except those of opening a folder
/// ([`FolderError`](crate::FolderError)).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A state record is damaged: the process stops rather than serve wrong data.
    #[error("{kind} under key {key} is corrupt: {fault}; replace the store by a new one")]
    CorruptRecord {
        /// The record.
        kind: RecordKind,
        /// Its engine key in hexadecimal digits.
        key: String,
        /// What is wrong.
        fault: RecordFault,
    },
    /// An entry of a raft log cannot be read back.
    #[error("region {region_id}: log entry {index} is corrupt; replace the store by a new one")]
    CorruptEntry {
        /// The region.
        region_id: u64,
        /// Index by its key.
        index: u64,
    },
    /// A raw value cannot be read back.
    #[error("{cf}: the value under key {key} is corrupt: {detail}; replace the store by a new one")]
    CorruptValue {
        /// Its column family.
        cf: Cf,
        /// Its engine key in hexadecimal digits.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// What is on disk contradicts itself (crash rule 8): the process stops.
    #[error("region {region_id}: start check failed: {fault}; replace the store by a new one")]
    StartCheck {
        /// The region.
        region_id: u64,
        /// What does not fit, with its numbers.
        fault: StartFault,
    },
    /// The engines do not hold one store's identity.
    #[error(transparent)]
    Ident(#[from] IdentFault),
}

impl Error {
    /// True if the process must not go on.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_fatal(),
            Self::CorruptRecord { .. }
            | Self::CorruptEntry { .. }
            | Self::CorruptValue { .. }
            | Self::StartCheck { .. }
            | Self::Ident(_) => true,
        }
    }
}
