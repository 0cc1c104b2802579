//! The words of the checkers: rules, violations, what they look at, how much happened.

use std::time::Duration;

use strata_raft::{Index, Role, Term};

/// One rule that a run can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// At most one leader in a term (5.2).
    ElectionSafety,
    /// A leader never overwrites or deletes entries of its log (5.3).
    LeaderAppendOnly,
    /// Equal index and term: equal entries up to there (5.3).
    LogMatching,
    /// A leader holds every entry committed in earlier terms (5.4).
    LeaderCompleteness,
    /// No two servers apply different entries at one index (5.4.3).
    StateMachineSafety,
    /// A server gives its vote to one candidate in a term.
    OneVote,
    /// Votes and answers to appends leave only when the disk holds what they promise.
    PromiseSynced,
    /// The terms and the commit index of a server never go back while it runs.
    Monotonic,
    /// What is committed is synced by a quorum, and a leader of that term said so (5.4.2).
    CommitQuorum,
    /// Entries are applied in index order, each once, synced and committed.
    ApplyOrder,
    /// What is acknowledged is there at the end, once.
    Acknowledged,
    /// Replicas that applied the same index have the same state.
    ReplicasEqual,
    /// The log stays within its limit where the service takes snapshots.
    LogLimit,
    /// A restart finds first <= applied <= last and no promise taken back.
    Restart,
    /// A read sees what was acknowledged before it was asked for.
    StaleRead,
    /// No two leaders hold a lease at the same time.
    OneLease,
    /// After all faults are healed the group makes progress.
    Liveness,
}

/// A broken rule, with the facts.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// Simulated time.
    pub at: Duration,
    /// Who did what.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:?} broken at {:?}: {}",
            self.rule, self.at, self.detail
        )
    }
}

/// What the checkers look at after each event of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct View {
    /// What the server is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Its commit index.
    pub commit: Index,
}

/// How much happened in a run, so that a test can tell that it tested something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Leaders elected.
    pub elections: u64,
    /// Commands committed.
    pub commands: u64,
    /// Servers started.
    pub starts: u64,
    /// Snapshots installed.
    pub installs: u64,
    /// Membership changes applied, by any server.
    pub conf_changes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Steps at which some leader held a lease.
    pub leased_steps: u64,
}

impl Coverage {
    fn fields(&self) -> [u64; 7] {
        [
            self.elections,
            self.commands,
            self.starts,
            self.installs,
            self.conf_changes,
            self.reads,
            self.leased_steps,
        ]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: Coverage) {
        self.elections += other.elections;
        self.commands += other.commands;
        self.starts += other.starts;
        self.installs += other.installs;
        self.conf_changes += other.conf_changes;
        self.reads += other.reads;
        self.leased_steps += other.leased_steps;
    }

    /// True if nothing is below `wanted`.
    pub fn covers(&self, wanted: &Coverage) -> bool {
        self.fields()
            .iter()
            .zip(wanted.fields())
            .all(|(have, want)| *have >= want)
    }
}
