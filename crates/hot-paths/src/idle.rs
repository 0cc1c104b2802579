//! Regions that have nothing to do, of which a store may have thousands.
//!
//! All stores of a cluster are ticked; what the peers send each other, heartbeats and answers, is
//! delivered until nothing is on its way. The number of messages tells whether they did.

use anyhow::ensure;
use strata_raftstore::StoreOptions;

use crate::cluster::Cluster;
use crate::paths::HotPath;

/// User regions; with the system's they divide the operations of every run.
const REGIONS: u32 = 31;
/// Other members of a region, each of which gets a heartbeat and answers it.
const FOLLOWERS: u64 = 2;

/// Ticks of idle regions on all their stores, with their heartbeats and the answers.
pub struct IdleTick {
    cluster: Cluster,
    sent_before: u64,
}

impl IdleTick {
    /// A cluster whose leaders are elected.
    ///
    /// # Errors
    /// The cluster does not start.
    pub fn new() -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(REGIONS)?;
        // What follows from the elections is over by then.
        for _ in 0..StoreOptions::default().election_ticks_max {
            cluster.tick()?;
        }
        Ok(Self {
            sent_before: cluster.messages_sent(),
            cluster,
        })
    }

    fn ticks(&self, operations: u64) -> anyhow::Result<u64> {
        let regions = self.cluster.regions() as u64;
        ensure!(
            operations.is_multiple_of(regions),
            "{operations} operations are no whole ticks of {regions} regions"
        );
        Ok(operations / regions)
    }
}

impl HotPath for IdleTick {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..self.ticks(operations)? {
            self.cluster.tick()?;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        let ticks = self.ticks(operations)?;
        let round = StoreOptions::default().heartbeat_ticks as u64;
        let in_round = self.cluster.regions() as u64 * FOLLOWERS * 2;
        // A region may be anywhere between two of its rounds when the run begins.
        let least = ticks / round * in_round;
        let most = ticks.div_ceil(round) * in_round;
        let sent = self.cluster.messages_sent() - self.sent_before;
        ensure!(
            (least..=most).contains(&sent),
            "{sent} messages in {ticks} ticks, not {least} to {most}"
        );
        Ok(())
    }
}
