//! Takes a snapshot in, chunk by chunk, and goes on after a restart where it was synced.
//!
//! Offer    The description is noted durably, then the parts are made or found again. The
//!          answer is how much of each file is synced (crash rule 11).
//! Chunk    Appended to its part if it is whole, of this snapshot, and begins where the
//!          part ends.
//! Sync     Every [`SYNC_BYTES`] the parts are synced and what is new in them is read back, for
//!          the checksum of what is in the file; then the progress is synced.
//! Finish   All parts are synced, so read back, and compared with the description; they take
//!          their final names; last comes the description of the complete snapshot, with
//!          the folder's sync.
//!
//! Invariants
//! * The progress on disk never names more bytes than are synced in the parts.
//! * A refused chunk changes nothing: the same receiver takes the right one after it.
//! * After a restart each part is cut to its progress, and counts only if the bytes have
//!   the noted checksum; else that part begins again.

use std::sync::Arc;

use crc32fast::Hasher;
use strata_proto::stratapb::{
    SnapshotChunk, SnapshotFile, SnapshotMeta, SnapshotPart, SnapshotProgress,
};
use strata_raft::planted;

use super::error::SnapshotError;
use super::files::{FileStamp, FileStore, read_record, write_record};
use super::manager::PartialClaim;
use super::meta::contents;
use super::name::{Role, SnapshotKey};
use super::reference::{CHUNK_BYTES, SnapshotRef, check_length, check_sum, checksum, unknown_file};
use crate::error::Error;
use crate::record::RecordKind;

/// Bytes received between two syncs: what a restart may have to fetch again.
pub const SYNC_BYTES: u64 = 16 << 20;

/// The answer to an offer.
pub enum Offered<F: FileStore> {
    /// Send it, from where [`Receiver::progress`] says.
    Receive(Receiver<F>),
    /// All of it is here already.
    Complete(SnapshotRef<F>),
}

/// One file of a snapshot that is being received.
struct Part {
    name: String,
    held: u64,
    /// Of the bytes that are synced, as they were read back.
    hasher: Hasher,
    /// Invariant: `synced.synced <= held`.
    synced: SnapshotPart,
}

/// Takes one snapshot in. Dropping it keeps what is synced.
pub struct Receiver<F: FileStore> {
    claim: PartialClaim<F>,
    meta: Arc<SnapshotMeta>,
    parts: Vec<Part>,
    /// Bytes that were taken since the last sync.
    unsynced: u64,
}

impl<F: FileStore> Receiver<F> {
    /// Notes a new offer, or finds the parts of one that was noted before.
    pub(super) fn open(
        claim: PartialClaim<F>,
        meta: Arc<SnapshotMeta>,
    ) -> Result<Self, SnapshotError> {
        let files = claim.manager.files();
        let noted = read_progress(files, &claim.key, &meta)?;
        if noted.is_none() {
            // Before the parts, so that a start knows what they belong to.
            write_record(files, &claim.key.name(Role::Offer, F::ENDING), &*meta)?;
        }
        let mut noted = noted.unwrap_or_default().into_iter();
        let mut parts = Vec::new();
        for content in contents(&meta) {
            let name = claim.key.name(Role::Part(content), F::ENDING);
            let synced = noted.next().unwrap_or_default();
            parts.push(open_part(files, name, synced)?);
        }
        let mut receiver = Self {
            claim,
            meta,
            parts,
            unsynced: 0,
        };
        receiver.sync()?;
        Ok(receiver)
    }

    /// Its description.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// What is synced of each file: where the sender begins, and what a crash leaves.
    #[must_use]
    pub fn progress(&self) -> SnapshotProgress {
        SnapshotProgress {
            id: self.meta.id,
            parts: self.parts.iter().map(|part| part.synced).collect(),
        }
    }

