//! The window of appends that are on their way to one follower.
//!
//! Each append is noted by its last index; an answer frees all up to the index that it
//! confirms. Indices are added in rising order, so the window is a queue. It takes memory
//! only as it fills.

use std::collections::VecDeque;

use crate::types::Index;

/// Last indices of appends that were sent and not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inflights {
    sent: VecDeque<Index>,
    limit: usize,
}

impl Inflights {
    /// An empty window for at most `limit` appends.
    pub fn new(limit: usize) -> Self {
        Self {
            sent: VecDeque::new(),
            limit,
        }
    }

    /// Whether no further append may be sent.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.sent.len() >= self.limit
    }

    /// How many appends are on their way.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether no append is on its way.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Notes an append whose last entry is `last`.
    ///
    /// # Panics
    /// If the window is full or `last` does not rise: the caller checks `is_full` first.
    #[inline]
    pub fn add(&mut self, last: Index) {
        assert!(
            !self.is_full(),
            "inflights overflow: {} of {}",
            self.sent.len(),
            self.limit
        );
        if let Some(&before) = self.sent.back() {
            assert!(
                last > before,
                "inflights out of order: {last} after {before}"
            );
        }
        self.sent.push_back(last);
    }

    /// Frees every append whose last entry is at or before `index`.
    #[inline]
    pub fn free_to(&mut self, index: Index) {
        while self.sent.front().is_some_and(|&last| last <= index) {
            self.sent.pop_front();
        }
    }

    /// Frees the oldest append.
    pub fn free_first(&mut self) {
        self.sent.pop_front();
    }

    /// Empties the window.
    pub fn clear(&mut self) {
        self.sent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frees_up_to_the_confirmed_index() {
        let mut window = Inflights::new(3);
        for last in [3, 5, 9] {
            assert!(!window.is_full());
            window.add(last);
        }
        assert!(window.is_full());
        window.free_to(2);
        assert_eq!(window.len(), 3);
        window.free_to(6);
        assert_eq!(window.len(), 1);
        assert!(!window.is_full());
        window.add(10);
        window.free_first();
        assert_eq!(window.len(), 1);
        window.free_to(10);
        assert!(window.is_empty());
    }

    #[test]
    #[should_panic(expected = "inflights overflow: 1 of 1")]
    fn refuses_to_overflow() {
        let mut window = Inflights::new(1);
        window.add(1);
        window.add(2);
    }

    #[test]
    #[should_panic(expected = "inflights out of order: 4 after 4")]
    fn refuses_disorder() {
        let mut window = Inflights::new(2);
        window.add(4);
        window.add(4);
    }
}
