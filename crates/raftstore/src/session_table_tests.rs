//! The session table under entries of a log: answers, refusals, expiry, restarts.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use prost::Message as _;
use strata_proto::eraftpb::{Entry, HardState};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_serverpb::RegionLocalState;
use strata_proto::stratapb::{
    AppendCommand, CompareAndSwapCommand, DataCommand, EntryCommand, RaftApplyState, RawSpace,
    data_command::Body,
};
use strata_raft::EntryId;
use strata_storage::snapshot::{
    Generated, Generator, Installed, Installer, MemFiles, Offered, SnapshotManager, SnapshotRef,
    begin_install,
};
use strata_storage::{Durability, EngineKind, Engines, MemEngine, ReadView, WriteBatch, raw_value};

use super::*;
use crate::apply::{ApplyShard, ApplyTask, EntriesTask, Proposal, Waiting};
use crate::request::{Answer, Reply};
use crate::system::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};

const REGION: u64 = 7;
const TTL_MS: u64 = 10_000;

struct NoSystem;

impl SystemStateMachine for NoSystem {
    fn apply(
        &self,
        _: &dyn SystemView,
        _: &[u8],
        _: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        Err(SystemViewError("not the system region".to_owned()))
    }
}

/// A replica to which entries are applied one after the other.
struct Replica {
    shard: ApplyShard,
    kv: MemEngine,
    metrics: Arc<StoreMetrics>,
    index: u64,
}

impl Replica {
    fn new() -> Self {
        Self::over(MemEngine::new(EngineKind::Kv), 5)
    }

    /// A replica that starts with what is in an engine.
    fn over(kv: MemEngine, applied_index: u64) -> Self {
        let metrics = Arc::<StoreMetrics>::default();
        let mut shard = ApplyShard::new(1, 64 << 20, Arc::new(NoSystem), metrics.clone());
        let state = RaftApplyState {
            applied_index,
            applied_term: 5,
            ..RaftApplyState::default()
        };
        shard.add_region(Arc::new(region()), state);
        Replica {
            shard,
            kv,
            metrics,
            index: applied_index,
        }
    }

    fn restart(self) -> Self {
        Self::over(self.kv, self.index)
    }

    /// A restart behind which the region's clock is moved.
    fn restart_with_clock(self, clock_ms: u64) -> Self {
        let mut replica = self.restart();
        replica.apply(clock_ms, vec![]);
        replica
    }

    /// Applies one entry and returns its outcomes.
    fn apply(&mut self, clock_ms: u64, commands: Vec<DataCommand>) -> Vec<CommandOutcome> {
        self.apply_at_version(1, clock_ms, commands)
            .expect("the entry has the region's epoch")
    }

    fn apply_at_version(
        &mut self,
        version: u64,
        clock_ms: u64,
        commands: Vec<DataCommand>,
    ) -> Result<Vec<CommandOutcome>, crate::error::Error> {
        self.index += 1;
        let (sender, receiver) = channel();
        let waiting = Waiting::Write {
            commands: commands.len(),
            reply: Some(Reply::new(move |result| drop(sender.send(result)))),
            deadline: Duration::MAX,
        };
        let task = EntriesTask {
            region_id: REGION,
            entries: vec![entry(self.index, version, clock_ms, commands)],
            proposals: vec![Proposal {
                id: EntryId {
                    term: 6,
                    index: self.index,
                },
                waiting: vec![waiting],
            }],
        };
        let output = self
            .shard
            .apply(&self.kv, vec![ApplyTask::Entries(task)])
            .unwrap();
        self.kv.write(&output.batch, output.durability).unwrap();
        for (reply, result) in output.replies {
            reply.deliver(result);
        }
        match receiver.try_recv().unwrap()? {
            Answer::Written(outcomes) => Ok(outcomes),
            other => panic!("not written: {other:?}"),
        }
    }

    fn one(&mut self, clock_ms: u64, command: DataCommand) -> CommandOutcome {
        let mut outcomes = self.apply(clock_ms, vec![command]);
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    fn open(&mut self, clock_ms: u64) -> Bytes {
        match self.one(clock_ms, open(4)) {
            CommandOutcome::SessionOpened(id) => id,
            other => panic!("not opened: {other:?}"),
        }
    }

    fn value(&self, key: &str) -> Option<String> {
        let key = keys::raw_key(RawSpace::RawV1, key.as_bytes());
        let stored = self.kv.get(Cf::Raw, &key).unwrap()?;
        let value = raw_value::decode(&stored).unwrap().value;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    /// Keys and values of a column family.
    fn dump(&self, cf: Cf) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = Vec::new();
        self.kv
            .scan(cf, b"", None, Direction::Forward, &mut |key, value| {
                pairs.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        pairs
    }

    fn sessions(&self) -> usize {
        let (start, end) = keys::session_range(REGION);
        let within = |key: &[u8]| start[..] <= *key && *key < end[..];
        self.dump(Cf::Raft)
            .iter()
            .filter(|(key, _)| within(key))
            .count()
    }
}

fn region() -> Region {
    Region {
        id: REGION,
        end_key: Bytes::from_static(b"x"),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 1,
        }),
        ..Region::default()
    }
}

fn entry(index: u64, version: u64, clock_ms: u64, commands: Vec<DataCommand>) -> Entry {
    let command = EntryCommand {
        leader_clock_ms: clock_ms,
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version,
        }),
        commands,
        admin: None,
    };
    Entry {
        index,
        term: 6,
        data: command.encode_to_vec().into(),
        ..Entry::default()
    }
}

