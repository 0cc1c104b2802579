//! The 6.824 course's lab 3B on whole stepped clusters: clerks over short logs, and stores
//! that come back by a snapshot, which brings the table of sessions along.

mod common;

use std::ops::ControlFlow;

use bytes::Bytes;
use common::{
    SECOND, appends, check_pieces, get_at, leader_at, move_leader, random_keys, short_logs,
    started_with, stored, truncated,
};
use strata_proto::stratapb::{
    DataCommand, OpenSessionCommand, RawSpace, SessionOperation, data_command::Body,
};
use strata_raftstore::{Answer, CommandOutcome, RequestBody, StoreOptions};
use strata_sim::{
    AttemptResult, CallOptions, ClientId, ClientOperation, Cluster, ClusterOptions, FaultKind,
    Scenario,
};
use strata_storage::snapshot::Origin;
use strata_storage::{Cf, Direction, ReadView, keys};

/// Encoded bytes of a log beyond which it is compacted, as in the lab.
const LOG_BYTES_MAX: u64 = 1_000;
/// Most bytes of a snapshot of one short key, as in the lab.
const SNAPSHOT_BYTES_MAX: u64 = 500;

/// A cluster whose logs are compacted at [`LOG_BYTES_MAX`].
fn small_logs(seed: u64) -> Cluster {
    started_with(ClusterOptions {
        store: StoreOptions {
            log_gc_size_limit: LOG_BYTES_MAX,
            ..short_logs(1_000)
        },
        ..ClusterOptions::new(3, seed)
    })
}

/// Encoded bytes of the entries that a store holds of a region.
fn log_bytes(cluster: &Cluster, store: u64, region: u64) -> u64 {
    let (start, end) = keys::raft_log_range(region);
    let mut bytes = 0;
    let mut visit = |_: &[u8], value: &[u8]| {
        bytes += value.len() as u64;
        ControlFlow::Continue(())
    };
    let raft = &cluster.store(store).engines.raft;
    raft.scan(
        Cf::RaftLog,
        &start,
        Some(&end),
        Direction::Forward,
        &mut visit,
    )
    .unwrap();
    bytes
}

fn assert_log_is_short(cluster: &Cluster, store: u64, region: u64) {
    let bytes = log_bytes(cluster, store, region);
    assert!(
        bytes <= 8 * LOG_BYTES_MAX,
        "store {store}: the log has {bytes} bytes"
    );
}

/// Lets a clerk do what it was ordered.
fn finish_orders(cluster: &mut Cluster, clerk: ClientId) {
    let done = cluster.run_until(30 * SECOND, |cluster| cluster.has_done_all(clerk));
    assert!(done, "clerk {clerk} is not done\n{}", cluster.trace);
}

fn put(cluster: &mut Cluster, clerk: ClientId, key: &str, value: &str) {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    cluster.order(clerk, ClientOperation::Put(key, value));
    finish_orders(cluster, clerk);
}

/// Plays a row with short logs, whose snapshots are needed, and checks everything.
fn row(seed: u64, change: impl FnOnce(&mut Scenario)) {
    let mut scenario = Scenario {
        mix: appends(),
        clerks: true,
        crashes: true,
        // Who is down while the others go on comes back by a snapshot.
        faults: vec![FaultKind::PowerCut, FaultKind::Kill],
        store: short_logs(10),
        round: 5 * SECOND,
        ..Scenario::new(seed)
    };
    change(&mut scenario);
    let mut cluster = scenario.play();
    let report = cluster.finish_clean();
    println!("{report:?}");
    // Two a round and clerk: most of a bad round is spent without a leader.
    let least = scenario.clients * u64::from(scenario.rounds) * 2;
    assert!(
        report.acknowledged >= least,
        "seed {seed}: {} operations were acknowledged, {least} are expected",
        report.acknowledged
    );
    assert!(
        report.snapshots > 0,
        "seed {seed}: nobody needed a snapshot"
    );
    assert!(report.compactions > 0, "seed {seed}: nothing was compacted");
    if scenario.mix == appends() {
        assert!(check_pieces(&mut cluster) > 0, "nothing was appended");
    }
}

