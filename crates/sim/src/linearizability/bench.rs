//! Histories to measure the checker with.
//!
//! Clients work on real registers, so that every history is good: each of their operations
//! takes effect at a random time between invocation and answer. Some never get an answer;
//! of those half take effect late, half never. Time is measured by the caller: nothing here
//! knows a clock.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Checked, Fault, check};
use crate::history::{Action, History, OperationId, Outcome};

/// What a history is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchOptions {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// Number of operations.
    pub operations: usize,
    /// Number of keys.
    pub keys: usize,
    /// Operations under way at a time.
    pub clients: u64,
    /// Share of operations without an answer.
    pub unknown: f64,
    /// Share of operations that touch several keys of a group: batches, scans, removals.
    pub several: f64,
    /// Keys in a group.
    pub group: usize,
}

impl Default for BenchOptions {
    /// 100,000 operations of 16 clients on 100 keys in groups of five; of a hundred one has
    /// no answer and five touch several keys.
    fn default() -> Self {
        BenchOptions {
            seed: 1,
            operations: 100_000,
            keys: 100,
            clients: 16,
            unknown: 0.01,
            several: 0.05,
            group: 5,
        }
    }
}

/// Makes a history and checks it.
///
/// # Errors
/// As [`check`]; every history is good, so only [`Fault::Undecided`] is to be expected.
pub fn run(options: &BenchOptions) -> Result<Checked, Fault> {
    check(&history(options))
}

/// An operation under way.
struct UnderWay {
    id: OperationId,
    actions: Vec<(Bytes, Action)>,
    /// What it saw; `None`: it has not taken effect.
    outcomes: Option<Vec<Option<Outcome>>>,
    answered: bool,
}

/// A good history.
#[must_use]
pub fn history(options: &BenchOptions) -> History {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut history = History::new();
    let mut registers: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let mut clients: Vec<Option<UnderWay>> = (0..options.clients).map(|_| None).collect();
    // Without an answer, to take effect some time.
    let mut late: Vec<Vec<(Bytes, Action)>> = Vec::new();
    let mut number = 0;
    while number < options.operations || clients.iter().any(Option::is_some) {
        let client = rng.random_range(0..clients.len());
        let now = number as u64;
        match clients[client].take() {
            None if number < options.operations => {
                number += 1;
                let actions = draw(options, number, &registers, &mut rng);
                let id = history.invoke_all(client as u64 + 1, actions.clone(), now);
                clients[client] = Some(UnderWay {
                    id,
                    actions,
                    outcomes: None,
                    answered: !rng.random_bool(options.unknown),
                });
            }
            None => {}
            Some(under_way) if !under_way.answered => {
                late.extend(rng.random::<bool>().then_some(under_way.actions));
            }
            Some(mut under_way) => match under_way.outcomes {
                None => {
                    let outcomes = execute(&under_way.actions, &mut registers);
                    under_way.outcomes = Some(outcomes);
                    clients[client] = Some(under_way);
                }
                Some(outcomes) => history.complete_all(under_way.id, outcomes, now),
            },
        }
        if !late.is_empty() && rng.random_bool(0.05) {
            let actions = late.swap_remove(rng.random_range(0..late.len()));
            execute(&actions, &mut registers);
        }
    }
    history
}

fn draw(
    options: &BenchOptions,
    number: usize,
    registers: &BTreeMap<Bytes, Bytes>,
    rng: &mut ChaCha8Rng,
) -> Vec<(Bytes, Action)> {
    let name = |place: usize| Bytes::from(format!("key{place:04}"));
    let place = rng.random_range(0..options.keys);
    if options.group > 1 && rng.random_bool(options.several) {
        let first = place - place % options.group;
        let count = rng.random_range(2..=options.group);
        let keys = (first..(first + count).min(options.keys)).map(name);
        let kind = rng.random_range(0..8);
        return keys
            .enumerate()
            .map(|(place, key)| {
                let action = match kind {
                    0..4 => Action::Get,
                    4..7 => Action::Put(format!("{number}.{place};").into()),
                    _ => Action::Delete,
                };
                (key, action)
            })
            .collect();
    }
    let key = name(place);
    let value = Bytes::from(format!("{number};"));
    let action = match rng.random_range(0..20) {
        0..8 => Action::Get,
        8..14 => Action::Put(value),
        14..16 => Action::Append(value),
        16 => Action::Delete,
        _ => Action::CompareAndSwap {
            // What it holds now, or what it does not.
            expected: registers.get(&key).filter(|_| rng.random()).cloned(),
            new: Some(value),
        },
    };
    vec![(key, action)]
}

fn execute(
    actions: &[(Bytes, Action)],
    registers: &mut BTreeMap<Bytes, Bytes>,
) -> Vec<Option<Outcome>> {
    let one = |(key, action): &(Bytes, Action)| {
        let held = registers.get(key).cloned();
        let (after, outcome) = match action {
            Action::Get => (held.clone(), Outcome::Value(held)),
            Action::Put(value) => (Some(value.clone()), Outcome::Done),
            Action::Delete => (None, Outcome::Done),
            Action::Append(tail) => {
                let held = held.unwrap_or_default();
                (Some([&held[..], tail].concat().into()), Outcome::Done)
            }
            Action::CompareAndSwap { expected, new } => {
                let succeeded = held == *expected;
                let after = if succeeded { new.clone() } else { held.clone() };
                let previous = Some(held);
                (
                    after,
                    Outcome::Swapped {
                        succeeded,
                        previous,
                    },
                )
            }
        };
        match after {
            Some(value) => registers.insert(key.clone(), value),
            None => registers.remove(key),
        };
        Some(outcome)
    };
    actions.iter().map(one).collect()
}
