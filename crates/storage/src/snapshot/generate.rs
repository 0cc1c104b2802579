//! Makes the snapshot of a region, a bounded piece of work at a time.
//!
//! Begin   Range, membership, position and clock are read from the same engine snapshot
//!         as the data will be (crash rule 11); so they belong together whatever is
//!         applied meanwhile.
//! Write   One table for each content that has keys, under a temporary name.
//! Sum     What was written is read back for the checksum: that of what is in the file. It
//!         happens after each piece, while the system still has it in memory: RocksDB has it
//!         dropped from there soon. The writer may be at work meanwhile, and behind what it was
//!         given; the rest follows when it has ended.
//! Name    The id is known once all checksums are; the tables take their final names.
//!
//! Nothing is synced: what was made here is of no use after the process ends, and the
//! next start removes it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crc32fast::Hasher;
use strata_proto::raft_serverpb::PeerState;
use strata_proto::stratapb::{SnapshotFile, SnapshotMeta};
use strata_raft::planted;

use super::content::Content;
use super::error::SnapshotError;
use super::files::FileStore;
use super::manager::{Making, SnapshotManager};
use super::meta::{contents, snapshot_id};
use super::name::{Origin, Role, SnapshotKey, temporary};
use super::reference::SnapshotRef;
use super::table::{SnapshotEngine, TableWriter};
use crate::engine::ReadView;
use crate::region_records::{conf_state_of, read_apply_state, read_region_state};

/// What a step of the work has come to.
#[derive(Debug)]
pub enum Generated<F: FileStore> {
    /// There is more to do.
    Working,
    /// The snapshot is complete.
    Done(SnapshotRef<F>),
}

/// A snapshot in the making. Dropping it gives up; its files are removed.
pub struct Generator<E: SnapshotEngine> {
    view: E::Snapshot,
    making: Making<E::Files>,
    /// `files` and `id` are filled on the way.
    meta: SnapshotMeta,
    /// Contents that are not begun.
    waiting: VecDeque<Content>,
    phase: Phase<E::Writer>,
    /// Bytes of the tables that are finished.
    finished_bytes: u64,
    /// Bytes of keys and values that were read.
    read_bytes: u64,
}

enum Phase<W> {
    /// Between two contents.
    Idle,
    /// A step is under way, or has failed: a content may be missing.
    Broken,
    /// The id of the finished snapshot is known.
    Done,
    Writing(Writing<W>),
}

struct Writing<W> {
    content: Content,
    /// None until the first key: a content without keys has no file.
    writer: Option<W>,
    /// Where the scan goes on.
    next: Vec<u8>,
    end: Vec<u8>,
    /// Keys and values so far.
    bytes: u64,
    /// Bytes of the file that were read back.
    summed_bytes: u64,
    /// Of those bytes.
    hasher: Hasher,
}

impl<E: SnapshotEngine> Generator<E> {
    /// Begins the snapshot of a region as `view` sees it.
    ///
    /// # Errors
    /// `NoSuchRegion`; `NotServing` if the replica is destroyed, is installing a snapshot
    /// itself or has applied nothing; errors of the engine.
    pub fn begin(
        manager: &SnapshotManager<E::Files>,
        view: E::Snapshot,
        region_id: u64,
    ) -> Result<Self, SnapshotError> {
        let absent = SnapshotError::NoSuchRegion { region_id };
        let state = read_region_state(&view, region_id)?.ok_or(absent.clone())?;
        let (peer_state, region) = (state.state(), state.region.ok_or(absent)?);
        let apply = read_apply_state(&view, region_id)?.unwrap_or_default();
        let serving = matches!(peer_state, PeerState::Normal | PeerState::Merging);
        if !serving || apply.applied_index == 0 || region.peers.is_empty() {
            return Err(SnapshotError::NotServing {
                region_id,
                state: peer_state,
                applied: apply.applied_index,
            });
        }
        // Planted: a region's sessions are a part of it.
        let left_out =
            |content: &Content| planted!(SnapshotWithoutSessions) && *content == Content::Session;
        let has_range = |content: &Content| content.range(&region).is_some() && !left_out(content);
        Ok(Self {
            view,
            making: manager.begin_making(),
            waiting: Content::ALL.into_iter().filter(has_range).collect(),
            meta: SnapshotMeta {
                id: 0,
                index: apply.applied_index,
                term: apply.applied_term,
                conf_state: Some(conf_state_of(&region)),
                region: Some(region),
                region_clock_ms: apply.region_clock_ms,
                form: E::Files::FORM.into(),
                files: Vec::new(),
            },
            phase: Phase::Idle,
            finished_bytes: 0,
            read_bytes: 0,
        })
    }

