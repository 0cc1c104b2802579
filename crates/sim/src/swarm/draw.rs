//! What a seed draws.
//!
//! Small clusters come more often than large ones, since a run of seven stores and forty
//! regions takes as long as ten of three and six and finds no more; all sizes come up.
//!
//! What a seed draws is part of what makes a failing seed repeatable: a change here gives
//! every seed another meaning, and the hashes in `tests/trace_hashes.rs` change.

use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::StoreOptions;

use super::{Clients, PLAN_VERSION, Plan, SNAPSHOT_KEEP_MS, Settings};
use crate::fault_kind::{FaultKind, Strike};
use crate::workload::Mix;

/// How long clients work in a drawn plan. With healing and the last reads a run comes to
/// thirty simulated seconds.
const LENGTH_MS: u64 = 28_000;
/// Longest time between two strikes.
const QUIET_MS_MAX: u64 = 5_000;

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        // Apart from the generator that the run itself uses.
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5354_5241_5441_4b56);
        let stores = *[3, 3, 3, 3, 3, 3, 4, 4, 5, 5, 6, 7]
            .choose(&mut rng)
            .expect("sizes to choose from");
        let regions = match rng.random_range(0..20) {
            0 | 1 => rng.random_range(6..=40),
            2..=6 => rng.random_range(6..=12),
            _ => 6,
        };
        let replicas = if stores >= 5 && rng.random_bool(0.3) {
            5
        } else {
            3
        };
        let settings = draw_settings(&mut rng);
        let clients = draw_clients(&mut rng, regions);
        let mix = draw_mix(&mut rng);
        let strikes = draw_strikes(&mut rng);
        Plan {
            version: PLAN_VERSION,
            seed,
            stores,
            regions,
            replicas,
            length_ms: LENGTH_MS,
            settings,
            clients,
            mix,
            strikes,
        }
    }

    /// The settings of the plan's stores.
    pub(super) fn store_options(&self) -> StoreOptions {
        let settings = &self.settings;
        let ms = Duration::from_millis;
        let store = StoreOptions {
            raft_shards: settings.raft_shards,
            apply_shards: settings.apply_shards,
            max_clock_drift_percent: settings.max_clock_drift_percent,
            log_gc_tick_interval: ms(settings.log_gc_tick_ms),
            log_gc_count_limit: settings.log_gc_count_limit,
            log_gc_size_limit: settings.log_gc_size_limit,
            log_gc_threshold: settings.log_gc_threshold,
            snapshot_send_timeout: ms(settings.snapshot_send_timeout_ms),
            snapshot_keep_time: ms(SNAPSHOT_KEEP_MS),
            snapshot_gc_interval: ms(2_000),
            session_ttl: ms(settings.session_ttl_ms),
            max_sessions_per_region: settings.max_sessions_per_region,
            // Who was removed while it was away asks.
            peer_stale_time: ms(2_000),
            ..StoreOptions::default()
        };
        if settings.tight {
            tight(store, self.seed)
        } else {
            store
        }
    }
}

/// Queues and batches so small that everything that can be full is full now and then.
fn tight(store: StoreOptions, seed: u64) -> StoreOptions {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    StoreOptions {
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
        max_parked_requests: rng.random_range(2..8),
        ..store
    }
}

fn draw_settings(rng: &mut ChaCha8Rng) -> Settings {
    // Logs so short that they are compacted, and snapshots needed, in runs of seconds.
    let short = rng.random_bool(0.7);
    let limit = |rng: &mut ChaCha8Rng, short_range, long| {
        if short {
            rng.random_range(short_range)
        } else {
            long
        }
    };
    Settings {
        raft_shards: rng.random_range(1..4),
        apply_shards: rng.random_range(1..3),
        max_clock_drift_percent: *[10, 10, 10, 0, 1, 25].choose(rng).expect("bounds"),
        log_gc_tick_ms: limit(rng, 100..1_000, 3_000),
        log_gc_count_limit: limit(rng, 3..60, 73_728),
        log_gc_size_limit: limit(rng, 1_000..50_000, 72 << 20),
        log_gc_threshold: limit(rng, 3..40, 50),
        snapshot_send_timeout_ms: rng.random_range(1_000..15_000),
        session_ttl_ms: *[1_000, 4_000, 600_000].choose(rng).expect("times"),
        max_sessions_per_region: *[1, 2, 3, 4_096].choose(rng).expect("numbers"),
        tight: rng.random_bool(0.2),
        slow_readers: rng.random_bool(0.4),
    }
}

