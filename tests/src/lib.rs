//! Cluster tests with real processes and real clients: the harness.
//!
//! A [`Cluster`] is a set of `strata node` processes on ports that the kernel gives, with
//! their data in a temporary folder. Tests kill, restart and disconnect them, watch them
//! through the scheduler's calls and `GET /debug/regions/ID`, and check what clients saw:
//! a [`Load`] records every operation, the simulator's checker
//! ([`strata_sim::linearizability`]) judges the registers, [`Acknowledged`] the writes that
//! must be present, and [`Cluster::assert_replicas_equal`] compares what the replicas hold. A [`SyncShim`] counts the syncs of
//! each file and remembers how long it was at the last one, so that a power cut can be
//! played on real files. A [`SmallDisk`] runs full, a [`Proxy`] breaks connections.
//! [`open_loop()`] offers load by schedule, whatever is served.
//! [`nemesis`] puts faults of all kinds on nodes with a [`network`] and clocks
//! ([`NodeClocks`]) of their own.
//!
//! What always holds
//! * One cluster at a time on the machine: a [`Cluster`] holds a lock file.
//! * A test waits for a condition, at most [`DEADLINE`]; it asserts no time.
//! * No process outlives its test.

mod acknowledged;
mod binary;
mod cluster;
mod command;
mod http_get;
mod load;
pub mod nemesis;
pub mod network;
mod node_shim;
mod open_loop;
mod power_cut;
mod process;
mod proxy;
mod replicas;
mod reserve;
mod shim;
mod small_disk;
mod wait;

pub use acknowledged::Acknowledged;
pub use binary::{check_not_older, strata_binary};
pub use cluster::{Cluster, ClusterOptions, Host};
pub use command::{Finished, strata};
pub use http_get::{HttpAnswer, http_get};
pub use load::{Load, LoadOptions, Recorded};
pub use node_shim::NodeClocks;
pub use open_loop::{
    CALLS_UNDER_WAY_MAX, CallAnswer, DirectPuts, LoadAnswers, closed_loop, open_loop, percentile,
};
pub use power_cut::cut_to_synced;
pub use process::{Node, NodeSpec};
pub use proxy::{Link, Proxy, Weather};
pub use replicas::replicas_equal;
pub use reserve::{ReservedPort, reserve_consecutive};
pub use shim::{SyncRecord, SyncShim};
pub use small_disk::SmallDisk;
pub use wait::{DEADLINE, eventually, eventually_sync};
