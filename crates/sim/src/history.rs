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
//! of its own. A scan or batch is entered as one operation for each key that it covers,
//! absent keys among them, since a key's register is what is judged.
//!
//! Invariants
//! * Places are unique and ascend in real order: an operation whose answer has a lower
//!   place than another's invocation was over before the other began.
//! * The history knows no clock. `at` is for display only, in whatever unit the recorder
//!   chooses.
//!
//! Nothing here knows stores or networks: simulated clusters and tests with real processes
//! share it.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

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

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; for display.
    pub client: u64,
    /// The key.
    pub key: Bytes,
    /// What was asked.
    pub action: Action,
    /// Place of the invocation in the order of events.
    pub invoked: u64,
    /// Place of the answer, with what it said; `None`: the outcome is not known.
    pub returned: Option<(u64, Outcome)>,
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

    /// Enters an operation that is about to be sent.
    pub fn invoke(&mut self, client: u64, key: Bytes, action: Action, at: u64) -> OperationId {
        let invoked = self.take_place();
        let operation = Operation {
            client,
            key,
            action,
            invoked,
            returned: None,
            at: (at, None),
        };
        self.operations.insert(invoked, operation);
        OperationId(invoked)
    }

    /// Fills in the answer of an operation.
    ///
    /// # Panics
    /// If the operation has an answer already or was retracted.
    pub fn complete(&mut self, id: OperationId, outcome: Outcome, at: u64) {
        let place = self.take_place();
        let operation = self
            .operations
            .get_mut(&id.0)
            .unwrap_or_else(|| panic!("operation {id:?} was retracted"));
        assert!(
            operation.returned.is_none(),
            "operation {id:?} answered twice: {:?}, then {outcome:?}",
            operation.returned
        );
        operation.returned = Some((place, outcome));
        operation.at.1 = Some(at);
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

    /// The operations of each key, in the order of their invocations.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<Bytes, Vec<Operation>> {
        let mut keys: BTreeMap<Bytes, Vec<Operation>> = BTreeMap::new();
        for operation in self.operations.values() {
            keys.entry(operation.key.clone())
                .or_default()
                .push(operation.clone());
        }
        keys
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

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} ", self.client)?;
        match &self.action {
            Action::Get => f.write_str("get")?,
            Action::Put(value) => write!(f, "put {}", Shown(Some(value)))?,
            Action::Delete => f.write_str("delete")?,
            Action::Append(value) => write!(f, "append {}", Shown(Some(value)))?,
            Action::CompareAndSwap { expected, new } => write!(
                f,
                "cas {} to {}",
                Shown(expected.as_ref()),
                Shown(new.as_ref())
            )?,
        }
        match &self.returned {
            None => write!(f, " -> not known [{}..", self.at.0)?,
            Some((_, outcome)) => {
                write!(
                    f,
                    " -> {outcome} [{}..{}",
                    self.at.0,
                    self.at.1.unwrap_or(0)
                )?;
            }
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
