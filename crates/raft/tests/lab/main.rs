//! Raft groups in simulated time: the rows of 6.824's labs 2A to 2D, random schedules
//! checked for the safety properties of the Raft paper, and planted faults that show that
//! the checkers can fail.
//!
//! * `harness`: virtual time, network, disks, servers; the course's vocabulary.
//! * `rules`, `checkers`: what must hold at every step.
//! * `final_checks`: what must hold when a run has come to rest.
//! * `scenarios_2a` .. `scenarios_2d`: the rows, each a few lines.
//! * `schedule`, `random_schedule`, `safety_properties`: thousands of seeded schedules.
//! * `planted_faults`: a broken server, disk, network or service is found out.
//!
//! A run is repeated by its seed: `RAFT_LAB_SEED=n cargo test -p strata-raft --test lab NAME`.

mod checkers;
mod final_checks;
mod harness;
mod planted_faults;
mod random_schedule;
mod rules;
mod safety_properties;
mod scenarios_2a;
mod scenarios_2b;
mod scenarios_2c;
mod scenarios_2d;
mod schedule;
