//! A stopped node's folder, opened to be looked at.
//!
//! Format and identity are checked as for a start, the lock is shared with other readers
//! and refused beside a node. Nothing in the folder is written.

use std::path::Path;
use std::sync::Arc;

use strata_proto::stratapb::StoreIdent;

use super::{Claim, FolderError, files};
use crate::bootstrap;
use crate::disk::DiskReader;
use crate::engine::{EngineKind, Engines};
use crate::raft_log;
use crate::rocks::{EngineOptions, OpenWith};

/// A data folder that is only read. No node can start on it meanwhile.
#[derive(Debug)]
pub struct FolderReader {
    engines: Engines<DiskReader>,
    ident: StoreIdent,
}

impl FolderReader {
    /// Opens the folder of a store whose process has stopped.
    ///
    /// # Errors
    /// [`FolderError`] says in one line why not: `InUse` beside a running node, `NoStore`
    /// where no node ever was. Nothing is written in any case.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, FolderError> {
        let no_store = || FolderError::NoStore {
            folder: path.to_owned(),
        };
        files::check_format(path)?;
        if !files::is_initialised(path) {
            return Err(no_store());
        }
        let lock = Arc::new(files::lock_shared(path)?);
        let cache = options.new_cache();
        let open = |kind: EngineKind| {
            let with = OpenWith {
                cache: &cache,
                create: false,
                keep: Some(lock.clone()),
            };
            DiskReader::open(kind, &files::engine_folder(path, kind), options, with)
        };
        // A first start that was killed before it came to the engines.
        if files::read_ident(path)?.is_none()
            && !raft_log::has_files(&files::engine_folder(path, EngineKind::Raft)).unwrap_or(true)
        {
            return Err(no_store());
        }
        let engines = Engines {
            raft: open(EngineKind::Raft)?,
            kv: open(EngineKind::Kv)?,
        };
        let ident = bootstrap::read_ident(&engines)?.ok_or_else(no_store)?;
        Claim::default().check(path, &ident)?;
        Ok(Self { engines, ident })
    }

    /// Its engines, as of the opening.
    #[must_use]
    pub fn engines(&self) -> &Engines<DiskReader> {
        &self.engines
    }

    /// The store's identity.
    #[must_use]
    pub fn ident(&self) -> &StoreIdent {
        &self.ident
    }
}
