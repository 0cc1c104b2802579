//! Snapshot files in memory, for the simulator and for tests.
//!
//! Names and contents are kept apart, as on a disk: a name leads to a file by number.
//! Changes of names are listed until the folder is synced; of a file the synced length
//! is remembered. A crash keeps any of the listed changes, as a disk may write them in any
//! order, and of each file the synced bytes and a random part of the rest, which may have
//! turned to zeros.
//! Handles of before the crash answer `Crashed` from then on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use strata_proto::stratapb::SnapshotForm;

use super::error::SnapshotError;
use super::files::FileStore;

/// A failure of files to be played once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileFault {
    /// The next append finds no room.
    DiskFull,
    /// The next sync of a file or of the folder fails.
    Sync,
    /// The next read fails.
    Read,
    /// The next rename fails.
    Rename,
}

/// A folder of snapshot files in memory. Clones are handles of the same folder.
#[derive(Clone, Default)]
pub struct MemFiles {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, MemFile>,
    names: Names,
    durable_names: Names,
    /// Changes of names that the folder's sync will make durable.
    unsynced: Vec<Rename>,
    next: u64,
    faults: std::collections::BTreeSet<FileFault>,
    /// Operations until the node crashes by itself.
    stop_after: Option<usize>,
    crashed: bool,
}

type Names = BTreeMap<String, u64>;

#[derive(Clone, Default)]
struct MemFile {
    data: Vec<u8>,
    /// Bytes that a power cut leaves. Invariant: at most the length of `data`.
    synced: usize,
}

/// A name that goes, and a name that then leads to a file.
#[derive(Clone)]
struct Rename {
    gone: Option<String>,
    made: Option<(String, u64)>,
}

impl Rename {
    fn act(&self, names: &mut Names) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, file)) = &self.made {
            names.insert(name.clone(), *file);
        }
    }
}

impl State {
    fn change_names(&mut self, gone: Option<String>, made: Option<(String, u64)>) {
        let change = Rename { gone, made };
        change.act(&mut self.names);
        self.unsynced.push(change);
    }

    /// Forgets files without a name.
    fn sweep(&mut self) {
        let State {
            files,
            names,
            durable_names,
            unsynced,
            ..
        } = self;
        let listed = |number| {
            let made = |change: &Rename| change.made.as_ref().is_some_and(|(_, n)| *n == number);
            unsynced.iter().any(made)
        };
        files.retain(|number, _| {
            names.values().any(|n| n == number)
                || durable_names.values().any(|n| n == number)
                || listed(*number)
        });
    }

    fn plays(&mut self, fault: FileFault) -> bool {
        self.faults.remove(&fault)
    }

    fn file(&mut self, name: &str) -> Result<&mut MemFile, SnapshotError> {
        let absent = SnapshotError::File {
            path: name.to_owned(),
            action: "open",
            detail: "no such file".to_owned(),
        };
        let number = *self.names.get(name).ok_or_else(|| absent.clone())?;
        self.files.get_mut(&number).ok_or(absent)
    }
}

impl MemFiles {
    /// An empty folder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plays `fault` once, at the next operation that it fits.
    pub fn fail_next(&self, fault: FileFault) {
        self.state.lock().faults.insert(fault);
    }

    /// Takes back the faults that were not played yet.
    pub fn forget_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Lets `operations` more succeed; all after them answer `Crashed`, as if the node had
    /// stopped between the two. Then [`MemFiles::crash`] tells what is left.
    pub fn stop_after(&self, operations: usize) {
        self.state.lock().stop_after = Some(operations);
    }

    /// Flips one bit of a file, as a disk may do by itself.
    ///
    /// # Panics
    /// If there is no such file or bit.
    pub fn flip_bit(&self, name: &str, bit: u64) {
        let mut state = self.state.lock();
        let file = state.file(name).expect("a bit is flipped in a file");
        file.data[(bit / 8) as usize] ^= 1 << (bit % 8);
    }

    /// A power cut; returns what the next life finds.
    #[must_use]
    pub fn crash(&self, rng: &mut impl Rng) -> Self {
        let mut state = self.take();
        for change in std::mem::take(&mut state.unsynced) {
            if rng.random_bool(0.5) {
                change.act(&mut state.durable_names);
            }
        }
        for file in state.files.values_mut() {
            let length = rng.random_range(file.synced..=file.data.len());
            file.data.truncate(length);
            if rng.random_bool(0.5) {
                file.data[file.synced..].fill(0);
            }
        }
        state.names = state.durable_names.clone();
        Self::reborn(state)
    }

    /// A power cut that keeps nothing but what was synced.
    #[must_use]
    pub fn crash_hard(&self) -> Self {
        let mut state = self.take();
        for file in state.files.values_mut() {
            file.data.truncate(file.synced);
        }
        state.names = state.durable_names.clone();
        Self::reborn(state)
    }

