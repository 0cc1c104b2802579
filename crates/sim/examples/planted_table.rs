//! How many seeds of the default swarm it takes to find each fault that can be planted.
//!
//! Every fault is played on several ranges of seeds that have none in common, from the
//! beginning of each until a checker reports something. The table has the median of the
//! seeds that took, and what was found how often.
//!
//! `planted_table [--ranges N] [--first SEED] [WORDS]`: a range is 1,000 seeds long; with words
//! only the faults whose names hold them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use strata_raft::planted::{Fault, plant};
use strata_sim::Violation;
use strata_sim::swarm::Plan;

/// Seeds from one range to the next.
const RANGE: u64 = 1_000;
/// Seeds within which a fault must be found.
const SEEDS_MAX: u64 = 1_000;

/// What came of one fault on one range.
#[derive(Clone, Debug)]
struct Found {
    /// Seeds that were played; `None`: nothing was found in as many as there may be.
    seeds: Option<u64>,
    /// Name of the violation, and its line.
    what: (String, String),
}

fn play(fault: Fault, first: u64) -> Found {
    let _planting = plant(Some(fault));
    for count in 0..SEEDS_MAX {
        if let Err(failure) = Plan::draw(first + count).run() {
            let nothing = plant(None);
            if let Err(failure) = Plan::draw(first + count).run() {
                panic!("seed {} is not clean: {failure}", first + count);
            }
            drop(nothing);
            let violation = &failure.violations[0];
            if matches!(violation, Violation::RunStopped(_)) {
                continue;
            }
            let name = format!("{violation:?}");
            let end = name.find([' ', '(']).unwrap_or(name.len());
            return Found {
                seeds: Some(count + 1),
                what: (name[..end].to_owned(), violation.to_string()),
            };
        }
    }
    Found {
        seeds: None,
        what: Default::default(),
    }
}

fn main() -> ExitCode {
    let mut ranges = 5;
    let mut first = 100_000;
    let mut words = String::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--ranges" => ranges = number().unwrap_or(ranges),
            "--first" => first = number().unwrap_or(first),
            other => words = other.to_owned(),
        }
    }
    let faults: Vec<Fault> = Fault::ALL
        .iter()
        .copied()
        .filter(|fault| fault.name().contains(&words))
        .collect();
    let jobs: Vec<(usize, u64)> = (0..faults.len())
        .flat_map(|fault| (0..ranges).map(move |range| (fault, first + range * RANGE)))
        .collect();
    let next = AtomicUsize::new(0);
    let found: Mutex<BTreeMap<(usize, u64), Found>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(fault, from)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = play(faults[fault], from);
                    eprintln!("{}: from {from}: {one:?}", faults[fault].name());
                    let mut found = found.lock().expect("no thread panics with it");
                    found.insert((fault, from), one);
                }
            });
        }
    });
    let found = found.into_inner().expect("no thread panics with it");
    println!("| fault | median seeds | most | found by |");
    println!("|---|---|---|---|");
    let mut all = true;
    for (place, fault) in faults.iter().enumerate() {
        let of_fault = found
            .range((place, 0)..=(place, u64::MAX))
            .map(|(_, one)| one);
        let mut seeds: Vec<Option<u64>> = Vec::new();
        let mut by: BTreeMap<&str, usize> = BTreeMap::new();
        for one in of_fault {
            seeds.push(one.seeds);
            if one.seeds.is_some() {
                *by.entry(&one.what.0).or_default() += 1;
            }
        }
        all &= seeds.iter().all(Option::is_some);
        // What was not found took longer than anything.
        seeds.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        let show = |seeds: Option<u64>| {
            seeds.map_or_else(|| format!("over {SEEDS_MAX}"), |seeds| seeds.to_string())
        };
        let by: Vec<String> = by
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        println!(
            "| {} | {} | {} | {} |",
            fault.name(),
            show(seeds[seeds.len() / 2]),
            show(seeds[seeds.len() - 1]),
            by.join(", ")
        );
    }
    if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
