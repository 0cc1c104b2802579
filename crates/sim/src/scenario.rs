//! Rows: a few lines each, as the course's generic tests have them.
//!
//! A row runs some rounds. In each, clients work on keys of their own and on keys that all
//! share, while the chosen faults strike; then all is healed, and where the row says so
//! every store loses its power at once and starts again. At the end come the checkers.

use std::time::Duration;

use bytes::Bytes;
use strata_raftstore::StoreOptions;

use crate::checks::RunReport;
use crate::cluster::{Cluster, ClusterOptions};
use crate::disk::Crash;
use crate::fault_kind::FaultKind;
use crate::faults::Faults;
use crate::network::Weather;
use crate::violation::Violation;
use crate::workload::{Mix, Workload};

/// Keys that every client writes.
const SHARED_KEYS: usize = 4;
/// Keys that only one client writes.
const OWN_KEYS: usize = 3;

/// The parameters of a row.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Decides everything.
    pub seed: u64,
    /// Number of stores.
    pub stores: u64,
    /// Number of user regions, at least 6.
    pub regions: u32,
    /// Number of clients.
    pub clients: u64,
    /// What clients do.
    pub mix: Mix,
    /// True: the clients are clerks, whose writes are executed once.
    pub clerks: bool,
    /// Messages, requests and answers get lost, doubled, late and overtaken.
    pub unreliable: bool,
    /// The stores fall into two groups again and again.
    pub partitions: bool,
    /// After each round all stores lose their power and start again.
    pub crashes: bool,
    /// Further faults during the rounds.
    pub faults: Vec<FaultKind>,
    /// Settings of the stores.
    pub store: StoreOptions,
    /// Share of reads that go to any replica.
    pub replica_reads: f64,
    /// Share of attempts that their client gives up.
    pub cancelled: f64,
    /// Rounds.
    pub rounds: u32,
    /// Length of a round.
    pub round: Duration,
}

impl Scenario {
    /// Five stores, five clients, three rounds of two seconds, nothing goes wrong.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Scenario {
            seed,
            stores: 5,
            regions: 6,
            clients: 5,
            mix: Mix::append_and_scan(),
            clerks: false,
            unreliable: false,
            partitions: false,
            crashes: false,
            faults: Vec::new(),
            store: StoreOptions::default(),
            replica_reads: 0.0,
            cancelled: 0.0,
            rounds: 3,
            round: Duration::from_secs(2),
        }
    }

    /// Runs the row to its end.
    ///
    /// # Errors
    /// All violations that the checkers found.
    pub fn run(&self) -> Result<RunReport, Vec<Violation>> {
        self.play().finish()
    }

    /// Runs the row to its end and prints what it did.
    ///
    /// # Panics
    /// If a checker found something; the message names the seed.
    pub fn run_clean(&self) -> RunReport {
        let report = self.play().finish_clean();
        assert!(
            report.acknowledged >= self.clients * u64::from(self.rounds),
            "seed {}: only {} operations were acknowledged",
            self.seed,
            report.acknowledged
        );
        report
    }

    /// Plays all rounds; the checks are still to come.
    #[must_use]
    pub fn play(&self) -> Cluster {
        self.play_with(|cluster| cluster.run_for(self.round))
    }

    /// Plays all rounds, with `act` in the place of their time; the checks are still to come.
    #[must_use]
    pub fn play_with(&self, mut act: impl FnMut(&mut Cluster)) -> Cluster {
        let mut cluster = Cluster::new(self.options());
        let spread = spread_keys(&cluster, SHARED_KEYS.max(self.regions as usize / 2));
        for round in 0..self.rounds {
            for client in 0..self.clients {
                let workload = self.workload(&spread, client, round);
                if self.clerks {
                    cluster.add_clerk(Some(workload));
                } else {
                    cluster.add_client(workload);
                }
            }
            if self.unreliable {
                cluster.network.set_weather(Weather::unreliable());
                cluster.options.client_loss = 0.05;
            }
            self.start_faults(&mut cluster);
            act(&mut cluster);
            cluster.stop_clients();
            cluster.heal();
            if self.crashes {
                self.restart_all(&mut cluster);
            }
        }
        cluster
    }

    fn options(&self) -> ClusterOptions {
        ClusterOptions {
            regions: self.regions,
            store: self.store.clone(),
            ..ClusterOptions::new(self.stores, self.seed)
        }
    }

    /// Keys of this client's own, and those that all share, each group in one region.
    fn workload(&self, spread: &[Bytes], client: u64, round: u32) -> Workload {
        let mut groups: Vec<Vec<Bytes>> = Vec::new();
        for (place, start) in spread.iter().enumerate() {
            let own = (0..OWN_KEYS).map(|key| suffixed(start, &format!("own{client}.{key}")));
            groups.push(own.collect());
            if place < SHARED_KEYS {
                let shared = (0..3).map(|key| suffixed(start, &format!("all{key}")));
                groups.push(shared.collect());
            }
        }
        let mut workload = Workload::new(groups, self.mix);
        // No two rounds write the same values.
        workload.values = u64::from(round) * 1_000_000;
        workload.replica_reads = self.replica_reads;
        workload.cancelled = self.cancelled;
        workload
    }

    fn start_faults(&self, cluster: &mut Cluster) {
        let mut kinds = self.faults.clone();
        if self.partitions {
            kinds.push(FaultKind::Partition);
        }
        if !kinds.is_empty() {
            let interval = (Duration::from_millis(100), Duration::from_millis(700));
            cluster.start_faults(Faults::new(&kinds, interval));
        }
    }

    /// All stores lose their power at once and start again after a while.
    fn restart_all(&self, cluster: &mut Cluster) {
        for id in cluster.store_ids() {
            cluster.crash_store(id, Crash::Power);
        }
        cluster.run_for(Duration::from_millis(500));
        for id in cluster.store_ids() {
            cluster.start_store(id);
        }
    }
}

pub(crate) fn suffixed(start: &Bytes, suffix: &str) -> Bytes {
    [start, suffix.as_bytes()].concat().into()
}

/// Prefixes of keys, spread over the key space so that different ones lie in different
/// regions where there are enough regions.
pub(crate) fn spread_keys(cluster: &Cluster, count: usize) -> Vec<Bytes> {
    let mut prefixes: Vec<Bytes> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let candidates = (0..256u32)
        .map(|step| (step * 97 + 0x61) as u8)
        .map(|byte| vec![byte, b'/']);
    for candidate in candidates {
        let region = cluster.region_of(&candidate).id;
        let whole = cluster.region_of(&[&candidate[..], &[0xff]].concat()).id == region;
        if whole && seen.insert(region) {
            prefixes.push(candidate.into());
        }
        if prefixes.len() == count {
            break;
        }
    }
    prefixes
}
