//! What leaves a shard with a flush, and what of it is on its way.
//!
//! Messages    Those that promise nothing about the own disk leave at once; a store that is not
//!             admitted sends none.
//! Log         Records of all peers leave as one batch, if something asks for a sync and the log
//!             writer has a credit left. What is in it waits in the [`LogLane`] for its answer.
//! Apply       Tasks gather in the [`ApplyLane`] of their apply shard, one batch for each credit.
//! Snapshots   Each leaves with its message, or has failed.
//!
//! Why credits: a writer or an apply shard that is slow finds larger batches, never more of them.

use std::collections::VecDeque;

use strata_storage::Engine;

use crate::apply::ApplyTask;
use crate::outbox::LogBatch;
use crate::shard::{Shard, ShardAction, apply_shard_of};
use crate::time::Now;

/// Log batches on their way to the disk.
#[derive(Debug, Default)]
pub(crate) struct LogLane {
    /// Number of the last batch that left.
    last_number: u64,
    /// Number of each batch that is out, with the Readys in it.
    pub(crate) in_flight: VecDeque<(u64, Vec<(u64, u64)>)>,
}

/// Tasks on their way to one apply shard.
#[derive(Debug, Default)]
pub(crate) struct ApplyLane {
    /// Batches that are not answered.
    pub(crate) in_flight: usize,
    /// What the next batch takes.
    waiting: Vec<ApplyTask>,
}

impl<E: Engine> Shard<E> {
    /// Messages that promise nothing about this store's disk.
    pub(crate) fn emit_messages(&mut self, actions: &mut Vec<ShardAction>) {
        if let Some(most) = self.out.messages.values().map(Vec::len).max() {
            self.out.messages_expected = most;
        }
        for (to_store_id, messages) in std::mem::take(&mut self.out.messages) {
            if !self.admitted {
                self.metrics
                    .messages_dropped_not_admitted
                    .add(messages.len() as u64);
                continue;
            }
            self.metrics.messages_sent.add(messages.len() as u64);
            actions.push(ShardAction::Send {
                to_store_id,
                messages,
            });
        }
    }

    /// Snapshots leave; those of a store that is not admitted have failed.
    pub(crate) fn emit_snapshots(&mut self, now: Now, actions: &mut Vec<ShardAction>) {
        for (to_store_id, message) in std::mem::take(&mut self.out.snapshots) {
            if self.admitted {
                actions.push(ShardAction::SendSnapshot {
                    to_store_id,
                    message,
                });
                continue;
            }
            self.metrics.messages_dropped_not_admitted.increment();
            let to_peer_id = message.to_peer.map_or(0, |peer| peer.id);
            self.step(now, message.region_id, |peer, context| {
                peer.on_snapshot_sent(context, to_peer_id, false)
            });
        }
    }

    /// One batch for all peers, if there is something to sync and a credit for it.
    pub(crate) fn emit_log(&mut self, actions: &mut Vec<ShardAction>) {
        if !self.out.log_sync || self.log.in_flight.len() >= self.options.log_credits {
            return;
        }
        let sync = !self.out.logged.is_empty();
        self.out.log_sync = false;
        self.log.last_number += 1;
        let number = self.log.last_number;
        let batch = std::mem::take(&mut self.out.log);
        let mut after_sync = std::mem::take(&mut self.out.after_sync);
        let waiting: usize = after_sync.values().map(Vec::len).sum();
        if self.admitted {
            self.metrics.messages_sent.add(waiting as u64);
        } else {
            self.metrics
                .messages_dropped_not_admitted
                .add(waiting as u64);
            after_sync.clear();
        }
        self.log
            .in_flight
            .push_back((number, std::mem::take(&mut self.out.logged)));
        actions.push(ShardAction::WriteLog(LogBatch {
            number,
            batch,
            sync,
            after_sync,
        }));
    }

    /// One batch of tasks for each apply shard that has a credit.
    pub(crate) fn emit_apply(&mut self, actions: &mut Vec<ShardAction>) {
        let lanes = self.apply.len();
        for task in self.out.apply.drain(..) {
            self.apply[apply_shard_of(task.region_id(), lanes)]
                .waiting
                .push(task);
        }
        for (apply_shard, lane) in self.apply.iter_mut().enumerate() {
            if lane.waiting.is_empty() || lane.in_flight >= self.options.apply_credits {
                continue;
            }
            lane.in_flight += 1;
            let tasks = std::mem::take(&mut lane.waiting);
            actions.push(ShardAction::Apply { apply_shard, tasks });
        }
    }
}
