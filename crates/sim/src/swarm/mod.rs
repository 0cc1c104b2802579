//! The default swarm: any cluster, any workload, any faults, drawn from one seed.
//!
//! Draw    [`Plan::draw`] makes a plan from a seed: the size of the cluster, the settings of
//!         its stores, what its clients do, and a list of strikes, each with its time, its
//!         kind and a seed of its own. A plan is data: it can be written down, cut shorter
//!         and played again.
//! Play    [`Plan::run`] plays it, heals, and runs all shared checks
//!         ([`Cluster::finish`](crate::Cluster::finish)).
//! Count   Each run tells what it has reached ([`Counters`](crate::Counters)).
//! Shrink  [`shrink`] looks for the fewest faults with which a plan still fails.
//! Trace   [`trace_file`] writes what happened, event by event, and compares two runs.
//!
//! Why a swarm: a run in which everything goes wrong at once hardly gets anywhere. Each seed
//! leaves out about half of the kinds of fault, so that over many seeds every kind has runs
//! in which nothing hides what it brings about.
//!
//! Invariant: a plan alone decides what happens in its run.

mod draw;
mod play;
mod shrink;
pub mod trace_file;

use serde::{Deserialize, Serialize};

pub use play::Failure;
pub use shrink::{Shrunk, shrink};

use crate::faults::{FaultKind, Strike};
use crate::workload::Mix;

/// Version of a plan's form. One of another version is refused.
pub const PLAN_VERSION: u32 = 1;

/// A run that is yet to be played.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this form.
    pub version: u32,
    /// Decides everything that the plan does not say.
    pub seed: u64,
    /// Stores, 3 to 7.
    pub stores: u64,
    /// User regions, 6 to 40.
    pub regions: u32,
    /// Replicas of a user region, 3 or 5.
    pub replicas: u32,
    /// How long clients work and faults strike, in simulated milliseconds.
    pub length_ms: u64,
    /// Settings of the stores.
    pub settings: Settings,
    /// The clients.
    pub clients: Clients,
    /// What they do.
    pub mix: Mix,
    /// Faults in the order of their times.
    pub strikes: Vec<Strike>,
}

/// Settings of the stores where they are not the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Raft shards.
    pub raft_shards: usize,
    /// Apply shards.
    pub apply_shards: usize,
    /// How far two monotonic clocks drift apart, and by how much the lease allows for it.
    pub max_clock_drift_percent: u32,
    /// How often a leader looks at the length of its log, in milliseconds.
    pub log_gc_tick_ms: u64,
    /// Entries of a log.
    pub log_gc_count_limit: u64,
    /// Bytes of a log.
    pub log_gc_size_limit: u64,
    /// Entries that are worth a compaction.
    pub log_gc_threshold: u64,
    /// After how many milliseconds the sending of a snapshot has failed.
    pub snapshot_send_timeout_ms: u64,
    /// How long a session lives by the region's clock, in milliseconds.
    pub session_ttl_ms: u64,
    /// Sessions of a region.
    pub max_sessions_per_region: u32,
    /// True: queues and batches so small that they are full now and then.
    pub tight: bool,
    /// True: reads that do not run under a lease may wait hundreds of milliseconds for a reader.
    pub slow_readers: bool,
}

/// The clients of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// Clients each of whose attempts is an operation of its own.
    pub plain: u64,
    /// Clients whose writes are executed once, in sessions.
    pub clerks: u64,
    /// Longest pause between two operations of a client, in milliseconds.
    pub pause_ms_max: u64,
    /// Groups of keys, each in one region, that all share.
    pub groups: usize,
    /// Keys of a group.
    pub group_keys: usize,
    /// Share of reads that go to any replica, in percent.
    pub replica_reads_percent: u32,
    /// Share of attempts that their client gives up after a moment, in percent.
    pub cancelled_percent: u32,
    /// Share of requests with a deadline of no more than milliseconds, in percent.
    pub short_deadlines_percent: u32,
    /// Operations of all clients together; `None`: as many as the length allows.
    pub operations_max: Option<u64>,
}

/// Why a text is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not the JSON of a plan.
    #[error("this is not a plan: {0}")]
    Form(String),
    /// A plan that another version of the program has written.
    #[error("the plan is of version {found}, this program plays version {PLAN_VERSION}")]
    Version {
        /// The plan's.
        found: u64,
    },
    /// Numbers with which no cluster can be made.
    #[error("a plan that cannot be played: {0}")]
    Numbers(String),
}

