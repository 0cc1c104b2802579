//! Linearizable reads that wait until a quorum confirms that the leader still leads.
//!
//! A read notes the commit index when it comes in. When the next Ready is taken, all reads
//! that came in since the last one share one new heartbeat round; once a quorum has answered
//! that round (or a later one), no other leader can have committed anything before the read
//! came in, and its index may be given out (Raft thesis, 6.4).
//!
//! Invariants: rounds never fall along the queue; reads without a round stand at its end.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::types::{Index, PeerId};

/// Reads that a leader keeps at most. A quorum answers in milliseconds or the leader steps
/// down, so more than this is a flood.
const WAITING_MAX: usize = 1 << 16;

/// One read on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitingRead {
    /// The follower that asked; `None` for a read of this replica.
    pub from: Option<PeerId>,
    /// Given back with the answer.
    pub context: Bytes,
    /// Commit index when the read came in.
    pub index: Index,
    round: Option<u64>,
}

/// The reads of a leader, oldest first.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    waiting: VecDeque<WaitingRead>,
    /// How many at the end have no round yet.
    without_round: usize,
}

impl ReadQueue {
    /// Puts a read at the end. False if there is no room.
    pub fn push(&mut self, from: Option<PeerId>, context: Bytes, index: Index) -> bool {
        if self.waiting.len() >= WAITING_MAX {
            return false;
        }
        self.waiting.push_back(WaitingRead {
            from,
            context,
            index,
            round: None,
        });
        self.without_round += 1;
        true
    }

    /// Whether a read needs a round to be started.
    pub fn needs_round(&self) -> bool {
        self.without_round > 0
    }

    /// The round that is about to be sent serves all reads that have none.
    pub fn assign(&mut self, round: u64) {
        let from = self.waiting.len() - self.without_round;
        for read in self.waiting.range_mut(from..) {
            read.round = Some(round);
        }
        self.without_round = 0;
    }

    /// Takes the next read that `round`, answered by a quorum, confirms.
    pub fn take_confirmed(&mut self, round: u64) -> Option<WaitingRead> {
        let confirmed = self.waiting.front()?.round? <= round;
        if confirmed {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    /// Forgets all reads: whoever asked has to ask again.
    pub fn clear(&mut self) {
        self.waiting = VecDeque::new();
        self.without_round = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut ReadQueue, name: &'static str, index: Index) {
        assert!(queue.push(None, Bytes::from_static(name.as_bytes()), index));
    }

    fn confirmed(queue: &mut ReadQueue, round: u64) -> Vec<Index> {
        std::iter::from_fn(|| queue.take_confirmed(round))
            .map(|read| read.index)
            .collect()
    }

    #[test]
    fn reads_share_the_round_sent_after_them() {
        let mut queue = ReadQueue::default();
        push(&mut queue, "a", 1);
        push(&mut queue, "b", 2);
        assert!(queue.needs_round());
        assert!(confirmed(&mut queue, 9).is_empty(), "no round was sent yet");
        queue.assign(4);
        assert!(!queue.needs_round());
        push(&mut queue, "c", 3);
        assert!(
            confirmed(&mut queue, 3).is_empty(),
            "an older round proves nothing"
        );
        assert_eq!(confirmed(&mut queue, 4), [1, 2]);
        queue.assign(5);
        assert_eq!(confirmed(&mut queue, 7), [3]);
    }

    #[test]
    fn a_flood_is_refused() {
        let mut queue = ReadQueue::default();
        for _ in 0..WAITING_MAX {
            push(&mut queue, "x", 1);
        }
        assert!(!queue.push(None, Bytes::new(), 1));
        queue.clear();
        assert!(queue.push(None, Bytes::new(), 1));
    }
}
