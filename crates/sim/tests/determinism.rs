//! One seed, one run.

use std::time::Duration;

use strata_sim::{FaultKind, Mix, Scenario};

fn hash(seed: u64) -> u64 {
    let scenario = Scenario {
        mix: Mix::all(),
        unreliable: true,
        crashes: true,
        faults: FaultKind::ALL.to_vec(),
        replica_reads: 0.3,
        cancelled: 0.1,
        round: Duration::from_secs(1),
        ..Scenario::new(seed)
    };
    scenario.run_clean().hash
}

#[test]
fn equal_seeds_give_equal_traces() {
    assert_eq!(hash(11), hash(11));
    assert_ne!(hash(11), hash(13));
}
