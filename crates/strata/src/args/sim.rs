//! The words of `strata sim`.

use clap::Args;
use std::ops::Range;
use std::path::PathBuf;

/// Most seeds of one run.
const SEEDS_MAX: u64 = 10_000_000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata sim                            200 clusters, with a table of what they have reached
  strata sim --seeds 0..2000            other seeds, one thread a core
  strata sim --seeds 17..18             one seed: what is wrong, the last events, the fewest faults
  strata sim --plan plan.json           a plan that a failing seed was shrunk to
  strata sim --seeds 17..18 --trace run.txt     write down every event
  strata sim --replay run.txt           does this program, on this machine, do the same?

Exit codes: 0 nothing was found; 1 something was; 2 the command line is wrong; 3 a file cannot
be read or written.")]
pub struct SimArgs {
    /// Seeds from A up to, not including, B; each decides everything about one run.
    #[arg(long, default_value = "0..200", value_name = "A..B", value_parser = seeds)]
    pub seeds: Range<u64>,
    /// Most operations of each run's clients together; as many as 28 simulated seconds allow
    /// unless given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub ops: Option<u64>,
    /// Play the plan in this file and no seeds.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "replay"])]
    pub plan: Option<PathBuf>,
    /// Write every event of the run, of one seed or a plan, into this file.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub trace: Option<PathBuf>,
    /// Play the run that this file holds the trace of, and compare.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "ops"])]
    pub replay: Option<PathBuf>,
    /// Threads, each with a run of its own; one a core unless given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
}

fn seeds(word: &str) -> Result<Range<u64>, String> {
    const FORM: &str = "write A..B with whole numbers, such as 0..200";
    let (first, end) = word.split_once("..").ok_or(FORM)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| FORM.to_owned());
    let (first, end) = (number(first)?, number(end)?);
    if first >= end {
        return Err(format!(
            "{first}..{end} holds no seed: the end must be above {first}"
        ));
    }
    if end - first > SEEDS_MAX {
        return Err(format!("at most {SEEDS_MAX} seeds"));
    }
    Ok(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_seed_ranges_are_refused() {
        assert_eq!(seeds("3..5"), Ok(3..5));
        for word in ["", "3", "3..", "..3", "a..b", "3..=5", "-1..5", "3,5"] {
            assert!(seeds(word).unwrap_err().contains("write A..B"), "{word}");
        }
        assert!(seeds("5..5").unwrap_err().contains("holds no seed"));
        assert!(seeds("9..5").unwrap_err().contains("holds no seed"));
        assert!(seeds("0..18446744073709551615").is_err());
    }
}
