//! Writes of a region that wait to be proposed, with their size.

use std::collections::VecDeque;

use crate::task::PendingRequest;

/// Writes in the order in which they came.
/// Invariant: `bytes` is the sum over `requests`.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    requests: VecDeque<PendingRequest>,
    bytes: usize,
}

impl WriteQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Encoded size of all commands.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn front(&self) -> Option<&PendingRequest> {
        self.requests.front()
    }

    pub(crate) fn push_back(&mut self, pending: PendingRequest) {
        self.bytes += pending.bytes;
        self.requests.push_back(pending);
    }

    pub(crate) fn pop_front(&mut self) -> Option<PendingRequest> {
        let pending = self.requests.pop_front()?;
        self.bytes -= pending.bytes;
        Some(pending)
    }

    /// Puts requests that were taken from the front back in their order.
    pub(crate) fn put_back(&mut self, taken: Vec<PendingRequest>) {
        for pending in taken.into_iter().rev() {
            self.bytes += pending.bytes;
            self.requests.push_front(pending);
        }
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> VecDeque<PendingRequest> {
        self.bytes = 0;
        std::mem::take(&mut self.requests)
    }
}
