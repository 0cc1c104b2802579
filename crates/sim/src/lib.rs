//! Simulated clock, network and disk that drive whole clusters in one thread.
//!
//! Cluster    [`Cluster`] runs the production stores over a [`Network`] that loses, delays,
//!            doubles, reorders and cuts, on [`Disk`]s that keep what was synced, with
//!            clocks that differ. One seed decides everything.
//! Clients    [`Workload`]s draw [`ClientOperation`]s; what clients did and saw goes into a
//!            [`history::History`].
//! Faults     [`Faults`] strike at random, or tests cut, crash and pause by hand.
//! Checks     [`Cluster::finish`] heals, waits for rest, and checks everything that every
//!            row promises; [`linearizability`] judges the history.
//! Rows       [`Scenario`] puts these together in a few lines.
//!
//! [`history`] and [`linearizability`] know nothing of stores: tests with real processes
//! use them, too.
//!
//! Invariant: equal seeds give equal runs, event by event ([`Trace::hash`]).

mod acknowledged;
mod calls;
mod checks;
mod clerk;
mod client;
mod clock;
mod cluster;
mod commits;
mod counters;
mod disk;
mod drawn;
mod effects;
mod fault_kind;
mod faults;
mod freshness;
mod guard;
pub mod history;
mod leases;
pub mod linearizability;
mod lives;
mod lookout;
mod moves;
mod network;
mod operation;
#[cfg_attr(not(feature = "planted-faults"), path = "not_planted.rs")]
mod planted;
mod promises;
mod queue;
mod raft_watch;
mod replicas;
mod scenario;
mod snapshots;
mod store;
pub mod swarm;
mod system;
mod trace;
mod trouble;
mod turns;
mod violation;
mod watch;
mod workload;

pub use acknowledged::check_acknowledged;
pub use calls::{CallId, CallOptions};
pub use checks::RunReport;
pub use client::{AttemptResult, ClientId, Next};
pub use clock::{RATE_ONE, StoreClock};
pub use cluster::{Cluster, ClusterOptions};
pub use counters::Counters;
pub use disk::{Crash, Disk};
pub use fault_kind::{FaultKind, Strike};
pub use faults::Faults;
pub use network::{Envelope, Fate, FilterId, Network, Verdict, Weather};
pub use operation::{ClientOperation, EXPIRING_SUFFIX, region_holds};
pub use planted::Planted;
pub use queue::EventQueue;
pub use replicas::{check_log_limits, check_logs, check_released, check_replicas};
pub use scenario::Scenario;
pub use store::SimStore;
pub use system::RecordMachine;
pub use trace::Trace;
pub use violation::Violation;
pub use watch::Watch;
pub use workload::{Mix, Workload};
