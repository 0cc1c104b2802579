//! The shortest violating part of a history.
//!
//! If a history has an order, so has each of its beginnings, where what has not returned
//! yet is an operation of unknown outcome. So the shortest beginning without an order is
//! found by halving, and the operation that returns last in it is the one that cannot be
//! explained.

use std::fmt;

use bytes::Bytes;

use super::{Verdict, check_register};
use crate::history::Operation;

/// Operations shown of a violation; those before them are only counted.
const SHOWN_MAX: usize = 24;

/// A key whose history has no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: Bytes,
    /// The shortest beginning of its history that has no order, in the order of
    /// invocations.
    pub operations: Vec<Operation>,
    /// The operation that the rest cannot explain: the last one that returned.
    pub unexplained: Option<Operation>,
}

impl Violation {
    pub(super) fn shortest(
        key: Bytes,
        operations: &[Operation],
        initial: Option<Bytes>,
        steps_max: u64,
    ) -> Self {
        let mut places: Vec<u64> = operations
            .iter()
            .filter_map(|operation| operation.returned.as_ref().map(|(place, _)| *place))
            .collect();
        places.sort_unstable();
        // The whole history is violated; find the first return at which it is.
        let violated = |place: u64| {
            let beginning = beginning(operations, place);
            let (verdict, _) = check_register(&beginning, initial.clone(), steps_max);
            verdict == Verdict::Violated
        };
        let first = places.partition_point(|place| !violated(*place));
        let last = places
            .get(first)
            .or(places.last())
            .copied()
            .unwrap_or(u64::MAX);
        let operations = beginning(operations, last);
        let unexplained = operations
            .iter()
            .find(|operation| matches!(&operation.returned, Some((place, _)) if *place == last))
            .cloned();
        Violation {
            key,
            operations,
            unexplained,
        }
    }
}

/// The history as it was known at `place`.
fn beginning(operations: &[Operation], place: u64) -> Vec<Operation> {
    operations
        .iter()
        .filter(|operation| operation.invoked <= place)
        .map(|operation| {
            let mut operation = operation.clone();
            if operation
                .returned
                .as_ref()
                .is_some_and(|(at, _)| *at > place)
            {
                operation.returned = None;
                operation.at.1 = None;
            }
            operation
        })
        .collect()
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key \"{}\" is not linearizable; shortest violating part:",
            self.key.escape_ascii()
        )?;
        let hidden = self.operations.len().saturating_sub(SHOWN_MAX);
        if hidden > 0 {
            writeln!(f, "  ({hidden} earlier operations)")?;
        }
        for operation in &self.operations[hidden..] {
            writeln!(f, "  {operation}")?;
        }
        match &self.unexplained {
            Some(operation) => write!(f, "  not explained: {operation}"),
            None => Ok(()),
        }
    }
}
