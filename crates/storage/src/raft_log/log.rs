//! The log as several threads use it.
//!
//! Write  Under the lock: one record is written, and the index says where its values lie. So a
//!        read may see what is not synced yet, as it may with an unsynced write.
//! Sync   Outside the lock, one thread at a time, of everything that was written when it begins:
//!        a thread that comes meanwhile waits, and mostly finds its record synced by the next. The
//!        witness says so before the thread returns.
//! Read   Under the lock only the places are looked up, all of a range at once, so that a scan sees
//!        one state; values are read outside of it. A file is not used again while someone reads
//!        from it.
//!
//! The first failure is kept and refuses every later write (crash rule 9).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::files::{LogFile, LogFolder};
use super::index::{Held, Index, Item, Place};
use super::recovery::{RecoveryError, recover};
use super::state::{Reclaimed, State, WALK_BYTES};
use super::witness::Witness;
use crate::batch::WriteBatch;
use crate::engine::{Cf, Direction, Durability, EngineError, EngineKind, Visitor};

/// Most bytes that a scan reads at once, unless one value is larger.
const READ_BYTES_MAX: u64 = 256 << 10;
/// Bytes between two values that are read along with them.
const GAP_BYTES_MAX: u64 = 1 << 10;

/// Pieces that are reclaimed at once: 1 MiB is walked.
const RECLAIMED_PIECES: u64 = (1 << 20) / WALK_BYTES;

/// See the module.
pub(super) struct Log<D: LogFolder> {
    state: Mutex<State<D>>,
    folder: Arc<D>,
    /// Held by the thread that syncs.
    syncing: Mutex<Syncing<D::File>>,
    failure: Mutex<Option<String>>,
}

/// What the thread that syncs has.
struct Syncing<F> {
    /// A log that is only read has none.
    witness: Option<Witness<F>>,
    /// Last record for which the witness stands.
    witnessed: u64,
}

/// All of the log at one moment; its files are not used again while it is there.
pub(super) struct LogView<D: LogFolder> {
    index: Index,
    files: Vec<(u32, Arc<D::File>)>,
}

impl<D: LogFolder> Log<D> {
    /// Reads the log in `folder`. To write to it later (`write`), what is found is made durable.
    pub fn open(folder: D, file_bytes: u64, write: bool) -> Result<Self, RecoveryError> {
        let found = recover(&folder, write)?;
        let folder = Arc::new(folder);
        let mut state = State::new(folder.clone(), file_bytes, found);
        let witness = match write {
            true => Some(state.settle_first()?),
            false => None,
        };
        let syncing = Syncing {
            witness,
            witnessed: state.synced(),
        };
        Ok(Self {
            state: Mutex::new(state),
            folder,
            syncing: Mutex::new(syncing),
            failure: Mutex::new(None),
        })
    }

