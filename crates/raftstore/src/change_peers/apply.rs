//! Applies a change of a region's peers.
//!
//! The entry's change carries the admin command. Both parts of the epoch are compared, the
//! region is changed, and RegionLocalState joins the batch, which is synced before
//! anything leaves (crash rule 2). A replica whose own peer goes writes its tombstone with
//! it: what comes behind in the log is not this store's any more.

use std::sync::Arc;

use prost::Message as _;
use strata_proto::eraftpb::Entry;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::{PeerState, RegionLocalState};
use strata_proto::stratapb::EntryCommand;
use strata_raft::conf_change_of;
use strata_storage::{Engine, write_region_state};

use super::{change_region, changes_of, raft_change_of};
use crate::apply::{ApplyFault, ApplyPeer, RegionChange, Round, Waiting};
use crate::destroy::tombstone_of;
use crate::directory::find_peer_on;
use crate::error::{Error, InvalidRequest};
use crate::request::Answer;

impl<E: Engine> Round<'_, E> {
    /// Applies the entry of a change.
    pub(crate) fn apply_conf_change(
        &mut self,
        peer: &mut ApplyPeer,
        entry: &Entry,
        waiting: Vec<Waiting>,
    ) -> Result<(), ApplyFault> {
        let (region_id, index) = (peer.region.id, entry.index);
        let corrupt = ApplyFault::CorruptEntry { region_id, index };
        let Ok(Some(change)) = conf_change_of(entry) else {
            return Err(corrupt);
        };
        let command = EntryCommand::decode(change.context.clone()).map_err(|_| corrupt.clone())?;
        let admin = command.admin.as_ref().ok_or(corrupt.clone())?;
        let changes = changes_of(admin).ok_or(ApplyFault::UnknownEntry { region_id, index })?;
        let expected = raft_change_of(&changes);
        if (expected.transition, &expected.changes) != (change.transition, &change.changes) {
            // What raft would do is not what the region would become.
            return Err(corrupt);
        }
        peer.state.region_clock_ms = peer.state.region_clock_ms.max(command.leader_clock_ms);
        let outcome = if command.region_epoch.unwrap_or_default()
            == peer.region.region_epoch.unwrap_or_default()
        {
            change_region(&peer.region, &changes)
                .map_err(|fault| InvalidRequest::PeerChange { region_id, fault }.into())
        } else {
            let current = vec![(*peer.region).clone()];
            Err(Error::EpochNotMatch { region_id, current })
        };
        let region = match outcome {
            Ok(region) => Some(self.take_region(peer, region)),
            Err(error) => {
                self.refuse(waiting, &error);
                self.changes.push(RegionChange::Conf {
                    index,
                    change,
                    region: None,
                });
                return Ok(());
            }
        };
        self.answer_admin(waiting, &peer.region);
        self.changes.push(RegionChange::Conf {
            index,
            change,
            region,
        });
        if peer.removed {
            let region = peer.region.clone();
            self.changes.push(RegionChange::Removed { region });
        }
        Ok(())
    }

    /// Writes the region's new form, or the tombstone where the own peer is gone.
    fn take_region(&mut self, peer: &mut ApplyPeer, region: Region) -> Arc<Region> {
        let own = find_peer_on(&peer.region, self.store_id).copied();
        let state = match (own, find_peer_on(&region, self.store_id)) {
            (Some(own), None) => {
                peer.removed = true;
                tombstone_of(&region, own)
            }
            _ => RegionLocalState {
                state: PeerState::Normal.into(),
                region: Some(region.clone()),
                ..RegionLocalState::default()
            },
        };
        write_region_state(self.overlay.batch_mut(), &state);
        peer.region = Arc::new(region);
        peer.region.clone()
    }

    fn answer_admin(&mut self, waiting: Vec<Waiting>, region: &Arc<Region>) {
        for one in waiting {
            match one {
                Waiting::Admin { reply, .. } => {
                    let answer = Answer::Region((**region).clone());
                    let reply = reply.map(|reply| (reply, Ok(answer)));
                    self.output.replies.extend(reply);
                }
                other => panic!(
                    "region {}: {other:?} waits for a change of peers",
                    region.id
                ),
            }
        }
    }
}
