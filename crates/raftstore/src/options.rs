//! Settings of a store, with their units and defaults.

use std::time::Duration;

/// Settings of a store. All sizes in bytes; all tick counts in ticks of `tick_interval`.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Raft shards; region r belongs to shard r modulo this. 2.
    pub raft_shards: usize,
    /// Apply shards, chosen the same way. 1.
    pub apply_shards: usize,
    /// Threads that serve scans, checksums and reads by ReadIndex. 1.
    pub read_threads: usize,
    /// Length of a tick. 50 ms.
    pub tick_interval: Duration,
    /// Ticks between a leader's heartbeats. 2.
    pub heartbeat_ticks: usize,
    /// Shortest election timeout. 8 ticks.
    pub election_ticks: usize,
    /// Longest election timeout. 16 ticks.
    pub election_ticks_max: usize,
    /// Ticks pass over peers in which nothing waits. False has every peer see every tick, which
    /// makes no difference but in CPU time; the tests compare. True.
    pub rest: bool,
    /// How far two monotonic clocks may drift apart, in percent. 10.
    pub max_clock_drift_percent: u32,
    /// How long a request may wait for a leader or for room. 300 ms.
    pub park_time: Duration,
    /// Largest key of a client. 8 KiB.
    pub max_key_bytes: usize,
    /// Largest entry. 8 MiB.
    pub max_entry_bytes: usize,
    /// Small writes share an entry up to this size. 256 KiB.
    pub shared_entry_bytes: usize,
    /// Most commands that share an entry. 1024.
    pub shared_entry_commands: usize,
    /// Most commands of those that share an entry whose work may be far larger than they are:
    /// appends write a whole value, compare-and-swaps answer with one. 32.
    pub shared_entry_rewrites: usize,
    /// A batch of applied entries takes no further one from this size on; values in the
    /// answers count. 64 MiB.
    pub max_apply_batch_bytes: usize,
    /// Entries of a region that are proposed and not yet committed. 16 MiB.
    pub max_uncommitted_bytes: u64,
    /// Committed entries of a region that are held in memory until they are applied; more
    /// are read from the log again. Beyond it a leader takes no writes. 16 MiB.
    pub max_apply_backlog_bytes: usize,
    /// Largest message with entries; one entry always goes. 1 MiB.
    pub max_message_bytes: u64,
    /// Messages with entries in flight to one follower. 256.
    pub max_inflight_messages: usize,
    /// Entries in bytes up to which a shard applies a batch itself; larger ones go to an apply
    /// shard's thread. 0: every batch with data goes there. 64 KiB.
    pub inline_apply_bytes: usize,
    /// Requests and messages that may wait in the inbox of a shard; each counts once, and
    /// once more for every 4 KiB that it carries. 16384.
    pub inbox_capacity: usize,
    /// Log batches of a shard that may be with its log writer. 2.
    pub log_credits: usize,
    /// Batches of a shard that may be with one apply shard. 4.
    pub apply_credits: usize,
    /// Messages for unknown regions that a shard may have with the store FSM; as many may be
    /// held there, and as many peers may wait for their first snapshot. 1024.
    pub max_pending_messages: usize,
    /// How long a peer hears of no leader before it asks whether it is a member still. 2 h.
    pub peer_stale_time: Duration,
    /// Requests of a region that may be parked. 4096.
    pub max_parked_requests: usize,
    /// Writes of a region that may wait to be proposed, by size; one always may. 32 MiB.
    pub max_queued_write_bytes: usize,
    /// Longest that a write should wait for those of its region before it. A region that would
    /// take longer for them, by how fast it executed writes lately, refuses it at once. 500 ms.
    pub max_write_wait: Duration,
    /// Keys and values in the answer of a scan, a batch scan or a batch get; one pair
    /// always goes. A larger answer is refused, never shortened. 32 MiB.
    pub max_answer_bytes: usize,
    /// How often a leader reports its region to the scheduler. 5 s.
    pub heartbeat_interval: Duration,
    /// How often the kv engine learns which values have expired, if a region's clock has
    /// moved. Each time costs a sync of the kv engine; one without a log learns what it has
    /// flushed by itself. 60 s.
    pub expiry_interval: Duration,
    /// Longest time until a kv engine that has no log of its own is flushed, so that compacted
    /// entries may go. 30 s.
    pub flush_interval: Duration,
    /// Bytes by which the logs grow at most until then, where entries wait to go. 96 MiB.
    pub flush_log_bytes: u64,
    /// How often a leader asks whether its log shall be compacted. 3 s.
    pub log_gc_tick_interval: Duration,
    /// Entries of a log beyond which it is compacted though a silent follower lacks some; a
    /// live one that lags holds twice as many. 73728.
    pub log_gc_count_limit: u64,
    /// The same by encoded size; a running snapshot holds four times as much. 72 MiB.
    pub log_gc_size_limit: u64,
    /// Fewer entries than this are not worth a compaction within the limits. 50.
    pub log_gc_threshold: u64,
    /// How long the sending of a snapshot may take until it counts as failed. 10 min.
    pub snapshot_send_timeout: Duration,
    /// How long a snapshot that was made is sent to followers, and one that was received
    /// waits to be installed. 30 min.
    pub snapshot_keep_time: Duration,
    /// Bytes of keys and values a second with which snapshots are made, one after the other, while
    /// no install and no clear waits for that; 0: no limit. 400 MiB.
    pub snapshot_bytes_per_second: u64,
    /// How often snapshot files that nobody wants are removed. 1 min.
    pub snapshot_gc_interval: Duration,
    /// A session that a leader of this store opens expires when the region's clock is so
    /// far behind its last use. 10 min.
    pub session_ttl: Duration,
    /// Most sessions of a region; those not used for the longest time go. 4096.
    pub max_sessions_per_region: u32,
    /// Seed of the election timeouts. Different at every start.
    pub seed: u64,
    /// False: the store drops all raft messages both ways and never campaigns, until
    /// it is told that it is admitted.
    pub admitted: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            raft_shards: 2,
            apply_shards: 1,
            read_threads: 1,
            tick_interval: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 8,
            election_ticks_max: 16,
            rest: true,
            max_clock_drift_percent: 10,
            park_time: Duration::from_millis(300),
            max_key_bytes: 8 << 10,
            max_entry_bytes: 8 << 20,
            shared_entry_bytes: 256 << 10,
            shared_entry_commands: 1024,
            shared_entry_rewrites: 32,
            max_apply_batch_bytes: 64 << 20,
            max_uncommitted_bytes: 16 << 20,
            max_apply_backlog_bytes: 16 << 20,
            max_message_bytes: 1 << 20,
            max_inflight_messages: 256,
            inbox_capacity: 16384,
            log_credits: 2,
            apply_credits: 4,
            inline_apply_bytes: 64 << 10,
            max_pending_messages: 1024,
            peer_stale_time: Duration::from_secs(2 * 3600),
            max_parked_requests: 4096,
            max_queued_write_bytes: 32 << 20,
            max_write_wait: Duration::from_millis(500),
            max_answer_bytes: 32 << 20,
            heartbeat_interval: Duration::from_secs(5),
            expiry_interval: Duration::from_secs(60),
            flush_interval: Duration::from_secs(30),
            flush_log_bytes: 96 << 20,
            log_gc_tick_interval: Duration::from_secs(3),
            log_gc_count_limit: 73_728,
            log_gc_size_limit: 72 << 20,
            log_gc_threshold: 50,
            snapshot_send_timeout: Duration::from_secs(600),
            snapshot_keep_time: Duration::from_secs(1800),
            snapshot_bytes_per_second: 400 << 20,
            snapshot_gc_interval: Duration::from_secs(60),
            session_ttl: Duration::from_secs(600),
            max_sessions_per_region: 4096,
            seed: 0,
            admitted: true,
        }
    }
}