    /// As [`Engine::write`](crate::Engine::write).
    pub fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.check_writable()?;
        if let Some(change) = batch
            .changes()
            .iter()
            .find(|change| change.cf() != Cf::RaftLog)
        {
            return Err(foreign(change.cf()));
        }
        if batch.is_empty() {
            return match durability {
                Durability::Unsynced => Ok(()),
                Durability::Synced => self.make_durable(),
            };
        }
        let written = {
            let mut state = self.state.lock();
            // Another thread's write may have failed while this one waited.
            self.check_writable()?;
            state.write(batch).map_err(|error| self.fail(&error))?
        };
        match durability {
            Durability::Unsynced => Ok(()),
            Durability::Synced => self.sync_to(written),
        }
    }

    /// As [`Engine::make_durable`](crate::Engine::make_durable).
    pub fn make_durable(&self) -> Result<(), EngineError> {
        let last = self.state.lock().last_sequence();
        self.sync_to(last)
    }

    /// Returns when the record `wanted` and all before it are on disk, and the witness says so.
    pub(super) fn sync_to(&self, wanted: u64) -> Result<(), EngineError> {
        let mut syncing = self.syncing.lock();
        self.check_writable()?;
        if syncing.witnessed >= wanted {
            return Ok(());
        }
        let (unsynced, says) = {
            let mut state = self.state.lock();
            if state.synced() >= wanted {
                // By who began a life meanwhile, which leaves the witness as it was.
                (None, state.synced_says())
            } else {
                let newest = state.newest().map_err(|error| self.fail(&error))?;
                (newest, state.says())
            }
        };
        if let Some(newest) = unsynced {
            newest.sync().map_err(|error| self.fail(&error))?;
        }
        if let Some(witness) = &syncing.witness {
            witness.write(says).map_err(|error| self.fail(&error))?;
        }
        let mut state = self.state.lock();
        // A new life may have begun meanwhile, with a sync of the same file that failed.
        self.check_writable()?;
        state.on_synced(says.sequence);
        syncing.witnessed = says.sequence;
        Ok(())
    }

    /// As [`Engine::held_bytes`](crate::Engine::held_bytes).
    pub fn held_bytes(&self) -> u64 {
        self.state.lock().index.wanted_bytes()
    }

    /// As [`Engine::reclaim`](crate::Engine::reclaim): piece by piece, so that who writes does not
    /// wait for more than one.
    pub fn reclaim(&self) -> Result<bool, EngineError> {
        let (mut number, mut is_more, mut has_walked) = (None, true, false);
        for _ in 0..RECLAIMED_PIECES {
            let mut state = self.state.lock();
            self.check_writable()?;
            let piece = state.reclaim().map_err(|error| self.fail(&error))?;
            MutexGuard::unlock_fair(state);
            match piece {
                Reclaimed::Walked => {
                    has_walked = true;
                    continue;
                }
                Reclaimed::Nothing => is_more = false,
                Reclaimed::Spare(found) => number = Some(found),
            }
            break;
        }
        if has_walked {
            // Else the next writer's sync would have all of it to write.
            self.make_durable()?;
        }
        // Not under the lock, nor several at once: the disk may be busy with it for long.
        if let Some(number) = number {
            let removed = self.folder.remove(number);
            removed.map_err(|error| self.fail(&error))?;
        }
        Ok(is_more)
    }

    /// As [`ReadView::get`](crate::ReadView::get).
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        check_family(cf)?;
        let (place, file) = {
            let state = self.state.lock();
            match state.index.get(key) {
                None => return Ok(None),
                Some(Held::Record(value)) => return Ok(Some(value)),
                Some(Held::Entry(place)) => (place, state.file(place.file)),
            }
        };
        read_value(&*file, place).map(Some)
    }

    /// As [`ReadView::scan`](crate::ReadView::scan).
    pub fn scan(
        &self,
        cf: Cf,
        (start, end): (&[u8], Option<&[u8]>),
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        check_family(cf)?;
        let (items, files) = {
            let state = self.state.lock();
            let items = state.index.range(start, end);
            let mut numbers: Vec<u32> = items.iter().filter_map(file_of).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let files = numbers.iter().map(|number| (*number, state.file(*number)));
            (items, files.collect::<Vec<_>>())
        };
        visit_all(items, &files, direction, visit)
    }

    /// All of it as of now. Copies the index; nothing but tests and tools takes one.
    pub fn view(&self) -> LogView<D> {
        let state = self.state.lock();
        LogView {
            index: state.index.clone(),
            files: state.files(),
        }
    }

    /// Bytes of all files whose records count.
    #[cfg(test)]
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    fn check_writable(&self) -> Result<(), EngineError> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(first) => Err(EngineError::Poisoned {
                engine: EngineKind::Raft,
                first: first.clone(),
            }),
        }
    }

    /// Keeps the first failure.
    fn fail(&self, error: &io::Error) -> EngineError {
        let detail = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!("{error}; make room on this disk and start the node again")
            }
            _ => error.to_string(),
        };
        self.failure.lock().get_or_insert_with(|| detail.clone());
        EngineError::WriteFailed {
            engine: EngineKind::Raft,
            detail,
        }
    }
}

impl<D: LogFolder> LogView<D> {
    /// As [`ReadView::get`](crate::ReadView::get).
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        check_family(cf)?;
        match self.index.get(key) {
            None => Ok(None),
            Some(Held::Record(value)) => Ok(Some(value)),
            Some(Held::Entry(place)) => {
                read_value(file_in(&self.files, place.file), place).map(Some)
            }
        }
    }

    /// As [`ReadView::scan`](crate::ReadView::scan).
    pub fn scan(
        &self,
        cf: Cf,
        (start, end): (&[u8], Option<&[u8]>),
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), EngineError> {
        check_family(cf)?;
        visit_all(self.index.range(start, end), &self.files, direction, visit)
    }
}

