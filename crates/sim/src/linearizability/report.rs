//! The shortest violating part of a history.
//!
//! Beginning  If a history has an order, so has each of its beginnings, where what has not
//!            returned yet is an operation of unknown outcome. So the shortest beginning
//!            without an order is found by halving, and the operation that returns last in
//!            it is the one that cannot be explained.
//! Keys       If a history has an order, so has what it did with some of its keys. Keys are
//!            left out as long as no order is left.
//! Operations If a history has an order, so has the rest when an operation is left out that
//!            only looked, or of which nobody can have seen anything: no answer shows it, or
//!            other writes lie between. Those are left out as long as no order is left.
//!
//! What remains is a part of the history that is wrong in itself.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use super::Verdict;
use super::component::{Component, telling};
use super::search::Search;
use crate::history::{Action, Operation, Outcome};

/// Operations shown of a violation; those before them are only counted.
const SHOWN_MAX: usize = 24;
/// Searches for something that can be left out.
const TRIES_MAX: u32 = 400;
/// Configurations that each of them may try.
const TRY_STEPS_MAX: u64 = 100_000;

/// Keys whose history has no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The keys: one, or several that operations touched together.
    pub keys: Vec<Bytes>,
    /// A shortest part of their history that has no order, in the order of invocations.
    pub operations: Vec<Operation>,
    /// The operation that the rest cannot explain: the last one that returned.
    pub unexplained: Option<Operation>,
    /// Operations on the same keys, up to that one, that are not needed to see it.
    pub left_out: usize,
}

/// Narrows a violated component.
struct Narrowing<'a> {
    initial: &'a BTreeMap<Bytes, Bytes>,
    tries: u32,
}

impl Violation {
    pub(super) fn shortest(
        component: &Component,
        initial: &BTreeMap<Bytes, Bytes>,
        steps_max: u64,
    ) -> Self {
        let mut places: Vec<u64> = component
            .operations
            .iter()
            .filter_map(|operation| operation.returned)
            .collect();
        places.sort_unstable();
        // The whole is violated; find the first return at which it is.
        let violated = |place: u64| {
            let beginning = beginning(component, place);
            let (verdict, _) = Search::new(&beginning, initial, steps_max).run();
            verdict == Verdict::Violated
        };
        let first = places.partition_point(|place| !violated(*place));
        let last = places.get(first).or(places.last()).copied();
        let last = last.unwrap_or(u64::MAX);
        let beginning = beginning(component, last);
        let mut narrowing = Narrowing { initial, tries: 0 };
        let fewer_keys = narrowing.drop_keys(beginning.clone());
        let on_keys = fewer_keys.operations.len();
        let narrow = narrowing.drop_operations(fewer_keys);
        let unexplained = narrow
            .operations
            .iter()
            .find(|operation| operation.returned == Some(last))
            .cloned();
        Violation {
            left_out: on_keys - narrow.operations.len(),
            keys: narrow.keys,
            operations: narrow.operations,
            unexplained,
        }
    }
}

impl Narrowing<'_> {
    fn is_violated(&mut self, component: &Component) -> bool {
        self.tries += 1;
        self.tries <= TRIES_MAX
            && Search::new(component, self.initial, TRY_STEPS_MAX).run().0 == Verdict::Violated
    }

    fn drop_keys(&mut self, mut component: Component) -> Component {
        for key in component.keys.clone() {
            if component.keys.len() == 1 {
                break;
            }
            let fewer = component.narrowed(|other| *other != key);
            if self.is_violated(&fewer) {
                component = fewer;
            }
        }
        component
    }

    /// Leaves out halves, quarters and so on of what may be left out, then single ones.
    fn drop_operations(&mut self, mut component: Component) -> Component {
        let mut length = component.operations.len();
        while length > 0 {
            let mut from = 0;
            while from < component.operations.len() {
                let seen = Seen::of(&component);
                let mut place = 0;
                let mut fewer = component.clone();
                fewer.operations.retain(|operation| {
                    let here = (from..from + length).contains(&place);
                    place += 1;
                    !here || seen.counts(operation)
                });
                if fewer.operations.len() < component.operations.len() && self.is_violated(&fewer) {
                    component = fewer;
                } else {
                    from += length;
                }
            }
            length /= 2;
        }
        component
    }
}

/// Who can have seen what of each key.
#[derive(Default)]
struct Seen {
    keys: BTreeMap<Bytes, SeenKey>,
}

