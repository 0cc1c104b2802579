//! The raft core alone: three replicas in memory, as `raft-bench` drives them.

use strata_raft_bench::{Group, Mix, Ours, STORE_LIMITS};

use crate::paths::HotPath;

/// Proposes entries until all replicas have applied them.
pub struct RaftCommit {
    group: Group<Ours>,
    mix: Mix,
    proposed: u64,
}

impl RaftCommit {
    /// A group with a leader. `batch`: proposals before each Ready.
    pub fn new(batch: u64) -> Self {
        Self {
            group: Group::new(|id| Ours::new(id, STORE_LIMITS)),
            mix: Mix {
                batch,
                in_flight: 1,
            },
            proposed: 0,
        }
    }
}

impl HotPath for RaftCommit {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        // Panics unless all replicas apply all entries in one order.
        self.group.run(self.mix, operations);
        self.proposed += operations;
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.proposed == operations,
            "{} entries of {operations}",
            self.proposed
        );
        Ok(())
    }
}
