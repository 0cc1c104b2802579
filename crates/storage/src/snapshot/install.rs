//! Installs a snapshot so that a crash at any instant can be repaired (crash rule 3).
//!
//! ```text
//! begin_install    1  kv, synced    Applying, RaftApplyState, copy of RaftLocalState
//!                  2  raft, synced  log emptied, that RaftLocalState
//! Installer        3  files         read whole, compared with their checksums
//!                  4  kv            the range is cleared
//!                  5  kv            each table is taken in by link or copy
//!                  6  kv, synced    Normal, the copy goes
//! ```
//! No other raft batch of the region lies between 1 and 2. The snapshot's files are kept
//! until 6 is synced.
//!
//! Start     [`recover_install`] finds a region in Applying. If the raft engine's commit
//!           is below the copy's, 2 is repeated, keeping the higher term with its vote;
//!           else the raft engine stands as it is, with what was appended since. Then 3
//!           to 6 are repeated: each of them may be, as the first thing is to clear.
//!
//! Invariants
//! * Until 1 nothing of the replica is changed, and a snapshot that does not fit is
//!   refused ([`check_install`]).
//! * What the replica covered and neither the snapshot nor another replica covers goes
//!   with 1: after it nobody knows any more that it was this replica's.

use strata_proto::eraftpb::HardState;
use strata_proto::metapb::Region;
use strata_proto::raft_serverpb::{PeerState, RaftLocalState, RegionLocalState};
use strata_proto::stratapb::{RaftApplyState, SnapshotMeta};
use strata_raft::planted;

use super::clear::{clear_data, clear_region, overlaps, uncovered};
use super::error::{MetaFault, SnapshotError};
use super::reference::SnapshotRef;
use super::table::SnapshotEngine;
use crate::batch::WriteBatch;
use crate::engine::{Cf, Durability, Engine, Engines};
use crate::keys;
use crate::record::{self, RecordKind};
use crate::region_records::{
    read_apply_state, read_raft_state, read_region_state, write_apply_state, write_raft_state,
    write_region_state,
};

/// Refuses a snapshot that does not fit: before its raft message is stepped, and again
/// before it is installed.
///
/// `own` is the replica's region with its applied index; a region without peers for one
/// that a message created. `others` are the regions of all other live replicas.
///
/// # Errors
/// `Stale`, `StaleEpoch`, `Overlapping`, `BadMeta`.
pub fn check_install<'a>(
    meta: &SnapshotMeta,
    own: Option<(&Region, u64)>,
    others: impl IntoIterator<Item = &'a Region>,
) -> Result<(), SnapshotError> {
    let region = meta.region.as_ref().ok_or(MetaFault::Region)?;
    let region_id = region.id;
    if let Some((own, applied)) = own {
        if own.id != region_id {
            return Err(SnapshotError::NoSuchRegion { region_id });
        }
        let index = meta.index;
        // Planted: what is applied is never replaced by what came before it.
        if index <= applied && !planted!(StaleSnapshotApplied) {
            return Err(SnapshotError::Stale {
                region_id,
                index,
                applied,
            });
        }
        let epoch = |region: &Region| {
            let epoch = region.region_epoch.unwrap_or_default();
            (epoch.conf_ver, epoch.version)
        };
        let (found, current) = (epoch(region), epoch(own));
        // A replica that a message created knows the sender's epoch, and nothing to lose.
        if !own.peers.is_empty() && (found.0 < current.0 || found.1 < current.1) {
            return Err(SnapshotError::StaleEpoch {
                region_id,
                found,
                current,
            });
        }
    }
    check_overlap(region, others)
}

fn check_overlap<'a>(
    region: &Region,
    others: impl IntoIterator<Item = &'a Region>,
) -> Result<(), SnapshotError> {
    let mut others = others.into_iter();
    match others.find(|other| other.id != region.id && overlaps(region, other)) {
        None => Ok(()),
        Some(other) => Err(SnapshotError::Overlapping {
            region_id: region.id,
            other: other.id,
        }),
    }
}

