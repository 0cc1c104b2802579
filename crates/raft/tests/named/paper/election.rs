//! Sections 5.1, 5.2 and 5.4.1: terms, elections, votes.

use std::collections::BTreeSet;

use strata_proto::eraftpb::{Message, MessageType};
use strata_raft::{Config, Index, PeerId, Role, Term};

use crate::support::disk::Disk;
use crate::support::node::{ELECTION_TICKS, Node, append, config, message, vote_answer};

/// Section 5.1: whoever sees a higher term takes it over and becomes a follower.
fn updates_term_from_message(role: Role) {
    let mut node = Node::of(1, &[1, 2, 3]);
    match role {
        Role::Leader => node.lead(),
        Role::Candidate => node.campaign(),
        Role::Follower | Role::PreCandidate => {}
    }
    assert_eq!(node.role(), role);
    node.step(append(2, 1, 2, (0, 0), &[], 0));
    assert_eq!((node.term(), node.role()), (2, Role::Follower));
}

#[test]
fn follower_update_term_from_message() {
    updates_term_from_message(Role::Follower);
}

#[test]
fn candidate_update_term_from_message() {
    updates_term_from_message(Role::Candidate);
}

#[test]
fn leader_update_term_from_message() {
    updates_term_from_message(Role::Leader);
}

/// Section 5.1: a message with an old term is not acted on.
#[test]
fn message_of_old_term_is_rejected() {
    let mut node = Node::at(1, &[1, 2, 3], 2, 0, &[], 0);
    let _ = node.try_step(append(2, 1, 1, (0, 0), &[(1, 1)], 1));
    assert_eq!(
        (node.log(), node.commit(), node.leader()),
        (vec![], 0, None)
    );
}

/// Section 5.2.
#[test]
fn start_as_follower() {
    let node = Node::of(1, &[1, 2, 3]);
    assert_eq!(
        (node.role(), node.term(), node.leader()),
        (Role::Follower, 0, None)
    );
}

/// Section 5.2: heartbeats go to all followers, at the heartbeat interval, without entries.
#[test]
fn leader_bcast_beat() {
    let interval = 3;
    let config = Config {
        heartbeat_ticks: interval,
        ..config(1)
    };
    let mut node = Node::new(config, Disk::with_voters(&[1, 2, 3]));
    node.lead();
    for _ in 0..10 {
        node.propose("some data").unwrap();
    }
    node.sent();
    node.ticks(interval - 1);
    assert!(node.sent().is_empty(), "a heartbeat before its time");
    node.tick();
    let mut sent: Vec<_> = node
        .sent()
        .iter()
        .map(|m| (m.msg_type(), m.to, m.term, m.entries.len()))
        .collect();
    sent.sort_unstable();
    let beat = MessageType::MsgHeartbeat;
    assert_eq!(sent, [(beat, 2, 1, 0), (beat, 3, 1, 0)]);
}

/// Section 5.2: without word from a leader, raise the term, vote for oneself, ask all others.
fn starts_election(role: Role) {
    let mut node = Node::at(1, &[1, 2, 3], 1, 0, &[], 0);
    if role == Role::Candidate {
        node.campaign();
    }
    assert_eq!(node.role(), role);
    let before = node.term();
    node.sent();
    for _ in 0..2 * ELECTION_TICKS {
        node.tick();
        if node.term() > before {
            break;
        }
    }
    assert_eq!(
        (node.role(), node.term(), node.vote()),
        (Role::Candidate, before + 1, 1)
    );
    let mut sent: Vec<_> = node
        .sent()
        .iter()
        .map(|m| (m.msg_type(), m.to, m.term))
        .collect();
    sent.sort_unstable();
    let vote = MessageType::MsgRequestVote;
    assert_eq!(sent, [(vote, 2, before + 1), (vote, 3, before + 1)]);
}

#[test]
fn follower_start_election() {
    starts_election(Role::Follower);
}

#[test]
fn candidate_start_new_election() {
    starts_election(Role::Candidate);
}

