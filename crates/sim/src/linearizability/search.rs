//! The search for an order of one register's operations.
//!
//! A configuration is: which operations with a known outcome are placed, the value that
//! they leave, and which of unknown outcome were used. From it, every operation can be
//! placed next that was invoked before the first return among those not yet placed, if
//! the register would answer what the client saw. The search goes deep first, undoes, and
//! never enters a configuration twice.
//!
//! What keeps it short
//! * An operation that fits and can only look (a read, a swap that failed) is placed at
//!   once and for good: doing so earlier never hurts the others.
//! * Operations of unknown outcome are tried last, only where they change the value, and
//!   never right before a write that does not look: leaving them out is then the same.
//! * Of equal ones the first invoked is used first.
//! * Where all writes are appends the value only grows: until the longest value that was
//!   read is seen, every value is a beginning of it.
//! * A configuration that failed with fewer unknown operations used fails with more.
//!
//! Invariant: the known list holds invocations and returns in the order of places; what is
//! placed is unlinked from it and linked back in reverse order.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Verdict;
use crate::history::{Action, Operation, Outcome};

/// Number of a value in [`Values`].
type ValueId = u32;

pub(super) struct Search<'a> {
    known: Vec<&'a Operation>,
    unknown: Vec<Unknown<'a>>,
    list: List,
    values: Values,
    placed: Bits,
    placed_count: usize,
    used: Bits,
    value: ValueId,
    /// Where all writes are appends: the read of the longest value, and that value.
    longest: Option<(usize, Bytes)>,
    /// An operation of unknown outcome was placed last and nobody has looked since.
    unseen: bool,
    frames: Vec<Frame>,
    seen: BTreeMap<(Bits, ValueId, bool), Vec<Bits>>,
    steps: u64,
    steps_max: u64,
}

struct Unknown<'a> {
    operation: &'a Operation,
    /// The equal operation invoked before it.
    twin: Option<usize>,
}

/// One placed operation and what was before it.
struct Frame {
    placed: Placed,
    value: ValueId,
    unseen: bool,
    /// Nothing else needs to be tried in its place.
    forced: bool,
}

#[derive(Clone, Copy)]
enum Placed {
    Known { operation: usize },
    Unknown { operation: usize },
}

/// Where the next candidate is looked for.
#[derive(Clone, Copy)]
enum Cursor {
    Known { node: usize },
    Unknown { operation: usize },
}

impl<'a> Search<'a> {
    pub(super) fn new(operations: &'a [Operation], initial: Option<Bytes>, steps_max: u64) -> Self {
        let known: Vec<&Operation> = operations.iter().filter(|o| o.returned.is_some()).collect();
        let mut unknown: Vec<Unknown<'a>> = Vec::new();
        let mut latest: BTreeMap<&Action, usize> = BTreeMap::new();
        for operation in operations {
            // A read without an answer says nothing.
            if operation.returned.is_none() && operation.action.writes() {
                let twin = latest.insert(&operation.action, unknown.len());
                unknown.push(Unknown { operation, twin });
            }
        }
        let mut values = Values::default();
        let value = values.id_of(initial);
        Search {
            list: List::new(&known),
            longest: longest_read(operations, &known),
            placed: Bits::new(known.len()),
            placed_count: 0,
            used: Bits::new(unknown.len()),
            known,
            unknown,
            values,
            value,
            unseen: false,
            frames: Vec::new(),
            seen: BTreeMap::new(),
            steps: 0,
            steps_max,
        }
    }

    pub(super) fn run(mut self) -> (Verdict, u64) {
        let mut cursor = self.first_cursor();
        loop {
            if self.placed_count == self.known.len() {
                return (Verdict::Linearizable, self.steps);
            }
            if self.steps >= self.steps_max {
                return (Verdict::Undecided, self.steps);
            }
            let advanced = match cursor {
                Cursor::Known { node } => self.try_known(node),
                Cursor::Unknown { operation } => self.try_unknown(operation),
            };
            cursor = match advanced {
                Advanced::Placed => self.first_cursor(),
                Advanced::Next(next) => next,
                Advanced::Exhausted => match self.undo() {
                    Some(next) => next,
                    None => return (Verdict::Violated, self.steps),
                },
            };
        }
    }

    fn first_cursor(&self) -> Cursor {
        Cursor::Known {
            node: self.list.next[HEAD],
        }
    }

