//! A simulated client: which store it asks, and what it does with the answers.
//!
//! It behaves as client libraries do: it remembers the leader of each region, follows the
//! leader that a refusal names, tries the next store where none is named, waits where it
//! is told that the server is busy, and gives an attempt up when no answer comes. Every
//! attempt is a new operation in the history, for without a session nothing ties two
//! attempts together. A clerk's attempts in a session are one ([`clerk`](crate::clerk)).
//!
//! The decisions are here and touch nothing else; the cluster sends, waits and records.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use strata_client::clerk::course::{Sessions, Step};
use strata_proto::metapb::Region;
use strata_raftstore::{Answer, Error};

use crate::history::OperationId;
use crate::operation::ClientOperation;
use crate::workload::Workload;

/// Wait before another store is asked when no leader is known.
const LEADERLESS_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(60));

/// Names a client.
pub type ClientId = u64;

/// What an attempt came to.
#[derive(Clone, Debug)]
pub enum AttemptResult {
    /// The store answered.
    Answered(Answer),
    /// The store refused; there was and will be no effect.
    Refused(Error),
    /// Nothing listens there; there was and will be no effect.
    Unreachable,
    /// Nobody can tell: the store said so, or never answered.
    Unknown(Option<Error>),
}

impl AttemptResult {
    /// Sorts what a store replied.
    #[must_use]
    pub fn of(result: Result<Answer, Error>) -> Self {
        match result {
            Ok(answer) => AttemptResult::Answered(answer),
            Err(error @ Error::Undetermined { .. }) => AttemptResult::Unknown(Some(error)),
            Err(error) => AttemptResult::Refused(error),
        }
    }
}

/// What a client does after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The operation is done; the next one follows after a pause.
    Done,
    /// The operation is tried again after this time.
    Again(Duration),
    /// The operation is given up with unknown outcome.
    GiveUp,
}

/// An attempt's place in the history.
#[derive(Debug)]
pub(crate) struct Entered {
    /// The keys that it touches, in the order in which they were entered.
    pub keys: Vec<bytes::Bytes>,
    /// `None`: none of them is in the history.
    pub operation: Option<OperationId>,
}

/// An attempt that waits for its answer.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub call: u64,
    pub entered: Entered,
    /// What a clerk sent for it in a session.
    pub step: Option<Step>,
}

/// A client and what it is at.
#[derive(Debug)]
pub(crate) struct Client {
    pub id: ClientId,
    /// Operations to be done before the workload's.
    pub queue: VecDeque<ClientOperation>,
    /// Where further operations come from.
    pub workload: Option<Workload>,
    /// The operation under way.
    pub operation: Option<ClientOperation>,
    pub attempt: Option<Attempt>,
    /// Attempts of the operation so far.
    pub tries: u32,
    /// Store that led each region when last heard of.
    pub leaders: BTreeMap<u64, u64>,
    /// Operations whose success was acknowledged.
    pub acknowledged: u64,
    /// Answer of the operation that was done last.
    pub last_answer: Option<Answer>,
    /// True: half of the operations whose outcome is not known are given up. False: they
    /// are tried until they are acknowledged.
    pub gives_up: bool,
    /// A clerk's sessions; `None`: each attempt is an operation of its own.
    pub clerk: Option<Sessions>,
    /// A clerk's operation in the history, between two attempts.
    pub entered: Option<Entered>,
}

impl Client {
    pub(crate) fn new(id: ClientId, workload: Option<Workload>) -> Self {
        let workload_given = workload.is_some();
        Client {
            id,
            queue: VecDeque::new(),
            workload,
            operation: None,
            attempt: None,
            tries: 0,
            leaders: BTreeMap::new(),
            acknowledged: 0,
            last_answer: None,
            gives_up: workload_given,
            clerk: None,
            entered: None,
        }
    }

    /// True if nothing is under way and nothing more will come by itself.
    pub(crate) fn is_idle(&self) -> bool {
        self.operation.is_none() && self.queue.is_empty() && self.workload.is_none()
    }

    /// The store to ask for a region, which one of `stores` may hold.
    pub(crate) fn target(
        &self,
        region: &Region,
        stores: &[u64],
        any_replica: bool,
        rng: &mut ChaCha8Rng,
    ) -> u64 {
        let known = self
            .leaders
            .get(&region.id)
            .copied()
            .filter(|_| !any_replica);
        known.unwrap_or_else(|| stores[rng.random_range(0..stores.len())])
    }

    /// Learns from a result and decides how to go on.
    pub(crate) fn decide(
        &mut self,
        region: &Region,
        asked: u64,
        result: &AttemptResult,
        rng: &mut ChaCha8Rng,
    ) -> Next {
        let backoff = crate::network::between(rng, LEADERLESS_BACKOFF);
        match result {
            AttemptResult::Answered(_) => {
                self.leaders.entry(region.id).or_insert(asked);
                Next::Done
            }
            AttemptResult::Unreachable => {
                self.forget(region, asked);
                Next::Again(backoff)
            }
            AttemptResult::Unknown(_) => {
                self.forget(region, asked);
                if self.gives_up && rng.random() {
                    Next::GiveUp
                } else {
                    Next::Again(backoff)
                }
            }
            AttemptResult::Refused(error) => match error {
                Error::NotLeader {
                    leader: Some(leader),
                    ..
                } => {
                    self.leaders.insert(region.id, leader.store_id);
                    Next::Again(backoff / 10)
                }
                Error::NotLeader { leader: None, .. } | Error::ReadIndexNotReady { .. } => {
                    self.forget(region, asked);
                    Next::Again(backoff)
                }
                Error::ServerIsBusy { backoff_ms, .. } => {
                    Next::Again(Duration::from_millis(*backoff_ms) / 4 + backoff)
                }
                Error::StaleCommand { .. } => Next::Again(backoff / 10),
                Error::Cancelled | Error::DeadlineExceeded | Error::RegionNotFound { .. } => {
                    self.forget(region, asked);
                    Next::Again(backoff)
                }
                Error::KeyNotInRegion { .. }
                | Error::EpochNotMatch { .. }
                | Error::StoreNotMatch { .. }
                | Error::MismatchPeerId { .. }
                | Error::RaftEntryTooLarge { .. }
                | Error::AnswerTooLarge { .. }
                | Error::DiskFull { .. }
                | Error::Undetermined { .. }
                | Error::Invalid(_)
                | Error::Stopping(_) => Next::Again(backoff),
            },
        }
    }

    fn forget(&mut self, region: &Region, asked: u64) {
        if self.leaders.get(&region.id) == Some(&asked) {
            self.leaders.remove(&region.id);
        }
    }
}
