//! Linearizable reads without the log (ReadIndex; thesis, 6.4).
//!
//! Ask      The leader notes its commit index; a follower forwards the request.
//! Confirm  A heartbeat round that is sent later and answered by a quorum proves that no
//!          other leader has committed anything before the request. One round serves all
//!          requests since the last Ready.
//! Answer   The index comes out as a read state here, or goes to the follower that asked.
//!
//! A leader that has committed nothing in its term does not know the commit index yet and
//! refuses (section 8). What is asked of a leader that steps down is forgotten.

use bytes::Bytes;
use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::error::Error;
use crate::storage::Storage;
use crate::types::{Index, PeerId};

impl<S: Storage> Replica<S> {
    /// Asks for a read point on behalf of this replica's own reader.
    pub fn read_index(&mut self, context: Bytes) -> Result<(), Error> {
        if self.is_leader() {
            return self.ask_read(None, context);
        }
        let Some(leader) = self.leader else {
            return Err(Error::NotLeader { leader: None });
        };
        let mut message = self.message(leader, MessageType::MsgReadIndex);
        message.context = context;
        self.send(message);
        Ok(())
    }

    fn ask_read(&mut self, from: Option<PeerId>, context: Bytes) -> Result<(), Error> {
        let index = self.log.committed();
        // Planted: what earlier terms have committed is known with the first entry of this one.
        if index < self.term_start && !planted!(ReadIndexBeforeOwnTerm) {
            return Err(Error::ReadNotReady { term: self.term });
        }
        if !self.reads.push(from, context, index) {
            return Err(Error::TooManyReads);
        }
        Ok(())
    }

    /// Whether reads wait for a round to be sent.
    pub fn needs_round(&self) -> bool {
        self.is_leader() && self.reads.needs_round()
    }

    /// Sends the round that waiting reads need.
    pub fn send_read_round(&mut self) {
        if self.needs_round() {
            self.send_round();
        }
    }

    /// A follower's reader asks. It is not answered where it cannot be served: the follower
    /// asks again.
    pub(super) fn on_read_request(&mut self, message: &mut Message) {
        if self.is_leader() {
            let _ = self.ask_read(Some(message.from), std::mem::take(&mut message.context));
        }
    }

    /// The leader's answer to a forwarded request.
    pub(super) fn on_read_response(&mut self, message: &mut Message) {
        if !self.is_leader() && self.leader == Some(message.from) {
            self.answer_read(message.index, std::mem::take(&mut message.context));
        }
    }

    /// Gives a confirmed read to whoever asked.
    pub(super) fn give_read(&mut self, from: Option<PeerId>, context: Bytes, index: Index) {
        let Some(to) = from else {
            return self.answer_read(index, context);
        };
        let mut message = self.message(to, MessageType::MsgReadIndexResp);
        message.index = index;
        message.context = context;
        self.send(message);
        // It can serve the read only when it knows that much to be committed.
        if let Some(progress) = self.tracker.progress_mut(to) {
            progress.commit_wanted = progress.sent_commit < index;
        }
    }
}
