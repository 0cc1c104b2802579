//! Judges whether the history of one register could have happened in some order that
//! respects real time.
//!
//! The search is Wing and Gong's with Lowe's memory of visited states: operations that
//! nobody waited for are tried one by one, and a state (which operations took effect, what
//! the register holds) is entered once. An operation whose outcome is unknown may have
//! taken effect at any time after its start, or never. Every value is written once only, so
//! a value that is seen tells which write it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What an operation did, and saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wrote a value.
    Put(u64),
    /// Read the register; `None`: it was absent.
    Get(Option<u64>),
    /// Wrote `new` because the register held `expected`.
    Swapped {
        /// What it held.
        expected: Option<u64>,
        /// What it holds then.
        new: u64,
    },
    /// Left the register as it was, because it held `held` and not what was expected.
    NotSwapped {
        /// What it held.
        held: Option<u64>,
    },
    /// A compare-and-swap whose outcome is unknown.
    MaybeSwapped {
        /// What it must hold.
        expected: Option<u64>,
        /// What it holds then.
        new: u64,
    },
}

/// One operation of a history; times are from a common start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Who issued it.
    pub client: usize,
    /// What it did.
    pub action: Action,
    /// When it was issued.
    pub start: Duration,
    /// When its answer came; `None`: the outcome is unknown.
    pub end: Option<Duration>,
}

/// The history fits no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Operations of known outcome around the first that could not be placed.
    pub stuck_at: Vec<Operation>,
}

/// The value after an action that takes effect on `held`, or `None` if it cannot.
fn step(held: Option<u64>, action: Action) -> Option<Option<u64>> {
    match action {
        Action::Put(value) => Some(Some(value)),
        Action::Get(seen) | Action::NotSwapped { held: seen } => (seen == held).then_some(held),
        Action::Swapped { expected, new } | Action::MaybeSwapped { expected, new } => {
            (expected == held).then_some(Some(new))
        }
    }
}

/// The value that an action leaves behind.
fn writes(action: Action) -> Option<u64> {
    match action {
        Action::Put(value) => Some(value),
        Action::Swapped { new, .. } | Action::MaybeSwapped { new, .. } => Some(new),
        Action::Get(_) | Action::NotSwapped { .. } => None,
    }
}

/// Which operations took effect, and what the register holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// All operations of known outcome below this place did.
    low: usize,
    /// Those at or above it that did, in order.
    above: Vec<usize>,
    /// The values of those of unknown outcome that did, in order.
    unknown: Vec<u64>,
    held: Option<u64>,
}

/// Checks the history of one register that begins absent.
///
/// # Errors
/// [`Violation`] when no order explains it.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    let mut known: Vec<Operation> = history
        .iter()
        .copied()
        .filter(|operation| operation.end.is_some())
        .collect();
    known.sort_by_key(|operation| operation.start);
    let unknown: BTreeMap<u64, Operation> = history
        .iter()
        .filter(|operation| operation.end.is_none())
        // A read without an answer says nothing.
        .filter_map(|operation| Some((writes(operation.action)?, *operation)))
        .collect();
    let mut visited = BTreeSet::new();
    let mut open = vec![State {
        low: 0,
        above: Vec::new(),
        unknown: Vec::new(),
        held: None,
    }];
    let mut farthest = 0;
    while let Some(state) = open.pop() {
        if state.low == known.len() {
            return Ok(());
        }
        farthest = farthest.max(state.low);
        successors(&known, &unknown, &state, |next| {
            if !visited.contains(&next) {
                visited.insert(next.clone());
                open.push(next);
            }
        });
    }
    let from = farthest.saturating_sub(3);
    let to = (farthest + 4).min(known.len());
    Err(Violation {
        stuck_at: known[from..to].to_vec(),
    })
}

/// Hands out each state that one more operation of known outcome leads to.
fn successors(
    known: &[Operation],
    unknown: &BTreeMap<u64, Operation>,
    state: &State,
    mut visit: impl FnMut(State),
) {
    // Whatever starts behind the first end of a waiting operation comes after it.
    let mut first_end = Duration::MAX;
    let mut candidates = Vec::new();
    for (place, operation) in known.iter().enumerate().skip(state.low) {
        if operation.start > first_end {
            break;
        }
        if state.above.binary_search(&place).is_err() {
            first_end = first_end.min(operation.end.unwrap_or(Duration::MAX));
            candidates.push(place);
        }
    }
    for place in candidates.into_iter().rev() {
        let operation = known[place];
        if operation.start > first_end {
            continue;
        }
        let mut next = state.clone();
        if let Some(needed) = needs(operation.action)
            && !reach(&mut next, needed, unknown, first_end)
        {
            continue;
        }
        let Some(held) = step(next.held, operation.action) else {
            continue;
        };
        next.held = held;
        if place == next.low {
            next.low += 1;
            while next.above.first() == Some(&next.low) {
                next.above.remove(0);
                next.low += 1;
            }
        } else if let Err(at) = next.above.binary_search(&place) {
            next.above.insert(at, place);
        }
        visit(next);
    }
}

