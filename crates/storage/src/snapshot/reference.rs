//! A complete snapshot in use: read in chunks by a sender, whole by an installer.

use std::sync::Arc;

use crc32fast::Hasher;
use strata_proto::metapb::Region;
use strata_proto::stratapb::{SnapshotChunk, SnapshotMeta};
use strata_raft::planted;

use super::content::Content;
use super::error::SnapshotError;
use super::files::FileStore;
use super::manager::SnapshotManager;
use super::meta::{contents, region_of, total_bytes};
use super::name::{Role, SnapshotKey};

/// Most bytes of a chunk, and of each read.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Keeps the files of a complete snapshot. Each clone counts as a use of its own.
pub struct SnapshotRef<F: FileStore> {
    manager: SnapshotManager<F>,
    key: SnapshotKey,
    meta: Arc<SnapshotMeta>,
}

impl<F: FileStore> SnapshotRef<F> {
    /// The use is counted by the caller.
    pub(super) fn new(
        manager: SnapshotManager<F>,
        key: SnapshotKey,
        meta: Arc<SnapshotMeta>,
    ) -> Self {
        Self { manager, key, meta }
    }

    /// Its name on this node.
    #[must_use]
    pub fn key(&self) -> &SnapshotKey {
        &self.key
    }

    /// Its description.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Its region, as of its index.
    #[must_use]
    pub fn region(&self) -> &Region {
        region_of(&self.meta)
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        total_bytes(&self.meta)
    }

    /// Where its files are, in one line for people.
    #[must_use]
    pub fn display_path(&self) -> String {
        let names = self.key.display(&self.meta, F::ENDING);
        self.manager.files().display(&names)
    }

    /// Reads the chunk of file number `file` that begins at `offset`: [`CHUNK_BYTES`], or
    /// less at the file's end.
    ///
    /// # Errors
    /// `UnknownFile`; `BeyondEnd` if `offset` is not in front of the end; `File`,
    /// `FileLength`.
    pub fn read_chunk(&self, file: u32, offset: u64) -> Result<SnapshotChunk, SnapshotError> {
        self.read_chunk_of(file, offset, CHUNK_BYTES)
    }

    /// As [`SnapshotRef::read_chunk`], with at most `bytes_max` bytes, between 1 and
    /// [`CHUNK_BYTES`].
    ///
    /// # Errors
    /// As those of `read_chunk`.
    pub fn read_chunk_of(
        &self,
        file: u32,
        offset: u64,
        bytes_max: usize,
    ) -> Result<SnapshotChunk, SnapshotError> {
        let described = self.meta.files.get(file as usize);
        let length = described.map(|described| described.length);
        let length = length.ok_or_else(|| unknown_file(&self.meta, file))?;
        if offset >= length {
            return Err(SnapshotError::BeyondEnd {
                file,
                end: offset,
                length,
            });
        }
        let bytes_max = bytes_max.clamp(1, CHUNK_BYTES) as u64;
        let bytes = (length - offset).min(bytes_max) as usize;
        let name = &self.tables()[file as usize].1;
        let data = self.manager.files().read_once(name, offset, bytes)?;
        Ok(SnapshotChunk {
            id: self.key.id,
            file,
            offset,
            crc32: crc32fast::hash(&data),
            data,
        })
    }

    /// Reads file number `file` whole and compares it with its description.
    ///
    /// # Errors
    /// `FileLength`, `FileChecksum`, `File`; `UnknownFile`.
    pub fn verify_file(&self, file: u32) -> Result<(), SnapshotError> {
        let tables = self.tables();
        let (_, name) = tables
            .get(file as usize)
            .ok_or_else(|| unknown_file(&self.meta, file))?;
        let described = &self.meta.files[file as usize];
        verify(
            self.manager.files(),
            name,
            described.length,
            described.crc32,
        )
    }

    /// As [`SnapshotRef::verify_file`]. A file that was read back when it was received, and to
    /// which nobody has written since, is not read again.
    ///
    /// # Errors
    /// As those of `verify_file`.
    pub fn verify_changed_file(&self, file: u32) -> Result<(), SnapshotError> {
        let noted = self.manager.stamp_of(&self.key, file);
        if let (Some(_), Some((_, name))) = (noted, self.tables().get(file as usize))
            && self.manager.files().stamp(name)? == noted
        {
            return Ok(());
        }
        self.verify_file(file)
    }

    /// Contents and names of its files, in their order.
    pub(super) fn tables(&self) -> Vec<(Content, String)> {
        let name = |content| self.key.name(Role::Table(content), F::ENDING);
        contents(&self.meta).map(|c| (c, name(c))).collect()
    }

    pub(super) fn files(&self) -> &F {
        self.manager.files()
    }
}

pub(super) fn unknown_file(meta: &SnapshotMeta, file: u32) -> SnapshotError {
    SnapshotError::UnknownFile {
        id: meta.id,
        file,
        files: meta.files.len(),
    }
}

/// The checksum of the first `length` bytes of a file, read in chunks.
pub(super) fn checksum<F: FileStore>(
    files: &F,
    name: &str,
    length: u64,
) -> Result<Hasher, SnapshotError> {
    let mut hasher = Hasher::new();
    let mut offset = 0;
    while offset < length {
        let bytes = (length - offset).min(CHUNK_BYTES as u64) as usize;
        hasher.update(&files.read_once(name, offset, bytes)?);
        offset += bytes as u64;
    }
    Ok(hasher)
}

/// Compares a file with its length and checksum.
pub(super) fn verify<F: FileStore>(
    files: &F,
    name: &str,
    length: u64,
    crc32: u32,
) -> Result<(), SnapshotError> {
    // Planted: a snapshot is what its description says, whole.
    if planted!(ResumeOntoForeignParts) {
        return Ok(());
    }
    check_length(files, name, length)?;
    check_sum(files, name, &checksum(files, name, length)?, crc32)
}

/// Compares a file's length with what it is said to be.
pub(super) fn check_length<F: FileStore>(
    files: &F,
    name: &str,
    expected: u64,
) -> Result<(), SnapshotError> {
    let found = files.length(name)?.unwrap_or(0);
    if found == expected {
        return Ok(());
    }
    Err(SnapshotError::FileLength {
        path: files.display(name),
        found,
        expected,
    })
}

/// Compares the checksum of all bytes of a file with what it is said to be.
pub(super) fn check_sum<F: FileStore>(
    files: &F,
    name: &str,
    hasher: &Hasher,
    expected: u32,
) -> Result<(), SnapshotError> {
    let found = hasher.clone().finalize();
    if found == expected {
        return Ok(());
    }
    Err(SnapshotError::FileChecksum {
        path: files.display(name),
        found,
        expected,
    })
}

impl<F: FileStore> Clone for SnapshotRef<F> {
    fn clone(&self) -> Self {
        self.manager.share(&self.key);
        Self::new(self.manager.clone(), self.key, self.meta.clone())
    }
}

impl<F: FileStore> Drop for SnapshotRef<F> {
    fn drop(&mut self) {
        self.manager.release(&self.key);
    }
}

impl<F: FileStore> std::fmt::Debug for SnapshotRef<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.display_path())
    }
}
