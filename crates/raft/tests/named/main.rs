//! The raft tests that TinyKV's projects 2A to 2C and 3A name, one by one, the tests of the
//! Raft paper's section 5, and those for faults that others have reported.
//!
//! `network`      nodes joined by a network that delivers at once; used by all of them.
//! `election`, `votes`, `replication`, `snapshot`, `membership`, `transfer`, `raw_node`
//!                TinyKV's tests, by subject.
//! `paper`        one test per rule of the paper.
//! `faults`       faults that were seen elsewhere and must not be here.
//! `lazy_commit`  commit indices that travel with the next append or heartbeat.
//! `hostile`      malformed messages never panic.

#[path = "../support/mod.rs"]
mod support;

mod election;
mod faults;
mod hostile;
mod lazy_commit;
mod membership;
mod network;
mod paper;
mod raw_node;
mod replication;
mod snapshot;
mod transfer;
mod votes;
