//! Snapshots: for a follower that needs entries which the leader has compacted (section 7).
//!
//! Send     The leader asks its storage; if the snapshot is still being made, it gives up this
//!          round and asks again after the follower's next heartbeat. While one is on its
//!          way nothing else is sent to that follower.
//! Report   The driver says how the sending ended; the leader probes again.
//! Restore  The follower replaces its log and membership, unless its log holds the snapshot's
//!          last entry or is further already: then it keeps all it has.

use strata_proto::eraftpb::{Message, MessageType};

use super::Replica;
use crate::conf_change::Membership;
use crate::error::Error;
use crate::log::snapshot_id;
use crate::progress::ProgressState;
use crate::storage::Storage;
use crate::types::{PeerId, SnapshotStatus};

impl<S: Storage> Replica<S> {
    /// Sends a snapshot to a follower whose next entry is compacted.
    pub(super) fn send_snapshot(&mut self, to: PeerId) {
        let active = self.tracker.progress(to).is_some_and(|p| p.recent_active);
        // Lower than the truncation point, the follower would need another one at once.
        let useful = self.log.first_index() - 1;
        let snapshot = match active {
            true => self.log.storage().snapshot(useful, to).ok(),
            false => None,
        };
        let id = snapshot.as_ref().map(snapshot_id).unwrap_or_default();
        let (Some(snapshot), true) = (snapshot, id.index >= useful.max(1)) else {
            return self.give_up_round(to);
        };
        if let Some(progress) = self.tracker.progress_mut(to) {
            progress.become_snapshot(id.index);
        }
        let mut message = self.message(to, MessageType::MsgSnapshot);
        message.snapshot = Some(Box::new(snapshot));
        self.send(message);
    }

    /// The driver reports how the sending of a snapshot ended.
    pub fn report_snapshot(&mut self, id: PeerId, status: SnapshotStatus) {
        let Some(progress) = self.tracker.progress_mut(id) else {
            return;
        };
        if progress.state != ProgressState::Snapshot {
            return;
        }
        if status == SnapshotStatus::Failure {
            progress.snapshot_failed();
        }
        progress.become_probe();
        // Its answer to the snapshot, or else to the next heartbeat, comes first.
        progress.paused = true;
    }

    /// The driver reports that a message was not delivered: appends sent ahead are lost.
    pub fn report_unreachable(&mut self, id: PeerId) {
        if let Some(progress) = self.tracker.progress_mut(id)
            && progress.state == ProgressState::Replicate
            && id != self.id
        {
            progress.become_probe();
        }
    }

    /// A snapshot from the leader.
    pub(super) fn on_snapshot(&mut self, message: &mut Message) -> Result<(), Error> {
        self.follow(message);
        let mut answer = self.message(message.from, MessageType::MsgAppendResponse);
        self.restore(message)?;
        answer.index = self.log.committed();
        self.send_after_sync(answer);
        Ok(())
    }

    fn restore(&mut self, message: &mut Message) -> Result<(), Error> {
        let from = message.from;
        let reason = "snapshot without a valid membership";
        let Some(snapshot) = message.snapshot.take() else {
            return Err(Error::Malformed { from, reason });
        };
        let id = snapshot_id(&snapshot);
        let stale = id.index <= self.log.committed();
        // Planted: what is committed is never replaced.
        if stale && !planted!(StaleSnapshotApplied) {
            return Ok(());
        }
        if !stale && self.log.matches(id) {
            // The log has everything up to there, and more that is worth keeping.
            self.log.commit_to(id.index);
            return Ok(());
        }
        let meta = snapshot.metadata.clone().unwrap_or_default();
        let membership = Membership::from_conf_state(&meta.conf_state.unwrap_or_default());
        // It may be older than this replica's own membership: what follows in the log adds
        // it, and until then it cannot campaign.
        let known = |membership: &Membership| !membership.voters.incoming.is_empty();
        let Some(membership) = membership.ok().filter(known) else {
            return Err(Error::Malformed { from, reason });
        };
        self.log.restore(*snapshot);
        // Planted: the membership at an index is that of the snapshot at it.
        if !planted!(ConfStateIgnored) {
            self.tracker.set_membership(membership, None);
        }
        Ok(())
    }
}
