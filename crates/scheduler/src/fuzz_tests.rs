//! Commands and records of any bytes in the scheduler's state machine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use strata_fuzz::run;
use strata_proto::metapb::{Peer, Region, RegionEpoch, Store};
use strata_raftstore::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};

use crate::records::SystemState;
use crate::{SchedulerMachine, command};

#[derive(Clone, Default)]
struct Records(BTreeMap<Bytes, Bytes>);

impl SystemView for Records {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SystemViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        _reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), SystemViewError> {
        for (key, value) in &self.0 {
            let inside = &key[..] >= start && (end.is_empty() || &key[..] < end);
            if inside && visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Records {
    fn take(&mut self, writes: &SystemWrites) {
        for (key, value) in writes.operations() {
            match value {
                Some(value) => self.0.insert(key.clone(), value.clone()),
                None => self.0.remove(key),
            };
        }
    }
}

fn region(id: u64, start: &'static str, end: &'static str, version: u64) -> Region {
    Region {
        id,
        start_key: start.into(),
        end_key: end.into(),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version,
        }),
        peers: vec![Peer {
            id: id * 10,
            store_id: 1,
            ..Peer::default()
        }],
        ..Region::default()
    }
}

fn bootstrap() -> Vec<Region> {
    vec![
        region(1, "", "", 1),
        region(2, "", "g", 1),
        region(3, "g", "p", 1),
        region(4, "p", "", 1),
    ]
}

fn corpus() -> Vec<Bytes> {
    let store = Store {
        id: 2,
        address: "127.0.0.1:2379".to_owned(),
        ..Store::default()
    };
    vec![
        command::allocate_ids(3),
        command::reserve_timestamps(1_700_000_000_000),
        command::put_store(store),
        command::report_region(region(3, "g", "k", 2)),
        command::report_region(region(9, "k", "p", 2)),
        command::report_region(region(3, "g", "p", 3)),
    ]
}

/// No two regions of a directory overlap, whatever was reported.
fn check(state: &SystemState) {
    let mut regions: Vec<&Region> = state.directory.iter().collect();
    regions.sort_by(|one, other| one.start_key.cmp(&other.start_key));
    for pair in regions.windows(2) {
        let apart = !pair[0].end_key.is_empty() && pair[0].end_key <= pair[1].start_key;
        assert!(apart, "{:?} overlaps {:?}", pair[0], pair[1]);
    }
}

/// Two replicas that run the same commands, whatever these are, answer and write the same; a
/// command that is refused writes nothing; what was written can be loaded again.
#[test]
fn fuzz_commands_run_alike_and_leave_a_state() {
    let corpus = corpus();
    let machine = SchedulerMachine::new(bootstrap());
    let (mut done, mut refused) = (0, 0);
    run("scheduler commands", 2_000, |mutator| {
        let mut records = [Records::default(), Records::default()];
        let mut mark = 0;
        for _ in 0..12 {
            let request = mutator.pick(&corpus).clone();
            let request = if mutator.one_in(4) {
                request.to_vec()
            } else {
                mutator.message(&request)
            };
            let answers = records.each_mut().map(|records| {
                let mut writes = SystemWrites::default();
                let answer = machine.apply(records, &request, &mut writes);
                records.take(&writes);
                (answer, writes.operations().to_vec())
            });
            assert_eq!(answers[0], answers[1], "{request:02x?}");
            let (answer, writes) = &answers[0];
            match command::read_response(answer.clone().expect("the records are whole")) {
                Ok(_) => done += 1,
                Err(command::CommandError::Refused(_)) => {
                    refused += 1;
                    assert!(writes.is_empty(), "refused, and written: {writes:?}");
                }
                Err(error) => panic!("{error}"),
            }
            let state = SystemState::load(&records[0], &bootstrap()).expect("it loads");
            check(&state);
            assert!(state.reserved_until_ms >= mark, "the timestamp mark fell");
            mark = state.reserved_until_ms;
        }
    });
    if strata_fuzz::is_whole_run() {
        assert!(
            done > 2_000 && refused > 2_000,
            "{done} done, {refused} refused"
        );
    }
}

/// Records that a disk has changed under the checksum of the layer below: an error that names
/// one, or a state.
#[test]
fn fuzz_records_and_responses() {
    let machine = SchedulerMachine::new(bootstrap());
    let mut whole = Records::default();
    for request in corpus() {
        let mut writes = SystemWrites::default();
        let answer = machine.apply(&whole, &request, &mut writes);
        whole.take(&writes);
        command::read_response(answer.unwrap()).unwrap();
    }
    run("scheduler records", 5_000, |mutator| {
        let mut records = whole.clone();
        let keys: Vec<Bytes> = records.0.keys().cloned().collect();
        let key = mutator.pick(&keys).clone();
        let value = records.0.remove(&key).unwrap_or_default();
        if mutator.one_in(4) {
            records.0.insert(mutator.bytes(&key).into(), value);
        } else {
            records.0.insert(key, mutator.message(&value).into());
        }
        drop(SystemState::load(&records, &bootstrap()));
        let request = mutator.pick(&corpus()).clone();
        let mut writes = SystemWrites::default();
        match machine.apply(&records, &request, &mut writes) {
            Ok(answer) => drop(command::read_response(mutator.message(&answer).into())),
            Err(error) => assert!(writes.operations().is_empty(), "{error}, and written"),
        }
    });
}
