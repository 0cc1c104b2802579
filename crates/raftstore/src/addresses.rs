//! Where peers live that the region does not name.
//!
//! A peer that waits for its first snapshot knows only those who wrote to it; a leader has
//! a last word for a member that has gone. Both are few: what goes beyond the limit pushes
//! the oldest out, and the next message brings it back.

use std::collections::VecDeque;

use strata_proto::metapb::Peer;

/// Most addresses kept for one peer.
const MAX_ADDRESSES: usize = 16;

/// Addresses of peers, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: VecDeque<Peer>,
}

impl Addresses {
    /// Notes where a peer lives.
    pub(crate) fn note(&mut self, peer: Peer) {
        self.known.retain(|known| known.id != peer.id);
        if self.known.len() >= MAX_ADDRESSES {
            self.known.pop_front();
        }
        self.known.push_back(peer);
    }

    /// The peer with an id.
    pub(crate) fn find(&self, peer_id: u64) -> Option<Peer> {
        self.known.iter().find(|known| known.id == peer_id).copied()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.known.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_address_makes_room() {
        let peer = |id| Peer {
            id,
            store_id: id + 1,
            ..Peer::default()
        };
        let mut addresses = Addresses::default();
        for id in 1..=MAX_ADDRESSES as u64 {
            addresses.note(peer(id));
        }
        addresses.note(peer(1));
        addresses.note(peer(100));
        assert_eq!(addresses.find(2), None, "the oldest has gone");
        assert_eq!(addresses.find(1), Some(peer(1)), "noted again, it stays");
        assert_eq!(addresses.find(100), Some(peer(100)));
        assert_eq!(addresses.iter().count(), MAX_ADDRESSES);
    }
}
