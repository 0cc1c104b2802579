//! The region worker: makes, installs and clears whole regions, one job after the other.
//!
//! Jobs run in the order in which they came, each in small pieces ([`RegionWorker::step`]),
//! so that a clear never crosses an install (crash rule 11).
//!
//! Generate  From an engine snapshot taken when the job begins.
//! Install   Files are verified, the range is cleared, tables are taken in, Normal is synced.
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
use strata_storage::snapshot::{
    Generated, Generator, Installed, Installer, Origin, SnapshotEngine, SnapshotError,
    SnapshotInfo, SnapshotKey, SnapshotManager, clear_region,
};
use strata_storage::{
    Cf, Durability, Error, WriteBatch, keys, read_apply_state, read_region_state,
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
    /// Nothing is done before.
    not_before: Duration,
    next_gc: Option<Duration>,
    /// When each snapshot was first seen here.
    seen: BTreeMap<SnapshotKey, Duration>,
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
            not_before: Duration::ZERO,
            next_gc: None,
            seen: BTreeMap::new(),
        }
    }

    /// Takes a job over; it runs behind those that are here.
    ///
    /// # Panics
    /// On a `GcLog`, which is the log gc worker's.
    pub fn push(&mut self, job: RegionJob) {
        assert!(
            !matches!(job, RegionJob::GcLog { .. }),
            "region {}: the region worker deletes no log",
            job.region_id()
        );
        self.queue.push_back(job);
    }

    /// True if a step at `now` would do a piece of a job.
    pub fn has_work(&self, now: Duration) -> bool {
        (self.current.is_some() || !self.queue.is_empty()) && self.not_before <= now
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
                None => Ok(None),
            },
        }
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
        match generator.step(budget_bytes) {
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
            Ok(Installed::Done) => return Ok(Some(JobDone::Installed { region_id, index })),
            Ok(Installed::Working) => {}
            Err(error @ (SnapshotError::DiskFull { .. } | SnapshotError::File { .. })) => {
                // Nothing is lost by waiting: the files are here and the region is marked.
                drop(error);
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
    /// region stands at or behind its index, or it is old, and no region is being installed
    /// from it.
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
            let state = received_state(&self.kv, &info.key).unwrap_or_else(|error| {
                failed = Some((info.key.region_id, error));
                Received::Installing
            });
            match state {
                Received::Installing => true,
                Received::Waiting => age < self.keep_time,
                Received::Passed => false,
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

/// What a received snapshot is to its region.
enum Received {
    /// It is being installed, or nobody can say (crash rule 3: its files stay).
    Installing,
    /// It may yet be installed.
    Waiting,
    /// The region has applied what it holds: Raft would not take it any more.
    Passed,
}

fn received_state<E: SnapshotEngine>(kv: &E, key: &SnapshotKey) -> Result<Received, Error> {
    let Some(state) = read_region_state(kv, key.region_id)? else {
        return Ok(Received::Waiting);
    };
    let apply = read_apply_state(kv, key.region_id)?.unwrap_or_default();
    let same = (apply.applied_index, apply.applied_term) == (key.index, key.term);
    Ok(match state.state() {
        PeerState::Applying if same => Received::Installing,
        PeerState::Normal if apply.applied_index >= key.index => Received::Passed,
        _ => Received::Waiting,
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
