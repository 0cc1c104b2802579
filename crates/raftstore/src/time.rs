//! The two clocks that a driver passes in with every event.

use std::time::Duration;

/// The time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The driver's monotonic clock (CLOCK_BOOTTIME on a real machine). Never goes back.
    /// Deadlines, leases and elections are judged by it.
    pub monotonic: Duration,
    /// The wall clock in milliseconds since 1970. May step either way; it only ever
    /// enters replicated state through the log.
    pub wall_ms: u64,
}