    fn try_known(&mut self, node: usize) -> Advanced {
        let Some(operation) = self.list.invoked_at(node) else {
            // A return (or the end): what is invoked behind it must wait.
            return Advanced::Next(Cursor::Unknown { operation: 0 });
        };
        let next = Advanced::Next(Cursor::Known {
            node: self.list.next[node],
        });
        let known = self.known[operation];
        let blind = matches!(known.action, Action::Put(_) | Action::Delete);
        if self.unseen && blind {
            return next;
        }
        let Some(value) = self.values.after(self.value, known) else {
            return next;
        };
        if self.grows_wrongly(value) {
            return next;
        }
        let forced = only_looks(known);
        self.placed.set(operation, true);
        if !self.enter(value, false) {
            self.placed.set(operation, false);
            return next;
        }
        self.list.unlink(operation);
        self.placed_count += 1;
        self.push(Placed::Known { operation }, value, false, forced)
    }

    fn try_unknown(&mut self, operation: usize) -> Advanced {
        let Some(unknown) = self.unknown.get(operation) else {
            return Advanced::Exhausted;
        };
        if unknown.operation.invoked > self.list.first_return() {
            return Advanced::Exhausted;
        }
        let next = Advanced::Next(Cursor::Unknown {
            operation: operation + 1,
        });
        let blind = matches!(unknown.operation.action, Action::Put(_) | Action::Delete);
        let twin_first = unknown.twin.is_some_and(|twin| !self.used.get(twin));
        if self.used.get(operation) || twin_first || (self.unseen && blind) {
            return next;
        }
        let Some(value) = self.values.after(self.value, unknown.operation) else {
            return next;
        };
        if value == self.value || self.grows_wrongly(value) {
            return next;
        }
        self.used.set(operation, true);
        if !self.enter(value, true) {
            self.used.set(operation, false);
            return next;
        }
        self.push(Placed::Unknown { operation }, value, true, false)
    }

    /// True for a value that cannot grow into the longest one which is still to be read.
    fn grows_wrongly(&self, value: ValueId) -> bool {
        let Some((read, longest)) = &self.longest else {
            return false;
        };
        let value = self.values.values[value as usize].as_ref();
        !self.placed.get(*read) && value.is_some_and(|value| !longest.starts_with(value))
    }

    fn push(&mut self, placed: Placed, value: ValueId, unseen: bool, forced: bool) -> Advanced {
        self.frames.push(Frame {
            placed,
            value: self.value,
            unseen: self.unseen,
            forced,
        });
        self.value = value;
        self.unseen = unseen;
        Advanced::Placed
    }

    /// Notes the configuration; false if it need not be tried.
    fn enter(&mut self, value: ValueId, unseen: bool) -> bool {
        self.steps += 1;
        let tried = self
            .seen
            .entry((self.placed.clone(), value, unseen))
            .or_default();
        if tried.iter().any(|used| used.is_subset_of(&self.used)) {
            return false;
        }
        tried.retain(|used| !self.used.is_subset_of(used));
        tried.push(self.used.clone());
        true
    }

    /// Takes the last operation back; where to go on, `None` if all was tried.
    fn undo(&mut self) -> Option<Cursor> {
        loop {
            let frame = self.frames.pop()?;
            self.value = frame.value;
            self.unseen = frame.unseen;
            let next = match frame.placed {
                Placed::Known { operation } => {
                    self.list.relink(operation);
                    self.placed.set(operation, false);
                    self.placed_count -= 1;
                    Cursor::Known {
                        node: self.list.next[self.list.invocation[operation]],
                    }
                }
                Placed::Unknown { operation } => {
                    self.used.set(operation, false);
                    Cursor::Unknown {
                        operation: operation + 1,
                    }
                }
            };
            if !frame.forced {
                return Some(next);
            }
        }
    }
}

/// The place among `known` of the read that saw the longest value, if all writes append.
fn longest_read(all: &[Operation], known: &[&Operation]) -> Option<(usize, Bytes)> {
    let appends =
        |operation: &Operation| matches!(operation.action, Action::Append(_) | Action::Get);
    if !all.iter().all(appends) {
        return None;
    }
    let reads = known.iter().enumerate().filter_map(|(place, operation)| {
        match operation.returned.as_ref().map(|(_, outcome)| outcome) {
            Some(Outcome::Value(Some(value))) => Some((place, value.clone())),
            _ => None,
        }
    });
    reads.max_by_key(|(_, value)| value.len())
}

/// True if the operation changed nothing, wherever it is placed.
fn only_looks(operation: &Operation) -> bool {
    let outcome = operation.returned.as_ref().map(|(_, outcome)| outcome);
    let failed_swap = Some(false)
        == outcome.and_then(|outcome| match outcome {
            Outcome::Swapped { succeeded, .. } => Some(*succeeded),
            Outcome::Done | Outcome::Value(_) => None,
        });
    !operation.action.writes() || failed_swap
}

enum Advanced {
    /// An operation was placed; begin again behind it.
    Placed,
    /// The candidate does not fit; try this one.
    Next(Cursor),
    /// No candidate is left.
    Exhausted,
}

