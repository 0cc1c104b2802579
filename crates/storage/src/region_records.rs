//! Reading and writing the state records of one region.
//!
//! One function a record and direction, so that key, column family and kind of a record
//! stand together in one place.

use std::ops::ControlFlow;

use bytes::Bytes;
use strata_proto::metapb::{PeerRole, Region};
use strata_proto::raft_serverpb::{RaftLocalState, RegionLocalState};
use strata_proto::stratapb::RaftApplyState;

use strata_proto::eraftpb::ConfState;

use crate::batch::WriteBatch;
use crate::engine::{Cf, Direction, Engine, ReadView};
use crate::error::Error;
use crate::keys;
use crate::record::{self, RecordKind};

/// Reads hard state and last index of a region from the raft engine.
///
/// # Errors
/// Errors of the engine, `CorruptRecord`.
pub fn read_raft_state(
    raft: &impl ReadView,
    region_id: u64,
) -> Result<Option<RaftLocalState>, Error> {
    let key = keys::raft_state(region_id);
    record::get(raft, Cf::RaftLog, RecordKind::RaftLocalState, &key)
}

/// Adds hard state and last index of a region to a batch of the raft engine.
pub fn write_raft_state(batch: &mut WriteBatch, region_id: u64, state: &RaftLocalState) {
    record::put(batch, Cf::RaftLog, keys::raft_state(region_id), state);
}

/// Reads the apply state of a region from the kv engine or a snapshot of it.
///
/// # Errors
/// Errors of the engine, `CorruptRecord`.
pub fn read_apply_state(
    kv: &impl ReadView,
    region_id: u64,
) -> Result<Option<RaftApplyState>, Error> {
    let key = keys::apply_state(region_id);
    record::get(kv, Cf::Raft, RecordKind::RaftApplyState, &key)
}

/// Reads the apply state that a power cut leaves for certain, as far as the kv engine tells
/// ([`Engine::get_durable`]).
///
/// # Errors
/// Errors of the engine, `CorruptRecord`.
pub fn read_durable_apply_state(
    kv: &impl Engine,
    region_id: u64,
) -> Result<Option<RaftApplyState>, Error> {
    let key = keys::apply_state(region_id);
    let stored = kv.get_durable(Cf::Raft, &key)?;
    let read = stored.map(|stored| record::decode(RecordKind::RaftApplyState, &key, &stored));
    read.transpose()
}

/// Adds the apply state of a region to a batch of the kv engine: the same batch that
/// holds the data which it speaks of.
pub fn write_apply_state(batch: &mut WriteBatch, region_id: u64, state: &RaftApplyState) {
    record::put(batch, Cf::Raft, keys::apply_state(region_id), state);
}

/// Reads range, peers and life of a region's replica from the kv engine.
///
/// # Errors
/// Errors of the engine, `CorruptRecord`.
pub fn read_region_state(
    kv: &impl ReadView,
    region_id: u64,
) -> Result<Option<RegionLocalState>, Error> {
    let key = keys::region_state(region_id);
    record::get(kv, Cf::Raft, RecordKind::RegionLocalState, &key)
}

/// Adds a replica's RegionLocalState to a batch of the kv engine. The key is that of
/// `state.region`.
///
/// # Panics
/// If the state names no region.
pub fn write_region_state(batch: &mut WriteBatch, state: &RegionLocalState) {
    let region = state.region.as_ref();
    let region_id = region.expect("a RegionLocalState names its region").id;
    record::put(batch, Cf::Raft, keys::region_state(region_id), state);
}

/// All RegionLocalStates of the kv engine, tombstones too, in the order of region ids.
///
/// # Errors
/// Errors of the engine, `CorruptRecord`.
pub fn read_all_region_states(kv: &impl ReadView) -> Result<Vec<RegionLocalState>, Error> {
    let (start, end) = keys::all_region_states_range();
    let mut states = Vec::new();
    let mut failed = None;
    let mut visit = |key: &[u8], value: &[u8]| {
        let stored = Bytes::copy_from_slice(value);
        match record::decode(RecordKind::RegionLocalState, key, &stored) {
            Ok(state) => {
                states.push(state);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    kv.scan(Cf::Raft, &start, Some(&end), Direction::Forward, &mut visit)?;
    match failed {
        Some(error) => Err(error),
        None => Ok(states),
    }
}

/// The membership that raft works with, from the roles of a region's peers.
///
/// A peer that is coming in or being demoted says that the region is in joint consensus;
/// then plain voters belong to both majorities.
#[must_use]
pub fn conf_state_of(region: &Region) -> ConfState {
    let mut state = ConfState::default();
    let mut joint = false;
    for peer in &region.peers {
        match peer.role() {
            PeerRole::Voter => {
                state.voters.push(peer.id);
                state.voters_outgoing.push(peer.id);
            }
            PeerRole::Learner => state.learners.push(peer.id),
            PeerRole::IncomingVoter => {
                state.voters.push(peer.id);
                joint = true;
            }
            PeerRole::DemotingVoter => {
                state.voters_outgoing.push(peer.id);
                state.learners_next.push(peer.id);
                joint = true;
            }
        }
    }
    if !joint {
        state.voters_outgoing.clear();
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::metapb::Peer;

    fn region(peers: &[(u64, PeerRole)]) -> Region {
        let peer = |&(id, role): &(u64, PeerRole)| Peer {
            id,
            store_id: id,
            role: role.into(),
            ..Peer::default()
        };
        Region {
            id: 7,
            peers: peers.iter().map(peer).collect(),
            ..Region::default()
        }
    }

    #[test]
    fn conf_state_of_simple_membership() {
        let state = conf_state_of(&region(&[
            (1, PeerRole::Voter),
            (2, PeerRole::Voter),
            (3, PeerRole::Learner),
        ]));
        assert_eq!(state.voters, [1, 2]);
        assert_eq!(state.learners, [3]);
        assert!(state.voters_outgoing.is_empty() && state.learners_next.is_empty());
    }

    #[test]
    fn conf_state_of_joint_membership() {
        let state = conf_state_of(&region(&[
            (1, PeerRole::Voter),
            (2, PeerRole::IncomingVoter),
            (3, PeerRole::DemotingVoter),
        ]));
        assert_eq!(state.voters, [1, 2]);
        assert_eq!(state.voters_outgoing, [1, 3]);
        assert_eq!(state.learners_next, [3]);
        assert!(state.learners.is_empty());
    }

    #[test]
    fn region_states_are_listed_in_order() {
        let engines = crate::MemEngine::new_pair();
        let mut batch = WriteBatch::new();
        for id in [300, 2, 1] {
            let state = RegionLocalState {
                region: Some(Region {
                    id,
                    ..Region::default()
                }),
                ..RegionLocalState::default()
            };
            write_region_state(&mut batch, &state);
        }
        use crate::engine::{Durability, Engine};
        engines.kv.write(&batch, Durability::Synced).unwrap();
        let ids: Vec<_> = read_all_region_states(&engines.kv)
            .unwrap()
            .into_iter()
            .map(|state| state.region.unwrap().id)
            .collect();
        assert_eq!(ids, [1, 2, 300]);
        assert_eq!(read_region_state(&engines.kv, 4).unwrap(), None);
    }
}
