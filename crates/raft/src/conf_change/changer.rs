//! From one membership to the next.
//!
//! A single change is made in one step: old and new majorities overlap. Several changes, or
//! one that asks for it, go through a joint membership, in which both majorities decide;
//! an empty change leaves it (Raft paper, section 6; thesis, 4.3).

use strata_proto::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::membership::Membership;
use crate::error::ConfChangeError;
use crate::quorum::Majority;
use crate::types::NO_PEER;

/// What a change asks for as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Simple,
    EnterJoint { auto_leave: bool },
    LeaveJoint,
}

fn kind_of(change: &ConfChangeV2) -> Result<Kind, ConfChangeError> {
    let transition = ConfChangeTransition::try_from(change.transition)
        .map_err(|_| ConfChangeError::Invalid { position: 0 })?;
    Ok(match (transition, change.changes.len()) {
        (ConfChangeTransition::Auto, 0) => Kind::LeaveJoint,
        (ConfChangeTransition::Auto, 1) => Kind::Simple,
        (ConfChangeTransition::Auto | ConfChangeTransition::Implicit, _) => {
            Kind::EnterJoint { auto_leave: true }
        }
        (ConfChangeTransition::Explicit, _) => Kind::EnterJoint { auto_leave: false },
    })
}

/// The membership after `change`.
pub(crate) fn change_membership(
    membership: &Membership,
    change: &ConfChangeV2,
) -> Result<Membership, ConfChangeError> {
    if membership.voters.incoming.is_empty() {
        // One change applied to nothing would make a group of its own.
        return Err(ConfChangeError::UnknownMembership);
    }
    let joint = membership.voters.is_joint();
    let mut next = membership.clone();
    match kind_of(change)? {
        Kind::LeaveJoint if !joint => return Err(ConfChangeError::NotJoint),
        Kind::Simple | Kind::EnterJoint { .. } if joint => {
            return Err(ConfChangeError::AlreadyJoint);
        }
        Kind::LeaveJoint => leave_joint(&mut next),
        Kind::Simple => make_changes(&mut next, &change.changes)?,
        Kind::EnterJoint { auto_leave } => {
            next.voters.outgoing = next.voters.incoming.clone();
            next.auto_leave = auto_leave;
            make_changes(&mut next, &change.changes)?;
        }
    }
    next.check()?;
    Ok(next)
}

fn leave_joint(next: &mut Membership) {
    next.voters.outgoing = Majority::default();
    next.learners.append(&mut next.learners_next);
    next.auto_leave = false;
}

