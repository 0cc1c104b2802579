//! The consensus of one Raft group as a pure state machine.
