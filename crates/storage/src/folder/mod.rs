//! A node's data folder: opened by one process, or refused in one line.
//!
//! ```text
//! DATA/FORMAT   version of this layout, as text
//! DATA/LOCK     locked by the process that has the folder open; holds its process id
//! DATA/IDENT    copy of the store's identity, read before anything is opened
//! DATA/kv       kv engine
//! DATA/raft     raft engine
//! ```
//! Other files in the folder are left alone.
//!
//! Open   What is only read comes first: format, identity against the command line,
//!        whether the folder may be written ([`files`]). Then the lock is taken, the
//!        engines' logs are walked and the engines opened; last, the identities in both
//!        engines are compared.
//! Look   [`FolderReader`] opens the folder of a stopped node without writing to it.
//! New    A folder without identity is new: [`DataFolder::bootstrap`] makes it a store's.
//!
//! Invariants
//! * A folder that is refused for its format, its owner, its user or its mode is not
//!   touched.
//! * The lock is held as long as an engine of the folder is open anywhere.
//! * The engines' identity counts; `IDENT` is a copy that is made again when it is lost.

mod error;
mod files;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strata_proto::metapb::Region;
use strata_proto::stratapb::StoreIdent;

use crate::bootstrap;
use crate::disk::DiskEngine;
use crate::engine::{EngineKind, Engines};
use crate::error::Error;
use crate::rocks::{EngineOptions, OpenWith};
use files::FolderLock;

pub use error::FolderError;
pub use reader::FolderReader;

/// What the command line says about the store. It must agree with a folder that is
/// initialised; what is `None` is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The store's id.
    pub store_id: Option<u64>,
    /// [`token_hash`](crate::bootstrap::token_hash) of the cluster token.
    pub cluster_token_hash: Option<u64>,
    /// Ids of the initial stores, in any order.
    pub initial_stores: Option<Vec<u64>>,
}

impl Claim {
    /// Compares with the identity of the folder `path`, and refuses another format.
    ///
    /// # Errors
    /// `NewerFormat`, `OlderFormat`, `ForeignStore`, `ForeignCluster`, `ForeignStores`.
    pub fn check(&self, path: &Path, ident: &StoreIdent) -> Result<(), FolderError> {
        let folder = || path.to_owned();
        files::check_version(path, ident.format_version)?;
        if let Some(asked) = self.store_id
            && asked != ident.store_id
        {
            return Err(FolderError::ForeignStore {
                folder: folder(),
                found: ident.store_id,
                asked,
            });
        }
        if let Some(asked) = self.cluster_token_hash
            && asked != ident.cluster_token_hash
        {
            return Err(FolderError::ForeignCluster {
                folder: folder(),
                cluster_id: ident.cluster_id,
            });
        }
        if let Some(asked) = &self.initial_stores {
            let mut asked = asked.clone();
            asked.sort_unstable();
            if asked != ident.initial_stores {
                return Err(FolderError::ForeignStores {
                    folder: folder(),
                    found: ident.initial_stores.clone(),
                    asked,
                });
            }
        }
        Ok(())
    }
}

/// An open data folder.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    engines: Engines<DiskEngine>,
    ident: Option<StoreIdent>,
    _lock: Arc<FolderLock>,
}

impl DataFolder {
    /// Opens a node's folder, or makes it.
    ///
    /// # Errors
    /// [`FolderError`] says in one line why not; see there what was touched.
    pub fn open(path: &Path, options: &EngineOptions, claim: &Claim) -> Result<Self, FolderError> {
        options.validate().map_err(crate::rocks::OpenError::from)?;
        files::check_format(path)?;
        let noted = files::read_ident(path)?;
        if let Some(ident) = &noted {
            claim.check(path, ident)?;
        }
        files::prepare(path)?;
        let lock = Arc::new(files::lock(path)?);
        files::write_format(path)?;
        let engines = open_engines(path, options, noted.is_none(), &lock)?;
        files::settle(path, noted.is_none())?;
        let ident = bootstrap::read_ident(&engines)?;
        let folder = Self {
            path: path.to_owned(),
            engines,
            ident,
            _lock: lock,
        };
        if let Some(ident) = &folder.ident {
            claim.check(path, ident)?;
            if noted.as_ref() != Some(ident) {
                files::write_ident(path, ident)?;
            }
        } else if noted.is_some() {
            // Both engines are there, without identity: not those of this folder.
            return Err(FolderError::EnginesLost {
                folder: path.to_owned(),
            });
        }
        Ok(folder)
    }

    /// The folder's path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its engines; clones keep the folder locked.
    #[must_use]
    pub fn engines(&self) -> &Engines<DiskEngine> {
        &self.engines
    }

    /// The store's identity; `None` while the folder is new.
    #[must_use]
    pub fn ident(&self) -> Option<&StoreIdent> {
        self.ident.as_ref()
    }

    /// Makes a new folder that of the store `ident` with its share of `regions`; see
    /// [`bootstrap::write_bootstrap`].
    ///
    /// # Errors
    /// Errors of the engines and of writing files; `Ident` if the folder is not new.
    pub fn bootstrap(&mut self, ident: &StoreIdent, regions: &[Region]) -> Result<(), FolderError> {
        bootstrap::write_bootstrap(&self.engines, ident, regions)?;
        files::write_ident(&self.path, ident)?;
        self.ident = Some(ident.clone());
        Ok(())
    }

    /// Records that the other initial stores know this folder's incarnation; see
    /// [`bootstrap::mark_admitted`].
    ///
    /// # Errors
    /// Errors of the engines and of writing files; `Ident` if the folder is new.
    pub fn mark_admitted(&mut self) -> Result<(), FolderError> {
        let ident = bootstrap::mark_admitted(&self.engines)?;
        files::write_ident(&self.path, &ident)?;
        self.ident = Some(ident);
        Ok(())
    }
}

fn open_engines(
    path: &Path,
    options: &EngineOptions,
    create: bool,
    lock: &Arc<FolderLock>,
) -> Result<Engines<DiskEngine>, FolderError> {
    let cache = options.new_cache();
    let open = |kind: EngineKind| {
        let with = OpenWith {
            cache: &cache,
            create,
            keep: Some(lock.clone()),
        };
        DiskEngine::open_with(kind, &files::engine_folder(path, kind), options, with)
    };
    // The raft engine first: it is the one whose damage must stop the node.
    let raft = open(EngineKind::Raft)?;
    let kv = open(EngineKind::Kv)?;
    Ok(Engines::new(kv, raft))
}

impl From<Error> for FolderError {
    fn from(error: Error) -> Self {
        Self::Storage(error)
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
