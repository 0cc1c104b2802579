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

use std::ops::RangeInclusive;

mod draw;
mod play;
mod shrink;
pub mod trace_file;

use serde::{Deserialize, Serialize};

pub use play::Failure;
pub use shrink::{Shrunk, shrink};

use crate::fault_kind::{FaultKind, Strike};
use crate::workload::Mix;

/// Version of a plan's form. One of another version is refused.
pub const PLAN_VERSION: u32 = 1;

const HOUR_MS: u64 = 3_600_000;
/// Clients of both kinds together.
const CLIENTS_MAX: u64 = 64;
/// Strikes of a plan: one a millisecond for ten seconds, or thirty a second for five minutes.
const STRIKES_MAX: u64 = 10_000;
/// Bytes or entries of a log that no run reaches.
const LARGE: u64 = 1 << 40;
/// How long the stores of a plan keep the files of a snapshot, in milliseconds.
const SNAPSHOT_KEEP_MS: u64 = 20_000;

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
        for (name, value, bounds) in self.numbers() {
            if !bounds.contains(&value) {
                let (least, most) = bounds.into_inner();
                return Err(format!("{name} is {value}, not {least} to {most}"));
            }
        }
        let ascending = self.strikes.is_sorted_by_key(|strike| strike.at_ms);
        let last = self.strikes.last().map_or(0, |strike| strike.at_ms);
        let rules = [
            (
                matches!(self.replicas, 3 | 5) && u64::from(self.replicas) <= self.stores,
                "replicas are 3 or 5, and no more than stores",
            ),
            (
                (1..=CLIENTS_MAX).contains(&(self.clients.plain + self.clients.clerks)),
                "clients are 1 to 64, both kinds together",
            ),
            (
                self.mix.is_possible(),
                "the mix holds operations, each weight up to 1000",
            ),
            (
                ascending && last <= self.length_ms,
                "strikes come in the order of their times, within the length",
            ),
        ];
        if let Some((_, line)) = rules.iter().find(|(holds, _)| !holds) {
            return Err((*line).to_owned());
        }
        self.store_options().check()
    }

    /// Every number with its bounds, but for those that are seeds, weights and times of
    /// strikes. The bounds hold what a cluster in one thread can carry, and keep times and
    /// sums of them far from the end of their range.
    fn numbers(&self) -> Vec<(&'static str, u64, RangeInclusive<u64>)> {
        let (settings, clients) = (&self.settings, &self.clients);
        let count = |number: usize| number as u64;
        let operations_max = clients.operations_max.unwrap_or(1);
        vec![
            ("stores", self.stores, 3..=7),
            ("regions", self.regions.into(), 6..=40),
            ("length_ms", self.length_ms, 1..=HOUR_MS),
            ("strikes", count(self.strikes.len()), 0..=STRIKES_MAX),
            ("raft_shards", count(settings.raft_shards), 1..=16),
            ("apply_shards", count(settings.apply_shards), 1..=16),
            (
                "max_clock_drift_percent",
                settings.max_clock_drift_percent.into(),
                0..=50,
            ),
            ("log_gc_tick_ms", settings.log_gc_tick_ms, 1..=HOUR_MS),
            ("log_gc_count_limit", settings.log_gc_count_limit, 1..=LARGE),
            ("log_gc_size_limit", settings.log_gc_size_limit, 1..=LARGE),
            ("log_gc_threshold", settings.log_gc_threshold, 0..=LARGE),
            (
                "snapshot_send_timeout_ms",
                settings.snapshot_send_timeout_ms,
                1..=SNAPSHOT_KEEP_MS,
            ),
            ("session_ttl_ms", settings.session_ttl_ms, 1..=24 * HOUR_MS),
            (
                "max_sessions_per_region",
                settings.max_sessions_per_region.into(),
                1..=1_000_000,
            ),
            ("plain", clients.plain, 0..=CLIENTS_MAX),
            ("clerks", clients.clerks, 0..=CLIENTS_MAX),
            ("pause_ms_max", clients.pause_ms_max, 0..=HOUR_MS),
            ("groups", count(clients.groups), 1..=64),
            ("group_keys", count(clients.group_keys), 1..=64),
            (
                "replica_reads_percent",
                clients.replica_reads_percent.into(),
                0..=100,
            ),
            (
                "cancelled_percent",
                clients.cancelled_percent.into(),
                0..=100,
            ),
            (
                "short_deadlines_percent",
                clients.short_deadlines_percent.into(),
                0..=100,
            ),
            ("operations_max", operations_max, 1..=1_000_000),
        ]
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
    fn bad_input_numbers_out_of_bounds_are_refused_by_name() {
        let whole: serde_json::Value =
            serde_json::from_str(&Plan::draw(1).to_json()).expect("a plan");
        let refused = |place: &str, value: serde_json::Value| {
            let mut plan = whole.clone();
            *plan.pointer_mut(place).expect("a field") = value;
            let refused = Plan::from_json(&plan.to_string()).expect_err("it is out of bounds");
            let line = refused.to_string();
            assert_eq!(line.lines().count(), 1, "{line}");
            line
        };
        let mut seen = 0;
        for part in ["", "/settings", "/clients"] {
            for (name, value) in whole
                .pointer(part)
                .and_then(|part| part.as_object())
                .expect("one")
            {
                // The version has an error of its own, and every seed is one.
                if !(value.is_number() || name == "operations_max")
                    || name == "seed"
                    || name == "version"
                {
                    continue;
                }
                seen += 1;
                for large in [u64::MAX, u64::from(u32::MAX)] {
                    // Limits of logs in bytes and entries may be large.
                    if name.starts_with("log_gc") && name != "log_gc_tick_ms" && large < u64::MAX {
                        continue;
                    }
                    let line = refused(&format!("{part}/{name}"), large.into());
                    let of_type = line.contains(&format!("invalid value: integer `{large}`"));
                    let by_name = line.contains(&format!("{name} is {large}, not "));
                    assert!(of_type || by_name || name == "replicas", "{line}");
                }
            }
        }
        assert_eq!(seen, 23, "numbers of a plan");
        assert_eq!(
            refused("/settings/raft_shards", 100_000_000.into()),
            "a plan that cannot be played: raft_shards is 100000000, not 1 to 16"
        );
        // Their sum is 1 when it wraps around.
        let mut plan = Plan::draw(1);
        (plan.clients.plain, plan.clients.clerks) = (u64::MAX, 2);
        assert!(plan.check().is_err());
        let strike = |at_ms| Strike {
            at_ms,
            kind: FaultKind::PowerCut,
            salt: 1,
        };
        for strikes in [vec![strike(u64::MAX)], vec![strike(5), strike(4)]] {
            let mut plan = Plan::draw(1);
            plan.strikes = strikes;
            assert!(
                plan.check()
                    .expect_err("wrong times")
                    .starts_with("strikes come")
            );
        }
        let mut plan = Plan::draw(1);
        plan.strikes = vec![strike(1); 10_001];
        assert!(
            plan.check()
                .expect_err("too many")
                .starts_with("strikes is 10001")
        );
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
