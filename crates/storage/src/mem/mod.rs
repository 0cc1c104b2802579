//! The in-memory engine of the simulator and of tests.
//!
//! It behaves as RocksDB does where a program can see it, and adds what a simulator
//! needs: a power cut that keeps a random prefix of what was not synced, and faults on
//! demand.
//!
//! Write   The batch enters the list of unsynced batches and the visible maps. A synced
//!         write moves the whole list into the durable maps, as one log would.
//! Read    The visible maps, as of now or as of a snapshot's version ([`family`]).
//! Crash   The durable maps and a prefix of the list become the engine of the next life;
//!         handles of the old one answer `Crashed` from then on.
//!
//! Invariants
//! * Visible state = durable state + all unsynced batches, unless a write has failed.
//! * After a failed write or sync every further write is refused (crash rule 9).

mod family;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rand::Rng;
use strata_raft::planted;

use crate::batch::{Change, WriteBatch};
use crate::engine::{
    Cf, Direction, Durability, Engine, EngineError, EngineKind, Engines, ReadView, Visitor,
};
use family::{Family, Version};

/// Unsynced bytes beyond which the oldest batches become durable by themselves, as a
/// memtable that is full would be flushed. Bounds the engine's memory.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;

/// A failure to be played once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next sync fails, of a synced write or of `make_durable`.
    Sync,
    /// The next write fails, synced or not.
    Write,
    /// The next get or scan fails.
    Read,
    /// The next [`Engine::write_at_once`] finds that it would have to wait.
    Busy,
}

/// An engine in memory. Clones are handles of the same engine.
#[derive(Clone)]
pub struct MemEngine {
    shared: Arc<Shared>,
}

struct Shared {
    kind: EngineKind,
    state: RwLock<State>,
    /// Open snapshots: version and how many. A lock of its own, so that a snapshot may
    /// be dropped while a scan runs.
    snapshots: Mutex<BTreeMap<Version, usize>>,
    fail_sync: AtomicBool,
    fail_write: AtomicBool,
    busy: AtomicBool,
    fail_read: AtomicBool,
}

#[derive(Default)]
struct State {
    version: Version,
    visible: Vec<Family>,
    durable: Vec<BTreeMap<Bytes, Bytes>>,
    unsynced: VecDeque<WriteBatch>,
    unsynced_bytes: usize,
    /// The first failed write.
    failure: Option<String>,
    crashed: bool,
}

impl MemEngine {
    /// An empty engine.
    #[must_use]
    pub fn new(kind: EngineKind) -> Self {
        let count = kind.column_families().len();
        Self::with_state(kind, vec![BTreeMap::new(); count])
    }

    /// Two empty engines of one node.
    #[must_use]
    pub fn new_pair() -> Engines<Self> {
        Engines::new(Self::new(EngineKind::Kv), Self::new(EngineKind::Raft))
    }

    /// Plays `fault` once, at the next operation that it fits.
    pub fn fail_next(&self, fault: Fault) {
        let flag = match fault {
            Fault::Sync => &self.shared.fail_sync,
            Fault::Write => &self.shared.fail_write,
            Fault::Read => &self.shared.fail_read,
            Fault::Busy => &self.shared.busy,
        };
        flag.store(true, Ordering::Relaxed);
    }

    /// Takes back the faults that were not played yet.
    pub fn forget_faults(&self) {
        let shared = &self.shared;
        let failures = [&shared.fail_sync, &shared.fail_write, &shared.fail_read];
        for flag in failures.into_iter().chain([&shared.busy]) {
            flag.store(false, Ordering::Relaxed);
        }
    }

    /// Number of batches that a power cut may take away.
    #[must_use]
    pub fn unsynced_len(&self) -> usize {
        self.shared.state.read().unsynced.len()
    }

    /// The engine makes its oldest `batches` durable by itself, as one does that flushes a memtable.
    pub fn harden(&self, batches: usize) {
        let mut state = self.shared.state.write();
        for _ in 0..batches {
            state.harden_oldest();
        }
    }

    /// A power cut: what was synced and a random prefix of the rest is the engine that is
    /// returned. This handle and all its clones answer `Crashed` from now on.
    #[must_use]
    pub fn crash(&self, rng: &mut impl Rng) -> Self {
        let kept = rng.random_range(0..=self.unsynced_len());
        self.crash_keeping(kept)
    }

