//! Snapshot files in a folder of the disk, as RocksDB's sorted tables.
//!
//! The page cache holds little of them. What is appended is on its way to the disk at once and
//! leaves the cache when the caller has no more use for it ([`FileStore::forget`]); what is read
//! once passes by it ([`direct`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};
use strata_proto::stratapb::SnapshotForm;

use super::direct;
use super::error::SnapshotError;
use super::files::{FileStamp, FileStore};

/// Bytes that are read at a time for a checksum: they stay in the processor's cache.
const SUM_BYTES: usize = 128 << 10;

/// A folder of snapshot files. Clones are handles of the same folder.
#[derive(Clone, Debug)]
pub struct DiskFiles {
    folder: Arc<Path>,
}

impl DiskFiles {
    /// Takes a folder, and makes it if there is none. It must be the caller's alone.
    ///
    /// # Errors
    /// `File`, `DiskFull`, `SyncFailed`.
    pub fn open(folder: &Path) -> Result<Self, SnapshotError> {
        let files = Self {
            folder: folder.into(),
        };
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(|e| files.error("", "make the folder", &e))?;
        }
        // Also where it is there already: the process that made it may have ended before
        // its name was synced.
        let parent = folder.parent().filter(|p| *p != Path::new(""));
        sync_path(parent.unwrap_or(Path::new("."))).map_err(|e| files.sync_error("", &e))?;
        Ok(files)
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn error(&self, name: &str, action: &'static str, error: &io::Error) -> SnapshotError {
        let (path, detail) = (self.display(name), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                SnapshotError::DiskFull { path, detail }
            }
            _ => SnapshotError::File {
                path,
                action,
                detail,
            },
        }
    }

    fn sync_error(&self, name: &str, error: &io::Error) -> SnapshotError {
        SnapshotError::SyncFailed {
            path: self.display(name),
            detail: error.to_string(),
        }
    }

    fn open_to_read(&self, name: &str) -> Result<File, SnapshotError> {
        File::open(self.path(name)).map_err(|e| self.error(name, "open", &e))
    }

    /// A read met the end of the file in front of `expected`.
    fn too_short(&self, name: &str, file: &File, expected: u64) -> SnapshotError {
        SnapshotError::FileLength {
            path: self.display(name),
            found: file.metadata().map_or(0, |found| found.len()),
            expected,
        }
    }

    fn open_to_write(&self, name: &str) -> Result<File, SnapshotError> {
        let opened = OpenOptions::new().write(true).open(self.path(name));
        opened.map_err(|e| self.error(name, "open", &e))
    }

    fn check_length(&self, name: &str, found: u64, expected: u64) -> Result<(), SnapshotError> {
        if found == expected {
            return Ok(());
        }
        Err(SnapshotError::FileLength {
            path: self.display(name),
            found,
            expected,
        })
    }
}

/// Has the system begin to write what is dirty of a range, so that the next sync waits less. It
/// promises nothing, so a failure changes nothing: the sync reports what cannot be written.
fn begin_writing(file: &File, offset: u64, bytes: usize) {
    let range = (
        libc::off64_t::try_from(offset),
        libc::off64_t::try_from(bytes),
    );
    if let (Ok(offset), Ok(bytes)) = range {
        // SAFETY: the descriptor is open while `file` is borrowed; no memory is passed.
        let _ = unsafe {
            libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
        };
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl FileStore for DiskFiles {
    const FORM: SnapshotForm = SnapshotForm::Sst;
    const ENDING: &'static str = ".sst";

    fn create(&self, name: &str) -> Result<(), SnapshotError> {
        let made = File::create(self.path(name));
        made.map(drop).map_err(|e| self.error(name, "make", &e))
    }

    fn append(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError> {
        let file = self.open_to_write(name)?;
        let found = file.metadata().map_err(|e| self.error(name, "look at", &e));
        self.check_length(name, found?.len(), offset)?;
        file.write_all_at(data, offset).map_err(|error| {
            // A part may have been written; whoever tries again expects the old end.
            let _ = file.set_len(offset);
            self.error(name, "write", &error)
        })?;
        begin_writing(&file, offset, data.len());
        Ok(())
    }

    fn forget(&self, name: &str, offset: u64, length: u64) {
        let range = (i64::try_from(offset), i64::try_from(length));
        if let (Ok(offset), Ok(length), Ok(file)) = (range.0, range.1, File::open(self.path(name)))
        {
            // No more than advice.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(file, offset, length, advice);
        }
    }

    fn stamp(&self, name: &str) -> Result<Option<FileStamp>, SnapshotError> {
        let found = fs::metadata(self.path(name)).map_err(|e| self.error(name, "look at", &e))?;
        Ok(Some(FileStamp {
            number: found.ino(),
            length: found.len(),
            written_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        }))
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), SnapshotError> {
        let file = self.open_to_write(name)?;
        let found = file.metadata().map_err(|e| self.error(name, "look at", &e));
        if found?.len() > length {
            let cut = file.set_len(length);
            cut.map_err(|e| self.error(name, "cut", &e))?;
        }
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError> {
        let file = self.open_to_read(name)?;
        // Not zeroed, as in `direct`.
        let mut data: Vec<u8> = Vec::with_capacity(length);
        while data.len() < length {
            let at = offset + data.len() as u64;
            match pread(&file, spare_capacity(&mut data), at) {
                Ok(0) => return Err(self.too_short(name, &file, offset + length as u64)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(self.error(name, "read", &error.into())),
            }
        }
        data.truncate(length);
        Ok(data.into())
    }

    fn sum(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        hasher: &mut Hasher,
    ) -> Result<(), SnapshotError> {
        let file = self.open_to_read(name)?;
        let (mut at, end) = (offset, offset.saturating_add(length));
        let mut piece = vec![0; SUM_BYTES.min(usize::try_from(length).unwrap_or(SUM_BYTES))];
        while at < end {
            let bytes = (end - at).min(piece.len() as u64) as usize;
            match file.read_exact_at(&mut piece[..bytes], at) {
                Ok(()) => hasher.update(&piece[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.too_short(name, &file, at + bytes as u64));
                }
                Err(error) => return Err(self.error(name, "read", &error)),
            }
            at += bytes as u64;
        }
        Ok(())
    }

    fn read_once(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError> {
        match direct::read(&self.path(name), offset, length) {
            Ok(Some(data)) => Ok(data),
            Ok(None) => self.read(name, offset, length),
            Err(error) => Err(self.error(name, "read", &error)),
        }
    }

    fn length(&self, name: &str) -> Result<Option<u64>, SnapshotError> {
        match fs::metadata(self.path(name)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(name, "look at", &error)),
        }
    }

    fn sync(&self, name: &str) -> Result<(), SnapshotError> {
        let file = self.open_to_write(name)?;
        file.sync_all().map_err(|e| self.sync_error(name, &e))
    }

    fn sync_folder(&self) -> Result<(), SnapshotError> {
        sync_path(&self.folder).map_err(|e| self.sync_error("", &e))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), SnapshotError> {
        let renamed = fs::rename(self.path(from), self.path(to));
        renamed.map_err(|e| self.error(from, "rename", &e))
    }

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.error(name, "remove", &error))
            }
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<(String, u64)>, SnapshotError> {
        let failed = |error: io::Error| self.error("", "list", &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&*self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let found = entry.metadata().map_err(failed)?;
            // Names that are not text are none of ours.
            if let (true, Ok(name)) = (found.is_file(), entry.file_name().into_string()) {
                names.push((name, found.len()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn display(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
