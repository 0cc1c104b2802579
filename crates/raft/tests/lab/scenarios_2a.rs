//! 6.824 lab 2A: elections.

use crate::harness::lab::{Figures, Lab, RAFT_ELECTION_TIMEOUT};

fn figures(seconds: f64) -> Figures {
    Figures {
        seconds,
        limit: None,
    }
}

/// A leader comes up and, without failures, stays.
#[test]
fn initial_election() {
    let mut lab = Lab::begin("(2A): initial election", 3, figures(3.5));
    let leader = lab.check_one_leader();
    lab.sleep_ms(50);
    let term = lab.check_terms();
    assert!(term >= 1, "a leader without a term");
    lab.sleep(2 * RAFT_ELECTION_TIMEOUT);
    assert_eq!(
        lab.check_terms(),
        term,
        "the term changed without a failure"
    );
    assert_eq!(
        lab.check_one_leader(),
        leader,
        "the leader changed without a failure"
    );
    lab.end();
}

/// Another leader after the first is cut off; none without a quorum; one when it is back.
#[test]
fn election_after_network_failure() {
    let mut lab = Lab::begin("(2A): election after network failure", 3, figures(5.6));
    let first = lab.check_one_leader();
    lab.disconnect(first);
    let second = lab.check_one_leader();
    assert_ne!(first, second);

    // The old leader's return disturbs nobody.
    lab.connect(first);
    assert_eq!(lab.check_one_leader(), second);

    let third = lab.after(second, 1);
    lab.disconnect(second);
    lab.disconnect(third);
    lab.sleep(2 * RAFT_ELECTION_TIMEOUT);
    lab.check_no_leader();

    lab.connect(third);
    lab.check_one_leader();
    lab.connect(second);
    lab.check_one_leader();
    lab.end();
}

/// Three random servers of seven come and go ten times; the rest always has a leader.
#[test]
fn multiple_elections() {
    let mut lab = Lab::begin("(2A): multiple elections", 7, figures(7.4));
    lab.check_one_leader();
    for _ in 0..10 {
        let away = [lab.any(), lab.any(), lab.any()];
        away.iter().for_each(|id| lab.disconnect(*id));
        lab.check_one_leader();
        away.iter().for_each(|id| lab.connect(*id));
    }
    lab.check_one_leader();
    lab.end();
}
