//! What the leader of region 1 holds in memory for one term.
//!
//! Load     On winning region 1: one linearizable read of the replicated state.
//! Report   Heartbeats of stores move leaders and statistics; a region or store that
//!          differs from the replicated state is written to it.
//! Look up  The directory finds the region, `choose_leader` its leader; where there is
//!          none, the look-up waits for a report until its time is up.
//! End      When the term is over, the object is dropped from the [`Locator`] and never
//!          used again; streams that hang on it end.
//!
//! [`Locator`]: super::Locator

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slog::{Logger, debug, warn};
use strata_proto::metapb::{Peer, Region, Store};
use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::stratapb::{RegionReports, StoreStatus};
use strata_raftstore::StoreHandle;
use strata_scheduler::{
    Directory, ReportVerdict, Reports, SystemState, TimestampOracle, choose_leader, put_store,
    read_response, report_region,
};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::config::SchedulerConfig;
use crate::store_call::write_system;

/// Time for one write of the scheduler's state.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(2);
/// How often a waiting look-up asks again what this store's own peer knows.
const OWN_PEER_POLL: Duration = Duration::from_millis(20);

/// One term of leading region 1.
pub(crate) struct Leadership {
    /// The term of region 1 that this belongs to.
    pub(crate) term: u64,
    pub(super) store: StoreHandle,
    cluster: Arc<Cluster>,
    logger: Logger,
    pub(super) config: SchedulerConfig,
    state: Mutex<State>,
    pub(super) oracle: Mutex<TimestampOracle>,
    /// Held while a timestamp mark is replicated, so that one write serves all who wait.
    pub(super) reserving: tokio::sync::Mutex<()>,
    /// Told when reports came in.
    reported: Notify,
    watchers: broadcast::Sender<Arc<Vec<RegionHeartbeatRequest>>>,
}

struct State {
    directory: Directory,
    stores: BTreeMap<u64, Store>,
    reports: Reports,
    /// Regions and stores whose change is being written, so that it is written once.
    writing_regions: BTreeSet<u64>,
    writing_stores: BTreeSet<u64>,
}

impl Leadership {
    pub(super) fn new(
        term: u64,
        store: StoreHandle,
        cluster: Arc<Cluster>,
        config: SchedulerConfig,
        logger: Logger,
        system: SystemState,
    ) -> Self {
        let mut oracle = TimestampOracle::new(config.timestamp_window.as_millis() as u64);
        oracle.lead(system.reserved_until_ms);
        let reports = Reports::new(store.now(), config.store_down_time);
        let (watchers, _) = broadcast::channel(config.watch_queue_messages as usize);
        Leadership {
            term,
            cluster,
            logger,
            state: Mutex::new(State {
                directory: system.directory,
                stores: system.stores,
                reports,
                writing_regions: BTreeSet::new(),
                writing_stores: BTreeSet::new(),
            }),
            oracle: Mutex::new(oracle),
            reserving: tokio::sync::Mutex::new(()),
            reported: Notify::new(),
            watchers,
            store,
            config,
        }
    }

    /// Takes the reports of one store.
    pub(crate) fn on_reports(self: &Arc<Self>, reports: RegionReports) {
        let now = self.store.now();
        let fresh;
        let mut changed_regions = Vec::new();
        let mut changed_store = None;
        {
            let mut state = self.state.lock();
            let State {
                directory,
                stores,
                reports: known,
                writing_regions,
                writing_stores,
            } = &mut *state;
            if let Some(store) = &reports.store
                && store.id == reports.store_id
                && stores
                    .get(&store.id)
                    .is_none_or(|known| differs(known, store))
                && writing_stores.insert(store.id)
            {
                changed_store = Some(store.clone());
            }
            fresh = known.on_report(
                now,
                reports.store_id,
                reports.store,
                reports.store_stats,
                reports.regions,
            );
            for region in fresh.iter().filter_map(|report| report.region.as_ref()) {
                if matches!(directory.judge(region), Ok(ReportVerdict::Changed { .. }))
                    && writing_regions.insert(region.id)
                {
                    changed_regions.push(region.clone());
                }
            }
        }
        self.reported.notify_waiters();
        if !fresh.is_empty() {
            // Nobody watches: nobody is told.
            let _ = self.watchers.send(Arc::new(fresh));
        }
        for region in changed_regions {
            tokio::spawn(self.clone().write_region(region));
        }
        if let Some(store) = changed_store {
            tokio::spawn(self.clone().write_store(store));
        }
    }

    /// Replicates a changed region, then changes the directory. A failed write is repeated
    /// with the next report.
    async fn write_region(self: Arc<Self>, region: Region) {
        let written = self.write(report_region(region.clone())).await;
        let mut state = self.state.lock();
        state.writing_regions.remove(&region.id);
        match written {
            Ok(()) => {
                let id = region.id;
                if let Err(error) = state.directory.take(region) {
                    warn!(self.logger, "a region changed while it was written";
                        "region" => id, "reason" => %error);
                }
            }
            Err(reason) => {
                debug!(self.logger, "a changed region was not recorded";
                    "region" => region.id, "reason" => reason);
            }
        }
    }

