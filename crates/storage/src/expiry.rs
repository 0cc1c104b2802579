//! Which expired raw values the engine may drop in the background.
//!
//! A value that has expired by its region's clock reads as absent; compaction may take
//! the bytes away. It must never take away what somebody can still see: RocksDB's
//! filters ignore open snapshots, and a region clock that is not synced may fall back
//! after a power cut. So the store publishes region clocks from time to time, and this
//! registry decides when a publication may be used.
//!
//! Publish   The caller hands over a look-up from key to region clock. Every clock in it
//!           is synced in the kv engine before.
//! Wait      While an engine snapshot is open that was taken before the publication, the
//!           one before it stays in use.
//! Use       Each compaction takes the newest usable publication and drops values that
//!           expired by it.
//!
//! Invariants
//! * A snapshot that is open sees region clocks at least as high as those in use: it was
//!   taken after their publication, and clocks never go back. What is dropped reads as
//!   absent in it.
//! * Without a publication, without a region, or where the value cannot be read, nothing
//!   is dropped.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::Cf;
use crate::keys::DATA_PREFIX;
use crate::raw_value;

/// From column family and engine key to the clock, in milliseconds since 1970, of the
/// region that holds the key, as last synced in the kv engine. `None` keeps the key: no
/// live region holds it, or one that installs a snapshot. Must not panic; is called on
/// RocksDB's threads.
pub type ExpiryLookup = dyn Fn(Cf, &[u8]) -> Option<u64> + Send + Sync;

/// Publications that may wait for snapshots to close; a newer one replaces the last.
const WAITING_MAX: usize = 2;

/// Region clocks in use, and the open snapshots that hold newer ones back. Clones are
/// handles of the same registry.
#[derive(Clone, Default)]
pub struct ExpiryClocks {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Number of the next snapshot.
    next: u64,
    open: BTreeSet<u64>,
    in_use: Option<Arc<ExpiryLookup>>,
    /// Publications with the number of the first snapshot taken after each, ascending.
    waiting: VecDeque<(u64, Arc<ExpiryLookup>)>,
}

impl State {
    fn promote(&mut self) {
        let oldest_open = self.open.first().copied().unwrap_or(u64::MAX);
        while let Some((fence, _)) = self.waiting.front()
            && *fence <= oldest_open
        {
            self.in_use = self.waiting.pop_front().map(|(_, clocks)| clocks);
        }
    }
}

/// Keeps newer publications back while it lives; belongs to one engine snapshot.
pub struct SnapshotGuard {
    clocks: ExpiryClocks,
    number: u64,
}

impl Drop for SnapshotGuard {
    fn drop(&mut self) {
        self.clocks.state.lock().open.remove(&self.number);
    }
}

impl ExpiryClocks {
    /// Nothing published, no snapshot open.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a snapshot. Called *before* the engine takes it, so that a publication
    /// between the two counts as newer.
    #[must_use]
    pub fn register_snapshot(&self) -> SnapshotGuard {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        drop(state);
        SnapshotGuard {
            clocks: self.clone(),
            number,
        }
    }

    /// Hands over newer region clocks, all of them synced in the kv engine.
    pub fn publish(&self, clocks: Arc<ExpiryLookup>) {
        let mut state = self.state.lock();
        state.promote();
        // Not the first one that waits: replaced again and again it would never come
        // into use while snapshots overlap.
        if state.waiting.len() >= WAITING_MAX {
            state.waiting.pop_back();
        }
        let fence = state.next;
        state.waiting.push_back((fence, clocks));
        state.promote();
    }

    /// The newest clocks by which values may be dropped now.
    #[must_use]
    pub fn usable(&self) -> Option<Arc<ExpiryLookup>> {
        let mut state = self.state.lock();
        state.promote();
        state.in_use.clone()
    }

    /// Number of open snapshots.
    #[must_use]
    pub fn open_snapshots(&self) -> usize {
        self.state.lock().open.len()
    }
}

/// True if the value under `key` is invisible for ever by `clocks`.
#[must_use]
pub fn may_drop(clocks: &ExpiryLookup, cf: Cf, key: &[u8], value: &[u8]) -> bool {
    if key.first() != Some(&DATA_PREFIX) {
        return false;
    }
    match raw_value::decode(value) {
        Ok(value) if value.expires_at_ms.is_some() => {
            clocks(cf, key).is_some_and(|clock_ms| value.is_expired(clock_ms))
        }
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(clock_ms: u64) -> Arc<ExpiryLookup> {
        Arc::new(move |_, _| Some(clock_ms))
    }

    fn in_use(clocks: &ExpiryClocks) -> Option<u64> {
        clocks.usable().and_then(|lookup| lookup(Cf::Raw, b"zk"))
    }

    #[test]
    fn ttl_filter_clocks_wait_for_older_snapshots() {
        let clocks = ExpiryClocks::new();
        assert_eq!(in_use(&clocks), None);
        clocks.publish(fixed(1));
        assert_eq!(in_use(&clocks), Some(1));
        let old = clocks.register_snapshot();
        clocks.publish(fixed(2));
        assert_eq!(in_use(&clocks), Some(1), "the open snapshot may show 2");
        let young = clocks.register_snapshot();
        clocks.publish(fixed(3));
        drop(old);
        assert_eq!(in_use(&clocks), Some(2));
        drop(young);
        assert_eq!(in_use(&clocks), Some(3));
        assert_eq!(clocks.open_snapshots(), 0);
    }

    #[test]
    fn ttl_filter_clocks_advance_while_snapshots_overlap() {
        let clocks = ExpiryClocks::new();
        let mut open = clocks.register_snapshot();
        for clock in 1..100 {
            clocks.publish(fixed(clock));
            clocks.publish(fixed(clock));
            // There is always an open snapshot, each over one publication.
            let next = clocks.register_snapshot();
            drop(std::mem::replace(&mut open, next));
            assert_eq!(in_use(&clocks), Some(clock));
        }
    }

    #[test]
    fn ttl_filter_keeps_what_may_be_visible() {
        let lookup = |_: Cf, key: &[u8]| (key == b"zlive").then_some(1000);
        let value = |expiry| raw_value::encode(b"v", expiry);
        let drops = |key: &[u8], value: &[u8]| may_drop(&lookup, Cf::Raw, key, value);
        assert!(drops(b"zlive", &value(Some(1000))));
        assert!(!drops(b"zlive", &value(Some(1001))));
        assert!(!drops(b"zlive", &value(None)));
        assert!(!drops(b"zother", &value(Some(1))), "no live region");
        assert!(!drops(b"zlive", b"\x07damaged"));
        assert!(!drops(b"live", &value(Some(1))));
    }
}
