//! What is looked at before RocksDB opens a folder, and why one is refused.
//!
//! Current  Data without the file that says which of them count: to open these as a new database
//!          would delete them.
//! Logs     Damage where no torn write can be ([`wal`](crate::wal)): RocksDB would cut the log there.
//! Refusal  An [`OpenError`] is one line, with what to do about it.

use std::path::{Path, PathBuf};

use super::options::OptionsError;
use crate::engine::EngineKind;
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

/// Refuses a folder without `CURRENT` that holds logs or tables. A database that was cut off
/// while it was made has neither: it is completed. RocksDB would make a new one of both, and
/// remove the files that do not belong to it.
pub(super) fn check_current(kind: EngineKind, folder: &Path) -> Result<(), OpenError> {
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
            engine: kind,
            folder: folder.to_owned(),
            data,
        }),
    }
}

pub(super) fn check_logs(kind: EngineKind, folder: &Path) -> Result<(), OpenError> {
    match wal::check_folder(folder, kind) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(damage)) => Err(OpenError::DamagedWal {
            engine: kind,
            damage,
        }),
        Err(error) => Err(OpenError::UnreadableWal {
            engine: kind,
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
