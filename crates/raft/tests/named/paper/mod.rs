//! The rules of section 5 of the Raft paper, one test each.
//!
//! `election`     5.1, 5.2 and 5.4.1: terms, elections, votes.
//! `replication`  5.3 and 5.4.2: the log, and what is committed.

mod election;
mod replication;
