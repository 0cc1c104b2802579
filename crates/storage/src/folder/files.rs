//! The files of a data folder beside its engines.
//!
//! Small files are written whole: a temporary file, its sync, a rename, the folder's
//! sync. A crash leaves the old one or the new one.

use std::cmp::Ordering;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use strata_proto::stratapb::StoreIdent;

use super::FolderError;
use crate::bootstrap::FORMAT_VERSION;
use crate::engine::EngineKind;
use crate::record::{self, RecordKind};

const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
const IDENT_FILE: &str = "IDENT";
/// Word in front of the version in `FORMAT`.
const FORMAT_WORD: &str = "strata";
/// Longest `FORMAT` and `LOCK` that are read.
const TEXT_BYTES_MAX: u64 = 64;
/// Longest `IDENT` that is read: the ids of some 100,000 stores.
const IDENT_BYTES_MAX: u64 = 1 << 20;
/// Write permission of owner, group and others.
const MODE_WRITE_ANY: u32 = 0o222;

/// Holds a folder for this process; the lock ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: Flock<File>,
}

/// Where an engine lives.
pub(super) fn engine_folder(path: &Path, kind: EngineKind) -> PathBuf {
    path.join(kind.to_string())
}

/// Reads the format of a folder and refuses what this version does not know. A folder
/// that does not exist, or has neither `FORMAT` nor engines, is new.
pub(super) fn check_format(path: &Path) -> Result<(), FolderError> {
    if fs::metadata(path).is_ok_and(|found| !found.is_dir()) {
        let folder = path.to_owned();
        return Err(FolderError::NotAFolder { folder });
    }
    let Some(text) = read_text(&path.join(FORMAT_FILE))? else {
        return check_no_engines(path);
    };
    let version = text
        .trim_end()
        .strip_prefix(FORMAT_WORD)
        .and_then(|rest| rest.trim().parse().ok());
    match version {
        Some(found) if found > 0 => check_version(path, found),
        _ => Err(FolderError::UnknownFormat {
            folder: path.to_owned(),
            found: text,
        }),
    }
}

/// Refuses what another version of the program made.
pub(super) fn check_version(path: &Path, found: u32) -> Result<(), FolderError> {
    let (folder, known) = (path.to_owned(), FORMAT_VERSION);
    match found.cmp(&known) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(FolderError::NewerFormat {
            folder,
            found,
            known,
        }),
        Ordering::Less => Err(FolderError::OlderFormat {
            folder,
            found,
            known,
        }),
    }
}

