//! Knows all snapshot files of a node: who uses them, how much they take, what is stale.
//!
//! Open      What a crash left is sorted out ([`scan`](super::scan)): snapshots that were
//!           made here go, as nobody sends them any more; received ones stay, complete or
//!           not.
//! Use       A [`SnapshotRef`] keeps the files of one snapshot; senders and installers
//!           hold one each.
//! Collect   The caller says what it still wants ([`SnapshotManager::retain`]); what is in
//!           use stays all the same.
//!
//! Invariants
//! * Files in use are not removed, and a snapshot being received has one receiver.
//! * What is complete, being received (with its full length) and being made takes at
//!   most `bytes_max` bytes together, when something new is begun.
//!
//! The manager is a handle; its state is behind one lock that is never held during a
//! read or write of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use strata_proto::stratapb::SnapshotMeta;

use super::error::SnapshotError;
use super::files::{FileStamp, FileStore};
use super::meta::{check, contents, total_bytes};
use super::name::{Origin, Role, SnapshotKey};
use super::receive::{Offered, Receiver};
use super::reference::SnapshotRef;
use super::scan;

/// The snapshot files of one node. Clones are handles of the same manager.
pub struct SnapshotManager<F: FileStore> {
    shared: Arc<Shared<F>>,
}

struct Shared<F> {
    files: F,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    complete: BTreeMap<SnapshotKey, Complete>,
    /// By region: one snapshot of each is received at a time.
    partial: BTreeMap<u64, Partial>,
    /// Bytes written so far of snapshots being made, by the number of the generation.
    making: BTreeMap<u64, u64>,
    /// Number of the next generation.
    next: u64,
    /// Snapshots whose files are being removed: none of that name is begun until they are
    /// gone, for the removal would take the new one's files along.
    removing: BTreeSet<SnapshotKey>,
}

struct Complete {
    meta: Arc<SnapshotMeta>,
    /// References that are held.
    uses: usize,
    /// Its files were found damaged: nobody begins to use it any more.
    condemned: bool,
    /// What the system said of its files when they had been read back, in their order; empty
    /// if this process has not read them.
    read_back: Vec<Option<FileStamp>>,
}

struct Partial {
    key: SnapshotKey,
    meta: Arc<SnapshotMeta>,
    /// Whether a receiver holds it.
    active: bool,
}

/// One snapshot, as [`SnapshotManager::list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name on this node.
    pub key: SnapshotKey,
    /// Bytes of all its files, once complete.
    pub bytes: u64,
    /// Who holds it: senders, installers, a receiver.
    pub uses: usize,
    /// False while it is being received.
    pub complete: bool,
}

/// A snapshot that was forgotten and whose files are to be removed.
type Gone = (SnapshotKey, Arc<SnapshotMeta>);

/// Files are being removed until this is dropped.
struct Removal<'a> {
    state: &'a Mutex<State>,
    key: SnapshotKey,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.state.lock().removing.remove(&self.key);
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        let complete = self.complete.values().map(|c| total_bytes(&c.meta));
        let partial = self.partial.values().map(|p| total_bytes(&p.meta));
        let making = self.making.values().copied();
        complete.chain(partial).chain(making).sum()
    }

    /// Forgets what is being received of a region, if `when` holds. The files are the
    /// caller's to remove.
    fn take_partial(&mut self, region_id: u64, when: impl Fn(&Partial) -> bool) -> Option<Gone> {
        self.partial
            .get(&region_id)
            .filter(|partial| when(partial))?;
        let gone = self.partial.remove(&region_id)?;
        self.removing.insert(gone.key);
        Some((gone.key, gone.meta))
    }

    /// Forgets a complete snapshot that is not in use. The files are the caller's to
    /// remove.
    fn take_complete(&mut self, key: SnapshotKey) -> Option<Gone> {
        self.complete.get(&key).filter(|found| found.uses == 0)?;
        let gone = self.complete.remove(&key)?;
        self.removing.insert(key);
        Some((key, gone.meta))
    }

    fn check_room(&self, wanted: u64, bytes_max: u64) -> Result<(), SnapshotError> {
        let used = self.used_bytes();
        if used.saturating_add(wanted) <= bytes_max {
            return Ok(());
        }
        Err(SnapshotError::TooMuch {
            used,
            wanted,
            bytes_max,
        })
    }
}