    /// Index of the last entry that will be in it.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.meta.index
    }

    /// Bytes of keys and values that were read so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The planted fault of an index that is older than the data: what is read from now on
    /// comes from another engine snapshot than the index did.
    #[cfg(feature = "planted-faults")]
    pub fn read_on_from(&mut self, view: E::Snapshot) {
        self.view = view;
    }

    /// Does a piece of the work: reads about `budget_bytes` of keys and values. After an error
    /// the generator is of no use; drop it.
    ///
    /// # Errors
    /// `TooMuch` beyond the manager's limit; `DiskFull`, `File`; errors of the engine.
    ///
    /// # Panics
    /// If it is stepped after an error or after it was done: a snapshot that lacks a part
    /// must never be named.
    pub fn step(&mut self, budget_bytes: usize) -> Result<Generated<E::Files>, SnapshotError> {
        match std::mem::replace(&mut self.phase, Phase::Broken) {
            Phase::Broken | Phase::Done => panic!(
                "region {:?}: generator stepped after its end at index {}",
                self.meta.region.as_ref().map(|region| region.id),
                self.meta.index
            ),
            Phase::Idle => match self.waiting.pop_front() {
                Some(content) => self.phase = Phase::Writing(self.open(content)),
                None => {
                    let named = self.name_files()?;
                    self.phase = Phase::Done;
                    return Ok(Generated::Done(named));
                }
            },
            Phase::Writing(writing) => self.write(writing, budget_bytes)?,
        }
        Ok(Generated::Working)
    }

    fn open(&self, content: Content) -> Writing<E::Writer> {
        let region = self.meta.region.as_ref();
        let range = region.and_then(|region| content.range(region));
        let (next, end) = range.expect("contents without a range do not wait");
        Writing {
            content,
            writer: None,
            next,
            end,
            bytes: 0,
            summed_bytes: 0,
            hasher: Hasher::new(),
        }
    }

    fn write(
        &mut self,
        mut writing: Writing<E::Writer>,
        budget_bytes: usize,
    ) -> Result<(), SnapshotError> {
        let files = self.making.manager.files();
        let name = temporary(self.making.number, writing.content);
        let (mut read, mut went_on, mut failed) = (0, None, None);
        let mut visit = |key: &[u8], value: &[u8]| {
            let put = match &mut writing.writer {
                Some(writer) => writer.put(key, value),
                none => E::table_writer(files, &name)
                    .and_then(|writer| none.insert(writer).put(key, value)),
            };
            if let Err(error) = put {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            read += key.len() + value.len();
            if read >= budget_bytes {
                // The first key that is above this one.
                went_on = Some([key, &[0]].concat());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let (cf, end) = (writing.content.cf(), writing.end.as_slice());
        self.view
            .scan_once(cf, &writing.next, Some(end), &mut visit)?;
        if let Some(error) = failed {
            return Err(error);
        }
        writing.bytes += read as u64;
        self.read_bytes += read as u64;
        self.making.set_bytes(self.finished_bytes + writing.bytes)?;
        if let Some(next) = went_on {
            self.sum(&mut writing, &name)?;
            writing.next = next;
            self.phase = Phase::Writing(writing);
        } else if let Some(writer) = writing.writer.take() {
            writer.finish()?;
            self.sum(&mut writing, &name)?;
            self.finished_bytes += writing.summed_bytes;
            self.meta.files.push(SnapshotFile {
                name: writing.content.name().to_owned(),
                length: writing.summed_bytes,
                crc32: writing.hasher.finalize(),
            });
            self.making.set_bytes(self.finished_bytes)?;
            self.phase = Phase::Idle;
        } else {
            self.phase = Phase::Idle;
        }
        Ok(())
    }

    /// Reads back what the writer has put into the file since the last time. A writer only
    /// appends, by writes of the system that give the file its new length last, so what is within
    /// the length is there and stays as it is, also while a thread writes on. (RocksDB promises
    /// that to nobody who reads along; its writer neither maps the file nor reserves room with
    /// length.)
    fn sum(&self, writing: &mut Writing<E::Writer>, name: &str) -> Result<(), SnapshotError> {
        let files = self.making.manager.files();
        let length = files.length(name)?.unwrap_or(0);
        let new = length.saturating_sub(writing.summed_bytes);
        files.sum(name, writing.summed_bytes, new, &mut writing.hasher)?;
        writing.summed_bytes += new;
        Ok(())
    }

    fn name_files(&mut self) -> Result<SnapshotRef<E::Files>, SnapshotError> {
        self.meta.id = snapshot_id(&self.meta);
        let key = SnapshotKey::new(Origin::Generated, &self.meta);
        let manager = &self.making.manager;
        // Made twice at the same index: the one that may be in use stays.
        if let Some(same) = manager.get(&key) {
            return Ok(same);
        }
        manager.check_free(&key)?;
        let files = manager.files();
        let table = |content| key.name(Role::Table(content), E::Files::ENDING);
        for (named, content) in contents(&self.meta).enumerate() {
            let temporary = temporary(self.making.number, content);
            if let Err(error) = files.rename(&temporary, &table(content)) {
                // Nobody knows of those that have their name: they would stay until the
                // next start, and count for nothing.
                for content in contents(&self.meta).take(named) {
                    let _ = files.remove(&table(content));
                }
                return Err(error);
            }
        }
        // From here on the bytes count as those of a complete snapshot.
        let counted = manager.complete(key, &Arc::new(self.meta.clone()));
        self.making.forget_bytes();
        Ok(counted)
    }
}

impl<E: SnapshotEngine> Drop for Generator<E> {
    fn drop(&mut self) {
        // The writer closes its file before that is removed.
        self.phase = Phase::Done;
        for content in Content::ALL {
            let name = temporary(self.making.number, content);
            // What cannot be removed now is removed at the next start.
            let _ = self.making.manager.files().remove(&name);
        }
    }
}
