//! Messages that wait for one other store.
//!
//! Bounded by count and by bytes; what finds no room is dropped, the newest first, because
//! those before it are of use only in order.

use std::collections::VecDeque;

use parking_lot::Mutex;
use prost::Message as _;
use strata_proto::raft_serverpb::RaftMessage;
use tokio::sync::Notify;

/// A bounded queue with one reader.
pub(super) struct MessageQueue {
    messages_max: usize,
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    ready: Notify,
    poked: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<(RaftMessage, usize)>,
    bytes: usize,
}

impl MessageQueue {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        MessageQueue {
            messages_max,
            bytes_max,
            waiting: Mutex::new(Waiting::default()),
            ready: Notify::new(),
            poked: Notify::new(),
        }
    }

    /// Adds messages in order and returns how many found no room. One message always
    /// finds room in an empty queue, so that no entry is too large to be sent.
    pub(super) fn push(&self, messages: Vec<RaftMessage>) -> u64 {
        let mut dropped = 0;
        {
            let mut waiting = self.waiting.lock();
            for message in messages {
                let bytes = message.encoded_len();
                let full = waiting.messages.len() >= self.messages_max
                    || waiting.bytes + bytes > self.bytes_max;
                if full && !waiting.messages.is_empty() {
                    dropped += 1;
                    continue;
                }
                waiting.bytes += bytes;
                waiting.messages.push_back((message, bytes));
            }
        }
        self.ready.notify_one();
        dropped
    }

    /// Takes messages up to a size, at least one if there is one.
    pub(super) fn take(&self, frame_bytes: usize) -> Vec<RaftMessage> {
        let mut waiting = self.waiting.lock();
        let mut frame = Vec::new();
        let mut total = 0;
        while let Some((_, bytes)) = waiting.messages.front() {
            if !frame.is_empty() && total + bytes > frame_bytes {
                break;
            }
            let Some((message, bytes)) = waiting.messages.pop_front() else {
                break;
            };
            total += bytes;
            waiting.bytes -= bytes;
            frame.push(message);
        }
        frame
    }

    /// Drops all that waits and returns how many messages those were.
    pub(super) fn clear(&self) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        let dropped = waiting.messages.len();
        waiting.messages.clear();
        dropped as u64
    }

    /// Waits until messages may be there.
    pub(super) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Ends a pause between two attempts to connect.
    pub(super) fn poke(&self) {
        self.poked.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.poked.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(region_id: u64, bytes: usize) -> RaftMessage {
        RaftMessage {
            region_id,
            extra_ctx: Bytes::from(vec![0; bytes]),
            ..Default::default()
        }
    }

    fn ids(messages: &[RaftMessage]) -> Vec<u64> {
        messages.iter().map(|message| message.region_id).collect()
    }

    #[test]
    fn frames_keep_the_order_and_the_size() {
        let queue = MessageQueue::new(100, 1 << 20);
        assert_eq!(queue.push((1..=5).map(|id| message(id, 100)).collect()), 0);
        assert_eq!(ids(&queue.take(250)), [1, 2]);
        assert_eq!(ids(&queue.take(1)), [3], "one message always goes");
        assert_eq!(ids(&queue.take(1 << 20)), [4, 5]);
        assert!(queue.take(1).is_empty());
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let queue = MessageQueue::new(3, 1 << 20);
        assert_eq!(queue.push((1..=5).map(|id| message(id, 1)).collect()), 2);
        assert_eq!(ids(&queue.take(1 << 20)), [1, 2, 3]);
        let queue = MessageQueue::new(100, 250);
        assert_eq!(queue.push((1..=3).map(|id| message(id, 100)).collect()), 1);
        assert_eq!(queue.clear(), 2);
        assert_eq!(
            queue.push(vec![message(9, 1000)]),
            0,
            "larger than the queue"
        );
        assert_eq!(ids(&queue.take(1)), [9]);
    }
}
