//! Simulated clock, network and disk that drive whole clusters in one thread.

pub mod history;
pub mod linearizability;
