//! Acknowledged writes are present.
//!
//! A plain check beside the search for an order, which says at once what is missing. For
//! each key, with the value that was read when all was quiet:
//! * where only appends were done, every acknowledged piece is in the value;
//! * otherwise the value is one that some write left, and no acknowledged write began
//!   after that one was over.
//!
//! It is weaker than linearizability and never refuses what that accepts.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Action, History, Operation, Outcome};
use crate::violation::Violation;

/// Checks the final value of each key.
#[must_use]
pub fn check_acknowledged(
    history: &History,
    values: &BTreeMap<Bytes, Option<Bytes>>,
) -> Vec<Violation> {
    let by_key = history.by_key();
    values
        .iter()
        .filter_map(|(key, value)| {
            let operations = by_key.get(key)?;
            let detail = missing(operations, value.as_ref())?;
            Some(Violation::AcknowledgedWriteLost {
                key: key.clone(),
                detail,
            })
        })
        .collect()
}

fn missing(operations: &[Operation], value: Option<&Bytes>) -> Option<String> {
    let appends_only = operations
        .iter()
        .all(|o| matches!(o.first().action, Action::Append(_) | Action::Get));
    if appends_only {
        return missing_piece(operations, value);
    }
    let mixed = operations
        .iter()
        .any(|o| matches!(o.first().action, Action::Append(_)));
    if mixed {
        // What an append leaves depends on what it met; the search judges that.
        return None;
    }
    missing_value(operations, value)
}

fn missing_piece(operations: &[Operation], value: Option<&Bytes>) -> Option<String> {
    let held: &[u8] = value.map_or(&[], |value| value);
    let lost = operations
        .iter()
        .find(|operation| match &operation.first().action {
            Action::Append(piece) if operation.returned.is_some() => !held
                .windows(piece.len().max(1))
                .any(|window| window == &piece[..]),
            _ => false,
        })?;
    Some(format!(
        "{lost}; the value has {} bytes without it",
        held.len()
    ))
}

fn missing_value(operations: &[Operation], value: Option<&Bytes>) -> Option<String> {
    let last_begun = operations
        .iter()
        .filter(|operation| operation.returned.is_some() && wrote(operation).is_some())
        .max_by_key(|operation| operation.invoked)?;
    let explained = operations.iter().any(|operation| {
        let over = operation.returned.unwrap_or(u64::MAX);
        wrote(operation) == Some(value) && over >= last_begun.invoked
    });
    (!explained).then(|| {
        format!("{last_begun}; the value is {value:?}, which no write as late as this one left")
    })
}

/// What an operation left, or may have left; `None` if it changed nothing.
fn wrote(operation: &Operation) -> Option<Option<&Bytes>> {
    match &operation.first().action {
        Action::Get | Action::Append(_) => None,
        Action::Put(value) => Some(Some(value)),
        Action::Delete => Some(None),
        Action::CompareAndSwap { new, .. } => match &operation.first().outcome {
            Some(Outcome::Swapped {
                succeeded: false, ..
            }) => None,
            _ => Some(new.as_ref()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(history: &History, value: Option<&'static str>) -> usize {
        let values = BTreeMap::from([(Bytes::from("k"), value.map(Bytes::from))]);
        check_acknowledged(history, &values).len()
    }

    fn did(history: &mut History, action: Action) {
        let id = history.invoke(1, "k".into(), action, 0);
        history.complete(id, Outcome::Done, 0);
    }

    #[test]
    fn lost_pieces_and_values_are_found() {
        let mut appended = History::new();
        did(&mut appended, Action::Append("a;".into()));
        did(&mut appended, Action::Append("b;".into()));
        assert_eq!(run(&appended, Some("a;b;")), 0);
        assert_eq!(run(&appended, Some("a;")), 1);
        assert_eq!(run(&appended, None), 1);

        let mut written = History::new();
        did(&mut written, Action::Put("a".into()));
        did(&mut written, Action::Put("b".into()));
        assert_eq!(run(&written, Some("b")), 0);
        assert_eq!(run(&written, Some("a")), 1);
        assert_eq!(run(&written, None), 1);
    }

    #[test]
    fn unknown_writes_may_have_replaced_the_value() {
        let mut history = History::new();
        history.invoke(1, "k".into(), Action::Put("late".into()), 0);
        did(&mut history, Action::Put("a".into()));
        assert_eq!(run(&history, Some("late")), 0);
        assert_eq!(run(&history, Some("a")), 0);
        did(&mut history, Action::Delete);
        assert_eq!(run(&history, None), 0);
        assert_eq!(run(&history, Some("a")), 1);
    }
}