fn file_of(item: &Item) -> Option<u32> {
    match &item.1 {
        Held::Entry(place) => Some(place.file),
        Held::Record(_) => None,
    }
}

fn file_in<F>(files: &[(u32, Arc<F>)], number: u32) -> &F {
    let found = files.iter().find(|(found, _)| *found == number);
    &found
        .unwrap_or_else(|| panic!("file {number} is in the index and not held"))
        .1
}

fn visit_all<F: LogFile>(
    mut items: Vec<Item>,
    files: &[(u32, Arc<F>)],
    direction: Direction,
    visit: Visitor<'_>,
) -> Result<(), EngineError> {
    if direction == Direction::Backward {
        items.reverse();
    }
    let mut piece = Piece::default();
    for at in 0..items.len() {
        let (key, held) = &items[at];
        let answer = match held {
            Held::Record(value) => key.with(|key| visit(key, value)),
            Held::Entry(place) => {
                let value = piece.value(*place, &items[at + 1..], files)?;
                key.with(|key| visit(key, value))
            }
        };
        if answer.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// A piece of a file with several values: entries of a log lie near each other.
#[derive(Default)]
struct Piece {
    file: Option<u32>,
    start: u64,
    bytes: Vec<u8>,
    /// Bytes that the next piece has at most: little is read for a scan that ends soon.
    limit: u64,
}

impl Piece {
    /// The value at `place`, read with as many of `following` as lie behind it.
    fn value<F: LogFile>(
        &mut self,
        place: Place,
        following: &[Item],
        files: &[(u32, Arc<F>)],
    ) -> Result<&[u8], EngineError> {
        let held = self.start..self.start + self.bytes.len() as u64;
        let value = place.offset..place.offset + u64::from(place.length);
        let is_held =
            self.file == Some(place.file) && held.start <= value.start && value.end <= held.end;
        if !is_held {
            self.limit = (4 * self.limit).clamp(16 << 10, READ_BYTES_MAX);
            let mut end = value.end;
            for (_, next) in following {
                let Held::Entry(next) = next else { break };
                let next_end = next.offset + u64::from(next.length);
                let is_near = next.file == place.file
                    && (end..=end + GAP_BYTES_MAX).contains(&next.offset)
                    && next_end - value.start <= self.limit;
                if !is_near {
                    break;
                }
                end = next_end;
            }
            self.bytes.resize((end - value.start) as usize, 0);
            // What is in it counts only once it was read.
            self.file = None;
            let file = file_in(files, place.file);
            file.read_at(value.start, &mut self.bytes)
                .map_err(|error| read_failed(&error))?;
            (self.file, self.start) = (Some(place.file), value.start);
        }
        let begin = (value.start - self.start) as usize;
        let bytes = &self.bytes[begin..begin + place.length as usize];
        check_value(bytes, place)?;
        Ok(bytes)
    }
}

fn read_value(file: &impl LogFile, place: Place) -> Result<Bytes, EngineError> {
    let mut value = vec![0; place.length as usize];
    file.read_at(place.offset, &mut value)
        .map_err(|error| read_failed(&error))?;
    check_value(&value, place)?;
    Ok(value.into())
}

fn check_value(value: &[u8], place: Place) -> Result<(), EngineError> {
    if crc32fast::hash(value) == place.checksum {
        return Ok(());
    }
    Err(EngineError::Corruption {
        engine: EngineKind::Raft,
        detail: format!(
            "{} bytes at offset {} of file {:06}.log are not what was written",
            place.length, place.offset, place.file
        ),
    })
}

fn read_failed(error: &io::Error) -> EngineError {
    EngineError::ReadFailed {
        engine: EngineKind::Raft,
        detail: error.to_string(),
    }
}

fn check_family(cf: Cf) -> Result<(), EngineError> {
    match cf {
        Cf::RaftLog => Ok(()),
        _ => Err(foreign(cf)),
    }
}

fn foreign(cf: Cf) -> EngineError {
    EngineError::ForeignColumnFamily {
        engine: EngineKind::Raft,
        cf,
    }
}
