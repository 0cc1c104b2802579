//! Snapshots on the follower's side: claimed, taken, installed (crash rule 3).
//!
//! Claim    All files are here, the message arrives. The range is claimed from the store
//!          FSM; with its word the message is stepped into raft. If raft does not take it,
//!          the claim is given back.
//! Ready    It is taken once no write of the region is under way. Storage and region are
//!          the snapshot's from now on; the kv batch (Applying, apply state, copy of the
//!          raft state) goes to the apply shard, behind the entries that are there.
//! Begun    The kv batch is synced. The raft batch goes to the log writer, synced.
//! Emptied  The raft batch is synced: the answer leaves, the region worker installs.
//! Done     Normal is synced: what waited is applied, reads are served again.
//!
//! Invariants
//! * From Ready to Emptied no other Ready of the peer is taken, so no batch of the region
//!   with promises lies between the two batches. A commit index that was noted before and
//!   is written between them is below the snapshot's, and a start repeats the raft batch.
//! * Until Done the peer appends and answers as a follower; it does not tick or campaign,
//!   applies nothing and serves no reads.
//! * The view's data epoch moves before the kv batch leaves, for it may clear what a
//!   smaller range gives up, and the worker clears the rest.

use std::sync::Arc;

use bytes::Bytes;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::SnapshotMeta;
use strata_raft::{Ready, planted};
use strata_storage::snapshot::{MetaFault, SnapshotError, begin_install, check_install};
use strata_storage::{Engine, WriteBatch};

use crate::apply::{ApplyTask, Proposal};
use crate::directory::{find_peer, find_peer_on};
use crate::error::Error;
use crate::job::RegionJob;
use crate::peer::Peer;
use crate::replicate::UnsyncedReady;
use crate::shard::StepContext;
use crate::store_request::StoreRequest;

/// Where an install stands.
#[derive(Debug)]
enum Phase {
    /// The kv batch is on its way; the raft batch and what waits for it follow.
    Beginning {
        raft: WriteBatch,
        ready: UnsyncedReady,
    },
    /// The raft batch of this Ready is on its way.
    Emptying { number: u64 },
    /// The region worker has the job.
    Running,
}

/// An install under way.
#[derive(Debug)]
pub(crate) struct Install {
    phase: Phase,
    index: u64,
    term: u64,
}

impl Install {
    /// The install of a region that a start has found in Applying.
    pub(crate) fn resumed(index: u64, term: u64) -> Self {
        Install {
            phase: Phase::Running,
            index,
            term,
        }
    }

    /// The job of an install that was resumed.
    pub(crate) fn job(&self, region_id: u64) -> RegionJob {
        RegionJob::Install {
            region_id,
            index: self.index,
            term: self.term,
        }
    }

    /// True before the log is emptied: no Ready may be taken.
    pub(crate) fn bars_readys(&self) -> bool {
        !matches!(self.phase, Phase::Running)
    }
}

impl<E: Engine> Peer<E> {
    /// True while a snapshot is being installed here.
    pub(crate) fn is_installing(&self) -> bool {
        self.install.is_some()
    }

    /// Whether the next Ready may be taken: one that brings a snapshot only when all that
    /// was to be synced before it is.
    pub(crate) fn may_take_ready(&self) -> bool {
        match &self.install {
            Some(install) => !install.bars_readys(),
            None => !self.raft.has_snapshot() || self.unsynced.is_empty(),
        }
    }

    /// A raft message with a snapshot, whose files are here. It has passed the checks of
    /// address.
    pub(crate) fn on_snapshot_message(
        &mut self,
        context: &mut StepContext<'_>,
        message: RaftMessage,
    ) {
        // One at a time; the leader sends again what is dropped here.
        if self.claim_pending || self.is_installing() || self.raft.has_snapshot() {
            context.metrics.messages_dropped_refused.increment();
            return;
        }
        let Some(region) = meta_of(&message).ok().and_then(|meta| meta.region) else {
            context.metrics.messages_dropped_refused.increment();
            return;
        };
        self.claim_pending = true;
        context.out.store.push(StoreRequest::Claim {
            region,
            message: Box::new(message),
        });
    }

    /// The store FSM has answered the claim of a snapshot.
    pub(crate) fn on_claimed(
        &mut self,
        context: &mut StepContext<'_>,
        message: RaftMessage,
        result: Result<(), SnapshotError>,
    ) {
        self.claim_pending = false;
        let fits = result.is_ok() && self.check_snapshot(&message).is_ok();
        if result.is_ok() && (!fits || !self.step_snapshot(context, message)) {
            let region_id = self.region.id;
            context.out.store.push(StoreRequest::EndClaim { region_id });
        }
        if !fits {
            context.metrics.snapshots_refused.increment();
        }
    }

    fn check_snapshot(&self, message: &RaftMessage) -> Result<(), SnapshotError> {
        let meta = meta_of(message)?;
        let region = meta.region.as_ref().ok_or(MetaFault::Region)?;
        // The store counts as well: a start looks for the peer by it.
        let own = find_peer_on(region, self.peer.store_id);
        if own.is_none_or(|own| own.id != self.peer.id) {
            // It was made before this peer joined.
            return Err(SnapshotError::NoSuchRegion {
                region_id: region.id,
            });
        }
        let applied = self.raft.storage().applied_index();
        check_install(&meta, Some((&self.region, applied)), [])
    }

    /// Lets raft see the snapshot; returns whether it takes it.
    fn step_snapshot(&mut self, context: &mut StepContext<'_>, message: RaftMessage) -> bool {
        let Some(inner) = message.message else {
            return false;
        };
        if self.raft.step(context.now.monotonic, inner).is_err() {
            context.metrics.messages_dropped_refused.increment();
        }
        self.raft.has_snapshot()
    }

