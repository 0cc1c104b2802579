//! The region after a change of its peers, as a pure function that every replica and the
//! proposing leader share.
//!
//! One change takes one step. Several enter a joint membership: a voter that comes in is an
//! `IncomingVoter`, one that becomes a learner a `DemotingVoter`, and both majorities decide
//! until the joint membership is left. `conf_ver` rises by the number of changes, and by
//! the number of peers whose role changes when the joint membership is left, as TiKV counts.
//!
//! Invariants
//! * The roles tell the whole membership: a replica that starts from the region has the same
//!   one as a replica that applied the change.
//! * What is refused is refused on every replica alike, and changes nothing.

use strata_proto::metapb::{Peer, PeerRole, Region, RegionEpoch};

use crate::directory::{find_peer, find_peer_on};
use crate::error::PeerChangeFault;
use crate::request::{PeerChange, PeerChangeKind};

/// Most changes of one request.
pub(crate) const MAX_PEER_CHANGES: usize = 32;

/// Checks what can be said of changes without their region.
pub(crate) fn check_changes(changes: &[PeerChange]) -> Result<(), PeerChangeFault> {
    if changes.is_empty() {
        return Err(PeerChangeFault::NoChange);
    }
    if changes.len() > MAX_PEER_CHANGES {
        return Err(PeerChangeFault::TooMany {
            changes: changes.len(),
            limit: MAX_PEER_CHANGES,
        });
    }
    for (at, change) in changes.iter().enumerate() {
        let Peer { id, store_id, .. } = change.peer;
        if id == 0 || store_id == 0 {
            return Err(PeerChangeFault::NoId);
        }
        let same = |other: &PeerChange| other.peer.id == id || other.peer.store_id == store_id;
        if changes[..at].iter().any(same) {
            return Err(PeerChangeFault::NamedTwice { peer_id: id });
        }
    }
    Ok(())
}

/// True while two majorities decide in a region.
pub(crate) fn is_joint(region: &Region) -> bool {
    region.peers.iter().any(|peer| {
        matches!(
            peer.role(),
            PeerRole::IncomingVoter | PeerRole::DemotingVoter
        )
    })
}

/// The region after `changes`; none of them: after it has left its joint membership.
pub(crate) fn change_region(
    region: &Region,
    changes: &[PeerChange],
) -> Result<Region, PeerChangeFault> {
    if changes.is_empty() {
        return leave_joint(region);
    }
    check_changes(changes)?;
    if is_joint(region) {
        return Err(PeerChangeFault::AlreadyJoint);
    }
    let joint = changes.len() > 1;
    let mut next = region.clone();
    for change in changes {
        make_change(&mut next, change, joint)?;
    }
    if joint && !is_joint(&next) {
        // Nothing in the region would tell that it is joint.
        return Err(PeerChangeFault::OnlyLearners);
    }
    let votes = |peer: &Peer| matches!(peer.role(), PeerRole::Voter | PeerRole::IncomingVoter);
    if !next.peers.iter().any(votes) {
        return Err(PeerChangeFault::NoVoterLeft);
    }
    raise_conf_ver(&mut next, changes.len() as u64);
    Ok(next)
}

fn make_change(next: &mut Region, change: &PeerChange, joint: bool) -> Result<(), PeerChangeFault> {
    use PeerChangeKind::{AddLearner, AddVoter, Remove};
    let Peer {
        id: peer_id,
        store_id,
        ..
    } = change.peer;
    if let Some(other) = find_peer_on(next, store_id).filter(|other| other.id != peer_id) {
        return Err(PeerChangeFault::OtherPeerOnStore {
            store_id,
            peer_id: other.id,
        });
    }
    let known = find_peer(next, peer_id);
    if let Some(other) = known.filter(|known| known.store_id != store_id) {
        return Err(PeerChangeFault::OtherStore {
            peer_id,
            store_id: other.store_id,
        });
    }
    let voter = if joint {
        PeerRole::IncomingVoter
    } else {
        PeerRole::Voter
    };
    let demoted = if joint {
        PeerRole::DemotingVoter
    } else {
        PeerRole::Learner
    };
    let role = match (change.kind, known.map(|known| known.role())) {
        (AddVoter, None | Some(PeerRole::Learner)) => voter,
        (AddLearner, None) => PeerRole::Learner,
        (AddLearner, Some(PeerRole::Voter)) => demoted,
        (Remove, None) => return Err(PeerChangeFault::NoSuchPeer { peer_id }),
        (Remove, Some(PeerRole::Voter)) if joint => {
            return Err(PeerChangeFault::VoterRemovedInJoint { peer_id });
        }
        (Remove, Some(_)) => {
            next.peers.retain(|peer| peer.id != peer_id);
            return Ok(());
        }
        (AddVoter | AddLearner, Some(_)) => {
            return Err(PeerChangeFault::NothingToDo { peer_id });
        }
    };
    match next.peers.iter_mut().find(|peer| peer.id == peer_id) {
        Some(peer) => peer.role = role.into(),
        None => next.peers.push(Peer {
            id: peer_id,
            store_id,
            role: role.into(),
            ..Peer::default()
        }),
    }
    Ok(())
}

fn leave_joint(region: &Region) -> Result<Region, PeerChangeFault> {
    if !is_joint(region) {
        return Err(PeerChangeFault::NotJoint);
    }
    let mut next = region.clone();
    let mut changed = 0;
    for peer in &mut next.peers {
        let role = match peer.role() {
            PeerRole::IncomingVoter => PeerRole::Voter,
            PeerRole::DemotingVoter => PeerRole::Learner,
            PeerRole::Voter | PeerRole::Learner => continue,
        };
        peer.role = role.into();
        changed += 1;
    }
    raise_conf_ver(&mut next, changed);
    Ok(next)
}

