//! The node's settings as settings of the store and of the engines.

use strata_raftstore::{StoreOptions, TransferOptions};
use strata_storage::EngineOptions;

use crate::config::{Config, SnapshotConfig, Switch};

/// Processors for each raft shard, where the setting leaves it open: it runs on the network's
/// threads, and beside it there is a thread that writes its log.
const PROCESSORS_PER_RAFT_SHARD: usize = 4;
/// Processors for each thread of the network, where the setting leaves it open.
const PROCESSORS_PER_NETWORK_THREAD: usize = 2;

/// Threads of the network that the settings ask for on this machine.
#[must_use]
pub fn network_threads(config: &Config) -> usize {
    let asked = config.server.threads;
    threads(asked, PROCESSORS_PER_NETWORK_THREAD, processors())
}

/// Processors that this process may use; one where the system does not tell.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// As many threads as were asked for; where it was left open (0), one for every so many
/// processors, at least one.
fn threads(asked: u64, processors_each: usize, processors: usize) -> usize {
    match asked {
        0 => (processors / processors_each).max(1),
        asked => asked as usize,
    }
}

/// How much faster snapshots are made than sent. At the same rate a follower would wait twice as
/// long, and the region's log be held for it; without any, making takes a processor from those who
/// write meanwhile.
const MAKING_TIMES: u64 = 4;

/// Bytes a second with which snapshots are made; 0: no limit.
fn making_rate(config: &SnapshotConfig) -> u64 {
    config.rate_limit.0.saturating_mul(MAKING_TIMES)
}

/// Settings of the store. `seed` must differ from start to start; `admitted`: whether the
/// store takes part in its cluster from the beginning.
pub(crate) fn store_options(config: &Config, seed: u64, admitted: bool) -> StoreOptions {
    let (raft, store) = (&config.raft, &config.store);
    StoreOptions {
        raft_shards: threads(store.raft_shards, PROCESSORS_PER_RAFT_SHARD, processors()),
        apply_shards: store.apply_shards as usize,
        read_threads: store.read_threads as usize,
        tick_interval: raft.tick_interval,
        heartbeat_ticks: raft.heartbeat_ticks as usize,
        election_ticks: raft.election_ticks as usize,
        election_ticks_max: raft.election_ticks as usize * 2,
        rest: true,
        // Rounded up: a shorter lease is the safe side.
        max_clock_drift_percent: (raft.max_clock_drift * 100.0).ceil() as u32,
        park_time: config.server.park_time,
        max_key_bytes: store.max_key_size.bytes(),
        max_entry_bytes: raft.max_entry_size.bytes(),
        shared_entry_bytes: raft.shared_entry_size.bytes(),
        shared_entry_commands: raft.shared_entry_commands as usize,
        shared_entry_rewrites: raft.shared_entry_rewrites as usize,
        max_apply_batch_bytes: store.apply_batch_size.bytes(),
        max_uncommitted_bytes: raft.max_uncommitted_size.0,
        max_apply_backlog_bytes: store.max_apply_backlog_size.bytes(),
        max_message_bytes: raft.max_message_size.0,
        max_inflight_messages: raft.max_inflight_messages as usize,
        inbox_capacity: store.inbox_messages as usize,
        log_credits: store.log_credits as usize,
        apply_credits: store.apply_credits as usize,
        inline_apply_bytes: store.inline_apply_size.bytes(),
        peer_stale_time: raft.peer_stale_time,
        max_pending_messages: store.max_pending_messages as usize,
        max_parked_requests: store.max_parked_requests as usize,
        max_queued_write_bytes: store.max_queued_write_size.bytes(),
        max_write_wait: store.max_write_wait,
        max_answer_bytes: store.max_answer_size.bytes(),
        expiry_interval: store.expiry_interval,
        flush_interval: config.storage.flush_interval,
        flush_log_bytes: config.storage.flush_log_size.0,
        log_gc_tick_interval: raft.log_gc_tick_interval,
        log_gc_count_limit: raft.log_gc_count_limit,
        log_gc_size_limit: raft.log_gc_size_limit.0,
        log_gc_threshold: raft.log_gc_threshold,
        snapshot_send_timeout: config.snapshot.give_up_time,
        snapshot_keep_time: config.snapshot.keep_time,
        snapshot_bytes_per_second: making_rate(&config.snapshot),
        snapshot_gc_interval: config.snapshot.gc_interval,
        heartbeat_interval: config.scheduler.report_interval,
        session_ttl: config.session.ttl,
        max_sessions_per_region: u32::try_from(config.session.max_per_region).unwrap_or(u32::MAX),
        seed,
        admitted,
    }
}

/// How snapshots travel.
pub(crate) fn transfer_options(config: &SnapshotConfig) -> TransferOptions {
    TransferOptions {
        chunk_bytes: config.chunk_size.bytes(),
        stall_time: config.stall_time,
        send_timeout: config.send_timeout,
        ..TransferOptions::default()
    }
}

/// Settings of both engines.
pub(crate) fn engine_options(config: &Config) -> EngineOptions {
    let storage = &config.storage;
    EngineOptions {
        kv_wal: storage.data_log == Switch::On,
        // Without a log, what survives is one moment of all column families (crash rule 7).
        kv_atomic_flush: storage.data_log == Switch::Off,
        block_cache_bytes: storage.block_cache_size.bytes(),
        kv_memtable_bytes: storage.write_buffer_size.bytes(),
        kv_memtables_bytes_max: storage.write_buffers_size_max.bytes(),
        log_file_bytes: storage.log_file_size.bytes(),
        open_files_max: i32::try_from(storage.open_files_max).unwrap_or(i32::MAX),
        background_jobs: i32::try_from(storage.background_threads).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn threads_follow_the_processors_where_the_setting_leaves_it_open() {
        let found = [1, 2, 3, 4, 8, 64].map(|processors| threads(0, 4, processors));
        assert_eq!(found, [1, 1, 1, 1, 2, 16]);
        assert_eq!(threads(0, 2, 5), 2);
        assert_eq!(threads(7, 4, 2), 7, "what was asked for is taken");
        let mut config = Config::default();
        config.server.threads = 3;
        config.store.raft_shards = 5;
        assert_eq!(network_threads(&config), 3);
        assert_eq!(store_options(&config, 0, true).raft_shards, 5);
    }

    #[test]
    fn the_defaults_are_those_of_the_store() {
        let ours = store_options(&Config::default(), 0, true);
        let theirs = StoreOptions {
            // The machine decides.
            raft_shards: ours.raft_shards,
            ..StoreOptions::default()
        };
        ours.check().unwrap();
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let mut unlimited = Config::default().snapshot;
        unlimited.rate_limit.0 = 0;
        assert_eq!(making_rate(&unlimited), 0, "no limit");
        assert_eq!(ours.election_timeout(), Duration::from_millis(400));
        assert_eq!(ours.max_clock_drift_percent, 10);
        assert_eq!(
            transfer_options(&Config::default().snapshot),
            TransferOptions::default()
        );
    }
}
