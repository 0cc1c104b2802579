//! Every fault that can be planted is found by the checkers that all runs share.

#[path = "../common/mod.rs"]
mod common;
mod play;

use play::first_seed_that_tells;
use strata_raft::planted::Fault;

/// Declares one test a fault.
macro_rules! planted_faults {
    ($($test:ident $fault:ident,)+) => {
        $(
            #[test]
            fn $test() {
                first_seed_that_tells(Fault::$fault);
            }
        )+
    };
}

planted_faults! {
    planted_fault_acknowledge_before_sync AcknowledgeBeforeSync,
    planted_fault_vote_twice_after_restart VoteTwiceAfterRestart,
    planted_fault_skip_the_session_table_in_a_snapshot SnapshotWithoutSessions,
    planted_fault_delete_log_before_the_kv_engine_is_durable LogDeletedBeforeDurable,
    planted_fault_apply_a_stale_snapshot StaleSnapshotApplied,
    planted_fault_ignore_the_conf_state ConfStateIgnored,
    planted_fault_compact_above_applied CompactAboveApplied,
    planted_fault_count_the_own_log_before_its_sync OwnLogCountedBeforeSync,
    planted_fault_apply_before_the_own_sync AppliedBeforeOwnSync,
    planted_fault_cas_reads_past_the_pending_batch CasPastPendingBatch,
    planted_fault_expiry_by_the_local_clock ExpiryByLocalClock,
    planted_fault_kv_state_of_a_conf_change_not_synced ConfChangeNotSynced,
    planted_fault_snapshot_meta_in_one_engine_only SnapshotMetaInOneEngine,
    planted_fault_applied_index_ahead_of_data_after_a_flush AppliedAheadOfData,
    planted_fault_snapshots_index_taken_from_memory SnapshotIndexFromMemory,
    planted_fault_resume_onto_another_snapshots_parts ResumeOntoForeignParts,
    planted_fault_late_clear_over_a_new_peer LateClear,
    planted_fault_read_index_before_the_own_terms_entry ReadIndexBeforeOwnTerm,
}

/// Seeds on which nothing may be found where nothing is planted. The swarm's own tests play many
/// more.
const CLEAN_SEEDS: u64 = 30;

#[test]
fn seeds_without_a_planted_fault_are_clean() {
    for seed in 0..CLEAN_SEEDS {
        assert_eq!(play::play(seed), None, "seed {seed}");
    }
}
