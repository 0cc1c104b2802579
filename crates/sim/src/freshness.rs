//! Reads that are acknowledged are fresh: the replica that serves one has applied all that any
//! replica had applied when the read came in.
//!
//! What is applied anywhere may have been shown to a client. A replica that serves a read
//! without it goes back in time for whoever saw it, even if this reader asks for another key.
//! So a stale replica is found by any read, where the history of values needs the right one.

use std::collections::BTreeMap;

use strata_proto::stratapb::RaftApplyState;
use strata_storage::{Cf, Change, RecordKind, WriteBatch, keys, record};

/// How far regions are applied.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// By region, over all stores and lives.
    newest: BTreeMap<u64, u64>,
    /// By store and region, in the kv engine of the present life.
    here: BTreeMap<(u64, u64), u64>,
}

impl Freshness {
    /// A batch is in the kv engine of a store. Returns the regions that it names with their
    /// applied index.
    pub(crate) fn on_write(&mut self, store: u64, batch: &WriteBatch) -> Vec<(u64, u64)> {
        let mut named = Vec::new();
        for change in batch.changes() {
            if let Change::Put { cf, key, value } = change
                && *cf == Cf::Raft
                && let Some(region) = parse_apply_state(key)
                && let Ok(state) =
                    record::decode::<RaftApplyState>(RecordKind::RaftApplyState, key, value)
            {
                self.here.insert((store, region), state.applied_index);
                let newest = self.newest.entry(region).or_default();
                *newest = (*newest).max(state.applied_index);
                named.push((region, state.applied_index));
            }
        }
        named
    }

    /// A store begins a life with a region applied so far.
    pub(crate) fn on_start(&mut self, store: u64, region: u64, applied: u64) {
        self.here.insert((store, region), applied);
    }

    /// What a read of a region has to see that comes in now.
    pub(crate) fn required(&self, region: u64) -> u64 {
        self.newest.get(&region).copied().unwrap_or(0)
    }

    /// How far a store has applied a region.
    pub(crate) fn applied(&self, store: u64, region: u64) -> u64 {
        self.here.get(&(store, region)).copied().unwrap_or(0)
    }
}

/// The region of the key of an apply state.
fn parse_apply_state(key: &[u8]) -> Option<u64> {
    let region = u64::from_be_bytes(key.get(2..10)?.try_into().ok()?);
    (*keys::apply_state(region) == *key).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applied_index_is_read_off_the_batches() {
        let mut freshness = Freshness::default();
        let mut batch = WriteBatch::new();
        let state = RaftApplyState {
            applied_index: 17,
            ..RaftApplyState::default()
        };
        record::put(&mut batch, Cf::Raft, keys::apply_state(6), &state);
        batch.put(Cf::Raw, "zkey", "value");
        assert_eq!(freshness.on_write(3, &batch), [(6, 17)]);
        freshness.on_start(4, 6, 12);
        assert_eq!(freshness.required(6), 17);
        assert_eq!((freshness.applied(3, 6), freshness.applied(4, 6)), (17, 12));
        assert_eq!(freshness.required(7), 0);
    }
}
