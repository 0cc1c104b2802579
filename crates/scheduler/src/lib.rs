//! Ids, timestamps, stores and the region directory as a replicated state machine.
