//! The safety properties of Raft, looked at step by step (figure 3 of the paper).
//!
//! Log matching          Entries of one index and term are equal on all peers, and so are
//!                       the terms before them.
//! Leader completeness   An entry that was applied is in the log of every leader of a later
//!                       term than the one in which it was.
//! State machine safety  No two peers apply different entries at one index, and none leaves
//!                       an index out or goes back.
//!
//! It sees every append that leaves a store and every entry that is handed to an apply shard,
//! and keeps for each entry a few numbers.
//!
//! Elsewhere: leaders (`watch`), votes and acknowledgements (`promises`), commit indices
//! (`commits`).

use std::collections::BTreeMap;

use strata_proto::eraftpb::{Entry, Message, MessageType};
use strata_proto::raft_serverpb::RaftMessage;

use crate::violation::Violation;

/// Remembers what was sent and what was applied.
#[derive(Debug, Default)]
pub(crate) struct RaftWatch {
    logs: BTreeMap<u64, Log>,
    /// By store and region: its life, and the index that was applied last.
    applied: BTreeMap<(u64, u64), (u64, u64)>,
}

/// The entries of a region that were seen.
#[derive(Debug, Default)]
struct Log {
    /// Index of the first slot.
    base: u64,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// One for each term; mostly there is one.
    sent: Vec<Sent>,
    applied: Option<Applied>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    term: u64,
    /// Term of the entry before.
    before: u64,
    hash: u32,
}

#[derive(Clone, Copy, Debug)]
struct Applied {
    term: u64,
    hash: u32,
    /// Term of the peer that applied it first: it was committed then.
    known_in: u64,
    store_id: u64,
}

impl Log {
    fn slot(&mut self, index: u64) -> &mut Slot {
        if self.slots.is_empty() {
            self.base = index;
        }
        if index < self.base {
            let more = (self.base - index) as usize;
            self.slots.splice(0..0, vec![Slot::default(); more]);
            self.base = index;
        }
        let place = (index - self.base) as usize;
        if place >= self.slots.len() {
            self.slots.resize(place + 1, Slot::default());
        }
        &mut self.slots[place]
    }

    fn applied(&self, index: u64) -> Option<Applied> {
        let place = index.checked_sub(self.base)?;
        self.slots.get(place as usize)?.applied
    }
}

fn hash(entry: &Entry) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[entry.entry_type as u8]);
    hasher.update(&entry.data);
    hasher.finalize()
}

impl RaftWatch {
    /// Looks at a message that leaves a store.
    pub fn on_send(&mut self, envelope: &RaftMessage) -> Option<Violation> {
        let message = envelope.message.as_ref()?;
        match message.msg_type() {
            MessageType::MsgAppend => self.on_entries(envelope.region_id, message),
            _ => None,
        }
    }

    fn on_entries(&mut self, region_id: u64, message: &Message) -> Option<Violation> {
        let log = self.logs.entry(region_id).or_default();
        let mut before = message.log_term;
        let mut found = None;
        let lacks = |applied: Option<Applied>, index: u64, term: u64| {
            applied
                .filter(|applied| applied.term != term && applied.known_in < message.term)
                .map(|applied| Violation::LeaderIncomplete {
                    region_id,
                    leader: message.from,
                    leader_term: message.term,
                    index,
                    term,
                    applied: applied.term,
                })
        };
        if before != 0 {
            found = found.or(lacks(log.applied(message.index), message.index, before));
        }
        for entry in &message.entries {
            let sent = Sent {
                term: entry.term,
                before,
                hash: hash(entry),
            };
            let slot = log.slot(entry.index);
            match slot.sent.iter().find(|other| other.term == entry.term) {
                None => slot.sent.push(sent),
                Some(other) if *other == sent => {}
                Some(_) => {
                    found = found.or(Some(Violation::LogsDiffer {
                        region_id,
                        index: entry.index,
                        term: entry.term,
                    }));
                }
            }
            found = found.or(lacks(slot.applied, entry.index, entry.term));
            before = entry.term;
        }
        found
    }

