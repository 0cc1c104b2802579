//! Counters and histograms of a store, as plain atomics; the server renders them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::write_stages::WriteStages;

/// A counter that many threads may touch.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! store_metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters and histograms of a store since its start.
        #[derive(Debug, Default)]
        pub struct StoreMetrics {
            $($(#[$doc])* pub $name: Counter,)*
            /// Where the time of writes goes.
            pub write_stages: WriteStages,
        }

        impl StoreMetrics {
            /// Name and value of every counter, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

store_metrics! {
    /// Entries proposed by leaders of this store, empty ones not counted.
    proposals,
    /// Client commands in those entries.
    proposed_commands,
    /// Entries proposed only to move a region's clock.
    clock_proposals,
    /// Entries applied.
    applied_entries,
    /// Client sessions opened, on all replicas of this store.
    sessions_opened,
    /// Client sessions that expired, on all replicas of this store.
    sessions_expired,
    /// Client sessions that went before their time because a region had too many.
    sessions_evicted,
    /// Operations of sessions that were answered from the table: repeated by a client.
    session_repeats,
    /// Batches written to the kv engine by apply.
    apply_batches,
    /// Those that the shards have not applied themselves, but their threads for it.
    apply_batches_on_threads,
    /// Batches written to the raft engine.
    log_batches,
    /// Batches of those that were synced.
    log_syncs,
    /// Bytes of entries appended to logs.
    log_bytes,
    /// Raft messages handed to the transport.
    messages_sent,
    /// Raft messages taken from the network.
    messages_received,
    /// Raft messages dropped: the inbox was full.
    messages_dropped_full,
    /// Raft messages dropped: no such region or peer here, or another store was meant.
    messages_dropped_unknown,
    /// Raft messages dropped: refused by the Raft core as malformed or not fitting.
    messages_dropped_refused,
    /// Raft messages dropped: the store is not admitted.
    messages_dropped_not_admitted,
    /// Raft messages dropped: their sender is no member any more. It is told so.
    messages_dropped_removed,
    /// Raft messages held: a live region covers the range of the peer that they would create.
    messages_held,
    /// Raft messages dropped: held for too long, or pushed out by later ones.
    messages_dropped_held,
    /// Changes of peers proposed by leaders of this store on request.
    peer_change_proposals,
    /// Changes of peers applied.
    peer_changes,
    /// Peers created by a message.
    peers_created,
    /// Peers of this store whose destroy has begun.
    peers_destroyed,
    /// Times a peer without a leader asked whether it is a member still.
    stale_checks,
    /// Reads served under a lease.
    reads_lease,
    /// Reads served after a read index.
    reads_index,
    /// Reads of those that a replica which does not lead served.
    reads_replica,
    /// Read index rounds.
    read_index_rounds,
    /// Requests parked for want of a leader or of room.
    requests_parked,
    /// Requests refused: busy.
    requests_busy,
    /// Writes refused: the disk is nearly full.
    requests_disk_full,
    /// Requests refused: deadline or cancellation.
    requests_dropped,
    /// Elections won by peers of this store.
    elections_won,
    /// Requests for votes and pre-votes not heard, because a leader may hold a lease.
    votes_withheld,
    /// Appends that replaced entries of an earlier leader.
    log_conflicts,
    /// Region heartbeats handed to the sink.
    region_heartbeats,
    /// CompactLog entries proposed by leaders of this store.
    log_compactions_proposed,
    /// Deletions of compacted entries, one a region.
    logs_deleted,
    /// Snapshots made.
    snapshots_generated,
    /// Snapshots that could not be made.
    snapshots_failed,
    /// Milliseconds spent on making snapshots.
    snapshot_generate_ms,
    /// Milliseconds spent on installing snapshots.
    snapshot_install_ms,
    /// Snapshots handed to the transport.
    snapshots_sent,
    /// Snapshots refused after they had arrived whole.
    snapshots_refused,
    /// Installs begun.
    snapshots_begun,
    /// Installs ended.
    snapshots_installed,
    /// Admin commands that changed nothing.
    admin_refused,
    /// Ticks dropped because they came late.
    ticks_missed,
}
