//! What a check has come to: printed for people or programs, and as an exit code.
//!
//! Whatever was found comes first: a violation counts also when the cluster could not be
//! reached at the end. Then what was not decided, then what could not be looked at.

use super::leaders::Leaders;
use super::replicas::Compared;
use crate::args::Format;
use crate::exit::{Failure, Outcome};
use crate::output;
use serde_json::{Value, json};
use std::time::Duration;
use strata_sim::history::History;
use strata_sim::linearizability::{Checked, Fault, Violation};

/// A history with its verdict.
pub struct Report {
    pub history: History,
    pub verdict: Result<Checked, Fault>,
    /// How long the search took.
    pub took: Duration,
    /// `None` for a history from a file.
    pub live: Option<Live>,
}

/// What was seen of the cluster itself.
pub struct Live {
    pub clients: u64,
    pub seconds: u64,
    /// Regions that were worked on.
    pub regions: usize,
    pub leaders: Leaders,
    pub compared: Compared,
    /// The ranges of regions are known to have changed.
    pub ranges_changed: bool,
}

impl Report {
    /// True for a violation that would be none if regions had changed their ranges: then a
    /// step over several keys was none. What one key shows does not depend on that.
    pub fn depends_on_ranges(&self) -> bool {
        self.violation().is_some_and(|found| found.keys.len() > 1)
    }

    fn violation(&self) -> Option<&Violation> {
        match &self.verdict {
            Err(Fault::NotLinearizable(violation)) => Some(violation),
            _ => None,
        }
    }

    fn ranges_changed(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.ranges_changed)
    }

    fn unknown(&self) -> usize {
        let operations = self.history.operations();
        operations.filter(|o| o.returned.is_none()).count()
    }

    fn answered(&self) -> usize {
        self.history.len() - self.unknown()
    }

    /// What was found beside the history, a line each.
    fn violations(&self) -> Vec<String> {
        let Some(live) = &self.live else {
            return Vec::new();
        };
        let mut lines = live.leaders.violations();
        lines.extend(live.compared.violations.iter().cloned());
        lines
    }

    fn word(&self) -> &'static str {
        match &self.verdict {
            Ok(_) => "linearizable",
            Err(Fault::NotLinearizable(_)) if !self.ranges_changed() => "not linearizable",
            Err(_) => "not decided",
        }
    }

    /// Prints everything, and ends as the finding says.
    pub fn finish(self, format: Format) -> Outcome {
        if self.answered() > 0 || self.live.is_none() {
            output::print(format, &self.to_json(), || self.to_text())?;
        }
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        if self.word() == "not linearizable" || !self.violations().is_empty() {
            return Err(Failure::Silent(1));
        }
        if self.ranges_changed() {
            return Err(Failure::error(
                "the ranges of regions changed meanwhile, so that batches and scans were not one \
                 step each; run it again",
            ));
        }
        if self.verdict.is_err() {
            return Err(Failure::error(
                "the history was not decided: take fewer clients, or a shorter run",
            ));
        }
        let Some(live) = &self.live else {
            return Ok(());
        };
        if self.answered() == 0 {
            return Err(Failure::error(
                "no operation was answered; see `strata status`, and run it again",
            ));
        }
        match live.compared.not_compared.first() {
            None => Ok(()),
            Some(reason) => Err(Failure::error(format!(
                "the history is linearizable, but the replicas of {} could not be compared \
                 ({reason}); see `strata status`",
                output::count(live.compared.not_compared.len() as u64, "region"),
            ))),
        }
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "operations": self.history.len(),
            "answered": self.answered(),
            "unknown": self.unknown(),
            "keys": self.history.keys().len(),
            "verdict": self.word(),
            "checked_ms": self.took.as_millis() as u64,
        });
        if let Some(violation) = self.violation() {
            let shown = |bytes: &bytes::Bytes| bytes.escape_ascii().to_string();
            let operations = violation.operations.iter().map(ToString::to_string);
            object["violation"] = json!({
                "keys": violation.keys.iter().map(shown).collect::<Vec<_>>(),
                "operations": operations.collect::<Vec<_>>(),
                "not_explained": violation.unexplained.as_ref().map(ToString::to_string),
            });
        }
        if let Some(live) = &self.live {
            object["regions"] = live.regions.into();
            object["clients"] = live.clients.into();
            object["seconds"] = live.seconds.into();
            object["ranges_changed"] = live.ranges_changed.into();
            object["leader_terms"] = live.leaders.terms().into();
            object["replicas"] = json!({
                "regions_equal": live.compared.equal,
                "regions_equal_as_a_whole": live.compared.whole,
                "not_compared": live.compared.not_compared,
                "silent": live.compared.silent,
            });
            object["violations"] = self.violations().into();
        }
        object
    }

    fn to_text(&self) -> String {
        let mut counted = format!(
            "{} ({} answered, {} of unknown outcome) on {}",
            output::count(self.history.len() as u64, "operation"),
            self.answered(),
            self.unknown(),
            output::count(self.history.keys().len() as u64, "key"),
        );
        if let Some(live) = &self.live {
            counted += &format!(" in {}", output::count(live.regions as u64, "region"));
        }
        let mut lines = vec![counted];
        if let Some(live) = &self.live {
            lines.extend(live.lines());
        }
        lines.extend(self.violations());
        lines.push(match &self.verdict {
            Ok(checked) => format!(
                "linearizable: an order was found in {} ms ({} steps)",
                self.took.as_millis(),
                checked.steps
            ),
            Err(fault) => format!("{}: {fault}", self.word()),
        });
        lines.join("\n")
    }
}

