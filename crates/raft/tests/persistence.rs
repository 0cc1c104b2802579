//! What may leave a replica before its own disk has synced, and what counts only after.
//!
//! The disk of these tests is slow: Readys are written and shown at once, and synced when the
//! test says so.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use strata_raft::{Config, Index, MemStorage, PeerId, RawNode, Ready, Role, Storage, Term};

const NOW: Duration = Duration::from_secs(1);

fn node(voters: &[PeerId], learners: &[PeerId]) -> (RawNode<MemStorage>, MemStorage) {
    let storage = MemStorage::new_with_conf_state(voters.to_vec(), learners.to_vec());
    let config = Config {
        id: 1,
        pre_vote: false,
        quiet_after_start: false,
        ..Config::default()
    };
    (
        RawNode::new(&config, storage.clone(), NOW).unwrap(),
        storage,
    )
}

/// Writes and shows a Ready without syncing it.
fn write(node: &mut RawNode<MemStorage>, storage: &MemStorage) -> Ready {
    let ready = node.ready(NOW);
    if let Some(snapshot) = ready.snapshot.clone() {
        storage.apply_snapshot(snapshot).unwrap();
    }
    storage.append(&ready.entries);
    if let Some(hard_state) = ready.hard_state {
        storage.set_hard_state(hard_state);
    }
    node.advance_append_async(ready.clone());
    ready
}

fn from(from: PeerId, msg_type: MessageType, term: Term) -> Message {
    Message {
        msg_type: msg_type as i32,
        from,
        to: 1,
        term,
        ..Message::default()
    }
}

fn accepted(peer: PeerId, term: Term, index: Index) -> Message {
    Message {
        index,
        ..from(peer, MessageType::MsgAppendResponse, term)
    }
}

fn append(term: Term, prev: Index, log_term: Term, terms: &[Term], commit: Index) -> Message {
    let entry = |(at, &term): (usize, &Term)| Entry {
        term,
        index: prev + 1 + at as u64,
        ..Entry::default()
    };
    Message {
        index: prev,
        log_term,
        commit,
        entries: terms.iter().enumerate().map(entry).collect(),
        ..from(2, MessageType::MsgAppend, term)
    }
}

fn types(messages: &[Message]) -> Vec<MessageType> {
    messages.iter().map(Message::msg_type).collect()
}

/// A leader of term 1 whose first entry is written and not synced.
fn leader() -> (RawNode<MemStorage>, MemStorage) {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.campaign(NOW).unwrap();
    let ready = write(&mut node, &storage);
    node.on_persist_ready(ready.number);
    let vote = from(2, MessageType::MsgRequestVoteResponse, 1);
    node.step(NOW, vote).unwrap();
    assert_eq!(node.status().soft_state.role, Role::Leader);
    (node, storage)
}

#[test]
fn asking_for_a_vote_waits_for_the_sync_of_the_own_vote() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.campaign(NOW).unwrap();
    let ready = write(&mut node, &storage);
    assert!(ready.must_sync && ready.messages.is_empty());
    let asked = [MessageType::MsgRequestVote; 2];
    assert_eq!(types(&ready.persisted_messages), asked);
}

#[test]
fn a_vote_given_waits_for_its_sync() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    let ask = from(2, MessageType::MsgRequestVote, 4);
    node.step(NOW, ask).unwrap();
    let ready = write(&mut node, &storage);
    let saved = HardState {
        term: 4,
        vote: 2,
        commit: 0,
    };
    assert_eq!(ready.hard_state, Some(saved));
    assert!(ready.must_sync && ready.messages.is_empty());
    let answer = [MessageType::MsgRequestVoteResponse];
    assert_eq!(types(&ready.persisted_messages), answer);
}

#[test]
fn a_leader_sends_before_its_own_sync_and_counts_itself_after() {
    let (mut node, storage) = leader();
    let ready = write(&mut node, &storage);
    assert_eq!(types(&ready.messages), [MessageType::MsgAppend; 2]);
    assert!(ready.persisted_messages.is_empty());
    node.step(NOW, accepted(2, 1, 1)).unwrap();
    assert_eq!(node.status().hard_state.commit, 0, "one synced copy");
    node.on_persist_ready(ready.number);
    assert_eq!(node.status().hard_state.commit, 1, "two synced copies");
}