/// The two batches that begin an install, and the apply state that they write.
#[derive(Debug)]
pub struct BeginInstall {
    /// First, synced before `raft` is written.
    pub kv: WriteBatch,
    /// Second, synced before anything is acknowledged.
    pub raft: WriteBatch,
    /// As written by `kv`.
    pub apply_state: RaftApplyState,
}

/// Builds the batches that begin an install. `own` is the replica's region so far,
/// `others` are the regions of all other live replicas, `hard_state` is the one that
/// raft's Ready holds beside the snapshot.
///
/// # Errors
/// `TermBehind` if the hard state has not reached the snapshot's term; `BadMeta`.
pub fn begin_install<'a>(
    own: Option<&Region>,
    others: impl IntoIterator<Item = &'a Region>,
    meta: &'a SnapshotMeta,
    hard_state: &HardState,
) -> Result<BeginInstall, SnapshotError> {
    let region = meta.region.as_ref().ok_or(MetaFault::Region)?;
    let region_id = region.id;
    if hard_state.term < meta.term {
        return Err(SnapshotError::TermBehind {
            region_id,
            term: hard_state.term,
            snapshot_term: meta.term,
        });
    }
    let apply_state = RaftApplyState {
        applied_index: meta.index,
        applied_term: meta.term,
        truncated_index: meta.index,
        truncated_term: meta.term,
        region_clock_ms: meta.region_clock_ms,
    };
    let copy = RaftLocalState {
        hard_state: Some(HardState {
            commit: meta.index,
            ..*hard_state
        }),
        last_index: meta.index,
    };
    let mut kv = WriteBatch::new();
    if let Some(own) = own.filter(|own| !own.peers.is_empty()) {
        let covered = others.into_iter().filter(|other| other.id != region_id);
        clear_data(&mut kv, &uncovered(own, covered.chain([region])));
    }
    let state = RegionLocalState {
        state: PeerState::Applying.into(),
        region: Some(region.clone()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &state);
    write_apply_state(&mut kv, region_id, &apply_state);
    record::put(&mut kv, Cf::Raft, keys::raft_state_copy(region_id), &copy);
    Ok(BeginInstall {
        kv,
        raft: empty_log(region_id, &copy),
        apply_state,
    })
}

/// Empties a region's log and writes its RaftLocalState.
fn empty_log(region_id: u64, state: &RaftLocalState) -> WriteBatch {
    let mut raft = WriteBatch::new();
    let (start, end) = keys::raft_log_range(region_id);
    raft.delete_range(Cf::RaftLog, start, end);
    write_raft_state(&mut raft, region_id, state);
    raft
}

/// The batch that ends an install; it is written synced.
#[must_use]
pub fn finish_install(region: &Region) -> WriteBatch {
    let mut kv = WriteBatch::new();
    let state = RegionLocalState {
        state: PeerState::Normal.into(),
        region: Some(region.clone()),
        ..RegionLocalState::default()
    };
    write_region_state(&mut kv, &state);
    kv.delete(Cf::Raft, keys::raft_state_copy(region.id));
    kv
}

/// An install that a crash cut off.
#[derive(Debug)]
pub struct RecoverInstall {
    /// The region as the snapshot has it.
    pub region: Region,
    /// Index of the snapshot.
    pub index: u64,
    /// Term of the snapshot.
    pub term: u64,
    /// The raft batch, if it has to be repeated: written synced before the replica is
    /// opened.
    pub raft: Option<WriteBatch>,
}

/// Finds out at a start whether a region's install was cut off, and what is to be
/// repeated; `None` if there is nothing to do. The files come from
/// [`SnapshotManager::find_received`](super::SnapshotManager::find_received).
///
/// # Errors
/// `InstallRecord` if the region is in Applying and a record of the install is absent,
/// which is fatal; errors of the engines, `CorruptRecord`.
pub fn recover_install<E: Engine>(
    engines: &Engines<E>,
    region_id: u64,
) -> Result<Option<RecoverInstall>, SnapshotError> {
    let Some(state) = read_region_state(&engines.kv, region_id)? else {
        return Ok(None);
    };
    if state.state() != PeerState::Applying {
        return Ok(None);
    }
    let missing = |record| SnapshotError::InstallRecord { region_id, record };
    let region = state.region.ok_or(missing("region"))?;
    let apply = read_apply_state(&engines.kv, region_id)?.ok_or(missing("RaftApplyState"))?;
    let key = keys::raft_state_copy(region_id);
    let kind = RecordKind::RaftLocalStateCopy;
    let copy: Option<RaftLocalState> = record::get(&engines.kv, Cf::Raft, kind, &key)?;
    let copy = copy.ok_or(missing("copy of RaftLocalState"))?;
    let copied = copy.hard_state.ok_or(missing("hard state"))?;
    let found = read_raft_state(&engines.raft, region_id)?.unwrap_or_default();
    let found = found.hard_state.unwrap_or_default();
    let raft = (found.commit < copied.commit).then(|| {
        let merged = RaftLocalState {
            hard_state: Some(merge_votes(&found, &copied)),
            ..copy
        };
        empty_log(region_id, &merged)
    });
    Ok(Some(RecoverInstall {
        region,
        index: apply.applied_index,
        term: apply.applied_term,
        raft,
    }))
}

/// The higher term with its vote, and the snapshot's commit.
fn merge_votes(found: &HardState, copied: &HardState) -> HardState {
    let (term, vote) = match found.term.cmp(&copied.term) {
        std::cmp::Ordering::Greater => (found.term, found.vote),
        std::cmp::Ordering::Less => (copied.term, copied.vote),
        // Within a term a vote is given once; where one is known it counts.
        std::cmp::Ordering::Equal if found.vote != 0 => (found.term, found.vote),
        std::cmp::Ordering::Equal => (copied.term, copied.vote),
    };
    HardState {
        term,
        vote,
        commit: copied.commit,
    }
}

/// What a step of an install has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// There is more to do.
    Working,
    /// Normal is synced; the files may go.
    Done,
}

