//! Which regions live on this store, and what others may know of their peers.
//!
//! The store FSM alone changes the [`Directory`]; everybody else holds an immutable copy
//! with a generation. What changes with every entry (leader, lease, indices) is in a
//! [`PeerView`]: the shard that owns the peer publishes it, any thread may read it.
//!
//! Invariants
//! * `PeerView::generation` moves before any message leaves that could let another peer
//!   write (a new term, a hand-over), and whenever leader or region change. A reader that
//!   finds the same generation before and after it took an engine snapshot has read from
//!   the peer that it checked.
//! * A lease in a view belongs to the term and leader of the same generation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use strata_proto::metapb::{Peer, Region};
use strata_storage::keys;

/// The region that holds the scheduler's state. It has no range.
pub const SYSTEM_REGION_ID: u64 = 1;

/// What a shard publishes of one of its peers.
#[derive(Debug, Default)]
pub struct PeerView {
    generation: AtomicU64,
    /// Counts how often the region's data were taken from under its readers.
    data_epoch: AtomicU64,
    /// A snapshot is being installed.
    installing: AtomicBool,
    term: AtomicU64,
    /// Peer id of the known leader; 0: none.
    leader: AtomicU64,
    /// End of the lease in nanoseconds of the driver's clock; 0: none.
    lease_until: AtomicU64,
    applied: AtomicU64,
    committed: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    truncated: AtomicU64,
    truncated_term: AtomicU64,
    clock_ms: AtomicU64,
}

/// A consistent enough copy of the numbers of a view, for display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerNumbers {
    /// Term of the peer.
    pub term: u64,
    /// Peer id of the known leader; 0: none.
    pub leader: u64,
    /// Last applied index.
    pub applied: u64,
    /// Last committed index that the peer knows.
    pub committed: u64,
    /// First index of the log.
    pub first: u64,
    /// Last index of the log.
    pub last: u64,
    /// Index of the last entry that compaction removed.
    pub truncated: u64,
    /// Term of that entry.
    pub truncated_term: u64,
    /// The region's clock as applied.
    pub clock_ms: u64,
}

impl PeerView {
    /// Changes whenever leader, term or region do, and when a lease is given up early.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Moves before a range is cleared: when an install begins and when the peer is
    /// destroyed. A read whose engine snapshot may be younger than the value it was issued
    /// with is refused.
    pub fn data_epoch(&self) -> u64 {
        self.data_epoch.load(Ordering::SeqCst)
    }

    /// True while a snapshot is being installed: data and clock are not of one moment.
    pub fn is_installing(&self) -> bool {
        self.installing.load(Ordering::SeqCst)
    }

    pub(crate) fn set_installing(&self, installing: bool) {
        self.installing.store(installing, Ordering::SeqCst);
    }