impl<F: FileStore> SnapshotManager<F> {
    /// Takes over a folder as the last run left it. `bytes_max` bounds the files of all
    /// snapshots together.
    ///
    /// # Errors
    /// `File`, `SyncFailed`.
    pub fn open(files: F, bytes_max: u64) -> Result<Self, SnapshotError> {
        let found = scan::scan(&files)?;
        let mut state = State::default();
        for (key, meta) in found.complete {
            let meta = Arc::new(meta);
            let complete = Complete {
                meta,
                uses: 0,
                condemned: false,
                read_back: Vec::new(),
            };
            state.complete.insert(key, complete);
        }
        for (key, meta) in found.partial {
            let partial = Partial {
                key,
                meta: Arc::new(meta),
                active: false,
            };
            state.partial.insert(key.region_id, partial);
        }
        Ok(Self {
            shared: Arc::new(Shared {
                files,
                bytes_max,
                state: Mutex::new(state),
            }),
        })
    }

    /// Answers an offer. The description is checked; parts of another snapshot of the
    /// region are discarded (crash rule 11).
    ///
    /// # Errors
    /// `BadMeta`; `Busy` if the region has a receiver, whose parts stay, or if files of
    /// that name are being removed; `TooMuch`; errors of the files.
    pub fn receive(&self, meta: &SnapshotMeta) -> Result<Offered<F>, SnapshotError> {
        check(meta, F::FORM)?;
        let key = SnapshotKey::new(Origin::Received, meta);
        let region_id = key.region_id;
        let mut state = self.shared.state.lock();
        if let Some(complete) = self.refer(&mut state, &key) {
            return Ok(Offered::Complete(complete));
        }
        let taken = state.partial.get(&region_id);
        if taken.is_some_and(|partial| partial.active) || state.removing.contains(&key) {
            return Err(SnapshotError::Busy { region_id });
        }
        let other = state.take_partial(region_id, |partial| partial.key != key);
        #[cfg(feature = "planted-faults")]
        super::foreign_parts::adopt(&self.shared.files, other.as_ref(), key, meta)?;
        let room = if state.partial.contains_key(&region_id) {
            // Its bytes count already.
            Ok(())
        } else {
            state.check_room(total_bytes(meta), self.shared.bytes_max)
        };
        if room.is_ok() {
            let partial = Partial {
                key,
                meta: Arc::new(meta.clone()),
                active: true,
            };
            state.partial.insert(region_id, partial);
        }
        drop(state);
        // Dropping it lets the region go, if anything below fails.
        let claim = room.map(|()| PartialClaim {
            manager: self.clone(),
            key,
        });
        self.remove_files(other)?;
        Receiver::open(claim?, Arc::new(meta.clone())).map(Offered::Receive)
    }

    /// A reference to a complete snapshot; `None` if there is none.
    #[must_use]
    pub fn get(&self, key: &SnapshotKey) -> Option<SnapshotRef<F>> {
        self.refer(&mut self.shared.state.lock(), key)
    }

    fn refer(&self, state: &mut State, key: &SnapshotKey) -> Option<SnapshotRef<F>> {
        let complete = state.complete.get_mut(key)?;
        if complete.condemned {
            return None;
        }
        complete.uses += 1;
        Some(SnapshotRef::new(self.clone(), *key, complete.meta.clone()))
    }

    /// A reference to the snapshot of this description that was made here; `None` if it is
    /// gone, or is another one.
    #[must_use]
    pub fn find_generated(&self, meta: &SnapshotMeta) -> Option<SnapshotRef<F>> {
        check(meta, F::FORM).ok()?;
        self.get(&SnapshotKey::new(Origin::Generated, meta))
    }

