//! The text form of a history: one JSON object a line.
//!
//! The first line names format and version, the last one the number of operations:
//!
//! ```text
//! {"format":"strata-history","version":2}
//! {"client":1,"invoked":1,"returned":4,"at":[20,35],"keys":[{"key":"a","action":"put","value":"1","outcome":"done"}]}
//! {"client":2,"invoked":2,"returned":3,"at":[21,30],"keys":[{"key":"a","action":"get","outcome":{"value":null}}]}
//! {"client":1,"invoked":5,"at":[40],"keys":[{"key":"a","action":"cas","expected":"1","new":"2"}]}
//! {"operations":3}
//! ```
//!
//! Every other line is an operation. `invoked` and `returned` are places in the order of
//! events, each used once. Without `returned` the operation was not finished: it counts as
//! maybe done, and its keys have no outcome. `at` is for display. Actions are `get`, `put`
//! and `append` (with `value`), `delete`, and `cas` (with `expected` and `new`). Outcomes
//! are `"done"` for a write, `{"value":V}` for a read, `{"swapped":BOOL}` with `"previous":V`
//! where it was told for a compare-and-swap. A key or value is a string, or
//! `{"hex":"00ff"}` where it is no UTF-8; an absent value is `null`.
//!
//! Reading checks everything that the checkers rely on, and names the line that is wrong. A
//! text that was cut is refused, also one cut at the end of a line: what is missing may be
//! what violates. Blank lines at the end are no lines.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Action, History, Operation, Outcome, Touch};

/// Version of the text form. Version 1 had no closing line.
pub const TEXT_VERSION: u64 = 2;

const FORMAT: &str = "strata-history";

/// Why a text is not a history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The first line does not say that this is a history.
    #[error(
        "not a history: the first line must be \
         {{\"format\":\"strata-history\",\"version\":{TEXT_VERSION}}}"
    )]
    NotAHistory,
    /// Written by another version.
    #[error("the history has version {found}; this program reads version {TEXT_VERSION}")]
    Version {
        /// The version that the first line names.
        found: u64,
    },
    /// It ends before its closing line.
    #[error("the history is cut short behind {operations} operations: its closing line is missing")]
    CutShort {
        /// Whole operations that are there.
        operations: usize,
    },
    /// Operations are missing, or too many.
    #[error(
        "the history is damaged: it holds {operations} operations, and its closing line says {said}"
    )]
    Count {
        /// Operations that are there.
        operations: usize,
        /// What the closing line says.
        said: u64,
    },
    /// A line cannot be used.
    #[error("line {line} is damaged: {what}")]
    Damaged {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

impl History {
    /// The text form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", json!({"format": FORMAT, "version": TEXT_VERSION}));
        for operation in self.operations() {
            let _ = writeln!(text, "{}", operation_to_json(operation));
        }
        let _ = writeln!(text, "{}", json!({"operations": self.len()}));
        text
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn from_text(text: &str) -> Result<History, TextError> {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let (header, lines) = lines.split_first().ok_or(TextError::NotAHistory)?;
        let header: Value = serde_json::from_str(header).map_err(|_| TextError::NotAHistory)?;
        if header.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(TextError::NotAHistory);
        }
        match header.get("version").and_then(Value::as_u64) {
            Some(TEXT_VERSION) => {}
            Some(found) => return Err(TextError::Version { found }),
            None => return Err(TextError::NotAHistory),
        }
        let said = lines.last().and_then(|line| number_of_operations(line));
        let lines = &lines[..lines.len() - usize::from(said.is_some())];
        let mut history = History::new();
        let mut places = BTreeSet::new();
        for (place, line) in lines.iter().enumerate() {
            let damaged = |what| TextError::Damaged {
                line: place + 2,
                what,
            };
            let operation = match operation_from_json(line) {
                Ok(operation) => operation,
                Err(_) if said.is_none() && place + 1 == lines.len() && is_cut(line) => break,
                Err(what) => return Err(damaged(what)),
            };
            for place in std::iter::once(operation.invoked).chain(operation.returned) {
                if !places.insert(place) {
                    return Err(damaged(format!("place {place} is used twice")));
                }
                history.next_place = history.next_place.max(place);
            }
            history.operations.insert(operation.invoked, operation);
        }
        let operations = history.len();
        match said {
            None => Err(TextError::CutShort { operations }),
            Some(said) if said != operations as u64 => Err(TextError::Count { operations, said }),
            Some(_) => Ok(history),
        }
    }
}

/// What a line says if it is a closing line.
fn number_of_operations(line: &str) -> Option<u64> {
    let value: Value = serde_json::from_str(line).ok()?;
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.get("operations")?.as_u64()
}

/// True for the beginning of a line.
fn is_cut(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_err_and(|error| error.is_eof())
}

