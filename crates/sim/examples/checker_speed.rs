//! How long the checker of linearizability takes for a long history.
//!
//! The histories are those of [`linearizability::bench`]: 100,000 operations over 100 keys. The
//! second and the third have operations on several keys, which join their keys into one search.
//! The time is that of checking alone, on one thread.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use strata_sim::linearizability::bench::{BenchOptions, history};
use strata_sim::linearizability::check;

/// The longest that is allowed.
const ALLOWED: Duration = Duration::from_secs(10);

#[expect(
    clippy::disallowed_methods,
    reason = "an example that measures; the crate itself knows no clock"
)]
fn main() -> ExitCode {
    let mixes = [(0.0, 1), (0.05, 5), (0.2, 10)];
    let mut slow = false;
    println!("operations  keys  on several keys       parts  seconds");
    for (several, group) in mixes {
        let options = BenchOptions {
            several,
            group,
            ..BenchOptions::default()
        };
        let history = history(&options);
        let begun = Instant::now();
        let checked = check(&history);
        let took = begun.elapsed();
        match checked {
            Ok(checked) => println!(
                "{:>10}  {:>4}  {:>3.0} % in groups of {group:<4} {:>5}  {:>7.2}",
                options.operations,
                options.keys,
                several * 100.0,
                checked.components,
                took.as_secs_f64()
            ),
            Err(fault) => {
                eprintln!("a good history is refused: {fault}");
                return ExitCode::FAILURE;
            }
        }
        slow |= took > ALLOWED;
    }
    if slow {
        eprintln!("the checker took longer than {} s", ALLOWED.as_secs());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
