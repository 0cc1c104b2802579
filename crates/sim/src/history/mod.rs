//! What clients did and saw: the history that the checkers judge.
//!
//! Invoke    Before an attempt leaves the client, it is entered with a place in the order
//!           of events.
//! Complete  When its answer is there, outcome and place are filled in.
//! Retract   An answer that promises "no effect, ever" takes the attempt out again.
//! Open      What never got an answer stays open: it may have taken effect at any time
//!           after its invocation, or never.
//!
//! A client that repeats an attempt without a session enters each attempt as an operation
//! of its own. An operation is one atomic step that touches one key or several: what a
//! scan, a batch or a removal of a range does in one region is one operation, with the keys
//! that it found absent among those that it touched. A call over several regions is one
//! operation for each region; they lie within the call in any order.
//!
//! Invariants
//! * Places are unique and ascend in real order: an operation whose answer has a lower
//!   place than another's invocation was over before the other began.
//! * The history knows no clock. `at` is for display only, in whatever unit the recorder
//!   chooses.
//!
//! Nothing here knows stores or networks: simulated clusters and tests with real processes
//! share it.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

pub use text::{TEXT_VERSION, TextError};

/// What an operation asks of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Reads the value.
    Get,
    /// Sets the value.
    Put(Bytes),
    /// Removes the value.
    Delete,
    /// Appends to the value; to the empty value where there is none.
    Append(Bytes),
    /// Replaces the value if it is the expected one.
    CompareAndSwap {
        /// `None`: there must be no value.
        expected: Option<Bytes>,
        /// `None`: the value is removed.
        new: Option<Bytes>,
    },
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A write took effect.
    Done,
    /// A read saw this.
    Value(Option<Bytes>),
    /// The verdict of a compare-and-swap.
    Swapped {
        /// True: the new value was written.
        succeeded: bool,
        /// What was there before, if the client was told.
        previous: Option<Option<Bytes>>,
    },
}

/// What an operation did with one of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The key.
    pub key: Bytes,
    /// What was asked of it.
    pub action: Action,
    /// What the client was told of it; `None` while the operation has no answer.
    pub outcome: Option<Outcome>,
}

/// One operation: an atomic step on one key or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; for display.
    pub client: u64,
    /// The keys, each once, at least one.
    pub touches: Vec<Touch>,
    /// Place of the invocation in the order of events.
    pub invoked: u64,
    /// Place of the answer; `None`: the outcome is not known.
    pub returned: Option<u64>,
    /// When it was invoked and answered, for display.
    pub at: (u64, Option<u64>),
}

/// Names an operation of a [`History`] until its outcome is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationId(u64);

/// All operations of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    next_place: u64,
    operations: BTreeMap<u64, Operation>,
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an operation on one key that is about to be sent.
    pub fn invoke(&mut self, client: u64, key: Bytes, action: Action, at: u64) -> OperationId {
        self.invoke_all(client, vec![(key, action)], at)
    }

    /// Enters an operation that touches several keys in one atomic step.
    ///
    /// # Panics
    /// Without keys, or if a key is named twice.
    pub fn invoke_all(
        &mut self,
        client: u64,
        actions: Vec<(Bytes, Action)>,
        at: u64,
    ) -> OperationId {
        let distinct: BTreeSet<&Bytes> = actions.iter().map(|(key, _)| key).collect();
        assert!(
            !actions.is_empty() && distinct.len() == actions.len(),
            "an operation touches {} keys, {} of them different",
            actions.len(),
            distinct.len()
        );
        let invoked = self.take_place();
        let touch = |(key, action)| Touch {
            key,
            action,
            outcome: None,
        };
        let operation = Operation {
            client,
            touches: actions.into_iter().map(touch).collect(),
            invoked,
            returned: None,
            at: (at, None),
        };
        self.operations.insert(invoked, operation);
        OperationId(invoked)
    }

    /// Fills in the answer of an operation on one key.
    ///
    /// # Panics
    /// If the operation has an answer already, was retracted, or touches several keys.
    pub fn complete(&mut self, id: OperationId, outcome: Outcome, at: u64) {
        self.complete_all(id, vec![Some(outcome)], at);
    }

    /// Fills in the answer of an operation: what it says of each key, in the order of the
    /// invocation. Keys of which it says nothing are taken out; a scan that ended at its
    /// limit covers the keys up to there.
    ///
    /// # Panics
    /// If the operation has an answer already or was retracted, if the number of outcomes
    /// is not that of its keys, or if nothing is said of a key that it may have written.
    pub fn complete_all(&mut self, id: OperationId, outcomes: Vec<Option<Outcome>>, at: u64) {
        let place = self.take_place();
        let mut operation = self
            .operations
            .remove(&id.0)
            .unwrap_or_else(|| panic!("operation {id:?} was retracted"));
        assert!(
            operation.returned.is_none(),
            "operation {id:?} answered twice: at {:?}, then {outcomes:?}",
            operation.returned
        );
        assert_eq!(
            operation.touches.len(),
            outcomes.len(),
            "operation {id:?}: keys and outcomes"
        );
        for (touch, outcome) in operation.touches.iter_mut().zip(outcomes) {
            assert!(
                outcome.is_some() || !touch.action.writes(),
                "operation {id:?}: nothing is said of the write of {:?}",
                touch.key
            );
            touch.outcome = outcome;
        }
        operation.touches.retain(|touch| touch.outcome.is_some());
        operation.returned = Some(place);
        operation.at.1 = Some(at);
        if !operation.touches.is_empty() {
            self.operations.insert(id.0, operation);
        }
    }

    /// Takes out an operation that certainly had no effect and never will have one.
    ///
    /// # Panics
    /// If the operation has an answer already or was retracted before.
    pub fn retract(&mut self, id: OperationId) {
        let operation = self.operations.remove(&id.0);
        assert!(
            operation.is_some_and(|operation| operation.returned.is_none()),
            "operation {id:?} retracted after its answer"
        );
    }

    /// All operations in the order of their invocations.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values()
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// True without operations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// What was done with each key, in the order of the invocations: operations on several
    /// keys are entered for each, as if they had touched no other.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<Bytes, Vec<Operation>> {
        let mut keys: BTreeMap<Bytes, Vec<Operation>> = BTreeMap::new();
        for operation in self.operations.values() {
            for touch in &operation.touches {
                keys.entry(touch.key.clone())
                    .or_default()
                    .push(operation.with_touches(vec![touch.clone()]));
            }
        }
        keys
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<Bytes> {
        let touches = self.operations.values().flat_map(|o| &o.touches);
        touches.map(|touch| touch.key.clone()).collect()
    }

    fn take_place(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }
}

