//! What the steps of a shard's peers leave to be done, until the shard's next flush.
//!
//! Step     A peer gets a [`StepContext`]: the time, the settings, and the [`Outbox`], into which
//!          it puts every effect. It does nothing else to the world.
//! Flush    The shard takes the outbox apart into actions. Messages that promise nothing about
//!          this store's disk leave at once. Log records of all peers become one [`LogBatch`],
//!          and the messages that promise what is in it travel along: whoever syncs the batch
//!          sends them, so that no answer waits for another step of the shard.
//!
//! Invariant: a message in `after_sync` and the records that it speaks of are put in by the same
//! step, so they are in the same batch.

use std::collections::BTreeMap;

use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::raft_serverpb::RaftMessage;
use strata_storage::WriteBatch;

use crate::apply::ApplyTask;
use crate::error::Error;
use crate::job::RegionJob;
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::request::{Answer, Reply};
use crate::store_request::StoreRequest;
use crate::task::ReadTask;
use crate::time::Now;

/// What several peers append to the raft engine in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct LogBatch {
    /// Number of the batch within its shard, counted from 1.
    pub number: u64,
    /// The changes.
    pub batch: WriteBatch,
    /// True: the batch must be synced before it is answered. False: it holds nothing but
    /// commit indices, which may be lost.
    pub sync: bool,
    /// Messages by store that promise what is in the batch, as votes and answers to appends
    /// do. They leave when it is synced, without another step of the shard; they may be lost.
    pub after_sync: BTreeMap<u64, Vec<RaftMessage>>,
}

/// What a step of a peer may touch beside the peer.
pub(crate) struct StepContext<'a> {
    pub now: Now,
    pub store_id: u64,
    pub shard: usize,
    /// Writes that need room are refused.
    pub disk_nearly_full: bool,
    pub options: &'a StoreOptions,
    pub metrics: &'a StoreMetrics,
    pub out: &'a mut Outbox,
}

/// Effects that gather until the next flush.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub messages: BTreeMap<u64, Vec<RaftMessage>>,
    /// Most messages to one store in the last flush: there will be about as many again.
    pub messages_expected: usize,
    pub replies: Vec<(Reply, Result<Answer, Error>)>,
    pub reads: Vec<ReadTask>,
    pub reports: Vec<RegionHeartbeatRequest>,
    pub log: WriteBatch,
    pub log_sync: bool,
    /// Messages by store that leave when `log` is synced.
    pub after_sync: BTreeMap<u64, Vec<RaftMessage>>,
    /// Readys whose entries or votes are in `log`: region and number.
    pub logged: Vec<(u64, u64)>,
    pub apply: Vec<ApplyTask>,
    pub jobs: Vec<RegionJob>,
    /// Snapshots to be sent, with the store of each.
    pub snapshots: Vec<(u64, Box<RaftMessage>)>,
    pub store: Vec<StoreRequest>,
    /// Regions whose peers are to be destroyed, in the order of their sentence.
    pub doomed: Vec<u64>,
}

impl Outbox {
    /// Whether a flush would give anything but a log batch.
    pub fn has_actions(&self) -> bool {
        let to_others = self.messages.is_empty() && self.snapshots.is_empty();
        let to_callers = self.replies.is_empty() && self.reads.is_empty();
        let to_store = self.apply.is_empty() && self.jobs.is_empty() && self.store.is_empty();
        !(to_others && to_callers && to_store && self.reports.is_empty() && self.doomed.is_empty())
    }

    /// Puts a message to a store in, if there is one.
    pub fn send_to(&mut self, store_id: u64, message: Option<RaftMessage>) {
        if let Some(message) = message {
            let room = self.messages_expected;
            let messages = self.messages.entry(store_id);
            messages
                .or_insert_with(|| Vec::with_capacity(room))
                .push(message);
        }
    }
}
