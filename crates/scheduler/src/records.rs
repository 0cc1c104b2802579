//! Records of the scheduler in the system region, and the state that they add up to.
//!
//! | key | value |
//! |---|---|
//! | `i` | the next id to give out, 8 bytes big-endian |
//! | `t` | the timestamp mark in milliseconds since 1970, 8 bytes big-endian |
//! | `s` store id | metapb.Store |
//! | `r` region id | metapb.Region; empty: the region is gone |
//!
//! A region without a record is as the bootstrap made it. Ids in keys are 8 bytes,
//! big-endian. Checksums are the business of the layer below.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use strata_proto::metapb::{Region, Store};
use strata_raftstore::{SystemView, SystemViewError};

use crate::directory::Directory;

/// The region that holds the scheduler's state and is hidden from clients.
pub const SYSTEM_REGION_ID: u64 = 1;
/// The first id that is given out; the bootstrap uses smaller ones only.
pub const FIRST_ID: u64 = 1_000_000;

pub(crate) const NEXT_ID_KEY: &[u8] = b"i";
pub(crate) const TIMESTAMP_KEY: &[u8] = b"t";
const STORE_PREFIX: u8 = b's';
const REGION_PREFIX: u8 = b'r';

/// The key of a store's record.
pub(crate) fn store_key(store_id: u64) -> Bytes {
    id_key(STORE_PREFIX, store_id)
}

/// The key of a region's record.
pub(crate) fn region_key(region_id: u64) -> Bytes {
    id_key(REGION_PREFIX, region_id)
}

fn id_key(prefix: u8, id: u64) -> Bytes {
    let mut key = vec![prefix];
    key.extend_from_slice(&id.to_be_bytes());
    key.into()
}

/// Reads a number record; `None` where there is none.
pub(crate) fn read_number(
    view: &dyn SystemView,
    key: &[u8],
) -> Result<Option<u64>, SystemViewError> {
    let Some(value) = view.get(key)? else {
        return Ok(None);
    };
    let bytes: [u8; 8] = value[..].try_into().map_err(|_| {
        SystemViewError(format!(
            "the record {} has {} bytes in place of 8",
            String::from_utf8_lossy(key),
            value.len()
        ))
    })?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// Everything that region 1 replicates, read at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct SystemState {
    /// The next id to give out.
    pub next_id: u64,
    /// All timestamps given out so far lie below this, milliseconds since 1970.
    pub reserved_until_ms: u64,
    /// Stores that have registered, by id.
    pub stores: BTreeMap<u64, Store>,
    /// The regions.
    pub directory: Directory,
}

impl SystemState {
    /// Reads the state; `bootstrap` is the layout that the cluster began with.
    ///
    /// # Errors
    /// The view failed, or a record does not decode.
    pub fn load(view: &dyn SystemView, bootstrap: &[Region]) -> Result<Self, SystemViewError> {
        Ok(SystemState {
            next_id: read_number(view, NEXT_ID_KEY)?.unwrap_or(FIRST_ID),
            reserved_until_ms: read_number(view, TIMESTAMP_KEY)?.unwrap_or(0),
            stores: load_stores(view)?,
            directory: load_directory(view, bootstrap)?,
        })
    }
}

fn load_stores(view: &dyn SystemView) -> Result<BTreeMap<u64, Store>, SystemViewError> {
    let mut stores = BTreeMap::new();
    visit(view, STORE_PREFIX, |id, value| {
        let store = Store::decode(value)
            .map_err(|error| SystemViewError(format!("the record of store {id}: {error}")))?;
        stores.insert(id, store);
        Ok(())
    })?;
    Ok(stores)
}

/// The directory: the bootstrap layout, then the records over it.
pub(crate) fn load_directory(
    view: &dyn SystemView,
    bootstrap: &[Region],
) -> Result<Directory, SystemViewError> {
    let mut directory = Directory::new(bootstrap.iter().cloned());
    let mut changed = Vec::new();
    visit(view, REGION_PREFIX, |id, value| {
        // What has a record does not stand as the bootstrap made it; all of that goes
        // first, so that no old range hides a new one with the same start.
        directory.remove(id);
        if !value.is_empty() {
            let region = Region::decode(value)
                .map_err(|error| SystemViewError(format!("the record of region {id}: {error}")))?;
            changed.push(region);
        }
        Ok(())
    })?;
    for region in changed {
        directory.insert(region);
    }
    Ok(directory)
}

/// Visits all records of one kind with their ids.
fn visit(
    view: &dyn SystemView,
    prefix: u8,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), SystemViewError>,
) -> Result<(), SystemViewError> {
    let mut outcome = Ok(());
    view.scan(&[prefix], &[prefix + 1], false, &mut |key, value| {
        let id = <[u8; 8]>::try_from(&key[1..])
            .map(u64::from_be_bytes)
            .map_err(|_| SystemViewError(format!("a record key has {} bytes", key.len())));
        outcome = id.and_then(|id| each(id, value));
        if outcome.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    outcome
}