impl Plan {
    /// The kinds of fault that strike in this plan, each once.
    #[must_use]
    pub fn kinds(&self) -> Vec<FaultKind> {
        let mut kinds: Vec<FaultKind> = self.strikes.iter().map(|strike| strike.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// True if regions get other members.
    #[must_use]
    pub fn moves_peers(&self) -> bool {
        self.strikes
            .iter()
            .any(|strike| strike.kind == FaultKind::MovePeers)
    }

    /// The plan as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| panic!("a plan is plain data: {error}"))
    }

    /// Reads a plan that [`Plan::to_json`] has written.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let form = |error: serde_json::Error| PlanError::Form(error.to_string());
        let value: serde_json::Value = serde_json::from_str(text).map_err(form)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        match version {
            None => return Err(PlanError::Form("it names no version".to_owned())),
            Some(found) if found != u64::from(PLAN_VERSION) => {
                return Err(PlanError::Version { found });
            }
            Some(_) => {}
        }
        let plan: Plan = serde_json::from_value(value).map_err(form)?;
        plan.check().map_err(PlanError::Numbers)?;
        Ok(plan)
    }

    /// Checks that the numbers make a cluster.
    fn check(&self) -> Result<(), String> {
        let rules = [
            ((3..=7).contains(&self.stores), "stores are 3 to 7"),
            ((6..=40).contains(&self.regions), "regions are 6 to 40"),
            (
                matches!(self.replicas, 3 | 5) && u64::from(self.replicas) <= self.stores,
                "replicas are 3 or 5, and no more than stores",
            ),
            (
                (1..=3_600_000).contains(&self.length_ms),
                "the length is 1 ms to an hour",
            ),
            (
                (1..=64).contains(&(self.clients.plain + self.clients.clerks)),
                "clients are 1 to 64",
            ),
            (
                (1..=64).contains(&self.clients.groups)
                    && (1..=64).contains(&self.clients.group_keys),
                "groups and their keys are 1 to 64",
            ),
            (
                [
                    self.clients.replica_reads_percent,
                    self.clients.cancelled_percent,
                    self.clients.short_deadlines_percent,
                ]
                .iter()
                .all(|percent| *percent <= 100),
                "shares are 0 to 100 percent",
            ),
            (
                self.mix.is_possible(),
                "the mix holds operations, each weight up to 1000",
            ),
        ];
        if let Some((_, line)) = rules.iter().find(|(holds, _)| !holds) {
            return Err((*line).to_owned());
        }
        self.store_options().check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        for seed in 0..200 {
            let plan = Plan::draw(seed);
            assert_eq!(plan.check(), Ok(()), "seed {seed}");
            assert_eq!(Plan::from_json(&plan.to_json()), Ok(plan));
        }
    }

    #[test]
    fn plans_of_another_version_or_form_are_refused() {
        let line = Plan::draw(1).to_json();
        let other = line.replacen("\"version\":1", "\"version\":7", 1);
        assert_eq!(
            Plan::from_json(&other),
            Err(PlanError::Version { found: 7 })
        );
        for text in ["", "[]", "{}", "{\"version\":1}"] {
            let refused = Plan::from_json(text);
            assert!(matches!(refused, Err(PlanError::Form(_))), "{refused:?}");
        }
        let wrong = line.replacen("\"replicas\":", "\"replicas\":2", 1);
        let refused = Plan::from_json(&wrong);
        assert!(matches!(refused, Err(PlanError::Numbers(_))), "{refused:?}");
    }

    #[test]
    fn every_size_and_every_kind_of_fault_is_drawn() {
        let plans: Vec<Plan> = (0..10_000).map(Plan::draw).collect();
        for stores in 3..=7 {
            assert!(plans.iter().any(|plan| plan.stores == stores), "{stores}");
        }
        for regions in 6..=40 {
            assert!(
                plans.iter().any(|plan| plan.regions == regions),
                "{regions}"
            );
        }
        let further = [FaultKind::Wipe, FaultKind::MovePeers];
        for kind in FaultKind::ALL
            .into_iter()
            .chain(FaultKind::FURTHER)
            .chain(further)
        {
            assert!(
                plans.iter().any(|plan| plan.kinds().contains(&kind)),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn faults_are_never_more_than_five_seconds_apart() {
        for seed in 0..500 {
            let plan = Plan::draw(seed);
            let mut last = 0;
            for strike in &plan.strikes {
                assert!(
                    strike.at_ms >= last && strike.at_ms - last <= 5_000,
                    "{plan:?}"
                );
                last = strike.at_ms;
            }
            assert!(plan.length_ms - last <= 5_000, "{plan:?}");
        }
    }
}
