//! A run's events as a text, and two runs compared.
//!
//! The first line names form and version, the second is the plan as JSON; then comes a line
//! for each event, and at the end their number and hash. The plan alone makes the run, so a
//! file can be compared with the program that reads it: the first line that differs is where
//! the program, or the machine, is not what it was. A file whose closing line is missing, or
//! counts other events than there are, is refused before anything is compared.

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
    /// It ends before its closing line.
    #[error("the trace is cut short behind {events} events: its closing line is missing")]
    CutShort {
        /// Whole lines of events that are there.
        events: usize,
    },
    /// Events are missing, or too many.
    #[error("the trace is damaged: it holds {events} events, and its closing line says {said}")]
    Count {
        /// Lines of events that are there.
        events: usize,
        /// What the closing line says.
        said: usize,
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
    let plan = lines.next().ok_or(TraceError::CutShort { events: 0 })?;
    let plan = Plan::from_json(plan)?;
    let lines: Vec<&str> = lines.collect();
    let events = lines.len().saturating_sub(1);
    match lines.last().and_then(|line| closing_line(line)) {
        // Without the end of its line the last event may be cut, too.
        None if text.ends_with('\n') => Err(TraceError::CutShort {
            events: lines.len(),
        }),
        None => Err(TraceError::CutShort { events }),
        Some(said) if said != events => Err(TraceError::Count { events, said }),
        Some(_) => Ok((plan, lines)),
    }
}

/// The number of events that a closing line names, as [`Trace`] writes it.
fn closing_line(line: &str) -> Option<usize> {
    let (count, hash) = line.split_once(" events, hash ")?;
    let whole = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    count.parse().ok().filter(|_| whole)
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
        let plan = text.lines().nth(1).unwrap_or_default();
        let cut = text.replacen(plan, &plan[..40], 1);
        assert!(matches!(read(&cut), Err(TraceError::Plan(_))));
    }

    #[test]
    fn traces_that_are_cut_short_are_refused_wherever_they_are_cut() {
        let mut trace = Trace::whole();
        for number in 0..20 {
            trace.note(std::time::Duration::ZERO, "tick", [number, 0, 0, 0]);
        }
        let text = write(&Plan::draw(3), &trace);
        let lines: Vec<&str> = text.lines().collect();
        // Behind the plan, at the end of every line.
        for events in 0..=20 {
            let cut = lines[..2 + events].join("\n");
            let whole = events.saturating_sub(1);
            let refused = read(&cut).map(|_| ());
            assert_eq!(refused, Err(TraceError::CutShort { events: whole }));
        }
        let cut = [&lines[..12].join("\n"), "\n"].concat();
        let refused = read(&cut).map(|_| ());
        assert_eq!(refused, Err(TraceError::CutShort { events: 10 }));
        // Within the closing line.
        for missing in 1..20 {
            let refused = read(text.trim_end().split_at(text.len() - 1 - missing).0);
            assert_eq!(
                refused.map(|_| ()),
                Err(TraceError::CutShort { events: 20 })
            );
        }
        assert_eq!(
            read(lines[0]).map(|_| ()),
            Err(TraceError::CutShort { events: 0 })
        );
        let without_one = [&lines[..7], &lines[8..]].concat().join("\n");
        assert_eq!(
            read(&without_one).map(|_| ()),
            Err(TraceError::Count {
                events: 19,
                said: 20
            })
        );
    }
}