impl Live {
    /// What was looked at, and what could not be.
    fn lines(&self) -> Vec<String> {
        let compared = &self.compared;
        let mut lines = vec![
            format!(
                "leaders seen in {}",
                output::count(self.leaders.terms() as u64, "term")
            ),
            format!(
                "replicas equal in {} of {} ({} as a whole)",
                compared.equal,
                output::count(self.regions as u64, "region"),
                compared.whole
            ),
        ];
        // One line a store: it has replicas of many regions.
        let mut silent = compared.silent.clone();
        silent.sort();
        silent.dedup();
        lines.extend(silent.iter().map(|why| format!("not asked: {why}")));
        let not_compared = compared.not_compared.iter();
        lines.extend(not_compared.map(|why| format!("not compared: {why}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use strata_sim::history::{Action, Outcome as Told};
    use strata_sim::linearizability;

    fn live() -> Option<Live> {
        Some(Live {
            clients: 1,
            seconds: 1,
            regions: 1,
            leaders: Leaders::default(),
            compared: Compared {
                equal: 1,
                whole: 1,
                ..Compared::default()
            },
            ranges_changed: false,
        })
    }

    /// A put of `keys` in one step, and a read of all that saw the first key only.
    fn report(keys: &[&'static str]) -> Report {
        let mut history = History::new();
        let all = |action: &dyn Fn() -> Action| {
            let keys = keys.iter().map(|key| (Bytes::from(*key), action()));
            keys.collect::<Vec<_>>()
        };
        let put = history.invoke_all(1, all(&|| Action::Put("1".into())), 1);
        history.complete_all(put, vec![Some(Told::Done); keys.len()], 2);
        let get = history.invoke_all(2, all(&|| Action::Get), 3);
        let mut seen = vec![Some(Told::Value(None)); keys.len()];
        seen[0] = Some(Told::Value(Some("1".into())));
        history.complete_all(get, seen, 4);
        Report {
            verdict: linearizability::check(&history),
            history,
            took: Duration::ZERO,
            live: live(),
        }
    }

    fn code(outcome: Outcome) -> u8 {
        match outcome {
            Ok(()) => 0,
            Err(Failure::Silent(code)) => code,
            Err(Failure::No(_)) => 1,
            Err(Failure::CommandLine(_)) => 2,
            Err(Failure::Error(_)) => 3,
        }
    }

    fn unreachable(live: &mut Live) {
        live.compared.equal = 0;
        live.compared.not_compared = vec!["region 2: refused".into()];
    }

    #[test]
    fn a_violation_wins_over_an_unreachable_cluster() {
        let mut good = report(&["a"]);
        assert_eq!(code(good.outcome()), 0);
        unreachable(good.live.as_mut().expect("a live one"));
        assert_eq!(code(good.outcome()), 3);
        assert!(good.to_text().contains("not compared: region 2: refused"));
        assert!(good.to_text().ends_with("steps)"), "{}", good.to_text());

        let mut bad = report(&["a", "b"]);
        assert_eq!(code(bad.outcome()), 1);
        unreachable(bad.live.as_mut().expect("a live one"));
        assert_eq!(code(bad.outcome()), 1);
        assert_eq!(bad.to_json()["verdict"], "not linearizable");
    }

    #[test]
    fn replicas_that_differ_are_a_violation_of_a_linearizable_history() {
        let mut report = report(&["a"]);
        let live = report.live.as_mut().expect("a live one");
        let line = "region 2: replicas differ: store 1 holds more";
        live.compared.violations.push(line.into());
        assert_eq!(code(report.outcome()), 1);
        assert!(report.to_text().contains(line));
        assert_eq!(report.to_json()["violations"], json!([line]));
        assert_eq!(report.to_json()["verdict"], "linearizable");
    }

    #[test]
    fn ranges_that_changed_excuse_steps_over_several_keys_and_nothing_else() {
        // A read sees half of a step that is under way: each key alone has an order.
        let mut history = History::new();
        let all = |action: fn() -> Action| ["a", "b"].map(|key| (Bytes::from(key), action()));
        let put = history.invoke_all(1, all(|| Action::Put("1".into())).to_vec(), 1);
        let get = history.invoke_all(2, all(|| Action::Get).to_vec(), 2);
        let seen = [Some("1"), None].map(|value| Some(Told::Value(value.map(Bytes::from))));
        history.complete_all(get, seen.to_vec(), 3);
        history.complete_all(put, vec![Some(Told::Done); 2], 4);
        let mut report = Report {
            verdict: linearizability::check(&history),
            history,
            took: Duration::ZERO,
            live: live(),
        };
        assert!(report.depends_on_ranges());
        assert_eq!(code(report.outcome()), 1);
        report.live.as_mut().expect("a live one").ranges_changed = true;
        assert_eq!(code(report.outcome()), 3);
        assert_eq!(report.to_json()["verdict"], "not decided");
    }

    #[test]
    fn one_key_depends_on_no_ranges() {
        let mut history = History::new();
        let get = history.invoke(1, "a".into(), Action::Get, 1);
        history.complete(get, Told::Value(Some("never written".into())), 2);
        let report = Report {
            verdict: linearizability::check(&history),
            history,
            took: Duration::ZERO,
            live: live(),
        };
        assert!(!report.depends_on_ranges());
        assert_eq!(code(report.outcome()), 1);
    }

    #[test]
    fn nothing_answered_is_no_verdict() {
        let mut history = History::new();
        history.invoke(1, "a".into(), Action::Put("1".into()), 1);
        let report = Report {
            verdict: linearizability::check(&history),
            history,
            took: Duration::ZERO,
            live: live(),
        };
        assert_eq!(code(report.outcome()), 3);
    }
}