/// Where an install stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Verify(u32),
    Clear,
    Ingest(usize),
    Normal,
    Done,
}

/// Steps 3 to 6 of an install, one piece of work at a time. Runs in the one worker that
/// also runs clears, so that the two never cross.
pub struct Installer<E: SnapshotEngine> {
    kv: E,
    snapshot: SnapshotRef<E::Files>,
    phase: Phase,
}

impl<E: SnapshotEngine> Installer<E> {
    /// Begins to install a snapshot whose region is in Applying.
    #[must_use]
    pub fn new(kv: E, snapshot: SnapshotRef<E::Files>) -> Self {
        Self {
            kv,
            snapshot,
            phase: Phase::Verify(0),
        }
    }

    /// Does a piece of the work: one file, or one batch. `others` are the regions of all
    /// other live replicas, as of now. After an error the same step is tried again.
    ///
    /// # Errors
    /// `FileChecksum`, `FileLength`: a file is damaged, nothing was cleared.
    /// `Overlapping`: nothing was cleared. `Table`; `File`; errors of the engine.
    pub fn step<'a>(
        &mut self,
        others: impl IntoIterator<Item = &'a Region>,
    ) -> Result<Installed, SnapshotError> {
        let region = self.snapshot.region();
        self.phase = match self.phase {
            Phase::Verify(file) if (file as usize) < self.snapshot.meta().files.len() => {
                self.snapshot.verify_changed_file(file)?;
                Phase::Verify(file + 1)
            }
            Phase::Verify(_) => Phase::Clear,
            Phase::Clear => {
                check_overlap(region, others)?;
                self.kv
                    .write(&clear_region(region, []), Durability::Unsynced)?;
                Phase::Ingest(0)
            }
            Phase::Ingest(file) => match self.snapshot.tables().get(file) {
                Some((content, name)) => {
                    self.kv
                        .ingest_table(self.snapshot.files(), name, content.cf())?;
                    Phase::Ingest(file + 1)
                }
                None => Phase::Normal,
            },
            Phase::Normal => {
                self.kv.write(&finish_install(region), Durability::Synced)?;
                Phase::Done
            }
            Phase::Done => Phase::Done,
        };
        Ok(if self.phase == Phase::Done {
            Installed::Done
        } else {
            Installed::Working
        })
    }

    /// The snapshot that is installed.
    #[must_use]
    pub fn snapshot(&self) -> &SnapshotRef<E::Files> {
        &self.snapshot
    }
}
