//! The region worker: makes, installs and clears whole regions, one job after the other.
//!
//! Jobs run in the order in which they came, each in small pieces ([`RegionWorker::step`]),
//! so that a clear never crosses an install (crash rule 11). Only a check, which changes
//! nothing, goes before all others, also the one that is under way.
//!
//! Generate  From an engine snapshot taken when the job begins.
//! Check     Whether a snapshot that was made can still be sent.
//! Install   Files are verified, unless nobody has written to them since they arrived; the range is cleared, tables are taken in, Normal is synced.
//! Clear     What a destroyed peer has left, cut when the job runs to what no live region
//!           covers. The apply state goes last and synced: while it is there a start knows
//!           that the destroy was cut off.
//! Collect   Between jobs, snapshot files that nobody wants any more are removed.
//!
//! Failures: a snapshot that cannot be made is an answer. A full disk or a failed file
//! operation during an install is tried again after a while. A damaged file, a missing one
//! or a failed write ends the process: the region's old data are given up by then.
//!
//! Invariant: a region whose install has begun here counts as live in every later clear,
//! even before the directory shows it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::PeerState;
#[cfg(feature = "planted-faults")]
use strata_raft::planted;
use strata_storage::snapshot::{
    Generated, Generator, Installed, Installer, Origin, SnapshotEngine, SnapshotError,
    SnapshotInfo, SnapshotKey, SnapshotManager, clear_region,
};
use strata_storage::{
    Cf, Durability, Error, ReadView, WriteBatch, keys, read_apply_state, read_region_state,
};

use crate::directory::DirectoryCell;
use crate::job::{JobDone, RegionJob};
use crate::options::StoreOptions;

/// How long an install waits after a failure that may pass.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The process must end: a worker cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("region {region_id}: {job}: {error}")]
pub struct WorkerFault {
    /// The region.
    pub region_id: u64,
    /// What was being done.
    pub job: &'static str,
    /// Why it cannot be done.
    pub error: SnapshotError,
}

/// A job that the worker has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentJob {
    /// The region.
    pub region_id: u64,
    /// Whether its snapshot is being installed; it is being made otherwise.
    pub install: bool,
}

enum Current<E: SnapshotEngine> {
    Generate {
        region_id: u64,
        generator: Box<Generator<E>>,
    },
    Install {
        region_id: u64,
        index: u64,
        installer: Installer<E>,
    },
}

/// Makes, installs and clears regions.
pub struct RegionWorker<E: SnapshotEngine> {
    kv: E,
    snapshots: SnapshotManager<E::Files>,
    directory: Arc<DirectoryCell>,
    keep_time: Duration,
    gc_interval: Duration,
    queue: VecDeque<RegionJob>,
    current: Option<Current<E>>,
    /// Regions that were installed here and that the directory may not show yet.
    installed: BTreeMap<u64, Region>,
    /// Clears that are reported and still to be done: a planted fault.
    #[cfg(feature = "planted-faults")]
    late_clears: VecDeque<Region>,
    /// Nothing is done before.
    not_before: Duration,
    /// The failure of the last piece of an install, until one succeeds.
    waits_because: Option<SnapshotError>,
    next_gc: Option<Duration>,
    /// When each snapshot was first seen here.
    seen: BTreeMap<SnapshotKey, Duration>,
    /// Bytes of keys and values that were read for snapshots, and not told yet.
    read_bytes: u64,
}

impl<E: SnapshotEngine> RegionWorker<E> {
    /// A worker without jobs.
    pub fn new(
        options: &StoreOptions,
        kv: E,
        snapshots: SnapshotManager<E::Files>,
        directory: Arc<DirectoryCell>,
    ) -> Self {
        RegionWorker {
            kv,
            snapshots,
            directory,
            keep_time: options.snapshot_keep_time,
            gc_interval: options.snapshot_gc_interval,
            queue: VecDeque::new(),
            current: None,
            installed: BTreeMap::new(),
            #[cfg(feature = "planted-faults")]
            late_clears: VecDeque::new(),
            not_before: Duration::ZERO,
            waits_because: None,
            next_gc: None,
            seen: BTreeMap::new(),
            read_bytes: 0,
        }
    }

