//! When a session goes: by the clock of the region, and by the limit on their number.

use super::*;

#[test]
fn session_expired_by_log() {
    let mut replica = Replica::new();
    let idle = replica.open(1_000);
    let used = replica.open(1_000);
    assert_eq!(
        replica.one(6_000, append(&used, 1, "a")),
        CommandOutcome::Done
    );
    // One millisecond before its time a session still lives, and lives on by its use.
    assert_eq!(
        replica.one(10_999, append(&idle, 1, "b")),
        CommandOutcome::Done
    );
    // The clock of an entry without commands expires as well; nothing shows it yet.
    replica.index += 1;
    let task = EntriesTask {
        region_id: REGION,
        entries: vec![entry(replica.index, 1, 16_000, vec![])],
        proposals: vec![],
        committed: Duration::ZERO,
    };
    let output = replica
        .shard
        .apply(&replica.kv, vec![ApplyTask::Entries(task)])
        .unwrap();
    replica.kv.write(&output.batch, output.durability).unwrap();
    assert_eq!(replica.sessions(), 2);
    // A later leader with an older clock does not bring it back: the region's clock counts.
    let mut replica = replica.restart_with_clock(16_000);
    assert_eq!(
        replica.one(2, append(&used, 1, "a")),
        CommandOutcome::SessionExpired
    );
    assert_eq!(
        replica.one(2, append(&used, 2, "a")),
        CommandOutcome::SessionExpired
    );
    assert_eq!(replica.one(2, append(&idle, 1, "b")), CommandOutcome::Done);
    assert_eq!(replica.value("k").as_deref(), Some("ab"));
    assert_eq!(replica.sessions(), 1);
    assert_eq!(replica.metrics.sessions_expired.get(), 1);
}

#[test]
fn oldest_session_goes_when_there_are_too_many() {
    let mut replica = Replica::new();
    let sessions: Vec<Bytes> = (1..=4).map(|clock_ms| replica.open(clock_ms)).collect();
    // The first is the one used last by now.
    assert_eq!(
        replica.one(5, append(&sessions[0], 1, "a")),
        CommandOutcome::Done
    );
    let mut replica = replica.restart();
    let fifth = replica.open(6);
    assert_eq!(replica.sessions(), 4);
    assert_eq!(
        replica.one(7, append(&sessions[1], 1, "x")),
        CommandOutcome::SessionExpired
    );
    for session in [&sessions[0], &fifth] {
        let next = if session == &fifth { 1 } else { 2 };
        assert_eq!(
            replica.one(8, append(session, next, "b")),
            CommandOutcome::Done
        );
    }
    // A smaller limit holds from the command on that brings it.
    assert!(matches!(
        replica.one(9, open(1)),
        CommandOutcome::SessionOpened(_)
    ));
    assert_eq!(replica.sessions(), 1);
    assert!(matches!(
        replica.one(10, open(0)),
        CommandOutcome::SessionOpened(_)
    ));
    assert_eq!(replica.sessions(), 1);
}

/// A leader whose clock is behind the region's leaves that where it is.
#[test]
fn session_in_use_stays_while_the_clock_stands_still() {
    let mut replica = Replica::new();
    let busy = replica.open(1000);
    for sequence in 1..=20 {
        // Short commands that open a session each, as of a tool that ends behind them.
        for _ in 0..3 {
            let short = replica.open(7);
            let outcome = replica.one(7, append(&short, 1, ""));
            assert_eq!(outcome, CommandOutcome::Done);
        }
        if sequence % 5 == 0 {
            replica = replica.restart_with_clock(1000);
        }
        let outcome = replica.one(7, append(&busy, sequence, ""));
        assert_eq!(outcome, CommandOutcome::Done, "operation {sequence}");
    }
    assert_eq!(replica.sessions(), 4);
}