    /// Bytes of all files that are here, synced or not.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.held).sum()
    }

    /// True once every file has its full length.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let mut both = self.parts.iter().zip(&self.meta.files);
        both.all(|(part, file)| part.held == file.length)
    }

    /// Takes a chunk.
    ///
    /// # Errors
    /// `ForeignId`, `UnknownFile`, `ChunkSize`, `Gap`, `Overlap`, `BeyondEnd`,
    /// `ChunkChecksum`: it was refused, nothing has changed. `DiskFull`, `File`: it was
    /// not taken. `SyncFailed` is fatal.
    pub fn accept(&mut self, chunk: &SnapshotChunk) -> Result<(), SnapshotError> {
        self.check(chunk)?;
        let part = &mut self.parts[chunk.file as usize];
        let files = self.claim.manager.files();
        files.append(&part.name, part.held, &chunk.data)?;
        part.held += chunk.data.len() as u64;
        self.unsynced += chunk.data.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn check(&self, chunk: &SnapshotChunk) -> Result<(), SnapshotError> {
        let (file, offset, bytes) = (chunk.file, chunk.offset, chunk.data.len());
        if chunk.id != self.meta.id {
            return Err(SnapshotError::ForeignId {
                expected: self.meta.id,
                found: chunk.id,
            });
        }
        let place = file as usize;
        let (Some(part), Some(described)) = (self.parts.get(place), self.meta.files.get(place))
        else {
            return Err(unknown_file(&self.meta, file));
        };
        if bytes == 0 || bytes > CHUNK_BYTES {
            return Err(SnapshotError::ChunkSize { file, bytes });
        }
        let (end, length) = (offset.saturating_add(bytes as u64), described.length);
        if end > length {
            return Err(SnapshotError::BeyondEnd { file, end, length });
        }
        let (expected, found) = (part.held, offset);
        if found > expected {
            return Err(SnapshotError::Gap {
                file,
                expected,
                found,
            });
        }
        if found < expected {
            return Err(SnapshotError::Overlap {
                file,
                expected,
                found,
            });
        }
        let (found, expected) = (crc32fast::hash(&chunk.data), chunk.crc32);
        if found != expected {
            return Err(SnapshotError::ChunkChecksum {
                file,
                offset,
                found,
                expected,
            });
        }
        Ok(())
    }

    /// Makes all that was taken durable, and reads it back: the parts first, then the progress.
    ///
    /// # Errors
    /// `SyncFailed`, which is fatal; `DiskFull`, `File`; `FileLength` if a part became shorter.
    pub fn sync(&mut self) -> Result<(), SnapshotError> {
        let files = self.claim.manager.files();
        let mut progress = SnapshotProgress {
            id: self.meta.id,
            parts: Vec::new(),
        };
        let mut hashers = Vec::new();
        for part in &self.parts {
            if part.held != part.synced.synced {
                files.sync(&part.name)?;
            }
            let hasher = read_back(files, part)?;
            progress.parts.push(SnapshotPart {
                synced: part.held,
                crc32: hasher.clone().finalize(),
            });
            hashers.push(hasher);
        }
        let name = self.claim.key.name(Role::Progress, F::ENDING);
        write_record(files, &name, &progress)?;
        for (part, (synced, hasher)) in self
            .parts
            .iter_mut()
            .zip(progress.parts.into_iter().zip(hashers))
        {
            (part.synced, part.hasher) = (synced, hasher);
        }
        self.unsynced = 0;
        Ok(())
    }

    /// Checks the whole and makes it a complete snapshot, durably.
    ///
    /// # Errors
    /// `Incomplete`: what is held is synced, an offer of the same snapshot resumes it.
    /// `FileChecksum`, `FileLength`: that file begins again with the next offer, the
    /// others stay. `SyncFailed` is fatal; `DiskFull`, `File`: as after a crash.
    pub fn finish(mut self) -> Result<SnapshotRef<F>, SnapshotError> {
        if self.unsynced > 0 {
            self.sync()?;
        }
        for (file, (part, described)) in (0..).zip(self.parts.iter().zip(&self.meta.files)) {
            if part.held != described.length {
                return Err(SnapshotError::Incomplete {
                    file,
                    held: part.held,
                    length: described.length,
                });
            }
        }
        let stamps = self.verify_parts()?;
        let manager = self.claim.manager.clone();
        let (files, key) = (manager.files(), self.claim.key);
        for (content, part) in contents(&self.meta).zip(&self.parts) {
            files.rename(&part.name, &key.name(Role::Table(content), F::ENDING))?;
        }
        // The names before the description: it says that all of them are there.
        files.sync_folder()?;
        write_record(files, &key.name(Role::Meta, F::ENDING), &*self.meta)?;
        for role in [Role::Offer, Role::Progress] {
            files.remove(&key.name(role, F::ENDING))?;
        }
        let complete = manager.complete(key, &self.meta);
        manager.note_read_back(&key, stamps);
        Ok(complete)
    }

    /// Compares all parts, as they were read back, with the description. A damaged one begins
    /// again. Returns what the system says of each.
    fn verify_parts(&mut self) -> Result<Vec<Option<FileStamp>>, SnapshotError> {
        let files = self.claim.manager.files();
        let (mut stamps, mut first_fault) = (Vec::new(), None);
        for (part, file) in self.parts.iter_mut().zip(&self.meta.files) {
            match check_part(files, part, file) {
                Ok(()) => stamps.push(files.stamp(&part.name)?),
                Err(
                    fault @ (SnapshotError::FileChecksum { .. } | SnapshotError::FileLength { .. }),
                ) => {
                    *part = open_part(files, part.name.clone(), SnapshotPart::default())?;
                    first_fault.get_or_insert(fault);
                }
                Err(error) => return Err(error),
            }
        }
        match first_fault {
            None => Ok(stamps),
            Some(fault) => {
                self.sync()?;
                Err(fault)
            }
        }
    }
}

