//! Events that wait for their time.
//!
//! Invariant: events leave in the order of their times, and those of one time in the order
//! in which they were entered. So a run is decided by its seed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// A queue of events by true time.
#[derive(Debug)]
pub struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    entered: u64,
    now: Duration,
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    number: u64,
    event: T,
}

impl<T> EventQueue<T> {
    /// An empty queue at time zero.
    #[must_use]
    pub fn new() -> Self {
        EventQueue {
            heap: BinaryHeap::new(),
            entered: 0,
            now: Duration::ZERO,
        }
    }

    /// The time of the event that left last.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Enters an event that shall happen `delay` from now.
    pub fn push(&mut self, delay: Duration, event: T) {
        self.entered += 1;
        self.heap.push(Reverse(Entry {
            at: self.now + delay,
            number: self.entered,
            event,
        }));
    }

    /// Takes the next event if its time is not after `until`, and moves the time to it;
    /// else moves the time to `until`.
    pub fn pop_until(&mut self, until: Duration) -> Option<T> {
        let due = self.heap.peek().is_some_and(|entry| entry.0.at <= until);
        if !due {
            self.now = self.now.max(until);
            return None;
        }
        let entry = self.heap.pop()?.0;
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_leave_by_time_then_by_entry() {
        let mut queue = EventQueue::new();
        let ms = Duration::from_millis;
        queue.push(ms(2), "c");
        queue.push(ms(1), "a");
        queue.push(ms(1), "b");
        assert_eq!(queue.pop_until(ms(5)), Some("a"));
        assert_eq!(queue.now(), ms(1));
        queue.push(ms(0), "now");
        assert_eq!(queue.pop_until(ms(5)), Some("b"));
        assert_eq!(queue.pop_until(ms(5)), Some("now"));
        assert_eq!(queue.pop_until(ms(1)), None);
        assert_eq!(queue.pop_until(ms(5)), Some("c"));
        assert_eq!(queue.pop_until(ms(5)), None);
        assert_eq!(queue.now(), ms(5));
    }
}