    /// A process that was killed: the operating system still writes everything.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.crash_keeping(self.unsynced_len())
    }

    /// As [`MemEngine::crash`], with the number of unsynced batches kept. More than there
    /// are keeps all.
    #[must_use]
    pub fn crash_keeping(&self, kept: usize) -> Self {
        let mut state = self.shared.state.write();
        let mut old = std::mem::take(&mut *state);
        state.crashed = true;
        for batch in old.unsynced.iter().take(kept) {
            apply_plain(&mut old.durable, batch);
        }
        if planted!(AppliedAheadOfData) && self.shared.kind == EngineKind::Kv {
            // Planted: column families are flushed together (crash rule 7).
            let lost = old.unsynced.iter().skip(kept).flat_map(WriteBatch::changes);
            for change in lost.filter(|change| change.cf() == Cf::Raft) {
                apply_change(&mut old.durable, change);
            }
        }
        Self::with_state(self.shared.kind, old.durable)
    }

    fn with_state(kind: EngineKind, durable: Vec<BTreeMap<Bytes, Bytes>>) -> Self {
        let visible = durable.iter().map(Family::from_plain).collect();
        Self {
            shared: Arc::new(Shared {
                kind,
                state: RwLock::new(State {
                    visible,
                    durable,
                    ..State::default()
                }),
                snapshots: Mutex::default(),
                fail_sync: AtomicBool::new(false),
                fail_write: AtomicBool::new(false),
                busy: AtomicBool::new(false),
                fail_read: AtomicBool::new(false),
            }),
        }
    }

    /// What a power cut leaves for certain, as a view of its own. Played faults pass it by.
    #[must_use]
    pub fn durable(&self) -> MemDurable<'_> {
        MemDurable { engine: self }
    }

    fn check_families(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        batch
            .changes()
            .iter()
            .try_for_each(|change| self.shared.check_family(change.cf()))
    }
}

impl Shared {
    fn check_family(&self, cf: Cf) -> Result<(), EngineError> {
        if cf.engine() == self.kind {
            Ok(())
        } else {
            Err(EngineError::ForeignColumnFamily {
                engine: self.kind,
                cf,
            })
        }
    }

