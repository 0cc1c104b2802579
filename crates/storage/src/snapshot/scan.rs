//! What a start finds in the folder of snapshot files, and clears away.
//!
//! * Leftovers, and snapshots that were made here: removed. No sender outlives a process.
//! * Received, with a description and every table in full length: complete.
//! * Received, with an offer: its parts stay, to be resumed. Tables that had their final
//!   name before the description was there become parts again.
//! * Anything else under one of our names: removed. Other names are left alone.

use std::collections::BTreeMap;

use strata_proto::stratapb::SnapshotMeta;

use super::error::SnapshotError;
use super::files::{FileStore, read_record};
use super::meta::{check, contents};
use super::name::{Origin, Role, SnapshotKey, is_leftover};
use crate::error::Error;
use crate::record::RecordKind;

/// What is usable.
#[derive(Default)]
pub(super) struct Found {
    pub(super) complete: Vec<(SnapshotKey, SnapshotMeta)>,
    /// At most one of a region.
    pub(super) partial: Vec<(SnapshotKey, SnapshotMeta)>,
}

/// Sorts out a folder.
pub(super) fn scan<F: FileStore>(files: &F) -> Result<Found, SnapshotError> {
    let mut groups: BTreeMap<SnapshotKey, Vec<String>> = BTreeMap::new();
    for (name, _) in files.list()? {
        if is_leftover(&name, F::ENDING) {
            files.remove(&name)?;
        } else if let Some((key, _)) = SnapshotKey::parse(&name, F::ENDING) {
            groups.entry(key).or_default().push(name);
        }
    }
    let mut found = Found::default();
    // Descending: of two snapshots of a region the newer one may be resumed.
    for (key, names) in groups.into_iter().rev() {
        if let Some(meta) = complete(files, &key)? {
            found.complete.push((key, meta));
            continue;
        }
        let taken = |(other, _): &(SnapshotKey, _)| other.region_id == key.region_id;
        match described(files, &key, Role::Offer)? {
            Some(offer) if !found.partial.iter().any(taken) => {
                reopen(files, &key, &offer)?;
                found.partial.push((key, offer));
            }
            _ => names.iter().try_for_each(|name| files.remove(name))?,
        }
    }
    files.sync_folder()?;
    Ok(found)
}

fn complete<F: FileStore>(
    files: &F,
    key: &SnapshotKey,
) -> Result<Option<SnapshotMeta>, SnapshotError> {
    let Some(meta) = described(files, key, Role::Meta)? else {
        return Ok(None);
    };
    for (content, file) in contents(&meta).zip(&meta.files) {
        let name = key.name(Role::Table(content), F::ENDING);
        if files.length(&name)? != Some(file.length) {
            return Ok(None);
        }
    }
    // The receiver's records are of no use any more.
    for role in [Role::Offer, Role::Progress] {
        files.remove(&key.name(role, F::ENDING))?;
    }
    Ok(Some(meta))
}

/// The description of a received snapshot; `None` if there is none, or a damaged one.
fn described<F: FileStore>(
    files: &F,
    key: &SnapshotKey,
    role: Role,
) -> Result<Option<SnapshotMeta>, SnapshotError> {
    if key.origin == Origin::Generated {
        return Ok(None);
    }
    let name = key.name(role, F::ENDING);
    match read_record::<F, SnapshotMeta>(files, RecordKind::SnapshotMeta, &name) {
        Ok(Some(meta)) => {
            let holds =
                check(&meta, F::FORM).is_ok() && SnapshotKey::new(key.origin, &meta) == *key;
            Ok(holds.then_some(meta))
        }
        Ok(None) | Err(SnapshotError::Storage(Error::CorruptRecord { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

fn reopen<F: FileStore>(
    files: &F,
    key: &SnapshotKey,
    meta: &SnapshotMeta,
) -> Result<(), SnapshotError> {
    files.remove(&key.name(Role::Meta, F::ENDING))?;
    for content in contents(meta) {
        let table = key.name(Role::Table(content), F::ENDING);
        if files.length(&table)?.is_some() {
            files.rename(&table, &key.name(Role::Part(content), F::ENDING))?;
        }
    }
    Ok(())
}
