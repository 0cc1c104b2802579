//! What peers have said that they will remember, and whether they do.
//!
//! A message may promise something about its sender's disk (Raft paper, figure 2): the term
//! in which it was sent, a vote, entries that were taken. It may leave only when that is
//! synced, so no crash can take it back.
//!
//! Said     Every message that leaves adds to what its sender has promised. Two votes of a
//!          peer in one term, whatever crashes or new folders lie between, are found here.
//! Left     After a crash the disk holds it: term, vote and log.
//! Kept     When a peer appears in another life of its store, it remembers it: at the start
//!          for those that are loaded, with the first message for those that are created
//!          later, or whose store came back empty.
//!
//! Of the log this holds within one term: a leader of a later one may replace what was taken.

use std::collections::{BTreeMap, BTreeSet};

use strata_proto::eraftpb::{HardState, MessageType};
use strata_proto::raft_serverpb::{PeerState, RaftMessage};
use strata_storage::{Engines, MemEngine, read_raft_state, read_region_state};

use crate::violation::Violation;

/// What a peer has promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Promise {
    /// Life of the store in which it was last heard of.
    life: u64,
    term: u64,
    /// For whom it voted in that term; 0: unknown.
    vote: u64,
    /// Up to where it took the log of that term's leader.
    taken: u64,
}

/// State of a peer that promises are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerMemory {
    /// Term and vote.
    pub hard_state: HardState,
    /// End of its log.
    pub last_index: u64,
}

/// All promises of a cluster.
#[derive(Debug, Default)]
pub struct Promises {
    /// By store, region and peer.
    by_peer: BTreeMap<(u64, u64, u64), Promise>,
    /// By region, peer and term: the candidate that it voted for.
    votes: BTreeMap<(u64, u64, u64), u64>,
    /// Stores that were given a new folder: nothing that they promised is on their disks.
    wiped: BTreeSet<u64>,
}

impl Promises {
    /// Looks at a message that leaves a store in one of its lives. `memory` tells what the
    /// sender remembers; it is asked once a life.
    ///
    /// # Errors
    /// `VotedTwice`, `PromiseBroken`.
    pub fn on_send(
        &mut self,
        (store_id, life): (u64, u64),
        envelope: &RaftMessage,
        memory: impl FnOnce() -> Option<PeerMemory>,
    ) -> Result<(), Violation> {
        let Some(message) = &envelope.message else {
            return Ok(());
        };
        let (vote, taken) = match message.msg_type() {
            MessageType::MsgRequestVote => (message.from, 0),
            MessageType::MsgRequestVoteResponse if !message.reject => (message.to, 0),
            MessageType::MsgAppendResponse if !message.reject => (0, message.index),
            MessageType::MsgHeartbeatResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgAppend => (0, 0),
            // Nothing of these is promised, or the term in them is not the sender's.
            _ => return Ok(()),
        };
        if vote != 0 {
            self.check_vote(envelope.region_id, message.from, message.term, vote)?;
        }
        let key = (store_id, envelope.region_id, message.from);
        let promise = self.by_peer.entry(key).or_insert(Promise {
            life,
            ..Promise::default()
        });
        if promise.life != life {
            promise.life = life;
            if let Some(memory) = memory() {
                check(key, promise, &memory)?;
            }
        }
        if message.term > promise.term {
            *promise = Promise {
                life,
                term: message.term,
                vote,
                taken,
            };
        } else if message.term == promise.term {
            promise.vote = promise.vote.max(vote);
            promise.taken = promise.taken.max(taken);
        }
        Ok(())
    }

    fn check_vote(
        &mut self,
        region_id: u64,
        peer: u64,
        term: u64,
        second: u64,
    ) -> Result<(), Violation> {
        let given = self.votes.entry((region_id, peer, term));
        let first = *given.or_insert(second);
        if first == second {
            return Ok(());
        }
        Err(Violation::VotedTwice {
            region_id,
            peer,
            term,
            first,
            second,
        })
    }

    /// A store gets a new folder.
    pub fn on_wipe(&mut self, store_id: u64) {
        self.wiped.insert(store_id);
    }

    /// Looks at the engines that a crash has left: what the peers there had promised is in
    /// them. Returns what is not.
    ///
    /// # Errors
    /// If a record cannot be read.
    pub fn on_crash(
        &self,
        store_id: u64,
        engines: &Engines<MemEngine>,
    ) -> Result<Vec<Violation>, strata_storage::Error> {
        let mut found = Vec::new();
        if self.wiped.contains(&store_id) {
            return Ok(found);
        }
        let of_store = (store_id, 0, 0)..=(store_id, u64::MAX, u64::MAX);
        for (key, promise) in self.by_peer.range(of_store) {
            let (_, region_id, peer_id) = *key;
            let Some(state) = read_region_state(&engines.kv, region_id)? else {
                continue;
            };
            // What a destroyed peer has left goes behind its tombstone (crash rule 5).
            let peers = state.region.iter().flat_map(|region| &region.peers);
            let present = state.state() != PeerState::Tombstone
                && peers.into_iter().any(|peer| peer.id == peer_id);
            if !present {
                continue;
            }
            let state = read_raft_state(&engines.raft, region_id)?.unwrap_or_default();
            let memory = PeerMemory {
                hard_state: state.hard_state.unwrap_or_default(),
                last_index: state.last_index,
            };
            found.extend(check(*key, promise, &memory).err());
        }
        Ok(found)
    }

