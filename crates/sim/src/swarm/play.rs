//! Plays a plan.

use std::fmt;
use std::time::Duration;

use super::Plan;
use crate::checks::RunReport;
use crate::cluster::{Cluster, ClusterOptions};
use crate::counters::Counters;
use crate::disk::Disk;
use crate::guard::guarded;
use crate::scenario::{spread_keys, suffixed};
use crate::trace::Trace;
use crate::violation::Violation;
use crate::workload::Workload;

/// How long a client of a swarm waits for an answer before it tries again.
const GIVE_UP: Duration = Duration::from_secs(2);
/// How long reads wait for a slow reader.
const SLOW_READ: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(300));
/// Values of different clients and numbers never meet; those of one client begin here.
const FIRST_VALUE: u64 = 0;

/// A run in which something was found.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The plan.
    pub plan: Plan,
    /// What was found, the most telling first; at least one.
    pub violations: Vec<Violation>,
    /// The run's events; the last of them are kept.
    pub trace: Trace,
    /// What the run had reached.
    pub counters: Counters,
    /// Simulated time until the end.
    pub length: Duration,
}

impl fmt::Display for Failure {
    /// All violations, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, violation) in self.violations.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

impl Plan {
    /// Plays the plan, heals, and checks everything.
    ///
    /// # Errors
    /// What was found.
    pub fn run(&self) -> Result<RunReport, Box<Failure>> {
        self.run_with(Trace::new()).0
    }

    /// As [`Plan::run`], with a trace that keeps every event; it comes back.
    pub fn run_traced(&self) -> (Result<RunReport, Box<Failure>>, Trace) {
        self.run_with(Trace::whole())
    }

    fn run_with(&self, trace: Trace) -> (Result<RunReport, Box<Failure>>, Trace) {
        let mut cluster = Cluster::new(self.cluster_options());
        cluster.trace = trace;
        let finished = guarded(|| {
            self.play(&mut cluster);
            cluster.finish()
        });
        let violations = match finished {
            Ok(Ok(report)) => return (Ok(report), cluster.trace),
            Ok(Err(violations)) => violations,
            Err(reason) => {
                let mut violations = cluster.watch.violations().to_vec();
                violations.push(Violation::RunStopped(reason));
                violations
            }
        };
        let failure = Failure {
            plan: self.clone(),
            violations,
            counters: cluster.counters(),
            length: cluster.now(),
            trace: cluster.trace.clone(),
        };
        (Err(Box::new(failure)), cluster.trace)
    }

    fn cluster_options(&self) -> ClusterOptions {
        let mut disk = Disk::good();
        if self.settings.slow_readers {
            disk.read = SLOW_READ;
        }
        ClusterOptions {
            disk,
            regions: self.regions,
            replicas: self.replicas,
            store: self.store_options(),
            attempt_time: GIVE_UP,
            patience: Duration::ZERO,
            peers_move: self.moves_peers(),
            short_deadlines: share(self.clients.short_deadlines_percent),
            ..ClusterOptions::new(self.stores, self.seed)
        }
    }

    fn play(&self, cluster: &mut Cluster) {
        let clients = &self.clients;
        let groups: Vec<Vec<bytes::Bytes>> = spread_keys(cluster, clients.groups)
            .iter()
            .map(|start| {
                let keys = 0..clients.group_keys;
                keys.map(|key| suffixed(start, &format!("k{key}")))
                    .collect()
            })
            .collect();
        let number = clients.plain + clients.clerks;
        for client in 0..number {
            let mut workload = Workload::new(groups.clone(), self.mix);
            workload.values = FIRST_VALUE;
            workload.pause = (
                Duration::from_micros(50),
                Duration::from_millis(clients.pause_ms_max),
            );
            workload.replica_reads = share(clients.replica_reads_percent);
            workload.left = clients.operations_max.map(|max| {
                // The first clients take what does not come out even.
                max / number + u64::from(client < max % number)
            });
            if client < clients.clerks {
                cluster.add_clerk(Some(workload));
            } else {
                workload.cancelled = share(clients.cancelled_percent);
                cluster.add_client(workload);
            }
        }
        cluster.plan_strikes(&self.strikes);
        cluster.run_for(Duration::from_millis(self.length_ms));
    }
}

fn share(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}
