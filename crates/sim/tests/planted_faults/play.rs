//! Plays seeds of the swarm with a fault planted until a checker reports something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use strata_raft::planted::{Fault, plant};
use strata_raftstore::StoreOptions;
use strata_sim::{FaultKind, Scenario};

use crate::common::{self, ms, peers};

/// Seeds within which each fault must be found.
pub const SEEDS_MAX: u64 = 300;

/// What the checkers say of a seed; `None`: nothing.
pub fn play(seed: u64) -> Option<String> {
    let played = catch_unwind(AssertUnwindSafe(|| match seed % 3 {
        0 => Scenario::drawn(seed).run().err(),
        1 => Scenario::drawn_with_snapshots(seed).run().err(),
        _ => moving(seed),
    }));
    match played {
        Ok(None) => None,
        Ok(Some(found)) => Some(found.first().map_or(String::new(), |v| v.to_string())),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

fn moving(seed: u64) -> Option<Vec<strata_sim::Violation>> {
    let mut scenario = Scenario {
        clients: 4,
        rounds: 2,
        unreliable: true,
        crashes: true,
        faults: vec![
            FaultKind::PowerCut,
            FaultKind::Kill,
            FaultKind::IsolateLeader,
        ],
        store: StoreOptions {
            log_gc_count_limit: 5,
            log_gc_threshold: 5,
            log_gc_tick_interval: ms(50),
            peer_stale_time: Duration::from_secs(1),
            ..StoreOptions::default()
        },
        clerks: seed.is_multiple_of(2),
        mix: common::random_keys(),
        replica_reads: 0.5,
        ..Scenario::new(seed)
    };
    if seed.is_multiple_of(4) {
        scenario.faults = FaultKind::ALL.to_vec();
    }
    let mut new_ids = 1_000_000;
    let mut cluster = scenario.play_with(|cluster| {
        cluster.options.peers_move = true;
        for store in cluster.store_ids() {
            cluster.store_mut(store).disk.read = (ms(0), ms(200));
        }
        peers::replace_for(cluster, 24, &mut new_ids);
    });
    if !peers::settle(&mut cluster, &mut new_ids) {
        return Some(vec![strata_sim::Violation::NoProgress("peers".into())]);
    }
    cluster.finish().err()
}

/// Plays seeds from `first` on until something is found; how many it took, and what it was.
pub fn seeds_until_found(fault: Fault, first: u64) -> Option<(u64, String)> {
    let _planting = plant(Some(fault));
    (0..SEEDS_MAX).find_map(|count| Some((count + 1, play(first + count)?)))
}

/// The fault must be found.
pub fn first_seed_that_tells(fault: Fault) {
    let found = seeds_until_found(fault, 0);
    match found {
        Some((seeds, what)) => println!("FOUND {}: {seeds} seeds: {what}", fault.name()),
        None => panic!("{}: not found in {SEEDS_MAX} seeds", fault.name()),
    }
}
