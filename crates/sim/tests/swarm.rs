//! A few hundred short seeds with everything that can go wrong, mixed by the seed.
//!
//! `SIM_SEEDS=A..B` runs other seeds; a failing one is named with what was found.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::seeds_or;
use strata_sim::Scenario;

/// Seeds of an ordinary run.
const SEEDS: std::ops::Range<u64> = 0..300;

#[test]
fn swarm_of_seeds_with_all_faults() {
    let mut failed = Vec::new();
    let (mut acknowledged, mut runs, mut snapshots) = (0, 0, 0);
    for seed in seeds_or(SEEDS) {
        let scenario = Scenario::drawn(seed);
        match catch_unwind(AssertUnwindSafe(|| scenario.run())) {
            Ok(Ok(report)) => {
                acknowledged += report.acknowledged;
                snapshots += report.snapshots;
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
    println!("{runs} seeds, {acknowledged} operations acknowledged, {snapshots} snapshots");
    assert!(
        failed.is_empty(),
        "failing seeds: {failed:?}; again with SIM_SEEDS=SEED..SEED+1"
    );
    assert!(acknowledged >= runs * 20, "the swarm hardly did anything");
}