/// Reads back what of a part is new since its last sync. Returns the checksum of all of it.
fn read_back<F: FileStore>(files: &F, part: &Part) -> Result<Hasher, SnapshotError> {
    let mut hasher = part.hasher.clone();
    let begin = part.synced.synced;
    files.sum(&part.name, begin, part.held - begin, &mut hasher)?;
    if part.held > begin {
        files.forget(&part.name, begin, part.held - begin);
    }
    Ok(hasher)
}

/// Compares a part that is synced in its full length with its description.
fn check_part<F: FileStore>(
    files: &F,
    part: &Part,
    described: &SnapshotFile,
) -> Result<(), SnapshotError> {
    // Planted: a snapshot is what its description says, whole.
    if planted!(ResumeOntoForeignParts) {
        return Ok(());
    }
    check_length(files, &part.name, described.length)?;
    check_sum(files, &part.name, &part.hasher, described.crc32)
}

/// The progress noted for this offer; `None` if there is none that can be used.
fn read_progress<F: FileStore>(
    files: &F,
    key: &SnapshotKey,
    meta: &SnapshotMeta,
) -> Result<Option<Vec<SnapshotPart>>, SnapshotError> {
    let name = key.name(Role::Progress, F::ENDING);
    match read_record::<F, SnapshotProgress>(files, RecordKind::SnapshotProgress, &name) {
        Ok(Some(noted)) if noted.id == meta.id && noted.parts.len() == meta.files.len() => {
            Ok(Some(noted.parts))
        }
        Ok(_) | Err(SnapshotError::Storage(Error::CorruptRecord { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Cuts a part to what is noted as synced, or begins it again.
fn open_part<F: FileStore>(
    files: &F,
    name: String,
    noted: SnapshotPart,
) -> Result<Part, SnapshotError> {
    let here = files.length(&name)?.unwrap_or(0);
    if noted.synced > 0 && here >= noted.synced {
        let hasher = checksum(files, &name, noted.synced)?;
        if hasher.clone().finalize() == noted.crc32 {
            files.truncate(&name, noted.synced)?;
            return Ok(Part {
                name,
                held: noted.synced,
                hasher,
                synced: noted,
            });
        }
    }
    files.create(&name)?;
    Ok(Part {
        name,
        held: 0,
        hasher: Hasher::new(),
        synced: SnapshotPart::default(),
    })
}