/// A follower that lacks entries which the leader has compacted forms a majority with it,
/// while the third is away: without the snapshot nothing goes on.
#[test]
fn install_snapshot_rpc() {
    let mut cluster = small_logs(51);
    let region = cluster.region_of(b"k").id;
    let clerk = cluster.add_clerk(None);
    put(&mut cluster, clerk, "ka", "A");
    let leader = leader_at(&mut cluster, "k");
    let followers: Vec<u64> = (1..=3).filter(|store| *store != leader).collect();
    let (lagging, other) = (followers[0], followers[1]);
    let reached = cluster.run_until(5 * SECOND, |cluster| {
        stored(cluster, lagging, "ka").is_some()
    });
    assert!(reached, "store {lagging} does not follow");

    cluster.network.partition(&[&[leader, other], &[lagging]]);
    // It holds the log of the others until it was silent for two election timeouts.
    cluster.run_for(2 * SECOND);
    for number in 0..50 {
        put(
            &mut cluster,
            clerk,
            &format!("k{number}"),
            &number.to_string(),
        );
    }
    put(&mut cluster, clerk, "kb", "B");
    cluster.run_for(SECOND);
    let last = cluster.last_index(lagging, region);
    let compacted = truncated(&cluster, leader, region);
    assert!(
        compacted > last,
        "compacted up to {compacted}, store {lagging} ends at {last}"
    );
    for store in [leader, other] {
        assert_log_is_short(&cluster, store, region);
    }

    cluster.network.heal();
    cluster.network.partition(&[&[leader, lagging], &[other]]);
    put(&mut cluster, clerk, "kc", "C");
    put(&mut cluster, clerk, "kd", "D");
    let begins = truncated(&cluster, lagging, region);
    assert!(
        begins >= compacted,
        "store {lagging} begins at {begins}, the others had compacted up to {compacted}"
    );
    for (key, value) in [("ka", "A"), ("kb", "B"), ("k1", "1"), ("k49", "49")] {
        let found = stored(&cluster, lagging, key);
        assert_eq!(found.as_deref(), Some(value.as_bytes()), "{key}");
    }

    cluster.network.heal();
    put(&mut cluster, clerk, "ke", "E");
    for (key, value) in [("kc", "C"), ("ke", "E"), ("k1", "1")] {
        assert_eq!(cluster.get(key).as_deref(), Some(value.as_bytes()), "{key}");
    }
    let report = cluster.finish_clean();
    assert!(report.snapshots > 0);
}

/// A snapshot is as large as what it holds: one key and one session, however often the key
/// was written.
#[test]
fn snapshot_size_is_reasonable() {
    let mut cluster = small_logs(52);
    let region = cluster.region_of(b"k").id;
    let clerk = cluster.add_clerk(None);
    for phase in 0..4 {
        let leader = leader_at(&mut cluster, "k");
        let away = leader % 3 + 1;
        cluster.network.isolate(away, &[1, 2, 3]);
        cluster.run_for(2 * SECOND);
        for _ in 0..50 {
            put(&mut cluster, clerk, "k", "0");
            put(&mut cluster, clerk, "k", "1");
        }
        cluster.run_for(SECOND);
        let leader = leader_at(&mut cluster, "k");
        let compacted = truncated(&cluster, leader, region);
        cluster.network.heal();
        let whole = cluster.run_until(10 * SECOND, |cluster| {
            truncated(cluster, away, region) >= compacted
        });
        assert!(whole, "phase {phase}: store {away} got no snapshot");
        for store in 1..=3 {
            assert_log_is_short(&cluster, store, region);
        }
        let core = cluster.store(leader).core.as_ref().expect("it is up");
        let sizes: Vec<u64> = core
            .snapshots()
            .list()
            .into_iter()
            .filter(|info| info.key.region_id == region && info.key.origin == Origin::Generated)
            .map(|info| info.bytes)
            .collect();
        println!("phase {phase}: snapshots of {sizes:?} bytes");
        assert!(!sizes.is_empty(), "store {leader} made no snapshot");
        assert!(
            sizes.iter().all(|size| *size <= SNAPSHOT_BYTES_MAX),
            "phase {phase}: snapshots of {sizes:?} bytes"
        );
    }
    assert_eq!(cluster.get("k").as_deref(), Some(&b"1"[..]));
    let report = cluster.finish_clean();
    assert!(report.snapshots >= 4);
}

#[test]
fn restarts_snapshots_one_client() {
    row(53, |row| row.clients = 1);
}

#[test]
fn restarts_snapshots_many_clients() {
    row(54, |row| row.clients = 12);
}

#[test]
fn unreliable_snapshots_many_clients() {
    row(155, |row| {
        row.crashes = false;
        row.unreliable = true;
    });
}

#[test]
fn unreliable_restarts_snapshots_many_clients() {
    row(56, |row| row.unreliable = true);
}

