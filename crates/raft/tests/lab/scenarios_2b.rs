//! 6.824 lab 2B: replication, and what it may cost.

use crate::harness::lab::{Figures, Lab, RAFT_ELECTION_TIMEOUT};
use strata_raft::{Index, PeerId};

fn figures(seconds: f64) -> Figures {
    Figures {
        seconds,
        limit: None,
    }
}

fn limited(seconds: f64, calls: u64, commands: u64) -> Figures {
    Figures {
        seconds,
        limit: Some((calls, commands)),
    }
}

/// Commands are agreed on one after the other, at consecutive places.
#[test]
fn basic_agreement() {
    let mut lab = Lab::begin("(2B): basic agreement", 3, figures(1.2));
    let first = lab.one(3, true);
    for step in 1..3 {
        let (count, _) = lab.n_committed(first + step);
        assert_eq!(count, 0, "some have committed before Start()");
        assert_eq!(lab.one(3, false), first + step);
    }
    lab.end();
}

/// A command is sent to each peer once, whatever its size.
#[test]
fn rpc_byte_count() {
    let mut lab = Lab::begin("(2B): RPC byte count", 3, limited(2.9, 46, 11));
    let first = lab.one(3, true);
    let before = lab.group.counters.bytes;
    for step in 1..=10 {
        assert_eq!(lab.one_sized(3, false, 5_000), first + step);
    }
    let sent = lab.group.counters.bytes - before;
    let expected = 3 * 10 * 5_000;
    assert!(sent <= expected + 50_000, "{sent} bytes for {expected}");
    // Two followers cannot have got their copies for less.
    assert!(sent >= 2 * 10 * 5_000, "{sent} bytes were counted");
    lab.end();
}

/// A follower that was away catches up.
#[test]
fn agreement_after_follower_reconnects() {
    let title = "(2B): agreement after follower reconnects";
    let mut lab = Lab::begin(title, 3, figures(4.9));
    lab.one(3, true);
    let leader = lab.check_one_leader();
    let away = lab.after(leader, 1);
    lab.disconnect(away);
    lab.one(2, false);
    lab.one(2, false);
    lab.sleep(RAFT_ELECTION_TIMEOUT);
    lab.one(2, false);
    lab.one(2, false);

    lab.connect(away);
    lab.one(3, true);
    lab.sleep(RAFT_ELECTION_TIMEOUT);
    lab.one(3, true);
    lab.end();
}

/// Two servers of five commit nothing.
#[test]
fn no_agreement_if_too_many_followers_disconnect() {
    let title = "(2B): no agreement if too many followers disconnect";
    let mut lab = Lab::begin(title, 5, figures(3.9));
    let first = lab.one(5, true);
    let leader = lab.check_one_leader();
    let away: Vec<PeerId> = (1..=3).map(|step| lab.after(leader, step)).collect();
    away.iter().for_each(|id| lab.disconnect(*id));
    let (index, lost, _) = lab.start(leader).expect("the leader takes commands");
    assert_eq!(index, first + 1);
    lab.sleep(2 * RAFT_ELECTION_TIMEOUT);
    assert_eq!(lab.n_committed(index).0, 0, "committed without a majority");

    away.iter().for_each(|id| lab.connect(*id));
    let leader = lab.check_one_leader();
    let (index, ..) = lab.start(leader).expect("the new leader takes commands");
    // One more than in the course: the new leader's empty entry.
    assert!(
        (first + 1..=first + 3).contains(&index),
        "unexpected index {index}"
    );
    lab.one(5, true);
    let place = lab.group.history.place_of(lost);
    assert!(
        place.is_none_or(|place| place == first + 1),
        "{lost} at {place:?}"
    );
    lab.end();
}

/// Commands that come at once all get their places.
#[test]
fn concurrent_starts() {
    let mut lab = Lab::begin("(2B): concurrent Start()s", 3, limited(1.4, 25, 6));
    for attempt in 0..5 {
        if attempt > 0 {
            lab.sleep_ms(3_000);
        }
        let leader = lab.check_one_leader();
        let Some((first, _, term)) = lab.start(leader) else {
            continue;
        };
        let started: Vec<_> = (0..5).filter_map(|_| lab.start(leader)).collect();
        if started.len() < 5 || started.iter().any(|(_, _, at)| *at != term) {
            continue;
        }
        let places: Vec<Index> = started.iter().map(|(index, ..)| *index).collect();
        assert_eq!(places, (first + 1..first + 6).collect::<Vec<_>>());
        let agreed = started
            .iter()
            .all(|(index, command, _)| lab.wait(*index, 3, Some(term)) == Some(*command));
        if agreed {
            return lab.end();
        }
    }
    panic!("the term changed too often");
}

