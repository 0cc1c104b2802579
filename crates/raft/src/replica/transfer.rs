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
    /// Begins to hand leadership over to `to`; to the leader itself, calls off what was
    /// begun. Nothing happens if `to` is no voter or is being handed it already.
    pub fn transfer_leader(&mut self, to: PeerId) {
        if !self.is_leader() {
            return self.forward_transfer(to);
        }
        if to == self.id {
            // The lease stays void if the transferee was told to campaign already.
            self.transferee = None;
            return;
        }
        if !self.tracker.is_voter(to) || self.transferee == Some(to) {
            return;
        }
        self.transferee = Some(to);
        self.transfer_elapsed = 0;
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

    /// Ends a transfer that came to nothing within an election timeout.
    pub(super) fn tick_transfer(&mut self) {
        self.transfer_elapsed = self.transfer_elapsed.saturating_add(1);
        if self.transfer_elapsed >= self.config.election_ticks {
            self.transferee = None;
        }
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
        // Planted: only the leader of this term hands over.
        let leads = self.leader == Some(message.from) || planted!(LateTimeoutNow);
        let from_leader = self.role == Role::Follower && leads;
        if from_leader && self.now >= self.quiet_until && self.is_promotable() {
            self.ask_votes(true);
        }
    }
}