impl Action {
    /// True for actions that can change the value.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self, Action::Get)
    }
}

impl Operation {
    /// True if it can change a value.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.touches.iter().any(|touch| touch.action.writes())
    }

    /// The first touch, which is the only one of an operation on one key.
    #[must_use]
    pub fn first(&self) -> &Touch {
        &self.touches[0]
    }

    /// The same operation with other touches.
    #[must_use]
    pub fn with_touches(&self, touches: Vec<Touch>) -> Operation {
        Operation {
            client: self.client,
            touches,
            invoked: self.invoked,
            returned: self.returned,
            at: self.at,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Get => f.write_str("get"),
            Action::Put(value) => write!(f, "put {}", Shown(Some(value))),
            Action::Delete => f.write_str("delete"),
            Action::Append(value) => write!(f, "append {}", Shown(Some(value))),
            Action::CompareAndSwap { expected, new } => write!(
                f,
                "cas {} to {}",
                Shown(expected.as_ref()),
                Shown(new.as_ref())
            ),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} ", self.client)?;
        let several = self.touches.len() > 1;
        for (place, touch) in self.touches.iter().enumerate() {
            if several {
                let before = if place == 0 { "(" } else { ", " };
                write!(f, "{before}\"{}\" ", touch.key.escape_ascii())?;
            }
            write!(f, "{}", touch.action)?;
            if let Some(outcome) = &touch.outcome {
                write!(f, " -> {outcome}")?;
            }
        }
        if several {
            f.write_str(")")?;
        }
        match self.returned {
            None => write!(f, " -> not known [{}..", self.at.0)?,
            Some(_) => write!(f, " [{}..{}", self.at.0, self.at.1.unwrap_or(0))?,
        }
        write!(f, "] #{}", self.invoked)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => f.write_str("done"),
            Outcome::Value(value) => write!(f, "{}", Shown(value.as_ref())),
            Outcome::Swapped {
                succeeded,
                previous,
            } => {
                f.write_str(if *succeeded { "swapped" } else { "not swapped" })?;
                match previous {
                    Some(value) => write!(f, ", was {}", Shown(value.as_ref())),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A value for people: quoted and escaped, the end of long ones, since appends differ there.
struct Shown<'a>(Option<&'a Bytes>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES_MAX: usize = 60;
        match self.0 {
            None => f.write_str("absent"),
            Some(value) if value.len() > SHOWN_BYTES_MAX => {
                let tail = value.slice(value.len() - SHOWN_BYTES_MAX..);
                write!(f, "({} bytes) ..\"{}\"", value.len(), tail.escape_ascii())
            }
            Some(value) => write!(f, "\"{}\"", value.escape_ascii()),
        }
    }
}
