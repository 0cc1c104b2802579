//! Elections: when to campaign, how votes are asked for, given, withheld and counted.
//!
//! Time out   A follower without word from a leader for a random number of ticks campaigns.
//! Pre-vote   It first asks whether it could win, without raising its term, so that one that
//!            was cut off disturbs nobody when it comes back (thesis, 9.6).
//! Vote       It raises its term, votes for itself and asks for votes; a quorum makes it the
//!            leader (section 5.2). A vote goes only to a log at least as new (5.4.1).
//!
//! Two promises are kept by time, not by ticks, because leases rest on them:
//! * for one election timeout after word from a leader, no vote is given and no campaign
//!   begun, unless that leader itself has asked for it (`CAMPAIGN_TRANSFER`);
//! * for one election timeout after the start, neither at all: what was promised before a
//!   crash is forgotten.
//!
//! Every answer names the latest committed entry. A membership counts when it is applied: the
//! old voters may have long logs, which refuse everybody, and be out of office by a change of
//! whose commit the asking replica has not heard. Their refusal tells it.
//!
//! Asking for a vote is a promise too, since it carries this replica's own vote: it waits
//! for the sync like a vote given.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{EntryType, Message, MessageType};

use super::{CAMPAIGN_TRANSFER, Replica};
use crate::error::Error;
use crate::quorum::VoteResult;
use crate::storage::Storage;
use crate::types::{EntryId, NO_PEER, Role};

/// Bytes of entries looked at in one go for unapplied membership changes.
const SCAN_BYTES: u64 = 1 << 20;

impl<S: Storage> Replica<S> {
    pub(super) fn tick_election(&mut self) {
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        if self.election_elapsed < self.election_timeout || self.no_campaign_until().is_some() {
            return;
        }
        self.election_elapsed = 0;
        if self.is_promotable() {
            self.start_campaign();
        }
    }

    /// Campaigns on the driver's word.
    pub fn campaign(&mut self) -> Result<(), Error> {
        if self.is_leader() {
            return Ok(());
        }
        if let Some(until) = self.no_campaign_until() {
            return Err(Error::CampaignTooEarly { until });
        }
        if !self.is_promotable() {
            return Err(Error::NotPromotable);
        }
        self.start_campaign();
        Ok(())
    }

    fn start_campaign(&mut self) {
        if self.config.pre_vote {
            self.ask_pre_votes();
        } else {
            self.ask_votes(false);
        }
    }

    /// The time before which a promise forbids to campaign.
    fn no_campaign_until(&self) -> Option<Duration> {
        let heard = self.heard_at.filter(|_| self.config.check_quorum);
        let mut heard = heard.map_or(Duration::ZERO, |at| {
            at.saturating_add(self.config.election_timeout)
        });
        if planted!(TickBurst) {
            // Planted: a promise ends with its time, not with so many ticks.
            let over = self.election_elapsed >= self.config.election_ticks;
            heard = if over { Duration::ZERO } else { heard };
        }
        Some(self.quiet_until.max(heard)).filter(|&until| self.now < until)
    }

    /// Whether this replica could lead: it votes, its state is its own (no snapshot waits to
    /// be applied), and no committed membership change is unapplied. The last keeps an old
    /// membership from electing a leader beside the new one; an append that brings a change
    /// also brings the commit index of the one before, so one step is all there can be.
    pub(super) fn is_promotable(&self) -> bool {
        self.tracker.is_voter(self.id)
            && self.term < u64::MAX
            && !self.log.awaits_snapshot()
            && !self.has_unapplied_conf_change()
    }

    fn has_unapplied_conf_change(&self) -> bool {
        let mut next = self.log.applied() + 1;
        let end = self.log.committed() + 1;
        while next < end {
            let Ok(entries) = self.log.entries(next, end, SCAN_BYTES) else {
                // It cannot be known; not to campaign is always safe.
                return true;
            };
            let normal = EntryType::EntryNormal as i32;
            if entries.iter().any(|entry| entry.entry_type != normal) {
                return true;
            }
            next += entries.len() as u64;
        }
        false
    }

    fn ask_pre_votes(&mut self) {
        self.reset(self.term);
        self.role = Role::PreCandidate;
        if self.tracker.record_vote(self.id, true) == VoteResult::Won {
            return self.ask_votes(false);
        }
        self.request_votes(MessageType::MsgRequestPreVote, false);
    }