fn operation_to_json(operation: &Operation) -> Value {
    let mut object = Map::new();
    object.insert("client".into(), operation.client.into());
    object.insert("invoked".into(), operation.invoked.into());
    if let Some(returned) = operation.returned {
        object.insert("returned".into(), returned.into());
    }
    let at: Vec<u64> = std::iter::once(operation.at.0)
        .chain(operation.at.1)
        .collect();
    object.insert("at".into(), at.into());
    let keys: Vec<Value> = operation.touches.iter().map(touch_to_json).collect();
    object.insert("keys".into(), keys.into());
    object.into()
}

fn touch_to_json(touch: &Touch) -> Value {
    let mut object = Map::new();
    object.insert("key".into(), bytes_to_json(&touch.key));
    let name = match &touch.action {
        Action::Get => "get",
        Action::Put(value) => {
            object.insert("value".into(), bytes_to_json(value));
            "put"
        }
        Action::Delete => "delete",
        Action::Append(value) => {
            object.insert("value".into(), bytes_to_json(value));
            "append"
        }
        Action::CompareAndSwap { expected, new } => {
            object.insert("expected".into(), value_to_json(expected));
            object.insert("new".into(), value_to_json(new));
            "cas"
        }
    };
    object.insert("action".into(), name.into());
    let outcome = touch.outcome.as_ref().map(|outcome| match outcome {
        Outcome::Done => json!("done"),
        Outcome::Value(value) => json!({ "value": value_to_json(value) }),
        Outcome::Swapped {
            succeeded,
            previous: None,
        } => json!({ "swapped": succeeded }),
        Outcome::Swapped {
            succeeded,
            previous: Some(previous),
        } => json!({ "swapped": succeeded, "previous": value_to_json(previous) }),
    });
    if let Some(outcome) = outcome {
        object.insert("outcome".into(), outcome);
    }
    object.into()
}

fn value_to_json(value: &Option<Bytes>) -> Value {
    value.as_ref().map_or(Value::Null, bytes_to_json)
}

fn bytes_to_json(bytes: &Bytes) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => {
            let mut hex = String::with_capacity(bytes.len() * 2);
            for byte in bytes {
                let _ = write!(hex, "{byte:02x}");
            }
            json!({ "hex": hex })
        }
    }
}

/// The fields of an object, taken one by one; what is left over is unknown.
struct Fields(Map<String, Value>);

impl Fields {
    fn of(value: Value, what: &str) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(format!("{what} is no object: {other}")),
        }
    }

    fn take(&mut self, name: &str) -> Result<Value, String> {
        self.0
            .remove(name)
            .ok_or_else(|| format!("there is no \"{name}\""))
    }

    fn number(&mut self, name: &str) -> Result<u64, String> {
        number(&self.take(name)?, name)
    }

    fn end(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("nothing is known of \"{name}\" here")),
        }
    }
}

fn number(value: &Value, name: &str) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| format!("\"{name}\" is no number: {value}"))
}

fn operation_from_json(line: &str) -> Result<Operation, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let mut fields = Fields::of(value, "the line")?;
    let client = fields.number("client")?;
    let invoked = fields.number("invoked")?;
    let returned = match fields.0.remove("returned") {
        Some(value) => Some(number(&value, "returned")?),
        None => None,
    };
    if returned.is_some_and(|returned| returned <= invoked) {
        return Err("it returned before it was invoked".into());
    }
    let at = match fields.take("at")? {
        Value::Array(times) => match &times[..] {
            [began] => (number(began, "at")?, None),
            [began, ended] => (number(began, "at")?, Some(number(ended, "at")?)),
            _ => return Err("\"at\" is not one or two numbers".into()),
        },
        other => return Err(format!("\"at\" is no list: {other}")),
    };
    let touches = match fields.take("keys")? {
        Value::Array(keys) if !keys.is_empty() => keys
            .into_iter()
            .map(|key| touch_from_json(key, returned.is_some()))
            .collect::<Result<Vec<Touch>, String>>()?,
        other => return Err(format!("\"keys\" is no list of keys: {other}")),
    };
    let distinct: BTreeSet<&Bytes> = touches.iter().map(|touch| &touch.key).collect();
    if distinct.len() < touches.len() {
        return Err("a key is named twice".into());
    }
    fields.end()?;
    Ok(Operation {
        client,
        touches,
        invoked,
        returned,
        at,
    })
}

