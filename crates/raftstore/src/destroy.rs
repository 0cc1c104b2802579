//! Destroys a peer that is no member of its region any more.
//!
//! Doomed     Apply has removed the peer and written its tombstone; or another member says
//!            that a later membership is without it ([`Peer::on_tombstone`]); or a message is for
//!            a newer peer of this store.
//! 1 Silence  What the peer owes the others leaves with the flush; what waits for a log batch
//!            leaves when that is synced, and says no more than what is on the disk then. The
//!            shard lets go of the peer: readers find another data epoch, requests are answered
//!            RegionNotFound.
//! 2 Tombstone  Synced in the kv engine, in order behind the region's entries; the apply
//!            shard forgets the region. Apply state and sessions stay.
//! 3 Log      Log and RaftLocalState are deleted, synced by the log writer.
//! 4 Clear    The region worker removes data that no live region covers, sessions, and the
//!            apply state at last, synced.
//! 5 Gone     The store FSM drops the region from the directory and keeps its tombstone;
//!            only now may a newer peer of the region be created.
//! Start      A tombstone with an apply state is a destroy that was cut off: 3 to 5 are
//!            repeated before any peer is loaded ([`finish_destroy`]). Without one it is
//!            finished, and a RaftLocalState is that of a newer peer, which has voted.
//!
//! Invariants (crash rule 5)
//! * The raft state goes after the tombstone is synced, the data after the raft state: no
//!   start finds a live region without its log, nor votes forgotten by a member.
//! * A tombstone keeps the id of the peer. Ids are never used again, so no message, however
//!   late, brings the peer back.

use std::sync::Arc;

use strata_proto::metapb::{Peer as PeerMeta, Region};
use strata_proto::raft_serverpb::{PeerState, RegionLocalState};
use strata_storage::snapshot::clear_region;
use strata_storage::{
    Cf, Durability, Engine, EngineError, Engines, WriteBatch, keys, write_region_state,
};

use crate::apply::{ApplyTask, Waiting};
use crate::directory::find_peer_on;
use crate::error::Error;
use crate::job::RegionJob;
use crate::peer::Peer;
use crate::shard::{Shard, StepContext};
use crate::store_request::StoreRequest;

/// Number under which the deletion of a log is reported as synced; no Ready has it.
const LOG_GONE: u64 = u64::MAX;

/// How far a destroy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The tombstone is on its way to the disk.
    Tombstone,
    /// The deletion of the log is.
    Log,
    /// The region worker clears the data.
    Clear,
}

/// A peer that is being destroyed.
#[derive(Debug)]
pub(crate) struct Destroying {
    /// The region as its tombstone has it.
    region: Region,
    /// False: the peer waited for its first snapshot and holds no data.
    has_data: bool,
    phase: Phase,
}

/// The tombstone of a peer: the region as it is known, with the peer among its own so that
/// its id and its range are kept.
pub(crate) fn tombstone_of(region: &Region, own: PeerMeta) -> RegionLocalState {
    let mut region = region.clone();
    if find_peer_on(&region, own.store_id).is_none() {
        region.peers.push(own);
    }
    RegionLocalState {
        state: PeerState::Tombstone.into(),
        region: Some(region),
        ..RegionLocalState::default()
    }
}

impl<E: Engine> Peer<E> {
    /// This peer is to be destroyed when the flush has taken what it owes the others.
    pub(crate) fn doom(&mut self, context: &mut StepContext<'_>) {
        if !self.doomed {
            self.doomed = true;
            context.metrics.peers_destroyed.increment();
            context.out.doomed.push(self.region.id);
        }
    }

    /// Another member says that the region has a later membership without this peer.
    pub(crate) fn on_tombstone(&mut self, context: &mut StepContext<'_>, conf_ver: u64) {
        let own = self.region.region_epoch.unwrap_or_default().conf_ver;
        if conf_ver > own {
            self.doom(context);
        } else {
            context.metrics.messages_dropped_refused.increment();
        }
    }

