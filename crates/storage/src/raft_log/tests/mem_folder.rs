//! A folder of the log's files in memory, which loses at a crash what was not synced.
//!
//! Clones are handles of the same folder: to open one again is what a process does that was
//! killed, as the system still has all that was written. [`MemFolder::crash`] makes another
//! folder of what a power cut left:
//!
//! * Of each file what was synced, and of the changes since, for each sector on its own, the first
//!   few: a sector is written whole, and sectors in any order.
//! * Its length is one that it had since the sync, or lies between two of them at the end of a
//!   sector.
//! * A file is there whole once `create` returned. A removed one may come back, until the folder was
//!   synced by the next `create`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::super::files::{LogFile, LogFolder};

const SECTOR_BYTES: usize = 512;
/// The witness, among the numbers of files.
pub const WITNESS: u32 = u32::MAX;

/// A failure to be played once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The next write fails.
    Write,
    /// The next write finds no room.
    NoRoom,
    /// The next sync fails.
    Sync,
    /// The next read fails.
    Read,
}

/// See the module.
#[derive(Clone, Default)]
pub struct MemFolder {
    shared: Arc<Shared>,
}

/// A file of it.
pub struct MemFile {
    shared: Arc<Shared>,
    content: Arc<Mutex<Content>>,
    is_witness: bool,
    sync_failed: AtomicBool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when something was counted or the gate was opened.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u32, Arc<Mutex<Content>>>,
    /// Removed since the folder was synced.
    removed: BTreeMap<u32, Arc<Mutex<Content>>>,
    faults: BTreeSet<Fault>,
    /// Changes that still succeed; all after them fail.
    left: Option<usize>,
    counts: Counts,
    /// Syncs wait while this is set.
    is_gate_shut: bool,
    /// As it is told; no limit unless set, and none that is kept.
    free_bytes: Option<u64>,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changes that can be stopped: writes, syncs, cuts, files made and removed.
    pub changes: usize,
    /// Writes, without those of the witness, as all below.
    pub writes: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Syncs that began.
    pub syncs: usize,
    /// Files made.
    pub created: usize,
    /// Files made, and writes to the begin of a file: each is a new life.
    pub lives: usize,
}

#[derive(Clone, Default)]
struct Content {
    data: Vec<u8>,
    /// As it was at the last sync.
    synced: Vec<u8>,
    /// What was done since.
    since: Vec<Change>,
    /// Number of changes before these.
    before: usize,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl Content {
    /// Of bytes that are on disk.
    fn of(data: Vec<u8>) -> Self {
        Self {
            synced: data.clone(),
            data,
            since: Vec::new(),
            before: 0,
        }
    }

    /// Takes out the changes before the one with this number. Another sync may have begun later
    /// and ended before: then there are none.
    fn take_since(&mut self, until: usize) -> Vec<Change> {
        let done = until.saturating_sub(self.before);
        self.before += done;
        self.since.drain(..done).collect()
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        put(&mut self.data, at, data);
        self.since.push(Change::Write(at, data.to_vec()));
    }

    /// What a power cut leaves.
    fn crash(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let count = self.since.len();
        // Besides any mixture: all of it, nothing, and a prefix, as mixtures seldom are.
        let any = match rng.random_range(0..6) {
            0 => Some(0),
            1 => Some(count),
            2 => Some(rng.random_range(0..=count)),
            _ => None,
        };
        let reached = |rng: &mut ChaCha8Rng| any.unwrap_or_else(|| rng.random_range(0..=count));
        let lengths = reached(rng);
        let mut sectors: BTreeMap<usize, usize> = BTreeMap::new();
        let mut left = self.synced.clone();
        let mut length = self.synced.len();
        let mut next_length = length;
        for (place, change) in self.since.iter().enumerate() {
            match change {
                Change::Write(at, data) => {
                    for (at, piece) in in_sectors(*at, data) {
                        let of_sector = sectors.entry(at / SECTOR_BYTES);
                        if place < *of_sector.or_insert_with(|| reached(rng)) {
                            put(&mut left, at, piece);
                        }
                    }
                    next_length = next_length.max(at + data.len());
                }
                Change::Cut(to) => {
                    next_length = next_length.min(*to);
                    if place < lengths {
                        left.truncate(*to);
                    }
                }
            }
            if place < lengths {
                length = next_length;
            }
        }
        if any.is_none() && length < next_length && rng.random_bool(0.5) {
            let further = rng.random_range(length..next_length);
            length = length.max(further / SECTOR_BYTES * SECTOR_BYTES);
        }
        left.resize(length, 0);
        left
    }
}

fn put(into: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[at..end].copy_from_slice(data);
}

/// The pieces of what is written at `at`, none of which spans two sectors.
fn in_sectors(at: usize, data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = at + done;
        let room = SECTOR_BYTES - from % SECTOR_BYTES;
        let piece = &data[done..(done + room).min(data.len())];
        done += piece.len();
        (!piece.is_empty()).then_some((from, piece))
    })
}

