//! A few hundred short seeds with everything that can go wrong, mixed by the seed.
//!
//! `SIM_SEEDS=A..B` runs other seeds; a failing one is named with what was found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::StoreOptions;
use strata_sim::{FaultKind, Mix, Scenario};

/// Seeds of an ordinary run.
const SEEDS: std::ops::Range<u64> = 0..300;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SIM_SEEDS") else {
        return SEEDS;
    };
    let (first, end) = text.split_once("..").expect("SIM_SEEDS is A..B");
    first.parse().expect("a number")..end.parse().expect("a number")
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
        max_uncommitted_bytes: rng.random_range(100..2_000),
        max_apply_backlog_bytes: rng.random_range(100..2_000),
        max_message_bytes: rng.random_range(1..300),
        max_inflight_messages: rng.random_range(1..4),
        max_parked_requests: rng.random_range(1..6),
        ..StoreOptions::default()
    }
}

/// A scenario drawn from a seed.
fn drawn(seed: u64) -> Scenario {
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
        store: if rng.random_bool(0.3) {
            tight(&mut rng)
        } else {
            StoreOptions::default()
        },
        rounds: rng.random_range(1..3),
        round: Duration::from_millis(rng.random_range(500..3_000)),
        ..Scenario::new(seed)
    }
}

#[test]
fn swarm_of_seeds_with_all_faults() {
    let mut failed = Vec::new();
    let (mut acknowledged, mut runs) = (0, 0);
    for seed in seeds() {
        let scenario = drawn(seed);
        match catch_unwind(AssertUnwindSafe(|| scenario.run())) {
            Ok(Ok(report)) => {
                acknowledged += report.acknowledged;
                runs += 1;
            }
            Ok(Err(violations)) => {
                let lines: Vec<String> = violations.iter().map(|v| v.to_string()).collect();
                println!("seed {seed} failed: {}\n{scenario:?}", lines.join("\n"));
                failed.push(seed);
            }
            Err(_) => {
                println!("seed {seed} failed with the panic above\n{scenario:?}");
                failed.push(seed);
            }
        }
    }
    println!("{runs} seeds, {acknowledged} operations acknowledged");
    assert!(
        failed.is_empty(),
        "failing seeds: {failed:?}; again with SIM_SEEDS=SEED..SEED+1"
    );
    assert!(acknowledged >= runs * 20, "the swarm hardly did anything");
}
