//! The gate for messages: what is let in, and to whom it goes.
//!
//! Check   A message that no correct replica sends is refused here; behind the gate its
//!         numbers can be relied on, and what breaks then is our own fault.
//! Term    A higher term makes a follower, a lower one is answered so that its sender
//!         catches up (section 5.1); votes and pre-votes have rules of their own.
//! Handle  By type and role.

use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::error::Error;
use crate::log::snapshot_id;
use crate::storage::Storage;
use crate::types::{Index, NO_PEER, Role};

/// Highest index taken from a message. Nobody gets there by counting, and there is always a
/// next one.
const INDEX_MAX: Index = u64::MAX >> 1;

impl<S: Storage> Replica<S> {
    /// Takes a message from a peer. An error means that it was dropped. Handlers take out of
    /// it what they keep; the message itself, which is large, is not moved about.
    pub fn step(&mut self, message: &mut Message) -> Result<(), Error> {
        let msg_type = self.check_message(message)?;
        if !self.pass_term(message, msg_type)? {
            return Ok(());
        }
        match msg_type {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                self.on_vote_request(message, msg_type);
                Ok(())
            }
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                self.on_vote_response(message, msg_type);
                Ok(())
            }
            MessageType::MsgAppend => self.on_append(message),
            MessageType::MsgSnapshot => self.on_snapshot(message),
            MessageType::MsgHeartbeat => self.on_heartbeat(message),
            MessageType::MsgAppendResponse => self.on_append_response(message),
            MessageType::MsgHeartbeatResponse => self.on_heartbeat_response(message),
            MessageType::MsgReadIndex => {
                self.on_read_request(message);
                Ok(())
            }
            MessageType::MsgReadIndexResp => {
                self.on_read_response(message);
                Ok(())
            }
            MessageType::MsgTransferLeader => {
                self.transfer_leader(message.from);
                Ok(())
            }
            MessageType::MsgTimeoutNow => {
                self.on_timeout_now(message);
                Ok(())
            }
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum => unreachable!("local messages stop at the gate"),
        }
    }

    /// Refuses what no correct replica sends, by its form alone.
    fn check_message(&self, message: &Message) -> Result<MessageType, Error> {
        let Ok(msg_type) = MessageType::try_from(message.msg_type) else {
            return Err(self.malformed(message, "unknown type"));
        };
        if message.from == NO_PEER || message.from == self.id {
            return Err(self.malformed(message, "sender is nobody or this replica"));
        }
        if message.to != NO_PEER && message.to != self.id {
            return Err(self.malformed(message, "addressed to another replica"));
        }
        match msg_type {
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum => {
                let msg_type = message.msg_type;
                return Err(Error::LocalMessage { msg_type });
            }
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => self.check_member(message)?,
            MessageType::MsgAppend => self.check_append(message)?,
            MessageType::MsgSnapshot => self.check_snapshot(message)?,
            MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgHeartbeat
            | MessageType::MsgTimeoutNow
            | MessageType::MsgReadIndexResp => self.check_term(message)?,
            // A client's word may set these off, so they may come without a term.
            MessageType::MsgTransferLeader | MessageType::MsgReadIndex => {}
        }
        Ok(msg_type)
    }

    fn check_member(&self, message: &Message) -> Result<(), Error> {
        if self.tracker.membership().contains(message.from) {
            Ok(())
        } else {
            Err(Error::UnknownPeer { from: message.from })
        }
    }

    fn check_term(&self, message: &Message) -> Result<(), Error> {
        if message.term == 0 {
            return Err(self.malformed(message, "nobody leads or campaigns in term 0"));
        }
        Ok(())
    }

    fn check_append(&self, message: &Message) -> Result<(), Error> {
        self.check_term(message)?;
        let (mut index, mut term) = (message.index, message.log_term);
        for entry in &message.entries {
            let follows = index.checked_add(1) == Some(entry.index) && entry.term >= term;
            if !follows {
                return Err(self.malformed(message, "entries do not follow one another"));
            }
            (index, term) = (entry.index, entry.term);
        }
        if term > message.term {
            return Err(self.malformed(message, "entries of a later term than the leader's"));
        }
        if index > INDEX_MAX {
            return Err(self.malformed(message, "index out of range"));
        }
        Ok(())
    }

    fn check_snapshot(&self, message: &Message) -> Result<(), Error> {
        self.check_term(message)?;
        let Some(snapshot) = &message.snapshot else {
            return Err(self.malformed(message, "no snapshot"));
        };
        let id = snapshot_id(snapshot);
        let in_range = (1..=INDEX_MAX).contains(&id.index);
        if !in_range || id.term == 0 || id.term > message.term {
            return Err(self.malformed(message, "snapshot without a valid place in the log"));
        }
        Ok(())
    }

    pub(super) fn malformed(&self, message: &Message, reason: &'static str) -> Error {
        Error::Malformed {
            from: message.from,
            reason,
        }
    }

    /// Compares terms. Returns whether the message is to be handled.
    fn pass_term(&mut self, message: &Message, msg_type: MessageType) -> Result<bool, Error> {
        let vote = matches!(
            msg_type,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        // Requests that a client's word sets off may come without a term.
        let forwarded = matches!(
            msg_type,
            MessageType::MsgTransferLeader | MessageType::MsgReadIndex
        );
        if vote && message.term >= self.term && self.withholds_vote(message, msg_type) {
            self.votes_withheld += u64::from(self.now >= self.quiet_until);
            return Ok(false);
        }
        if message.term == self.term || (forwarded && message.term == 0) {
            return self.check_one_leader(message, msg_type);
        }
        if message.term < self.term {
            // Planted: what is left of an earlier term has no effect (section 5.1).
            if planted!(LateTimeoutNow) && msg_type == MessageType::MsgTimeoutNow {
                return Ok(true);
            }
            self.answer_lower_term(message, msg_type);
            return Ok(false);
        }
        let leader = match msg_type {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                Some(message.from)
            }
            // A pre-vote raises nobody's term; its grant names the term to come.
            MessageType::MsgRequestPreVote => return Ok(true),
            MessageType::MsgRequestPreVoteResponse if !message.reject => return Ok(true),
            _ => None,
        };
        self.become_follower(message.term, leader);
        Ok(true)
    }

    /// One term has one leader (section 5.2): a second one must be an impostor.
    fn check_one_leader(&self, message: &Message, msg_type: MessageType) -> Result<bool, Error> {
        let from_leader = matches!(
            msg_type,
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        );
        if from_leader && self.leader.is_some_and(|leader| leader != message.from) {
            return Err(self.malformed(message, "a second leader in one term"));
        }
        Ok(true)
    }

    /// Tells a sender of an earlier term what the term is, where that helps it.
    fn answer_lower_term(&mut self, message: &Message, msg_type: MessageType) {
        let answer = match msg_type {
            // An old leader steps down when it sees the term. With pre-vote this is the only
            // way in which a replica that came back with a higher term gets in again.
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                MessageType::MsgAppendResponse
            }
            MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
            MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
            _ => return,
        };
        let mut answer = self.message(message.from, answer);
        answer.index = message.index;
        answer.reject = true;
        self.send(answer);
    }

    /// Notes word from the leader of the present term and follows it.
    pub(super) fn follow(&mut self, message: &Message) {
        match self.role {
            Role::Follower => self.leader = Some(message.from),
            Role::PreCandidate | Role::Candidate => {
                self.become_follower(self.term, Some(message.from));
            }
            Role::Leader => unreachable!("a second leader stops at the gate"),
        }
        self.election_elapsed = 0;
        self.heard_at = Some(self.now);
    }
}
