//! Entries of any bytes, applied by two replicas: they do the same, or stop over the same
//! entry with the same words. Nothing else stops them.

use prost::Message as _;
use strata_fuzz::{Mutator, run};
use strata_proto::eraftpb::{ConfChangeV2, EntryType};
use strata_proto::metapb::{Peer, Region, RegionEpoch};
use strata_proto::raft_cmdpb::{
    AdminCmdType, AdminRequest, ChangePeerRequest, ChangePeerV2Request, CompactLogRequest,
};
use strata_proto::stratapb::{
    AppendCommand, CompareAndSwapCommand, DataCommand, DeleteRangeCommand, EntryCommand, Mutation,
    OpenSessionCommand, RawSpace, SessionOperation, SystemCommand, WriteCommand,
    data_command::Body,
};
use strata_storage::{EngineKind, MemEngine};

use super::*;
use crate::session_table::session_id;
use crate::system::{SystemView, SystemViewError, SystemWrites};

const REGION: u64 = 7;
const SYSTEM: u64 = 1;

/// Keeps each command under its length.
struct Keeping;

impl SystemStateMachine for Keeping {
    fn apply(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        let key = (request.len() as u64).to_be_bytes().to_vec();
        let before = view.get(&key)?.unwrap_or_default();
        writes.put(key, request.to_vec());
        Ok(before)
    }
}

fn region(id: u64) -> Region {
    let peer = |store_id| Peer {
        id: id * 10 + store_id,
        store_id,
        ..Peer::default()
    };
    Region {
        id,
        start_key: Bytes::from_static(b"b"),
        end_key: Bytes::from_static(b"m"),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 3,
        }),
        peers: (1..=3).map(peer).collect(),
        ..Region::default()
    }
}

fn replica() -> (ApplyShard, MemEngine) {
    let mut shard = ApplyShard::new(1, 64 << 20, Arc::new(Keeping), Arc::default());
    let state = RaftApplyState {
        applied_index: 5,
        applied_term: 5,
        truncated_index: 5,
        truncated_term: 5,
        ..RaftApplyState::default()
    };
    for id in [SYSTEM, REGION] {
        shard.add_region(Arc::new(region(id)), state);
    }
    (shard, MemEngine::new(EngineKind::Kv))
}

fn bodies() -> Vec<Body> {
    let key = Bytes::from_static(b"key");
    let value = Bytes::from_static(b"value");
    let space = RawSpace::RawV1.into();
    vec![
        Body::Write(WriteCommand {
            space,
            mutations: vec![Mutation {
                key: key.clone(),
                value: Some(value.clone()),
                ttl_seconds: 9,
            }],
        }),
        Body::DeleteRange(DeleteRangeCommand {
            space,
            start_key: Bytes::from_static(b"c"),
            end_key: Bytes::from_static(b"z"),
        }),
        Body::CompareAndSwap(CompareAndSwapCommand {
            space,
            key: key.clone(),
            expected: Some(value.clone()),
            value: None,
            ttl_seconds: 0,
        }),
        Body::Append(AppendCommand {
            space,
            key,
            value: value.clone(),
            max_value_bytes: 1_000,
        }),
        Body::OpenSession(OpenSessionCommand {
            ttl_ms: 1_000,
            max_sessions: 4,
        }),
        Body::System(SystemCommand { request: value }),
    ]
}

/// The data of an entry as a leader proposes it.
fn command(mutator: &mut Mutator, index: u64) -> EntryCommand {
    let bodies = bodies();
    let count = 1 + mutator.number() % 3;
    let commands = (0..count).map(|_| DataCommand {
        session: mutator.one_in(3).then(|| SessionOperation {
            session_id: session_id(REGION, index - 1, 0).to_vec().into(),
            sequence: 1,
        }),
        body: Some(mutator.pick(&bodies).clone()),
    });
    EntryCommand {
        leader_clock_ms: index * 100,
        region_epoch: region(REGION).region_epoch,
        commands: commands.collect(),
        admin: None,
    }
}

fn admin(request: AdminRequest) -> EntryCommand {
    EntryCommand {
        leader_clock_ms: 7,
        region_epoch: region(REGION).region_epoch,
        commands: Vec::new(),
        admin: Some(request),
    }
}

