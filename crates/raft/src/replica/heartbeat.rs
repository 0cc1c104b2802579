//! Heartbeats: how a leader keeps its followers quiet and knows that it still leads.
//!
//! Every `heartbeat_ticks`, and when reads wait, a round goes to all members. It carries its
//! number, which comes back in the answers: the latest round that a quorum has answered
//! confirms reads and, by the time at which it was sent, the lease. It also carries the
//! commit index as far as the follower is known to have the entries.
//!
//! Every `election_ticks` the leader looks whether a quorum has answered anything at all, and
//! steps down if not (thesis, 6.2).

use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::error::Error;
use crate::progress::ProgressState;
use crate::storage::Storage;

impl<S: Storage> Replica<S> {
    pub(super) fn tick_leader(&mut self) {
        self.heartbeat_elapsed += 1;
        self.election_elapsed += 1;
        if self.election_elapsed >= self.config.election_ticks {
            self.election_elapsed = 0;
            if self.config.check_quorum && !self.tracker.take_quorum_active(self.id) {
                return self.become_follower(self.term, None);
            }
        }
        self.tick_transfer();
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks {
            self.send_round();
        }
    }

    /// Sends a heartbeat to every other member.
    pub(super) fn send_round(&mut self) {
        self.heartbeat_elapsed = 0;
        let round = self.rounds.begin(self.now);
        self.reads.assign(round);
        let mut at = None;
        while let Some(to) = self.tracker.next_followed(at) {
            at = Some(to);
            let matched = self.tracker.progress(to).map_or(0, |p| p.matched);
            if to != self.id {
                let mut message = self.message(to, MessageType::MsgHeartbeat);
                message.index = round;
                message.commit = matched.min(self.log.committed());
                self.send(message);
            }
        }
        // Alone, this replica is its own quorum.
        self.on_round_answered();
    }

    /// A heartbeat of the leader.
    pub(super) fn on_heartbeat(&mut self, message: &Message) -> Result<(), Error> {
        if message.commit > self.log.last_index() {
            // The leader knows these entries to be here: this log has lost some.
            return Err(self.malformed(message, "commit index behind the end of this log"));
        }
        self.follow(message);
        self.log.commit_to(message.commit);
        let mut answer = self.message(message.from, MessageType::MsgHeartbeatResponse);
        answer.index = message.index;
        answer.commit = self.log.committed();
        self.send(answer);
        Ok(())
    }

    /// A follower's answer to a heartbeat.
    pub(super) fn on_heartbeat_response(&mut self, message: &Message) -> Result<(), Error> {
        if !self.is_leader() {
            return Ok(());
        }
        if message.index > self.rounds.current() {
            return Err(self.malformed(message, "answer to a round that was never sent"));
        }
        let last = self.log.last_index();
        let Some(progress) = self.tracker.progress_mut(message.from) else {
            return Ok(());
        };
        progress.recent_active = true;
        let confirmed = self.lease_from;
        progress.acked_round = progress.acked_round.max(message.index);
        match progress.state {
            ProgressState::Probe => progress.paused = false,
            ProgressState::Replicate => {
                // Appends may have been lost; one more gets the follower's word on it. What
                // was sent since its last heartbeat is given until its next one: the answer
                // may still wait for the follower's disk.
                if progress.inflights.is_full() {
                    progress.inflights.free_first();
                }
                progress.resend |= progress.matched < progress.sent_before_heartbeat;
                progress.sent_before_heartbeat = progress.next - 1;
            }
            ProgressState::Snapshot => {
                if message.commit >= progress.pending_snapshot {
                    progress.become_probe();
                }
            }
        }
        if progress.matched < last && progress.state == ProgressState::Probe {
            progress.resend = true;
        }
        self.on_round_answered();
        // Planted: who answered has promised nothing beyond the moment of the question.
        if planted!(LeaseFromAnswer) && self.lease_from != confirmed {
            self.rounds.count_from(self.now);
            self.on_round_answered();
        }
        Ok(())
    }

    /// Draws the conclusions from the latest round that a quorum has answered.
    pub(super) fn on_round_answered(&mut self) {
        let round = self.tracker.confirmed_round(self.id, self.rounds.current());
        self.lease_from = self.rounds.confirmed(round);
        while let Some(read) = self.reads.take_confirmed(round) {
            self.give_read(read.from, read.context, read.index);
        }
    }
}