    /// Answers everything that waits here. What is proposed may yet be executed elsewhere.
    fn dissolve(mut self, context: &mut StepContext<'_>) -> (Arc<Region>, PeerMeta) {
        let region_id = self.region.id;
        self.view.bump_data_epoch();
        // The gate sends what still comes on to the shard, which knows.
        self.leader = 0;
        self.publish();
        let absent = Error::RegionNotFound { region_id };
        let mut waiting: Vec<_> = self.parked.drain(..).collect();
        waiting.extend(self.writes.take());
        waiting.extend(self.reads.take_unconfirmed());
        waiting.extend(self.changes.take());
        waiting.extend(self.transfer.take().map(|transfer| transfer.into_pending()));
        let replies = waiting.into_iter().map(|pending| pending.reply);
        let reads = self.reads.take_confirmed().into_iter();
        let reads = reads.chain(self.clock_wanted.drain(..));
        let replies = replies.chain(reads.map(|read| read.reply));
        let replies = replies.map(|reply| (reply, Err(absent.clone())));
        context.out.replies.extend(replies);
        let proposed = self.proposals.drain(..).map(|proposal| proposal.waiting);
        let fresh = self.fresh.drain(..).map(|fresh| fresh.waiting);
        let unknown = Error::Undetermined {
            region_id,
            leader: None,
        };
        for waiting in proposed.chain(fresh).flatten() {
            Waiting::refuse(waiting, unknown.clone(), &mut context.out.replies);
        }
        (self.region, self.peer)
    }
}

impl<E: Engine> Shard<E> {
    /// Step 1 and the order for step 2, for every peer doomed since the last flush.
    pub(crate) fn begin_destroys(&mut self, now: crate::time::Now) {
        for region_id in std::mem::take(&mut self.out.doomed) {
            if self
                .peers
                .get(&region_id)
                .is_some_and(|peer| peer.is_installing())
            {
                // The install would write Normal over the tombstone: it ends first.
                self.out.doomed.push(region_id);
                continue;
            }
            let Some(peer) = self.peers.remove(&region_id) else {
                continue;
            };
            let mut context = StepContext {
                now,
                store_id: self.store_id,
                disk_nearly_full: false,
                shard: self.index,
                options: &self.options,
                metrics: &self.metrics,
                out: &mut self.out,
            };
            let (region, own) = peer.dissolve(&mut context);
            let has_data = !region.peers.is_empty();
            let state = tombstone_of(&region, own);
            let mut batch = WriteBatch::new();
            write_region_state(&mut batch, &state);
            self.out.apply.push(ApplyTask::Destroy { region_id, batch });
            let region = state.region.unwrap_or_default();
            let destroying = Destroying {
                region,
                has_data,
                phase: Phase::Tombstone,
            };
            self.destroying.insert(region_id, destroying);
        }
    }

    /// Step 2 is synced: orders step 3.
    pub(crate) fn on_tombstone_synced(&mut self, region_id: u64) {
        self.advance_destroy(region_id, Phase::Tombstone, Phase::Log);
        self.out.log.append(without_log(region_id));
        self.out.log_sync = true;
        self.out.logged.push((region_id, LOG_GONE));
    }

    /// A log batch of a region without a peer is synced. If it held the deletion of the
    /// region's log, orders step 4.
    pub(crate) fn on_log_of_destroyed(&mut self, region_id: u64, number: u64) {
        if number != LOG_GONE {
            // A Ready of the peer from before.
            return;
        }
        self.advance_destroy(region_id, Phase::Log, Phase::Clear);
        let Destroying {
            region, has_data, ..
        } = &self.destroying[&region_id];
        if *has_data {
            let region = region.clone();
            self.out.jobs.push(RegionJob::Clear { region });
        } else {
            self.on_cleared(region_id);
        }
    }

    /// Step 4 is synced: orders step 5.
    pub(crate) fn on_cleared(&mut self, region_id: u64) {
        self.advance_destroy(region_id, Phase::Clear, Phase::Clear);
        if let Some(Destroying { region, .. }) = self.destroying.remove(&region_id) {
            self.out.store.push(StoreRequest::Destroyed { region });
        }
    }

    fn advance_destroy(&mut self, region_id: u64, from: Phase, to: Phase) {
        let destroying = self
            .destroying
            .get_mut(&region_id)
            .unwrap_or_else(|| panic!("region {region_id}: {from:?} ends, nothing is destroyed"));
        assert_eq!(
            destroying.phase, from,
            "region {region_id}: a destroy is not where its answer belongs"
        );
        destroying.phase = to;
    }
}

/// Removes a region's log and RaftLocalState from the raft engine.
pub(crate) fn without_log(region_id: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let (start, end) = keys::region_raft_range(region_id);
    batch.delete_range(Cf::RaftLog, start, end);
    batch
}

/// Repeats steps 3 to 5 of a destroy that was cut off, at a start. `live` are the regions of
/// all live peers. Each step is synced before the next.
///
/// # Errors
/// Those of the engines; the process must not go on.
pub(crate) fn finish_destroy<E: Engine>(
    engines: &Engines<E>,
    region: &Region,
    live: &[Region],
) -> Result<(), EngineError> {
    engines
        .raft
        .write(&without_log(region.id), Durability::Synced)?;
    let mut batch = clear_region(region, live);
    batch.delete(Cf::Raft, keys::apply_state(region.id));
    engines.kv.write(&batch, Durability::Synced)
}
