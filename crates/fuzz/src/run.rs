//! Runs a test case under many seeds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::Mutator;

/// Number of cases of each test, in place of the test's own; for longer runs.
const CASES_VARIABLE: &str = "FUZZ_CASES";
/// The one seed to run, as a failed run has printed it.
const SEED_VARIABLE: &str = "FUZZ_SEED";

/// Runs `case` under `cases` seeds that follow from `name` alone. `FUZZ_CASES` gives another
/// number of them, `FUZZ_SEED` the one seed of a case to be repeated.
///
/// # Panics
/// As the case does; the seed is printed first. Also if a variable is not a number.
pub fn run(name: &str, cases: u64, mut case: impl FnMut(&mut Mutator)) {
    let one = |seed| {
        let mut mutator = Mutator::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut mutator)));
        if let Err(panic) = outcome {
            eprintln!("fuzz {name}: seed {seed} failed; repeat it with {SEED_VARIABLE}={seed}");
            resume_unwind(panic);
        }
    };
    seeds(name, cases).into_iter().for_each(one);
}

/// The seeds that [`run`] takes, for a test that runs its cases side by side; it names the
/// seed of a case that failed itself, as `FUZZ_SEED=...`.
///
/// # Panics
/// If a variable is not a number.
#[must_use]
pub fn seeds(name: &str, cases: u64) -> Vec<u64> {
    if let Some(seed) = number(SEED_VARIABLE) {
        return vec![seed];
    }
    let first = hash(name);
    let cases = number(CASES_VARIABLE).unwrap_or(cases);
    (0..cases).map(|case| first.wrapping_add(case)).collect()
}

/// True for the ordinary run of all cases: then a test may ask how often it got where it
/// should.
#[must_use]
pub fn is_whole_run() -> bool {
    number(SEED_VARIABLE).is_none() && number(CASES_VARIABLE).is_none()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// FNV-1a: the same on every machine and in every version.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_run_the_same_cases() {
        let cases = |name| {
            let mut seen = Vec::new();
            run(name, 20, |mutator| seen.push(mutator.bytes(b"some input")));
            seen
        };
        assert_eq!(cases("one"), cases("one"));
        assert_ne!(cases("one"), cases("other"));
    }

    #[test]
    fn a_failed_case_fails_the_test() {
        let outcome = catch_unwind(|| run("fails", 3, |_| panic!("as it should")));
        assert!(outcome.is_err());
    }
}
