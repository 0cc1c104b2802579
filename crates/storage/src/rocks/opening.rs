//! What is looked at before RocksDB opens a folder, and why one is refused.
//!
//! Current  Data without the file that says which of them count: to open these as a new database
//!          would delete them.
//! Logs     Damage where no torn write can be ([`wal`](crate::wal)): RocksDB would cut the log there.
//! Refusal  An [`OpenError`] is one line, with what to do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::options::OptionsError;
use crate::engine::EngineKind;
use crate::raft_log::{self, LogDamage, RecoveryError};
use crate::wal::{self, WalDamage};

/// Why an engine could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The settings could lose data.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A write-ahead log is damaged where no torn write can be.
    #[error(
        "{engine} engine: damaged write-ahead log: {damage}; restore the file, or replace the store by a new one"
    )]
    DamagedWal {
        /// The engine.
        engine: EngineKind,
        /// File, offset and fault.
        damage: WalDamage,
    },
    /// A write-ahead log cannot be read.
    #[error("{engine} engine: cannot read the write-ahead logs in {}: {detail}", folder.display())]
    UnreadableWal {
        /// The engine.
        engine: EngineKind,
        /// The engine's folder.
        folder: PathBuf,
        /// What the system reported.
        detail: String,
    },
    /// The raft log is damaged where no torn write can be.
    #[error("raft engine: damaged log: {0}; restore the file, or replace the store by a new one")]
    DamagedRaftLog(LogDamage),
    /// The raft log cannot be read.
    #[error("raft engine: cannot open the log in {}: {detail}; {advice}", folder.display())]
    UnreadableRaftLog {
        /// The engine's folder.
        folder: PathBuf,
        /// What the system reported.
        detail: String,
        /// What to do.
        advice: &'static str,
    },
    /// There is no raft log, and there should be one.
    #[error("raft engine: {} holds no log; restore the folder, or replace the store by a new one", .0.display())]
    RaftLogMissing(PathBuf),
    /// The raft engine is a database, as versions before format 2 had it.
    #[error("raft engine: {} holds a database of an earlier version; restore the folder, or replace the store by a new one", .0.display())]
    ForeignRaftEngine(PathBuf),
    /// There are data, and nothing that says which of them count. To open this as a new
    /// database would delete them.
    #[error("{engine} engine: {} holds {data} but no file CURRENT; restore the folder, or replace the store by a new one", folder.display())]
    CurrentMissing {
        /// The engine.
        engine: EngineKind,
        /// The engine's folder.
        folder: PathBuf,
        /// The first file of data that was found.
        data: String,
    },
    /// RocksDB refused.
    #[error("{engine} engine: cannot open {}: {detail}", folder.display())]
    Refused {
        /// The engine.
        engine: EngineKind,
        /// The engine's folder.
        folder: PathBuf,
        /// What RocksDB reported.
        detail: String,
    },
}

impl OpenError {
    /// Why the raft log in `folder` could not be opened.
    pub(crate) fn of_raft_log(folder: &Path, error: RecoveryError) -> Self {
        match error {
            RecoveryError::Damage(damage) => Self::DamagedRaftLog(damage),
            RecoveryError::System(error) => Self::UnreadableRaftLog {
                folder: folder.to_owned(),
                detail: error.to_string(),
                advice: match error.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                        "make room on this disk and start the node again"
                    }
                    _ => "mend what is there, and start the node again",
                },
            },
        }
    }
}

/// Refuses a folder for the raft log that holds a database, whose files are named alike, and one
/// without a log where none may be made (`create`).
pub(crate) fn check_raft_folder(folder: &Path, create: bool) -> Result<(), OpenError> {
    if folder.join("CURRENT").exists() {
        return Err(OpenError::ForeignRaftEngine(folder.to_owned()));
    }
    // A folder that cannot be listed is refused when it is opened.
    if create || raft_log::has_files(folder).unwrap_or(true) {
        return Ok(());
    }
    Err(OpenError::RaftLogMissing(folder.to_owned()))
}

/// Refuses a folder without `CURRENT` that holds logs or tables. A database that was cut off
/// while it was made has neither: it is completed. RocksDB would make a new one of both, and
/// remove the files that do not belong to it.
pub(super) fn check_current(folder: &Path) -> Result<(), OpenError> {
    if folder.join("CURRENT").exists() {
        return Ok(());
    }
    // A folder that cannot be listed is refused with its logs.
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".log") || name.ends_with(".sst"))
        .collect();
    names.sort();
    match names.into_iter().next() {
        None => Ok(()),
        Some(data) => Err(OpenError::CurrentMissing {
            engine: EngineKind::Kv,
            folder: folder.to_owned(),
            data,
        }),
    }
}

pub(super) fn check_logs(folder: &Path) -> Result<(), OpenError> {
    match wal::check_folder(folder) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(damage)) => Err(OpenError::DamagedWal {
            engine: EngineKind::Kv,
            damage,
        }),
        Err(error) => Err(OpenError::UnreadableWal {
            engine: EngineKind::Kv,
            folder: folder.to_owned(),
            detail: error.to_string(),
        }),
    }
}

/// What RocksDB reported, with what to do about it where that is known. RocksDB passes the
/// system's words on, not its number.
pub(super) fn advised(error: rocksdb::Error) -> String {
    let detail = error.into_string();
    if detail.contains("No space left") || detail.contains("quota exceeded") {
        return format!("{detail}; make room on this disk and start the node again");
    }
    let line = detail.replace(char::is_control, " ");
    format!("{line}; restore the folder, or replace the store by a new one")
}