    /// Moves the data epoch, and the generation with it.
    ///
    /// Called before the batch that clears the range leaves the shard.
    pub(crate) fn bump_data_epoch(&self) {
        self.lease_until.store(0, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.data_epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Moves the generation: the region has changed.
    pub(crate) fn move_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Peer id of the known leader; 0: none.
    pub fn leader(&self) -> u64 {
        self.leader.load(Ordering::SeqCst)
    }

    /// Term of the peer.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::SeqCst)
    }

    /// True if the peer's lease covers `now`.
    pub fn holds_lease(&self, now: Duration) -> bool {
        (now.as_nanos() as u64) < self.lease_until.load(Ordering::SeqCst)
    }

    /// True if everything that the peer knows to be committed is applied here. A replica
    /// never applies what its leader does not know to be committed, so a leader of which
    /// this holds is not behind any read that a replica has served.
    pub fn is_applied_to_commit(&self) -> bool {
        let committed = self.committed.load(Ordering::SeqCst);
        self.applied.load(Ordering::SeqCst) >= committed
    }

    /// The numbers for display.
    pub fn numbers(&self) -> PeerNumbers {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        PeerNumbers {
            term: get(&self.term),
            leader: get(&self.leader),
            applied: get(&self.applied),
            committed: get(&self.committed),
            first: get(&self.first),
            last: get(&self.last),
            truncated: get(&self.truncated),
            truncated_term: get(&self.truncated_term),
            clock_ms: get(&self.clock_ms),
        }
    }

    /// Publishes numbers and lease. The generation moves first where a reader must not go
    /// on under what it saw before.
    pub(crate) fn publish(&self, numbers: &PeerNumbers, lease_until: Option<Duration>) {
        let lease = lease_until.map_or(0, |until| until.as_nanos() as u64);
        let old_lease = self.lease_until.load(Ordering::Relaxed);
        let changed = self.term.load(Ordering::Relaxed) != numbers.term
            || self.leader.load(Ordering::Relaxed) != numbers.leader
            || (lease == 0 && old_lease != 0);
        if changed {
            self.lease_until.store(0, Ordering::SeqCst);
            self.generation.fetch_add(1, Ordering::SeqCst);
            self.term.store(numbers.term, Ordering::SeqCst);
            self.leader.store(numbers.leader, Ordering::SeqCst);
        }
        let set = |target: &AtomicU64, value: u64| target.store(value, Ordering::Relaxed);
        // Only this shard stores here, and an ordered store waits for all before it.
        let set_ordered = |target: &AtomicU64, value: u64| {
            if target.load(Ordering::Relaxed) != value {
                target.store(value, Ordering::SeqCst);
            }
        };
        // Before a message that carries the commit index leaves; see `is_applied_to_commit`.
        set_ordered(&self.committed, numbers.committed);
        set_ordered(&self.applied, numbers.applied);
        set(&self.first, numbers.first);
        set(&self.last, numbers.last);
        set(&self.truncated, numbers.truncated);
        set(&self.truncated_term, numbers.truncated_term);
        set(&self.clock_ms, numbers.clock_ms);
        set_ordered(&self.lease_until, lease);
    }
}

/// One region of this store.
#[derive(Debug)]
pub struct DirectoryEntry {
    /// The region.
    pub region: Arc<Region>,
    /// Its peer on this store.
    pub peer: Peer,
    /// The raft shard that owns the peer.
    pub shard: usize,
    /// What the shard publishes.
    pub view: Arc<PeerView>,
}

impl DirectoryEntry {
    /// The leader of the region as the peer knows it.
    pub fn leader(&self) -> Option<Peer> {
        find_peer(&self.region, self.view.leader())
    }

    /// True if the own peer leads, as far as is published.
    pub fn leads(&self) -> bool {
        self.view.leader() == self.peer.id
    }
}

/// The peer of a region with an id; 0 and unknown ids find none.
pub fn find_peer(region: &Region, peer_id: u64) -> Option<Peer> {
    region.peers.iter().find(|peer| peer.id == peer_id).cloned()
}

/// The peer of a region on a store.
pub fn find_peer_on(region: &Region, store_id: u64) -> Option<&Peer> {
    region.peers.iter().find(|peer| peer.store_id == store_id)
}

/// All regions of this store at one generation.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Counts the changes.
    pub generation: u64,
    /// Peers that messages have created and that wait for their snapshot, by region: they
    /// have no range yet.
    pub creating: BTreeMap<u64, Peer>,
    by_id: BTreeMap<u64, Arc<DirectoryEntry>>,
    /// First boundary of every region with a range.
    by_start: BTreeMap<Bytes, u64>,
}

impl Directory {
    /// A directory of the given regions.
    pub fn new(generation: u64, entries: Vec<DirectoryEntry>) -> Self {
        let mut directory = Directory {
            generation,
            ..Directory::default()
        };
        for entry in entries {
            directory.insert(entry);
        }
        directory
    }

    fn insert(&mut self, entry: DirectoryEntry) {
        let id = entry.region.id;
        self.remove(id);
        if id != SYSTEM_REGION_ID {
            self.by_start.insert(entry.region.start_key.clone(), id);
        }
        self.by_id.insert(id, Arc::new(entry));
    }

    fn remove(&mut self, region_id: u64) {
        let Some(gone) = self.by_id.remove(&region_id) else {
            return;
        };
        let start = &gone.region.start_key;
        if self.by_start.get(start) == Some(&region_id) {
            self.by_start.remove(start);
        }
    }

    /// The directory with one region added, or put in the place of the one with its id.
    #[must_use]
    pub fn with(&self, generation: u64, entry: DirectoryEntry) -> Self {
        let mut next = self.clone();
        next.generation = generation;
        next.creating.remove(&entry.region.id);
        next.insert(entry);
        next
    }

