//! The log writer of a shard: a thread of its own, so that no tick waits for the disk.
//!
//! Gather   Takes the batches that have come while it was busy, in order, up to a size.
//! Write    One write to the raft engine for all of them, synced if one asks for it. A write
//!          that fails ends the process: nothing of it may be promised.
//! Send     Votes and answers to appends that were in these batches leave: what they promise is
//!          on the disk now.
//! Tell     The shard hears of it; it may have heard of an answer's consequences before. A shard
//!          of followers with nothing to apply hears of it with its next mail or tick.

use std::collections::VecDeque;
use std::time::Duration;

use slog::Logger;
use strata_storage::{Durability, Engine};

use super::inbox::Inbox;
use super::mailbox::MailReceiver;
use super::threads::{GATHER_BYTES, stop_process};
use super::{Transport, clock};
use crate::metrics::StoreMetrics;
use crate::shard::{LogBatch, ShardEvent};

/// A batch on its way to the log writer.
pub(super) struct LogMail {
    pub batch: LogBatch,
    /// When the shard handed it over.
    pub handed_over: Duration,
}

/// Writes what comes, until the shard has ended.
pub(super) fn run_log_writer<E: Engine>(
    raft: &E,
    mails: &MailReceiver<LogMail>,
    inbox: &Inbox,
    transport: &dyn Transport,
    metrics: &StoreMetrics,
    logger: &Logger,
) {
    let stages = &metrics.write_stages;
    let mut waiting = VecDeque::new();
    while !waiting.is_empty() || mails.wait(&mut waiting) {
        mails.take(&mut waiting);
        let first = waiting.pop_front().expect("looked at above");
        let begun = clock::monotonic();
        let note_wait = |sync: bool, handed_over| {
            if sync {
                stages.record_log_queue(handed_over, begun);
            }
        };
        note_wait(first.batch.sync, first.handed_over);
        let mut gathered = first.batch;
        while gathered.batch.approximate_bytes() < GATHER_BYTES
            && let Some(next) = waiting.pop_front()
        {
            note_wait(next.batch.sync, next.handed_over);
            gathered.number = next.batch.number;
            gathered.sync |= next.batch.sync;
            gathered.batch.append(next.batch.batch);
            for (store_id, messages) in next.batch.after_sync {
                let waiting = gathered.after_sync.entry(store_id).or_default();
                waiting.extend(messages);
            }
        }
        let durability = if gathered.sync {
            Durability::Synced
        } else {
            Durability::Unsynced
        };
        if let Err(error) = raft.write(&gathered.batch, durability) {
            stop_process(logger, &error.to_string());
        }
        if gathered.sync {
            stages.record_log_write(begun, clock::monotonic());
        }
        for (store_id, messages) in gathered.after_sync {
            transport.send(store_id, messages);
        }
        metrics.log_batches.increment();
        metrics.log_syncs.add(u64::from(gathered.sync));
        inbox.log_event(ShardEvent::LogPersisted {
            number: gathered.number,
        });
    }
}
