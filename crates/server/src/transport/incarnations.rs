//! Which folder each other store had when it was first met.
//!
//! A store that lost its folder comes back with another incarnation under its old id. It
//! may have voted and acknowledged what it has forgotten, so it is refused for good; it
//! has to join with a new id.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use strata_proto::stratapb::StoreIncarnation;

/// Writes a record so that it survives a power cut.
pub(crate) type Persist = Box<dyn Fn(&StoreIncarnation) -> Result<(), String> + Send + Sync>;

/// Why a store is not believed to be the one that was met before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IncarnationError {
    /// Another folder is known under this id.
    #[error(
        "store {store_id} lost its data folder: incarnation {found:016x} is not the {known:016x} \
         that is known; remove the store and join with a new id"
    )]
    Differs {
        store_id: u64,
        known: u64,
        found: u64,
    },
    /// The record could not be written.
    #[error("cannot record the incarnation of store {store_id}: {reason}")]
    NotWritten { store_id: u64, reason: String },
}

/// Incarnations of the other stores, recorded once and never changed.
pub(crate) struct Incarnations {
    known: Mutex<BTreeMap<u64, u64>>,
    persist: Persist,
}

impl Incarnations {
    pub(crate) fn new(known: Vec<StoreIncarnation>, persist: Persist) -> Self {
        let known = known
            .into_iter()
            .map(|record| (record.store_id, record.incarnation))
            .collect();
        Incarnations {
            known: Mutex::new(known),
            persist,
        }
    }

    /// Records a store that was never met, and checks one that was. Blocks while the
    /// record is synced; when it returns without an error, the record is on disk.
    pub(crate) fn meet(&self, store_id: u64, incarnation: u64) -> Result<(), IncarnationError> {
        // The lock is held over the write, so that two greetings under one id cannot both
        // be the first.
        let mut known = self.known.lock();
        match known.get(&store_id) {
            Some(known) if *known == incarnation => Ok(()),
            Some(known) => Err(IncarnationError::Differs {
                store_id,
                known: *known,
                found: incarnation,
            }),
            None => {
                let record = StoreIncarnation {
                    store_id,
                    incarnation,
                };
                (self.persist)(&record)
                    .map_err(|reason| IncarnationError::NotWritten { store_id, reason })?;
                known.insert(store_id, incarnation);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_first_meeting_is_written_and_another_folder_refused() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = written.clone();
        let persist: Persist = Box::new(move |record| {
            log.lock().push(*record);
            Ok(())
        });
        let known = vec![StoreIncarnation {
            store_id: 2,
            incarnation: 7,
        }];
        let incarnations = Incarnations::new(known, persist);
        incarnations.meet(2, 7).unwrap();
        assert!(written.lock().is_empty());
        incarnations.meet(3, 8).unwrap();
        incarnations.meet(3, 8).unwrap();
        assert_eq!(written.lock().len(), 1);
        for (store, incarnation) in [(2, 8), (3, 7)] {
            let error = incarnations.meet(store, incarnation).unwrap_err();
            assert!(error.to_string().contains("join with a new id"), "{error}");
        }
    }

    #[test]
    fn a_record_that_was_not_written_is_not_known() {
        let persist: Persist = Box::new(|_| Err("disk full".to_owned()));
        let incarnations = Incarnations::new(Vec::new(), persist);
        for _ in 0..2 {
            assert!(matches!(
                incarnations.meet(2, 7),
                Err(IncarnationError::NotWritten { store_id: 2, .. })
            ));
        }
    }
}
