//! The folder of snapshot files, as the rest of this module sees it.
//!
//! A flat list of names; files grow at their end only. [`DiskFiles`](super::DiskFiles) is
//! a folder of the disk, [`MemFiles`](super::MemFiles) the simulator's, which loses at a
//! crash what was not synced.
//!
//! Invariants
//! * Bytes survive a power cut once [`FileStore::sync`] has returned for their file, and
//!   names (new, renamed, removed) once [`FileStore::sync_folder`] has.
//! * A small record is replaced whole ([`write_record`]): a crash leaves the old one or
//!   the new one.

use bytes::Bytes;
use crc32fast::Hasher;
use prost::Message;
use strata_proto::stratapb::SnapshotForm;

use super::error::SnapshotError;
use super::reference::CHUNK_BYTES;
use crate::record::{self, RecordKind};

/// Ending of a record that is being written.
pub(super) const NEW_ENDING: &str = ".new";
/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// What the system says of a file's bytes: two that are equal mean that nobody has written to
/// the file between the two moments at which they were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// The file's number within its file system.
    pub number: u64,
    /// Bytes of the file.
    pub length: u64,
    /// When it was last written to, in nanoseconds since 1970.
    pub written_ns: i128,
}

/// A flat folder of files. Clones are handles of the same folder.
pub trait FileStore: Clone + Send + Sync + 'static {
    /// The form of the tables in it.
    const FORM: SnapshotForm;
    /// Ending of their names, with its dot.
    const ENDING: &'static str;

    /// Makes an empty file, also in place of one that is there.
    ///
    /// # Errors
    /// `DiskFull`, `File`.
    fn create(&self, name: &str) -> Result<(), SnapshotError>;

    /// Appends to a file whose length is `offset`.
    ///
    /// # Errors
    /// `FileLength` if it has another length; `DiskFull` and `File`, after which the file
    /// ends at `offset` again as far as the system allows.
    fn append(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError>;

    /// Nobody reads this range soon, and it is synced: the system need not keep it in memory.
    /// Changes nothing else, and never fails.
    fn forget(&self, _name: &str, _offset: u64, _length: u64) {}

    /// What the system says of a file's bytes; `None` if it says nothing, as a store without
    /// stamps does.
    ///
    /// # Errors
    /// `File`.
    fn stamp(&self, _name: &str) -> Result<Option<FileStamp>, SnapshotError> {
        Ok(None)
    }

    /// Cuts a file to `length` bytes; a shorter one stays as it is.
    ///
    /// # Errors
    /// `File`.
    fn truncate(&self, name: &str, length: u64) -> Result<(), SnapshotError>;

    /// Reads exactly `length` bytes from `offset` on.
    ///
    /// # Errors
    /// `FileLength` if the file ends before; `File`.
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError>;

    /// As [`FileStore::read`], of bytes that nobody is about to read again: the system need
    /// not keep them in memory.
    ///
    /// # Errors
    /// As those of `read`.
    fn read_once(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError> {
        self.read(name, offset, length)
    }

    /// Adds `length` bytes from `offset` on to a checksum.
    ///
    /// # Errors
    /// As those of `read`.
    fn sum(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        hasher: &mut Hasher,
    ) -> Result<(), SnapshotError> {
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let bytes = (end - at).min(CHUNK_BYTES as u64);
            hasher.update(&self.read(name, at, bytes as usize)?);
            at += bytes;
        }
        Ok(())
    }

    /// Bytes of a file; `None` if there is none.
    ///
    /// # Errors
    /// `File`.
    fn length(&self, name: &str) -> Result<Option<u64>, SnapshotError>;

    /// Returns when all bytes of the file survive a power cut.
    ///
    /// # Errors
    /// `SyncFailed`, which is fatal; `File` if there is no such file.
    fn sync(&self, name: &str) -> Result<(), SnapshotError>;

    /// Returns when all names survive a power cut.
    ///
    /// # Errors
    /// `SyncFailed`, which is fatal.
    fn sync_folder(&self) -> Result<(), SnapshotError>;

    /// Gives a file another name, in place of one that has it.
    ///
    /// # Errors
    /// `File`.
    fn rename(&self, from: &str, to: &str) -> Result<(), SnapshotError>;

    /// Removes a file; nothing happens if there is none.
    ///
    /// # Errors
    /// `File`.
    fn remove(&self, name: &str) -> Result<(), SnapshotError>;

    /// All names with lengths in bytes, sorted by name.
    ///
    /// # Errors
    /// `File`.
    fn list(&self) -> Result<Vec<(String, u64)>, SnapshotError>;

    /// Where a file is, for people.
    fn display(&self, name: &str) -> String;
}

/// Replaces a record whole; it is durable when this returns.
pub(super) fn write_record<F: FileStore>(
    files: &F,
    name: &str,
    message: &impl Message,
) -> Result<(), SnapshotError> {
    let new = format!("{name}{NEW_ENDING}");
    files.create(&new)?;
    files.append(&new, 0, &record::encode(name.as_bytes(), message))?;
    files.sync(&new)?;
    files.rename(&new, name)?;
    files.sync_folder()
}

/// Reads a record; `None` if there is none.
pub(super) fn read_record<F: FileStore, M: Message + Default>(
    files: &F,
    kind: RecordKind,
    name: &str,
) -> Result<Option<M>, SnapshotError> {
    let Some(length) = files.length(name)? else {
        return Ok(None);
    };
    // A longer one is none of ours; its checksum would not hold either.
    let stored = files.read(name, 0, length.min(RECORD_BYTES_MAX) as usize)?;
    Ok(Some(record::decode(kind, name.as_bytes(), &stored)?))
}