#[test]
fn an_entry_is_applied_only_when_it_is_synced_here() {
    let (mut node, storage) = leader();
    let ready = write(&mut node, &storage);
    node.step(NOW, accepted(2, 1, 1)).unwrap();
    node.step(NOW, accepted(3, 1, 1)).unwrap();
    assert_eq!(node.status().hard_state.commit, 1, "two others have it");
    let next = write(&mut node, &storage);
    assert!(next.committed_entries.is_empty());
    node.on_persist_ready(ready.number);
    let last = write(&mut node, &storage);
    assert_eq!(last.committed_entries.len(), 1);
}

#[test]
fn the_only_voter_sends_nothing_before_its_term_is_synced() {
    let (mut node, storage) = node(&[1], &[2]);
    node.campaign(NOW).unwrap();
    assert_eq!(node.status().soft_state.role, Role::Leader);
    let first = write(&mut node, &storage);
    assert!(first.messages.is_empty(), "the term could be lost");
    let held = [MessageType::MsgAppend];
    assert_eq!(types(&first.persisted_messages), held);
    assert!(first.committed_entries.is_empty());
    node.on_persist_ready(first.number);
    node.step(NOW, accepted(2, 1, 1)).unwrap();
    let data = Bytes::from_static(b"x");
    node.propose(Bytes::new(), data).unwrap();
    let second = write(&mut node, &storage);
    assert_eq!(types(&second.messages), [MessageType::MsgAppend]);
}

#[test]
fn answers_wait_for_the_entries_they_confirm() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.step(NOW, append(1, 0, 0, &[1, 1], 2)).unwrap();
    let first = write(&mut node, &storage);
    let answer = [MessageType::MsgAppendResponse];
    assert!(first.messages.is_empty());
    assert_eq!(types(&first.persisted_messages), answer);
    assert!(first.committed_entries.is_empty(), "not synced yet");
    // The same append again: nothing new to write, but what it confirms is under way.
    node.step(NOW, append(1, 0, 0, &[1, 1], 2)).unwrap();
    let second = write(&mut node, &storage);
    assert!(!second.must_sync && second.messages.is_empty());
    assert_eq!(types(&second.persisted_messages), answer);
    node.on_persist_ready(second.number);
    // Now everything is on the disk, so nothing has to wait.
    node.step(NOW, append(1, 0, 0, &[1, 1], 2)).unwrap();
    let third = write(&mut node, &storage);
    assert_eq!(types(&third.messages), answer);
    assert!(third.persisted_messages.is_empty());
    assert_eq!(third.committed_entries.len(), 2);
}

#[test]
fn heartbeats_are_answered_before_entries_are_synced() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    let beat = |round| Message {
        index: round,
        ..from(2, MessageType::MsgHeartbeat, 1)
    };
    node.step(NOW, beat(6)).unwrap();
    let first = write(&mut node, &storage);
    node.on_persist_ready(first.number);
    node.step(NOW, append(1, 0, 0, &[1], 0)).unwrap();
    node.step(NOW, beat(7)).unwrap();
    let ready = write(&mut node, &storage);
    assert_eq!(types(&ready.messages), [MessageType::MsgHeartbeatResponse]);
    assert_eq!(ready.messages[0].index, 7, "the round comes back");
}

/// An answer to a heartbeat gives the leader a lease. After a crash a replica keeps quiet for
/// as long as that may last, unless its hard state is still the bootstrap's; so the term must
/// be on the disk before the first answer leaves.
#[test]
fn the_first_heartbeat_of_a_term_is_answered_when_the_term_is_synced() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    let beat = Message {
        index: 7,
        ..from(2, MessageType::MsgHeartbeat, 6)
    };
    node.step(NOW, beat).unwrap();
    let ready = write(&mut node, &storage);
    assert!(ready.must_sync && ready.messages.is_empty());
    let answer = [MessageType::MsgHeartbeatResponse];
    assert_eq!(types(&ready.persisted_messages), answer);
}