fn open(max_sessions: u32) -> DataCommand {
    DataCommand {
        session: None,
        body: Some(Body::OpenSession(OpenSessionCommand {
            ttl_ms: TTL_MS,
            max_sessions,
        })),
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn append_body(key: &str, value: &str) -> Body {
    Body::Append(AppendCommand {
        space: RawSpace::RawV1.into(),
        key: text(key),
        value: text(value),
        max_value_bytes: 12,
    })
}

fn within(session: &Bytes, sequence: u64, body: Body) -> DataCommand {
    DataCommand {
        session: Some(SessionOperation {
            session_id: session.clone(),
            sequence,
        }),
        body: Some(body),
    }
}

fn append(session: &Bytes, sequence: u64, value: &str) -> DataCommand {
    within(session, sequence, append_body("k", value))
}

fn swap(session: &Bytes, sequence: u64, expected: Option<&str>, value: &str) -> DataCommand {
    let body = Body::CompareAndSwap(CompareAndSwapCommand {
        space: RawSpace::RawV1.into(),
        key: text("k"),
        expected: expected.map(text),
        value: Some(text(value)),
        ttl_seconds: 0,
    });
    within(session, sequence, body)
}

#[test]
fn session_id_is_the_place_of_its_command() {
    let mut replica = Replica::new();
    let put = DataCommand {
        session: None,
        body: Some(append_body("k", "x")),
    };
    let outcomes = replica.apply(1, vec![open(4), put, open(4)]);
    let id = |place: u8| {
        let mut id = vec![0; 20];
        (id[7], id[15], id[19]) = (REGION as u8, 6, place);
        CommandOutcome::SessionOpened(id.into())
    };
    assert_eq!(outcomes, [id(0), CommandOutcome::Done, id(2)]);
}

#[test]
fn session_replayed_is_answered_from_table() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let verdict = |succeeded, previous: Option<&str>| CommandOutcome::CompareAndSwap {
        succeeded,
        previous: previous.map(text),
    };
    // In one entry, so that the answer comes from the batch under construction.
    let outcomes = replica.apply(2, vec![append(&session, 1, "a"), append(&session, 1, "a")]);
    assert_eq!(outcomes, [CommandOutcome::Done, CommandOutcome::Done]);
    assert_eq!(replica.value("k").as_deref(), Some("a"));
    // The whole answer is kept: that of a swap names the value seen before.
    let first = replica.one(3, swap(&session, 2, Some("a"), "b"));
    assert_eq!(first, verdict(true, Some("a")));
    let again = replica.one(4, swap(&session, 2, Some("a"), "b"));
    assert_eq!(again, first);
    // Also where it failed, and though it would succeed by now.
    let failed = replica.one(5, swap(&session, 3, Some("c"), "d"));
    assert_eq!(failed, verdict(false, Some("b")));
    let put = DataCommand {
        session: None,
        body: Some(append_body("k", "")),
    };
    replica.one(6, put);
    let mut replica = replica.restart();
    assert_eq!(replica.one(7, swap(&session, 3, Some("b"), "d")), failed);
    assert_eq!(replica.value("k").as_deref(), Some("b"));
    assert_eq!(replica.metrics.session_repeats.get(), 1);
}

#[test]
fn bad_input_another_operation_under_the_number_of_a_swap_gets_no_verdict() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let first = replica.one(2, swap(&session, 1, None, "a"));
    let other = replica.one(3, append(&session, 1, "x"));
    let mismatch = CommandOutcome::SequenceMismatch {
        sequence: 1,
        last_sequence: 1,
    };
    assert_eq!(other, mismatch);
    assert_eq!(replica.value("k").as_deref(), Some("a"));
    assert_eq!(replica.one(4, swap(&session, 1, None, "a")), first);
}