fn draw_clients(rng: &mut ChaCha8Rng, regions: u32) -> Clients {
    let clerks = rng.random_range(0..=3);
    let plain = rng.random_range(3 - clerks.min(2)..=4);
    // Few clients work faster: a run shall carry its operations whoever does them.
    let pause_ms_max = 10 * (clerks + plain);
    let share = |rng: &mut ChaCha8Rng, often: f64, most: u32| {
        if rng.random_bool(often) {
            rng.random_range(1..=most)
        } else {
            0
        }
    };
    Clients {
        plain,
        clerks,
        pause_ms_max,
        groups: rng.random_range(2..=(regions as usize).min(8)),
        group_keys: rng.random_range(2..6),
        replica_reads_percent: share(rng, 0.6, 60),
        cancelled_percent: share(rng, 0.3, 15),
        short_deadlines_percent: share(rng, 0.4, 10),
        operations_max: None,
    }
}

fn draw_mix(rng: &mut ChaCha8Rng) -> Mix {
    let mut weight = |most: u32| rng.random_range(0..=most);
    Mix {
        get: 2 + weight(8),
        put: 1 + weight(6),
        delete: weight(2),
        append: weight(6),
        swap: weight(6),
        scan: weight(3),
        batch_get: weight(3),
        batch_put: weight(2),
        delete_range: weight(1),
        expiring: weight(3),
        system: weight(1),
    }
}

fn draw_strikes(rng: &mut ChaCha8Rng) -> Vec<Strike> {
    // Each kind as often as its weight says.
    let mut weighted: Vec<FaultKind> = Vec::new();
    for kind in FaultKind::ALL.into_iter().chain(FaultKind::FURTHER) {
        if rng.random_bool(0.5) {
            let often = match kind {
                // Strikes only where a snapshot is on its way.
                FaultKind::BrokenStreams => 3,
                _ => 1,
            };
            let weight = rng.random_range(1..=6) * often;
            weighted.extend(std::iter::repeat_n(kind, weight));
        }
    }
    if weighted.is_empty() {
        weighted.push(FaultKind::PowerCut);
    }
    let shortest = rng.random_range(50..800);
    let longest = rng.random_range(800..=QUIET_MS_MAX).min(shortest * 8);
    let mut strikes = Vec::new();
    let mut at_ms = 0;
    loop {
        at_ms += rng.random_range(shortest..=longest);
        if at_ms >= LENGTH_MS {
            break;
        }
        strikes.push(Strike {
            at_ms,
            kind: *weighted.choose(rng).expect("at least one kind"),
            salt: rng.random(),
        });
    }
    match rng.random_range(0..8) {
        // A member on a store that comes back empty would never be heard again.
        0 => strikes.push(Strike {
            at_ms: rng.random_range(1_000..LENGTH_MS),
            kind: FaultKind::Wipe,
            salt: rng.random(),
        }),
        1..=3 => {
            let mut at_ms = 1_000;
            while at_ms < LENGTH_MS {
                strikes.push(Strike {
                    at_ms,
                    kind: FaultKind::MovePeers,
                    salt: rng.random(),
                });
                at_ms += rng.random_range(100..1_500);
            }
        }
        _ => {}
    }
    if rng.random_bool(0.35) {
        // What needs several faults at the right moment needs many tries.
        let mut at_ms = 1_000;
        while at_ms < LENGTH_MS {
            strikes.push(Strike {
                at_ms,
                kind: FaultKind::RegionTrouble,
                salt: rng.random(),
            });
            at_ms += rng.random_range(500..4_000);
        }
    }
    strikes.sort_by_key(|strike| strike.at_ms);
    strikes
}
