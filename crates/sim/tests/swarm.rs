//! Short seeds with everything that can go wrong, mixed by the seed; and some
//! whose logs are so short that whoever was away comes back by a snapshot.
//!
//! `SIM_SEEDS=A..B` runs other seeds; a failing one is named with what was found.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::seeds_or;
use strata_sim::Scenario;

/// Seeds of an ordinary run.
const SEEDS: std::ops::Range<u64> = 0..100;
/// Those with short logs.
const SHORT_LOG_SEEDS: std::ops::Range<u64> = 0..60;

/// What the seeds have done together.
#[derive(Default)]
struct Sums {
    runs: u64,
    acknowledged: u64,
    snapshots: u64,
}

/// Plays the rows that some seeds draw.
fn play(seeds: std::ops::Range<u64>, draw: impl Fn(u64) -> Scenario) -> Sums {
    let mut failed = Vec::new();
    let mut sums = Sums::default();
    for seed in seeds {
        let scenario = draw(seed);
        match catch_unwind(AssertUnwindSafe(|| scenario.run())) {
            Ok(Ok(report)) => {
                sums.acknowledged += report.acknowledged;
                sums.snapshots += report.snapshots;
                sums.runs += 1;
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
    println!(
        "{} seeds, {} operations acknowledged, {} snapshots",
        sums.runs, sums.acknowledged, sums.snapshots
    );
    assert!(
        failed.is_empty(),
        "failing seeds: {failed:?}; again with SIM_SEEDS=SEED..SEED+1"
    );
    assert!(
        sums.acknowledged >= sums.runs * 20,
        "the swarm hardly did anything"
    );
    sums
}

#[test]
fn swarm_of_seeds_with_all_faults() {
    play(seeds_or(SEEDS), Scenario::drawn);
}

#[test]
fn swarm_of_seeds_with_snapshots() {
    let sums = play(seeds_or(SHORT_LOG_SEEDS), Scenario::drawn_with_snapshots);
    assert!(
        sums.snapshots > sums.runs,
        "only {} snapshots in {} runs",
        sums.snapshots,
        sums.runs
    );
}