    /// Looks at entries that are handed to an apply shard of a store, whose peer is in
    /// `term`.
    pub fn on_apply(
        &mut self,
        store: (u64, u64),
        region_id: u64,
        term: u64,
        entries: &[Entry],
    ) -> Option<Violation> {
        let (store_id, life) = store;
        let mut found = None;
        for entry in entries {
            let last = self
                .applied
                .insert((store_id, region_id), (life, entry.index));
            if let Some((before, last)) = last
                && before == life
                && entry.index != last + 1
            {
                found = found.or(Some(Violation::AppliedOutOfOrder {
                    region_id,
                    store_id,
                    last,
                    next: entry.index,
                }));
            }
            let own = Applied {
                term: entry.term,
                hash: hash(entry),
                known_in: term,
                store_id,
            };
            let slot = self.logs.entry(region_id).or_default().slot(entry.index);
            let first = *slot.applied.get_or_insert(own);
            if (first.term, first.hash) != (own.term, own.hash) {
                found = found.or(Some(Violation::AppliedDiffer {
                    region_id,
                    index: entry.index,
                    first: (first.store_id, first.term),
                    second: (store_id, own.term),
                }));
            }
        }
        found
    }

    /// A region's state on a store is replaced: a snapshot is installed, another peer begins
    /// there, or the peer goes.
    pub fn on_replaced(&mut self, store_id: u64, region_id: u64) {
        self.applied.remove(&(store_id, region_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::metapb::Peer;

    fn envelope(message: Message) -> RaftMessage {
        RaftMessage {
            region_id: 2,
            from_peer: Some(Peer {
                id: message.from,
                store_id: message.from,
                ..Peer::default()
            }),
            message: Some(message),
            ..RaftMessage::default()
        }
    }

    fn entry(index: u64, term: u64, data: &'static str) -> Entry {
        Entry {
            index,
            term,
            data: data.into(),
            ..Entry::default()
        }
    }

    /// A leader's append behind index 5 of term 5.
    fn append(leader: u64, term: u64, commit: u64, entries: &[Entry]) -> RaftMessage {
        envelope(Message {
            msg_type: MessageType::MsgAppend.into(),
            from: leader,
            term,
            log_term: 5,
            index: 5,
            commit,
            entries: entries.to_vec(),
            ..Message::default()
        })
    }

    #[test]
    fn logs_that_differ_at_one_index_and_term_are_found() {
        let mut watch = RaftWatch::default();
        let first = [entry(6, 6, "a"), entry(7, 6, "b")];
        assert_eq!(watch.on_send(&append(1, 6, 5, &first)), None);
        assert_eq!(watch.on_send(&append(1, 6, 6, &first)), None);
        // Another entry of a later term may stand there.
        assert_eq!(watch.on_send(&append(2, 7, 5, &[entry(6, 7, "c")])), None);
        let other = watch.on_send(&append(2, 7, 5, &[entry(6, 6, "x")]));
        assert!(matches!(
            other,
            Some(Violation::LogsDiffer { index: 6, .. })
        ));
        let behind = [entry(6, 7, "c"), entry(7, 6, "b")];
        let before = watch.on_send(&append(2, 7, 5, &behind));
        assert!(matches!(
            before,
            Some(Violation::LogsDiffer { index: 7, .. })
        ));
    }

    #[test]
    fn leader_that_lacks_what_was_applied_is_found() {
        let mut watch = RaftWatch::default();
        assert_eq!(watch.on_apply((1, 1), 2, 7, &[entry(6, 6, "a")]), None);
        // A leader of the term in which it was known, or of an earlier one, may be of old.
        assert_eq!(watch.on_send(&append(3, 7, 5, &[entry(6, 5, "z")])), None);
        assert_eq!(watch.on_send(&append(2, 8, 5, &[entry(6, 6, "a")])), None);
        let lacking = watch.on_send(&append(3, 9, 5, &[entry(6, 9, "")]));
        assert!(matches!(
            lacking,
            Some(Violation::LeaderIncomplete {
                leader: 3,
                index: 6,
                ..
            })
        ));
    }

    #[test]
    fn applied_entries_that_differ_or_leave_one_out_are_found() {
        let mut watch = RaftWatch::default();
        let two = [entry(6, 6, "a"), entry(7, 6, "b")];
        assert_eq!(watch.on_apply((1, 1), 2, 6, &two), None);
        assert_eq!(watch.on_apply((2, 1), 2, 6, &two[..1]), None);
        let other = watch.on_apply((2, 1), 2, 6, &[entry(7, 6, "c")]);
        assert!(matches!(
            other,
            Some(Violation::AppliedDiffer { index: 7, .. })
        ));
        let gap = watch.on_apply((1, 1), 2, 6, &[entry(9, 6, "d")]);
        assert!(matches!(
            gap,
            Some(Violation::AppliedOutOfOrder {
                last: 7,
                next: 9,
                ..
            })
        ));
        // Another life begins where its disk says, and a snapshot anywhere.
        assert_eq!(watch.on_apply((1, 3), 2, 6, &two), None);
        watch.on_replaced(1, 2);
        assert_eq!(watch.on_apply((1, 3), 2, 6, &[entry(12, 6, "e")]), None);
    }
}
