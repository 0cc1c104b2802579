//! Why something about a snapshot was refused or failed.
//!
//! Everything that comes from another store or from a file is a variant here; none of it
//! panics. A refusal leaves engines, files and positions as they were, unless the
//! variant says otherwise.

use strata_proto::raft_serverpb::PeerState;

use crate::engine::EngineError;
use crate::error::Error;

/// What does not fit in the description of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    /// Not a well-formed message.
    #[error("not a well-formed message")]
    Malformed,
    /// It names no region, or one without id, epoch or peers.
    #[error("it names no complete region")]
    Region,
    /// The range is empty or inverted.
    #[error("the region's range is empty")]
    Range,
    /// Index or term is zero.
    #[error("position is index {index}, term {term}")]
    Position {
        /// Index.
        index: u64,
        /// Term.
        term: u64,
    },
    /// Index, term or membership differ from those of the raft message around it.
    #[error("it differs from its raft message")]
    Message,
    /// The membership is not that of the region's peers.
    #[error("the membership is not that of the region's peers")]
    ConfState,
    /// Files of a form that this node's engine does not take.
    #[error("form {found} of files, this engine takes {expected}")]
    Form {
        /// Number of the form.
        found: i32,
        /// Number of the engine's form.
        expected: i32,
    },
    /// A file of an unknown name, one that this region cannot have, one twice, or out of
    /// order.
    #[error("file {0:?} does not belong into it")]
    File(String),
    /// A file without bytes, or lengths whose sum is beyond all bounds.
    #[error("file {name:?} has length {length}")]
    Length {
        /// The file.
        name: String,
        /// Its length in bytes.
        length: u64,
    },
    /// The id is not the hash of the contents.
    #[error("id {found:016x}, its contents have {expected:016x}")]
    Id {
        /// As written.
        found: u64,
        /// As computed.
        expected: u64,
    },
}

