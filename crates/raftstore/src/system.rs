//! The seam between region 1 and the state machine that it replicates.
//!
//! The scheduler's state machine is handed each command in log order, with a view of the
//! system region's records as the commands before it left them, and returns what to
//! write. It must be a pure function of view and request: every replica runs it.
//!
//! Keys given and taken here are relative: the engine prefix of the system region is put
//! in front of them on the way down and removed on the way up.

use std::ops::ControlFlow;

use bytes::Bytes;
use strata_storage::{Cf, Direction, EngineError, ReadView, Visitor, keys};

/// An engine could not be read. A state machine that meets it gives up; the store stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the system region: {0}")]
pub struct SystemViewError(pub String);

/// Records of the system region at one instant.
pub trait SystemView: Send + Sync {
    /// The value of a key; `None` where there is none.
    ///
    /// # Errors
    /// The engine failed.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SystemViewError>;

    /// Visits the pairs with `start <= key`, and `key < end` unless `end` is empty, in
    /// ascending order, descending where `reverse`, until `visit` breaks.
    ///
    /// # Errors
    /// The engine failed.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
        visit: Visitor<'_>,
    ) -> Result<(), SystemViewError>;
}

/// The deterministic state machine behind region 1.
pub trait SystemStateMachine: Send + Sync + 'static {
    /// Executes one command and returns the response for its sender. A request that does
    /// not decode changes nothing and is answered as the state machine sees fit.
    ///
    /// # Errors
    /// The view failed; the process stops, since going on would diverge.
    fn apply(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError>;
}

/// What one command of the state machine writes, in order.
#[derive(Debug, Default)]
pub struct SystemWrites {
    operations: Vec<(Bytes, Option<Bytes>)>,
}

impl SystemWrites {
    /// Writes a record.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.operations.push((key.into(), Some(value.into())));
    }

    /// Removes a record; nothing happens where there is none.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.operations.push((key.into(), None));
    }

    /// Keys with their new values, `None` for a removal, in the order of writing.
    pub fn operations(&self) -> &[(Bytes, Option<Bytes>)] {
        &self.operations
    }
}

impl From<EngineError> for SystemViewError {
    fn from(error: EngineError) -> Self {
        SystemViewError(error.to_string())
    }
}

/// The system region's records in an engine snapshot.
pub(crate) struct SnapshotSystemView<V> {
    view: V,
}

impl<V: ReadView> SnapshotSystemView<V> {
    pub(crate) fn new(view: V) -> Self {
        SnapshotSystemView { view }
    }
}

impl<V: ReadView + Send + Sync> SystemView for SnapshotSystemView<V> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SystemViewError> {
        Ok(self.view.get(Cf::Raft, &keys::system(key))?)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
        visit: Visitor<'_>,
    ) -> Result<(), SystemViewError> {
        let (lower, upper) = system_bounds(start, end);
        let direction = if reverse {
            Direction::Backward
        } else {
            Direction::Forward
        };
        self.view.scan(
            Cf::Raft,
            &lower,
            Some(&upper),
            direction,
            &mut |key, value| match keys::parse_system(key) {
                Some(suffix) => visit(suffix, value),
                None => ControlFlow::Continue(()),
            },
        )?;
        Ok(())
    }
}

/// Engine keys of `[start, end)` of the system region; an empty `end` is unbounded.
pub(crate) fn system_bounds(start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let upper = if end.is_empty() {
        keys::system_range().1
    } else {
        keys::system(end)
    };
    (keys::system(start), upper)
}
