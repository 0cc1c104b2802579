//! Whom a client is sent to for a region.
//!
//! Published clients fail or burn their whole budget when they are sent to a store that
//! is not there, or to a replica that does not lead. So a look-up answers with the leader
//! that the region's own report names; until there is a report, with the leader that this
//! store's own peer knows; and never with one whose store is known to be dead. Where none
//! is left, the look-up waits for a report.

use strata_proto::metapb::{Peer, Region};

/// The leader to answer with, or `None`: wait for a report.
///
/// `reported` is what the region's leader last reported, `own` what this store's own peer
/// of the region knows. A peer that is no member of the region is not believed.
pub fn choose_leader(
    region: &Region,
    reported: Option<&Peer>,
    own: Option<&Peer>,
    is_down: impl Fn(u64) -> bool,
) -> Option<Peer> {
    [reported, own]
        .into_iter()
        .flatten()
        .find(|leader| {
            let member = region
                .peers
                .iter()
                .any(|peer| peer.id == leader.id && peer.store_id == leader.store_id);
            member && !is_down(leader.store_id)
        })
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::region;

    fn peer(store_id: u64) -> Peer {
        region(2, "", "", 1, 1)
            .peers
            .into_iter()
            .find(|peer| peer.store_id == store_id)
            .unwrap()
    }

    fn choose(reported: Option<u64>, own: Option<u64>, down: &[u64]) -> Option<u64> {
        choose_leader(
            &region(2, "", "", 1, 1),
            reported.map(peer).as_ref(),
            own.map(peer).as_ref(),
            |store| down.contains(&store),
        )
        .map(|peer| peer.store_id)
    }

    #[test]
    fn the_report_wins_then_the_own_peer_then_the_look_up_waits() {
        assert_eq!(choose(Some(1), Some(2), &[]), Some(1));
        assert_eq!(choose(None, Some(2), &[]), Some(2));
        assert_eq!(choose(None, None, &[]), None);
    }

    #[test]
    fn a_leader_on_a_dead_store_is_never_named() {
        assert_eq!(choose(Some(1), Some(2), &[1]), Some(2));
        assert_eq!(choose(Some(1), Some(1), &[1]), None);
        assert_eq!(choose(Some(1), Some(2), &[1, 2]), None);
    }

    #[test]
    fn a_leader_outside_the_region_is_not_believed() {
        let stranger = Peer {
            id: 999,
            store_id: 1,
            ..Default::default()
        };
        let region = region(2, "", "", 1, 1);
        assert_eq!(
            choose_leader(&region, Some(&stranger), None, |_| false),
            None
        );
    }
}
