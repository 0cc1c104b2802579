//! Handing leadership over (thesis, 3.10).
//!
//! Ask      The leader notes the transferee and refuses proposals meanwhile; a follower
//!          forwards the wish.
//! Catch up The transferee gets the rest of the log.
//! Go       `MsgTimeoutNow` tells it to campaign at once, without a pre-vote. From then on the
//!          leader has no lease in its term: others vote for the transferee although they
//!          have just heard from the leader.
//! End      The transferee's higher term ends the leadership; or nothing comes within an
//!          election timeout and the leader goes on, reading by rounds.

use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::storage::Storage;
use crate::types::{PeerId, Role};

impl<S: Storage> Replica<S> {
    /// Begins to hand leadership over to `to`. Nothing happens if `to` is no voter, leads
    /// already, or is being handed it.
    pub fn transfer_leader(&mut self, to: PeerId) {
        if !self.is_leader() {
            return self.forward_transfer(to);
        }
        if to == self.id || !self.tracker.is_voter(to) || self.transferee == Some(to) {
            return;
        }
        self.transferee = Some(to);
        // It gets one election timeout from now.
        self.election_elapsed = 0;
        if let Some(progress) = self.tracker.progress_mut(to) {
            progress.resend = progress.matched < self.log.last_index();
        }
        self.maybe_finish_transfer(to);
    }

    fn forward_transfer(&mut self, to: PeerId) {
        let Some(leader) = self.leader.filter(|&leader| leader != to) else {
            return;
        };
        // It goes in the transferee's name: who asks does not matter.
        let mut message = self.message(leader, MessageType::MsgTransferLeader);
        message.from = to;
        self.send(message);
    }

    /// Tells the transferee to campaign if it has the whole log.
    pub(super) fn maybe_finish_transfer(&mut self, id: PeerId) {
        let caught_up = self
            .tracker
            .progress(id)
            .is_some_and(|progress| progress.matched == self.log.last_index());
        if self.transferee == Some(id) && caught_up {
            self.timeout_now_sent = true;
            let message = self.message(id, MessageType::MsgTimeoutNow);
            self.send(message);
        }
    }

    /// The leader wants this replica to take over.
    pub(super) fn on_timeout_now(&mut self, message: &Message) {
        let from_leader = self.role == Role::Follower && self.leader == Some(message.from);
        if from_leader && self.now >= self.quiet_until && self.is_promotable() {
            self.ask_votes(true);
        }
    }
}
