//! Why a raw call was refused, in the form that published clients expect.
//!
//! A region error makes a client repair its cache and try again; which one is set decides
//! whether it sleeps first and whether it tries at all. Other refusals are the string
//! `error` of the response. Calls without that field answer as if nothing were there.

use strata_proto::{errorpb, metapb};
use strata_raftstore::{CommandOutcome, Error};

/// What goes into a response in place of a result.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// The client looks the region up again, or asks another replica.
    Region(Box<errorpb::Error>),
    /// The call can never succeed as it is.
    Text(String),
}

impl Refusal {
    /// A refusal with a text for people.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Refusal::Text(text.into())
    }

    /// The two fields of a response that has both.
    pub(crate) fn into_fields(self) -> (Option<errorpb::Error>, String) {
        match self {
            Refusal::Region(error) => (Some(*error), String::new()),
            Refusal::Text(text) => (None, text),
        }
    }

    /// The region error for a response without a text; `None`: answer as if nothing were
    /// there.
    pub(crate) fn into_region_error(self) -> Option<errorpb::Error> {
        match self {
            Refusal::Region(error) => Some(*error),
            Refusal::Text(_) => None,
        }
    }
}

/// A region error with one sub-message.
fn region(message: String, fill: impl FnOnce(&mut errorpb::Error)) -> Refusal {
    let mut error = errorpb::Error {
        message,
        ..Default::default()
    };
    fill(&mut error);
    Refusal::Region(Box::new(error))
}

/// The refusal for an error of the store.
pub(crate) fn refuse(error: Error, own_store_id: u64) -> Refusal {
    let message = error.to_string();
    match error {
        Error::NotLeader { region_id, leader } => not_leader(message, region_id, leader),
        Error::RegionNotFound { region_id } => region(message, |e| {
            e.region_not_found = Some(errorpb::RegionNotFound { region_id });
        }),
        Error::KeyNotInRegion {
            key,
            region_id,
            start_key,
            end_key,
        } => region(message, |e| {
            e.key_not_in_region = Some(errorpb::KeyNotInRegion {
                key,
                region_id,
                start_key,
                end_key,
            });
        }),
        Error::EpochNotMatch { current, .. } => region(message, |e| {
            e.epoch_not_match = Some(errorpb::EpochNotMatch {
                current_regions: current,
            });
        }),
        Error::StaleCommand { .. } => region(message, |e| {
            e.stale_command = Some(errorpb::StaleCommand {});
        }),
        Error::StoreNotMatch { requested, actual } => region(message, |e| {
            e.store_not_match = Some(errorpb::StoreNotMatch {
                request_store_id: requested,
                actual_store_id: actual,
            });
        }),
        Error::MismatchPeerId { requested, actual } => region(message, |e| {
            e.mismatch_peer_id = Some(errorpb::MismatchPeerId {
                request_peer_id: requested,
                store_peer_id: actual,
            });
        }),
        other => refuse_for_capacity(other, message, own_store_id),
    }
}

/// Refusals that have nothing to do with which replica was asked.
fn refuse_for_capacity(error: Error, message: String, own_store_id: u64) -> Refusal {
    match error {
        Error::ServerIsBusy { reason, backoff_ms } => region(message, |e| {
            e.server_is_busy = Some(errorpb::ServerIsBusy {
                reason: reason.to_owned(),
                backoff_ms,
                ..Default::default()
            });
        }),
        Error::RaftEntryTooLarge {
            region_id,
            entry_bytes,
            ..
        } => region(message, |e| {
            e.raft_entry_too_large = Some(errorpb::RaftEntryTooLarge {
                region_id,
                entry_size: entry_bytes,
            });
        }),
        Error::AnswerTooLarge {
            region_id,
            limit_bytes,
        } => region(message, |e| {
            e.raft_entry_too_large = Some(errorpb::RaftEntryTooLarge {
                region_id,
                entry_size: limit_bytes,
            });
        }),
        Error::ReadIndexNotReady { region_id } => region(message.clone(), |e| {
            e.read_index_not_ready = Some(errorpb::ReadIndexNotReady {
                reason: message,
                region_id,
            });
        }),
        Error::DiskFull { store_id } => region(message.clone(), |e| {
            e.disk_full = Some(errorpb::DiskFull {
                store_id: vec![store_id],
                reason: message,
            });
        }),
        // Published clients do not know the field for an unknown outcome and go by the
        // leader, where another one is known; our own goes by the field, so that a write
        // which may have been executed is never taken for one that was refused.
        Error::Undetermined { region_id, leader } => region(message.clone(), |e| {
            e.not_leader = leader
                .filter(|leader| leader.store_id != own_store_id)
                .map(|leader| errorpb::NotLeader {
                    region_id,
                    leader: Some(leader),
                });
            e.undetermined_result = Some(errorpb::UndeterminedResult { message });
        }),
        Error::Invalid(_) => Refusal::Text(message),
        // An error with a text alone makes clients drop the region, sleep and try again.
        _ => region(message, |_| {}),
    }
}