    /// Takes a job over; it runs behind those that are here, a check in the next step.
    ///
    /// # Panics
    /// On a `GcLog`, which is the log gc worker's.
    pub fn push(&mut self, job: RegionJob) {
        assert!(
            !matches!(job, RegionJob::GcLog { .. }),
            "region {}: the region worker deletes no log",
            job.region_id()
        );
        if matches!(job, RegionJob::CheckGenerated { .. }) {
            self.queue.push_front(job);
        } else {
            self.queue.push_back(job);
        }
    }

    /// True if a step at `now` would do a piece of a job.
    pub fn has_work(&self, now: Duration) -> bool {
        let waits = self.current.is_some() || !self.queue.is_empty();
        (waits && self.not_before <= now) || self.has_check()
    }

    fn has_check(&self) -> bool {
        matches!(self.queue.front(), Some(RegionJob::CheckGenerated { .. }))
    }

    /// The snapshot that is being made or installed. Clears have no duration: each is one
    /// piece of work.
    pub fn current(&self) -> Option<CurrentJob> {
        self.current.as_ref().map(|current| match current {
            Current::Generate { region_id, .. } => CurrentJob {
                region_id: *region_id,
                install: false,
            },
            Current::Install { region_id, .. } => CurrentJob {
                region_id: *region_id,
                install: true,
            },
        })
    }

    /// True if there is nothing but snapshots to be made: a step may wait then. No other job is
    /// under way or waits behind them.
    pub fn only_makes(&self) -> bool {
        let makes = |job: &RegionJob| matches!(job, RegionJob::Generate { .. });
        !matches!(self.current, Some(Current::Install { .. })) && self.queue.iter().all(makes)
    }

