//! Splits a history into parts that can be judged alone.
//!
//! Linearizability is local: what touches one key only is judged with that key's operations.
//! An operation that touches several keys joins them, so the parts are the connected
//! components of keys. An operation without an answer that cannot write says nothing and is
//! left out; so are the reads of one that writes elsewhere.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{History, Operation, Touch};

/// Keys that operations join, and everything that was done with them.
#[derive(Clone, Debug, Default)]
pub(super) struct Component {
    /// The keys in order.
    pub keys: Vec<Bytes>,
    /// The operations in the order of their invocations.
    pub operations: Vec<Operation>,
}

/// The components of a history, ordered by their first keys.
pub(super) fn components(history: &History) -> Vec<Component> {
    components_of(history.operations().filter_map(telling).collect())
}

/// The components of operations that were filtered by [`telling`], in the order of their
/// invocations.
pub(super) fn components_of(operations: Vec<Operation>) -> Vec<Component> {
    let mut numbers: BTreeMap<Bytes, usize> = BTreeMap::new();
    for touch in operations.iter().flat_map(|o| &o.touches) {
        numbers.entry(touch.key.clone()).or_insert(0);
    }
    for (number, place) in numbers.values_mut().enumerate() {
        *place = number;
    }
    let mut joined: Vec<usize> = (0..numbers.len()).collect();
    for operation in &operations {
        let mut first = root(&mut joined, numbers[&operation.first().key]);
        for touch in &operation.touches[1..] {
            let other = root(&mut joined, numbers[&touch.key]);
            // The lower number stays the root, so that it is the component's first key.
            let (low, high) = (first.min(other), first.max(other));
            joined[high] = low;
            first = low;
        }
    }
    let mut found: BTreeMap<usize, Component> = BTreeMap::new();
    for (key, number) in &numbers {
        let root = root(&mut joined, *number);
        found.entry(root).or_default().keys.push(key.clone());
    }
    for operation in operations {
        let root = root(&mut joined, numbers[&operation.first().key]);
        let component = found.entry(root).or_default();
        component.operations.push(operation);
    }
    found.into_values().collect()
}

fn root(joined: &mut [usize], mut number: usize) -> usize {
    while joined[number] != number {
        joined[number] = joined[joined[number]];
        number = joined[number];
    }
    number
}

/// What an operation says: without an answer, its reads say nothing.
pub(super) fn telling(operation: &Operation) -> Option<Operation> {
    if operation.returned.is_some() {
        return Some(operation.clone());
    }
    let writes: Vec<Touch> = operation
        .touches
        .iter()
        .filter(|touch| touch.action.writes())
        .cloned()
        .collect();
    (!writes.is_empty()).then(|| operation.with_touches(writes))
}

impl Component {
    /// What was done with some of the keys, as if the operations had touched no others.
    pub fn narrowed(&self, keep: impl Fn(&Bytes) -> bool) -> Component {
        let narrow = |operation: &Operation| {
            let touches = operation.touches.iter();
            let touches: Vec<Touch> = touches.filter(|t| keep(&t.key)).cloned().collect();
            (!touches.is_empty()).then(|| operation.with_touches(touches))
        };
        Component {
            keys: self.keys.iter().filter(|key| keep(key)).cloned().collect(),
            operations: self.operations.iter().filter_map(narrow).collect(),
        }
    }

    /// How many operations have no known outcome.
    pub fn unknown(&self) -> usize {
        let unknown = self.operations.iter().filter(|o| o.returned.is_none());
        unknown.count()
    }
}
