//! The clocks of a real machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::time::Now;

/// CLOCK_BOOTTIME: never goes back and counts the time that the machine sleeps, during
/// which a lease must not stand still.
pub(super) fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has CLOCK_BOOTTIME");
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

/// Both clocks.
pub(super) fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        monotonic: monotonic(),
        wall_ms: wall.as_millis() as u64,
    }
}
