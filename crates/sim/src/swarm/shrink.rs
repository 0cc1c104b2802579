//! The fewest faults with which a plan still fails.
//!
//! First whole kinds of fault are left out, then halves of what is left, quarters, and so on
//! down to single strikes (Zeller's ddmin, without its complements at the end), then the run
//! is cut shorter. Every smaller plan that still fails takes the place of the one before.
//! The number of runs is limited.
//!
//! A smaller plan may fail in another way. That is as good: it is wrong all the same, and
//! easier to read.

use super::{Failure, Plan};
use crate::fault_kind::Strike;

/// What shrinking has come to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest failing run that was found.
    pub failure: Box<Failure>,
    /// Runs that it took.
    pub runs: usize,
}

/// Looks for a smaller plan that fails, with at most `runs_max` runs.
#[must_use]
pub fn shrink(failure: Box<Failure>, runs_max: usize) -> Shrunk {
    shrink_by(failure, runs_max, |plan| plan.run().err())
}

fn shrink_by(
    failure: Box<Failure>,
    runs_max: usize,
    run: impl FnMut(&Plan) -> Option<Box<Failure>>,
) -> Shrunk {
    let mut search = Search {
        best: failure,
        runs: 0,
        runs_max,
        run,
    };
    search.drop_kinds();
    search.drop_parts();
    search.shorten();
    // What came late may have been needed only for the length.
    search.drop_parts();
    Shrunk {
        failure: search.best,
        runs: search.runs,
    }
}

struct Search<R> {
    best: Box<Failure>,
    runs: usize,
    runs_max: usize,
    run: R,
}

impl<R: FnMut(&Plan) -> Option<Box<Failure>>> Search<R> {
    /// Plays a plan; true if it fails, which makes it the best.
    fn try_plan(&mut self, plan: &Plan) -> bool {
        if self.runs >= self.runs_max {
            return false;
        }
        self.runs += 1;
        match (self.run)(plan) {
            Some(failure) => {
                self.best = failure;
                true
            }
            None => false,
        }
    }

    fn try_strikes(&mut self, strikes: Vec<Strike>) -> bool {
        let plan = Plan {
            strikes,
            ..self.best.plan.clone()
        };
        self.try_plan(&plan)
    }

    fn drop_kinds(&mut self) {
        for kind in self.best.plan.kinds() {
            let mut strikes = self.best.plan.strikes.clone();
            strikes.retain(|strike| strike.kind != kind);
            self.try_strikes(strikes);
        }
    }

    fn drop_parts(&mut self) {
        let mut size = self.best.plan.strikes.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < self.best.plan.strikes.len() {
                let mut strikes = self.best.plan.strikes.clone();
                let end = (start + size).min(strikes.len());
                strikes.drain(start..end);
                // A part that can go is followed by the next at the same place.
                if !self.try_strikes(strikes) {
                    start += size;
                }
            }
            size /= 2;
        }
    }

    fn shorten(&mut self) {
        loop {
            let length_ms = self.best.plan.length_ms / 2;
            if length_ms == 0 {
                return;
            }
            let mut plan = self.best.plan.clone();
            plan.length_ms = length_ms;
            plan.strikes.retain(|strike| strike.at_ms < length_ms);
            if !self.try_plan(&plan) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::counters::Counters;
    use crate::fault_kind::FaultKind;
    use crate::trace::Trace;
    use crate::violation::Violation;

    fn failing(plan: &Plan) -> Box<Failure> {
        Box::new(Failure {
            plan: plan.clone(),
            violations: vec![Violation::NoProgress("made up".to_owned())],
            trace: Trace::new(),
            counters: Counters::default(),
            length: Duration::ZERO,
        })
    }

    fn plan_of(kinds: &[FaultKind]) -> Plan {
        let strikes = kinds.iter().zip(0..);
        let strikes = strikes.map(|(kind, place)| Strike {
            at_ms: 1_000 * place,
            kind: *kind,
            salt: place,
        });
        Plan {
            strikes: strikes.collect(),
            ..Plan::draw(1)
        }
    }

    #[test]
    fn shrinking_leaves_the_faults_that_matter() {
        let plan = plan_of(&[
            FaultKind::Kill,
            FaultKind::Partition,
            FaultKind::PowerCut,
            FaultKind::Partition,
            FaultKind::Weather,
            FaultKind::PowerCut,
            FaultKind::Kill,
        ]);
        // Fails whenever the second partition and the second power cut are there.
        let needs = |plan: &Plan| {
            let has = |salt| plan.strikes.iter().any(|strike| strike.salt == salt);
            (has(3) && has(5)).then(|| failing(plan))
        };
        let shrunk = shrink_by(failing(&plan), 200, needs);
        let left: Vec<u64> = shrunk.failure.plan.strikes.iter().map(|s| s.salt).collect();
        assert_eq!(left, [3, 5]);
        assert_eq!(
            shrunk.failure.plan.length_ms, 7_000,
            "half the length, twice"
        );
        assert!(shrunk.runs < 40, "{} runs", shrunk.runs);
    }

    #[test]
    fn shrinking_ends_at_its_limit() {
        let plan = plan_of(&[FaultKind::Kill; 20]);
        let shrunk = shrink_by(failing(&plan), 5, |_| None);
        assert_eq!(shrunk.runs, 5);
        assert_eq!(shrunk.failure.plan, plan);
    }
}