impl StoreOptions {
    /// The shortest election timeout as a duration.
    pub fn election_timeout(&self) -> Duration {
        self.tick_interval * self.election_ticks as u32
    }

    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// One line that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let rules = [
            (self.raft_shards > 0, "raft_shards must be at least 1"),
            (self.apply_shards > 0, "apply_shards must be at least 1"),
            (self.read_threads > 0, "read_threads must be at least 1"),
            (
                self.shared_entry_rewrites > 0 && self.max_apply_batch_bytes > 0,
                "shared_entry_rewrites and max_apply_batch_bytes must be above 0",
            ),
            (
                !self.tick_interval.is_zero(),
                "tick_interval must be above 0",
            ),
            (
                self.heartbeat_ticks > 0,
                "heartbeat_ticks must be at least 1",
            ),
            (
                self.heartbeat_ticks < self.election_ticks,
                "heartbeat_ticks must be below election_ticks",
            ),
            (
                self.election_ticks < self.election_ticks_max,
                "election_ticks must be below election_ticks_max",
            ),
            (
                self.max_clock_drift_percent < 100,
                "max_clock_drift must be below 100 %",
            ),
            (
                self.peer_stale_time >= self.tick_interval * self.election_ticks_max as u32,
                "peer_stale_time must not be below the longest election timeout",
            ),
            (
                self.max_pending_messages > 0,
                "max_pending_messages must be at least 1",
            ),
            (
                !self.log_gc_tick_interval.is_zero(),
                "log_gc_tick_interval must be above 0",
            ),
            (
                self.log_gc_count_limit > 0 && self.log_gc_size_limit > 0,
                "log_gc_count_limit and log_gc_size_limit must be above 0",
            ),
            (
                !self.snapshot_send_timeout.is_zero(),
                "snapshot_send_timeout must be above 0",
            ),
            (
                self.snapshot_send_timeout <= self.snapshot_keep_time,
                "snapshot_keep_time must not be below snapshot_send_timeout",
            ),
            (
                !self.snapshot_gc_interval.is_zero(),
                "snapshot_gc_interval must be above 0",
            ),
            (
                !self.max_write_wait.is_zero(),
                "max_write_wait must be above 0",
            ),
            (self.log_credits > 0, "log_credits must be at least 1"),
            (self.apply_credits > 0, "apply_credits must be at least 1"),
            (
                self.session_ttl >= Duration::from_millis(1),
                "session_ttl must be at least 1 ms",
            ),
            (
                self.max_sessions_per_region > 0,
                "max_sessions_per_region must be at least 1",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, line)) => Err((*line).to_owned()),
            None => Ok(()),
        }
    }
}