    /// A reference to the snapshot of this description that was received here whole; `None`
    /// if it was not, or is gone.
    #[must_use]
    pub fn find_received_of(&self, meta: &SnapshotMeta) -> Option<SnapshotRef<F>> {
        check(meta, F::FORM).ok()?;
        self.get(&SnapshotKey::new(Origin::Received, meta))
    }

    /// The received snapshot that an interrupted install is repeated from.
    ///
    /// # Errors
    /// `FilesMissing` if there is none at this position, which is fatal.
    pub fn find_received(
        &self,
        region_id: u64,
        index: u64,
        term: u64,
    ) -> Result<SnapshotRef<F>, SnapshotError> {
        let wanted = |key: &&SnapshotKey| {
            key.origin == Origin::Received
                && (key.region_id, key.index, key.term) == (region_id, index, term)
        };
        let found = self
            .shared
            .state
            .lock()
            .complete
            .keys()
            .find(wanted)
            .copied();
        let missing = SnapshotError::FilesMissing {
            region_id,
            index,
            term,
        };
        found.and_then(|key| self.get(&key)).ok_or(missing)
    }

    /// A complete snapshot was found damaged: it is given to nobody any more, until it is
    /// made or received anew. Its files go when nobody wants it.
    pub fn condemn(&self, key: &SnapshotKey) {
        if let Some(complete) = self.shared.state.lock().complete.get_mut(key) {
            complete.condemned = true;
        }
    }

    /// All snapshots, complete ones first, in the order of their keys.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        let state = self.shared.state.lock();
        let complete = state.complete.iter().map(|(key, complete)| SnapshotInfo {
            key: *key,
            bytes: total_bytes(&complete.meta),
            uses: complete.uses,
            complete: true,
        });
        let partial = state.partial.values().map(|partial| SnapshotInfo {
            key: partial.key,
            bytes: total_bytes(&partial.meta),
            uses: usize::from(partial.active),
            complete: false,
        });
        complete.chain(partial).collect()
    }

    /// Bytes that count against the limit now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.state.lock().used_bytes()
    }

    /// Removes every snapshot that `keep` refuses and that is not in use; returns what
    /// was removed. A snapshot from which a region in Applying is installed must be
    /// kept until its Normal is synced (crash rule 3).
    ///
    /// # Errors
    /// Errors of the files; what could not be removed goes at the next start.
    pub fn retain(
        &self,
        mut keep: impl FnMut(&SnapshotInfo) -> bool,
    ) -> Result<Vec<SnapshotKey>, SnapshotError> {
        let mut removed = Vec::new();
        for info in self.list() {
            if info.uses == 0 && !keep(&info) && self.remove(&info)? {
                removed.push(info.key);
            }
        }
        Ok(removed)
    }

    fn remove(&self, info: &SnapshotInfo) -> Result<bool, SnapshotError> {
        let key = info.key;
        let gone = {
            let mut state = self.shared.state.lock();
            if info.complete {
                state.take_complete(key)
            } else {
                let idle = |partial: &Partial| partial.key == key && !partial.active;
                state.take_partial(key.region_id, idle)
            }
        };
        let removed = gone.is_some();
        self.remove_files(gone)?;
        Ok(removed)
    }

    /// Removes all files that a snapshot may have; its descriptions first, so that a
    /// crash in between leaves what the next start clears away.
    fn remove_files(&self, gone: Option<Gone>) -> Result<(), SnapshotError> {
        let Some((key, meta)) = gone else {
            return Ok(());
        };
        let _done = Removal {
            state: &self.shared.state,
            key,
        };
        let files = &self.shared.files;
        for role in [Role::Meta, Role::Offer, Role::Progress] {
            files.remove(&key.name(role, F::ENDING))?;
        }
        for content in contents(&meta) {
            for role in [Role::Part(content), Role::Table(content)] {
                files.remove(&key.name(role, F::ENDING))?;
            }
        }
        Ok(())
    }

    pub(super) fn files(&self) -> &F {
        &self.shared.files
    }

    /// Registers a complete snapshot that was made here, and refers to it. One that is
    /// there already stays.
    pub(super) fn complete(&self, key: SnapshotKey, meta: &Arc<SnapshotMeta>) -> SnapshotRef<F> {
        let mut state = self.shared.state.lock();
        if key.origin == Origin::Received {
            state.partial.remove(&key.region_id);
        }
        let complete = state.complete.entry(key).or_insert_with(|| Complete {
            meta: meta.clone(),
            uses: 0,
            condemned: false,
            read_back: Vec::new(),
        });
        complete.uses += 1;
        complete.condemned = false;
        SnapshotRef::new(self.clone(), key, complete.meta.clone())
    }

    /// The files of a complete snapshot were read back and hold what its description says;
    /// `stamps` are what the system said of them then.
    pub(super) fn note_read_back(&self, key: &SnapshotKey, stamps: Vec<Option<FileStamp>>) {
        if let Some(complete) = self.shared.state.lock().complete.get_mut(key) {
            complete.read_back = stamps;
        }
    }

    /// What was noted of file number `file` when it was read back; `None` if nothing was.
    pub(super) fn stamp_of(&self, key: &SnapshotKey, file: u32) -> Option<FileStamp> {
        let state = self.shared.state.lock();
        let stamps = &state.complete.get(key)?.read_back;
        stamps.get(file as usize).copied().flatten()
    }

    /// Refuses to name files that are being removed under the same name.
    pub(super) fn check_free(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        if self.shared.state.lock().removing.contains(key) {
            return Err(SnapshotError::Busy {
                region_id: key.region_id,
            });
        }
        Ok(())
    }

    pub(super) fn share(&self, key: &SnapshotKey) {
        let mut state = self.shared.state.lock();
        let complete = state.complete.get_mut(key);
        complete.expect("a snapshot in use is known").uses += 1;
    }

    pub(super) fn release(&self, key: &SnapshotKey) {
        let mut state = self.shared.state.lock();
        let complete = state.complete.get_mut(key);
        complete.expect("a snapshot in use is known").uses -= 1;
    }

    pub(super) fn begin_making(&self) -> Making<F> {
        let mut state = self.shared.state.lock();
        let number = state.next;
        state.next += 1;
        state.making.insert(number, 0);
        Making {
            manager: self.clone(),
            number,
        }
    }
}