    async fn write_store(self: Arc<Self>, store: Store) {
        let record = recorded_form(&store);
        let written = self.write(put_store(record.clone())).await;
        let mut state = self.state.lock();
        state.writing_stores.remove(&store.id);
        match written {
            Ok(()) => {
                state.stores.insert(record.id, record);
            }
            Err(reason) => {
                debug!(self.logger, "a store was not recorded";
                    "peer_store" => store.id, "reason" => reason);
            }
        }
    }

    async fn write(&self, command: bytes::Bytes) -> Result<(), String> {
        let response = write_system(&self.store, command, WRITE_TIME)
            .await
            .map_err(|error| error.to_string())?;
        read_response(response)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    /// A connection to a store stands.
    pub(crate) fn on_connected(&self, store_id: u64) {
        self.state.lock().reports.on_connected(store_id);
        self.reported.notify_waiters();
    }

    /// A store's machine refuses connections.
    pub(crate) fn on_refused(&self, store_id: u64) {
        let now = self.store.now();
        self.state.lock().reports.on_refused(now, store_id);
    }

    /// Regions with their leaders. Waits until each has a leader that is not known to be
    /// dead, or until `deadline`; then a region may come without one.
    pub(crate) async fn look_up(
        &self,
        deadline: Instant,
        find: impl Fn(&Directory) -> Vec<Region>,
    ) -> Vec<(Region, Option<Peer>)> {
        loop {
            let reported = self.reported.notified();
            tokio::pin!(reported);
            reported.as_mut().enable();
            let found = self.look_up_now(&find);
            let complete = found.iter().all(|(_, leader)| leader.is_some());
            if complete || Instant::now() >= deadline {
                return found;
            }
            let again = (Instant::now() + OWN_PEER_POLL).min(deadline);
            tokio::select! {
                () = reported => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    fn look_up_now(
        &self,
        find: &impl Fn(&Directory) -> Vec<Region>,
    ) -> Vec<(Region, Option<Peer>)> {
        let now = self.store.now();
        let state = self.state.lock();
        find(&state.directory)
            .into_iter()
            .map(|region| {
                let own = self.store.leader_of(region.id);
                let leader = choose_leader(
                    &region,
                    state.reports.leader(region.id),
                    own.as_ref(),
                    |store_id| self.is_down(&state.reports, now, store_id),
                );
                (region, leader)
            })
            .collect()
    }

    /// This store lives, whatever reports say.
    fn is_down(&self, reports: &Reports, now: Duration, store_id: u64) -> bool {
        store_id != self.cluster.store_id && reports.is_down(now, store_id)
    }

    /// The last report of a region's leader.
    pub(crate) fn region_report(&self, region_id: u64) -> Option<RegionHeartbeatRequest> {
        self.state.lock().reports.region(region_id).cloned()
    }

    /// All stores: as replicated, else as the command line has them.
    pub(crate) fn stores(&self) -> Vec<Store> {
        let now = self.store.now();
        let state = self.state.lock();
        let mut stores = state.stores.clone();
        for (id, address) in self.cluster.addresses() {
            stores.entry(id).or_insert_with(|| Store {
                id,
                peer_address: address.clone(),
                status_address: address.clone(),
                address,
                ..Default::default()
            });
        }
        let wall_ms = wall_clock_ms();
        for store in stores.values_mut() {
            if let Some(report) = state.reports.store(store.id) {
                let ago = now.saturating_sub(report.at);
                let at = Duration::from_millis(wall_ms).saturating_sub(ago);
                store.last_heartbeat = i64::try_from(at.as_nanos()).unwrap_or(i64::MAX);
                if let Some(said) = &report.store {
                    store.start_timestamp = said.start_timestamp;
                }
            }
        }
        stores.into_values().collect()
    }

    /// All stores with their statistics, for `strata status`.
    pub(crate) fn store_statuses(&self) -> Vec<StoreStatus> {
        let stores = self.stores();
        let now = self.store.now();
        let state = self.state.lock();
        stores
            .into_iter()
            .map(|store| {
                let report = state.reports.store(store.id);
                StoreStatus {
                    stats: report.and_then(|report| report.stats),
                    leader_count: state.reports.leader_count(store.id),
                    last_report_ago_ms: report
                        .map(|report| now.saturating_sub(report.at).as_millis() as u64),
                    store: Some(store),
                }
            })
            .collect()
    }

    /// Known reports, and those that come in from now on.
    pub(crate) fn watch(
        &self,
    ) -> (
        Vec<RegionHeartbeatRequest>,
        broadcast::Receiver<Arc<Vec<RegionHeartbeatRequest>>>,
    ) {
        let state = self.state.lock();
        let receiver = self.watchers.subscribe();
        (state.reports.regions().cloned().collect(), receiver)
    }
}

/// The wall clock in milliseconds since 1970.
pub(crate) fn wall_clock_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// A store as it is replicated: without what changes by itself.
fn recorded_form(store: &Store) -> Store {
    Store {
        start_timestamp: 0,
        last_heartbeat: 0,
        ..store.clone()
    }
}

fn differs(known: &Store, reported: &Store) -> bool {
    recorded_form(known) != recorded_form(reported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_alone_changes_no_record() {
        let store = |address: &str, start| Store {
            id: 1,
            address: address.to_owned(),
            start_timestamp: start,
            last_heartbeat: start * 2,
            ..Default::default()
        };
        assert!(!differs(&store("a:1", 1), &store("a:1", 2)));
        assert!(differs(&store("a:1", 1), &store("b:1", 1)));
    }
}