/// What a leader took while it was cut off is gone, what its successors committed stays.
#[test]
fn rejoin_of_partitioned_leader() {
    let mut lab = Lab::begin("(2B): rejoin of partitioned leader", 3, figures(6.8));
    lab.one(3, true);
    let first = lab.check_one_leader();
    lab.disconnect(first);
    let lost: Vec<_> = (0..3).filter_map(|_| lab.start(first)).collect();
    assert_eq!(
        lost.len(),
        3,
        "a leader that knows no better takes commands"
    );
    lab.one(2, true);
    let second = lab.check_one_leader();
    lab.disconnect(second);
    lab.connect(first);
    lab.one(2, true);
    lab.connect(second);
    lab.one(3, true);
    for (_, command, _) in lost {
        assert_eq!(
            lab.group.history.place_of(command),
            None,
            "{command} was never agreed on"
        );
    }
    lab.end();
}

/// Two followers with 50 wrong entries each are brought in line within the time of a test.
#[test]
fn leader_backs_up_quickly() {
    let title = "(2B): leader backs up quickly over incorrect follower logs";
    let mut lab = Lab::begin(title, 5, figures(25.5));
    lab.one(5, true);

    // The leader and one follower, alone, take commands that are never committed.
    let first = lab.check_one_leader();
    let rest: Vec<PeerId> = (2..=4).map(|step| lab.after(first, step)).collect();
    rest.iter().for_each(|id| lab.disconnect(*id));
    start_fifty(&mut lab, first);
    lab.sleep(RAFT_ELECTION_TIMEOUT / 2);
    let pair = [first, lab.after(first, 1)];
    pair.iter().for_each(|id| lab.disconnect(*id));

    // The other three commit.
    rest.iter().for_each(|id| lab.connect(*id));
    (0..50).for_each(|_| _ = lab.one(3, true));

    // Of these, the leader and one follower take more that are never committed.
    let second = lab.check_one_leader();
    let other = *rest
        .iter()
        .find(|id| **id != second)
        .expect("two followers");
    lab.disconnect(other);
    start_fifty(&mut lab, second);
    lab.sleep(RAFT_ELECTION_TIMEOUT / 2);
    (1..=5).for_each(|id| lab.disconnect(id));

    // The first pair and the third of the majority go on; only the third can win.
    pair.iter().for_each(|id| lab.connect(*id));
    lab.connect(other);
    back_up(&mut lab, 3);
    (0..49).for_each(|_| _ = lab.one(3, true));
    (1..=5).for_each(|id| lab.connect(id));
    back_up(&mut lab, 5);
    lab.end();
}

/// Gets one command agreed on by `expected` servers, of which two have 50 wrong entries. Going
/// back entry by entry takes 100 calls.
fn back_up(lab: &mut Lab, expected: usize) {
    let before = lab.group.counters.busy_calls;
    lab.one(expected, true);
    let calls = lab.group.counters.busy_calls - before;
    println!("      {calls} calls to back up");
    assert!(
        calls <= 20,
        "{calls} calls to back up over 50 wrong entries"
    );
}

fn start_fifty(lab: &mut Lab, leader: PeerId) {
    for _ in 0..50 {
        lab.start(leader)
            .expect("a leader that knows no better takes commands");
    }
}

/// Elections, commands and idleness cost few calls.
#[test]
fn rpc_counts() {
    let mut lab = Lab::begin("(2B): RPC counts aren't too high", 3, limited(2.5, 59, 12));
    lab.check_one_leader();
    let election = lab.group.counters.calls;
    assert!(
        (1..=30).contains(&election),
        "{election} calls to elect the first leader"
    );
    for attempt in 0..5 {
        if attempt > 0 {
            lab.sleep_ms(3_000);
        }
        let leader = lab.check_one_leader();
        let before = lab.group.counters.calls;
        let started: Vec<_> = (0..12).filter_map(|_| lab.start(leader)).collect();
        let [(first, _, term), ..] = started[..] else {
            continue;
        };
        if started.len() < 12 || started.iter().any(|(_, _, at)| *at != term) {
            continue;
        }
        let places: Vec<Index> = started.iter().map(|(index, ..)| *index).collect();
        assert_eq!(places, (first..first + 12).collect::<Vec<_>>());
        let agreed = started
            .iter()
            .all(|(index, command, _)| lab.wait(*index, 3, Some(term)) == Some(*command));
        if !agreed {
            continue;
        }
        let agreement = lab.group.counters.calls - before;
        assert!(
            agreement <= (10 + 1 + 3) * 3,
            "{agreement} calls for 12 commands"
        );
        let before = lab.group.counters.calls;
        lab.sleep(RAFT_ELECTION_TIMEOUT);
        let idle = lab.group.counters.calls - before;
        assert!(idle <= 3 * 20, "{idle} calls in one idle second");
        return lab.end();
    }
    panic!("the term changed too often");
}