fn touch_from_json(value: Value, answered: bool) -> Result<Touch, String> {
    let mut fields = Fields::of(value, "a key")?;
    let key = bytes_from_json(fields.take("key")?)?;
    let name = fields.take("action")?;
    let action = match name.as_str() {
        Some("get") => Action::Get,
        Some("put") => Action::Put(bytes_from_json(fields.take("value")?)?),
        Some("delete") => Action::Delete,
        Some("append") => Action::Append(bytes_from_json(fields.take("value")?)?),
        Some("cas") => Action::CompareAndSwap {
            expected: value_from_json(fields.take("expected")?)?,
            new: value_from_json(fields.take("new")?)?,
        },
        _ => return Err(format!("{name} is no action")),
    };
    let outcome = match (answered, fields.0.remove("outcome")) {
        (true, Some(outcome)) => Some(outcome_from_json(&action, outcome)?),
        (false, None) => None,
        (true, None) => return Err("the operation returned without an outcome".into()),
        (false, Some(_)) => return Err("the operation has an outcome and never returned".into()),
    };
    fields.end()?;
    Ok(Touch {
        key,
        action,
        outcome,
    })
}

fn outcome_from_json(action: &Action, value: Value) -> Result<Outcome, String> {
    if value == json!("done") {
        return match action {
            Action::Put(_) | Action::Delete | Action::Append(_) => Ok(Outcome::Done),
            Action::Get | Action::CompareAndSwap { .. } => {
                Err(format!("\"done\" is no outcome of {action}"))
            }
        };
    }
    let mut fields = Fields::of(value, "an outcome")?;
    let outcome = match action {
        Action::Get => Outcome::Value(value_from_json(fields.take("value")?)?),
        Action::CompareAndSwap { .. } => {
            let succeeded = fields.take("swapped")?;
            Outcome::Swapped {
                succeeded: succeeded
                    .as_bool()
                    .ok_or_else(|| format!("\"swapped\" is {succeeded}"))?,
                previous: match fields.0.remove("previous") {
                    Some(previous) => Some(value_from_json(previous)?),
                    None => None,
                },
            }
        }
        Action::Put(_) | Action::Delete | Action::Append(_) => {
            return Err(format!("the outcome of {action} can only be \"done\""));
        }
    };
    fields.end()?;
    Ok(outcome)
}

fn value_from_json(value: Value) -> Result<Option<Bytes>, String> {
    match value {
        Value::Null => Ok(None),
        value => bytes_from_json(value).map(Some),
    }
}

fn bytes_from_json(value: Value) -> Result<Bytes, String> {
    match value {
        Value::String(text) => Ok(text.into()),
        Value::Object(_) => {
            let mut fields = Fields::of(value, "bytes")?;
            let hex = fields.take("hex")?;
            fields.end()?;
            hex.as_str()
                .and_then(bytes_from_hex)
                .ok_or_else(|| format!("{hex} are no hexadecimal digits"))
        }
        other => Err(format!("{other} is no key or value")),
    }
}