#[test]
fn session_unknown_is_refused() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let mut other = session.to_vec();
    other[19] += 1;
    let other = Bytes::from(other);
    let outcomes = replica.apply(2, vec![append(&other, 1, "a"), append(&session, 1, "b")]);
    assert_eq!(
        outcomes,
        [CommandOutcome::SessionExpired, CommandOutcome::Done]
    );
    assert_eq!(replica.value("k").as_deref(), Some("b"));
    // Refused, it leaves nothing behind, and never becomes known.
    assert_eq!(replica.sessions(), 1);
    assert_eq!(
        replica.one(3, append(&other, 1, "a")),
        CommandOutcome::SessionExpired
    );
}

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

#[test]
fn bad_input_sequence_goes_back() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    for sequence in 1..=3 {
        let outcome = replica.one(1 + sequence, append(&session, sequence, "a"));
        assert_eq!(outcome, CommandOutcome::Done);
    }
    for sequence in [2, 1, 0, 5, u64::MAX] {
        let outcome = replica.one(10, append(&session, sequence, "x"));
        let refused = CommandOutcome::SequenceMismatch {
            sequence,
            last_sequence: 3,
        };
        assert_eq!(outcome, refused);
    }
    // None of them moved the session.
    assert_eq!(
        replica.one(11, append(&session, 3, "a")),
        CommandOutcome::Done
    );
    assert_eq!(
        replica.one(12, append(&session, 4, "b")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("aaab"));
    // A fresh session has no last answer to repeat.
    let fresh = replica.open(13);
    assert!(matches!(
        replica.one(14, append(&fresh, 0, "x")),
        CommandOutcome::SequenceMismatch {
            last_sequence: 0,
            ..
        }
    ));
}

#[test]
fn refused_operation_may_be_sent_again() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let outside = within(&session, 1, append_body("y", "a"));
    assert!(matches!(
        replica.one(2, outside),
        CommandOutcome::KeyNotInRegion { .. }
    ));
    let stale = replica.apply_at_version(2, 3, vec![append(&session, 1, "a")]);
    assert!(matches!(
        stale,
        Err(crate::error::Error::EpochNotMatch { .. })
    ));
    let nested = within(&session, 1, open(4).body.unwrap());
    assert_eq!(replica.one(4, nested), CommandOutcome::Refused);
    assert_eq!(
        replica.one(5, append(&session, 1, "a")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("a"));
}

#[test]
fn value_that_would_grow_too_large_is_a_verdict() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    assert_eq!(
        replica.one(2, append(&session, 1, "123456")),
        CommandOutcome::Done
    );
    let too_large = CommandOutcome::ValueTooLarge {
        bytes: 13,
        limit_bytes: 12,
    };
    assert_eq!(replica.one(3, append(&session, 2, "7654321")), too_large);
    // As every verdict it uses up its number: sent again, it stays what it was.
    let delete = within(&session, 3, Body::Write(deletion("k")));
    assert_eq!(replica.one(4, append(&session, 2, "7654321")), too_large);
    assert_eq!(replica.one(5, delete), CommandOutcome::Done);
    assert_eq!(
        replica.one(6, append(&session, 4, "7654321")),
        CommandOutcome::Done
    );
    assert_eq!(replica.value("k").as_deref(), Some("7654321"));
}

fn deletion(key: &str) -> strata_proto::stratapb::WriteCommand {
    let mutation = strata_proto::stratapb::Mutation {
        key: text(key),
        value: None,
        ttl_seconds: 0,
    };
    strata_proto::stratapb::WriteCommand {
        space: RawSpace::RawV1.into(),
        mutations: vec![mutation],
    }
}

/// Replicas that batch differently, or start again between any two entries and read their
/// tables from disk, hold the same bytes.
#[test]
fn sessions_are_the_same_on_every_replica() {
    let mut steady = Replica::new();
    let mut restarting = Replica::new();
    let mut sessions: Vec<(Bytes, u64)> = Vec::new();
    for step in 0..300_u64 {
        let clock_ms = 400 * step;
        let mut commands = vec![open(5)];
        for at in 0..3 {
            let Some(pick) = (step * 7 + at * 3).checked_rem(sessions.len() as u64) else {
                break;
            };
            let (id, sequence) = &mut sessions[pick as usize];
            // Now and then the last one again, or one that leaves a gap.
            *sequence += [1, 0, 1, 1, 2][(step + at) as usize % 5];
            commands.push(append(id, *sequence, "x"));
        }
        if step % 4 != 0 {
            commands.remove(0);
        }
        let outcomes = steady.apply(clock_ms, commands.clone());
        restarting = restarting.restart();
        assert_eq!(restarting.apply(clock_ms, commands), outcomes);
        for outcome in outcomes {
            if let CommandOutcome::SessionOpened(id) = outcome {
                sessions.push((id, 0));
                sessions.drain(..sessions.len().saturating_sub(7));
            }
        }
        for cf in [Cf::Raw, Cf::Raft] {
            assert_eq!(steady.dump(cf), restarting.dump(cf), "step {step}");
        }
    }
    let metrics = &steady.metrics;
    assert!(metrics.sessions_expired.get() + metrics.sessions_evicted.get() > 10);
    assert!(steady.metrics.session_repeats.get() > 10);
}