fn raise_conf_ver(region: &mut Region, by: u64) {
    let epoch = region.region_epoch.unwrap_or_default();
    region.region_epoch = Some(RegionEpoch {
        conf_ver: epoch.conf_ver + by,
        ..epoch
    });
}

#[cfg(test)]
mod tests {
    use PeerChangeKind::{AddLearner, AddVoter, Remove};
    use PeerRole::{DemotingVoter, IncomingVoter, Learner, Voter};

    use super::*;

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
            region_epoch: Some(RegionEpoch {
                conf_ver: 3,
                version: 2,
            }),
            ..Region::default()
        }
    }

    fn change(kind: PeerChangeKind, id: u64) -> PeerChange {
        let peer = Peer {
            id,
            store_id: id,
            ..Peer::default()
        };
        PeerChange { kind, peer }
    }

    fn shown(region: &Region) -> (Vec<(u64, PeerRole)>, u64) {
        let peers = region.peers.iter().map(|peer| (peer.id, peer.role()));
        (peers.collect(), region.region_epoch.unwrap().conf_ver)
    }

    #[test]
    fn conf_change_simple_takes_one_step_and_one_version() {
        let start = region(&[(1, Voter), (2, Voter)]);
        let next = change_region(&start, &[change(AddLearner, 3)]).unwrap();
        assert_eq!(
            shown(&next),
            (vec![(1, Voter), (2, Voter), (3, Learner)], 4)
        );
        let next = change_region(&next, &[change(AddVoter, 3)]).unwrap();
        assert_eq!(shown(&next), (vec![(1, Voter), (2, Voter), (3, Voter)], 5));
        let next = change_region(&next, &[change(AddLearner, 1)]).unwrap();
        let next = change_region(&next, &[change(Remove, 1)]).unwrap();
        assert_eq!(shown(&next), (vec![(2, Voter), (3, Voter)], 7));
        assert_eq!(
            next.region_epoch.unwrap().version,
            2,
            "the range has not changed"
        );
    }

    #[test]
    fn conf_change_joint_counts_every_peer_twice() {
        let start = region(&[(1, Voter), (2, Voter), (3, Learner)]);
        let changes = [
            change(AddVoter, 3),
            change(AddLearner, 1),
            change(AddLearner, 4),
        ];
        let joint = change_region(&start, &changes).unwrap();
        assert!(is_joint(&joint));
        let roles = vec![
            (1, DemotingVoter),
            (2, Voter),
            (3, IncomingVoter),
            (4, Learner),
        ];
        assert_eq!(shown(&joint), (roles, 6));
        assert_eq!(
            change_region(&joint, &[change(Remove, 2)]),
            Err(PeerChangeFault::AlreadyJoint)
        );
        let left = change_region(&joint, &[]).unwrap();
        let roles = vec![(1, Learner), (2, Voter), (3, Voter), (4, Learner)];
        assert_eq!(shown(&left), (roles, 8));
        assert_eq!(change_region(&left, &[]), Err(PeerChangeFault::NotJoint));
    }

    #[test]
    fn conf_change_that_cannot_be_made_is_refused() {
        let start = region(&[(1, Voter), (2, Voter), (3, Learner)]);
        let refused = |changes: &[PeerChange]| change_region(&start, changes).unwrap_err();
        assert_eq!(
            refused(&[change(Remove, 9)]),
            PeerChangeFault::NoSuchPeer { peer_id: 9 }
        );
        assert_eq!(
            refused(&[change(AddVoter, 1)]),
            PeerChangeFault::NothingToDo { peer_id: 1 }
        );
        assert_eq!(
            refused(&[change(AddVoter, 4), change(Remove, 1)]),
            PeerChangeFault::VoterRemovedInJoint { peer_id: 1 }
        );
        assert_eq!(
            refused(&[change(AddLearner, 4), change(AddLearner, 5)]),
            PeerChangeFault::OnlyLearners
        );
        assert_eq!(
            refused(&[change(AddLearner, 1), change(AddLearner, 2)]),
            PeerChangeFault::NoVoterLeft
        );
        assert_eq!(
            refused(&[change(AddVoter, 4), change(Remove, 4)]),
            PeerChangeFault::NamedTwice { peer_id: 4 }
        );
        assert_eq!(refused(&[change(AddVoter, 0)]), PeerChangeFault::NoId);
        let mut elsewhere = change(AddVoter, 3);
        elsewhere.peer.store_id = 8;
        let known = PeerChangeFault::OtherStore {
            peer_id: 3,
            store_id: 3,
        };
        assert_eq!(refused(&[elsewhere]), known);
        let mut second = change(AddVoter, 8);
        second.peer.store_id = 3;
        let known = PeerChangeFault::OtherPeerOnStore {
            store_id: 3,
            peer_id: 3,
        };
        assert_eq!(refused(&[second]), known);
        let alone = region(&[(1, Voter)]);
        assert_eq!(
            change_region(&alone, &[change(Remove, 1)]),
            Err(PeerChangeFault::NoVoterLeft)
        );
        let many: Vec<_> = (10..10 + MAX_PEER_CHANGES as u64 + 1)
            .map(|id| change(AddVoter, id))
            .collect();
        assert!(matches!(refused(&many), PeerChangeFault::TooMany { .. }));
    }
}
