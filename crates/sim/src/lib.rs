//! Simulated clock, network and disk that drive whole clusters in one thread.
