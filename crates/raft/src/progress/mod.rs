//! What a leader knows of one follower's log, and how it sends to it.
//!
//! Probe      the place where the logs meet is unknown: one append at a time, the next one
//!            after an answer or a heartbeat's answer.
//! Replicate  appends are sent ahead of the answers, as many as the in-flight window holds.
//! Snapshot   the follower needs entries that are compacted: nothing is sent until the
//!            snapshot has arrived or failed.
//!
//! A rejection leads from Replicate to Probe, an acceptance from Probe to Replicate, a
//! compacted log from either to Snapshot.
//!
//! Invariant: `matched < next`. `matched` never decreases in the leader's term, except that
//! nothing is known of a peer that was removed and added again.

mod inflights;

pub use inflights::Inflights;

use crate::types::Index;

/// How a leader sends to one follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressState {
    /// One append at a time, to find where the logs meet.
    #[default]
    Probe,
    /// Appends are sent ahead of the answers.
    Replicate,
    /// A snapshot is on its way.
    Snapshot,
}

/// A leader's view of one follower.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Highest index known to be synced in the follower's log, equal to the leader's.
    pub matched: Index,
    /// Index of the next entry to send. Invariant: above `matched`.
    pub next: Index,
    /// How the leader sends.
    pub state: ProgressState,
    /// In Probe: an append was sent and not answered yet.
    pub paused: bool,
    /// In Snapshot: index of the snapshot on its way, else 0.
    pub pending_snapshot: Index,
    /// Whether the follower was heard from since the last quorum check.
    pub recent_active: bool,
    /// Appends with entries on their way: the last index of each.
    pub inflights: Inflights,
    /// Highest commit index sent in an append that was not known to be lost.
    pub sent_commit: Index,
    /// The follower waits for the commit index: it leaves at once, even if that is lazy.
    pub commit_wanted: bool,
    /// An append is due even if it holds nothing new: the follower is behind and may have
    /// missed the last one.
    pub resend: bool,
    /// In Replicate: the last entry sent when the follower last answered a heartbeat. If it
    /// is not acknowledged by the next answer, it may be lost.
    pub sent_before_heartbeat: Index,
    /// Highest heartbeat round of the leader's term that the follower has answered.
    pub acked_round: u64,
}

impl Progress {
    /// Nothing is known of the follower but that entries from `next` on might be missing.
    pub fn new(next: Index, max_inflight_messages: usize) -> Self {
        Self {
            matched: 0,
            next: next.max(1),
            state: ProgressState::Probe,
            paused: false,
            pending_snapshot: 0,
            recent_active: false,
            inflights: Inflights::new(max_inflight_messages),
            sent_commit: 0,
            commit_wanted: false,
            resend: false,
            sent_before_heartbeat: 0,
            acked_round: 0,
        }
    }

    fn reset_state(&mut self, state: ProgressState) {
        self.state = state;
        self.paused = false;
        self.pending_snapshot = 0;
        self.resend = false;
        self.sent_before_heartbeat = 0;
        self.inflights.clear();
    }

    /// Goes back to one append at a time. After a snapshot, what it held need not be sent.
    pub fn become_probe(&mut self) {
        let from_snapshot = match self.state {
            ProgressState::Snapshot => self.pending_snapshot,
            ProgressState::Probe | ProgressState::Replicate => 0,
        };
        self.reset_state(ProgressState::Probe);
        self.next = self.matched.max(from_snapshot) + 1;
        self.sent_commit = 0;
    }

    /// Sends ahead from the place where the logs meet.
    pub fn become_replicate(&mut self) {
        self.reset_state(ProgressState::Replicate);
        self.next = self.matched + 1;
    }

    /// Waits for the snapshot at `index`.
    pub fn become_snapshot(&mut self, index: Index) {
        self.reset_state(ProgressState::Snapshot);
        self.pending_snapshot = index;
        self.sent_commit = 0;
    }

    /// The snapshot was not delivered: probe from what is known to match.
    pub fn snapshot_failed(&mut self) {
        self.pending_snapshot = 0;
    }

    /// Notes that the follower's log matches up to `index`. Returns whether that is news.
    #[inline]
    pub fn maybe_update(&mut self, index: Index) -> bool {
        let news = self.matched < index;
        if news {
            self.matched = index;
            self.paused = false;
        }
        self.next = self.next.max(index.saturating_add(1));
        news
    }

