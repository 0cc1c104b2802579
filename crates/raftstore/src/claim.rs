//! Claims: ranges that snapshots under way are going to bring.
//!
//! Claim    A snapshot whose files are all here asks for its range before raft sees it. The
//!          range must be free of every other live region and of every earlier claim, for
//!          once raft has taken the snapshot there is no way back.
//! Release  The region's `EndClaim`: the range is in the directory then, or the snapshot was
//!          not taken. A `SetRegion` for another reason, which a change of peers brings, may
//!          come before raft sees the snapshot and ends no claim. `Destroyed` ends it, too.
//!
//! Invariants
//! * No two claims overlap, and no claim overlaps a region of the directory other than its
//!   own.
//! * While a claim lasts, the files of its snapshot stay.

use std::collections::BTreeMap;

use strata_proto::metapb::{Peer, Region};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_storage::snapshot::{
    FileStore, MetaFault, SnapshotError, SnapshotManager, SnapshotRef, check_install, from_raft,
};

use crate::directory::{Directory, find_peer_on};

/// The claims of a store.
pub(crate) struct Claims<F: FileStore> {
    snapshots: SnapshotManager<F>,
    by_region: BTreeMap<u64, SnapshotRef<F>>,
}

impl<F: FileStore> Claims<F> {
    /// No claims yet.
    pub(crate) fn new(snapshots: SnapshotManager<F>) -> Self {
        Claims {
            snapshots,
            by_region: BTreeMap::new(),
        }
    }

    /// Claims the range of the snapshot in a raft message. A later claim of the same region
    /// replaces the earlier one.
    ///
    /// # Errors
    /// `BadMeta`; `FilesMissing` if the snapshot's files are not here whole; `Overlapping`.
    pub(crate) fn claim(
        &mut self,
        directory: &Directory,
        message: &RaftMessage,
    ) -> Result<(), SnapshotError> {
        let snapshot = message.message.as_ref().and_then(|m| m.snapshot.as_ref());
        let meta = from_raft(&snapshot.cloned().unwrap_or_default(), F::FORM)?;
        let region_id = meta.region.as_ref().map_or(0, |region| region.id);
        if region_id != message.region_id {
            return Err(SnapshotError::NoSuchRegion {
                region_id: message.region_id,
            });
        }
        let live = directory.iter().map(|entry| &*entry.region);
        let claimed = self.by_region.values().map(SnapshotRef::region);
        check_install(&meta, None, live.chain(claimed))?;
        // Another leader's snapshot of the same index may be here, too.
        let files = self
            .snapshots
            .find_received_of(&meta)
            .ok_or(SnapshotError::FilesMissing {
                region_id,
                index: meta.index,
                term: meta.term,
            })?;
        self.by_region.insert(region_id, files);
        Ok(())
    }

    /// Ends the claim of a region, if there is one.
    pub(crate) fn release(&mut self, region_id: u64) {
        self.by_region.remove(&region_id);
    }

    /// The ranges that are claimed.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.by_region.values().map(SnapshotRef::region)
    }
}

/// Whether a snapshot that is offered for a peer of this store can be of use, as far as the
/// directory tells.
///
/// # Errors
/// `NoSuchRegion`, `Stale`, `StaleEpoch`, `Overlapping`, `BadMeta`.
pub(crate) fn check_offer(
    directory: &Directory,
    meta: &SnapshotMeta,
    to_peer: &Peer,
) -> Result<(), SnapshotError> {
    let region = meta.region.as_ref().ok_or(MetaFault::Region)?;
    let region_id = region.id;
    let absent = SnapshotError::NoSuchRegion { region_id };
    if find_peer_on(region, to_peer.store_id).is_none_or(|own| own.id != to_peer.id) {
        return Err(absent);
    }
    let others = directory.iter().map(|entry| &*entry.region);
    match (directory.get(region_id), directory.creating.get(&region_id)) {
        (Some(entry), _) if entry.peer.id == to_peer.id => {
            let applied = entry.view.numbers().applied;
            check_install(meta, Some((&entry.region, applied)), others)
        }
        (_, Some(creating)) if creating.id == to_peer.id => check_install(meta, None, others),
        _ => Err(absent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start looks for a region's own peer by the store. A snapshot that names the peer on
    /// another store would leave a region that the store cannot start with.
    #[test]
    fn snapshot_that_names_the_peer_on_another_store_is_refused() {
        let peer = |id, store_id| Peer {
            id,
            store_id,
            ..Peer::default()
        };
        let named = |peers: Vec<Peer>| SnapshotMeta {
            region: Some(Region {
                id: 7,
                peers,
                ..Region::default()
            }),
            ..SnapshotMeta::default()
        };
        let mut directory = Directory::default();
        directory.creating.insert(7, peer(74, 4));
        let check = |meta: &SnapshotMeta| check_offer(&directory, meta, &peer(74, 4));
        assert_eq!(check(&named(vec![peer(71, 1), peer(74, 4)])), Ok(()));
        let absent = Err(SnapshotError::NoSuchRegion { region_id: 7 });
        for wrong in [
            vec![peer(71, 1), peer(74, 5)],
            vec![peer(71, 1), peer(75, 4)],
            vec![peer(71, 4), peer(74, 4)],
        ] {
            assert_eq!(check(&named(wrong)), absent);
        }
    }
}
