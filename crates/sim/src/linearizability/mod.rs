//! Is there an order in which every client saw what a plain map of keys would have shown?
//!
//! Each key is a register of its own, so what touches single keys is judged key by key
//! (linearizability is local). An operation that touches several keys in one atomic step
//! joins them: their operations are judged together, over a joint state.
//!
//! Split     The connected components of keys, in `component`.
//! Search    That of Wing and Gong with Lowe's memory of configurations ("Testing for
//!           linearizability", 2017), in `search`, over what `compiled` makes of the
//!           operations, with what `future` says of the values that are still to be seen.
//! Report    The shortest part that is wrong, in `report`.
//!
//! An operation whose outcome is not known may be placed anywhere after its invocation or
//! left out. Keys that cannot be decided within the limit of steps are an error of their
//! own and never count as good.
//!
//! Invariant: the verdict depends on the history alone.

pub mod bench;
mod compiled;
mod component;
mod future;
mod report;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{History, Operation};
use component::{Component, components, components_of, telling};
pub use report::Violation;
use search::Search;

/// Configurations that are tried for one component before it counts as undecided. A step
/// takes one or two microseconds.
const STEPS_MAX: u64 = 2_000_000;

/// Why a history is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No order explains what the clients saw.
    #[error("{0}")]
    NotLinearizable(Box<Violation>),
    /// The search was given up; the history should hold fewer operations whose outcome is
    /// not known.
    #[error(
        "key \"{}\"{}: {operations} operations, {unknown} of them with unknown outcome, \
         not decided after {steps} steps",
        .keys[0].escape_ascii(),
        if .keys.len() > 1 { format!(" and {} more", .keys.len() - 1) } else { String::new() }
    )]
    Undecided {
        /// The keys, which operations touched together.
        keys: Vec<Bytes>,
        /// Number of their operations.
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
    /// Number of parts that were judged alone: keys, or keys that operations join.
    pub components: usize,
    /// Number of operations.
    pub operations: usize,
    /// Steps that the search took.
    pub steps: u64,
}

/// What the search says of a component.
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
/// The first keys, in order, that are violated; else the first that cannot be decided.
pub fn check(history: &History) -> Result<Checked, Fault> {
    check_from(history, &BTreeMap::new())
}

/// Checks a history over keys that hold `initial` at first; nothing where it names no value.
///
/// # Errors
/// The first keys, in order, that are violated; else the first that cannot be decided.
pub fn check_from(history: &History, initial: &BTreeMap<Bytes, Bytes>) -> Result<Checked, Fault> {
    let mut checked = Checked {
        operations: history.len(),
        ..Checked::default()
    };
    let mut undecided = None;
    for component in components(history) {
        checked.keys += component.keys.len();
        checked.components += 1;
        let (verdict, steps) = judge(&component, initial, STEPS_MAX);
        checked.steps += steps;
        match verdict {
            Ok(Verdict::Linearizable) => {}
            Ok(Verdict::Violated) => {
                return Err(violated(&component, initial));
            }
            Ok(Verdict::Undecided) => {
                undecided.get_or_insert_with(|| Fault::Undecided {
                    operations: component.operations.len(),
                    unknown: component.unknown(),
                    keys: component.keys,
                    steps,
                });
            }
            Err(key) => {
                let alone = component.narrowed(|other| *other == key);
                return Err(violated(&alone, initial));
            }
        }
    }
    undecided.map_or(Ok(checked), Err)
}

fn violated(component: &Component, initial: &BTreeMap<Bytes, Bytes>) -> Fault {
    let violation = Violation::shortest(component, initial, STEPS_MAX);
    Fault::NotLinearizable(Box::new(violation))
}

/// The verdict on a component, or a key of it that is violated by itself. Each key has an
/// order if the component has one, and is quicker to search.
fn judge(
    component: &Component,
    initial: &BTreeMap<Bytes, Bytes>,
    steps_max: u64,
) -> (Result<Verdict, Bytes>, u64) {
    let mut steps = 0;
    if component.keys.len() > 1 {
        for key in &component.keys {
            let alone = component.narrowed(|other| other == key);
            let (verdict, taken) = Search::new(&alone, initial, steps_max).run();
            steps += taken;
            if verdict == Verdict::Violated {
                return (Err(key.clone()), steps);
            }
        }
    }
    let (verdict, taken) = Search::new(component, initial, steps_max).run();
    (Ok(verdict), steps + taken)
}

/// Checks operations, given in the order of their invocations, and tells how many steps that
/// took. The worst verdict over the components.
#[must_use]
pub fn check_operations(
    operations: &[Operation],
    initial: &BTreeMap<Bytes, Bytes>,
    steps_max: u64,
) -> (Verdict, u64) {
    let telling = operations.iter().filter_map(telling).collect();
    let mut worst = Verdict::Linearizable;
    let mut steps = 0;
    for component in components_of(telling) {
        let (verdict, taken) = Search::new(&component, initial, steps_max).run();
        steps += taken;
        match (verdict, worst) {
            (Verdict::Violated, _) => return (verdict, steps),
            (Verdict::Undecided, _) => worst = verdict,
            (Verdict::Linearizable, _) => {}
        }
    }
    (worst, steps)
}
