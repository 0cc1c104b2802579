//! What a region error means: what the cache forgets, and how long to wait.
//!
//! Every region error but `undetermined_result` says that the request was not executed,
//! so repeating it is safe for writes too.
//!
//! | region error | cache | then |
//! |---|---|---|
//! | undetermined_result | patched if a leader is named, else dropped | unknown outcome |
//! | not_leader with a leader | patched | at once the first times, then with pauses |
//! | not_leader without | route dropped | pause |
//! | epoch_not_match | filled from the answer, else dropped | at once the first times |
//! | stale_command, read_index_not_ready, merging, not initialised | kept | pause |
//! | region_not_found, key_not_in_region, mismatch_peer_id | route dropped | pause |
//! | store_not_match | route and address dropped | pause |
//! | server_is_busy | kept | pause of at least `backoff_ms` |
//! | disk_full | kept | the caller is told |
//! | raft_entry_too_large | kept | the caller is told |
//! | anything else | route dropped | pause |

use crate::Error;
use crate::scheduler::first_line;
use std::time::Duration;
use strata_proto::{errorpb, metapb};

/// What to do after a region error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Another replica leads.
    Leader(metapb::Peer),
    /// The range changed; these are the regions now. May be empty.
    Regions(Vec<metapb::Region>),
    /// The route is wrong: look it up again after a pause.
    Forget,
    /// The route and the store's address are wrong.
    ForgetStore,
    /// The route is right: ask again after at least this pause.
    Wait(Duration),
    /// Give the caller this error.
    Fail(Error),
    /// The request may have been executed; who leads now, if another replica does.
    Unknown {
        message: String,
        leader: Option<metapb::Peer>,
    },
}

/// Sorts a region error. If several parts are set the first of the table wins.
pub(crate) fn judge(error: &errorpb::Error) -> Verdict {
    let leader = error
        .not_leader
        .as_ref()
        .and_then(|not_leader| not_leader.leader)
        .filter(|leader| leader.id != 0 && leader.store_id != 0);
    // Before anything else: a leader that stepped down names the new one beside it.
    if let Some(unknown) = &error.undetermined_result {
        return Verdict::Unknown {
            message: first_line(&unknown.message),
            leader,
        };
    }
    if error.not_leader.is_some() {
        return leader.map_or(Verdict::Forget, Verdict::Leader);
    }
    if error.store_not_match.is_some() {
        return Verdict::ForgetStore;
    }
    if let Some(changed) = &error.epoch_not_match {
        return Verdict::Regions(changed.current_regions.clone());
    }
    if let Some(busy) = &error.server_is_busy {
        return Verdict::Wait(Duration::from_millis(busy.backoff_ms));
    }
    if let Some(large) = &error.raft_entry_too_large {
        return Verdict::Fail(Error::EntryTooLarge {
            size: large.entry_size,
        });
    }
    if let Some(full) = &error.disk_full {
        return Verdict::Fail(Error::Refused {
            message: first_line(&full.reason),
        });
    }
    if error.stale_command.is_some()
        || error.read_index_not_ready.is_some()
        || error.proposal_in_merging_mode.is_some()
        || error.region_not_initialized.is_some()
        || error.max_timestamp_not_synced.is_some()
    {
        return Verdict::Wait(Duration::ZERO);
    }
    Verdict::Forget
}

/// The name of a region error for messages, with the store's own words.
pub(crate) fn describe(error: &errorpb::Error) -> String {
    let name = if error.not_leader.is_some() {
        "not leader"
    } else if error.epoch_not_match.is_some() {
        "epoch does not match"
    } else if error.region_not_found.is_some() {
        "region not found"
    } else if error.server_is_busy.is_some() {
        "server is busy"
    } else if error.stale_command.is_some() {
        "stale command"
    } else if error.store_not_match.is_some() {
        "store does not match"
    } else {
        "region error"
    };
    let message = first_line(&error.message);
    if message.is_empty() {
        name.into()
    } else {
        format!("{name}: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64, store_id: u64) -> metapb::Peer {
        metapb::Peer {
            id,
            store_id,
            ..Default::default()
        }
    }

    #[test]
    fn each_region_error_has_its_own_consequence() {
        let error = |set: fn(&mut errorpb::Error)| {
            let mut error = errorpb::Error::default();
            set(&mut error);
            judge(&error)
        };
        assert_eq!(
            error(|e| e.not_leader = Some(errorpb::NotLeader {
                region_id: 2,
                leader: Some(peer(7, 3)),
            })),
            Verdict::Leader(peer(7, 3))
        );
        assert_eq!(
            error(|e| e.not_leader = Some(errorpb::NotLeader {
                region_id: 2,
                leader: None,
            })),
            Verdict::Forget
        );
        assert_eq!(
            error(|e| e.epoch_not_match = Some(Default::default())),
            Verdict::Regions(Vec::new())
        );
        assert_eq!(
            error(|e| e.store_not_match = Some(Default::default())),
            Verdict::ForgetStore
        );
        assert_eq!(
            error(|e| e.server_is_busy = Some(errorpb::ServerIsBusy {
                backoff_ms: 30,
                ..Default::default()
            })),
            Verdict::Wait(Duration::from_millis(30))
        );
        assert_eq!(
            error(
                |e| e.raft_entry_too_large = Some(errorpb::RaftEntryTooLarge {
                    region_id: 2,
                    entry_size: 9,
                })
            ),
            Verdict::Fail(Error::EntryTooLarge { size: 9 })
        );
        assert_eq!(
            error(
                |e| e.undetermined_result = Some(errorpb::UndeterminedResult {
                    message: "lost".into(),
                })
            ),
            Verdict::Unknown {
                message: "lost".into(),
                leader: None,
            }
        );
        assert_eq!(error(|e| e.message = "new kind".into()), Verdict::Forget);
    }

    #[test]
    fn an_unknown_outcome_outweighs_the_leader_named_beside_it() {
        let error = errorpb::Error {
            not_leader: Some(errorpb::NotLeader {
                region_id: 2,
                leader: Some(peer(7, 3)),
            }),
            undetermined_result: Some(errorpb::UndeterminedResult {
                message: "stepped down".into(),
            }),
            ..Default::default()
        };
        assert_eq!(
            judge(&error),
            Verdict::Unknown {
                message: "stepped down".into(),
                leader: Some(peer(7, 3)),
            }
        );
    }

    #[test]
    fn a_leader_hint_without_ids_is_no_hint() {
        let error = errorpb::Error {
            not_leader: Some(errorpb::NotLeader {
                region_id: 2,
                leader: Some(peer(0, 0)),
            }),
            ..Default::default()
        };
        assert_eq!(judge(&error), Verdict::Forget);
    }
}
