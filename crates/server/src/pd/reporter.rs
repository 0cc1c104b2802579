//! Reports of the regions that this store leads, to the leader of region 1.
//!
//! The store hands reports over at once when leader or region changed, and otherwise at an
//! interval. Here they gather, the newest of each region, until the leader of region 1 has
//! taken them. When another store takes the lead of region 1, the store is asked to report
//! everything, since the new leader knows nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strata_proto::metapb::Store;
use strata_proto::pdpb::{RegionHeartbeatRequest, StoreStats};
use strata_proto::stratapb::RegionReports;
use strata_proto::stratapb::store_transport_client::StoreTransportClient;
use strata_raftstore::HeartbeatSink;
use strata_scheduler::SYSTEM_REGION_ID;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::locate::{Locator, forwarding};
use crate::disk::DiskSpace;

/// Pause before reports that nobody took are sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often the leader of region 1 is compared with the last one.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// Reports that wait to be sent: at most one a region.
pub(crate) struct ReportQueue {
    waiting: Mutex<BTreeMap<u64, RegionHeartbeatRequest>>,
    ready: Notify,
    /// Told when the peer of region 1 has news of itself.
    system_changed: Arc<Notify>,
}

impl ReportQueue {
    pub(crate) fn new(system_changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(ReportQueue {
            waiting: Mutex::new(BTreeMap::new()),
            ready: Notify::new(),
            system_changed,
        })
    }

    fn take(&self) -> Vec<RegionHeartbeatRequest> {
        std::mem::take(&mut *self.waiting.lock())
            .into_values()
            .collect()
    }

    /// Puts reports back that were not taken, unless a newer one of the region is there.
    fn put_back(&self, reports: Vec<RegionHeartbeatRequest>) {
        let mut waiting = self.waiting.lock();
        for report in reports {
            let id = report.region.as_ref().map_or(0, |region| region.id);
            waiting.entry(id).or_insert(report);
        }
    }
}

impl HeartbeatSink for ReportQueue {
    fn report(&self, reports: Vec<RegionHeartbeatRequest>) {
        let mut system_changed = false;
        {
            let mut waiting = self.waiting.lock();
            for report in reports {
                let id = report.region.as_ref().map_or(0, |region| region.id);
                if id == SYSTEM_REGION_ID {
                    system_changed = true;
                } else {
                    waiting.insert(id, report);
                }
            }
        }
        if system_changed {
            self.system_changed.notify_one();
        }
        self.ready.notify_one();
    }
}

/// Sends reports until the node stops.
pub(crate) async fn run_reporter(
    locator: Arc<Locator>,
    queue: Arc<ReportQueue>,
    disk: DiskSpace,
    mut stopping: watch::Receiver<bool>,
) {
    let interval = locator.config.report_interval;
    let mut told = None;
    let mut next = Instant::now();
    while !*stopping.borrow() {
        let leader = current_leader(&locator);
        if leader.is_some() && leader != told {
            // The new leader knows nothing; the store's answer comes through the queue.
            locator.store.report_all_regions();
            told = leader;
            next = Instant::now();
        }
        let reports = queue.take();
        if !reports.is_empty() || Instant::now() >= next {
            if send(&locator, &disk, &reports).await {
                next = Instant::now() + interval;
            } else {
                queue.put_back(reports);
                told = None;
                sleep(RETRY_PAUSE).await;
                continue;
            }
        }
        tokio::select! {
            () = queue.ready.notified() => {}
            () = sleep_until((Instant::now() + LEADER_POLL).min(next)) => {}
            _ = stopping.changed() => {}
        }
    }
}

/// The leader of region 1 and, where this store is it, its term: a leader that was elected
/// again has lost what it knew.
fn current_leader(locator: &Locator) -> Option<(u64, u64)> {
    if let Some(leadership) = locator.leading() {
        return Some((locator.cluster.store_id, leadership.term));
    }
    let leader = locator.leader()?;
    if leader == locator.cluster.store_id {
        // It leads and has not loaded its state yet.
        return None;
    }
    let term = locator
        .store
        .region_state(SYSTEM_REGION_ID)
        .map_or(0, |state| state.term);
    Some((leader, term))
}

/// Sends one message; true if the leader of region 1 took it.
async fn send(locator: &Locator, disk: &DiskSpace, regions: &[RegionHeartbeatRequest]) -> bool {
    let message = RegionReports {
        cluster_id: locator.cluster.cluster_id,
        store_id: locator.cluster.store_id,
        regions: regions.to_vec(),
        store_stats: Some(stats(locator, disk)),
        store: Some(own_store(locator)),
    };
    let deadline = Instant::now() + locator.config.forward_time;
    let sent = locator
        .with_leader(
            deadline,
            false,
            |leadership| {
                leadership.on_reports(message.clone());
                async { Ok(()) }
            },
            |channel, time| {
                let request = forwarding(message.clone(), time);
                async move {
                    let mut client =
                        StoreTransportClient::new(channel).max_encoding_message_size(usize::MAX);
                    client.report_regions(request).await.map(|_| ())
                }
            },
        )
        .await;
    sent.is_ok()
}

/// This store as others shall know it.
fn own_store(locator: &Locator) -> Store {
    let cluster = &locator.cluster;
    let address = cluster.address(cluster.store_id).unwrap_or_default();
    Store {
        id: cluster.store_id,
        peer_address: address.clone(),
        status_address: address.clone(),
        address,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_timestamp: cluster.start_timestamp,
        ..Default::default()
    }
}

fn stats(locator: &Locator, disk: &DiskSpace) -> StoreStats {
    let (capacity, available) = disk.measure();
    StoreStats {
        store_id: locator.cluster.store_id,
        capacity,
        available,
        used_size: disk.used(),
        region_count: locator
            .store
            .regions()
            .iter()
            .filter(|region| region.region.id != SYSTEM_REGION_ID)
            .count() as u32,
        start_time: u32::try_from(locator.cluster.start_timestamp).unwrap_or(0),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::metapb::Region;

    fn report(region_id: u64, term: u64) -> RegionHeartbeatRequest {
        RegionHeartbeatRequest {
            region: Some(Region {
                id: region_id,
                ..Default::default()
            }),
            term,
            ..Default::default()
        }
    }

    #[test]
    fn the_newest_report_of_each_region_waits_and_region_1_never() {
        let queue = ReportQueue::new(Arc::new(Notify::new()));
        queue.report(vec![report(2, 6), report(3, 6), report(1, 9)]);
        queue.report(vec![report(2, 7)]);
        let taken = queue.take();
        let terms: Vec<_> = taken.iter().map(|report| report.term).collect();
        assert_eq!(terms, [7, 6]);
        queue.report(vec![report(2, 8)]);
        queue.put_back(taken);
        let terms: Vec<_> = queue.take().iter().map(|report| report.term).collect();
        assert_eq!(
            terms,
            [8, 6],
            "what is put back does not hide what is newer"
        );
    }
}