fn make_changes(
    next: &mut Membership,
    changes: &[ConfChangeSingle],
) -> Result<(), ConfChangeError> {
    for (position, change) in changes.iter().enumerate() {
        let id = change.node_id;
        let kind = ConfChangeType::try_from(change.change_type)
            .map_err(|_| ConfChangeError::Invalid { position })?;
        if id == NO_PEER {
            return Err(ConfChangeError::Invalid { position });
        }
        next.learners.remove(&id);
        next.learners_next.remove(&id);
        match kind {
            ConfChangeType::AddNode => next.voters.incoming.insert(id),
            ConfChangeType::RemoveNode => next.voters.incoming.remove(id),
            ConfChangeType::AddLearnerNode => {
                next.voters.incoming.remove(id);
                // One that still votes in the outgoing half cannot be a learner yet.
                if next.voters.outgoing.contains(id) {
                    next.learners_next.insert(id);
                } else {
                    next.learners.insert(id);
                }
            }
        }
    }
    if next.voters.incoming.is_empty() {
        return Err(ConfChangeError::NoVoters);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use strata_proto::eraftpb::ConfState;

    use super::*;
    use crate::types::PeerId;

    use ConfChangeTransition::{Auto, Explicit, Implicit};
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};

    fn of(voters: &[PeerId], learners: &[PeerId]) -> Membership {
        Membership::from_conf_state(&ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..ConfState::default()
        })
        .unwrap()
    }

    fn change(
        transition: ConfChangeTransition,
        changes: &[(ConfChangeType, PeerId)],
    ) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: transition as i32,
            changes: changes
                .iter()
                .map(|&(change_type, node_id)| ConfChangeSingle {
                    change_type: change_type as i32,
                    node_id,
                })
                .collect(),
            ..ConfChangeV2::default()
        }
    }

    fn apply(from: &Membership, change: ConfChangeV2) -> Membership {
        let next = change_membership(from, &change).unwrap();
        let state = next.to_conf_state();
        assert_eq!(Membership::from_conf_state(&state).as_ref(), Ok(&next));
        next
    }

    #[test]
    fn one_change_takes_one_step() {
        let next = apply(&of(&[1], &[]), change(Auto, &[(AddNode, 2)]));
        assert_eq!(next, of(&[1, 2], &[]));
        assert_eq!(apply(&next, change(Auto, &[(AddNode, 2)])), next);
        let next = apply(&next, change(Auto, &[(AddLearnerNode, 3)]));
        assert_eq!(next, of(&[1, 2], &[3]));
        let next = apply(&next, change(Auto, &[(AddNode, 3)]));
        assert_eq!(next, of(&[1, 2, 3], &[]));
        let next = apply(&next, change(Auto, &[(AddLearnerNode, 1)]));
        assert_eq!(next, of(&[2, 3], &[1]));
        let next = apply(&next, change(Auto, &[(RemoveNode, 1)]));
        assert_eq!(next, of(&[2, 3], &[]));
        assert_eq!(apply(&next, change(Auto, &[(RemoveNode, 9)])), next);
    }

    #[test]
    fn several_changes_go_through_a_joint_membership() {
        let swap = change(Auto, &[(AddNode, 4), (RemoveNode, 1), (AddLearnerNode, 2)]);
        let joint = apply(&of(&[1, 2, 3], &[]), swap);
        let state = joint.to_conf_state();
        assert_eq!(state.voters, [3, 4]);
        assert_eq!(state.voters_outgoing, [1, 2, 3]);
        assert_eq!(state.learners_next, [2]);
        assert!(state.auto_leave && state.learners.is_empty());
        assert!(joint.contains(1));
        let left = apply(&joint, change(Auto, &[]));
        assert_eq!(left, of(&[3, 4], &[2]));
    }

    #[test]
    fn a_single_change_is_joint_on_request() {
        let joint = apply(&of(&[1], &[]), change(Explicit, &[(AddNode, 2)]));
        assert!(joint.voters.is_joint() && !joint.auto_leave);
        let joint = apply(&of(&[1], &[]), change(Implicit, &[(AddNode, 2)]));
        assert!(joint.voters.is_joint() && joint.auto_leave);
    }

    #[test]
    fn a_peer_named_twice_ends_where_the_last_change_puts_it() {
        let twice = change(Auto, &[(AddLearnerNode, 1), (AddNode, 1)]);
        let joint = apply(&of(&[1, 2], &[]), twice);
        assert!(joint.learners_next.is_empty() && joint.voters.incoming.contains(1));
        let twice = change(Auto, &[(AddLearnerNode, 1), (RemoveNode, 1)]);
        let joint = apply(&of(&[1, 2], &[]), twice);
        assert_eq!(apply(&joint, change(Auto, &[])), of(&[2], &[]));
    }

    #[test]
    fn impossible_changes_are_refused() {
        let simple = of(&[1], &[]);
        let refused = |from: &Membership, wrong| change_membership(from, &wrong).unwrap_err();
        let joint = apply(&simple, change(Explicit, &[(AddNode, 2)]));
        assert_eq!(
            refused(&simple, change(Auto, &[])),
            ConfChangeError::NotJoint
        );
        assert_eq!(
            refused(&joint, change(Auto, &[(AddNode, 3)])),
            ConfChangeError::AlreadyJoint
        );
        assert_eq!(
            refused(&simple, change(Auto, &[(RemoveNode, 1)])),
            ConfChangeError::NoVoters
        );
        assert_eq!(
            refused(&simple, change(Auto, &[(AddNode, 2), (AddNode, 0)])),
            ConfChangeError::Invalid { position: 1 }
        );
        assert_eq!(
            refused(&Membership::default(), change(Auto, &[(AddNode, 1)])),
            ConfChangeError::UnknownMembership
        );
        let mut unknown = change(Auto, &[(AddNode, 2)]);
        unknown.changes[0].change_type = 77;
        assert_eq!(
            refused(&simple, unknown),
            ConfChangeError::Invalid { position: 0 }
        );
    }

    #[test]
    fn contradicting_conf_states_are_refused() {
        let good = of(&[1, 2], &[3]).to_conf_state();
        let bad = [
            ConfState {
                voters: vec![],
                ..good.clone()
            },
            ConfState {
                voters: vec![0],
                ..good.clone()
            },
            ConfState {
                learners: vec![1],
                ..good.clone()
            },
            ConfState {
                learners_next: vec![7],
                ..good.clone()
            },
            ConfState {
                auto_leave: true,
                ..good.clone()
            },
        ];
        for state in bad {
            let answer = Membership::from_conf_state(&state);
            assert_eq!(answer, Err(ConfChangeError::InvalidConfState), "{state:?}");
        }
        assert!(Membership::from_conf_state(&ConfState::default()).is_ok());
    }
}
