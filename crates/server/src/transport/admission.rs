//! Admission of a store with a new folder.
//!
//! Until every other store of the initial list has recorded its incarnation, a new store
//! may be an old one that lost its folder: it votes, campaigns and acknowledges nothing.
//! When the last of them has answered, the admission is synced, and holds for ever.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use parking_lot::Mutex;
use slog::{Logger, info};
use strata_raftstore::StoreHandle;

/// Writes to both engines, synced, that the store is admitted.
pub(crate) type PersistAdmission = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Whether this store takes part in its cluster yet.
pub(crate) struct Admission {
    state: Mutex<State>,
    persist: PersistAdmission,
    store: OnceLock<StoreHandle>,
    logger: Logger,
}

struct State {
    admitted: bool,
    /// Initial stores that have not answered.
    missing: BTreeSet<u64>,
}

impl Admission {
    /// `others` are the other stores of the initial list.
    pub(crate) fn new(
        admitted: bool,
        others: impl IntoIterator<Item = u64>,
        persist: PersistAdmission,
        logger: Logger,
    ) -> Self {
        Admission {
            state: Mutex::new(State {
                admitted,
                missing: others.into_iter().collect(),
            }),
            persist,
            store: OnceLock::new(),
            logger,
        }
    }

    /// Names the store that is told when it is admitted.
    pub(crate) fn attach(&self, store: StoreHandle) {
        let admitted = {
            let state = self.state.lock();
            let _ = self.store.set(store);
            state.admitted
        };
        if admitted {
            self.tell();
        }
    }

    /// A store answered the greeting, so it has synced this store's incarnation. Blocks
    /// while the admission is synced.
    ///
    /// # Errors
    /// The admission could not be written; the next answer tries again.
    pub(crate) fn on_recorded_by(&self, store_id: u64) -> Result<(), String> {
        {
            let mut state = self.state.lock();
            state.missing.remove(&store_id);
            if state.admitted || !state.missing.is_empty() {
                return Ok(());
            }
            (self.persist)()?;
            state.admitted = true;
        }
        info!(
            self.logger,
            "admitted: every initial store has recorded this folder"
        );
        self.tell();
        Ok(())
    }

    /// Stores whose answer is missing; empty once the store is admitted.
    pub(crate) fn missing(&self) -> Vec<u64> {
        let state = self.state.lock();
        if state.admitted {
            return Vec::new();
        }
        state.missing.iter().copied().collect()
    }

    /// True if the store takes part in its cluster.
    pub(crate) fn is_admitted(&self) -> bool {
        self.state.lock().admitted
    }

    fn tell(&self) {
        if let Some(store) = self.store.get() {
            store.set_admitted(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn admission(others: &[u64], failures: usize) -> (Admission, Arc<AtomicUsize>) {
        let writes = Arc::new(AtomicUsize::new(0));
        let count = writes.clone();
        let persist: PersistAdmission = Box::new(move || {
            if count.fetch_add(1, Ordering::Relaxed) < failures {
                return Err("disk full".to_owned());
            }
            Ok(())
        });
        let logger = Logger::root(slog::Discard, slog::o!());
        let others = others.iter().copied();
        (Admission::new(false, others, persist, logger), writes)
    }

    #[test]
    fn every_other_store_must_have_answered() {
        let (admission, writes) = admission(&[2, 3], 0);
        admission.on_recorded_by(3).unwrap();
        admission.on_recorded_by(3).unwrap();
        assert!(!admission.is_admitted());
        assert_eq!(admission.missing(), [2]);
        assert_eq!(writes.load(Ordering::Relaxed), 0);
        admission.on_recorded_by(2).unwrap();
        assert!(admission.is_admitted());
        assert!(admission.missing().is_empty());
        admission.on_recorded_by(2).unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 1, "synced once");
    }

    #[test]
    fn a_failed_write_does_not_admit() {
        let (admission, _) = admission(&[2], 1);
        assert!(admission.on_recorded_by(2).is_err());
        assert!(!admission.is_admitted());
        admission.on_recorded_by(2).unwrap();
        assert!(admission.is_admitted());
    }
}
