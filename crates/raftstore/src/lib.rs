//! Many Raft regions on one store: routing, peers, apply, reads.
