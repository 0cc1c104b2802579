//! What can go wrong, one variant for each decision that a caller can make.
//!
//! Every text is one line that says what to do, because the command line prints it as it is.

use std::time::Duration;

/// Result of a call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The list of endpoints is empty or one of them is not `HOST:PORT`.
    #[error("endpoint {endpoint:?} is not HOST:PORT: {reason}")]
    BadEndpoint {
        /// The word as it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller asked for something that no store could do. Nothing was sent.
    #[error("{0}")]
    InvalidArgument(String),
    /// The time budget ran out and no attempt was executed: a read has no answer, a write
    /// has changed nothing. Trying again later may succeed.
    #[error(
        "no answer in {} ms after {attempts} attempts ({last}): see `strata status`, and try again",
        waited.as_millis()
    )]
    Exhausted {
        /// How often a request was sent or an address looked up.
        attempts: u32,
        /// Time spent.
        waited: Duration,
        /// What the last attempt met.
        last: String,
    },
    /// A write whose answer was lost: it may have been executed, may be executed late, or
    /// may never be. Reading the key tells which.
    #[error(
        "outcome unknown, the write may or may not be there ({last}): read the key to find out"
    )]
    Unknown {
        /// What the last attempt of unknown outcome met.
        last: String,
    },
    /// A store refused the request for good. Nothing was written.
    #[error("refused: {message}")]
    Refused {
        /// The store's words.
        message: String,
    },
    /// The command is larger than an entry of the log may be. Nothing was written.
    #[error("{size} bytes are more than one entry may hold: make the value or the batch smaller")]
    EntryTooLarge {
        /// Size of the entry in bytes.
        size: u64,
    },
    /// What was asked for is more than one answer may hold. Scans and batch gets ask for
    /// less by themselves; this is left where a single pair is too large.
    #[error("the answer is larger than {limit} bytes: ask for fewer rows or keys at once")]
    AnswerTooLarge {
        /// Most bytes of an answer.
        limit: u64,
    },
    /// The scheduler refused the call.
    #[error("the scheduler refused: {message}")]
    Scheduler {
        /// The type of `pdpb.Error`, as its number.
        kind: i32,
        /// The scheduler's words.
        message: String,
    },
    /// What was looked up does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// An answer that the protocol does not allow.
    #[error("malformed answer: {0}")]
    Malformed(String),
}

impl Error {
    /// True when the same call may succeed later and has certainly changed nothing so far.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Exhausted { .. })
    }
}
