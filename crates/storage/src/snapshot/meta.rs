//! The description of a snapshot: its id, its checks, its way through raft.
//!
//! A description comes from the network or from a file, and passes [`check`] before
//! anything is done with it.

use bytes::Bytes;
use prost::Message;
use strata_proto::eraftpb::{Snapshot, SnapshotMetadata};
use strata_proto::metapb::Region;
use strata_proto::stratapb::{SnapshotForm, SnapshotMeta};

use super::content::Content;
use super::error::{MetaFault, SnapshotError};
use crate::bootstrap::hash64;
use crate::region_records::conf_state_of;

/// Bytes that all files of a snapshot together cannot have: sums stay far from overflow.
const BYTES_BOUND: u64 = 1 << 50;

/// The id that belongs to a description: a hash of all of it (crash rule 11), so that a
/// bit that flips on the way in range, membership or clock is found too.
#[must_use]
pub fn snapshot_id(meta: &SnapshotMeta) -> u64 {
    let without_id = SnapshotMeta {
        id: 0,
        ..meta.clone()
    };
    // Fields are encoded in their order, and there are no maps.
    hash64(&without_id.encode_to_vec())
}

/// Bytes of all files; descriptions that passed [`check`] do not overflow.
#[must_use]
pub fn total_bytes(meta: &SnapshotMeta) -> u64 {
    meta.files.iter().map(|file| file.length).sum()
}

/// Checks everything that a description says about itself, and that this node's engine
/// takes files of its form.
///
/// # Errors
/// The first fault.
pub fn check(meta: &SnapshotMeta, form: SnapshotForm) -> Result<(), MetaFault> {
    let region = meta.region.as_ref().ok_or(MetaFault::Region)?;
    if region.id == 0 || region.region_epoch.is_none() || region.peers.is_empty() {
        return Err(MetaFault::Region);
    }
    if !region.end_key.is_empty() && region.start_key >= region.end_key {
        return Err(MetaFault::Range);
    }
    if meta.index == 0 || meta.term == 0 {
        return Err(MetaFault::Position {
            index: meta.index,
            term: meta.term,
        });
    }
    if meta.conf_state.as_ref() != Some(&conf_state_of(region)) {
        return Err(MetaFault::ConfState);
    }
    if meta.form != i32::from(form) {
        return Err(MetaFault::Form {
            found: meta.form,
            expected: form.into(),
        });
    }
    check_files(meta, region)?;
    let expected = snapshot_id(meta);
    if meta.id != expected {
        return Err(MetaFault::Id {
            found: meta.id,
            expected,
        });
    }
    Ok(())
}

fn check_files(meta: &SnapshotMeta, region: &Region) -> Result<(), MetaFault> {
    let mut last = None;
    let mut total = 0u64;
    for file in &meta.files {
        let foreign = || MetaFault::File(file.name.clone());
        let content = Content::from_name(&file.name).ok_or_else(foreign)?;
        if last >= Some(content) || content.range(region).is_none() {
            return Err(foreign());
        }
        last = Some(content);
        total = total.saturating_add(file.length);
        if file.length == 0 || total > BYTES_BOUND {
            return Err(MetaFault::Length {
                name: file.name.clone(),
                length: file.length,
            });
        }
    }
    Ok(())
}

/// The region of a description that passed [`check`].
pub(super) fn region_of(meta: &SnapshotMeta) -> &Region {
    meta.region
        .as_ref()
        .expect("a checked description names its region")
}

/// The contents of the files of a description that passed [`check`], in their order.
pub(super) fn contents(meta: &SnapshotMeta) -> impl Iterator<Item = Content> + '_ {
    meta.files.iter().map(|file| {
        Content::from_name(&file.name).expect("a checked description names known files")
    })
}

/// What raft sends in place of the log: the description as its data.
#[must_use]
pub fn to_raft(meta: &SnapshotMeta) -> Snapshot {
    Snapshot {
        data: Bytes::from(meta.encode_to_vec()),
        metadata: Some(SnapshotMetadata {
            conf_state: meta.conf_state.clone(),
            index: meta.index,
            term: meta.term,
        }),
    }
}

/// The description in a raft snapshot, checked.
///
/// # Errors
/// `BadMeta`.
pub fn from_raft(snapshot: &Snapshot, form: SnapshotForm) -> Result<SnapshotMeta, SnapshotError> {
    let meta = SnapshotMeta::decode(snapshot.data.clone()).map_err(|_| MetaFault::Malformed)?;
    check(&meta, form)?;
    if snapshot.metadata != to_raft(&meta).metadata {
        return Err(MetaFault::Message.into());
    }
    Ok(meta)
}