    /// A process that was killed: the operating system still writes everything.
    #[must_use]
    pub fn kill(&self) -> Self {
        Self::reborn(self.take())
    }

    fn take(&self) -> State {
        let mut state = self.state.lock();
        let old = std::mem::take(&mut *state);
        state.crashed = true;
        old
    }

    /// What was found at a start is on the disk for good.
    fn reborn(mut state: State) -> Self {
        state.unsynced.clear();
        state.faults.clear();
        (state.stop_after, state.crashed) = (None, false);
        state.durable_names = state.names.clone();
        for file in state.files.values_mut() {
            file.synced = file.data.len();
        }
        state.sweep();
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn live<T>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let mut state = self.state.lock();
        match &mut state.stop_after {
            Some(0) => state.crashed = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if state.crashed {
            return Err(SnapshotError::Crashed);
        }
        act(&mut state)
    }
}

fn injected(name: &str, action: &'static str) -> SnapshotError {
    SnapshotError::File {
        path: name.to_owned(),
        action,
        detail: "injected failure".to_owned(),
    }
}

fn sync_injected(path: &str) -> SnapshotError {
    SnapshotError::SyncFailed {
        path: path.to_owned(),
        detail: "injected failure".to_owned(),
    }
}

impl FileStore for MemFiles {
    const FORM: SnapshotForm = SnapshotForm::Memory;
    const ENDING: &'static str = ".mem";

    fn create(&self, name: &str) -> Result<(), SnapshotError> {
        self.live(|state| {
            let number = state.next;
            state.next += 1;
            state.files.insert(number, MemFile::default());
            state.change_names(None, Some((name.to_owned(), number)));
            Ok(())
        })
    }

    fn append(&self, name: &str, offset: u64, data: &[u8]) -> Result<(), SnapshotError> {
        self.live(|state| {
            let full = state.plays(FileFault::DiskFull);
            let file = state.file(name)?;
            if file.data.len() as u64 != offset {
                return Err(SnapshotError::FileLength {
                    path: name.to_owned(),
                    found: file.data.len() as u64,
                    expected: offset,
                });
            }
            if full {
                return Err(SnapshotError::DiskFull {
                    path: name.to_owned(),
                    detail: "injected failure".to_owned(),
                });
            }
            file.data.extend_from_slice(data);
            Ok(())
        })
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), SnapshotError> {
        self.live(|state| {
            let file = state.file(name)?;
            file.data
                .truncate(usize::try_from(length).unwrap_or(usize::MAX));
            file.synced = file.synced.min(file.data.len());
            Ok(())
        })
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, SnapshotError> {
        self.live(|state| {
            if state.plays(FileFault::Read) {
                return Err(injected(name, "read"));
            }
            let data = &state.file(name)?.data;
            let short = SnapshotError::FileLength {
                path: name.to_owned(),
                found: data.len() as u64,
                expected: offset.saturating_add(length as u64),
            };
            let start = usize::try_from(offset).map_err(|_| short.clone())?;
            let end = start.checked_add(length).ok_or_else(|| short.clone())?;
            let found = data.get(start..end).ok_or(short)?;
            Ok(Bytes::copy_from_slice(found))
        })
    }

    fn length(&self, name: &str) -> Result<Option<u64>, SnapshotError> {
        self.live(|state| {
            let number = state.names.get(name);
            let file = number.and_then(|number| state.files.get(number));
            Ok(file.map(|file| file.data.len() as u64))
        })
    }

    fn sync(&self, name: &str) -> Result<(), SnapshotError> {
        self.live(|state| {
            if state.plays(FileFault::Sync) {
                return Err(sync_injected(name));
            }
            let file = state.file(name)?;
            file.synced = file.data.len();
            Ok(())
        })
    }

    fn sync_folder(&self) -> Result<(), SnapshotError> {
        self.live(|state| {
            if state.plays(FileFault::Sync) {
                return Err(sync_injected("folder"));
            }
            state.durable_names = state.names.clone();
            state.unsynced.clear();
            state.sweep();
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), SnapshotError> {
        self.live(|state| {
            if state.plays(FileFault::Rename) {
                return Err(injected(from, "rename"));
            }
            state.file(from)?;
            let number = state.names[from];
            state.change_names(Some(from.to_owned()), Some((to.to_owned(), number)));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        self.live(|state| {
            if state.names.contains_key(name) {
                state.change_names(Some(name.to_owned()), None);
            }
            Ok(())
        })
    }

    fn list(&self) -> Result<Vec<(String, u64)>, SnapshotError> {
        self.live(|state| {
            let length = |number| {
                let file: Option<&MemFile> = state.files.get(number);
                file.map_or(0, |file| file.data.len() as u64)
            };
            let named = state.names.iter();
            Ok(named.map(|(name, n)| (name.clone(), length(n))).collect())
        })
    }

    fn display(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

impl std::fmt::Debug for MemFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        write!(f, "MemFiles({} names)", state.names.len())
    }
}
