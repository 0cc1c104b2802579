//! Every setting of a node: name, kind, default, bounds and meaning, in one table.
//!
//! The table makes the typed structs, the parser and the documented file
//! `config/strata.toml`; a test compares that file with the table, so that neither can be
//! changed alone.

use std::time::Duration;

use super::value::{ApiV1, LogFormat, LogLevel, Setting, Size, Switch};

/// One setting as the documentation and the parser see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// The default as it is written in the file, with quotes where TOML needs them.
    pub default: &'static str,
    /// What it does, with units and bounds.
    pub doc: &'static [&'static str],
    /// True when the value stands without quotes in TOML.
    pub bare: bool,
}

macro_rules! settings {
    ($($(#[doc = $section_doc:literal])+ $section:ident $struct:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $key:literal, $default:literal, $least:literal ..= $most:literal;)+
    })+) => {
        /// The settings of a node.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $struct,)+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq)]
            pub struct $struct {
                $($(#[doc = $doc])+ pub $field: $kind,)+
            }
        )+

        /// Every setting in the order of the documented file.
        pub const KEYS: &[Key] = &[
            $($(Key {
                name: $key,
                default: $default,
                doc: &[$($doc),+],
                bare: <$kind as Setting>::BARE,
            },)+)+
        ];

        /// Every section with what it is about, in the order of the documented file.
        pub const SECTIONS: &[(&str, &[&str])] = &[
            $((stringify!($section), &[$($section_doc),+]),)+
        ];

        impl Default for Config {
            fn default() -> Self {
                Config {
                    $($section: $struct {
                        $($field: read_default($key, $default),)+
                    },)+
                }
            }
        }

        impl Config {
            /// Sets one key from text.
            ///
            /// # Errors
            /// [`SetError::UnknownKey`] or, with what was expected, [`SetError::BadValue`].
            pub fn set(&mut self, key: &str, text: &str) -> Result<(), SetError> {
                match key {
                    $($($key => {
                        self.$section.$field = read_bounded::<$kind>(text, $least, $most)?;
                        Ok(())
                    })+)+
                    _ => Err(SetError::UnknownKey),
                }
            }
        }
    };
}

/// Why a key was not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetError {
    /// No setting has this name.
    UnknownKey,
    /// The text is no value of the setting's kind or lies outside its bounds.
    BadValue(String),
}

fn read_default<T: Setting>(key: &str, text: &str) -> T {
    T::parse(text).unwrap_or_else(|error| panic!("the default of {key} is wrong: {error}"))
}

fn read_bounded<T: Setting + PartialOrd>(
    text: &str,
    least: &str,
    most: &str,
) -> Result<T, SetError> {
    let value = T::parse(text).map_err(SetError::BadValue)?;
    let least_value = T::parse(least).map_err(SetError::BadValue)?;
    let most_value = T::parse(most).map_err(SetError::BadValue)?;
    if value < least_value || value > most_value {
        return Err(SetError::BadValue(format!(
            "`{text}` is outside {least} to {most}"
        )));
    }
    Ok(value)
}