    /// Looks at a peer that a store has loaded in a new life.
    ///
    /// # Errors
    /// `PromiseBroken`.
    pub fn on_start(
        &mut self,
        (store_id, life): (u64, u64),
        (region_id, peer_id): (u64, u64),
        memory: &PeerMemory,
    ) -> Result<(), Violation> {
        let key = (store_id, region_id, peer_id);
        let Some(promise) = self.by_peer.get_mut(&key) else {
            return Ok(());
        };
        promise.life = life;
        check(key, promise, memory)
    }
}

fn check(key: (u64, u64, u64), promise: &Promise, memory: &PeerMemory) -> Result<(), Violation> {
    let HardState { term, vote, .. } = memory.hard_state;
    let detail = if term < promise.term {
        format!("was in term {}, is in term {term}", promise.term)
    } else if term > promise.term {
        return Ok(());
    } else if promise.vote != 0 && vote != promise.vote {
        let given = promise.vote;
        format!("voted for {given} in term {term}, remembers a vote for {vote}")
    } else if memory.last_index < promise.taken {
        let (taken, last) = (promise.taken, memory.last_index);
        format!("had taken entries up to {taken} in term {term}, its log ends at {last}")
    } else {
        return Ok(());
    };
    Err(broken(key, detail))
}

fn broken((store_id, region_id, peer_id): (u64, u64, u64), detail: String) -> Violation {
    Violation::PromiseBroken {
        region_id,
        store_id,
        peer_id,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use strata_proto::eraftpb::Message;

    use super::*;

    fn said(kind: MessageType, term: u64, to: u64, index: u64) -> RaftMessage {
        let mut message = Message {
            term,
            from: 7,
            to,
            index,
            ..Message::default()
        };
        message.set_msg_type(kind);
        RaftMessage {
            region_id: 2,
            message: Some(message),
            ..RaftMessage::default()
        }
    }

    fn memory(term: u64, vote: u64, last_index: u64) -> PeerMemory {
        PeerMemory {
            hard_state: HardState {
                term,
                vote,
                ..HardState::default()
            },
            last_index,
        }
    }

    #[test]
    fn what_was_said_must_be_remembered() {
        let mut promises = Promises::default();
        let vote = said(MessageType::MsgRequestVoteResponse, 6, 8, 0);
        promises.on_send((1, 1), &vote, || None).unwrap();
        let taken = said(MessageType::MsgAppendResponse, 6, 8, 30);
        promises.on_send((1, 1), &taken, || None).unwrap();
        for good in [memory(6, 8, 30), memory(6, 8, 31), memory(7, 0, 12)] {
            promises.on_start((1, 2), (2, 7), &good).unwrap();
        }
        for bad in [
            memory(5, 8, 30),
            memory(6, 0, 30),
            memory(6, 9, 30),
            memory(6, 8, 29),
        ] {
            let found = promises.on_start((1, 3), (2, 7), &bad);
            assert!(found.is_err(), "{bad:?} keeps the promise");
        }
        assert!(promises.on_start((2, 1), (2, 7), &memory(0, 0, 0)).is_ok());
    }

    #[test]
    fn second_vote_in_a_term_is_found() {
        let mut promises = Promises::default();
        let vote = |to, term| said(MessageType::MsgRequestVoteResponse, term, to, 0);
        promises.on_send((1, 1), &vote(8, 6), || None).unwrap();
        promises.on_send((1, 1), &vote(8, 6), || None).unwrap();
        promises.on_send((1, 1), &vote(9, 7), || None).unwrap();
        let twice = promises.on_send((1, 1), &vote(8, 7), || None);
        assert!(matches!(twice, Err(Violation::VotedTwice { peer: 7, .. })));
        // Votes of different terms may leave in any order.
        promises.on_send((1, 1), &vote(8, 5), || None).unwrap();
        // A candidate votes for itself.
        let own = said(MessageType::MsgRequestVote, 8, 9, 0);
        promises.on_send((1, 1), &own, || None).unwrap();
        assert!(promises.on_send((1, 1), &vote(9, 8), || None).is_err());
        // A store with a new folder has the same peers.
        promises.on_wipe(1);
        assert!(promises.on_send((1, 2), &vote(8, 7), || None).is_err());
    }

    #[test]
    fn peer_that_is_created_anew_is_asked_with_its_first_message() {
        let mut promises = Promises::default();
        let vote = said(MessageType::MsgRequestVoteResponse, 6, 8, 0);
        promises.on_send((1, 1), &vote, || None).unwrap();
        let heard = said(MessageType::MsgHeartbeatResponse, 6, 8, 0);
        let forgotten = || Some(memory(6, 0, 0));
        assert!(promises.on_send((1, 3), &heard, forgotten).is_err());
        promises.on_send((1, 3), &heard, forgotten).unwrap();
    }
}