/// Errors of snapshot files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// An engine or a state record failed.
    #[error(transparent)]
    Storage(#[from] Error),
    /// The disk is full. What was accepted and synced before stays.
    #[error("{path}: disk full: {detail}; make room on this disk")]
    DiskFull {
        /// The file.
        path: String,
        /// What the system reported.
        detail: String,
    },
    /// A sync failed: what is on disk is unknown, the process must end (crash rule 9).
    #[error("{path}: sync failed, the process must end: {detail}")]
    SyncFailed {
        /// The file or folder.
        path: String,
        /// What the system reported.
        detail: String,
    },
    /// Another operation on a file failed.
    #[error("{path}: cannot {action}: {detail}")]
    File {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// What the system reported.
        detail: String,
    },
    /// The engine cannot read a file that it was to take in.
    #[error("{path}: not a well-formed table: {detail}")]
    Table {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A file differs from its checksum in the description.
    #[error("{path}: checksum {found:08x}, expected {expected:08x}")]
    FileChecksum {
        /// The file.
        path: String,
        /// Of the bytes that were read.
        found: u32,
        /// By the description.
        expected: u32,
    },
    /// A file has another length than its description says.
    #[error("{path}: length {found}, expected {expected}")]
    FileLength {
        /// The file.
        path: String,
        /// Bytes found.
        found: u64,
        /// By the description.
        expected: u64,
    },
    /// The node that held these files has crashed (simulator only).
    #[error("snapshot files of a crashed node")]
    Crashed,
    /// A snapshot was asked for of a region that is not here.
    #[error("region {region_id}: not on this store")]
    NoSuchRegion {
        /// The region.
        region_id: u64,
    },
    /// A snapshot was asked for of a replica that is destroyed, is installing one itself,
    /// or has applied nothing.
    #[error("region {region_id}: no snapshot in state {state:?} at index {applied}")]
    NotServing {
        /// The region.
        region_id: u64,
        /// Its state.
        state: PeerState,
        /// Its applied index.
        applied: u64,
    },
    /// A description contradicts itself or its message.
    #[error("bad snapshot description: {0}")]
    BadMeta(#[from] MetaFault),
    /// The files of all snapshots would take more than the limit. Try again later.
    #[error("{wanted} more bytes of snapshots, {used} of at most {bytes_max} in use")]
    TooMuch {
        /// Bytes in use or promised.
        used: u64,
        /// Bytes asked for.
        wanted: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A snapshot of the region is being received already.
    #[error("region {region_id}: a snapshot is being received already")]
    Busy {
        /// The region.
        region_id: u64,
    },
    /// As many snapshots are being received as the limit allows. Try again later.
    #[error("{slots} snapshots are being received already")]
    TooMany {
        /// The limit.
        slots: usize,
    },
    /// A frame came where another one belongs.
    #[error("{found} where {expected} belongs")]
    OutOfTurn {
        /// What belongs there.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// The sender has said nothing for too long. What is held stays, and can be resumed.
    #[error("the sender has said nothing for {silent_ms} ms")]
    Stalled {
        /// Milliseconds since its last frame.
        silent_ms: u64,
    },
    /// A raft message that carries no snapshot, or is not between these two stores.
    #[error("region {region_id}: the offer is no snapshot from store {from} to store {to}")]
    NotForHere {
        /// The region that it names.
        region_id: u64,
        /// The store that sends it.
        from: u64,
        /// The store that receives it.
        to: u64,
    },
    /// A chunk of another snapshot.
    #[error("chunk of snapshot {found:016x} in the stream of {expected:016x}")]
    ForeignId {
        /// The snapshot that is received.
        expected: u64,
        /// The one that the chunk names.
        found: u64,
    },
    /// A chunk names a file that the snapshot does not have.
    #[error("snapshot {id:016x} has {files} files, none with number {file}")]
    UnknownFile {
        /// The snapshot.
        id: u64,
        /// The number asked for.
        file: u32,
        /// Number of files that there are.
        files: usize,
    },
    /// A chunk begins behind what is held: something in between is missing.
    #[error("file {file}: gap, chunk at {found}, expected {expected}")]
    Gap {
        /// Number of the file.
        file: u32,
        /// Bytes held.
        expected: u64,
        /// Where the chunk begins.
        found: u64,
    },
    /// A chunk begins inside what is held.
    #[error("file {file}: overlap, chunk at {found}, expected {expected}")]
    Overlap {
        /// Number of the file.
        file: u32,
        /// Bytes held.
        expected: u64,
        /// Where the chunk begins.
        found: u64,
    },
    /// A chunk, or a place to read from, lies behind the end of its file.
    #[error("file {file}: {end} is behind its end {length}")]
    BeyondEnd {
        /// Number of the file.
        file: u32,
        /// End of the chunk, or the offset asked for.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// An empty chunk, or one that is too large.
    #[error("file {file}: chunk of {bytes} bytes")]
    ChunkSize {
        /// Number of the file.
        file: u32,
        /// Bytes of the chunk.
        bytes: usize,
    },
    /// A chunk was damaged on its way.
    #[error("file {file}: chunk at {offset} has checksum {found:08x}, expected {expected:08x}")]
    ChunkChecksum {
        /// Number of the file.
        file: u32,
        /// Where the chunk begins.
        offset: u64,
        /// Of the bytes that arrived.
        found: u32,
        /// As sent along.
        expected: u32,
    },
    /// The stream ended too early. What is held stays, and can be resumed.
    #[error("file {file}: {held} of {length} bytes are here")]
    Incomplete {
        /// Number of the file.
        file: u32,
        /// Bytes held.
        held: u64,
        /// Length of the file.
        length: u64,
    },
    /// A snapshot covers keys of another live replica of this store.
    #[error("region {region_id}: snapshot overlaps the range of region {other}")]
    Overlapping {
        /// The snapshot's region.
        region_id: u64,
        /// The other one.
        other: u64,
    },
    /// A snapshot at or below what the replica has applied.
    #[error("region {region_id}: snapshot at {index} is not above applied {applied}")]
    Stale {
        /// The region.
        region_id: u64,
        /// The snapshot's index.
        index: u64,
        /// Applied index.
        applied: u64,
    },
    /// A snapshot of an older epoch than the replica's region.
    #[error("region {region_id}: snapshot's epoch is {found:?}, the region's {current:?}")]
    StaleEpoch {
        /// The region.
        region_id: u64,
        /// The snapshot's conf_ver and version.
        found: (u64, u64),
        /// The region's conf_ver and version.
        current: (u64, u64),
    },
    /// The hard state has not reached the snapshot's term.
    #[error("region {region_id}: hard state has term {term}, the snapshot {snapshot_term}")]
    TermBehind {
        /// The region.
        region_id: u64,
        /// Term of the hard state.
        term: u64,
        /// Term of the snapshot.
        snapshot_term: u64,
    },
    /// An interrupted install cannot be repeated: a record of it is absent.
    #[error("region {region_id}: installs a snapshot without its {record}")]
    InstallRecord {
        /// The region.
        region_id: u64,
        /// The record.
        record: &'static str,
    },
    /// An interrupted install cannot be repeated: its files are not here.
    #[error("region {region_id}: files of the snapshot at {index}, term {term} are missing")]
    FilesMissing {
        /// The region.
        region_id: u64,
        /// The snapshot's index.
        index: u64,
        /// Its term.
        term: u64,
    },
}

impl SnapshotError {
    /// True if the process must not go on: the state on disk may differ from what was
    /// promised to others.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_fatal(),
            Self::SyncFailed { .. } | Self::InstallRecord { .. } | Self::FilesMissing { .. } => {
                true
            }
            Self::DiskFull { .. }
            | Self::File { .. }
            | Self::Table { .. }
            | Self::FileChecksum { .. }
            | Self::FileLength { .. }
            | Self::Crashed
            | Self::NoSuchRegion { .. }
            | Self::NotServing { .. }
            | Self::BadMeta(_)
            | Self::TooMuch { .. }
            | Self::Busy { .. }
            | Self::TooMany { .. }
            | Self::OutOfTurn { .. }
            | Self::Stalled { .. }
            | Self::NotForHere { .. }
            | Self::ForeignId { .. }
            | Self::UnknownFile { .. }
            | Self::Gap { .. }
            | Self::Overlap { .. }
            | Self::BeyondEnd { .. }
            | Self::ChunkSize { .. }
            | Self::ChunkChecksum { .. }
            | Self::Incomplete { .. }
            | Self::Overlapping { .. }
            | Self::Stale { .. }
            | Self::StaleEpoch { .. }
            | Self::TermBehind { .. } => false,
        }
    }
}

impl From<EngineError> for SnapshotError {
    fn from(error: EngineError) -> Self {
        Self::Storage(error.into())
    }
}