settings! {
    /// Consensus of each region.
    raft RaftConfig {
        /// How often time is counted. All other raft times are multiples of it. The same on all
        /// nodes, see election-ticks.
        tick_interval: Duration = "raft.tick-interval", "50ms", "1ms" ..= "10s";
        /// Ticks without a leader after which a replica campaigns; the real time-out is
        /// drawn between this and twice this. A leader reads under a lease for as long as the
        /// others keep from voting, which is this time by their settings: nodes that differ in it
        /// refuse each other. Change it while all are stopped.
        election_ticks: u64 = "raft.election-ticks", "8", "3" ..= "1000";
        /// Ticks between two heartbeats of a leader; below a third of election-ticks.
        heartbeat_ticks: u64 = "raft.heartbeat-ticks", "2", "1" ..= "300";
        /// Largest entry of the raft log; a bigger write is refused as RaftEntryTooLarge.
        max_entry_size: Size = "raft.max-entry-size", "8MiB", "64KiB" ..= "256MiB";
        /// Most bytes of entries in one append message, unless a single entry is larger.
        max_message_size: Size = "raft.max-message-size", "1MiB", "4KiB" ..= "64MiB";
        /// Append messages that may be under way to one follower of one region.
        max_inflight_messages: u64 = "raft.max-inflight-messages", "256", "1" ..= "65536";
        /// Proposed but uncommitted bytes of one region; more is refused as busy.
        max_uncommitted_size: Size = "raft.max-uncommitted-size", "16MiB", "1MiB" ..= "4GiB";
        /// Part of the minimum election time-out by which clocks of two nodes may differ
        /// in speed; a leader's lease is that much shorter.
        max_clock_drift: f64 = "raft.max-clock-drift", "0.1", "0.01" ..= "0.5";
        /// A replica without a leader for so long asks the others whether it is a member
        /// still, and destroys itself if it is not.
        peer_stale_time: Duration = "raft.peer-stale-time", "2h", "1m" ..= "24h";
        /// Small writes waiting for one region share an entry up to this size.
        shared_entry_size: Size = "raft.shared-entry-size", "256KiB", "0B" ..= "8MiB";
        /// Most commands that share an entry.
        shared_entry_commands: u64 = "raft.shared-entry-commands", "1024", "1" ..= "65536";
        /// Most appends and compare-and-swaps among them: their work may be far larger than
        /// they are.
        shared_entry_rewrites: u64 = "raft.shared-entry-rewrites", "32", "1" ..= "1024";
        /// How often a leader asks whether its log shall be compacted.
        log_gc_tick_interval: Duration = "raft.log-gc-tick-interval", "3s", "10ms" ..= "1h";
        /// Entries of a log beyond which it is compacted though a silent follower lacks
        /// some; a live one that lags holds twice as many.
        log_gc_count_limit: u64 = "raft.log-gc-count-limit", "73728", "1" ..= "1073741824";
        /// The same by size; a snapshot on its way holds four times as much.
        log_gc_size_limit: Size = "raft.log-gc-size-limit", "72MiB", "1KiB" ..= "1024GiB";
        /// Fewer entries than this are not worth a compaction within the limits.
        log_gc_threshold: u64 = "raft.log-gc-threshold", "50", "0" ..= "1048576";
    }
    /// Threads and queues between the network and the regions.
    store StoreConfig {
        /// Parts into which the regions are divided by their ids. Each is a task on the threads
        /// of the network and has a thread that writes its log. 0: one for every four processors,
        /// at least one: fewer write larger batches, for fewer syncs.
        raft_shards: u64 = "store.raft-shards", "0", "0" ..= "64";
        /// Threads that apply what consensus does not apply itself.
        apply_shards: u64 = "store.apply-shards", "1", "1" ..= "64";
        /// A batch of applied entries takes no further one from this size on; values in the
        /// answers count.
        apply_batch_size: Size = "store.apply-batch-size", "64MiB", "1KiB" ..= "1GiB";
        /// Committed entries up to this size, of one round of all regions of a shard, are
        /// applied by the network's thread that runs the shard; larger ones by the threads
        /// for it.
        inline_apply_size: Size = "store.inline-apply-size", "64KiB", "0B" ..= "1MiB";
        /// Threads that serve scans, checksums and reads that need a read index.
        read_threads: u64 = "store.read-threads", "1", "1" ..= "64";
        /// Messages and requests that one shard's inbox holds; beyond it requests are
        /// refused as busy and messages dropped.
        inbox_messages: u64 = "store.inbox-messages", "16384", "64" ..= "1048576";
        /// Log batches of one shard that may be with its log writer.
        log_credits: u64 = "store.log-credits", "2", "1" ..= "64";
        /// Batches of one shard that may be with one apply thread.
        apply_credits: u64 = "store.apply-credits", "4", "1" ..= "64";
        /// Committed entries of one region that wait to be applied; more are not taken.
        max_apply_backlog_size: Size = "store.max-apply-backlog-size", "16MiB", "1MiB" ..= "4GiB";
        /// Requests of one region that may wait for a leader or for room.
        max_parked_requests: u64 = "store.max-parked-requests", "4096", "1" ..= "1048576";
        /// Raft messages for regions that are not here which one thread may have in question,
        /// and replicas that may wait for their first snapshot.
        max_pending_messages: u64 = "store.max-pending-messages", "1024", "16" ..= "65536";
        /// Writes of one region that wait to be proposed; one always may. More are refused
        /// as busy.
        max_queued_write_size: Size = "store.max-queued-write-size", "32MiB", "64KiB" ..= "4GiB";
        /// Longest that a write should wait for those of its region before it, judged by how
        /// fast they were executed lately; one that would wait longer is refused as busy at
        /// once. So many as 512 are always taken.
        max_write_wait: Duration = "store.max-write-wait", "500ms", "10ms" ..= "1m";
        /// Keys and values in one answer of a scan, a batch scan or a batch get; one pair
        /// always goes. A larger answer is refused, never shortened.
        max_answer_size: Size = "store.max-answer-size", "32MiB", "64KiB" ..= "1GiB";
        /// While less of the disk is free, writes are refused and deletes and reads go on;
        /// they are taken again when a quarter more is. 0B: never.
        reserve_space: Size = "store.reserve-space", "512MiB", "0B" ..= "1024GiB";
        /// How often the free space is measured.
        space_check_interval: Duration = "store.space-check-interval", "1s", "10ms" ..= "1h";
        /// How often the data engine learns which values have expired, so that compaction
        /// may drop them; each time it is synced.
        expiry_interval: Duration = "store.expiry-interval", "1m", "1s" ..= "24h";
        /// Largest key, in the form that clients send.
        max_key_size: Size = "store.max-key-size", "8KiB", "16B" ..= "64KiB";
    }
    /// Client sessions, within which a repeated write is executed once.
    session SessionConfig {
        /// A session that was not used for so long expires; the clock of its region counts,
        /// which moves with the region's writes. Taken by sessions that are opened later.
        ttl: Duration = "session.ttl", "10m", "1s" ..= "720h";
        /// Most sessions of one region; when one more is opened, the one that was not used for
        /// the longest time goes.
        max_per_region: u64 = "session.max-per-region", "4096", "1" ..= "1048576";
    }
    /// The port: requests, deadlines and connections between stores.
    server ServerConfig {
        /// Threads of the network: connections, calls, streams between stores, consensus, small
        /// batches of committed entries. 0: one for every two processors, at least one; the
        /// others are for the store's threads.
        threads: u64 = "server.threads", "0", "0" ..= "256";
        /// How long a request without a leader or without room waits before it is refused.
        park_time: Duration = "server.park-time", "300ms", "0ms" ..= "10s";
        /// Deadline of a request that names none.
        default_deadline: Duration = "server.default-deadline", "2s", "10ms" ..= "10m";
        /// Taken off a request's deadline so that the answer arrives in time; at least
        /// half of the deadline always stays.
        deadline_margin: Duration = "server.deadline-margin", "100ms", "0ms" ..= "10s";
        /// Largest message that the port accepts, from clients and from stores. It should
        /// leave room for several entries of raft.max-entry-size.
        max_message_size: Size = "server.max-message-size", "64MiB", "4MiB" ..= "1GiB";
        /// Connections that are served at one time; further ones are closed at once. Each is
        /// an open file: fewer are served where the system lets a process open too few.
        max_connections: u64 = "server.max-connections", "8192", "16" ..= "1048576";
        /// Calls under way on one connection; further ones wait at the client. As many may have been
        /// given up by it before they are looked at, or the connection is closed.
        max_connection_streams: u64 = "server.max-connection-streams", "2048", "16" ..= "65536";
        /// Time that calls under way are given when the node stops.
        shutdown_time: Duration = "server.shutdown-time", "3s", "0ms" ..= "1m";
    }
    /// Connections between stores.
    transport TransportConfig {
        /// Raft messages that wait for one other store; further ones are dropped.
        queue_messages: u64 = "transport.queue-messages", "16384", "16" ..= "1048576";
        /// Bytes of raft messages that wait for one other store; further ones are dropped.
        queue_size: Size = "transport.queue-size", "64MiB", "1MiB" ..= "4GiB";
        /// A frame is closed when its messages have reached this size.
        frame_size: Size = "transport.frame-size", "1MiB", "1KiB" ..= "32MiB";
        /// Pause before a connection is tried again; doubles up to the longest.
        reconnect_min: Duration = "transport.reconnect-min", "50ms", "1ms" ..= "10s";
        /// Longest pause before a connection is tried again.
        reconnect_max: Duration = "transport.reconnect-max", "1s", "10ms" ..= "1m";
        /// Time to connect and to get the answer to the greeting.
        handshake_time: Duration = "transport.handshake-time", "2s", "100ms" ..= "1m";
        /// Pause between two pings on a connection; as long without an answer closes it, and
        /// five times as long without a ping.
        keepalive: Duration = "transport.keepalive", "2s", "100ms" ..= "10m";
    }
    /// Snapshots of regions: how they travel between stores.
    snapshot SnapshotConfig {
        /// Largest piece in which a snapshot's files travel.
        chunk_size: Size = "snapshot.chunk-size", "1MiB", "4KiB" ..= "1MiB";
        /// Snapshots that this node sends at one time, and as many that it receives.
        max_concurrent: u64 = "snapshot.max-concurrent", "8", "1" ..= "1024";
        /// Bytes a second that all snapshots together are sent with; they are made at no more
        /// than four times as many, unless other work waits for that. 0B is no limit.
        rate_limit: Size = "snapshot.rate-limit", "100MiB", "0B" ..= "1024GiB";
        /// A snapshot of which nothing new arrives for so long is given up; its region
        /// tries again when it still needs one.
        send_timeout: Duration = "snapshot.send-timeout", "1m", "1s" ..= "24h";
        /// A side that hears nothing of the other for so long ends the stream; the next
        /// one goes on where it ended.
        stall_time: Duration = "snapshot.stall-time", "10s", "100ms" ..= "10m";
        /// A snapshot that has not arrived after so long counts as failed; the next attempt
        /// goes on where it stands.
        give_up_time: Duration = "snapshot.give-up-time", "10m", "1s" ..= "24h";
        /// How long a snapshot that was made is sent to followers, and one that was received
        /// waits to be installed; at least snapshot.give-up-time.
        keep_time: Duration = "snapshot.keep-time", "30m", "1s" ..= "24h";
        /// How often snapshot files that nobody wants are removed.
        gc_interval: Duration = "snapshot.gc-interval", "1m", "100ms" ..= "1h";
        /// Bytes that the files of all snapshots on this node may take together.
        max_total_size: Size = "snapshot.max-total-size", "64GiB", "1MiB" ..= "1048576GiB";
        /// Snapshots that are being sent or wait for it; further ones fail at once.
        max_waiting: u64 = "snapshot.max-waiting", "1024", "1" ..= "65536";
    }
    /// The scheduler: look-ups, ids and timestamps.
    scheduler SchedulerConfig {
        /// How often a store repeats the reports of the regions that it leads.
        report_interval: Duration = "scheduler.report-interval", "5s", "100ms" ..= "10m";
        /// A store without a report for so long counts as down, and so do its leaders.
        store_down_time: Duration = "scheduler.store-down-time", "15s", "200ms" ..= "1h";
        /// How long a call waits for the scheduler's leader, and a look-up for the leader
        /// of a region.
        forward_time: Duration = "scheduler.forward-time", "500ms", "10ms" ..= "10s";
        /// How far ahead of the clock timestamps are reserved.
        timestamp_window: Duration = "scheduler.timestamp-window", "3s", "100ms" ..= "1m";
        /// Reports that one watcher of regions may lag behind before its stream ends.
        watch_queue_messages: u64 = "scheduler.watch-queue-messages", "1024", "16" ..= "65536";
    }
    /// The two engines on disk.
    storage StorageConfig {
        /// `off`: what a crash takes of the data engine is replayed from the regions' logs, which
        /// keep it until it is flushed. `on`: the data engine writes a log of its own, too, and
        /// less is replayed.
        data_log: Switch = "storage.data-log", "off", "off" ..= "on";
        /// Without a log of the data engine: longest time until it is flushed so that the regions'
        /// logs may be cut.
        flush_interval: Duration = "storage.flush-interval", "30s", "100ms" ..= "1h";
        /// Bytes by which the regions' logs grow at most until then.
        flush_log_size: Size = "storage.flush-log-size", "96MiB", "1MiB" ..= "1024GiB";
        /// Cache of data blocks of the data engine.
        block_cache_size: Size = "storage.block-cache-size", "64MiB", "1MiB" ..= "1024GiB";
        /// Memory for unflushed writes of one column family of the data engine.
        write_buffer_size: Size = "storage.write-buffer-size", "24MiB", "64KiB" ..= "4GiB";
        /// Memory for unflushed writes of the data engine altogether.
        write_buffers_size_max: Size = "storage.write-buffers-size-max", "128MiB", "1MiB" ..= "64GiB";
        /// Bytes of one file of the log engine, which has four of them before it uses one again.
        log_file_size: Size = "storage.log-file-size", "8MiB", "64KiB" ..= "1GiB";
        /// Files that the data engine keeps open.
        open_files_max: u64 = "storage.open-files-max", "1024", "64" ..= "1048576";
        /// Flushes and compactions of the data engine at one time.
        background_threads: u64 = "storage.background-threads", "2", "1" ..= "64";
    }
    /// Which clients the cluster serves.
    api ApiConfig {
        /// `mixed`: raw and transactional v1 clients side by side. `raw`: raw v1 alone.
        /// Looked at when a cluster is made, and never again.
        v1: ApiV1 = "api.v1", "mixed", "mixed" ..= "raw";
    }
    /// Log lines, written to standard error.
    log LogConfig {
        /// The least important line that is written: error, warning, info or debug.
        level: LogLevel = "log.level", "info", "error" ..= "debug";
        /// `text` for people, `json` for programs.
        format: LogFormat = "log.format", "text", "text" ..= "json";
        /// Lines that wait for a slow reader of the log; further ones are dropped and
        /// counted.
        queue_lines: u64 = "log.queue-lines", "4096", "64" ..= "1048576";
    }
}