fn compact_log(index: u64) -> EntryCommand {
    admin(AdminRequest {
        cmd_type: AdminCmdType::CompactLog.into(),
        compact_log: Some(CompactLogRequest {
            compact_index: index - 1,
            compact_term: 5,
            ..CompactLogRequest::default()
        }),
        ..AdminRequest::default()
    })
}

/// A change of peers with what its context must say.
fn conf_change() -> Vec<u8> {
    use strata_proto::eraftpb::{ConfChangeSingle, ConfChangeType};
    let peer = Peer {
        id: REGION * 10 + 4,
        store_id: 4,
        ..Peer::default()
    };
    let context = admin(AdminRequest {
        cmd_type: AdminCmdType::ChangePeerV2.into(),
        change_peer_v2: Some(ChangePeerV2Request {
            changes: vec![ChangePeerRequest {
                change_type: ConfChangeType::AddLearnerNode.into(),
                peer: Some(peer),
            }],
        }),
        ..AdminRequest::default()
    });
    let change = ConfChangeV2 {
        transition: 0,
        changes: vec![ConfChangeSingle {
            change_type: ConfChangeType::AddLearnerNode.into(),
            node_id: peer.id,
        }],
        context: context.encode_to_vec().into(),
    };
    change.encode_to_vec()
}

fn entry(mutator: &mut Mutator, index: u64) -> Entry {
    let (kind, data) = match mutator.number() % 8 {
        0 => (EntryType::EntryConfChangeV2, conf_change()),
        1 => (EntryType::EntryNormal, compact_log(index).encode_to_vec()),
        _ => (
            EntryType::EntryNormal,
            command(mutator, index).encode_to_vec(),
        ),
    };
    let data = match mutator.number() % 6 {
        0 => mutator.bytes(&data),
        1 => data,
        _ => mutator.message(&data),
    };
    let mut entry = Entry {
        index,
        term: 6,
        data: data.into(),
        ..Entry::default()
    };
    entry.set_entry_type(kind);
    entry
}

fn apply_one(
    (shard, kv): &mut (ApplyShard, MemEngine),
    region_id: u64,
    entry: &Entry,
) -> Result<ApplyOutput, ApplyFault> {
    let task = ApplyTask::Entries(EntriesTask {
        region_id,
        entries: vec![entry.clone()],
        proposals: Vec::new(),
        committed: Duration::ZERO,
    });
    let output = shard.apply(kv, vec![task])?;
    kv.write(&output.batch, output.durability)
        .expect("the engine in memory takes every batch");
    Ok(output)
}

#[test]
fn fuzz_entries_are_applied_alike_or_stop_the_store_with_a_word() {
    let (mut applied, mut refused, mut changed) = (0, 0, 0);
    run("entries", 3_000, |mutator| {
        let (mut one, mut other) = (replica(), replica());
        let region_id = if mutator.one_in(5) { SYSTEM } else { REGION };
        for index in 6..14 {
            let entry = entry(mutator, index);
            let (first, second) = (
                apply_one(&mut one, region_id, &entry),
                apply_one(&mut other, region_id, &entry),
            );
            match (first, second) {
                (Ok(first), Ok(second)) => {
                    applied += 1;
                    assert_eq!(first.batch, second.batch, "{entry:?}");
                    assert_eq!(first.applied, second.applied, "{entry:?}");
                    changed += u64::from(!first.applied[0].changes.is_empty());
                    let state = first.applied[0].state;
                    assert_eq!(state.applied_index, index);
                    assert!(state.truncated_index < index, "{state:?}");
                }
                (Err(first), Err(second)) => {
                    refused += 1;
                    assert_eq!(first, second);
                    let known = matches!(
                        first,
                        ApplyFault::CorruptEntry { .. } | ApplyFault::UnknownEntry { .. }
                    );
                    assert!(known, "{first}");
                    // The process has stopped.
                    break;
                }
                (first, second) => panic!("{first:?} and {second:?} of {entry:?}"),
            }
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            applied > 3_000 && refused > 500,
            "{applied} applied, {refused} refused"
        );
        assert!(changed > 50, "{changed} changes of a region");
    }
}
