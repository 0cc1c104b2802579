//! Plays seeds of the default swarm with a fault planted until a checker reports something.

use strata_raft::planted::{Fault, plant};
use strata_sim::Violation;
use strata_sim::swarm::Plan;

/// Seeds within which each fault must be found.
const SEEDS_MAX: u64 = 600;

/// The fault must be found, on a seed that is clean without it.
pub fn must_be_found(fault: Fault) {
    let planting = plant(Some(fault));
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let failure = Plan::draw(seed).run().err()?;
        // A run that stops by itself has found nothing.
        let stopped = matches!(failure.violations[0], Violation::RunStopped(_));
        (!stopped).then_some((seed, failure))
    });
    drop(planting);
    let name = fault.name();
    let Some((seed, failure)) = found else {
        panic!("{name}: not found in {SEEDS_MAX} seeds");
    };
    println!(
        "{name}: found with {} seeds: {}",
        seed + 1,
        failure.violations[0]
    );
    if let Err(failure) = Plan::draw(seed).run() {
        panic!("seed {seed} is not clean without {name}: {failure}");
    }
}
