//! The lives of stores: a start from what is on the disks, and a folder that is lost.
//!
//! Start  The production core loads its engines. A disk error that was played makes the process
//!        end and start again; any other reason not to start is a violation.
//! Wipe   A store that is down gets new engines and is not admitted from then on. Where its logs
//!        ended is remembered for those that judge commits.
//!
//! Elsewhere: how a life ends (`effects`), which faults end it (`faults`).

use std::time::Duration;

use strata_raftstore::StoreCore;
use strata_storage::bootstrap::ClusterSpec;
use strata_storage::read_raft_state;
use strata_storage::snapshot::{MemFiles, SnapshotManager};

use crate::cluster::{Cluster, Event};
use crate::disk::{Crash, after_crash};
use crate::effects::was_injected;
use crate::guard::guarded;
use crate::violation::Violation;

/// After how long a store is started again whose disk failed as it started.
const START_AGAIN: Duration = Duration::from_millis(50);

/// Bytes that all snapshots of a store may take.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

impl Cluster {
    /// Replaces a stopped store's folder by a new one, which is not admitted.
    ///
    /// # Panics
    /// If the store is up.
    pub fn wipe_store(&mut self, id: u64) {
        let stores: Vec<u64> = self.store_ids();
        let spec = ClusterSpec::new(&stores, "sim", self.options.regions, self.options.replicas)
            .unwrap_or_else(|error| panic!("a cluster that cannot be: {error}"));
        let engines = self.new_engines(&spec, id, id + 1_000);
        assert!(!self.store(id).is_up(), "store {id} is wiped while it runs");
        for region in &self.regions {
            // What is synced: that is what others were promised. No played error hits this.
            let log = read_raft_state(&self.stores[&id].engines.raft.durable(), region.id);
            let end = log.ok().flatten().map_or(0, |state| state.last_index);
            self.lost_logs.insert((id, region.id), end);
        }
        let store = self.store_mut(id);
        store.engines = engines;
        store.files = MemFiles::new();
        store.options.admitted = false;
        store.out = true;
        self.watch.forget(id);
        self.promises.on_wipe(id);
    }

    /// Starts a store from its engines. A store that cannot start is a violation.
    ///
    /// # Panics
    /// If the store is up.
    pub fn start_store(&mut self, id: u64) {
        let now = self.queue.now();
        let system = self.system.clone();
        let store = self.store_mut(id);
        assert!(!store.is_up(), "store {id} is started while it runs");
        let local = store.clock.now(now);
        let engines = store.engines.clone();
        let snapshots = SnapshotManager::open(store.files.clone(), SNAPSHOT_BYTES_MAX)
            .unwrap_or_else(|error| panic!("store {id}: snapshot files: {error}"));
        let options = store.options.clone();
        let load = || StoreCore::load(id, &options, engines, snapshots, &system, local);
        let loaded = match guarded(load) {
            Ok(loaded) => loaded.map_err(|error| error.to_string()),
            Err(panic) => Err(panic),
        };
        let store = self.store_mut(id);
        match loaded {
            Ok(core) => {
                let directory = core.directory().load();
                store.start(core, now);
                let life = store.life;
                let engines = &self.stores[&id].engines;
                self.watch.on_start(id, &directory, engines);
                self.trace.note(now, "start", [id, life, 0, 0]);
                self.look_at_start(id);
                self.schedule_tick(id);
                self.schedule_region_work(id, Duration::ZERO);
                // What the start has left in the outboxes goes with the first step.
                self.schedule_step(id);
            }
            Err(reason) if was_injected(&reason) => {
                // The disk failed as the store started: its process ends, which leaves it an
                // engine that takes writes again, and it is started once more.
                let (store, lying) = (&self.stores[&id], self.planted.disks_lie());
                let life = store.life;
                let left = after_crash(&store.engines, Crash::Kill, lying, &mut self.rng);
                self.store_mut(id).engines = left;
                self.trace.note(now, "failed start", [id, life, 0, 0]);
                self.queue
                    .push(START_AGAIN, Event::Restart { store: id, life });
            }
            Err(reason) => self.watch.report(Violation::StoreStopped {
                store_id: id,
                reason,
            }),
        }
    }
}
