//! Why a data folder was refused: each variant is one line for the user.

use std::path::PathBuf;

use crate::error::Error;
use crate::rocks::OpenError;

/// Why a data folder was refused. The folder was not touched unless the variant says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// A newer version of the program made it.
    #[error("{}: data format {found} is newer than {known}, which this version knows; use a newer version", folder.display())]
    NewerFormat {
        /// The folder.
        folder: PathBuf,
        /// Its version.
        found: u32,
        /// The version of this program.
        known: u32,
    },
    /// An earlier version of the program made it.
    #[error("{}: data format {found} is of an earlier version, this one knows {known}; take the data out with that version (strata export) and into a new folder with this one (strata import)", folder.display())]
    OlderFormat {
        /// The folder.
        folder: PathBuf,
        /// Its version.
        found: u32,
        /// The version of this program.
        known: u32,
    },
    /// `FORMAT` holds something else than a version.
    #[error("{}: the file FORMAT holds {found:?}, not a version; is this a data folder?", folder.display())]
    UnknownFormat {
        /// The folder.
        folder: PathBuf,
        /// The beginning of what the file holds.
        found: String,
    },
    /// There are engines, but no `FORMAT`.
    #[error("{}: holds {name} but no file FORMAT; is this a data folder?", folder.display())]
    FormatMissing {
        /// The folder.
        folder: PathBuf,
        /// What was found.
        name: String,
    },
    /// Another process has it open.
    #[error("{}: in use by another process{}; stop that one, or choose another folder", folder.display(), process_id.map(|id| format!(" (pid {id})")).unwrap_or_default())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other process, if it left its id.
        process_id: Option<u32>,
    },
    /// It cannot be written.
    #[error("{}: read-only ({reason}); a node needs to write its folder: make it writable, or choose another", folder.display())]
    ReadOnly {
        /// The folder, or the first part of it that forbids writing.
        folder: PathBuf,
        /// What forbids it.
        reason: String,
    },
    /// The path is not a folder.
    #[error("{}: not a folder; choose another path", folder.display())]
    NotAFolder {
        /// The path.
        folder: PathBuf,
    },
    /// There is no store's data, and the folder was to be read only.
    #[error("{}: holds no store's data; name the --data-dir of a node that ran before", folder.display())]
    NoStore {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder belongs to another store than the command line names.
    #[error("{}: belongs to store {found}, not to store {asked}; give the folder of store {asked}, or the id {found}", folder.display())]
    ForeignStore {
        /// The folder.
        folder: PathBuf,
        /// Store of the folder.
        found: u64,
        /// Store of the command line.
        asked: u64,
    },
    /// The folder belongs to a cluster with another token.
    #[error("{}: belongs to cluster {cluster_id}, which has another cluster token; give that token, or choose another folder", folder.display())]
    ForeignCluster {
        /// The folder.
        folder: PathBuf,
        /// Its cluster.
        cluster_id: u64,
    },
    /// The folder belongs to a cluster of other initial stores.
    #[error("{}: belongs to a cluster of the initial stores {found:?}, not {asked:?}; name those, or choose another folder", folder.display())]
    ForeignStores {
        /// The folder.
        folder: PathBuf,
        /// Initial stores of the folder.
        found: Vec<u64>,
        /// Initial stores of the command line.
        asked: Vec<u64>,
    },
    /// The folder was initialised, but its engines are empty. New files were made in it.
    #[error("{}: its engines have lost the store's identity; replace the store by a new one", folder.display())]
    EnginesLost {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk is full. What was made of a new folder is completed by the next start.
    #[error("{}: cannot {action}: {detail}; make room on this disk and start the node again", path.display())]
    DiskFull {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system reported.
        detail: String,
    },
    /// A file operation failed.
    #[error("{}: cannot {action}: {detail}; mend or remove what is there, and start the node again", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system reported.
        detail: String,
    },
    /// An engine could not be opened; its logs are as they were.
    #[error(transparent)]
    Engine(#[from] OpenError),
    /// The engines do not hold one store's identity, or fail.
    #[error(transparent)]
    Storage(Error),
}