/// A snapshot that is being made: its bytes count until this is dropped.
pub(super) struct Making<F: FileStore> {
    pub(super) manager: SnapshotManager<F>,
    /// Names its temporary files.
    pub(super) number: u64,
}

impl<F: FileStore> Making<F> {
    /// Sets the bytes written so far.
    pub(super) fn set_bytes(&self, bytes: u64) -> Result<(), SnapshotError> {
        let mut state = self.manager.shared.state.lock();
        state.making.insert(self.number, bytes);
        state.check_room(0, self.manager.shared.bytes_max)
    }

    /// They count elsewhere from now on.
    pub(super) fn forget_bytes(&self) {
        let mut state = self.manager.shared.state.lock();
        state.making.insert(self.number, 0);
    }
}

impl<F: FileStore> Drop for Making<F> {
    fn drop(&mut self) {
        self.manager.shared.state.lock().making.remove(&self.number);
    }
}

/// The right to receive a snapshot of a region, until this is dropped.
pub(super) struct PartialClaim<F: FileStore> {
    pub(super) manager: SnapshotManager<F>,
    pub(super) key: SnapshotKey,
}

impl<F: FileStore> Drop for PartialClaim<F> {
    fn drop(&mut self) {
        let mut state = self.manager.shared.state.lock();
        match state.partial.get_mut(&self.key.region_id) {
            Some(partial) if partial.key == self.key => partial.active = false,
            // Complete, and maybe followed by the next one.
            _ => {}
        }
    }
}

impl<F: FileStore> Clone for SnapshotManager<F> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<F: FileStore> std::fmt::Debug for SnapshotManager<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}