/// A membership counts when it is applied, so a replica that has not heard of the commit of
/// the last change still asks the old voters, who refuse it if their logs are longer and
/// cannot lead any more. What they know to be committed must reach it with their refusal.
#[test]
fn commit_index_is_learned_from_answers_to_votes() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.step(NOW, append(1, 0, 0, &[1, 1, 1], 1)).unwrap();
    let ready = write(&mut node, &storage);
    node.on_persist_ready(ready.number);
    let later = NOW + Duration::from_secs(60);
    let refusal = |log_term, commit| Message {
        reject: true,
        log_term,
        commit,
        ..from(3, MessageType::MsgRequestVoteResponse, 2)
    };
    node.campaign(later).unwrap();
    for (log_term, commit) in [(2, 2), (0, 2), (1, 4), (1, u64::MAX)] {
        node.step(later, refusal(log_term, commit)).unwrap();
        assert_eq!(
            node.status().hard_state.commit,
            1,
            "not an entry of its log"
        );
    }
    node.step(later, refusal(1, 2)).unwrap();
    assert_eq!(node.status().hard_state.commit, 2);
    assert_eq!(node.status().soft_state.role, Role::Candidate);

    // It tells what it knows in turn, granted or not.
    let ready = write(&mut node, &storage);
    node.on_persist_ready(ready.number);
    for (last, reject) in [((3, 9), false), ((1, 0), true)] {
        let ask = Message {
            log_term: last.0,
            index: last.1,
            ..from(2, MessageType::MsgRequestVote, 3 + u64::from(reject))
        };
        node.step(later, ask).unwrap();
        let ready = write(&mut node, &storage);
        let answers = [ready.messages, ready.persisted_messages].concat();
        assert_eq!(types(&answers), [MessageType::MsgRequestVoteResponse]);
        let found = (answers[0].reject, answers[0].commit, answers[0].log_term);
        assert_eq!(found, (reject, 2, 1));
        node.on_persist_ready(ready.number);
    }
}

/// A candidate that learns of a committed change of membership waits until it is applied.
#[test]
fn a_candidate_that_learns_of_a_change_steps_back() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    let mut grown = append(1, 0, 0, &[1, 1], 1);
    grown.entries[1].set_entry_type(EntryType::EntryConfChangeV2);
    node.step(NOW, grown).unwrap();
    let ready = write(&mut node, &storage);
    node.on_persist_ready(ready.number);
    let later = NOW + Duration::from_secs(60);
    node.campaign(later).unwrap();
    let refusal = Message {
        reject: true,
        log_term: 1,
        commit: 2,
        ..from(3, MessageType::MsgRequestVoteResponse, 2)
    };
    node.step(later, refusal).unwrap();
    assert_eq!(node.status().soft_state.role, Role::Follower);
    assert!(node.campaign(later).is_err(), "the change is not applied");
}

#[test]
fn entries_replaced_while_they_are_synced_do_not_count() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.step(NOW, append(1, 0, 0, &[1, 1, 1], 1)).unwrap();
    let first = write(&mut node, &storage);
    node.step(NOW, append(2, 1, 1, &[2], 2)).unwrap();
    let second = write(&mut node, &storage);
    assert_eq!(storage.last_index(), Ok(2));
    node.on_persist_ready(first.number);
    assert_eq!(node.status().persisted, 1);
    let committed = write(&mut node, &storage).committed_entries;
    assert_eq!(committed.last().map(|entry| entry.index), Some(1));
    node.on_persist_ready(second.number);
    let committed = write(&mut node, &storage).committed_entries;
    let ids: Vec<_> = committed.iter().map(|e| (e.term, e.index)).collect();
    assert_eq!(ids, [(2, 2)]);
}

#[test]
#[should_panic(expected = "ready 2 is synced, ready 1 was advanced")]
fn a_sync_of_what_was_not_written_is_a_broken_invariant() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    node.campaign(NOW).unwrap();
    write(&mut node, &storage);
    node.on_persist_ready(2);
}

fn heartbeat(term: Term) -> Message {
    from(2, MessageType::MsgHeartbeat, term)
}

#[test]
fn messages_leave_without_a_ready_only_where_nothing_else_is_to_be_done() {
    let (mut node, storage) = node(&[1, 2, 3], &[]);
    assert_eq!(node.take_lone_messages(), None, "nothing was sent");
    // A new term goes to disk, and the answer, which gives a lease in it, after that.
    node.step(NOW, heartbeat(3)).unwrap();
    assert_eq!(node.take_lone_messages(), None, "the term is new");
    let ready = write(&mut node, &storage);
    assert!(ready.must_sync && ready.messages.is_empty());
    node.step(NOW, heartbeat(3)).unwrap();
    assert_eq!(node.take_lone_messages(), None, "the term is not synced");
    assert!(node.has_ready());
    let held = write(&mut node, &storage);
    assert!(held.messages.is_empty(), "{:?}", held.messages);
    node.on_persist_ready(held.number);

    node.step(NOW, heartbeat(3)).unwrap();
    let lone = node.take_lone_messages().expect("an answer alone");
    assert_eq!(types(&lone), [MessageType::MsgHeartbeatResponse]);
    assert!(!node.has_ready() && node.take_lone_messages().is_none());

    // An entry is to be written, and its answer waits for that.
    node.step(NOW, heartbeat(3)).unwrap();
    node.step(NOW, append(3, 0, 0, &[3], 0)).unwrap();
    assert_eq!(node.take_lone_messages(), None, "an entry came along");
}
