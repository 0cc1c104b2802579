//! Exactly-once operations on stepped stores: one entry for many clients, lost answers,
//! lost leaders, restarts.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use strata_proto::stratapb::{
    AppendCommand, DataCommand, OpenSessionCommand, RawSpace, SessionOperation, data_command::Body,
};
use strata_raftstore::{CommandOutcome, RequestBody, StoreOptions};

fn open() -> RequestBody {
    let command = command(Body::OpenSession(OpenSessionCommand::default()));
    RequestBody::Write(vec![command])
}

fn append(session: &Bytes, sequence: u64, value: &str) -> RequestBody {
    RequestBody::Write(vec![DataCommand {
        session: Some(SessionOperation {
            session_id: session.clone(),
            sequence,
        }),
        body: Some(Body::Append(AppendCommand {
            space: RawSpace::RawV1.into(),
            key: bytes("a"),
            value: bytes(value),
            max_value_bytes: 0,
        })),
    }])
}

fn opened(result: Outcome) -> Bytes {
    match &written(result)[..] {
        [CommandOutcome::SessionOpened(id)] => id.clone(),
        other => panic!("not opened: {other:?}"),
    }
}

/// The answer of an operation is lost with its leader. Its repetition reaches the next one
/// and gets that answer; the value holds the word once.
#[test]
fn operation_repeated_at_the_next_leader_is_executed_once() {
    let mut cluster = Cluster::new(3, StoreOptions::default());
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let session = opened(cluster.call(region_id, open()));
    let leader = cluster.leader(region_id).unwrap();
    let answer = cluster.send(leader, region_id, append(&session, 1, "x"));
    let before = answer.try_recv().ok();
    cluster.cut.insert(leader);
    cluster.until("another leader", |cluster| {
        (1..=3).any(|id| id != leader && cluster.leader(region_id) == Some(id))
    });
    let again = cluster.call(region_id, append(&session, 1, "x"));
    assert_eq!(written(again), [CommandOutcome::Done], "before: {before:?}");
    let next = cluster.call(region_id, append(&session, 2, "y"));
    assert_eq!(written(next), [CommandOutcome::Done]);
    assert_eq!(cluster.get("a").as_deref(), Some("xy"));
}

/// Both limits are those of the leader that proposes the opening.
#[test]
fn session_limits_are_the_leaders() {
    let options = StoreOptions {
        session_ttl: Duration::from_secs(5),
        max_sessions_per_region: 2,
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(1, options);
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let sessions: Vec<Bytes> = (0..3)
        .map(|_| {
            cluster.run(Duration::from_millis(100));
            opened(cluster.call(region_id, open()))
        })
        .collect();
    let mut outcome = |session: &Bytes, sequence, wait| {
        cluster.run(wait);
        let outcomes = written(cluster.call(region_id, append(session, sequence, "x")));
        assert_eq!(outcomes.len(), 1);
        outcomes[0].clone()
    };
    let (short, long) = (Duration::from_secs(3), Duration::from_secs(6));
    assert_eq!(
        outcome(&sessions[0], 1, short),
        CommandOutcome::SessionExpired
    );
    assert_eq!(outcome(&sessions[1], 1, short / 2), CommandOutcome::Done);
    // Used in between, it lives longer than its first five seconds.
    assert_eq!(outcome(&sessions[1], 2, short), CommandOutcome::Done);
    assert_eq!(
        outcome(&sessions[2], 1, short),
        CommandOutcome::SessionExpired
    );
    assert_eq!(
        outcome(&sessions[1], 3, long),
        CommandOutcome::SessionExpired
    );
    assert_eq!(cluster.get("a").as_deref(), Some("xx"));
}

/// A restart replays the log from the last applied index: what was executed before and
/// what is executed now meet in the same table.
#[test]
fn sessions_survive_a_restart() {
    let mut cluster = Cluster::new(1, StoreOptions::default());
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let session = opened(cluster.call(region_id, open()));
    for sequence in 1..=5 {
        written(cluster.call(region_id, append(&session, sequence, &sequence.to_string())));
    }
    let node = cluster.nodes.remove(&1).unwrap();
    cluster.start(1, node.engines);
    cluster.elect_all();
    for sequence in [5, 6] {
        let outcomes = written(cluster.call(region_id, append(&session, sequence, "5")));
        assert_eq!(outcomes, [CommandOutcome::Done]);
    }
    assert_eq!(cluster.get("a").as_deref(), Some("123455"));
}

fn single(cluster: &mut Cluster) -> (u64, Bytes) {
    cluster.elect_all();
    let region_id = cluster.region_of(b"a");
    let session = opened(cluster.call(region_id, open()));
    (region_id, session)
}

#[test]
fn bad_input_unknown_session() {
    let mut cluster = Cluster::new(1, StoreOptions::default());
    let (region_id, session) = single(&mut cluster);
    let other = cluster.region_of(b"z");
    assert_ne!(region_id, other);
    let elsewhere = opened(cluster.call(other, open()));
    for unknown in [
        Bytes::from(vec![0; 20]),
        Bytes::from(vec![0xff; 20]),
        elsewhere,
    ] {
        let outcomes = written(cluster.call(region_id, append(&unknown, 1, "x")));
        assert_eq!(outcomes, [CommandOutcome::SessionExpired]);
    }
    assert_eq!(cluster.get("a"), None);
    written(cluster.call(region_id, append(&session, 1, "y")));
    assert_eq!(cluster.get("a").as_deref(), Some("y"));
}

#[test]
fn bad_input_expired_session() {
    let options = StoreOptions {
        session_ttl: Duration::from_secs(2),
        ..StoreOptions::default()
    };
    let mut cluster = Cluster::new(1, options);
    let (region_id, session) = single(&mut cluster);
    written(cluster.call(region_id, append(&session, 1, "x")));
    cluster.run(Duration::from_secs(3));
    for sequence in [1, 2] {
        let outcomes = written(cluster.call(region_id, append(&session, sequence, "x")));
        assert_eq!(outcomes, [CommandOutcome::SessionExpired]);
    }
    assert_eq!(cluster.get("a").as_deref(), Some("x"));
}

#[test]
fn bad_input_replayed_session() {
    let mut cluster = Cluster::new(1, StoreOptions::default());
    let (region_id, session) = single(&mut cluster);
    for value in ["x", "y", "z"] {
        // Whatever the repetition asks for, it is the operation that was executed.
        let outcomes = written(cluster.call(region_id, append(&session, 1, value)));
        assert_eq!(outcomes, [CommandOutcome::Done]);
    }
    assert_eq!(cluster.get("a").as_deref(), Some("x"));
}
