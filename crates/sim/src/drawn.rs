//! Rows drawn from a seed: any number of stores, any faults, any settings.
//!
//! What a seed draws is part of what makes a failing seed repeatable: a change here gives
//! every seed another meaning.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::StoreOptions;

use crate::fault_kind::FaultKind;
use crate::scenario::Scenario;
use crate::workload::Mix;

impl Scenario {
    /// A row whose parameters are all drawn from its seed.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let faults: Vec<FaultKind> = FaultKind::ALL
            .into_iter()
            .filter(|_| rng.random_bool(0.5))
            .collect();
        let mix = match rng.random_range(0..4) {
            0 => Mix::append_and_scan(),
            1 => Mix {
                get: 4,
                put: 2,
                swap: 4,
                delete: 1,
                ..Mix::none()
            },
            _ => Mix::all(),
        };
        Scenario {
            stores: [1, 3, 3, 5][rng.random_range(0..4)],
            regions: rng.random_range(6..14),
            clients: rng.random_range(1..9),
            mix,
            unreliable: rng.random_bool(0.3),
            partitions: rng.random_bool(0.3),
            crashes: rng.random_bool(0.4),
            replica_reads: if rng.random() { 0.3 } else { 0.0 },
            cancelled: if rng.random_bool(0.3) { 0.1 } else { 0.0 },
            faults,
            store: {
                let store = if rng.random_bool(0.3) {
                    tight(&mut rng)
                } else {
                    StoreOptions::default()
                };
                short_log(&mut rng, store)
            },
            rounds: rng.random_range(1..3),
            round: Duration::from_millis(rng.random_range(500..3_000)),
            ..Scenario::new(seed)
        }
    }

    /// As [`Scenario::drawn`], with logs of a few entries and stores that are down again and
    /// again: who was away needs a snapshot. Half of the seeds let clerks do the work.
    #[must_use]
    pub fn drawn_with_snapshots(seed: u64) -> Self {
        let mut scenario = Scenario::drawn(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(!seed);
        scenario.stores = [3, 5][rng.random_range(0..2)];
        scenario.faults.push(FaultKind::PowerCut);
        scenario.faults.push(FaultKind::Kill);
        scenario.round = scenario.round.max(Duration::from_secs(2));
        scenario.store.log_gc_count_limit = rng.random_range(1..8);
        scenario.store.log_gc_threshold = rng.random_range(1..8);
        scenario.store.log_gc_tick_interval = Duration::from_millis(rng.random_range(20..150));
        scenario.clerks = rng.random();
        if scenario.clerks {
            // A session's operation is one command.
            scenario.mix.batch_put = 0;
            scenario.mix.delete_range = 0;
            scenario.mix.expiring = 0;
            scenario.cancelled = 0.0;
        }
        scenario
    }
}

/// Logs so short that they are compacted, and snapshots needed, in runs of seconds.
fn short_log(rng: &mut ChaCha8Rng, store: StoreOptions) -> StoreOptions {
    if rng.random_bool(0.2) {
        return store;
    }
    StoreOptions {
        log_gc_tick_interval: Duration::from_millis(rng.random_range(20..1_000)),
        log_gc_count_limit: rng.random_range(5..100),
        log_gc_size_limit: rng.random_range(2_000..100_000),
        log_gc_threshold: rng.random_range(5..60),
        snapshot_send_timeout: Duration::from_secs(rng.random_range(1..20)),
        snapshot_keep_time: Duration::from_secs(20),
        snapshot_gc_interval: Duration::from_secs(1),
        ..store
    }
}

/// Settings so tight that everything that can be full is full now and then.
fn tight(rng: &mut ChaCha8Rng) -> StoreOptions {
    StoreOptions {
        raft_shards: rng.random_range(1..4),
        apply_shards: rng.random_range(1..3),
        log_credits: rng.random_range(1..3),
        apply_credits: rng.random_range(1..3),
        shared_entry_commands: rng.random_range(1..4),
        shared_entry_bytes: rng.random_range(1..200),
        shared_entry_rewrites: rng.random_range(1..4),
        max_apply_batch_bytes: rng.random_range(1..400),
        max_uncommitted_bytes: rng.random_range(100..2_000),
        max_apply_backlog_bytes: rng.random_range(100..2_000),
        max_message_bytes: rng.random_range(1..300),
        max_inflight_messages: rng.random_range(1..4),
        max_parked_requests: rng.random_range(1..6),
        ..StoreOptions::default()
    }
}