    pub(super) fn ask_votes(&mut self, transfer: bool) {
        self.reset(self.term + 1);
        self.role = Role::Candidate;
        self.vote = self.id;
        if self.tracker.record_vote(self.id, true) == VoteResult::Won {
            // Alone: what it sends to learners waits until term and vote are synced.
            return self.become_leader();
        }
        self.request_votes(MessageType::MsgRequestVote, transfer);
    }

    fn request_votes(&mut self, msg_type: MessageType, transfer: bool) {
        let last = self.log.last();
        let voters = self.tracker.membership().voters.voters();
        let others: Vec<_> = voters.filter(|&id| id != self.id).collect();
        for to in others {
            let mut message = self.message(to, msg_type);
            message.index = last.index;
            message.log_term = last.term;
            if transfer {
                message.context = Bytes::from_static(CAMPAIGN_TRANSFER);
            }
            if msg_type == MessageType::MsgRequestPreVote {
                message.term += 1;
                self.send(message);
            } else {
                self.send_after_sync(message);
            }
        }
    }

    /// Whether a request of this term or a later one must go unheard.
    pub(super) fn withholds_vote(&self, message: &Message, msg_type: MessageType) -> bool {
        if self.now < self.quiet_until {
            return true;
        }
        let transfer = msg_type == MessageType::MsgRequestVote
            && message.context.as_ref() == CAMPAIGN_TRANSFER;
        if transfer || !self.config.check_quorum {
            return false;
        }
        // A leader checks its quorum by itself and steps down without one.
        let leads = self.is_leader() && message.term > self.term;
        leads || self.no_campaign_until().is_some()
    }

    /// A request of the present term, or a pre-vote of a later one.
    pub(super) fn on_vote_request(&mut self, message: &Message, msg_type: MessageType) {
        let pre_vote = msg_type == MessageType::MsgRequestPreVote;
        let free = self.vote == message.from
            || (self.vote == NO_PEER && self.leader.is_none())
            || (pre_vote && message.term > self.term);
        let last = EntryId {
            term: message.log_term,
            index: message.index,
        };
        let granted = free && self.log.is_up_to_date(last);
        let answer = if pre_vote {
            MessageType::MsgRequestPreVoteResponse
        } else {
            MessageType::MsgRequestVoteResponse
        };
        let mut answer = self.message(message.from, answer);
        answer.reject = !granted;
        answer.commit = self.log.committed();
        answer.log_term = self.log.term(answer.commit).unwrap_or_default();
        if granted && pre_vote {
            answer.term = message.term;
        }
        if !pre_vote {
            if granted {
                self.election_elapsed = 0;
                self.vote = message.from;
            }
            self.send_after_sync(answer);
        } else {
            self.send(answer);
        }
    }

    pub(super) fn on_vote_response(&mut self, message: &Message, msg_type: MessageType) {
        self.learn_commit(message);
        let pre_vote = msg_type == MessageType::MsgRequestPreVoteResponse;
        let expected = match self.role {
            Role::PreCandidate => pre_vote,
            Role::Candidate => !pre_vote,
            Role::Follower | Role::Leader => false,
        };
        // A granted pre-vote names the term asked for: one of an earlier election of ours
        // does not count.
        let term = if pre_vote && !message.reject {
            message.term.checked_sub(1)
        } else {
            Some(message.term)
        };
        if !expected || term != Some(self.term) {
            return;
        }
        match self.tracker.record_vote(message.from, !message.reject) {
            VoteResult::Pending => {}
            VoteResult::Lost => self.become_follower(self.term, None),
            VoteResult::Won if pre_vote => self.ask_votes(false),
            VoteResult::Won => self.become_leader(),
        }
    }

    /// Takes over the commit index that an answer to a vote names, if this log holds that
    /// entry: then both logs are equal up to it (section 5.3).
    fn learn_commit(&mut self, message: &Message) {
        let id = EntryId {
            term: message.log_term,
            index: message.commit,
        };
        let news = !self.is_leader() && id.term > 0 && id.index > self.log.committed();
        if !news || !self.log.matches(id) {
            return;
        }
        self.log.commit_to(id.index);
        // As in `is_promotable`: a change has to be applied before anybody is elected.
        if self.role != Role::Follower && self.has_unapplied_conf_change() {
            self.become_follower(self.term, None);
        }
    }
}