#[test]
fn unreliable_restarts_partitions_snapshots_many_clients() {
    row(57, |row| {
        row.unreliable = true;
        row.partitions = true;
    });
}

/// The history of fifteen clerks on keys that all share is linearizable.
#[test]
fn unreliable_restarts_partitions_snapshots_random_keys() {
    row(58, |row| {
        row.mix = random_keys();
        row.clients = 15;
        row.stores = 7;
        row.unreliable = true;
        row.partitions = true;
        row.faults.push(FaultKind::Transfer);
        row.faults.push(FaultKind::IsolateLeader);
    });
}

/// A command of a session, sent to a store as it is.
fn in_session(
    cluster: &mut Cluster,
    store: u64,
    session: Option<(&Bytes, u64)>,
    operation: Option<&ClientOperation>,
) -> CommandOutcome {
    let mut commands = match operation.map(|operation| operation.body(RawSpace::RawV1)) {
        Some(RequestBody::Write(commands)) => commands,
        Some(other) => panic!("{other:?} is no write"),
        None => vec![DataCommand {
            session: None,
            body: Some(Body::OpenSession(OpenSessionCommand::default())),
        }],
    };
    commands[0].session = session.map(|(session_id, sequence)| SessionOperation {
        session_id: session_id.clone(),
        sequence,
    });
    let region = cluster.region_of(b"k").id;
    let body = RequestBody::Write(commands);
    let call = cluster.call(store, region, body, &CallOptions::default());
    match cluster.wait_for(call) {
        AttemptResult::Answered(Answer::Written(outcomes)) if outcomes.len() == 1 => {
            outcomes[0].clone()
        }
        other => panic!("store {store}: {other:?}"),
    }
}

/// The key's value at its leader, outside of the history: that knows nothing of the writes
/// that were sent as they are.
fn value_at(cluster: &mut Cluster, leader: u64) -> Option<Bytes> {
    get_at(cluster, leader, "k", false).expect("the leader reads")
}

/// A replica that was away got the session by a snapshot alone, and leads: an operation that
/// was executed before is answered as it was then, and executed no second time.
#[test]
fn session_table_in_snapshot_answers_at_the_next_leader() {
    let mut cluster = started_with(ClusterOptions {
        store: short_logs(10),
        ..ClusterOptions::new(3, 59)
    });
    let region = cluster.region_of(b"k").id;
    let leader = leader_at(&mut cluster, "k");
    let away = leader % 3 + 1;
    cluster.network.isolate(away, &[1, 2, 3]);
    let session = match in_session(&mut cluster, leader, None, None) {
        CommandOutcome::SessionOpened(session) => session,
        other => panic!("not opened: {other:?}"),
    };
    let append = |value: &'static str| ClientOperation::Append("k".into(), value.into());
    let outcome = in_session(
        &mut cluster,
        leader,
        Some((&session, 1)),
        Some(&append("a")),
    );
    assert_eq!(outcome, CommandOutcome::Done);
    // Repeated, its verdict would be another one.
    let swap = ClientOperation::CompareAndSwap {
        key: "k".into(),
        expected: Some("a".into()),
        new: Some("b".into()),
    };
    let verdict = in_session(&mut cluster, leader, Some((&session, 2)), Some(&swap));
    let seen = CommandOutcome::CompareAndSwap {
        succeeded: true,
        previous: Some("a".into()),
    };
    assert_eq!(verdict, seen);
    cluster.run_for(2 * SECOND);
    for number in 0..40 {
        cluster.put(&format!("k{number}"), "v");
    }
    cluster.run_for(SECOND);
    let last = cluster.last_index(away, region);
    let compacted = truncated(&cluster, leader, region);
    assert!(compacted > last, "compacted {compacted}, last {last}");
    cluster.network.heal();
    let installed = cluster.run_until(10 * SECOND, |cluster| {
        truncated(cluster, away, region) >= compacted && stored(cluster, away, "k39").is_some()
    });
    assert!(installed, "store {away} got no snapshot");

    move_leader(&mut cluster, "k", away);
    let again = in_session(&mut cluster, away, Some((&session, 2)), Some(&swap));
    assert_eq!(again, seen, "the repetition is answered from the table");
    assert_eq!(value_at(&mut cluster, away), Some("b".into()));
    let next = in_session(&mut cluster, away, Some((&session, 3)), Some(&append("c")));
    assert_eq!(next, CommandOutcome::Done);
    assert_eq!(value_at(&mut cluster, away), Some("bc".into()));
    let report = cluster.finish_clean();
    assert!(report.snapshots > 0, "nobody needed a snapshot");
}