/// Section 5.2: a majority of the whole group wins, a majority of refusals loses.
#[test]
fn leader_election_in_one_round() {
    use Role::{Candidate, Follower, Leader};
    type Votes = &'static [(PeerId, bool)];
    let cases: [(u64, Votes, Role); 13] = [
        (1, &[], Leader),
        (3, &[(2, true), (3, true)], Leader),
        (3, &[(2, true)], Leader),
        (5, &[(2, true), (3, true), (4, true), (5, true)], Leader),
        (5, &[(2, true), (3, true), (4, true)], Leader),
        (5, &[(2, true), (3, true)], Leader),
        (3, &[(2, false), (3, false)], Follower),
        (
            5,
            &[(2, false), (3, false), (4, false), (5, false)],
            Follower,
        ),
        (
            5,
            &[(2, true), (3, false), (4, false), (5, false)],
            Follower,
        ),
        (3, &[], Candidate),
        (5, &[(2, true)], Candidate),
        (5, &[(2, false), (3, false)], Candidate),
        (5, &[], Candidate),
    ];
    for (size, votes, wanted) in cases {
        let voters: Vec<PeerId> = (1..=size).collect();
        let mut node = Node::of(1, &voters);
        node.campaign();
        for &(from, granted) in votes {
            node.step(vote_answer(from, 1, 1, !granted));
        }
        assert_eq!(
            (node.role(), node.term()),
            (wanted, 1),
            "{size} voters, {votes:?}"
        );
    }
}

/// Section 5.2: at most one vote a term, first come first served.
#[test]
fn follower_vote() {
    let cases = [
        (0, 1, false),
        (0, 2, false),
        (1, 1, false),
        (2, 2, false),
        (1, 2, true),
        (2, 1, true),
    ];
    for (earlier, asked_by, refused) in cases {
        let mut node = Node::at(3, &[1, 2, 3], 1, earlier, &[], 0);
        node.step(message(MessageType::MsgRequestVote, asked_by, 3, 1));
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "voted for {earlier}, asked by {asked_by}");
        assert_eq!(
            sent[0],
            vote_answer(3, asked_by, 1, refused),
            "voted for {earlier}"
        );
    }
}

/// Section 5.2: a candidate yields to the leader of its term or of a higher one.
#[test]
fn candidate_fallback() {
    for term in [1, 2] {
        let mut node = Node::of(1, &[1, 2, 3]);
        node.campaign();
        assert_eq!((node.role(), node.term()), (Role::Candidate, 1));
        node.step(append(2, 1, term, (0, 0), &[], 0));
        assert_eq!(
            (node.role(), node.term(), node.leader()),
            (Role::Follower, term, Some(2))
        );
    }
}

/// Ticks until `node` campaigns in a new term.
fn ticks_until_campaign(node: &mut Node) -> usize {
    let before = node.term();
    for ticks in 1..=4 * ELECTION_TICKS {
        node.tick();
        if node.term() > before {
            return ticks;
        }
    }
    panic!("no campaign after {} ticks", 4 * ELECTION_TICKS);
}

fn hear_from_leader(node: &mut Node) {
    let term = node.term();
    node.step(append(2, node.id, term, (0, 0), &[], 0));
    assert_eq!(node.role(), Role::Follower);
    node.sent();
}

/// Section 5.2: timeouts are drawn anew each time from a fixed range.
fn election_timeout_is_randomized(role: Role) {
    let mut seen = BTreeSet::new();
    let mut node = Node::at(1, &[1, 2, 3], 1, 0, &[], 0);
    if role == Role::Candidate {
        node.campaign();
    }
    for _ in 0..50 * ELECTION_TICKS {
        if role == Role::Follower {
            hear_from_leader(&mut node);
        }
        seen.insert(ticks_until_campaign(&mut node));
        node.sent();
    }
    let range: BTreeSet<usize> = (ELECTION_TICKS..2 * ELECTION_TICKS).collect();
    assert_eq!(seen, range, "timeouts of a {role:?}");
}