    /// Takes over a Ready that brings a snapshot.
    pub(crate) fn begin_snapshot(&mut self, context: &mut StepContext<'_>, mut ready: Ready) {
        let region_id = self.region.id;
        let snapshot = ready.snapshot.take().expect("the caller has looked");
        let meta: SnapshotMeta = decode(snapshot.data.clone())
            .unwrap_or_else(|error| panic!("region {region_id}: snapshot taken by raft: {error}"));
        let hard_state = ready
            .hard_state
            .unwrap_or(*self.raft.storage().hard_state());
        let own = Some(&*self.region).filter(|own| !own.peers.is_empty());
        // No other live region has a part of this one's range, so what the snapshot gives up
        // of it belongs to nobody.
        let begun = begin_install(own, [], &meta, &hard_state)
            .unwrap_or_else(|error| panic!("region {region_id}: begin of an install: {error}"));
        let region = Arc::new(meta.region.clone().unwrap_or_default());
        let mut raft = begun.raft;
        self.raft.storage_mut().restore(
            ready.number,
            (*region).clone(),
            begun.apply_state,
            &hard_state,
            &ready.entries,
            &mut raft,
        );
        self.settle_superseded(context);
        self.view.set_installing(true);
        self.view.bump_data_epoch();
        context.out.apply.push(ApplyTask::BeginInstall {
            region: region.clone(),
            state: begun.apply_state,
            batch: begun.kv,
        });
        let own_peer = find_peer(&region, self.peer.id);
        self.peer = own_peer.expect("a snapshot that was checked names this peer");
        self.region = region;
        self.handed_to_apply = meta.index;
        self.may_apply_up_to = meta.index;
        self.committed = self.committed.max(meta.index);
        self.install = Some(Install {
            phase: Phase::Beginning {
                raft,
                ready: UnsyncedReady {
                    number: ready.number,
                    must_sync: true,
                    messages: std::mem::take(&mut ready.persisted_messages),
                },
            },
            index: meta.index,
            term: meta.term,
        });
        context.metrics.snapshots_begun.increment();
        self.raft.advance_append_async(ready);
    }

    /// The snapshot holds what became of this peer's own proposals, and does not tell.
    fn settle_superseded(&mut self, context: &mut StepContext<'_>) {
        let error = Error::Undetermined {
            region_id: self.region.id,
            leader: self.known_leader(),
        };
        let proposals: Vec<Proposal> = self.proposals.drain(..).collect();
        for waiting in proposals.into_iter().flat_map(|proposal| proposal.waiting) {
            waiting.refuse(error.clone(), &mut context.out.replies);
        }
    }

    /// The kv batch of the install is synced.
    pub(crate) fn on_install_begun(&mut self, context: &mut StepContext<'_>) {
        let region_id = self.region.id;
        let install = self
            .install
            .as_mut()
            .unwrap_or_else(|| panic!("region {region_id}: an install that was not begun"));
        let Phase::Beginning { raft, ready } = &mut install.phase else {
            panic!("region {region_id}: begun twice, in {:?}", install.phase);
        };
        let number = ready.number;
        // Planted: the log is that of the snapshot, too (crash rule 3).
        if !planted!(SnapshotMetaInOneEngine) {
            context.out.log.append(std::mem::take(raft));
        }
        context.out.log_sync = true;
        context.out.logged.push((region_id, number));
        let messages = std::mem::take(&mut ready.messages);
        self.unsynced.push_back(UnsyncedReady {
            number,
            must_sync: true,
            messages,
        });
        install.phase = Phase::Emptying { number };
        // In this order: the range is never without one of the two.
        context.out.store.push(StoreRequest::SetRegion {
            region: self.region.clone(),
            peer: self.peer,
        });
        context.out.store.push(StoreRequest::EndClaim { region_id });
    }

    /// Writes up to Ready `number` are synced.
    pub(crate) fn on_install_persisted(&mut self, context: &mut StepContext<'_>, number: u64) {
        let Some(install) = &mut self.install else {
            return;
        };
        if matches!(install.phase, Phase::Emptying { number: awaited } if awaited <= number) {
            install.phase = Phase::Running;
            context.out.jobs.push(install.job(self.region.id));
        }
    }

    /// Normal is synced.
    pub(crate) fn on_installed(&mut self, context: &mut StepContext<'_>, index: u64) {
        let region_id = self.region.id;
        let install = self
            .install
            .take()
            .unwrap_or_else(|| panic!("region {region_id}: installed, and nothing was begun"));
        assert!(
            install.index == index && !install.bars_readys(),
            "region {region_id}: installed at {index} in {install:?}"
        );
        let storage = self.raft.storage_mut();
        storage.finish_restore();
        self.apply_state = *storage.apply_state();
        self.view.set_installing(false);
        self.raft.advance_apply_to(index);
        context.metrics.snapshots_installed.increment();
        self.ask_log_gc(context);
        self.resume_apply(context);
        self.serve_reads_up_to_applied(context);
    }
}

fn meta_of(message: &RaftMessage) -> Result<SnapshotMeta, SnapshotError> {
    let snapshot = message.message.as_ref().and_then(|m| m.snapshot.as_ref());
    decode(snapshot.map(|s| s.data.clone()).unwrap_or_default())
}

fn decode(data: Bytes) -> Result<SnapshotMeta, SnapshotError> {
    prost::Message::decode(data).map_err(|_| MetaFault::Malformed.into())
}
