//! A run's events as a text, and two runs compared.
//!
//! The first line names form and version, the second is the plan as JSON; then comes a line
//! for each event, and at the end their number and hash. The plan alone makes the run, so a
//! file can be compared with the program that reads it: the first line that differs is where
//! the program, or the machine, is not what it was.

use std::fmt::Write as _;

use super::{Plan, PlanError};
use crate::trace::Trace;

/// Version of the form of a trace. One of another version is refused.
pub const TRACE_VERSION: u32 = 1;
/// What the first line of a trace begins with.
const MARK: &str = "strata sim trace, version ";

/// Why a text is not a trace that can be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The first line is another one.
    #[error("this is not a trace of `strata sim`")]
    Form,
    /// Another version of the program has written it.
    #[error("the trace is of version {found}, this program compares version {TRACE_VERSION}")]
    Version {
        /// The trace's.
        found: String,
    },
    /// Its plan cannot be played.
    #[error("the trace's plan: {0}")]
    Plan(#[from] PlanError),
}

/// Where two traces differ first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {number} is \"{found}\" here and \"{expected}\" in the file")]
pub struct Difference {
    /// Number of the event, from 1.
    pub number: usize,
    /// The line in the file; empty where it has ended.
    pub expected: String,
    /// The line of this run; empty where it has ended.
    pub found: String,
}

/// A run's trace as a text. `trace` keeps all events ([`Plan::run_traced`]).
#[must_use]
pub fn write(plan: &Plan, trace: &Trace) -> String {
    let mut text = format!("{MARK}{TRACE_VERSION}\n{}\n", plan.to_json());
    // Writing into a string cannot fail.
    let _ = writeln!(text, "{trace}");
    text
}

/// The plan of a trace, and the lines of its events.
///
/// # Errors
/// See [`TraceError`].
pub fn read(text: &str) -> Result<(Plan, Vec<&str>), TraceError> {
    let mut lines = text.lines();
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix(MARK))
        .ok_or(TraceError::Form)?;
    if version != TRACE_VERSION.to_string() {
        let found = version.chars().take(20).collect();
        return Err(TraceError::Version { found });
    }
    let plan = Plan::from_json(lines.next().unwrap_or_default())?;
    Ok((plan, lines.collect()))
}

/// Compares the events of a file with those of this program's run.
///
/// # Errors
/// The first difference.
pub fn compare(expected: &[&str], trace: &Trace) -> Result<(), Difference> {
    let text = trace.to_string();
    let found: Vec<&str> = text.lines().collect();
    let length = expected.len().max(found.len());
    let line = |lines: &[&str], at: usize| (*lines.get(at).unwrap_or(&"")).to_owned();
    match (0..length).find(|at| expected.get(*at) != found.get(*at)) {
        None => Ok(()),
        Some(at) => Err(Difference {
            number: at + 1,
            expected: line(expected, at),
            found: line(&found, at),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_compared_line_by_line() {
        let mut trace = Trace::whole();
        for number in 0..1_000 {
            trace.note(
                std::time::Duration::from_micros(number),
                "tick",
                [number, 0, 0, 0],
            );
        }
        let text = write(&Plan::draw(3), &trace);
        let (plan, events) = read(&text).expect("as written");
        assert_eq!(plan, Plan::draw(3));
        assert_eq!(events.len(), 1_001, "all events and the closing line");
        assert_eq!(compare(&events, &trace), Ok(()));
        let other = text.replacen("tick           7 ", "tock           7 ", 1);
        let (_, events) = read(&other).expect("the form is the same");
        let difference = compare(&events, &trace).expect_err("one event differs");
        assert_eq!(difference.number, 8);
    }

    #[test]
    fn traces_of_another_version_or_form_are_refused() {
        let text = write(&Plan::draw(3), &Trace::whole());
        let later = text.replacen("version 1", "version 9", 1);
        let found = "9".to_owned();
        assert_eq!(read(&later).map(|_| ()), Err(TraceError::Version { found }));
        assert_eq!(read("").map(|_| ()), Err(TraceError::Form));
        assert_eq!(read("something else").map(|_| ()), Err(TraceError::Form));
        let cut = text.lines().next().unwrap_or_default();
        assert!(matches!(read(cut), Err(TraceError::Plan(_))));
    }
}