#[test]
fn follower_election_timeout_randomized() {
    election_timeout_is_randomized(Role::Follower);
}

#[test]
fn candidate_election_timeout_randomized() {
    election_timeout_is_randomized(Role::Candidate);
}

/// Section 5.2: timeouts differ enough that mostly one node alone stands first.
fn timeouts_rarely_conflict(role: Role) {
    let voters = [1, 2, 3, 4, 5];
    let mut nodes: Vec<Node> = voters.iter().map(|&id| Node::of(id, &voters)).collect();
    let rounds = 1000;
    let mut conflicts = 0;
    for _ in 0..rounds {
        for node in &mut nodes {
            match role {
                Role::Candidate => node.campaign(),
                _ => {
                    let leader = if node.id == 1 { 2 } else { 1 };
                    let term = node.term() + 1;
                    node.step(append(leader, node.id, term, (0, 0), &[], 0));
                }
            }
            node.sent();
        }
        let mut standing = 0;
        while standing == 0 {
            for node in &mut nodes {
                let before = node.term();
                node.tick();
                standing += usize::from(node.term() > before);
            }
        }
        conflicts += usize::from(standing > 1);
    }
    let share = conflicts as f64 / rounds as f64;
    assert!(
        share <= 0.3,
        "{conflicts} of {rounds} elections had two candidates"
    );
}

#[test]
fn followers_election_timeout_nonconflict() {
    timeouts_rarely_conflict(Role::Follower);
}

#[test]
fn candidates_election_timeout_nonconflict() {
    timeouts_rarely_conflict(Role::Candidate);
}

/// Section 5.4.1: a vote request tells how far the candidate's log reaches.
#[test]
fn vote_request() {
    let cases: [(&[(Index, Term)], Term); 2] = [(&[(1, 1)], 2), (&[(1, 1), (2, 2)], 3)];
    for (ids, term) in cases {
        let mut node = Node::of(1, &[1, 2, 3]);
        node.step(append(2, 1, term - 1, (0, 0), ids, 0));
        node.sent();
        ticks_until_campaign(&mut node);
        let sent = node.sent_of(MessageType::MsgRequestVote);
        assert_eq!(sent.iter().map(|m| m.to).collect::<Vec<_>>(), [2, 3]);
        let (index, log_term) = *ids.last().unwrap();
        for m in sent {
            assert_eq!((m.term, m.index, m.log_term), (term, index, log_term));
        }
    }
}

/// Section 5.4.1: no vote for a candidate whose log is behind the voter's.
#[test]
fn voter() {
    // The voter's log, then the candidate's last term and index, and whether it is refused.
    let cases: [(&[Term], Term, Index, bool); 9] = [
        // The same last term: the longer log is ahead.
        (&[1], 1, 1, false),
        (&[1], 1, 2, false),
        (&[1, 1], 1, 1, true),
        // The candidate's last term is higher.
        (&[1], 2, 1, false),
        (&[1], 2, 2, false),
        (&[1, 1], 2, 1, false),
        // The voter's last term is higher.
        (&[2], 1, 1, true),
        (&[2], 1, 2, true),
        (&[2, 1], 1, 1, true),
    ];
    for (terms, log_term, index, refused) in cases {
        // Terms never fall along a log: 2, 1 of the course's table stands for 1, 2 here.
        let mut terms = terms.to_vec();
        terms.sort_unstable();
        let mut node = Node::at(1, &[1, 2], 2, 0, &terms, 0);
        node.step(Message {
            index,
            log_term,
            ..message(MessageType::MsgRequestVote, 2, 1, 3)
        });
        let sent = node.sent();
        assert_eq!(sent.len(), 1, "{terms:?} {log_term} {index}");
        assert_eq!(sent[0].msg_type(), MessageType::MsgRequestVoteResponse);
        assert_eq!(
            sent[0].reject, refused,
            "voter {terms:?}, candidate {index}@{log_term}"
        );
    }
}
