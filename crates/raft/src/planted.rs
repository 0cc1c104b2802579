//! Faults that are built in on purpose, to see whether the checkers find them.
//!
//! Plant   A test plants one [`Fault`] and plays clusters under the simulator.
//! Break   The place in the code that keeps the rule asks [`planted!`](crate::planted!), one
//!         line with the rule beside it, and breaks it.
//! Find    The checkers that all runs share must report something within a few seeds.
//!
//! All of this is there only with the cargo feature `planted-faults`, which nothing turns on
//! but the tests of `strata-sim`. Without it the macro is the constant `false`, so that what
//! is released holds neither the faults nor the question.
//!
//! The crates have no globals, and this is one: the fault of this thread. The faults lie so
//! deep that handing a switch down to them would change the code that is to be tested. It is
//! allowed here because it exists in test builds only, and because a simulated cluster lives
//! in one thread: what a thread plants is planted in its own clusters and in no others.

use std::cell::Cell;
use std::marker::PhantomData;

/// Declares the faults, with the words in which tests and tables name them.
macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $fault:ident = $name:literal,)+) => {
        /// A rule that is broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[doc = $doc])+ $fault,)+
        }

        impl Fault {
            /// All of them.
            pub const ALL: &'static [Fault] = &[$(Fault::$fault),+];

            /// A few words.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Fault::$fault => $name,)+
                }
            }
        }
    };
}

faults! {
    /// A follower answers an append before its entries are synced.
    AcknowledgeBeforeSync = "acknowledge before sync",
    /// A replica forgets at its start whom it voted for.
    VoteTwiceAfterRestart = "vote twice after restart",
    /// A leader reads under its lease although it has told another to take over.
    LeaseReadAfterTransfer = "lease read after a transfer",
    /// A snapshot is made without the region's sessions.
    SnapshotWithoutSessions = "skip the session table in a snapshot",
    /// Compacted entries go before the kv engine holds durably where the log begins.
    LogDeletedBeforeDurable = "delete log before the kv engine is durable",
    /// A leader commits an entry of an earlier term because a quorum has it.
    OldTermCommittedByCounting = "commit an old-term entry by counting",
    /// A snapshot at or before the commit index replaces the log.
    StaleSnapshotApplied = "apply a stale snapshot",
    /// The Raft core keeps its old membership when it takes a snapshot.
    ConfStateIgnored = "ignore the conf state",
    /// A leader lets the log be deleted up to its end, applied or not.
    CompactAboveApplied = "compact above applied",
    /// A leader counts its own entries towards a commit before they are synced.
    OwnLogCountedBeforeSync = "count the own log before its sync",
    /// Committed entries are applied before they are synced here.
    AppliedBeforeOwnSync = "apply before the own sync",
    /// A replica votes at once after its start, whatever lease it supports.
    LeaseForgottenAfterRestart = "forget the lease after a restart",
    /// The lease runs from the answer of a quorum, not from the question.
    LeaseFromAnswer = "lease measured from the answer's time",
    /// Missed ticks are made up for in a burst, and promises are counted in ticks.
    TickBurst = "burst of missed ticks",
    /// A hand-over of an earlier term is still followed.
    LateTimeoutNow = "TimeoutNow accepted late",
    /// A read does not look again once it has its engine snapshot.
    ReadWithoutSecondCheck = "read without the second generation check",
    /// Requests wait, and are proposed, whatever their deadline.
    ProposedPastDeadline = "propose a parked request past its deadline",
    /// A compare-and-swap does not see what its batch holds already.
    CasPastPendingBatch = "CAS reads past the pending batch",
    /// Commands judge and set expiry by their store's clock.
    ExpiryByLocalClock = "expiry by the local clock",
    /// An operation of a session that is gone opens it again.
    UnknownSessionAsNew = "unknown session treated as new",
    /// A change of peers is acted on before it is synced.
    ConfChangeNotSynced = "kv state of a conf change not synced",
    /// An install leaves the raft engine as it was.
    SnapshotMetaInOneEngine = "snapshot meta in one engine only",
    /// A peer that a message creates begins without term and vote.
    VoteForgottenAtCreation = "vote forgotten when a peer is created by a message",
    /// The kv engine flushes its state records ahead of its data.
    AppliedAheadOfData = "applied index ahead of data after a flush",
    /// A snapshot's index is older than the data in it.
    SnapshotIndexFromMemory = "snapshot's index taken from memory",
    /// A stream goes on behind the parts of another snapshot, and nobody compares the whole.
    ResumeOntoForeignParts = "resume onto another snapshot's parts",
    /// The worker reports a clear before it runs it.
    LateClear = "late clear over a new peer",
    /// A leader gives out read indices before it has committed an entry of its term.
    ReadIndexBeforeOwnTerm = "ReadIndex before the own term's entry",
    /// A store with a new folder takes part before it is admitted.
    WipedStoreVotes = "a wiped store votes",
    /// Entries that were truncated stay in the entry cache.
    TruncatedKeptInMemory = "truncated entries stay in memory",
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
    static WALL_MS: Cell<u64> = const { Cell::new(0) };
}

/// A fault is planted in this thread while this lives.
#[must_use]
#[derive(Debug)]
pub struct Planting {
    before: Option<Fault>,
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

/// Plants a fault in this thread, or none, in the place of what is planted.
pub fn plant(fault: Option<Fault>) -> Planting {
    Planting {
        before: PLANTED.replace(fault),
        _here: PhantomData,
    }
}

impl Drop for Planting {
    fn drop(&mut self) {
        PLANTED.set(self.before);
    }
}

/// True if this fault is planted in this thread. Code asks through [`planted!`](crate::planted!).
#[must_use]
pub fn is_planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Shows the wall clock of the store that is stepped to code that must not know it.
pub fn show_wall_ms(wall_ms: u64) {
    WALL_MS.set(wall_ms);
}

/// What was shown last, in milliseconds.
#[must_use]
pub fn wall_ms() -> u64 {
    WALL_MS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_is_planted_in_its_own_thread_and_for_a_time() {
        assert!(!crate::planted!(LateClear));
        {
            let _planting = plant(Some(Fault::LateClear));
            assert!(crate::planted!(LateClear) && !crate::planted!(TickBurst));
            {
                let _nothing = plant(None);
                assert!(!crate::planted!(LateClear));
            }
            assert!(crate::planted!(LateClear));
        }
        assert!(!crate::planted!(LateClear));
    }

    #[test]
    fn faults_are_those_that_the_checkers_must_find() {
        assert_eq!(Fault::ALL.len(), 30);
        let mut names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 30, "two faults of one name: {names:?}");
    }
}
