//! How long a client tries, and with what patience.

use std::time::Duration;

/// Settings of one client. `Options::default()` suits tools and tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest time that one operation may take, all its attempts and pauses together.
    pub operation_timeout: Duration,
    /// Longest time that one request may take. It travels as `grpc-timeout`, so the store
    /// gives up first; its word on that is waited for a quarter of a second longer.
    pub attempt_timeout: Duration,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
    /// First pause between two attempts; it doubles from there.
    pub pause_min: Duration,
    /// Longest pause between two attempts.
    pub pause_max: Duration,
    /// Whether a put or delete whose answer was lost is sent again. Both leave the same
    /// state when they are executed twice in a row, but the lost one may still be executed
    /// after writes of others. A compare-and-swap is never sent again.
    pub repeat_unknown_writes: bool,
    /// Connections for each store. One carries some ten thousand requests a second.
    pub connections_per_store: usize,
    /// Seed of the generator that jitters the pauses.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            operation_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            pause_min: Duration::from_millis(4),
            pause_max: Duration::from_millis(400),
            repeat_unknown_writes: true,
            connections_per_store: 1,
            seed: 0x5354_5241_5441,
        }
    }
}
