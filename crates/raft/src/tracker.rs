//! The membership, and what is counted over it: votes and the progress of each member.
//!
//! Progress exists on a leader only, for every member including itself; votes exist during
//! an election. Numbers of members that are not tracked count as 0, so a quorum never rests
//! on a peer that nothing is known of.

use std::collections::BTreeMap;

use crate::conf_change::Membership;
use crate::progress::Progress;
use crate::quorum::VoteResult;
use crate::types::{Index, PeerId};

/// Members, votes and progress.
#[derive(Debug)]
pub(crate) struct Tracker {
    membership: Membership,
    /// In rising order of the ids. A group is small: a search in it costs less than one in a
    /// map.
    progress: Vec<(PeerId, Progress)>,
    votes: BTreeMap<PeerId, bool>,
    max_inflight_messages: usize,
}

impl Tracker {
    pub fn new(membership: Membership, max_inflight_messages: usize) -> Self {
        Self {
            membership,
            progress: Vec::new(),
            votes: BTreeMap::new(),
            max_inflight_messages,
        }
    }

    #[inline]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    pub fn is_voter(&self, id: PeerId) -> bool {
        self.membership.voters.contains(id)
    }

    /// Begins to follow every member, from `next` on.
    pub fn start_progress(&mut self, next: Index) {
        self.progress = self
            .membership
            .members()
            .map(|id| (id, Progress::new(next, self.max_inflight_messages)))
            .collect();
        self.progress.sort_unstable_by_key(|&(id, _)| id);
    }

    pub fn stop_progress(&mut self) {
        self.progress.clear();
    }

    #[inline]
    pub fn progress(&self, id: PeerId) -> Option<&Progress> {
        self.progress
            .iter()
            .find(|(at, _)| *at == id)
            .map(|(_, progress)| progress)
    }

    #[inline]
    pub fn progress_mut(&mut self, id: PeerId) -> Option<&mut Progress> {
        self.progress
            .iter_mut()
            .find(|(at, _)| *at == id)
            .map(|(_, progress)| progress)
    }

    /// Progress of all members in rising order of their ids.
    #[inline]
    pub fn all_progress(&self) -> impl Iterator<Item = (PeerId, &Progress)> {
        self.progress.iter().map(|(id, progress)| (*id, progress))
    }

    /// The followed member after `id` in rising order.
    #[inline]
    pub fn next_followed(&self, after: Option<PeerId>) -> Option<PeerId> {
        let mut ids = self.progress.iter().map(|&(id, _)| id);
        ids.find(|&id| after.is_none_or(|after| id > after))
    }

    /// Puts another membership in force. `next` is the index from which a leader sends to
    /// new members; `None` if there is no progress to keep.
    pub fn set_membership(&mut self, membership: Membership, next: Option<Index>) {
        self.membership = membership;
        let Some(next) = next else {
            return;
        };
        let membership = &self.membership;
        self.progress.retain(|&(id, _)| membership.contains(id));
        for id in self.membership.members() {
            if let Err(at) = self.progress.binary_search_by_key(&id, |&(id, _)| id) {
                let mut progress = Progress::new(next, self.max_inflight_messages);
                // It has had no time to answer, and needs a first append to find out where
                // its log ends.
                progress.recent_active = true;
                progress.resend = true;
                self.progress.insert(at, (id, progress));
            }
        }
    }

    /// The highest index that a quorum has in its logs.
    #[inline]
    pub fn committed_index(&self) -> Index {
        let matched = |id| self.progress(id).map_or(0, |progress| progress.matched);
        self.membership.voters.agreed(matched)
    }

    /// The highest round that a quorum has answered, if this replica `own` counts as having
    /// answered `current`.
    pub fn confirmed_round(&self, own: PeerId, current: u64) -> u64 {
        let answered = |id| match self.progress(id) {
            _ if id == own => current,
            Some(progress) => progress.acked_round,
            None => 0,
        };
        self.membership.voters.agreed(answered).min(current)
    }

    /// Whether a quorum was heard from since the last time this was asked.
    pub fn take_quorum_active(&mut self, own: PeerId) -> bool {
        let active = |id| {
            let heard = |progress: &Progress| progress.recent_active;
            Some(id == own || self.progress(id).is_some_and(heard))
        };
        let result = self.membership.voters.vote_result(active);
        for progress in self.progress.iter_mut().map(|(_, progress)| progress) {
            progress.recent_active = false;
        }
        result == VoteResult::Won
    }

    pub fn clear_votes(&mut self) {
        self.votes.clear();
    }

    /// Counts a vote; the first one of a peer counts.
    pub fn record_vote(&mut self, id: PeerId, granted: bool) -> VoteResult {
        self.votes.entry(id).or_insert(granted);
        let vote = |id| self.votes.get(&id).copied();
        self.membership.voters.vote_result(vote)
    }
}