/// What the register must hold for the action, if that matters.
fn needs(action: Action) -> Option<Option<u64>> {
    match action {
        Action::Put(_) => None,
        Action::Get(held) | Action::NotSwapped { held } => Some(held),
        Action::Swapped { expected, .. } | Action::MaybeSwapped { expected, .. } => Some(expected),
    }
}

/// Brings the register to `needed`, by operations of unknown outcome that begin in time.
/// They need no other place than just before the one that sees them: nothing between can
/// have seen them, and one that nobody sees may as well never have happened.
fn reach(
    state: &mut State,
    needed: Option<u64>,
    unknown: &BTreeMap<u64, Operation>,
    first_end: Duration,
) -> bool {
    if state.held == needed {
        return true;
    }
    let Some(value) = needed else {
        return false;
    };
    let Some(operation) = unknown.get(&value) else {
        return false;
    };
    let Err(at) = state.unknown.binary_search(&value) else {
        return false;
    };
    if operation.start > first_end {
        return false;
    }
    state.unknown.insert(at, value);
    if let Some(before) = needs(operation.action)
        && !reach(state, before, unknown, first_end)
    {
        return false;
    }
    state.held = needed;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::*;

    fn operation(action: Action, start: u64, end: Option<u64>) -> Operation {
        Operation {
            client: 0,
            action,
            start: Duration::from_millis(start),
            end: end.map(Duration::from_millis),
        }
    }

    fn fits(history: &[(Action, u64, Option<u64>)]) -> bool {
        let history: Vec<Operation> = history
            .iter()
            .map(|(action, start, end)| operation(*action, *start, *end))
            .collect();
        check(&history).is_ok()
    }

    #[test]
    fn reads_see_the_last_write() {
        assert!(fits(&[
            (Get(None), 0, Some(1)),
            (Put(1), 2, Some(3)),
            (Get(Some(1)), 4, Some(5)),
        ]));
        assert!(!fits(&[(Put(1), 0, Some(1)), (Get(None), 2, Some(3))]));
        assert!(!fits(&[
            (Put(1), 0, Some(1)),
            (Put(2), 2, Some(3)),
            (Get(Some(1)), 4, Some(5)),
        ]));
    }

    #[test]
    fn concurrent_operations_take_effect_in_any_order_but_one() {
        let racing = [(Put(1), 0, Some(10)), (Put(2), 0, Some(10))];
        let with = |first, second| {
            let mut history = racing.to_vec();
            history.push((Get(Some(first)), 11, Some(12)));
            history.push((Get(Some(second)), 13, Some(14)));
            fits(&history)
        };
        assert!(with(1, 1) && with(2, 2));
        assert!(!with(1, 2) && !with(2, 1));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never() {
        let unknown = (Put(1), 0, None);
        assert!(fits(&[unknown, (Get(None), 5, Some(6))]));
        assert!(fits(&[
            unknown,
            (Get(None), 5, Some(6)),
            (Get(Some(1)), 7, Some(8))
        ]));
        assert!(!fits(&[
            unknown,
            (Get(Some(1)), 5, Some(6)),
            (Get(None), 7, Some(8)),
        ]));
        assert!(!fits(&[(Get(Some(1)), 0, Some(1)), (Put(1), 2, None)]));
    }

    #[test]
    fn swaps_depend_on_what_was_held() {
        let swap = |expected, new| Swapped { expected, new };
        assert!(fits(&[
            (swap(None, 1), 0, Some(1)),
            (NotSwapped { held: Some(1) }, 2, Some(3)),
            (swap(Some(1), 2), 4, Some(5)),
            (Get(Some(2)), 6, Some(7)),
        ]));
        assert!(!fits(&[
            (swap(None, 1), 0, Some(10)),
            (swap(None, 2), 0, Some(10)),
        ]));
        let maybe = MaybeSwapped {
            expected: None,
            new: 7,
        };
        assert!(fits(&[(maybe, 0, None), (swap(Some(7), 8), 1, Some(2))]));
    }

    #[test]
    fn a_long_history_is_judged_quickly() {
        let mut history = Vec::new();
        for round in 0..3000u64 {
            let at = round * 10;
            history.push((Put(2 * round), at, Some(at + 9)));
            history.push((Put(2 * round + 1), at + 1, Some(at + 8)));
            if round % 100 == 0 {
                history.push((Put(1_000_000 + round), at, None));
            }
            history.push((Get(Some(2 * round)), at + 9, Some(at + 10)));
        }
        assert!(fits(&history));
        history.push((Get(Some(4)), 40_000, Some(40_001)));
        assert!(!fits(&history));
    }
}
