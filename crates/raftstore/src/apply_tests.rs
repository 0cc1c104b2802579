//! Applying entries: outcomes, the order of commands, and what stops a store.

use std::sync::mpsc::{Receiver, channel};

use strata_proto::metapb::RegionEpoch;
use strata_proto::raft_cmdpb::AdminRequest;
use strata_proto::stratapb::{
    CompareAndSwapCommand, Mutation, RawSpace, SessionOperation, WriteCommand, data_command::Body,
};
use strata_storage::{EngineKind, MemEngine, ReadView, raw_value};

use super::*;
use crate::system::{SystemView, SystemViewError, SystemWrites};
use crate::write_stages::WriteTimes;

struct Refusing;

impl SystemStateMachine for Refusing {
    fn apply(
        &self,
        _: &dyn SystemView,
        _: &[u8],
        _: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        Err(SystemViewError("not the system region".to_owned()))
    }
}

const REGION: u64 = 7;

fn shard() -> (ApplyShard, MemEngine) {
    let mut shard = ApplyShard::new(1, 64 << 20, Arc::new(Refusing), Arc::default());
    let region = Region {
        id: REGION,
        start_key: Bytes::from_static(b"b"),
        end_key: Bytes::from_static(b"m"),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 3,
        }),
        ..Region::default()
    };
    let state = RaftApplyState {
        applied_index: 5,
        applied_term: 5,
        ..RaftApplyState::default()
    };
    shard.add_region(Arc::new(region), state);
    (shard, MemEngine::new(EngineKind::Kv))
}

fn put(key: &str, value: &str, ttl_seconds: u64) -> DataCommand {
    let mutation = Mutation {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ttl_seconds,
    };
    let write = WriteCommand {
        space: RawSpace::RawV1.into(),
        mutations: vec![mutation],
    };
    DataCommand {
        session: None,
        body: Some(Body::Write(write)),
    }
}

fn cas(key: &str, expected: Option<&str>, value: &str) -> DataCommand {
    let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let cas = CompareAndSwapCommand {
        space: RawSpace::RawV1.into(),
        key: copy(key),
        expected: expected.map(copy),
        value: Some(copy(value)),
        ttl_seconds: 0,
    };
    DataCommand {
        session: None,
        body: Some(Body::CompareAndSwap(cas)),
    }
}

fn entry(index: u64, term: u64, clock_ms: u64, version: u64, commands: Vec<DataCommand>) -> Entry {
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
        term,
        data: command.encode_to_vec().into(),
        ..Entry::default()
    }
}

fn waiting(commands: usize) -> (Waiting, Receiver<Result<Answer, Error>>) {
    let (sender, receiver) = channel();
    let reply = Some(Reply::new(move |result| drop(sender.send(result))));
    (
        Waiting::Write {
            commands,
            reply,
            deadline: Duration::MAX,
            times: WriteTimes::default(),
        },
        receiver,
    )
}

fn proposal(term: u64, index: u64, waiting: Vec<Waiting>) -> Proposal {
    Proposal {
        id: EntryId { term, index },
        waiting,
    }
}

/// Applies, writes, and delivers the replies, as a driver does.
fn drive(
    shard: &mut ApplyShard,
    kv: &MemEngine,
    entries: Vec<Entry>,
    proposals: Vec<Proposal>,
) -> Vec<Applied> {
    let task = ApplyTask::Entries(EntriesTask {
        region_id: REGION,
        entries,
        proposals,
        committed: Duration::ZERO,
    });
    let output = shard.apply(kv, vec![task]).unwrap();
    kv.write(&output.batch, output.durability).unwrap();
    for (reply, result) in output.replies {
        reply.deliver(result);
    }
    output.applied
}

fn value(kv: &MemEngine, key: &str) -> Option<Vec<u8>> {
    let stored = kv
        .get(Cf::Raw, &keys::raw_key(RawSpace::RawV1, key.as_bytes()))
        .unwrap()?;
    Some(raw_value::decode(&stored).unwrap().value.to_vec())
}

