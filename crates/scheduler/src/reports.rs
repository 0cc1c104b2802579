//! What stores report to the leader of region 1: leaders of regions, and statistics.
//!
//! All of it is in memory. A new leader of region 1 starts with nothing; every store
//! reports all that it leads as soon as it learns of the new leader.
//!
//! Invariants
//! * A report of an older term never replaces one of a newer term.
//! * Region 1 is not kept: clients do not know it.

use std::collections::BTreeMap;
use std::time::Duration;

use strata_proto::metapb::{Peer, Store};
use strata_proto::pdpb::{RegionHeartbeatRequest, StoreStats};

use crate::records::SYSTEM_REGION_ID;

/// What one store said of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreReport {
    /// Address and start time.
    pub store: Option<Store>,
    /// Disk and counters.
    pub stats: Option<StoreStats>,
    /// When it came in, on the driver's clock.
    pub at: Duration,
}

/// Reports of all stores since this store leads region 1.
#[derive(Debug, Clone)]
pub struct Reports {
    /// A store without a report for so long counts as down.
    down_time: Duration,
    led_since: Duration,
    regions: BTreeMap<u64, RegionHeartbeatRequest>,
    stores: BTreeMap<u64, StoreReport>,
    /// Stores whose machine refuses connections, with the time of the first refusal.
    refusing: BTreeMap<u64, Duration>,
}

impl Reports {
    /// No reports yet. `down_time`: how long a store may be silent.
    pub fn new(now: Duration, down_time: Duration) -> Self {
        Reports {
            down_time,
            led_since: now,
            regions: BTreeMap::new(),
            stores: BTreeMap::new(),
            refusing: BTreeMap::new(),
        }
    }

    /// Takes the reports of one store and returns those that were news or repeated what
    /// is known, without the stale and the malformed ones.
    pub fn on_report(
        &mut self,
        now: Duration,
        store_id: u64,
        store: Option<Store>,
        stats: Option<StoreStats>,
        regions: Vec<RegionHeartbeatRequest>,
    ) -> Vec<RegionHeartbeatRequest> {
        self.refusing.remove(&store_id);
        let known = self.stores.entry(store_id).or_insert(StoreReport {
            store: None,
            stats: None,
            at: now,
        });
        known.at = now;
        known.store = store.or(known.store.take());
        known.stats = stats.or(known.stats.take());
        regions
            .into_iter()
            .filter(|report| self.take_region(report))
            .collect()
    }

    fn take_region(&mut self, report: &RegionHeartbeatRequest) -> bool {
        let Some(region) = &report.region else {
            return false;
        };
        if region.id == SYSTEM_REGION_ID || report.leader.is_none() {
            return false;
        }
        if let Some(known) = self.regions.get(&region.id) {
            let epoch = region.region_epoch.unwrap_or_default();
            let known_epoch = known
                .region
                .as_ref()
                .and_then(|region| region.region_epoch)
                .unwrap_or_default();
            let older_epoch =
                epoch.version < known_epoch.version || epoch.conf_ver < known_epoch.conf_ver;
            if report.term < known.term || older_epoch {
                return false;
            }
        }
        self.regions.insert(region.id, report.clone());
        true
    }

    /// A connection to a store was refused by its machine: no process listens there.
    pub fn on_refused(&mut self, now: Duration, store_id: u64) {
        self.refusing.entry(store_id).or_insert(now);
    }

    /// A connection to a store stands.
    pub fn on_connected(&mut self, store_id: u64) {
        self.refusing.remove(&store_id);
    }

    /// True if the store is known to be dead: its machine refuses connections, or it has
    /// not reported for too long.
    pub fn is_down(&self, now: Duration, store_id: u64) -> bool {
        if self.refusing.contains_key(&store_id) {
            return true;
        }
        let heard = self
            .stores
            .get(&store_id)
            .map_or(self.led_since, |report| report.at);
        now.saturating_sub(heard) > self.down_time
    }