#[derive(Default)]
struct SeenKey {
    /// Place of the invocation, and the value that the operation depends on; `None`: it
    /// could be any.
    observers: Vec<(u64, Option<Option<Bytes>>)>,
    /// Places of invocation and return of known writes that do not look, in this order; the
    /// return is the first one from there on.
    blind: Vec<(u64, u64)>,
    appended: bool,
}

impl Seen {
    fn of(component: &Component) -> Self {
        let mut seen = Seen::default();
        for operation in &component.operations {
            for touch in &operation.touches {
                let key = seen.keys.entry(touch.key.clone()).or_default();
                let shown = match (&touch.action, &touch.outcome) {
                    (_, Some(Outcome::Value(value))) => Some(value.clone()),
                    (_, Some(Outcome::Swapped { previous, .. })) => previous.clone(),
                    // It may have succeeded.
                    (Action::CompareAndSwap { expected, .. }, _) => Some(expected.clone()),
                    (Action::Append(_), _) => {
                        key.appended = true;
                        continue;
                    }
                    (Action::Put(_) | Action::Delete, _) => {
                        let blind = operation.returned.map(|at| (operation.invoked, at));
                        key.blind.extend(blind);
                        continue;
                    }
                    (Action::Get, _) => continue,
                };
                key.observers.push((operation.invoked, shown));
            }
        }
        for key in seen.keys.values_mut() {
            key.blind.sort_unstable();
            let mut first = u64::MAX;
            for (_, returned) in key.blind.iter_mut().rev() {
                first = first.min(*returned);
                *returned = first;
            }
        }
        seen
    }

    /// False for an operation of which nobody can have seen anything.
    fn counts(&self, operation: &Operation) -> bool {
        operation.touches.iter().any(|touch| {
            let written = match (&touch.action, &touch.outcome) {
                (Action::Get, _)
                | (
                    _,
                    Some(Outcome::Swapped {
                        succeeded: false, ..
                    }),
                ) => return false,
                (Action::Put(value) | Action::Append(value), _) => Some(value.clone()),
                (Action::Delete, _) => None,
                (Action::CompareAndSwap { new, .. }, _) => new.clone(),
            };
            let key = self.keys.get(&touch.key);
            key.is_some_and(|key| key.can_be_seen(operation, &written))
        })
    }
}

impl SeenKey {
    fn can_be_seen(&self, operation: &Operation, written: &Option<Bytes>) -> bool {
        let over = operation.returned.unwrap_or(u64::MAX);
        let behind = self.blind.partition_point(|(invoked, _)| *invoked < over);
        let hidden = self.blind.get(behind).map_or(u64::MAX, |(_, first)| *first);
        // A write of a value that an answer shows stays, for the reader's sake.
        let stays = written.as_ref().is_some_and(|written| !written.is_empty());
        self.observers.iter().any(|(invoked, value)| {
            *invoked != operation.invoked
                // Else another write lies between, whatever the order.
                && (stays || *invoked < hidden)
                && value.as_ref().is_none_or(|value| self.fits(value, written))
        })
    }

    /// True if a value can have come from what was written.
    fn fits(&self, value: &Option<Bytes>, written: &Option<Bytes>) -> bool {
        if !self.appended {
            return value == written;
        }
        let Some(written) = written.as_ref().filter(|written| !written.is_empty()) else {
            // What is seen may have grown from nothing.
            return true;
        };
        value
            .as_ref()
            .is_some_and(|value| value.windows(written.len()).any(|part| part == written))
    }
}

/// The component as it was known at `place`.
fn beginning(component: &Component, place: u64) -> Component {
    let operations = component
        .operations
        .iter()
        .filter(|operation| operation.invoked <= place)
        .filter_map(|operation| {
            let mut operation = operation.clone();
            if operation.returned.is_some_and(|at| at > place) {
                operation.returned = None;
                operation.at.1 = None;
                for touch in &mut operation.touches {
                    touch.outcome = None;
                }
            }
            telling(&operation)
        })
        .collect();
    Component {
        keys: component.keys.clone(),
        operations,
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self
            .keys
            .iter()
            .map(|key| format!("\"{}\"", key.escape_ascii()))
            .collect();
        let (what, are) = match keys.len() {
            1 => ("key", "is"),
            _ => ("keys", "are"),
        };
        writeln!(
            f,
            "{what} {} {are} not linearizable; shortest violating part:",
            keys.join(", ")
        )?;
        if self.left_out > 0 {
            writeln!(f, "  ({} operations that do not matter)", self.left_out)?;
        }
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
