//! Plays seeds of the default swarm with a fault planted until a checker reports something.

use strata_raft::planted::{Fault, plant};
use strata_sim::swarm::Plan;

/// Seeds within which each fault must be found.
const SEEDS_MAX: u64 = 300;

/// The fault must be found.
pub fn must_be_found(fault: Fault) {
    let _planting = plant(Some(fault));
    let found = (0..SEEDS_MAX).find_map(|seed| Some((seed, Plan::draw(seed).run().err()?)));
    match found {
        Some((seed, failure)) => {
            let name = fault.name();
            println!(
                "{name}: found with {} seeds: {}",
                seed + 1,
                failure.violations[0]
            );
        }
        None => panic!("{}: not found in {SEEDS_MAX} seeds", fault.name()),
    }
}