    /// The last report of a region's leader, whether its store lives or not.
    pub fn region(&self, region_id: u64) -> Option<&RegionHeartbeatRequest> {
        self.regions.get(&region_id)
    }

    /// The reported leader of a region, whether its store lives or not.
    pub fn leader(&self, region_id: u64) -> Option<&Peer> {
        self.regions.get(&region_id)?.leader.as_ref()
    }

    /// All reports of regions, by id.
    pub fn regions(&self) -> impl Iterator<Item = &RegionHeartbeatRequest> {
        self.regions.values()
    }

    /// What a store last said of itself.
    pub fn store(&self, store_id: u64) -> Option<&StoreReport> {
        self.stores.get(&store_id)
    }

    /// Regions that a store leads by the last reports.
    pub fn leader_count(&self, store_id: u64) -> u64 {
        self.regions
            .values()
            .filter(|report| {
                report
                    .leader
                    .as_ref()
                    .is_some_and(|peer| peer.store_id == store_id)
            })
            .count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::region;

    const SECOND: Duration = Duration::from_secs(1);

    fn heartbeat(region_id: u64, store_id: u64, term: u64, version: u64) -> RegionHeartbeatRequest {
        let region = region(region_id, "", "", 1, version);
        RegionHeartbeatRequest {
            leader: region
                .peers
                .iter()
                .find(|peer| peer.store_id == store_id)
                .copied(),
            region: Some(region),
            term,
            ..Default::default()
        }
    }

    fn leader(reports: &Reports, region_id: u64) -> Option<u64> {
        reports.leader(region_id).map(|peer| peer.store_id)
    }

    #[test]
    fn the_newest_term_and_epoch_win() {
        let mut reports = Reports::new(Duration::ZERO, 10 * SECOND);
        let mut take = |report: RegionHeartbeatRequest, from| {
            reports
                .on_report(SECOND, from, None, None, vec![report])
                .len()
        };
        assert_eq!(take(heartbeat(2, 1, 6, 2), 1), 1);
        assert_eq!(take(heartbeat(2, 3, 7, 2), 3), 1);
        assert_eq!(take(heartbeat(2, 1, 6, 2), 1), 0, "an older term");
        assert_eq!(take(heartbeat(2, 3, 7, 1), 3), 0, "an older epoch");
        assert_eq!(leader(&reports, 2), Some(3));
        assert_eq!(reports.leader_count(3), 1);
        assert_eq!(reports.leader_count(1), 0);
    }

    #[test]
    fn region_1_and_malformed_reports_are_not_kept() {
        let mut reports = Reports::new(Duration::ZERO, 10 * SECOND);
        let mut no_leader = heartbeat(2, 1, 6, 1);
        no_leader.leader = None;
        let taken = reports.on_report(
            SECOND,
            1,
            None,
            None,
            vec![
                heartbeat(1, 1, 6, 1),
                no_leader,
                RegionHeartbeatRequest::default(),
            ],
        );
        assert!(taken.is_empty());
        assert_eq!(reports.regions().count(), 0);
    }

    #[test]
    fn a_store_is_down_when_it_is_silent_or_refuses_connections() {
        let mut reports = Reports::new(Duration::ZERO, 10 * SECOND);
        reports.on_report(SECOND, 1, None, None, Vec::new());
        assert!(!reports.is_down(11 * SECOND, 1));
        assert!(reports.is_down(12 * SECOND, 1));
        assert!(!reports.is_down(10 * SECOND, 2), "never heard, yet new");
        assert!(reports.is_down(11 * SECOND, 2));
        reports.on_refused(2 * SECOND, 1);
        assert!(reports.is_down(2 * SECOND, 1));
        reports.on_report(3 * SECOND, 1, None, None, Vec::new());
        assert!(!reports.is_down(3 * SECOND, 1));
        reports.on_refused(4 * SECOND, 1);
        reports.on_connected(1);
        assert!(!reports.is_down(4 * SECOND, 1));
    }
}
