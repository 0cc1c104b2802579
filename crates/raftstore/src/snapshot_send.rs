//! Snapshots on the leader's side: made when a follower needs one, sent, reported.
//!
//! Wish      Raft finds that a follower's next entry is compacted and asks its storage,
//!           which has no snapshot and notes the wish.
//! Generate  After the Ready the peer sees the wish and hands the region worker a job;
//!           after failures it waits, longer each time.
//! Send      Raft's next attempt finds the snapshot. The message leaves with the files, past
//!           the ordinary messages.
//! Report    Every sending is answered and told to raft, which sends nothing else to that
//!           follower before. One that is not answered within `snapshot_send_timeout` counts
//!           as failed.
//! Reuse     The snapshot serves every follower that needs one until compaction passes it, or
//!           `snapshot_keep_time` has gone by.
//! Check     After a failed sending the region worker looks whether the snapshot's files are
//!           here still and not found damaged. If not, the next one is made.
//!
//! Elsewhere: making it (`region_worker`), its way (`snapshot_transfer`, server), the other
//! side (`snapshot_install`).

use std::collections::BTreeMap;
use std::time::Duration;

use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_raft::SnapshotStatus;
use strata_storage::Engine;
use strata_storage::snapshot::SnapshotError;

use crate::job::{JobDone, RegionJob};
use crate::options::StoreOptions;
use crate::peer::Peer;
use crate::shard::StepContext;

/// Wait after the first failed attempt to make a snapshot; doubled with each further one.
const RETRY_BASE: Duration = Duration::from_millis(500);
/// How often the wait is doubled.
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// A snapshot that was given to a follower.
#[derive(Clone, Copy, Debug)]
struct Sending {
    index: u64,
    since: Duration,
    /// The sending has ended; the follower's answer may still be to come.
    reported: bool,
}

/// What a leader remembers of its snapshots.
#[derive(Debug, Default)]
pub(crate) struct SnapshotSends {
    /// By peer.
    sending: BTreeMap<u64, Sending>,
    /// Applied index when the snapshot in the making was asked for.
    making_from: Option<u64>,
    made_at: Option<Duration>,
    /// The region worker looks whether the snapshot that can be sent is here still.
    checking: bool,
    /// No snapshot is made before.
    not_before: Duration,
}

impl SnapshotSends {
    /// Whether something of it ends by the clock.
    pub(crate) fn are_timed(&self) -> bool {
        !self.sending.is_empty() || self.made_at.is_some()
    }
}

impl<E: Engine> Peer<E> {
    /// A job of this region has ended.
    pub(crate) fn on_job_done(&mut self, context: &mut StepContext<'_>, done: JobDone) {
        match done {
            JobDone::Generated { result, .. } => self.on_generated(context, result),
            JobDone::GeneratedChecked { id, here, .. } => self.on_generated_checked(id, here),
            JobDone::Installed { index, .. } => self.on_installed(context, index),
            JobDone::LogGone { index, .. } => self.on_log_gone(context, index),
            JobDone::Cleared { region_id } => {
                panic!("region {region_id}: cleared, and its peer is here")
            }
        }
    }

    /// Has a snapshot made if raft has asked for one.
    pub(crate) fn maybe_generate(&mut self, context: &mut StepContext<'_>) {
        let now = context.now.monotonic;
        if !self.raft.storage().wants_snapshot() || now < self.snapshots.not_before {
            return;
        }
        if !self.leads() {
            self.raft.storage_mut().drop_generated();
            return;
        }
        self.raft.storage_mut().begin_generating();
        self.snapshots.making_from = Some(self.apply_state.applied_index);
        context.out.jobs.push(RegionJob::Generate {
            region_id: self.region.id,
        });
    }

    fn on_generated(
        &mut self,
        context: &mut StepContext<'_>,
        result: Result<Box<SnapshotMeta>, SnapshotError>,
    ) {
        let now = context.now.monotonic;
        self.snapshots.making_from = None;
        let storage = self.raft.storage_mut();
        match result {
            Ok(meta) => {
                context.metrics.snapshots_generated.increment();
                self.snapshots.made_at = Some(now);
                storage.end_generating(Some(*meta));
            }
            Err(_) => {
                context.metrics.snapshots_failed.increment();
                storage.end_generating(None);
                let doublings = storage.snapshot_failures().min(RETRY_DOUBLINGS_MAX);
                self.snapshots.not_before = now + RETRY_BASE * 2u32.pow(doublings);
            }
        }
    }

