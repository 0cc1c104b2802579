//! Nothing is broken on purpose: the same calls as in `planted.rs`, in builds without the cargo
//! feature `planted-faults`.

use strata_raftstore::{ApplyWork, DataWrite, JobDone, ReadTask, RegionJob};
use strata_storage::{Durability, EngineError, Engines, MemEngine};

/// No fault can be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    _nothing: (),
}

impl Planted {
    pub(crate) fn disks_lie(&self) -> bool {
        false
    }

    pub(crate) fn change_work(&mut self, _store_id: u64, _work: &mut ApplyWork) -> bool {
        false
    }

    pub(crate) fn durability(&self, write: &DataWrite) -> Durability {
        write.durability()
    }

    pub(crate) fn change_read(&self, _task: &mut ReadTask) {}

    pub(crate) fn change_installed(
        &self,
        _engines: &Engines<MemEngine>,
        _region_id: u64,
    ) -> Result<(), EngineError> {
        Ok(())
    }

    pub(crate) fn delete_log(
        &self,
        _engines: &Engines<MemEngine>,
        _job: &RegionJob,
    ) -> Result<Option<JobDone>, EngineError> {
        Ok(None)
    }
}
