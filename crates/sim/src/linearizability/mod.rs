//! Is there an order in which every client saw what a single register would have shown?
//!
//! Each key is a register of its own, so each key's operations are judged alone
//! (linearizability is local). The search is that of Wing and Gong with Lowe's memory of
//! configurations ("Testing for linearizability", 2017), in `search`; here are the
//! entry points and what is reported.
//!
//! An operation whose outcome is not known may be placed anywhere after its invocation or
//! left out. A key that cannot be decided within the limit of steps is an error of its
//! own and never counts as good.
//!
//! Invariant: the verdict depends on the history alone.

mod report;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{History, Operation};
pub use report::Violation;
use search::Search;

/// Configurations that are tried for one key before it counts as undecided. A step takes
/// about a microsecond.
const STEPS_MAX: u64 = 4_000_000;

/// Why a history is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No order explains what the clients saw.
    #[error("{0}")]
    NotLinearizable(Box<Violation>),
    /// The search was given up; the history should hold fewer operations whose outcome is
    /// not known.
    #[error(
        "key \"{}\": {operations} operations, {unknown} of them with unknown outcome, \
         not decided after {steps} steps", .key.escape_ascii()
    )]
    Undecided {
        /// The key.
        key: Bytes,
        /// Number of its operations.
        operations: usize,
        /// How many of them have no known outcome.
        unknown: usize,
        /// Steps that were tried.
        steps: u64,
    },
}

/// What was checked, for a closing line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Number of keys.
    pub keys: usize,
    /// Number of operations.
    pub operations: usize,
    /// Steps that the search took.
    pub steps: u64,
}

/// What the search says of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violated,
    /// Given up after the limit of steps.
    Undecided,
}

/// Checks a history over keys that hold nothing at first.
///
/// # Errors
/// The first key, in order, that is violated or cannot be decided.
pub fn check(history: &History) -> Result<Checked, Fault> {
    check_from(history, &BTreeMap::new())
}

/// Checks a history over keys that hold `initial` at first; nothing where it names no value.
///
/// # Errors
/// The first key, in order, that is violated or cannot be decided.
pub fn check_from(history: &History, initial: &BTreeMap<Bytes, Bytes>) -> Result<Checked, Fault> {
    let mut checked = Checked::default();
    for (key, operations) in history.by_key() {
        let first = initial.get(&key).cloned();
        let (verdict, steps) = check_register(&operations, first.clone(), STEPS_MAX);
        checked.keys += 1;
        checked.operations += operations.len();
        checked.steps += steps;
        match verdict {
            Verdict::Linearizable => {}
            Verdict::Violated => {
                let violation = Violation::shortest(key, &operations, first, STEPS_MAX);
                return Err(Fault::NotLinearizable(Box::new(violation)));
            }
            Verdict::Undecided => {
                let unknown = operations.iter().filter(|o| o.returned.is_none()).count();
                return Err(Fault::Undecided {
                    key,
                    operations: operations.len(),
                    unknown,
                    steps,
                });
            }
        }
    }
    Ok(checked)
}

/// Checks the operations of one register and tells how many steps that took.
#[must_use]
pub fn check_register(
    operations: &[Operation],
    initial: Option<Bytes>,
    steps_max: u64,
) -> (Verdict, u64) {
    Search::new(operations, initial, steps_max).run()
}