    /// Sends a raft message that holds a snapshot.
    pub(crate) fn send_snapshot(
        &mut self,
        context: &mut StepContext<'_>,
        to_store_id: u64,
        message: RaftMessage,
    ) {
        let to_peer_id = message.to_peer.map_or(0, |peer| peer.id);
        let inner = message.message.as_ref();
        let index = inner
            .and_then(|m| m.snapshot.as_ref()?.metadata.as_ref())
            .map_or(0, |metadata| metadata.index);
        let sending = Sending {
            index,
            since: context.now.monotonic,
            reported: false,
        };
        self.snapshots.sending.insert(to_peer_id, sending);
        context.metrics.snapshots_sent.increment();
        context.out.snapshots.push((to_store_id, Box::new(message)));
    }

    /// The sending of a snapshot has ended. An answer that comes after its time-out, or
    /// after the leadership has changed, finds nothing to tell.
    pub(crate) fn on_snapshot_sent(
        &mut self,
        context: &mut StepContext<'_>,
        to_peer_id: u64,
        ok: bool,
    ) {
        let Some(sending) = self.snapshots.sending.get_mut(&to_peer_id) else {
            return;
        };
        if std::mem::replace(&mut sending.reported, true) {
            return;
        }
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            self.snapshots.sending.remove(&to_peer_id);
            self.check_generated(context);
            SnapshotStatus::Failure
        };
        self.raft.report_snapshot(to_peer_id, status);
    }

    /// Lets the region worker look whether the snapshot that can be sent is here still: what
    /// is gone would be offered again and again until it is too old.
    fn check_generated(&mut self, context: &mut StepContext<'_>) {
        let Some(meta) = self.raft.storage().generated() else {
            return;
        };
        if std::mem::replace(&mut self.snapshots.checking, true) {
            return;
        }
        context.out.jobs.push(RegionJob::CheckGenerated {
            region_id: self.region.id,
            meta: Box::new(meta),
        });
    }

    fn on_generated_checked(&mut self, id: u64, here: bool) {
        self.snapshots.checking = false;
        let storage = self.raft.storage_mut();
        if !here && storage.generated().is_some_and(|meta| meta.id == id) {
            self.snapshots.made_at = None;
            storage.drop_generated();
        }
    }

    /// Gives up sendings that are not answered in time, and snapshots that are too old.
    pub(crate) fn expire_snapshots(&mut self, context: &mut StepContext<'_>) {
        let now = context.now.monotonic;
        if !self.snapshots.are_timed() {
            return;
        }
        if !self.leads() {
            self.snapshots = SnapshotSends {
                making_from: self.snapshots.making_from,
                checking: self.snapshots.checking,
                ..SnapshotSends::default()
            };
            self.raft.storage_mut().drop_generated();
            return;
        }
        let timeout = context.options.snapshot_send_timeout;
        let late = |sending: &Sending| sending.since + timeout <= now;
        let given_up: Vec<u64> = self
            .snapshots
            .sending
            .iter()
            .filter(|(_, sending)| late(sending))
            .map(|(peer_id, _)| *peer_id)
            .collect();
        for peer_id in given_up {
            self.on_snapshot_sent(context, peer_id, false);
            self.snapshots.sending.remove(&peer_id);
        }
        let keep = context.options.snapshot_keep_time;
        if self.snapshots.made_at.is_some_and(|at| at + keep <= now) {
            self.snapshots.made_at = None;
            self.raft.storage_mut().drop_generated();
        }
        self.forget_arrived();
    }

    /// Followers that have reached their snapshot hold nothing for its sake.
    fn forget_arrived(&mut self) {
        if self.snapshots.sending.is_empty() {
            return;
        }
        let status = self.raft.status();
        self.snapshots.sending.retain(|peer_id, sending| {
            let progress = status.progress.iter().find(|(id, _)| id == peer_id);
            progress.is_some_and(|(_, progress)| progress.matched < sending.index)
        });
    }

    /// The lowest index whose followers the log must be kept for, because a snapshot at it
    /// is made, is sent, or has just arrived.
    pub(crate) fn snapshot_holds(&self, options: &StoreOptions, now: Duration) -> Option<u64> {
        let sends = &self.snapshots;
        let sending = sends.sending.values().map(|sending| sending.index);
        // Raft takes it with the follower's next heartbeat, or never.
        let fresh = sends
            .made_at
            .is_some_and(|at| now < at + options.election_timeout() * 2);
        let made = self.raft.storage().generated_index().filter(|_| fresh);
        sending.chain(made).chain(sends.making_from).min()
    }
}