    fn check_writable(&self, state: &State) -> Result<(), EngineError> {
        let engine = self.kind;
        if state.crashed {
            return Err(EngineError::Crashed { engine });
        }
        match &state.failure {
            Some(first) => Err(EngineError::Poisoned {
                engine,
                first: first.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Records the first failure and returns it.
    fn fail(&self, state: &mut State, detail: &str) -> EngineError {
        state.failure = Some(detail.to_owned());
        EngineError::WriteFailed {
            engine: self.kind,
            detail: detail.to_owned(),
        }
    }

    fn sync(&self, state: &mut State) -> Result<(), EngineError> {
        if self.fail_sync.swap(false, Ordering::Relaxed) {
            return Err(self.fail(state, "injected failure of a sync"));
        }
        while state.harden_oldest() {}
        Ok(())
    }

    fn check_readable(&self, state: &State, cf: Cf) -> Result<(), EngineError> {
        self.check_family(cf)?;
        let engine = self.kind;
        if state.crashed {
            return Err(EngineError::Crashed { engine });
        }
        if self.fail_read.swap(false, Ordering::Relaxed) {
            let detail = "injected failure of a read".to_owned();
            return Err(EngineError::ReadFailed { engine, detail });
        }
        Ok(())
    }

    fn get(&self, at: Option<Version>, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let state = self.state.read_recursive();
        self.check_readable(&state, cf)?;
        let at = at.unwrap_or(state.version);
        Ok(state.visible[cf.position()].get(key, at))
    }

    fn scan(
        &self,
        at: Option<Version>,
        cf: Cf,
        range: (&[u8], Option<&[u8]>),
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let state = self.state.read_recursive();
        self.check_readable(&state, cf)?;
        let at = at.unwrap_or(state.version);
        let _: ControlFlow<()> = state.visible[cf.position()].scan(range, direction, at, visit);
        Ok(())
    }
}

impl State {
    /// Makes the oldest unsynced batch durable; false if there is none.
    fn harden_oldest(&mut self) -> bool {
        let Some(batch) = self.unsynced.pop_front() else {
            return false;
        };
        self.unsynced_bytes -= batch.approximate_bytes();
        apply_plain(&mut self.durable, &batch);
        true
    }

    fn remember_unsynced(&mut self, batch: &WriteBatch) {
        if !batch.is_empty() {
            self.unsynced_bytes += batch.approximate_bytes();
            self.unsynced.push_back(batch.clone());
        }
    }

    fn show(&mut self, batch: &WriteBatch, open: &BTreeMap<Version, usize>) {
        let oldest = open.keys().next().copied().unwrap_or(self.version);
        let newest = open.keys().next_back().copied();
        self.version += 1;
        for family in &mut self.visible {
            family.forget_before(oldest);
        }
        for change in batch.changes() {
            let family = &mut self.visible[change.cf().position()];
            match change {
                Change::Put { key, value, .. } => {
                    family.set(key, Some(value.clone()), self.version, newest);
                }
                Change::Delete { key, .. } => family.set(key, None, self.version, newest),
                Change::DeleteRange { start, end, .. } => {
                    family.delete_range(start, end, self.version, newest);
                }
            }
        }
    }
}

impl ReadView for MemEngine {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.shared.get(None, cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.shared.scan(None, cf, (start, end), direction, visit)
    }
}

impl Engine for MemEngine {
    type Snapshot = MemSnapshot;

    fn kind(&self) -> EngineKind {
        self.shared.kind
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.check_families(batch)?;
        let shared = &self.shared;
        let mut state = shared.state.write();
        shared.check_writable(&state)?;
        if shared.fail_write.swap(false, Ordering::Relaxed) {
            return Err(shared.fail(&mut state, "injected failure of a write"));
        }
        // From here on the batch may or may not survive a power cut, also if the sync
        // below fails.
        state.remember_unsynced(batch);
        if durability == Durability::Synced {
            shared.sync(&mut state)?;
        }
        while state.unsynced_bytes > UNSYNCED_BYTES_MAX && state.harden_oldest() {}
        state.show(batch, &shared.snapshots.lock());
        Ok(())
    }

    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool, EngineError> {
        if self.shared.busy.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        self.write(batch, Durability::Unsynced).map(|()| true)
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        let mut state = self.shared.state.write();
        self.shared.check_writable(&state)?;
        self.shared.sync(&mut state)
    }

    /// As a node's engine that has no log of its own.
    fn is_durable_by_flush(&self) -> bool {
        self.shared.kind == EngineKind::Kv
    }

    fn get_durable(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.durable().get(cf, key)
    }

    fn snapshot(&self) -> MemSnapshot {
        let state = self.shared.state.read_recursive();
        let version = state.version;
        *self.shared.snapshots.lock().entry(version).or_default() += 1;
        MemSnapshot {
            open: Arc::new(OpenSnapshot {
                shared: self.shared.clone(),
                version,
            }),
        }
    }
}

impl std::fmt::Debug for MemEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemEngine({})", self.shared.kind)
    }
}

/// The part of a [`MemEngine`] that is synced, as of now.
#[derive(Clone, Copy, Debug)]
pub struct MemDurable<'a> {
    engine: &'a MemEngine,
}

impl ReadView for MemDurable<'_> {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.shared.check_family(cf)?;
        let state = self.engine.shared.state.read_recursive();
        Ok(state.durable[cf.position()].get(key).cloned())
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.engine.shared.check_family(cf)?;
        let state = self.engine.shared.state.read_recursive();
        let family = Family::from_plain(&state.durable[cf.position()]);
        let _: ControlFlow<()> = family.scan((start, end), direction, 0, visit);
        Ok(())
    }
}

/// The state of a [`MemEngine`] at one moment.
#[derive(Clone)]
pub struct MemSnapshot {
    open: Arc<OpenSnapshot>,
}

struct OpenSnapshot {
    shared: Arc<Shared>,
    version: Version,
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        let mut open = self.shared.snapshots.lock();
        if let Some(count) = open.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.version);
            }
        }
    }
}

impl ReadView for MemSnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.open.shared.get(Some(self.open.version), cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        let at = Some(self.open.version);
        self.open
            .shared
            .scan(at, cf, (start, end), direction, visit)
    }
}

impl std::fmt::Debug for MemSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "MemSnapshot({} at {})",
            self.open.shared.kind, self.open.version
        )
    }
}

fn apply_plain(families: &mut [BTreeMap<Bytes, Bytes>], batch: &WriteBatch) {
    for change in batch.changes() {
        apply_change(families, change);
    }
}

fn apply_change(families: &mut [BTreeMap<Bytes, Bytes>], change: &Change) {
    let family = &mut families[change.cf().position()];
    match change {
        Change::Put { key, value, .. } => {
            family.insert(key.clone(), value.clone());
        }
        Change::Delete { key, .. } => {
            family.remove(key);
        }
        Change::DeleteRange { start, end, .. } => {
            let keys: Vec<_> = family
                .range(start.clone()..end.clone())
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                family.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
