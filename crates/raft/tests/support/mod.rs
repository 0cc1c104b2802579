//! What both test targets of this crate stand on: a disk and a driven node.
//!
//! `disk`   The log and state of one node in memory; knows what was synced, so a crash can lose the rest.
//! `node`   One `RawNode` with its disk, its clock and what it has sent and applied.
//!
//! Nothing here judges a protocol rule; the tests do.

// Each of the two targets uses its own part of these helpers.
#![allow(dead_code)]

pub mod disk;
pub mod node;