#[test]
fn damaged_record_stops_the_store() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let id: SessionId = session[..].try_into().unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Cf::Raft, keys::session(REGION, &id), "damaged");
    replica.kv.write(&batch, Durability::Unsynced).unwrap();
    let mut replica = replica.restart();
    let task = EntriesTask {
        region_id: REGION,
        entries: vec![entry(7, 1, 2, vec![append(&session, 1, "a")])],
        proposals: vec![],
    };
    let fault = replica
        .shard
        .apply(&replica.kv, vec![ApplyTask::Entries(task)])
        .unwrap_err();
    assert!(fault.to_string().contains("session"), "{fault}");
}

/// A replica that got the region by a snapshot knows every session and its last answer.
#[test]
fn session_table_in_snapshot_answers_repeated_operations() {
    let mut replica = Replica::new();
    let session = replica.open(1);
    let idle = replica.open(2);
    let first = replica.one(3, swap(&session, 1, None, "a"));
    let files = MemFiles::new();
    let snapshot = replica.send_snapshot(&SnapshotManager::open(files, 1 << 20).unwrap());
    let engines = MemEngine::new_pair();
    // What the other replica knew before is replaced.
    let mut batch = WriteBatch::new();
    let stale = keys::session(REGION, &session_id(REGION, 3, 0));
    batch.put(Cf::Raft, stale, "left behind");
    engines.kv.write(&batch, Durability::Unsynced).unwrap();
    install(&engines, snapshot);
    let mut other = Replica::over(engines.kv, replica.index);
    for replica in [&mut replica, &mut other] {
        assert_eq!(replica.sessions(), 2);
        assert_eq!(replica.one(4, swap(&session, 1, None, "a")), first);
        assert_eq!(
            replica.one(5, append(&session, 2, "b")),
            CommandOutcome::Done
        );
        assert_eq!(replica.one(6, append(&idle, 1, "c")), CommandOutcome::Done);
        assert_eq!(replica.value("k").as_deref(), Some("abc"));
    }
    for cf in [Cf::Raw, Cf::Raft] {
        let own = |(key, _): &(Vec<u8>, Vec<u8>)| *key != keys::region_state(REGION);
        let dump =
            |replica: &Replica| -> Vec<_> { replica.dump(cf).into_iter().filter(own).collect() };
        assert_eq!(dump(&other), dump(&replica));
    }
}

impl Replica {
    /// The region as another node receives it.
    fn send_snapshot(&self, to: &SnapshotManager<MemFiles>) -> SnapshotRef<MemFiles> {
        let mut batch = WriteBatch::new();
        let peers = [1, 2].map(|store_id| Peer {
            id: 70 + store_id,
            store_id,
            ..Peer::default()
        });
        let state = RegionLocalState {
            region: Some(Region {
                peers: peers.to_vec(),
                ..region()
            }),
            ..RegionLocalState::default()
        };
        record::put(&mut batch, Cf::Raft, keys::region_state(REGION), &state);
        self.kv.write(&batch, Durability::Unsynced).unwrap();
        let own = SnapshotManager::open(MemFiles::new(), 1 << 20).unwrap();
        let mut generator =
            Generator::<MemEngine>::begin(&own, self.kv.snapshot(), REGION).unwrap();
        let made = loop {
            if let Generated::Done(made) = generator.step(64).unwrap() {
                break made;
            }
        };
        let Offered::Receive(mut receiver) = to.receive(made.meta()).unwrap() else {
            panic!("the receiver holds it already")
        };
        for (file, described) in (0..).zip(&made.meta().files) {
            let mut offset = 0;
            while offset < described.length {
                let chunk = made.read_chunk(file, offset).unwrap();
                receiver.accept(&chunk).unwrap();
                offset += chunk.data.len() as u64;
            }
        }
        receiver.finish().unwrap()
    }
}

fn install(engines: &Engines<MemEngine>, snapshot: SnapshotRef<MemFiles>) {
    let hard_state = HardState {
        term: 6,
        vote: 0,
        commit: snapshot.meta().index,
    };
    let begun = begin_install(None, [], snapshot.meta(), &hard_state).unwrap();
    engines.kv.write(&begun.kv, Durability::Synced).unwrap();
    engines.raft.write(&begun.raft, Durability::Synced).unwrap();
    let mut installer = Installer::new(engines.kv.clone(), snapshot);
    while installer.step([]).unwrap() == Installed::Working {}
}