#[test]
fn entry_of_another_epoch_changes_nothing_but_the_clock() {
    let (mut shard, kv) = shard();
    let (first, first_answer) = waiting(1);
    let (second, second_answer) = waiting(1);
    let commands = vec![put("c", "1", 0), put("d", "2", 0)];
    let applied = drive(
        &mut shard,
        &kv,
        vec![entry(6, 6, 9000, 2, commands)],
        vec![proposal(6, 6, vec![first, second])],
    );
    for answer in [first_answer, second_answer] {
        match answer.try_recv().unwrap() {
            Err(Error::EpochNotMatch { current, .. }) => assert_eq!(current[0].id, REGION),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((value(&kv, "c"), value(&kv, "d")), (None, None));
    assert_eq!(applied[0].state.applied_index, 6);
    assert_eq!(applied[0].state.region_clock_ms, 9000);
}

#[test]
fn proposal_whose_place_was_taken_is_stale() {
    let (mut shard, kv) = shard();
    let (lost, lost_answer) = waiting(1);
    let (kept, kept_answer) = waiting(1);
    let entries = vec![
        entry(6, 7, 1000, 3, vec![put("c", "theirs", 0)]),
        entry(7, 7, 1000, 3, vec![put("d", "ours", 0)]),
    ];
    let proposals = vec![proposal(6, 6, vec![lost]), proposal(7, 7, vec![kept])];
    drive(&mut shard, &kv, entries, proposals);
    let lost = lost_answer.try_recv().unwrap();
    assert!(
        matches!(lost, Err(Error::StaleCommand { region_id: REGION })),
        "{lost:?}"
    );
    let kept = kept_answer.try_recv().unwrap();
    assert!(matches!(&kept, Ok(Answer::Written(done)) if done[..] == [CommandOutcome::Done]));
    assert_eq!(value(&kv, "c").as_deref(), Some(&b"theirs"[..]));
}

#[test]
fn command_outside_the_region_does_not_stop_those_after_it() {
    let (mut shard, kv) = shard();
    let (mine, answer) = waiting(4);
    let commands = vec![
        put("c", "1", 0),
        put("z", "2", 0),
        cas("a", None, "3"),
        cas("c", Some("1"), "4"),
    ];
    drive(
        &mut shard,
        &kv,
        vec![entry(6, 6, 1, 3, commands)],
        vec![proposal(6, 6, vec![mine])],
    );
    let Ok(Answer::Written(outcomes)) = answer.try_recv().unwrap() else {
        panic!("not written")
    };
    assert_eq!(outcomes[0], CommandOutcome::Done);
    assert!(matches!(&outcomes[1], CommandOutcome::KeyNotInRegion { key, .. } if &key[..] == b"z"));
    assert!(matches!(
        &outcomes[2],
        CommandOutcome::KeyNotInRegion { .. }
    ));
    assert!(matches!(
        &outcomes[3],
        CommandOutcome::CompareAndSwap {
            succeeded: true,
            ..
        }
    ));
    assert_eq!(value(&kv, "c").as_deref(), Some(&b"4"[..]));
    assert_eq!((value(&kv, "z"), value(&kv, "a")), (None, None));
}

/// Expiry is judged by the maximum of the leaders' clocks, which never goes back.
#[test]
fn region_clock_is_the_maximum_and_judges_expiry() {
    let (mut shard, kv) = shard();
    let entries = vec![
        entry(6, 6, 10_000, 3, vec![put("c", "1", 5)]),
        entry(
            7,
            6,
            14_999,
            3,
            vec![cas("c", Some("1"), "2"), put("c", "3", 5)],
        ),
        // A leader with an older clock: the region's clock stands.
        entry(8, 7, 2_000, 3, vec![put("d", "4", 5)]),
        entry(
            9,
            7,
            19_999,
            3,
            vec![cas("d", None, "5"), cas("c", None, "6")],
        ),
    ];
    let (last, answer) = waiting(2);
    let applied = drive(&mut shard, &kv, entries, vec![proposal(7, 9, vec![last])]);
    assert_eq!(applied[0].state.region_clock_ms, 19_999);
    let Ok(Answer::Written(outcomes)) = answer.try_recv().unwrap() else {
        panic!("not written")
    };
    for outcome in outcomes {
        assert_eq!(
            outcome,
            CommandOutcome::CompareAndSwap {
                succeeded: true,
                previous: None
            }
        );
    }
}

/// Two replicas, of which one batches all and one applies entry by entry, end equal.
#[test]
fn batching_changes_no_result() {
    let entries: Vec<Entry> = (0..40)
        .map(|at| {
            let key = ["c", "d", "e"][at % 3];
            let commands = vec![
                cas(key, None, "first"),
                put(key, &at.to_string(), at as u64 % 3),
            ];
            entry(6 + at as u64, 6, 1000 * at as u64, 3, commands)
        })
        .collect();
    let (mut whole, whole_kv) = shard();
    drive(&mut whole, &whole_kv, entries.clone(), vec![]);
    let (mut single, single_kv) = shard();
    for entry in entries {
        drive(&mut single, &single_kv, vec![entry], vec![]);
    }
    let dump = |kv: &MemEngine| {
        let mut pairs = Vec::new();
        for cf in [Cf::Raw, Cf::Raft] {
            kv.scan(
                cf,
                &[],
                None,
                strata_storage::Direction::Forward,
                &mut |key, value| {
                    pairs.push((cf, key.to_vec(), value.to_vec()));
                    std::ops::ControlFlow::Continue(())
                },
            )
            .unwrap();
        }
        pairs
    };
    assert_eq!(dump(&whole_kv), dump(&single_kv));
}

#[test]
fn unknown_entries_stop_the_store() {
    let admin = EntryCommand {
        admin: Some(AdminRequest::default()),
        ..EntryCommand::default()
    };
    let unknown = |data: Vec<u8>, entry_type: EntryType| Entry {
        index: 6,
        term: 6,
        data: data.into(),
        entry_type: entry_type.into(),
        ..Entry::default()
    };
    let cases = [
        (unknown(admin.encode_to_vec(), EntryType::EntryNormal), true),
        (unknown(vec![], EntryType::EntryConfChangeV2), false),
        (unknown(vec![0xff; 9], EntryType::EntryNormal), false),
    ];
    for (entry, newer) in cases {
        let (mut shard, kv) = shard();
        let task = ApplyTask::Entries(EntriesTask {
            region_id: REGION,
            entries: vec![entry],
            proposals: vec![],
            committed: Duration::ZERO,
        });
        let expected = if newer {
            ApplyFault::UnknownEntry {
                region_id: REGION,
                index: 6,
            }
        } else {
            ApplyFault::CorruptEntry {
                region_id: REGION,
                index: 6,
            }
        };
        assert_eq!(shard.apply(&kv, vec![task]).unwrap_err(), expected);
    }
}

#[test]
#[should_panic(expected = "entry 8 follows applied index 5")]
fn a_gap_stops_the_store() {
    let (mut shard, kv) = shard();
    drive(&mut shard, &kv, vec![entry(8, 6, 1, 3, vec![])], vec![]);
}

#[test]
fn batch_ends_with_the_entry_that_fills_it_and_the_rest_follows() {
    let (mut shard, kv) = shard();
    shard.max_batch_bytes = 100;
    let long = "v".repeat(120);
    let (first, first_answer) = waiting(1);
    let (last, last_answer) = waiting(1);
    let task = |entries, proposals| {
        ApplyTask::Entries(EntriesTask {
            region_id: REGION,
            entries,
            proposals,
            committed: Duration::ZERO,
        })
    };
    let all: Vec<Entry> = (6..9)
        .map(|index| entry(index, 5, 1, 3, vec![put(&format!("c{index}"), &long, 0)]))
        .collect();
    let bytes: Vec<usize> = all.iter().map(|entry| entry.data.len()).collect();
    let mut tasks = vec![
        task(
            all,
            vec![proposal(5, 6, vec![first]), proposal(5, 8, vec![last])],
        ),
        task(vec![entry(9, 5, 1, 3, vec![put("d", "x", 0)])], Vec::new()),
    ];
    for (round, index) in (6..9).enumerate() {
        let output = shard.apply(&kv, tasks).unwrap();
        assert_eq!(output.applied.len(), 1, "entry {index}");
        assert_eq!(output.applied[0].state.applied_index, index);
        assert_eq!(output.applied[0].entry_bytes, bytes[round]);
        assert_eq!(value(&kv, &format!("c{index}")), None, "not written yet");
        kv.write(&output.batch, output.durability).unwrap();
        for (reply, result) in output.replies {
            reply.deliver(result);
        }
        assert!(first_answer.try_recv().is_ok() == (index == 6));
        assert!(last_answer.try_recv().is_ok() == (index == 8));
        tasks = output.rest;
    }
    assert_eq!(tasks.len(), 1, "the second task is left whole");
    let output = shard.apply(&kv, tasks).unwrap();
    assert_eq!(output.applied[0].state.applied_index, 9);
    assert!(output.rest.is_empty());
}

#[test]
fn values_in_answers_fill_a_batch() {
    let (mut shard, kv) = shard();
    shard.max_batch_bytes = 1000;
    let long = "v".repeat(800);
    drive(
        &mut shard,
        &kv,
        vec![entry(6, 5, 1, 3, vec![put("c", &long, 0)])],
        Vec::new(),
    );
    let failing: Vec<Entry> = (7..12)
        .map(|index| entry(index, 5, 1, 3, vec![cas("c", Some("other"), "new")]))
        .collect();
    let mut tasks = vec![ApplyTask::Entries(EntriesTask {
        region_id: REGION,
        entries: failing,
        proposals: Vec::new(),
        committed: Duration::ZERO,
    })];
    let mut applied = Vec::new();
    while !tasks.is_empty() {
        let output = shard.apply(&kv, tasks).unwrap();
        applied.push(output.applied[0].state.applied_index);
        tasks = output.rest;
    }
    assert_eq!(applied, [8, 10, 11]);
}

/// What an entry asks for decides whether it is quick, not its size; what comes behind one that is
/// not stays behind it.
#[test]
fn quick_batch_ends_before_an_entry_that_reads() {
    let session = DataCommand {
        session: Some(SessionOperation::default()),
        ..put("c", "session", 0)
    };
    let change = Entry {
        entry_type: EntryType::EntryConfChangeV2.into(),
        ..entry(7, 5, 0, 3, Vec::new())
    };
    let admin = EntryCommand {
        admin: Some(AdminRequest::default()),
        ..EntryCommand::default()
    };
    let admin = Entry {
        data: admin.encode_to_vec().into(),
        ..entry(7, 5, 0, 3, Vec::new())
    };
    let slow = [
        entry(7, 5, 0, 3, vec![put("c", "1", 0), cas("c", Some("1"), "2")]),
        entry(7, 5, 0, 3, vec![session]),
        change,
        admin,
    ];
    for slow in slow {
        let (mut shard, kv) = shard();
        let task = |entries: &[Entry]| {
            let task = ApplyTask::Entries(EntriesTask {
                region_id: REGION,
                entries: entries.to_vec(),
                proposals: Vec::new(),
                committed: Duration::ZERO,
            });
            vec![task]
        };
        let entries = [
            entry(6, 5, 0, 3, vec![put("c", "quick", 0)]),
            slow,
            entry(8, 5, 0, 3, vec![put("d", "behind", 0)]),
        ];
        let output = shard.apply_quick(&kv, task(&entries), 1 << 20).unwrap();
        assert_eq!(output.applied[0].state.applied_index, 6);
        let [ApplyTask::Entries(rest)] = &output.rest[..] else {
            panic!("{:?}", output.rest);
        };
        let indices: Vec<u64> = rest.entries.iter().map(|entry| entry.index).collect();
        assert_eq!(indices, [7, 8]);
        kv.write(&output.batch, output.durability).unwrap();
        assert_eq!(value(&kv, "c").as_deref(), Some(&b"quick"[..]));
        // What begins with it does nothing at all.
        let output = shard.apply_quick(&kv, output.rest, 1 << 20).unwrap();
        assert!(output.applied.is_empty() && output.batch.is_empty());
        assert_eq!(output.rest.len(), 1);
    }
}

#[test]
fn quick_batch_ends_where_it_is_large() {
    let (mut shard, kv) = shard();
    let entries = (6..16).map(|index| entry(index, 5, 0, 3, vec![put("c", "value", 0)]));
    let task = ApplyTask::Entries(EntriesTask {
        region_id: REGION,
        entries: entries.collect(),
        proposals: Vec::new(),
        committed: Duration::ZERO,
    });
    let output = shard.apply_quick(&kv, vec![task], 1).unwrap();
    assert_eq!(output.applied[0].state.applied_index, 6);
    let output = shard.apply_quick(&kv, output.rest, 1 << 20).unwrap();
    assert_eq!(output.applied[0].state.applied_index, 15);
    assert!(output.rest.is_empty());
}
