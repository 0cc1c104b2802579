//! Compaction filters that drop expired raw values.
//!
//! Each compaction takes the clocks that are usable when it begins ([`ExpiryClocks`]).
//! RocksDB turns a dropped value into a tombstone, so that no older value of the key
//! comes to light.

use std::ffi::CStr;
use std::sync::Arc;

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use crate::engine::Cf;
use crate::expiry::{ExpiryClocks, ExpiryLookup, may_drop};

const NAME: &CStr = c"strata.expiry";

pub(super) struct ExpiryFilterFactory {
    cf: Cf,
    clocks: ExpiryClocks,
}

impl ExpiryFilterFactory {
    pub(super) fn new(cf: Cf, clocks: ExpiryClocks) -> Self {
        Self { cf, clocks }
    }
}

impl CompactionFilterFactory for ExpiryFilterFactory {
    type Filter = ExpiryFilter;

    fn create(&mut self, _context: CompactionFilterContext) -> ExpiryFilter {
        ExpiryFilter {
            cf: self.cf,
            clocks: self.clocks.usable(),
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

pub(super) struct ExpiryFilter {
    cf: Cf,
    clocks: Option<Arc<ExpiryLookup>>,
}

impl CompactionFilter for ExpiryFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        match &self.clocks {
            Some(clocks) if may_drop(&**clocks, self.cf, key, value) => CompactionDecision::Remove,
            _ => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}
