//! Every fault that can be planted is found by the checkers that all runs share, in the default
//! swarm, within a bounded number of seeds.
//!
//! What a fault is found by, and the median number of seeds over several ranges, prints
//! `make sim`. That the swarm is clean without a planted fault is the swarm's own test; here
//! are the seeds on which the faults were found.

mod play;

use play::must_be_found;
use strata_raft::planted::{Fault, plant};
use strata_sim::swarm::Plan;

/// Declares one test a fault.
macro_rules! planted_faults {
    ($($test:ident $fault:ident,)+) => {
        $(
            #[test]
            fn $test() {
                must_be_found(Fault::$fault);
            }
        )+

        /// The faults that have a test.
        const TESTED: &[Fault] = &[$(Fault::$fault),+];
    };
}

planted_faults! {
    planted_fault_acknowledge_before_sync AcknowledgeBeforeSync,
    planted_fault_vote_twice_after_restart VoteTwiceAfterRestart,
    planted_fault_lease_read_after_a_transfer LeaseReadAfterTransfer,
    planted_fault_skip_the_session_table_in_a_snapshot SnapshotWithoutSessions,
    planted_fault_delete_log_before_the_kv_engine_is_durable LogDeletedBeforeDurable,
    planted_fault_commit_an_old_term_entry_by_counting OldTermCommittedByCounting,
    planted_fault_apply_a_stale_snapshot StaleSnapshotApplied,
    planted_fault_ignore_the_conf_state ConfStateIgnored,
    planted_fault_compact_above_applied CompactAboveApplied,
    planted_fault_count_the_own_log_before_its_sync OwnLogCountedBeforeSync,
    planted_fault_apply_before_the_own_sync AppliedBeforeOwnSync,
    planted_fault_forget_the_lease_after_a_restart LeaseForgottenAfterRestart,
    planted_fault_lease_measured_from_the_answers_time LeaseFromAnswer,
    planted_fault_burst_of_missed_ticks TickBurst,
    planted_fault_timeout_now_accepted_late LateTimeoutNow,
    planted_fault_read_without_the_second_generation_check ReadWithoutSecondCheck,
    planted_fault_propose_a_parked_request_past_its_deadline ProposedPastDeadline,
    planted_fault_cas_reads_past_the_pending_batch CasPastPendingBatch,
    planted_fault_expiry_by_the_local_clock ExpiryByLocalClock,
    planted_fault_unknown_session_treated_as_new UnknownSessionAsNew,
    planted_fault_kv_state_of_a_conf_change_not_synced ConfChangeNotSynced,
    planted_fault_snapshot_meta_in_one_engine_only SnapshotMetaInOneEngine,
    planted_fault_vote_forgotten_when_a_peer_is_created_by_a_message VoteForgottenAtCreation,
    planted_fault_applied_index_ahead_of_data_after_a_flush AppliedAheadOfData,
    planted_fault_snapshots_index_taken_from_memory SnapshotIndexFromMemory,
    planted_fault_resume_onto_another_snapshots_parts ResumeOntoForeignParts,
    planted_fault_late_clear_over_a_new_peer LateClear,
    planted_fault_read_index_before_the_own_terms_entry ReadIndexBeforeOwnTerm,
    planted_fault_a_wiped_store_votes WipedStoreVotes,
    planted_fault_truncated_entries_stay_in_memory TruncatedKeptInMemory,
}

#[test]
fn every_fault_has_a_test() {
    assert_eq!(TESTED, Fault::ALL);
}

/// Seeds that are played without a fault: most faults are found in fewer.
const CLEAN_SEEDS: u64 = 60;

#[test]
fn seeds_that_find_planted_faults_are_clean_without_them() {
    let _nothing = plant(None);
    for seed in 0..CLEAN_SEEDS {
        if let Err(failure) = Plan::draw(seed).run() {
            panic!("seed {seed}: {failure}");
        }
    }
}
