//! Regions that lose members and get others while everything else goes wrong.
//!
//! A move looks at the region as its leader has it, chooses one of the changes that make
//! sense there, and sends it like an operator who does not wait for the answer. A region
//! may so end with a learner, or with members on other stores than it began with; what is
//! checked in the end are the members that it has then.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use strata_proto::metapb::{Peer, PeerRole, Region};
use strata_raftstore::{PeerChange, PeerChangeKind, RequestBody};

use crate::cluster::Cluster;

impl Cluster {
    /// Asks the leader of some region to change its members.
    pub(crate) fn draw_move(&mut self, rng: &mut ChaCha8Rng) {
        let region_id = self.regions[rng.random_range(0..self.regions.len())].id;
        self.move_region(region_id, rng);
    }

    /// Asks the leader of a region to change its members.
    pub(crate) fn move_region(&mut self, region_id: u64, rng: &mut ChaCha8Rng) {
        let Some(leader) = self.leader_of(region_id) else {
            return;
        };
        let region = self.present_region(region_id);
        let plain = |peer: &Peer| matches!(peer.role(), PeerRole::Voter | PeerRole::Learner);
        if !region.peers.iter().all(plain) {
            return;
        }
        let changes = self.choose_changes(&region, leader, rng);
        if !changes.is_empty() {
            // The changes make sense for this membership alone.
            let body = RequestBody::ChangePeers { changes };
            self.call_unheard(leader, region_id, region.region_epoch, body);
        }
    }

    fn choose_changes(
        &mut self,
        region: &Region,
        leader: u64,
        rng: &mut ChaCha8Rng,
    ) -> Vec<PeerChange> {
        let of_role = |role| -> Vec<Peer> {
            let peers = region.peers.iter();
            peers.filter(|peer| peer.role() == role).copied().collect()
        };
        let (voters, learners) = (of_role(PeerRole::Voter), of_role(PeerRole::Learner));
        let pick = |peers: &[Peer], rng: &mut ChaCha8Rng| {
            (!peers.is_empty()).then(|| peers[rng.random_range(0..peers.len())])
        };
        let followers: Vec<Peer> = voters
            .iter()
            .filter(|peer| peer.store_id != leader)
            .copied()
            .collect();
        let free: Vec<u64> = self
            .store_ids()
            .into_iter()
            .filter(|store| region.peers.iter().all(|peer| peer.store_id != *store))
            .collect();
        let wanted = self.options.replicas as usize;
        if let Some(learner) = pick(&learners, rng) {
            let promote = change(PeerChangeKind::AddVoter, learner);
            return match (rng.random_range(0..4), pick(&voters, rng)) {
                // The leader too may become a learner: it leads until that is applied.
                (0 | 1, Some(voter)) if voters.len() >= wanted => {
                    vec![promote, change(PeerChangeKind::AddLearner, voter)]
                }
                (2, _) => vec![change(PeerChangeKind::Remove, learner)],
                _ => vec![promote],
            };
        }
        if voters.len() > wanted || (free.is_empty() && voters.len() == wanted) {
            let kind = if rng.random() {
                PeerChangeKind::Remove
            } else {
                PeerChangeKind::AddLearner
            };
            return pick(&followers, rng)
                .map(|peer| vec![change(kind, peer)])
                .unwrap_or_default();
        }
        if free.is_empty() {
            return Vec::new();
        }
        self.next_peer_id += 1;
        let peer = Peer {
            id: self.next_peer_id,
            store_id: free[rng.random_range(0..free.len())],
            ..Peer::default()
        };
        // One that votes before it has its snapshot has nothing but its promises.
        let kind = if rng.random_bool(0.4) {
            PeerChangeKind::AddVoter
        } else {
            PeerChangeKind::AddLearner
        };
        vec![change(kind, peer)]
    }
}

fn change(kind: PeerChangeKind, peer: Peer) -> PeerChange {
    PeerChange { kind, peer }
}
