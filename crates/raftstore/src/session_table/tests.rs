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
use crate::write_stages::WriteTimes;

mod answers;
mod expiry;
mod replicas;

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
            times: WriteTimes::default(),
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
            committed: Duration::ZERO,
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