    /// The directory with other peers that wait for their first snapshot.
    #[must_use]
    pub fn with_creating(&self, generation: u64, creating: BTreeMap<u64, Peer>) -> Self {
        let mut next = self.clone();
        next.generation = generation;
        next.creating = creating;
        next
    }

    /// The directory without a region.
    #[must_use]
    pub fn without(&self, generation: u64, region_id: u64) -> Self {
        let mut next = self.clone();
        next.generation = generation;
        next.creating.remove(&region_id);
        next.remove(region_id);
        next
    }

    /// The region with an id.
    pub fn get(&self, region_id: u64) -> Option<&Arc<DirectoryEntry>> {
        self.by_id.get(&region_id)
    }

    /// The region of this store that covers a key, given in the form that is compared.
    pub fn covering(&self, compared: &[u8]) -> Option<&Arc<DirectoryEntry>> {
        let (_, id) = self
            .by_start
            .range::<[u8], _>((
                std::ops::Bound::Unbounded,
                std::ops::Bound::Included(compared),
            ))
            .next_back()?;
        let entry = self.by_id.get(id)?;
        keys::range_contains(&entry.region.start_key, &entry.region.end_key, compared)
            .then_some(entry)
    }

    /// All regions in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DirectoryEntry>> {
        self.by_id.values()
    }
}

/// The place from which everybody takes the present directory.
#[derive(Debug, Default)]
pub struct DirectoryCell {
    current: RwLock<Arc<Directory>>,
}

impl DirectoryCell {
    /// A cell that holds a directory.
    pub fn new(directory: Directory) -> Self {
        DirectoryCell {
            current: RwLock::new(Arc::new(directory)),
        }
    }

    /// Puts another directory in its place. Only the store FSM does.
    pub(crate) fn swap(&self, directory: Directory) {
        *self.current.write() = Arc::new(directory);
    }

    /// The present directory.
    pub fn load(&self) -> Arc<Directory> {
        self.current.read().clone()
    }

    /// The present entry of a region, without a copy of the whole.
    pub fn entry(&self, region_id: u64) -> Option<Arc<DirectoryEntry>> {
        self.current.read().get(region_id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(term: u64, leader: u64) -> PeerNumbers {
        PeerNumbers {
            term,
            leader,
            ..PeerNumbers::default()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn generation_moves_with_leader_term_and_a_lost_lease() {
        let view = PeerView::default();
        let mut last = view.generation();
        let mut moved = |view: &PeerView| {
            let moved = view.generation() != last;
            last = view.generation();
            moved
        };
        view.publish(&numbers(6, 1), None);
        assert!(moved(&view), "a leader");
        view.publish(&numbers(6, 1), Some(SECOND));
        view.publish(&numbers(6, 1), Some(2 * SECOND));
        assert!(!moved(&view), "a longer lease");
        assert!(view.holds_lease(SECOND) && !view.holds_lease(2 * SECOND));
        view.publish(&numbers(6, 1), None);
        assert!(
            moved(&view) && !view.holds_lease(Duration::ZERO),
            "a lease given up"
        );
        view.publish(&numbers(7, 1), Some(SECOND));
        assert!(moved(&view) && view.holds_lease(Duration::ZERO), "a term");
        view.publish(&numbers(7, 0), None);
        assert!(
            moved(&view) && !view.holds_lease(Duration::ZERO),
            "no leader"
        );
    }

    #[test]
    fn directory_finds_regions_by_id_and_key() {
        let entry = |id, start: &'static [u8], end: &'static [u8]| DirectoryEntry {
            region: Arc::new(Region {
                id,
                start_key: Bytes::from_static(start),
                end_key: Bytes::from_static(end),
                ..Region::default()
            }),
            peer: Peer::default(),
            shard: 0,
            view: Arc::default(),
        };
        let directory = Directory::new(
            1,
            vec![
                entry(SYSTEM_REGION_ID, b"", b""),
                entry(2, b"b", b"d"),
                entry(3, b"f", b""),
            ],
        );
        let covering = |key: &[u8]| directory.covering(key).map(|entry| entry.region.id);
        assert_eq!(covering(b"a"), None, "the system region covers nothing");
        assert_eq!(
            (covering(b"b"), covering(b"czz"), covering(b"d")),
            (Some(2), Some(2), None)
        );
        assert_eq!((covering(b"f"), covering(b"\xff")), (Some(3), Some(3)));
        assert!(directory.get(1).is_some() && directory.get(4).is_none());
    }
}
