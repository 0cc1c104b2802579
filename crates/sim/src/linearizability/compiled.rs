//! Operations in the form in which the search tries them: keys, values and whole states as
//! numbers, and for each touch what it needs and what it leaves.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Action, Operation, Outcome, Touch};

/// Number of a value in [`Values`].
pub(super) type ValueId = u32;
/// Number of a state in [`States`].
pub(super) type StateId = u32;

/// The number of "there is no value".
pub(super) const ABSENT: ValueId = 0;

/// What the client's answer says of the value before the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Nothing.
    Any,
    /// It was this one.
    Equals(ValueId),
    /// It was not this one.
    Differs(ValueId),
    /// No value explains the answer.
    Never,
}

/// What an operation makes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// It stays.
    Keep,
    /// It becomes this one.
    Set(ValueId),
    /// These bytes are appended.
    Append(ValueId),
    /// It becomes `new` if it is `expected`; of an operation without an answer.
    Swap {
        /// What it must be.
        expected: ValueId,
        /// What it becomes then.
        new: ValueId,
    },
}

/// What an item does with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    /// Place of the key in its component.
    pub key: usize,
    /// What it needs.
    pub need: Need,
    /// What it leaves.
    pub effect: Effect,
}

/// An operation as the search knows it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// One for each key, in the order of keys.
    pub steps: Vec<Step>,
    /// Place of the invocation.
    pub invoked: u64,
    /// The place before which it took effect; `None`: it may have, at any time.
    pub returned: Option<u64>,
}

impl Step {
    /// True if it writes whatever was there.
    pub fn is_blind(&self) -> bool {
        self.need == Need::Any && matches!(self.effect, Effect::Set(_))
    }
}

impl Item {
    /// True if it changes nothing, wherever it is placed.
    pub fn only_looks(&self) -> bool {
        self.steps.iter().all(|step| step.effect == Effect::Keep)
    }

    /// True if it touches a key that `other` touches.
    pub fn meets(&self, other: &Item) -> bool {
        self.steps
            .iter()
            .any(|step| other.step_on(step.key).is_some())
    }

    /// True if it overwrites unseen all that `other` writes.
    pub fn hides(&self, other: &Item) -> bool {
        other
            .steps
            .iter()
            .all(|step| self.step_on(step.key).is_some_and(Step::is_blind))
    }

    pub fn step_on(&self, key: usize) -> Option<&Step> {
        let place = self.steps.binary_search_by_key(&key, |step| step.key);
        place.ok().map(|place| &self.steps[place])
    }

    pub fn new(operation: &Operation, keys: &[Bytes], values: &mut Values) -> Self {
        let alone = operation.touches.len() == 1;
        let mut steps: Vec<Step> = operation
            .touches
            .iter()
            .map(|touch| Step::new(touch, keys, alone, values))
            .collect();
        steps.sort_unstable();
        Item {
            steps,
            invoked: operation.invoked,
            returned: operation.returned,
        }
    }
}

impl Step {
    fn new(touch: &Touch, keys: &[Bytes], alone: bool, values: &mut Values) -> Self {
        let key = keys
            .binary_search(&touch.key)
            .unwrap_or_else(|_| panic!("{:?} is no key of the component", touch.key));
        let (need, effect) = match (&touch.action, &touch.outcome) {
            (Action::Get, Some(Outcome::Value(value))) => {
                (Need::Equals(values.id_of(value.clone())), Effect::Keep)
            }
            (Action::Get, _) => (Need::Any, Effect::Keep),
            (Action::Put(value), _) => {
                let value = values.id_of(Some(value.clone()));
                (Need::Any, Effect::Set(value))
            }
            (Action::Delete, _) => (Need::Any, Effect::Set(ABSENT)),
            (Action::Append(tail), _) => {
                let tail = values.id_of(Some(tail.clone()));
                (Need::Any, Effect::Append(tail))
            }
            (Action::CompareAndSwap { expected, new }, outcome) => {
                let expected = values.id_of(expected.clone());
                let new = values.id_of(new.clone());
                swap(expected, new, outcome.as_ref(), alone, values)
            }
        };
        Step { key, need, effect }
    }
}

fn swap(
    expected: ValueId,
    new: ValueId,
    outcome: Option<&Outcome>,
    alone: bool,
    values: &mut Values,
) -> (Need, Effect) {
    let Some(Outcome::Swapped {
        succeeded,
        previous,
    }) = outcome
    else {
        // Where it does not succeed it changes nothing, and may as well be left out.
        return if alone {
            (Need::Equals(expected), Effect::Set(new))
        } else {
            (Need::Any, Effect::Swap { expected, new })
        };
    };
    let previous = previous.clone().map(|value| values.id_of(value));
    match (succeeded, previous) {
        (true, Some(previous)) if previous != expected => (Need::Never, Effect::Keep),
        (true, _) => (Need::Equals(expected), Effect::Set(new)),
        (false, Some(previous)) if previous == expected => (Need::Never, Effect::Keep),
        (false, Some(previous)) => (Need::Equals(previous), Effect::Keep),
        (false, None) => (Need::Differs(expected), Effect::Keep),
    }
}

/// The values of a component, numbered, and what appends make of them.
#[derive(Debug)]
pub(super) struct Values {
    values: Vec<Option<Bytes>>,
    ids: BTreeMap<Option<Bytes>, ValueId>,
    appended: BTreeMap<(ValueId, ValueId), ValueId>,
}

impl Values {
    pub fn new() -> Self {
        Values {
            values: vec![None],
            ids: BTreeMap::from([(None, ABSENT)]),
            appended: BTreeMap::new(),
        }
    }

    pub fn id_of(&mut self, value: Option<Bytes>) -> ValueId {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let id = self.values.len() as ValueId;
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    pub fn get(&self, id: ValueId) -> Option<&Bytes> {
        self.values[id as usize].as_ref()
    }

    /// The value that a step leaves of `before`; `None` if the client would have been told
    /// something else.
    pub fn after(&mut self, before: ValueId, step: &Step) -> Option<ValueId> {
        let fits = match step.need {
            Need::Any => true,
            Need::Equals(value) => value == before,
            Need::Differs(value) => value != before,
            Need::Never => false,
        };
        if !fits {
            return None;
        }
        Some(match step.effect {
            Effect::Keep => before,
            Effect::Set(value) => value,
            Effect::Append(tail) => self.append(before, tail),
            Effect::Swap { expected, new } if expected == before => new,
            Effect::Swap { .. } => before,
        })
    }

    fn append(&mut self, before: ValueId, tail: ValueId) -> ValueId {
        if let Some(id) = self.appended.get(&(before, tail)) {
            return *id;
        }
        let parts = [self.get(before), self.get(tail)];
        let whole = parts.map(|part| part.map_or(&[][..], |part| part)).concat();
        let id = self.id_of(Some(whole.into()));
        self.appended.insert((before, tail), id);
        id
    }
}

/// States: a value for each key, numbered.
#[derive(Debug, Default)]
pub(super) struct States {
    states: Vec<Box<[ValueId]>>,
    ids: BTreeMap<Box<[ValueId]>, StateId>,
}

impl States {
    pub fn id_of(&mut self, state: &[ValueId]) -> StateId {
        if let Some(id) = self.ids.get(state) {
            return *id;
        }
        let id = self.states.len() as StateId;
        self.states.push(state.into());
        self.ids.insert(state.into(), id);
        id
    }

    pub fn get(&self, id: StateId) -> &[ValueId] {
        &self.states[id as usize]
    }
}