impl MemFolder {
    /// A folder of files whose bytes are on disk.
    fn of(files: BTreeMap<u32, Vec<u8>>) -> Self {
        let folder = Self::default();
        for (number, bytes) in files {
            folder.replace(number, bytes);
        }
        folder
    }

    /// A power cut: what the next process finds. This folder stays as it is.
    pub fn crash(&self, rng: &mut ChaCha8Rng) -> Self {
        let state = self.shared.state.lock();
        let mut files = BTreeMap::new();
        for (number, content) in &state.removed {
            if rng.random_bool(0.5) {
                files.insert(*number, content.lock().crash(rng));
            }
        }
        for (number, content) in &state.files {
            files.insert(*number, content.lock().crash(rng));
        }
        Self::of(files)
    }

    /// A copy whose bytes are all on disk.
    pub fn copy(&self) -> Self {
        let numbers: Vec<u32> = self.shared.state.lock().files.keys().copied().collect();
        let numbers = numbers.into_iter();
        Self::of(numbers.map(|number| (number, self.bytes(number))).collect())
    }

    /// Numbers of all files, ascending, without the witness.
    pub fn numbers(&self) -> Vec<u32> {
        let state = self.shared.state.lock();
        let numbers = state.files.keys().copied();
        numbers.filter(|number| *number != WITNESS).collect()
    }

    /// The bytes of a file.
    pub fn bytes(&self, number: u32) -> Vec<u8> {
        self.shared.state.lock().files[&number].lock().data.clone()
    }

    /// Puts a file there, or others bytes into one, as they are on disk.
    pub fn replace(&self, number: u32, bytes: Vec<u8>) {
        let content = Arc::new(Mutex::new(Content::of(bytes)));
        self.shared.state.lock().files.insert(number, content);
    }

    /// Takes a file away, as someone would by mistake.
    pub fn lose(&self, number: u32) {
        let lost = self.shared.state.lock().files.remove(&number);
        assert!(lost.is_some(), "file {number} is lost and was not there");
    }

    /// Flips one bit, as a disk may do by itself.
    pub fn flip_bit(&self, number: u32, bit: usize) {
        let mut bytes = self.bytes(number);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.replace(number, bytes);
    }

    /// Flips bits of a byte, so that those see it who have the file open.
    pub fn damage_in_use(&self, number: u32, byte: usize) {
        let state = self.shared.state.lock();
        state.files[&number].lock().data[byte] ^= 0x55;
    }

    /// Plays `fault` once, at the next operation that it fits.
    pub fn fail_next(&self, fault: Fault) {
        self.shared.state.lock().faults.insert(fault);
    }

    /// Lets `changes` more succeed; all after them fail, as if the node had stopped.
    pub fn stop_after(&self, changes: usize) {
        self.shared.state.lock().left = Some(changes);
    }

    /// Lets changes succeed again: another process has begun.
    pub fn go_on(&self) {
        self.shared.state.lock().left = None;
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.shared.state.lock().counts
    }

    /// Tells of so many free bytes from now on.
    pub fn tell_free_bytes(&self, bytes: u64) {
        self.shared.state.lock().free_bytes = Some(bytes);
    }

    /// Lets syncs wait from now on.
    pub fn shut_gate(&self) {
        self.shared.state.lock().is_gate_shut = true;
    }

    /// Lets syncs pass.
    pub fn open_gate(&self) {
        self.shared.state.lock().is_gate_shut = false;
        self.shared.changed.notify_all();
    }

    /// Waits until what was done fulfils `condition`.
    pub fn wait_until(&self, condition: impl Fn(&Counts) -> bool) {
        let mut state = self.shared.state.lock();
        while !condition(&state.counts) {
            self.shared.changed.wait(&mut state);
        }
    }

    fn handle(&self, content: Arc<Mutex<Content>>, is_witness: bool) -> MemFile {
        MemFile {
            shared: self.shared.clone(),
            content,
            is_witness,
            sync_failed: AtomicBool::new(false),
        }
    }
}

