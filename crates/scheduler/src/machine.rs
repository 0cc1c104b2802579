//! The scheduler's state machine: one command in, records and a response out.
//!
//! Every replica of region 1 runs it, so it depends on nothing but the records, the
//! command, and the bootstrap layout, which all replicas share. A command that is refused
//! writes nothing and says why in its response.

use bytes::Bytes;
use prost::Message;
use strata_proto::metapb::{Region, Store, StoreState};
use strata_proto::stratapb::{SystemRequest, SystemResponse, system_request::Body};
use strata_raftstore::{SystemStateMachine, SystemView, SystemViewError, SystemWrites};

use crate::directory::ReportVerdict;
use crate::records::{
    FIRST_ID, NEXT_ID_KEY, TIMESTAMP_KEY, load_directory, read_number, region_key, store_key,
};

/// The deterministic part of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerMachine {
    bootstrap: Vec<Region>,
}

impl SchedulerMachine {
    /// A state machine over the layout that the cluster began with.
    pub fn new(bootstrap: Vec<Region>) -> Self {
        SchedulerMachine { bootstrap }
    }

    fn execute(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<SystemResponse, SystemViewError> {
        let Ok(request) = SystemRequest::decode(request) else {
            return Ok(refused("the command does not decode"));
        };
        match request.body {
            None => Ok(refused("the command has no body that this version knows")),
            Some(Body::AllocateIds(command)) => allocate_ids(view, command.count, writes),
            Some(Body::ReserveTimestamps(command)) => reserve(view, command.until_ms, writes),
            Some(Body::PutStore(command)) => Ok(put_store(command.store, writes)),
            Some(Body::ReportRegion(command)) => self.report_region(view, command.region, writes),
        }
    }

    fn report_region(
        &self,
        view: &dyn SystemView,
        region: Option<Region>,
        writes: &mut SystemWrites,
    ) -> Result<SystemResponse, SystemViewError> {
        let Some(region) = region else {
            return Ok(refused("the report holds no region"));
        };
        match load_directory(view, &self.bootstrap)?.judge(&region) {
            Err(reason) => Ok(refused(reason.to_string())),
            Ok(ReportVerdict::Known) => Ok(SystemResponse::default()),
            Ok(ReportVerdict::Changed { replaced }) => {
                for id in replaced {
                    writes.put(region_key(id), Bytes::new());
                }
                writes.put(region_key(region.id), region.encode_to_vec());
                Ok(SystemResponse::default())
            }
        }
    }
}

impl SystemStateMachine for SchedulerMachine {
    fn apply(
        &self,
        view: &dyn SystemView,
        request: &[u8],
        writes: &mut SystemWrites,
    ) -> Result<Bytes, SystemViewError> {
        let response = self.execute(view, request, writes)?;
        Ok(response.encode_to_vec().into())
    }
}

fn refused(why: impl Into<String>) -> SystemResponse {
    SystemResponse {
        refused: why.into(),
        ..Default::default()
    }
}

fn allocate_ids(
    view: &dyn SystemView,
    count: u32,
    writes: &mut SystemWrites,
) -> Result<SystemResponse, SystemViewError> {
    if count == 0 {
        return Ok(refused("a run of ids must hold at least one"));
    }
    let first_id = read_number(view, NEXT_ID_KEY)?.unwrap_or(FIRST_ID);
    let Some(next) = first_id.checked_add(u64::from(count)) else {
        return Ok(refused("all ids are used"));
    };
    writes.put(NEXT_ID_KEY, next.to_be_bytes().to_vec());
    Ok(SystemResponse {
        first_id,
        ..Default::default()
    })
}

fn reserve(
    view: &dyn SystemView,
    until_ms: u64,
    writes: &mut SystemWrites,
) -> Result<SystemResponse, SystemViewError> {
    let known = read_number(view, TIMESTAMP_KEY)?.unwrap_or(0);
    if until_ms > known {
        writes.put(TIMESTAMP_KEY, until_ms.to_be_bytes().to_vec());
    }
    Ok(SystemResponse {
        reserved_until_ms: until_ms.max(known),
        ..Default::default()
    })
}

fn put_store(store: Option<Store>, writes: &mut SystemWrites) -> SystemResponse {
    let Some(store) = store else {
        return refused("the command holds no store");
    };
    if store.id == 0 || store.address.is_empty() {
        return refused("a store needs an id and an address");
    }
    if StoreState::try_from(store.state).is_err() {
        return refused(format!("store {}: unknown state {}", store.id, store.state));
    }
    writes.put(store_key(store.id), store.encode_to_vec());
    SystemResponse::default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::*;
    use crate::command;
    use crate::directory::tests::region;
    use crate::records::SystemState;

    /// Records in memory.
    #[derive(Default)]
    struct Records(BTreeMap<Bytes, Bytes>);

    impl SystemView for Records {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SystemViewError> {
            Ok(self.0.get(key).cloned())
        }

        fn scan(
            &self,
            start: &[u8],
            end: &[u8],
            reverse: bool,
            visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        ) -> Result<(), SystemViewError> {
            assert!(!reverse, "the scheduler scans forward");
            for (key, value) in &self.0 {
                if &key[..] >= start
                    && (end.is_empty() || &key[..] < end)
                    && visit(key, value).is_break()
                {
                    break;
                }
            }
            Ok(())
        }
    }

    struct Replica {
        machine: SchedulerMachine,
        records: Records,
    }

    impl Replica {
        fn new() -> Self {
            Replica {
                machine: SchedulerMachine::new(bootstrap()),
                records: Records::default(),
            }
        }

        fn run(&mut self, request: Bytes) -> Result<command::Response, command::CommandError> {
            let mut writes = SystemWrites::default();
            let response = self
                .machine
                .apply(&self.records, &request, &mut writes)
                .unwrap();
            for (key, value) in writes.operations() {
                match value {
                    Some(value) => self.records.0.insert(key.clone(), value.clone()),
                    None => self.records.0.remove(key),
                };
            }
            command::read_response(response)
        }

        fn state(&self) -> SystemState {
            SystemState::load(&self.records, &bootstrap()).unwrap()
        }
    }

    fn bootstrap() -> Vec<Region> {
        vec![
            region(1, "", "", 1, 1),
            region(2, "", "m", 1, 1),
            region(3, "m", "", 1, 1),
        ]
    }

    #[test]
    fn ids_start_at_a_million_and_never_repeat() {
        let mut replica = Replica::new();
        let mut next = 1_000_000;
        for count in [1, 3, 1, 100] {
            let first = replica.run(command::allocate_ids(count)).unwrap().first_id;
            assert_eq!(first, next);
            next += u64::from(count);
        }
        assert!(replica.run(command::allocate_ids(0)).is_err());
        assert_eq!(replica.state().next_id, next);
    }

    #[test]
    fn the_timestamp_mark_never_falls() {
        let mut replica = Replica::new();
        for (asked, in_force) in [(5_000, 5_000), (3_000, 5_000), (8_000, 8_000)] {
            let response = replica.run(command::reserve_timestamps(asked)).unwrap();
            assert_eq!(response.reserved_until_ms, in_force);
            assert_eq!(replica.state().reserved_until_ms, in_force);
        }
    }

    #[test]
    fn stores_are_recorded_and_malformed_ones_refused() {
        let mut replica = Replica::new();
        let store = |id, address: &str, state| Store {
            id,
            address: address.to_owned(),
            state,
            ..Default::default()
        };
        replica.run(command::put_store(store(2, "a:1", 0))).unwrap();
        replica.run(command::put_store(store(2, "b:1", 0))).unwrap();
        assert_eq!(replica.state().stores[&2].address, "b:1");
        for wrong in [store(0, "a:1", 0), store(3, "", 0), store(3, "a:1", 7)] {
            assert!(replica.run(command::put_store(wrong)).is_err());
        }
        assert_eq!(replica.state().stores.len(), 1);
    }

    #[test]
    fn the_directory_begins_as_the_bootstrap_and_follows_reports() {
        let mut replica = Replica::new();
        assert_eq!(replica.state().directory.len(), 2);
        let known = command::report_region(region(2, "", "m", 1, 1));
        replica.run(known).unwrap();
        assert!(replica.records.0.is_empty(), "nothing changed");
        replica
            .run(command::report_region(region(2, "", "m", 2, 1)))
            .unwrap();
        let stale = replica.run(command::report_region(region(2, "", "m", 1, 1)));
        assert!(matches!(stale, Err(command::CommandError::Refused(_))));
        let state = replica.state();
        let epoch = state.directory.by_id(2).unwrap().region_epoch.unwrap();
        assert_eq!(epoch.conf_ver, 2);
        assert_eq!(state.directory.find(b"z").unwrap().id, 3);
    }

    #[test]
    fn a_replaced_region_stays_gone_after_a_reload() {
        let mut replica = Replica::new();
        replica
            .run(command::report_region(region(2, "", "", 1, 2)))
            .unwrap();
        let state = replica.state();
        assert_eq!(state.directory.len(), 1);
        assert_eq!(state.directory.find(b"z").unwrap().id, 2);
        assert_eq!(state.directory.by_id(3), None);
    }

    #[test]
    fn garbage_is_refused_and_writes_nothing() {
        let mut replica = Replica::new();
        for garbage in [&b"\xff\xff\xff"[..], b""] {
            assert!(replica.run(Bytes::copy_from_slice(garbage)).is_err());
        }
        assert!(replica.records.0.is_empty());
    }

    #[test]
    fn a_damaged_record_is_an_error_not_a_guess() {
        let mut replica = Replica::new();
        replica
            .records
            .0
            .insert(Bytes::from_static(NEXT_ID_KEY), Bytes::from_static(b"abc"));
        let mut writes = SystemWrites::default();
        let request = command::allocate_ids(1);
        assert!(
            replica
                .machine
                .apply(&replica.records, &request, &mut writes)
                .is_err()
        );
        assert!(writes.operations().is_empty());
    }
}