fn check_no_engines(path: &Path) -> Result<(), FolderError> {
    for name in ["kv", "raft", IDENT_FILE] {
        if path.join(name).exists() {
            return Err(FolderError::FormatMissing {
                folder: path.to_owned(),
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// True if a process came as far as to write the format of its data; an engine may still
/// be missing.
pub(super) fn is_initialised(path: &Path) -> bool {
    path.join(FORMAT_FILE).exists()
}

/// Writes the format of a new folder, before anything else is put into it.
pub(super) fn write_format(path: &Path) -> Result<(), FolderError> {
    let file = path.join(FORMAT_FILE);
    if file.exists() {
        return Ok(());
    }
    let text = format!("{FORMAT_WORD} {FORMAT_VERSION}\n");
    write_small(path, FORMAT_FILE, text.as_bytes())
}

/// The noted identity; `None` if there is none or it is damaged, as the engines hold it.
pub(super) fn read_ident(path: &Path) -> Result<Option<StoreIdent>, FolderError> {
    let stored = read_small(&path.join(IDENT_FILE), IDENT_BYTES_MAX)?;
    let key = IDENT_FILE.as_bytes();
    Ok(stored
        .and_then(|stored| record::decode(RecordKind::StoreIdent, key, &Bytes::from(stored)).ok()))
}

/// Notes the identity.
pub(super) fn write_ident(path: &Path, ident: &StoreIdent) -> Result<(), FolderError> {
    let stored = record::encode(IDENT_FILE.as_bytes(), ident);
    write_small(path, IDENT_FILE, &stored)
}

/// Makes the folder if there is none, and refuses one that cannot be written.
pub(super) fn prepare(path: &Path) -> Result<(), FolderError> {
    let existing = path.ancestors().find(|part| part.exists());
    let mut parts = vec![existing.unwrap_or(Path::new(".")).to_owned()];
    if path.exists() {
        let engines = [EngineKind::Kv, EngineKind::Raft].map(|kind| engine_folder(path, kind));
        parts.extend(engines.into_iter().filter(|folder| folder.exists()));
    }
    for part in parts {
        check_writable(&part)?;
    }
    make_durably(path).map_err(|error| file_error(path, "make the folder", &error))
}

/// Makes a folder and the parents it lacks, and syncs each new entry: a power cut must
/// not take away a folder whose contents were synced.
fn make_durably(path: &Path) -> io::Result<()> {
    let new: Vec<_> = path.ancestors().take_while(|part| !part.exists()).collect();
    for part in new.into_iter().rev().filter(|part| *part != Path::new("")) {
        match fs::create_dir(part) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync_parent(part)?;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Syncs the entries of a folder whose engines are open, and of a new one (`is_new`) its own
/// entry. The process that made them may have been killed before it came to that, and this
/// one would take them for durable.
pub(super) fn settle(path: &Path, is_new: bool) -> Result<(), FolderError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    let synced = synced.and_then(|()| if is_new { sync_parent(path) } else { Ok(()) });
    synced.map_err(|error| file_error(path, "sync", &error))
}

fn check_writable(folder: &Path) -> Result<(), FolderError> {
    let found = fs::metadata(folder).map_err(|error| file_error(folder, "look at", &error))?;
    // A file system that does not tell counts as writable; the lock file will show.
    let read_only = statvfs(folder).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    match forbids_writing(found.permissions().mode(), read_only) {
        None => Ok(()),
        Some(reason) => Err(FolderError::ReadOnly {
            folder: folder.to_owned(),
            reason: reason.to_owned(),
        }),
    }
}

/// Why a folder of this mode, on a file system of this kind, is not written. The mode
/// counts for the superuser too, whom the system would let through: a folder without any
/// write permission was meant to stay as it is.
pub(super) fn forbids_writing(mode: u32, read_only_mount: bool) -> Option<&'static str> {
    if read_only_mount {
        Some("the file system is mounted read-only")
    } else if mode & MODE_WRITE_ANY == 0 {
        Some("its mode has no write permission")
    } else {
        None
    }
}

/// Locks the folder for this process.
pub(super) fn lock(path: &Path) -> Result<FolderLock, FolderError> {
    let name = path.join(LOCK_FILE);
    let file = check_is_file(&name)
        .and_then(|()| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&name)
        })
        .map_err(|error| file_error(&name, "open", &error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut locked) => {
            // For the message that another process will print; nothing depends on it.
            let _ = locked.set_len(0);
            let _ = write!(&mut *locked, "{}", std::process::id());
            Ok(FolderLock { _file: locked })
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(in_use(path)),
        Err((_, errno)) => Err(file_error(&name, "lock", &errno.into())),
    }
}

/// Locks a folder that is only read: beside other readers, not beside a node. Writes
/// nothing, not even the process id.
pub(super) fn lock_shared(path: &Path) -> Result<FolderLock, FolderError> {
    let name = path.join(LOCK_FILE);
    // Not `file_error`, which asks for a folder that can be written.
    let cannot = |action, error: io::Error| FolderError::File {
        path: name.clone(),
        action,
        detail: error.to_string(),
    };
    let file = check_is_file(&name)
        .and_then(|()| File::open(&name))
        .map_err(|error| cannot("open", error))?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(locked) => Ok(FolderLock { _file: locked }),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(in_use(path)),
        Err((_, errno)) => Err(cannot("lock", errno.into())),
    }
}

/// Names the process that holds the lock, as far as the lock file tells.
fn in_use(path: &Path) -> FolderError {
    let text = read_text(&path.join(LOCK_FILE)).ok().flatten();
    FolderError::InUse {
        folder: path.to_owned(),
        process_id: text.and_then(|text| text.trim().parse().ok()),
    }
}

/// The beginning of a text file; `None` if there is no file.
fn read_text(file: &Path) -> Result<Option<String>, FolderError> {
    let bytes = read_small(file, TEXT_BYTES_MAX)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Refuses what is there and no file, before it is opened: a pipe would wait for its writer.
fn check_is_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::other("it is no file")),
        _ => Ok(()),
    }
}

/// At most `bytes_max` bytes of a file; `None` if there is none.
fn read_small(file: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, FolderError> {
    let mut bytes = Vec::new();
    let read = check_is_file(file)
        .and_then(|()| File::open(file)?.take(bytes_max).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(file, "read", &error)),
    }
}

fn write_small(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
    let file = folder.join(name);
    let temporary = folder.join(format!("{name}.tmp"));
    let write = || {
        let mut opened = File::create(&temporary)?;
        opened.write_all(bytes)?;
        opened.sync_all()?;
        fs::rename(&temporary, &file)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error: io::Error| {
        // The one that is in the way, of the two.
        let at = if file.is_dir() { &file } else { &temporary };
        file_error(at, "write", &error)
    })
}

/// Names what failed; what the system forbids to write is a read-only folder, and a full
/// disk is told apart because room heals it.
pub(super) fn file_error(path: &Path, action: &'static str, error: &io::Error) -> FolderError {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            FolderError::ReadOnly {
                folder: path.to_owned(),
                reason: error.to_string(),
            }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FolderError::DiskFull {
            path: path.to_owned(),
            action,
            detail: error.to_string(),
        },
        _ => FolderError::File {
            path: path.to_owned(),
            action,
            detail: error.to_string(),
        },
    }
}
