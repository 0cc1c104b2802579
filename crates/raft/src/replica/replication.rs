//! Replication: a leader's appends, the followers' answers, and what is committed by them.
//!
//! Propose   The entry goes to the end of the leader's log; nothing is sent yet.
//! Ready     `send_appends` builds what each follower is due: everything from its next index
//!           on, in messages of limited size, and the commit index with it. A follower that
//!           is due nothing gets an empty append if the commit index moved, or, where that is
//!           lazy, learns of it with the next append or heartbeat.
//! Answer    An acceptance moves `matched`, and with it the commit index, but only to an
//!           entry of the own term (section 5.4.2, figure 8). A refusal names the place where
//!           the follower's log may meet, by index and term, so that a whole term is skipped
//!           in one round trip.

use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::error::Error;
use crate::log::AppendRefusal;
use crate::progress::{Progress, ProgressState};
use crate::storage::{Storage, StorageError};
use crate::types::{EntryId, Index, PeerId};

impl<S: Storage> Replica<S> {
    /// Whether some follower is due an append.
    pub fn has_appends(&self) -> bool {
        self.is_leader()
            && self
                .tracker
                .all_progress()
                .any(|(id, progress)| id != self.id && self.is_due(progress))
    }

    fn is_due(&self, progress: &Progress) -> bool {
        let news = progress.next <= self.log.last_index()
            || progress.resend
            || (progress.state == ProgressState::Replicate
                && progress.sent_commit < self.log.committed()
                && self.commit_is_due(progress));
        news && !progress.is_paused()
    }

    /// Whether a commit index is worth a message of its own.
    fn commit_is_due(&self, progress: &Progress) -> bool {
        !self.config.lazy_commit
            || progress.commit_wanted
            || self.transferee.is_some()
            || self.pending_conf_index > self.log.applied()
    }

    /// Builds the appends that the followers are due.
    pub fn send_appends(&mut self) {
        if !self.is_leader() {
            return;
        }
        let mut at = None;
        while let Some(to) = self.tracker.next_followed(at) {
            at = Some(to);
            while to != self.id && self.send_append(to) {}
        }
    }

    /// Sends one append, or a snapshot in its place; false if nothing is due.
    fn send_append(&mut self, to: PeerId) -> bool {
        let Some(progress) = self.tracker.progress(to) else {
            return false;
        };
        if !self.is_due(progress) {
            return false;
        }
        let next = progress.next;
        let end = self.log.last_index() + 1;
        let limit = self.config.max_bytes_per_message;
        let entries = self.log.entries(next, end.max(next), limit);
        let (term, entries) = match (self.log.term(next - 1), entries) {
            (Ok(term), Ok(entries)) => (term, entries),
            (Err(StorageError::Compacted), _) | (_, Err(StorageError::Compacted)) => {
                self.send_snapshot(to);
                return false;
            }
            _ => {
                self.give_up_round(to);
                return false;
            }
        };
        let mut message = self.message(to, MessageType::MsgAppend);
        message.index = next - 1;
        message.log_term = term;
        message.commit = self.log.committed();
        let last = entries.last().map(|entry| entry.index);
        message.entries = entries;
        let commit = message.commit;
        if let Some(progress) = self.tracker.progress_mut(to) {
            progress.on_sent(last, commit);
        }
        self.send(message);
        true
    }

    /// What the follower needs cannot be read now: ask again after its next heartbeat.
    pub(super) fn give_up_round(&mut self, to: PeerId) {
        if let Some(progress) = self.tracker.progress_mut(to) {
            progress.become_probe();
            progress.paused = true;
        }
    }

    /// Entries from the leader.
    pub(super) fn on_append(&mut self, message: &mut Message) -> Result<(), Error> {
        self.follow(message);
        let prev = EntryId {
            term: message.log_term,
            index: message.index,
        };
        let mut answer = self.message(message.from, MessageType::MsgAppendResponse);
        if prev.index < self.log.committed() {
            // An old append: what it brings is known up to the commit index.
            answer.index = self.log.committed();
            self.send_after_sync(answer);
            return Ok(());
        }
        let (from, commit) = (message.from, message.commit);
        match self
            .log
            .append_from_leader(prev, std::mem::take(&mut message.entries))
        {
            Ok(last_new) => {
                self.log.commit_to(commit.min(last_new));
                answer.index = last_new;
            }
            Err(AppendRefusal::PrevMismatch) => {
                let from = prev.index.min(self.log.last_index());
                let (hint, term) = self.log.find_conflict_by_term(from, prev.term);
                answer.index = prev.index;
                answer.reject = true;
                answer.reject_hint = hint;
                answer.log_term = term.unwrap_or(0);
            }
            Err(AppendRefusal::ConflictWithCommitted) => {
                let reason = "entries that conflict with committed ones";
                return Err(Error::Malformed { from, reason });
            }
        }
        self.send_after_sync(answer);
        Ok(())
    }

    /// A follower's answer to an append or a snapshot.
    pub(super) fn on_append_response(&mut self, message: &Message) -> Result<(), Error> {
        if !self.is_leader() {
            return Ok(());
        }
        if !message.reject && message.index > self.log.last_index() {
            return Err(self.malformed(message, "entries that the leader does not have"));
        }
        if message.reject {
            self.on_append_refused(message);
        } else {
            self.on_append_accepted(message);
        }
        Ok(())
    }

    fn on_append_refused(&mut self, message: &Message) {
        let hint = if message.log_term > 0 {
            // Nothing of a later term than the follower's can match.
            self.log
                .find_conflict_by_term(message.reject_hint, message.log_term)
                .0
        } else {
            message.reject_hint
        };
        let Some(progress) = self.tracker.progress_mut(message.from) else {
            return;
        };
        progress.recent_active = true;
        if progress.maybe_decrease(message.index, hint)
            && progress.state == ProgressState::Replicate
        {
            progress.become_probe();
        }
    }

    fn on_append_accepted(&mut self, message: &Message) {
        let first_index = self.log.first_index();
        let Some(progress) = self.tracker.progress_mut(message.from) else {
            return;
        };
        progress.recent_active = true;
        let news = progress.maybe_update(message.index);
        match progress.state {
            ProgressState::Probe if news || progress.matched == message.index => {
                progress.become_replicate();
            }
            ProgressState::Probe => {}
            ProgressState::Replicate => progress.inflights.free_to(message.index),
            ProgressState::Snapshot => {
                // It may also have caught up another way, as from an earlier snapshot.
                let reached = progress.matched >= progress.pending_snapshot;
                if news && (reached || progress.matched + 1 >= first_index) {
                    progress.become_replicate();
                }
            }
        }
        if news {
            self.maybe_commit();
            self.maybe_finish_transfer(message.from);
        }
    }

    /// Commits what a quorum has in its logs, if it is of the own term.
    pub(super) fn maybe_commit(&mut self) -> bool {
        if planted!(OwnLogCountedBeforeSync) {
            // Planted: a leader's own log counts as far as it is synced.
            let last = self.log.last_index();
            if let Some(own) = self.tracker.progress_mut(self.id) {
                own.maybe_update(last);
            }
        }
        let index: Index = self.tracker.committed_index().min(self.log.last_index());
        // Planted: entries of earlier terms are committed by one of the own term only (5.4.2).
        index > self.log.committed()
            && (self.log.term(index) == Ok(self.term) || planted!(OldTermCommittedByCounting))
            && self.log.commit_to(index)
    }
}
