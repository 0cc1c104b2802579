//! `raft-bench`: the raft crate against the published `raft` crate 0.7.
//!
//! Both drive the same group of three replicas in one thread and in memory, over the same log
//! ([`strata_raft_bench::KeptLog`]), with the same proposals, batches and windows ([`Group`]);
//! messages are handed over as they are. Nothing is encoded, sent or synced: what is measured
//! is the core.
//!
//! The published crate runs as it comes, and with `batch_append` and `skip_bcast_commit`,
//! which suit this work; our crate does both without being told.
//!
//! Time is the thread's CPU time, so that other processes count as little as can be. The
//! crates take turns, and the median of the turns is reported. Allocations are counted in a
//! turn of their own.

mod memory;

use std::time::Duration;

use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use strata_raft_bench::{Group, Mix, Node, Ours, PAYLOAD_BYTES, PEERS, Published, STORE_LIMITS};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

/// What is measured: proposals before a Ready, and batches on their way.
const MIXES: [Mix; 6] = [
    Mix {
        batch: 1,
        in_flight: 1,
    },
    Mix {
        batch: 16,
        in_flight: 1,
    },
    Mix {
        batch: 64,
        in_flight: 1,
    },
    Mix {
        batch: 1,
        in_flight: 8,
    },
    Mix {
        batch: 16,
        in_flight: 8,
    },
    Mix {
        batch: 64,
        in_flight: 8,
    },
];

#[derive(Parser)]
#[command(about = "Measures the raft crate against the published `raft` crate 0.7")]
struct Options {
    /// Entries that a turn proposes.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// Turns of each crate in each mix; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// Only the crate whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only the mixes with so many proposals before a Ready.
    #[arg(long)]
    batch: Option<u64>,
}

/// One crate in one mix, as it is printed.
#[derive(Serialize)]
struct Row {
    #[serde(rename = "crate")]
    name: &'static str,
    batch: u64,
    in_flight: u64,
    payload_bytes: usize,
    nodes: usize,
    entries: u64,
    entries_per_second: f64,
    allocations_per_entry: f64,
    allocations_per_batch: f64,
}

/// A way to run one crate.
struct Subject {
    name: &'static str,
    /// Makes a group, warms it up with a tenth of the work, and returns the work.
    prepare: fn(Mix, u64) -> Box<dyn FnOnce()>,
}

const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "strata-raft",
        prepare: |mix, entries| prepare(|id| Ours::new(id, STORE_LIMITS), mix, entries),
    },
    Subject {
        name: "raft 0.7",
        prepare: |mix, entries| prepare(|id| published(id, false), mix, entries),
    },
    Subject {
        name: "raft 0.7, batching",
        prepare: |mix, entries| prepare(|id| published(id, true), mix, entries),
    },
];

fn published(id: u64, batching: bool) -> Published {
    Published::new(id, STORE_LIMITS, batching)
}

fn prepare<N: Node + 'static>(
    make: impl Fn(u64) -> N,
    mix: Mix,
    entries: u64,
) -> Box<dyn FnOnce()> {
    let mut group = Group::new(make);
    group.run(mix, entries / 10);
    Box::new(move || group.run(mix, entries))
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    let clock = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Duration::from(clock.expect("every Linux has this clock"))
}

fn measure(subjects: &[&Subject], mix: Mix, options: &Options) -> Vec<Row> {
    let entries = options.entries;
    let mut seconds = vec![Vec::new(); subjects.len()];
    for _ in 0..options.turns {
        for (at, subject) in subjects.iter().enumerate() {
            let work = (subject.prepare)(mix, entries);
            let begun = thread_time();
            work();
            seconds[at].push((thread_time() - begun).as_secs_f64());
        }
    }
    let rows = subjects.iter().zip(seconds).map(|(subject, mut seconds)| {
        seconds.sort_by(f64::total_cmp);
        let allocations = memory::allocations_of((subject.prepare)(mix, entries));
        let per_entry = allocations as f64 / entries as f64;
        Row {
            name: subject.name,
            batch: mix.batch,
            in_flight: mix.in_flight,
            payload_bytes: PAYLOAD_BYTES,
            nodes: PEERS.len(),
            entries,
            entries_per_second: entries as f64 / seconds[seconds.len() / 2],
            allocations_per_entry: per_entry,
            allocations_per_batch: per_entry * mix.batch as f64,
        }
    });
    rows.collect()
}

fn main() {
    let options = Options::parse();
    let wanted = |subject: &&Subject| subject.name.contains(&options.only);
    let subjects: Vec<&Subject> = SUBJECTS.iter().filter(wanted).collect();
    println!("proposals  in flight  crate                 entries/s  allocations/entry  /batch");
    for mix in MIXES {
        if options.batch.is_some_and(|batch| batch != mix.batch) {
            continue;
        }
        let rows = measure(&subjects, mix, &options);
        for row in &rows {
            println!(
                "{:>9}  {:>9}  {:<20} {:>10.0}  {:>17.2}  {:>6.1}",
                row.batch,
                row.in_flight,
                row.name,
                row.entries_per_second,
                row.allocations_per_entry,
                row.allocations_per_batch
            );
        }
        for row in &rows {
            println!("{}", serde_json::to_string(row).expect("plain numbers"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run asserts that all replicas have applied all entries, in one order.
    #[test]
    fn every_crate_applies_what_is_proposed_in_every_mix() {
        for subject in &SUBJECTS {
            for mix in MIXES {
                (subject.prepare)(mix, 5000)();
            }
        }
    }

    /// The two appends of a batch take a vector each, and each replica reads what it applies
    /// into one. A queue of messages may grow now and then.
    #[test]
    fn our_crate_allocates_for_a_batch_and_not_for_its_entries() {
        let entries = 6400;
        for mix in MIXES {
            let work = (SUBJECTS[0].prepare)(mix, entries);
            let batches = entries / mix.batch;
            let allocations = memory::allocations_of(work);
            let allowed = 5 * batches + 100;
            assert!(
                allocations <= allowed,
                "{allocations} in {batches} batches of {mix:?}"
            );
        }
    }

    #[test]
    fn allocations_are_counted_where_work_is_measured_only() {
        let allocations = memory::allocations_of(|| {
            let mut grown = std::hint::black_box(Vec::<u8>::with_capacity(10));
            grown.reserve_exact(1000);
            drop(std::hint::black_box(grown));
        });
        assert_eq!(allocations, 2);
    }
}