fn not_leader(message: String, region_id: u64, leader: Option<metapb::Peer>) -> Refusal {
    region(message, |e| {
        e.not_leader = Some(errorpb::NotLeader { region_id, leader });
    })
}

/// The refusal for a command of an entry that was executed in vain, if it was.
pub(crate) fn refuse_outcome(outcome: CommandOutcome, region_id: u64) -> Option<Refusal> {
    match outcome {
        CommandOutcome::KeyNotInRegion {
            key,
            start_key,
            end_key,
        } => Some(region("the key is not in the region".to_owned(), |e| {
            e.key_not_in_region = Some(errorpb::KeyNotInRegion {
                key,
                region_id,
                start_key,
                end_key,
            });
        })),
        CommandOutcome::Refused => {
            Some(Refusal::text("the command was refused when it was applied"))
        }
        CommandOutcome::ValueTooLarge { bytes, limit_bytes } => Some(Refusal::text(format!(
            "the value would grow to {bytes} bytes, above the limit of {limit_bytes}"
        ))),
        // Raw requests carry no session.
        CommandOutcome::SessionExpired | CommandOutcome::SequenceMismatch { .. } => {
            Some(Refusal::text("the session does not take the command"))
        }
        CommandOutcome::Done
        | CommandOutcome::CompareAndSwap { .. }
        | CommandOutcome::SessionOpened(_)
        | CommandOutcome::System(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use strata_raftstore::InvalidRequest;

    fn peer(store_id: u64) -> metapb::Peer {
        metapb::Peer {
            id: store_id + 100,
            store_id,
            ..Default::default()
        }
    }

    fn fields_set(error: &errorpb::Error) -> usize {
        usize::from(error.not_leader.is_some())
            + usize::from(error.region_not_found.is_some())
            + usize::from(error.key_not_in_region.is_some())
            + usize::from(error.epoch_not_match.is_some())
            + usize::from(error.server_is_busy.is_some())
            + usize::from(error.stale_command.is_some())
            + usize::from(error.store_not_match.is_some())
            + usize::from(error.raft_entry_too_large.is_some())
            + usize::from(error.read_index_not_ready.is_some())
            + usize::from(error.disk_full.is_some())
            + usize::from(error.mismatch_peer_id.is_some())
            + usize::from(error.undetermined_result.is_some())
    }

    #[test]
    fn each_error_sets_exactly_one_field_and_a_message() {
        let errors = [
            Error::NotLeader {
                region_id: 2,
                leader: None,
            },
            Error::RegionNotFound { region_id: 2 },
            Error::KeyNotInRegion {
                key: Bytes::from_static(b"k"),
                region_id: 2,
                start_key: Bytes::new(),
                end_key: Bytes::from_static(b"a"),
            },
            Error::EpochNotMatch {
                region_id: 2,
                current: vec![metapb::Region::default()],
            },
            Error::StaleCommand { region_id: 2 },
            Error::StoreNotMatch {
                requested: 1,
                actual: 2,
            },
            Error::MismatchPeerId {
                requested: 1,
                actual: 2,
            },
            Error::ServerIsBusy {
                reason: "inbox",
                backoff_ms: 10,
            },
            Error::RaftEntryTooLarge {
                region_id: 2,
                entry_bytes: 9 << 20,
                limit_bytes: 8 << 20,
            },
            Error::AnswerTooLarge {
                region_id: 2,
                limit_bytes: 32 << 20,
            },
            Error::ReadIndexNotReady { region_id: 2 },
            Error::DiskFull { store_id: 1 },
            Error::Undetermined {
                region_id: 2,
                leader: None,
            },
        ];
        for error in errors {
            let Refusal::Region(wire) = refuse(error.clone(), 1) else {
                panic!("{error} is no region error");
            };
            assert_eq!(fields_set(&wire), 1, "{error}");
            assert!(!wire.message.is_empty(), "{error}");
        }
    }

    #[test]
    fn a_lost_deadline_is_retried_and_an_invalid_request_is_not() {
        for error in [
            Error::DeadlineExceeded,
            Error::Cancelled,
            Error::Stopping("x".to_owned()),
        ] {
            let Refusal::Region(wire) = refuse(error, 1) else {
                panic!("not retried");
            };
            assert_eq!(fields_set(&wire), 0);
            assert!(!wire.message.is_empty());
        }
        let invalid = refuse(Error::Invalid(InvalidRequest::EmptyKey), 1);
        assert_eq!(invalid, Refusal::text("the key is empty"));
        assert_eq!(invalid.into_region_error(), None);
    }

    #[test]
    fn an_unknown_outcome_names_another_leader_but_never_this_store() {
        let wire = |leader| {
            let error = Error::Undetermined {
                region_id: 2,
                leader,
            };
            refuse(error, 1).into_region_error().unwrap()
        };
        assert_eq!(
            wire(Some(peer(3))).not_leader.unwrap().leader,
            Some(peer(3))
        );
        assert!(wire(Some(peer(1))).not_leader.is_none());
        assert!(wire(None).not_leader.is_none());
        for leader in [Some(peer(3)), Some(peer(1)), None] {
            assert!(wire(leader).undetermined_result.is_some(), "{leader:?}");
        }
    }
}