    /// The follower refused an append behind `rejected` and proposes to go on from `hint`.
    /// Returns false if the refusal is old: what it says is known to be over.
    pub fn maybe_decrease(&mut self, rejected: Index, hint: Index) -> bool {
        if rejected <= self.matched {
            // What matched once matches for the whole term. A follower that says otherwise
            // has lost its log and would be asked for ever.
            return false;
        }
        match self.state {
            // The caller goes to Probe, which starts behind `matched`: safe, and the
            // exception in which the hint would be nearer is rare.
            ProgressState::Replicate => rejected < self.next,
            ProgressState::Probe => {
                if self.next - 1 != rejected {
                    return false;
                }
                self.next = rejected.min(hint.saturating_add(1)).max(self.matched + 1);
                self.paused = false;
                true
            }
            ProgressState::Snapshot => false,
        }
    }

    /// Whether nothing may be sent now.
    #[inline]
    pub fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe => self.paused,
            ProgressState::Replicate => self.inflights.is_full(),
            ProgressState::Snapshot => true,
        }
    }

    /// Notes that an append was sent whose last entry is `last` (`None`: without entries)
    /// and which carried `commit`.
    #[inline]
    pub fn on_sent(&mut self, last: Option<Index>, commit: Index) {
        self.resend = false;
        self.commit_wanted = false;
        self.sent_commit = self.sent_commit.max(commit);
        match self.state {
            ProgressState::Probe => self.paused = true,
            ProgressState::Replicate => {
                if let Some(last) = last {
                    self.next = last + 1;
                    self.inflights.add(last);
                }
            }
            ProgressState::Snapshot => {
                unreachable!("an append was sent while a snapshot is on its way")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probing(matched: Index, next: Index) -> Progress {
        let mut progress = Progress::new(next, 2);
        progress.matched = matched;
        progress
    }

    #[test]
    fn probe_sends_one_append_at_a_time() {
        let mut progress = probing(0, 5);
        assert!(!progress.is_paused());
        progress.on_sent(Some(9), 3);
        assert!(progress.is_paused());
        assert_eq!((progress.next, progress.sent_commit), (5, 3));
        assert!(progress.maybe_decrease(4, 2));
        assert_eq!(progress.next, 3);
        assert!(!progress.is_paused());
    }

    #[test]
    fn replicate_sends_ahead_until_the_window_is_full() {
        let mut progress = probing(4, 5);
        progress.become_replicate();
        progress.on_sent(Some(6), 0);
        assert_eq!(progress.next, 7);
        progress.on_sent(None, 4);
        assert!(!progress.is_paused());
        progress.on_sent(Some(9), 4);
        assert!(progress.is_paused());
        assert!(progress.maybe_update(6));
        progress.inflights.free_to(6);
        assert!(!progress.is_paused());
        assert_eq!((progress.matched, progress.next), (6, 10));
    }

    #[test]
    fn old_answers_change_nothing() {
        let mut progress = probing(4, 8);
        assert!(!progress.maybe_update(4));
        assert!(!progress.maybe_update(2));
        assert_eq!((progress.matched, progress.next), (4, 8));
        assert!(!progress.maybe_decrease(5, 1), "not what was asked last");
        assert!(!progress.maybe_decrease(4, 1), "known to match");
        progress.become_replicate();
        assert!(!progress.maybe_decrease(4, 1), "known to match");
        assert!(!progress.maybe_decrease(5, 1), "never sent");
        assert_eq!((progress.matched, progress.next), (4, 5));
    }

    #[test]
    fn a_hint_never_leads_behind_what_matches_or_past_the_refusal() {
        let mut progress = probing(4, 20);
        assert!(progress.maybe_decrease(19, 1));
        assert_eq!(progress.next, 5);
        let mut progress = probing(4, 20);
        assert!(progress.maybe_decrease(19, u64::MAX));
        assert_eq!(progress.next, 19);
    }

    #[test]
    fn snapshot_pauses_until_it_ends_either_way() {
        let mut progress = probing(4, 5);
        progress.become_snapshot(30);
        assert!(progress.is_paused());
        assert!(!progress.maybe_decrease(5, 1));
        let mut failed = progress.clone();
        progress.become_probe();
        assert_eq!((progress.next, progress.pending_snapshot), (31, 0));
        failed.snapshot_failed();
        failed.become_probe();
        assert_eq!(failed.next, 5);
    }
}