    /// Bytes of keys and values that were read for snapshots since the last call.
    pub fn take_read_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.read_bytes)
    }

    /// Why the install under way waits and tries again, while it does.
    pub fn waits_because(&self) -> Option<&SnapshotError> {
        self.waits_because.as_ref()
    }

    /// Does a piece of work: a few hundred kilobytes of a snapshot, about `budget_bytes`, one
    /// file or batch of an install, a whole clear, or a collection of files.
    ///
    /// # Errors
    /// The process must end.
    pub fn step(
        &mut self,
        now: Duration,
        budget_bytes: usize,
    ) -> Result<Option<JobDone>, WorkerFault> {
        self.collect_files(now)?;
        // It changes nothing, and who asks would wait for all of a large snapshot.
        if self.has_check()
            && let Some(check) = self.queue.pop_front()
        {
            return self.begin(check);
        }
        if now < self.not_before {
            return Ok(None);
        }
        match self.current.take() {
            Some(Current::Generate {
                region_id,
                generator,
            }) => self.generate(region_id, generator, budget_bytes),
            Some(Current::Install {
                region_id,
                index,
                installer,
            }) => self.install(now, region_id, index, installer),
            None => match self.queue.pop_front() {
                Some(job) => self.begin(job),
                None => self.idle(),
            },
        }
    }

    /// Nothing is waiting.
    fn idle(&mut self) -> Result<Option<JobDone>, WorkerFault> {
        #[cfg(feature = "planted-faults")]
        if let Some(region) = self.late_clears.pop_front() {
            self.clear(&region)?;
        }
        Ok(None)
    }

    fn begin(&mut self, job: RegionJob) -> Result<Option<JobDone>, WorkerFault> {
        match job {
            RegionJob::Generate { region_id } => {
                match Generator::begin(&self.snapshots, self.kv.snapshot(), region_id) {
                    Ok(generator) => {
                        self.current = Some(Current::Generate {
                            region_id,
                            generator: Box::new(generator),
                        });
                        Ok(None)
                    }
                    Err(error) => self.not_generated(region_id, error),
                }
            }
            RegionJob::Install {
                region_id,
                index,
                term,
            } => {
                let files = self
                    .snapshots
                    .find_received(region_id, index, term)
                    .map_err(|error| fault(region_id, "installing a snapshot", error))?;
                self.installed.insert(region_id, files.region().clone());
                self.current = Some(Current::Install {
                    region_id,
                    index,
                    installer: Installer::new(self.kv.clone(), files),
                });
                Ok(None)
            }
            RegionJob::CheckGenerated { region_id, meta } => {
                let (id, here) = (meta.id, self.snapshots.find_generated(&meta).is_some());
                Ok(Some(JobDone::GeneratedChecked {
                    region_id,
                    id,
                    here,
                }))
            }
            // Planted: clears run in their turn, before anybody hears of them (crash rule 11).
            #[cfg(feature = "planted-faults")]
            RegionJob::Clear { region } if planted!(LateClear) => {
                let region_id = region.id;
                self.late_clears.push_back(region);
                Ok(Some(JobDone::Cleared { region_id }))
            }
            RegionJob::Clear { region } => self.clear(&region).map(Some),
            RegionJob::GcLog { .. } => unreachable!("refused when it was pushed"),
        }
    }

    fn generate(
        &mut self,
        region_id: u64,
        mut generator: Box<Generator<E>>,
        budget_bytes: usize,
    ) -> Result<Option<JobDone>, WorkerFault> {
        // Planted: index and data are of one engine snapshot (crash rule 11).
        #[cfg(feature = "planted-faults")]
        if planted!(SnapshotIndexFromMemory) {
            generator.read_on_from(self.kv.snapshot());
        }
        let read_before = generator.read_bytes();
        let stepped = generator.step(budget_bytes);
        self.read_bytes += generator.read_bytes() - read_before;
        match stepped {
            Ok(Generated::Working) => {
                self.current = Some(Current::Generate {
                    region_id,
                    generator,
                });
                Ok(None)
            }
            Ok(Generated::Done(files)) => {
                let result = Ok(Box::new(files.meta().clone()));
                Ok(Some(JobDone::Generated { region_id, result }))
            }
            Err(error) => self.not_generated(region_id, error),
        }
    }

    fn not_generated(
        &self,
        region_id: u64,
        error: SnapshotError,
    ) -> Result<Option<JobDone>, WorkerFault> {
        if is_fatal(&error) {
            return Err(fault(region_id, "making a snapshot", error));
        }
        let result = Err(error);
        Ok(Some(JobDone::Generated { region_id, result }))
    }

    fn install(
        &mut self,
        now: Duration,
        region_id: u64,
        index: u64,
        mut installer: Installer<E>,
    ) -> Result<Option<JobDone>, WorkerFault> {
        let live = self.live_regions(region_id);
        match installer.step(&live) {
            Ok(Installed::Done) => {
                self.waits_because = None;
                return Ok(Some(JobDone::Installed { region_id, index }));
            }
            Ok(Installed::Working) => self.waits_because = None,
            Err(error @ (SnapshotError::DiskFull { .. } | SnapshotError::File { .. })) => {
                // Nothing is lost by waiting: the files are here and the region is marked.
                self.waits_because = Some(error);
                self.not_before = now + RETRY_WAIT;
            }
            Err(error) => return Err(fault(region_id, "installing a snapshot", error)),
        }
        self.current = Some(Current::Install {
            region_id,
            index,
            installer,
        });
        Ok(None)
    }

    fn clear(&mut self, region: &Region) -> Result<JobDone, WorkerFault> {
        let region_id = region.id;
        self.installed.remove(&region_id);
        let live = self.live_regions(region_id);
        let data = clear_region(region, &live);
        let mut last = WriteBatch::new();
        last.delete(Cf::Raft, keys::apply_state(region_id));
        self.kv
            .write(&data, Durability::Unsynced)
            .and_then(|()| self.kv.write(&last, Durability::Synced))
            .map_err(|error| fault(region_id, "clearing a region", Error::from(error).into()))?;
        Ok(JobDone::Cleared { region_id })
    }

    /// All regions but one whose data must stay.
    fn live_regions(&mut self, but: u64) -> Vec<Region> {
        let directory = self.directory.load();
        self.installed.retain(|region_id, region| {
            // From the moment the directory shows it, the directory alone counts.
            let shown = directory.get(*region_id);
            let epoch = |region: &Region| region.region_epoch.unwrap_or_default();
            shown.is_none_or(|entry| {
                let (shown, own) = (epoch(&entry.region), epoch(region));
                shown.version < own.version || shown.conf_ver < own.conf_ver
            })
        });
        let shown = directory.iter().map(|entry| (*entry.region).clone());
        let installed = self.installed.values().cloned();
        shown
            .chain(installed)
            .filter(|region| region.id != but)
            .collect()
    }

    /// Removes files that nobody wants: what was made, once it is older than twice the time
    /// for which a leader sends it, or a newer one was made; what was received, once its
    /// region has applied as much, or it is old and no region is being installed from it.
    fn collect_files(&mut self, now: Duration) -> Result<(), WorkerFault> {
        let due = *self.next_gc.get_or_insert(now + self.gc_interval);
        if now < due {
            return Ok(());
        }
        self.next_gc = Some(now + self.gc_interval);
        let listed = self.snapshots.list();
        self.seen
            .retain(|key, _| listed.iter().any(|info| info.key == *key));
        for info in &listed {
            self.seen.entry(info.key).or_insert(now);
        }
        // Of a region's older ones a sender may still be about to take a hold.
        let newest = |info: &SnapshotInfo| {
            let later = |other: &SnapshotInfo| {
                (other.key.origin, other.key.region_id) == (info.key.origin, info.key.region_id)
                    && other.key.index > info.key.index
            };
            !listed.iter().any(later)
        };
        let mut failed = None;
        // One moment for all records of a region: while an install begins they change
        // together.
        let view = self.kv.snapshot();
        let keep = |info: &SnapshotInfo| {
            let age = now.saturating_sub(self.seen.get(&info.key).copied().unwrap_or(now));
            if info.key.origin == Origin::Generated {
                let kept = if newest(info) {
                    self.keep_time
                } else {
                    self.gc_interval
                };
                return age < kept * 2;
            }
            match use_of(&view, &info.key) {
                Ok(Use::Installed) => true,
                Ok(Use::Possible) => age < self.keep_time,
                Ok(Use::Superseded) => false,
                Err(error) => {
                    failed = Some((info.key.region_id, error));
                    true
                }
            }
        };
        // What cannot be removed now is tried again, and removed by the next start.
        let _ = self.snapshots.retain(keep);
        match failed {
            Some((region_id, error)) if error.is_fatal() => {
                Err(fault(region_id, "collecting snapshots", error.into()))
            }
            _ => Ok(()),
        }
    }
}

/// What a region can still do with a snapshot that was received for it.
enum Use {
    /// It is in Applying with this snapshot (crash rule 3: its files stay).
    Installed,
    /// It may yet be told to install it.
    Possible,
    /// It has applied as much: raft takes it no more.
    Superseded,
}

fn use_of(view: &impl ReadView, key: &SnapshotKey) -> Result<Use, Error> {
    let Some(state) = read_region_state(view, key.region_id)? else {
        return Ok(Use::Possible);
    };
    let apply = read_apply_state(view, key.region_id)?.unwrap_or_default();
    let same = (apply.applied_index, apply.applied_term) == (key.index, key.term);
    Ok(match state.state() {
        PeerState::Applying if same => Use::Installed,
        PeerState::Applying | PeerState::Normal if apply.applied_index >= key.index => {
            Use::Superseded
        }
        _ => Use::Possible,
    })
}

fn is_fatal(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Storage(error) => error.is_fatal(),
        SnapshotError::SyncFailed { .. } => true,
        _ => false,
    }
}

fn fault(region_id: u64, job: &'static str, error: SnapshotError) -> WorkerFault {
    WorkerFault {
        region_id,
        job,
        error,
    }
}