impl State {
    fn plays(&mut self, fault: Fault) -> io::Result<()> {
        match self.faults.remove(&fault) {
            false => Ok(()),
            true if fault == Fault::NoRoom => Err(io::ErrorKind::StorageFull.into()),
            true => Err(io::Error::other("injected failure")),
        }
    }
}

impl Shared {
    /// Counts a change, and fails where the node has stopped.
    fn change(&self, count: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        match &mut state.left {
            Some(0) => return Err(io::Error::other("the node has stopped")),
            Some(left) => *left -= 1,
            None => {}
        }
        state.counts.changes += 1;
        let counted = count(&mut state);
        self.changed.notify_all();
        counted
    }
}

impl LogFolder for MemFolder {
    type File = MemFile;

    fn list(&self) -> io::Result<Vec<u32>> {
        Ok(self.numbers())
    }

    fn open(&self, number: u32, _write: bool) -> io::Result<MemFile> {
        let found = self.shared.state.lock().files.get(&number).cloned();
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(found, number == WITNESS))
    }

    fn create(&self, number: u32, bytes: &[u8]) -> io::Result<MemFile> {
        let content = Arc::new(Mutex::new(Content::of(bytes.to_vec())));
        self.shared.change(|state| {
            if state.files.contains_key(&number) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.counts.created += 1;
            state.counts.lives += 1;
            state.removed.clear();
            state.files.insert(number, content.clone());
            Ok(())
        })?;
        Ok(self.handle(content, false))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        self.shared.change(|state| {
            let removed = state.files.remove(&number);
            let removed = removed.ok_or(io::ErrorKind::NotFound)?;
            state.removed.insert(number, removed);
            Ok(())
        })
    }

    fn open_witness(&self, write: bool) -> io::Result<Option<MemFile>> {
        match self.open(WITNESS, write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    fn create_witness(&self, bytes: &[u8]) -> io::Result<MemFile> {
        let content = Arc::new(Mutex::new(Content::of(bytes.to_vec())));
        self.shared.change(|state| {
            state.files.insert(WITNESS, content.clone());
            Ok(())
        })?;
        Ok(self.handle(content, true))
    }

    fn free_bytes(&self) -> u64 {
        self.shared.state.lock().free_bytes.unwrap_or(u64::MAX)
    }

    fn path(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("memory/{number:06}.log"))
    }

    fn witness_path(&self) -> PathBuf {
        self.path(WITNESS)
    }

    fn random_number(&self) -> u64 {
        // Of all folders, as a crash makes another one.
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl LogFile for MemFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.plays(Fault::Read)?;
        state.counts.bytes_read += into.len() as u64;
        drop(state);
        let content = self.content.lock();
        let from = usize::try_from(offset).unwrap();
        // As the system has it: to read nothing is possible everywhere.
        if into.is_empty() {
            return Ok(());
        }
        let found = content.data.get(from..from + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.shared.change(|state| {
            state.plays(Fault::Write)?;
            state.plays(Fault::NoRoom)?;
            let at = usize::try_from(offset).unwrap();
            self.content.lock().write(at, data);
            if !self.is_witness {
                state.counts.writes += 1;
                state.counts.lives += usize::from(offset == 0);
                state.counts.bytes += data.len() as u64;
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        // Only what was written when it begins is promised, so no more is kept.
        let until = {
            let content = self.content.lock();
            content.before + content.since.len()
        };
        let synced = self.shared.change(|state| {
            state.plays(Fault::Sync)?;
            state.counts.syncs += 1;
            Ok(())
        });
        if let Err(error) = synced {
            self.sync_failed.store(true, Ordering::SeqCst);
            // It stays in memory, counts as written, and is not on disk.
            self.content.lock().take_since(until);
            return Err(error);
        }
        let mut state = self.shared.state.lock();
        while state.is_gate_shut {
            self.shared.changed.wait(&mut state);
        }
        drop(state);
        let mut content = self.content.lock();
        for change in content.take_since(until) {
            match change {
                Change::Write(at, data) => put(&mut content.synced, at, &data),
                Change::Cut(length) => content.synced.truncate(length),
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().data.len() as u64)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.shared.change(|_| {
            let mut content = self.content.lock();
            let length = usize::try_from(length).unwrap();
            content.data.truncate(length);
            content.since.push(Change::Cut(length));
            Ok(())
        })
    }
}
