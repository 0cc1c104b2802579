//! The harness of raft groups: servers, network, disks and time in one thread, from a seed.
//!
//! [`group::Group`] is the simulation: it steps the replicas, carries out their Readys and
//! tells the checkers of everything. [`lab::Lab`] puts the course's vocabulary over it
//! (start, crash, disconnect, one leader, one command agreed), in which the rows of 2A to
//! 2D are written.
//!
//! The same seed gives the same run: all randomness comes from one generator, all events
//! are ordered by time and then by number.

pub mod disk;
pub mod faults;
pub mod group;
pub mod lab;
pub mod lives;
pub mod network;
pub mod options;
pub mod pump;
pub mod server;
pub mod service;
