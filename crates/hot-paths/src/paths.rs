//! The paths that there are.

use std::path::Path;

use crate::idle::IdleTick;
use crate::messages::{PutMessages, RaftMessageDecode, RaftMessageEncode};
use crate::peer_log::{LogAppend, LogRead};
use crate::raft_group::RaftCommit;
use crate::raft_log::RaftLogWrite;
use crate::rocks::{RocksGet, RocksWrite};
use crate::store::{LeaseGet, StorePut};

/// One path, set up.
pub trait HotPath {
    /// Does it `operations` times.
    ///
    /// # Errors
    /// Something refused.
    fn run(&mut self, operations: u64) -> anyhow::Result<()>;

    /// Looks whether so many operations have done their work, over all runs.
    ///
    /// # Errors
    /// What is missing.
    fn check(&self, operations: u64) -> anyhow::Result<()>;
}

/// Sets a path up, in a folder of its own if it needs one.
type Prepare = fn(&Path) -> anyhow::Result<Box<dyn HotPath>>;

/// A path as it is listed.
pub struct PathEntry {
    /// Names it on the command line and in `docs/benchmarks.json`.
    pub name: &'static str,
    /// Operations of the measured run: the count is fixed, since memtables and maps grow.
    pub operations: u64,
    /// What one operation is.
    pub operation: &'static str,
    /// Sets it up.
    pub prepare: Prepare,
}

/// All of them, from the raft core outwards.
pub static PATHS: [PathEntry; 14] = [
    PathEntry {
        name: "raft-commit-1",
        operations: 4096,
        operation: "an entry proposed, replicated, committed on three replicas; one a Ready",
        prepare: |_| Ok(Box::new(RaftCommit::new(1))),
    },
    PathEntry {
        name: "raft-commit-16",
        operations: 16_384,
        operation: "an entry proposed, replicated, committed on three replicas; 16 a Ready",
        prepare: |_| Ok(Box::new(RaftCommit::new(16))),
    },
    PathEntry {
        name: "store-put",
        operations: 1024,
        operation: "a put through three stores, from the gate to the answer; one at a time",
        prepare: |_| Ok(Box::new(StorePut::new(1)?)),
    },
    PathEntry {
        name: "store-put-16",
        operations: 4096,
        operation: "a put through three stores, from the gate to the answer; 16 at a time",
        prepare: |_| Ok(Box::new(StorePut::new(16)?)),
    },
    PathEntry {
        name: "store-get",
        operations: 4096,
        operation: "a get under the leader's lease, from the gate to the answer",
        prepare: |_| Ok(Box::new(LeaseGet::new()?)),
    },
    PathEntry {
        name: "store-idle",
        operations: 4096,
        operation: "a tick of a region with nothing to do, on all its three stores",
        prepare: |_| Ok(Box::new(IdleTick::new()?)),
    },
    PathEntry {
        name: "log-append-16",
        operations: 1024,
        operation: "16 entries appended to a replica's log, up to the engine's batch",
        prepare: |_| Ok(Box::new(LogAppend::new()?)),
    },
    PathEntry {
        name: "log-read-16",
        operations: 4096,
        operation: "16 entries read from a replica's log, from its cache",
        prepare: |_| Ok(Box::new(LogRead::new()?)),
    },
    PathEntry {
        name: "raft-log-write-16",
        operations: 2048,
        operation: "a batch of 16 entries into the log on disk, collecting included; no sync",
        prepare: |folder| Ok(Box::new(RaftLogWrite::new(folder)?)),
    },
    PathEntry {
        name: "rocks-write-16",
        operations: 512,
        operation: "a batch of 16 puts written to RocksDB without a sync",
        prepare: |folder| Ok(Box::new(RocksWrite::new(folder)?)),
    },
    PathEntry {
        name: "rocks-get",
        operations: 4096,
        operation: "a value read from a table of RocksDB in the block cache",
        prepare: |folder| Ok(Box::new(RocksGet::new(folder)?)),
    },
    PathEntry {
        name: "put-messages",
        operations: 8192,
        operation: "a RawPut request decoded, its answer encoded",
        prepare: |_| Ok(Box::new(PutMessages::new())),
    },
    PathEntry {
        name: "raft-message-encode-16",
        operations: 4096,
        operation: "an append of 16 entries to another store encoded",
        prepare: |_| Ok(Box::new(RaftMessageEncode::new())),
    },
    PathEntry {
        name: "raft-message-decode-16",
        operations: 4096,
        operation: "an append of 16 entries from another store decoded",
        prepare: |_| Ok(Box::new(RaftMessageDecode::new())),
    },
];

/// The path with this name.
pub fn find(name: &str) -> Option<&'static PathEntry> {
    PATHS.iter().find(|path| path.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few operations, as the checks do not depend on how many there are.
    const OPERATIONS: u64 = 96;

    #[test]
    fn every_path_does_its_work() {
        for path in &PATHS {
            let folder = tempfile::tempdir().unwrap();
            let mut work = (path.prepare)(folder.path()).unwrap();
            for runs in 1..=2 {
                work.run(OPERATIONS).unwrap();
                let checked = work.check(runs * OPERATIONS);
                assert!(checked.is_ok(), "{}: {checked:?}", path.name);
            }
        }
    }

    #[test]
    fn every_path_notices_work_that_was_not_done() {
        for path in &PATHS {
            let folder = tempfile::tempdir().unwrap();
            let mut work = (path.prepare)(folder.path()).unwrap();
            work.run(OPERATIONS).unwrap();
            let checked = work.check(2 * OPERATIONS);
            assert!(checked.is_err(), "{} has done half of it", path.name);
        }
    }

    #[test]
    fn a_name_names_one_path() {
        for path in &PATHS {
            let named = PATHS.iter().filter(|other| other.name == path.name);
            assert_eq!(named.count(), 1, "{}", path.name);
            assert!(find(path.name).is_some());
        }
        assert!(find("raft-commit").is_none());
    }
}
