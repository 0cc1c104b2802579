//! One plan, one run: byte for byte, on every machine.
//!
//! The hashes are those of all events of a run. They change whenever the behaviour of a
//! store, a client or the simulator changes, and then they are to be replaced by what the
//! test prints; they must not differ between two machines, two builds or two runs.

use std::time::Duration;

use strata_raftstore::StoreOptions;
use strata_sim::swarm::{Plan, trace_file};
use strata_sim::{FaultKind, Mix, Scenario};

/// Seeds of the default swarm with the hashes of their traces.
const HASHES: [(u64, u64); 5] = [
    (1, 0xf0d562d35b1129f6),
    (2, 0x70174b6c6cf48962),
    (3, 0x4d9ba01415904fdb),
    (5, 0xabdfcc58d7f2bdee),
    (8, 0xe71d06c865057634),
];

fn hash(seed: u64) -> u64 {
    match Plan::draw(seed).run() {
        Ok(report) => report.hash,
        Err(failure) => panic!("seed {seed}: {failure}"),
    }
}

#[test]
fn trace_hashes_are_the_same_on_every_machine() {
    let found = HASHES.map(|(seed, _)| (seed, hash(seed)));
    for (seed, hash) in found {
        println!("    ({seed}, 0x{hash:016x}),");
    }
    assert_eq!(found, HASHES, "found, and written in this test");
}

#[test]
fn equal_plans_give_equal_traces_byte_for_byte() {
    let plan = Plan::draw(4);
    let texts = [(); 2].map(|()| {
        let (run, trace) = plan.run_traced();
        assert!(run.is_ok(), "{}", run.unwrap_err());
        trace_file::write(&plan, &trace)
    });
    assert!(texts[0] == texts[1], "the texts of two runs differ");
    assert!(texts[0].lines().count() > 10_000, "a trace of some length");
    let (_, events) = trace_file::read(&texts[0]).expect("a trace as it was written");
    let (_, trace) = plan.run_traced();
    assert_eq!(trace_file::compare(&events, &trace), Ok(()));
}

/// Ticks that are passed over would have done nothing: whatever happens to a cluster, the traces
/// of stores that see every tick are the same.
#[test]
fn peers_at_rest_miss_nothing() {
    let hash = |seed, rest| {
        let scenario = Scenario {
            mix: Mix::all(),
            unreliable: seed % 2 == 0,
            crashes: true,
            faults: FaultKind::ALL.to_vec(),
            replica_reads: 0.3,
            cancelled: 0.1,
            round: Duration::from_secs(1),
            store: StoreOptions {
                rest,
                ..StoreOptions::default()
            },
            ..Scenario::new(seed)
        };
        scenario.run_clean().hash
    };
    for seed in 30..40 {
        assert_eq!(hash(seed, true), hash(seed, false), "seed {seed}");
    }
}

#[test]
fn equal_seeds_of_rows_give_equal_traces() {
    let hash = |seed| {
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
    };
    assert_eq!(hash(21), hash(21));
    assert_ne!(hash(21), hash(22));
}
