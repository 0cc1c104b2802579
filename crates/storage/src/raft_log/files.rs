//! The folder of the log's files, as the rest of this module sees it.
//!
//! [`DiskFolder`] is a folder of the disk; tests have one in memory that loses at a crash what
//! was not synced.

use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

/// Ending of the names of the log's files.
const ENDING: &str = "log";
/// Ending of a file that is being made; one that is left is made again.
const NEW_ENDING: &str = "new";

/// Name of the witness.
const WITNESS: &str = "synced";

/// Numbers of files are below: there is room for those that follow.
const NUMBER_END: u32 = 1 << 30;

/// A file that is read and written at any place.
pub(super) trait LogFile: Send + Sync + 'static {
    /// Fills `into` with what is there from `offset` on; an error if the file ends before.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when what was written survives a power cut, and the file's length with it. Once it
    /// has failed it fails always, also for threads that were waiting: the system tells of a failure
    /// only once, and what could not be written counts as written from then on.
    fn sync(&self) -> io::Result<()>;

    /// Bytes of the file.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file to `length` bytes.
    fn cut(&self, length: u64) -> io::Result<()>;
}

/// A folder of files with numbers as names.
pub(super) trait LogFolder: Send + Sync + 'static {
    /// A file of it.
    type File: LogFile;

    /// Numbers of all files, in no order. A folder that does not exist has none.
    fn list(&self) -> io::Result<Vec<u32>>;

    /// Opens a file, to be written too if `write`.
    fn open(&self, number: u32, write: bool) -> io::Result<Self::File>;

    /// Makes a file of these bytes. It survives a power cut when this returns; one that comes
    /// before leaves all of it, or no file.
    fn create(&self, number: u32, bytes: &[u8]) -> io::Result<Self::File>;

    /// Removes a file. A power cut may bring it back.
    fn remove(&self, number: u32) -> io::Result<()>;

    /// Opens the witness, to be written too if `write`; `None` if there is none.
    fn open_witness(&self, write: bool) -> io::Result<Option<Self::File>>;

    /// Makes the witness, as [`LogFolder::create`] makes a file.
    fn create_witness(&self, bytes: &[u8]) -> io::Result<Self::File>;

    /// Bytes that new files may take, as far as is known.
    fn free_bytes(&self) -> u64;

    /// Where a file is, for people.
    fn path(&self, number: u32) -> PathBuf;

    /// Where the witness is, for people.
    fn witness_path(&self) -> PathBuf;

    /// A number that nobody can guess, another at each call.
    fn random_number(&self) -> u64;
}

/// A folder of the disk. Files are named `000001.log`, and the witness `synced`.
#[derive(Debug)]
pub(super) struct DiskFolder {
    path: PathBuf,
}

impl DiskFolder {
    /// The folder `path`; nothing is looked at.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn create_at(&self, path: PathBuf, bytes: &[u8]) -> io::Result<DiskFile> {
        let new = path.with_extension(NEW_ENDING);
        let make = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            let file = options.open(&new)?;
            file.write_all_at(bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()?;
            Ok(file)
        };
        match make() {
            Ok(file) => Ok(DiskFile::new(file, path)),
            Err(error) => Err(named(&path, &error)),
        }
    }
}

fn open_at(path: PathBuf, write: bool) -> io::Result<DiskFile> {
    let open = || {
        // A pipe would wait for its other end.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        OpenOptions::new().read(true).write(write).open(&path)
    };
    match open() {
        Ok(file) => Ok(DiskFile::new(file, path)),
        Err(error) => Err(named(&path, &error)),
    }
}

impl LogFolder for DiskFolder {
    type File = DiskFile;

    fn list(&self) -> io::Result<Vec<u32>> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is_log = path.extension().is_some_and(|ending| ending == ENDING);
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            if let (true, Some(number)) = (is_log, number)
                && self.path(number) == path
                && number < NUMBER_END
            {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    fn open(&self, number: u32, write: bool) -> io::Result<DiskFile> {
        open_at(self.path(number), write)
    }

    fn create(&self, number: u32, bytes: &[u8]) -> io::Result<DiskFile> {
        self.create_at(self.path(number), bytes)
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        let path = self.path(number);
        std::fs::remove_file(&path).map_err(|error| named(&path, &error))
    }

    fn open_witness(&self, write: bool) -> io::Result<Option<DiskFile>> {
        match open_at(self.witness_path(), write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    fn create_witness(&self, bytes: &[u8]) -> io::Result<DiskFile> {
        self.create_at(self.witness_path(), bytes)
    }

    fn free_bytes(&self) -> u64 {
        statvfs(&self.path).map_or(0, |found| {
            found
                .blocks_available()
                .saturating_mul(found.fragment_size())
        })
    }

    fn path(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:06}.{ENDING}"))
    }

    fn witness_path(&self) -> PathBuf {
        self.path.join(WITNESS)
    }

    fn random_number(&self) -> u64 {
        // The standard library's hashers have keys of the system's random numbers.
        std::hash::RandomState::new().hash_one(self.path.as_os_str())
    }
}

/// A file of the disk. Its errors name it.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    path: PathBuf,
    /// Whether a sync has failed; held during each.
    sync_failed: Mutex<bool>,
}

impl LogFile for DiskFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.named(self.file.read_exact_at(into, offset))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.named(self.file.write_all_at(data, offset))
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock();
        let synced = match *failed {
            true => Err(io::Error::other("an earlier sync has failed")),
            false => self.file.sync_data(),
        };
        *failed = synced.is_err();
        self.named(synced)
    }

    fn length(&self) -> io::Result<u64> {
        self.named(self.file.metadata().map(|found| found.len()))
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.named(self.file.set_len(length))
    }
}

impl DiskFile {
    fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            sync_failed: Mutex::new(false),
        }
    }

    fn named<T>(&self, answer: io::Result<T>) -> io::Result<T> {
        answer.map_err(|error| named(&self.path, &error))
    }
}

/// The same error, with the file that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