/// The values that the register has held, numbered, and what operations make of them.
#[derive(Default)]
struct Values {
    values: Vec<Option<Bytes>>,
    ids: BTreeMap<Option<Bytes>, ValueId>,
    appended: BTreeMap<(ValueId, Bytes), ValueId>,
}

impl Values {
    fn id_of(&mut self, value: Option<Bytes>) -> ValueId {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let id = self.values.len() as ValueId;
        self.values.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    /// The value after an operation on `before`; `None` if the client would have seen
    /// something else.
    fn after(&mut self, before: ValueId, operation: &Operation) -> Option<ValueId> {
        let outcome = operation.returned.as_ref().map(|(_, outcome)| outcome);
        let held = &self.values[before as usize];
        match &operation.action {
            Action::Get => match outcome {
                Some(Outcome::Value(value)) if value != held => None,
                _ => Some(before),
            },
            Action::Put(value) => {
                let value = Some(value.clone());
                Some(self.id_of(value))
            }
            Action::Delete => Some(self.id_of(None)),
            Action::Append(tail) => Some(self.append(before, tail)),
            Action::CompareAndSwap { expected, new } => {
                let matches = held == expected;
                if let Some(Outcome::Swapped {
                    succeeded,
                    previous,
                }) = outcome
                {
                    let told = previous.as_ref();
                    if *succeeded != matches || told.is_some_and(|told| told != held) {
                        return None;
                    }
                }
                let new = new.clone();
                Some(if matches { self.id_of(new) } else { before })
            }
        }
    }

    fn append(&mut self, before: ValueId, tail: &Bytes) -> ValueId {
        let step = (before, tail.clone());
        if let Some(id) = self.appended.get(&step) {
            return *id;
        }
        let mut value = self.values[before as usize]
            .as_ref()
            .map_or(Vec::new(), |v| v.to_vec());
        value.extend_from_slice(tail);
        let id = self.id_of(Some(value.into()));
        self.appended.insert(step, id);
        id
    }
}

const HEAD: usize = 0;
const END: usize = 1;

/// Invocations and returns of the known operations that are not placed, doubly linked.
struct List {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Node of each operation's invocation and return.
    invocation: Vec<usize>,
    answer: Vec<usize>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
enum Node {
    Bound,
    Invoked { operation: usize },
    Returned { place: u64 },
}

impl List {
    fn new(known: &[&Operation]) -> Self {
        let mut events: Vec<(u64, usize, bool)> = Vec::with_capacity(known.len() * 2);
        for (index, operation) in known.iter().enumerate() {
            events.push((operation.invoked, index, true));
            if let Some((place, _)) = &operation.returned {
                events.push((*place, index, false));
            }
        }
        events.sort_unstable();
        let mut list = List {
            next: vec![END, END],
            previous: vec![HEAD, HEAD],
            invocation: vec![HEAD; known.len()],
            answer: vec![HEAD; known.len()],
            nodes: vec![Node::Bound, Node::Bound],
        };
        for (place, operation, invoked) in events {
            let node = list.nodes.len();
            if invoked {
                list.nodes.push(Node::Invoked { operation });
                list.invocation[operation] = node;
            } else {
                list.nodes.push(Node::Returned { place });
                list.answer[operation] = node;
            }
            let last = list.previous[END];
            list.next.push(END);
            list.previous.push(last);
            list.next[last] = node;
            list.previous[END] = node;
        }
        list
    }

    fn invoked_at(&self, node: usize) -> Option<usize> {
        match self.nodes[node] {
            Node::Invoked { operation } => Some(operation),
            Node::Returned { .. } | Node::Bound => None,
        }
    }

    /// Place of the first return that is left.
    fn first_return(&self) -> u64 {
        let mut node = self.next[HEAD];
        while node != END {
            if let Node::Returned { place } = self.nodes[node] {
                return place;
            }
            node = self.next[node];
        }
        u64::MAX
    }

    fn unlink(&mut self, operation: usize) {
        for node in [self.invocation[operation], self.answer[operation]] {
            let (before, behind) = (self.previous[node], self.next[node]);
            self.next[before] = behind;
            self.previous[behind] = before;
        }
    }

    /// Undoes the latest `unlink` that is not yet undone.
    fn relink(&mut self, operation: usize) {
        for node in [self.answer[operation], self.invocation[operation]] {
            let (before, behind) = (self.previous[node], self.next[node]);
            self.next[before] = node;
            self.previous[behind] = node;
        }
    }
}

/// A set of small numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Bits(vec![0; len.div_ceil(64)])
    }

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    fn set(&mut self, index: usize, on: bool) {
        let bit = 1 << (index % 64);
        if on {
            self.0[index / 64] |= bit;
        } else {
            self.0[index / 64] &= !bit;
        }
    }

    fn is_subset_of(&self, other: &Bits) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(own, others)| own & !others == 0)
    }
}