fn bytes_from_hex(hex: &str) -> Option<Bytes> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> History {
        let mut history = History::new();
        let put = history.invoke(1, "a".into(), Action::Put("1".into()), 10);
        let swap = Action::CompareAndSwap {
            expected: None,
            new: Some(Bytes::from_static(&[0xff, 0])),
        };
        let cas = history.invoke(2, Bytes::from_static(&[0x80]), swap.clone(), 11);
        history.complete(put, Outcome::Done, 12);
        let scan = vec![("a".into(), Action::Get), ("b".into(), Action::Get)];
        let scan = history.invoke_all(3, scan, 13);
        let previous = Some(Some("x\"y".into()));
        let failed = Outcome::Swapped {
            succeeded: false,
            previous,
        };
        history.complete(cas, failed, 14);
        let seen = [Some(Bytes::from("1")), None].map(|value| Some(Outcome::Value(value)));
        history.complete_all(scan, seen.to_vec(), 15);
        history.invoke_all(
            1,
            vec![
                ("a".into(), Action::Delete),
                ("b".into(), Action::Append("z".into())),
            ],
            16,
        );
        let told_little = history.invoke(4, "c".into(), swap, 17);
        let won = Outcome::Swapped {
            succeeded: true,
            previous: None,
        };
        history.complete(told_little, won, 18);
        history
    }

    #[test]
    fn history_in_text_form_reads_back_the_same() {
        let history = sample();
        let text = history.to_text();
        assert_eq!(text.lines().count(), 2 + history.len());
        let mut read = History::from_text(&text).expect("it was just written");
        assert!(read.operations().eq(history.operations()), "{text}");
        // And goes on behind the last place.
        let next = read.invoke(1, "a".into(), Action::Get, 0);
        assert!(history.operations().all(|o| o.invoked < next.0));
        assert_eq!(read.to_text().lines().count(), text.lines().count() + 1);
    }

    #[test]
    fn history_of_another_version_or_none_is_refused() {
        let text = sample().to_text();
        for found in [1, 3] {
            let other = format!("\"version\":{found}");
            let other = text.replacen("\"version\":2", &other, 1);
            assert_eq!(
                History::from_text(&other).unwrap_err(),
                TextError::Version { found }
            );
        }
        for other in ["", "\n", "{}", "{\"format\":\"trace\",\"version\":1}", "x"] {
            let error = History::from_text(other).unwrap_err();
            assert_eq!(error, TextError::NotAHistory, "{other:?}");
        }
    }

    #[test]
    fn history_that_is_cut_short_is_refused_wherever_it_is_cut() {
        let text = sample().to_text();
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        for cut in ends[0]..ends[ends.len() - 1] {
            let operations = ends.iter().filter(|end| **end <= cut).count() - 1;
            if text.is_char_boundary(cut) {
                let error = History::from_text(&text[..cut]).unwrap_err();
                assert_eq!(
                    error,
                    TextError::CutShort { operations },
                    "{}",
                    &text[..cut]
                );
            }
        }
        for end in ["", "\n", "\n\n", "\r\n \n"] {
            let whole = [text.trim_end(), end].concat();
            let read = History::from_text(&whole).expect("blank lines are no lines");
            assert_eq!(read.len(), sample().len());
        }
        let lines: Vec<&str> = text.lines().collect();
        let said = (lines.len() - 2) as u64;
        let operations = lines.len() - 3;
        let without_one = [&lines[..2], &lines[3..]].concat().join("\n");
        assert_eq!(
            History::from_text(&without_one).unwrap_err(),
            TextError::Count { operations, said }
        );
        // What stands behind the closing line is no operation less, and none more.
        let behind = [&lines[..], &["{\"operations\":0}"]].concat().join("\n");
        assert!(matches!(
            History::from_text(&behind).unwrap_err(),
            TextError::Damaged { .. }
        ));
    }

    #[test]
    fn history_with_a_damaged_line_is_refused_with_its_number() {
        let text = sample().to_text();
        let lines: Vec<&str> = text.lines().collect();
        let with = |number: usize, line: &str| {
            let mut lines = lines.clone();
            lines[number - 1] = line;
            History::from_text(&lines.join("\n")).unwrap_err()
        };
        // Every beginning of a line but the whole is damage.
        for cut in 0..lines[2].len() {
            if !lines[2].is_char_boundary(cut) {
                continue;
            }
            let error = with(3, &lines[2][..cut]);
            assert!(
                matches!(error, TextError::Damaged { line: 3, .. }),
                "{error}"
            );
        }
        let get = |more: &str| {
            format!(
                "{{\"client\":1,\"at\":[1,2],\"keys\":[{{\"key\":\"a\",\"action\":\"get\"{more}"
            )
        };
        for (line, said) in [
            (lines[1].to_owned(), "used twice"),
            (
                get("}],\"invoked\":90,\"returned\":91}"),
                "without an outcome",
            ),
            (
                get(",\"outcome\":\"done\"}],\"invoked\":90,\"returned\":91}"),
                "no outcome of get",
            ),
            (
                get(",\"outcome\":{\"value\":1}}],\"invoked\":90,\"returned\":91}"),
                "no key or value",
            ),
            (
                get(",\"outcome\":{\"value\":{\"hex\":\"0\"}}}],\"invoked\":90,\"returned\":91}"),
                "hexadecimal",
            ),
            (
                get("}],\"invoked\":91,\"returned\":90}"),
                "before it was invoked",
            ),
            (get(",\"more\":1}],\"invoked\":90}"), "\"more\""),
            (
                get("},{\"key\":\"a\",\"action\":\"get\"}],\"invoked\":90}"),
                "twice",
            ),
            (
                "{\"client\":1,\"at\":[1],\"keys\":[],\"invoked\":90}".to_owned(),
                "list of keys",
            ),
        ] {
            let error = with(3, &line).to_string();
            assert!(
                error.starts_with("line 3 is damaged: ") && error.contains(said),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn history_with_an_unfinished_operation_counts_it_as_maybe_done() {
        let head = "{\"format\":\"strata-history\",\"version\":2}\n";
        let end = "{\"operations\":2}\n";
        let put = "{\"client\":1,\"invoked\":1,\"at\":[1],\
                   \"keys\":[{\"key\":\"a\",\"action\":\"put\",\"value\":\"1\"}]}\n";
        let get = |seen: &str| {
            format!(
                "{{\"client\":2,\"invoked\":2,\"returned\":3,\"at\":[2,3],\"keys\":\
                 [{{\"key\":\"a\",\"action\":\"get\",\"outcome\":{{\"value\":{seen}}}}}]}}\n"
            )
        };
        for (seen, good) in [("null", true), ("\"1\"", true), ("\"2\"", false)] {
            let text = [head, put, &get(seen), end].concat();
            let history = History::from_text(&text).expect("well-formed");
            assert_eq!(crate::linearizability::check(&history).is_ok(), good);
        }
    }
}
