//! Opening the data folder: a new one is bootstrapped, an initialised one must agree.
//!
//! An initialised folder takes everything from itself; the command line must name the
//! same store and the same initial ids, and gives addresses only.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;
use parking_lot::Mutex;
use strata_proto::metapb::Region;
use strata_proto::stratapb::{StoreIdent, StoreIncarnation};
use strata_storage::bootstrap::{ClusterSpec, layout_of_ident, token_hash};
use strata_storage::record::{self, RecordKind};
use strata_storage::snapshot::{DiskFiles, SnapshotEngine, SnapshotManager};
use strata_storage::{
    Cf, Claim, DataFolder, Direction, DiskEngine, Durability, Engine, Engines, WriteBatch, keys,
};

use crate::config::ApiV1;
use crate::options::{DEFAULT_CLUSTER_TOKEN, NodeError, NodeOptions};
use crate::settings::engine_options;

/// Name of the folder of snapshot files in the data folder.
pub(crate) const SNAPSHOT_FOLDER: &str = "snapshots";

/// A store's engines with what the node needs to know and write of its identity.
pub(crate) struct Opened<E: SnapshotEngine> {
    pub(crate) engines: Engines<E>,
    pub(crate) snapshots: SnapshotManager<E::Files>,
    pub(crate) ident: StoreIdent,
    /// Regions as the cluster began, region 1 among them.
    pub(crate) layout: Vec<Region>,
    /// Syncs that the store is admitted.
    pub(crate) persist_admission: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Opens the folder of the options, and bootstraps it if it is new. Blocks.
///
/// # Errors
/// One line that says why the folder is refused.
pub(crate) fn open(options: &NodeOptions) -> Result<Opened<DiskEngine>, NodeError> {
    let refuse = |error: &dyn std::fmt::Display| NodeError::Refused(error.to_string());
    let initial: Vec<u64> = options.initial_cluster.keys().copied().collect();
    let claim = Claim {
        store_id: Some(options.id),
        cluster_token_hash: options.cluster_token.as_deref().map(token_hash),
        initial_stores: Some(initial.clone()),
    };
    let settings = engine_options(&options.config);
    let mut folder =
        DataFolder::open(&options.data_dir, &settings, &claim).map_err(|error| refuse(&error))?;
    if folder.ident().is_none() {
        let (ident, layout) = new_ident(options, &initial)?;
        folder
            .bootstrap(&ident, &layout)
            .map_err(|error| refuse(&error))?;
    }
    let Some(mut ident) = folder.ident().cloned() else {
        return Err(NodeError::Refused(format!(
            "{}: holds no identity after its bootstrap",
            options.data_dir.display()
        )));
    };
    if !ident.admitted && ident.initial_stores.len() == 1 {
        // There is nobody to ask.
        folder.mark_admitted().map_err(|error| refuse(&error))?;
        ident.admitted = true;
    }
    let layout = layout_of_ident(&ident).map_err(|error| refuse(&error))?;
    let engines = folder.engines().clone();
    let snapshot_bytes_max = options.config.snapshot.max_total_size.0;
    let files = DiskFiles::open(&options.data_dir.join(SNAPSHOT_FOLDER));
    let snapshots = files
        .and_then(|files| SnapshotManager::open(files, snapshot_bytes_max))
        .map_err(|error| refuse(&error))?;
    let folder = Mutex::new(folder);
    let persist_admission = move || {
        let mut folder = folder.lock();
        folder.mark_admitted().map_err(|error| error.to_string())
    };
    Ok(Opened {
        engines,
        snapshots,
        ident,
        layout,
        persist_admission: Box::new(persist_admission),
    })
}

/// Identity and layout of a new cluster's store, by the command line alone but for the
/// random incarnation.
fn new_ident(
    options: &NodeOptions,
    initial: &[u64],
) -> Result<(StoreIdent, Vec<Region>), NodeError> {
    let token = options
        .cluster_token
        .as_deref()
        .unwrap_or(DEFAULT_CLUSTER_TOKEN);
    let spec = ClusterSpec::new(
        initial,
        token,
        options.region_count(),
        options.replica_count()?,
    )
    .map_err(|error| NodeError::Usage(error.to_string()))?;
    let mut ident = spec.ident(options.id, random_number()?);
    ident.api_v1 = match options.config.api.v1 {
        ApiV1::Mixed => 0,
        ApiV1::Raw => 1,
    };
    Ok((ident, spec.layout()))
}

/// A random number that no other start draws, never 0.
pub(crate) fn random_number() -> Result<u64, NodeError> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| {
            NodeError::Refused(format!("cannot read randomness from /dev/urandom: {error}"))
        })?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// The incarnations of other stores that this store has recorded.
///
/// # Errors
/// The engine failed, or a record is damaged; names it.
pub(crate) fn read_incarnations<E: Engine>(kv: &E) -> Result<Vec<StoreIncarnation>, NodeError> {
    let (start, end) = keys::store_incarnation_range();
    let mut records = Vec::new();
    let mut damage = None;
    kv.scan(
        Cf::Raft,
        &start,
        Some(&end),
        Direction::Forward,
        &mut |key, value| {
            let value = Bytes::copy_from_slice(value);
            match record::decode(RecordKind::StoreIncarnation, key, &value) {
                Ok(found) => {
                    records.push(found);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    damage = Some(error.to_string());
                    ControlFlow::Break(())
                }
            }
        },
    )
    .map_err(|error| NodeError::Refused(error.to_string()))?;
    match damage {
        None => Ok(records),
        Some(damage) => Err(NodeError::Refused(damage)),
    }
}

/// Records one incarnation so that it survives a power cut.
pub(crate) fn write_incarnation<E: Engine>(kv: &E, found: &StoreIncarnation) -> Result<(), String> {
    let mut batch = WriteBatch::new();
    let key = keys::store_incarnation(found.store_id);
    record::put(&mut batch, Cf::Raft, key, found);
    kv.write(&batch, Durability::Synced)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_storage::MemEngine;

    #[test]
    fn incarnations_are_read_as_they_were_written() {
        let engines = MemEngine::new_pair();
        let record = |store_id, incarnation| StoreIncarnation {
            store_id,
            incarnation,
        };
        assert!(read_incarnations(&engines.kv).unwrap().is_empty());
        write_incarnation(&engines.kv, &record(3, 9)).unwrap();
        write_incarnation(&engines.kv, &record(2, 8)).unwrap();
        assert_eq!(
            read_incarnations(&engines.kv).unwrap(),
            [record(2, 8), record(3, 9)]
        );
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_number().unwrap(), random_number().unwrap());
    }
}
