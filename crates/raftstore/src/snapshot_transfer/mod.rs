//! Sends a snapshot's files to another store, over one stream of its own.
//!
//! ```text
//! leader's store                        follower's store
//! SnapshotSender   -- offer ---------->  SnapshotReceiver: is it wanted? is there room?
//!                  <------- progress --  what is synced of each file (crash rule 11)
//!                  -- chunk ---------->  checked, appended; synced now and then
//!                  <---------- taken --  bytes held; the sender's window moves on
//!                  -- end ------------>  all synced, read back, named
//!                  <----------- done --  and the raft message goes to the shard
//! ```
//! Offer     The raft message, whose data is the snapshot's description. What is complete
//!           on the receiver already is done at once.
//! Chunks    At most [`WINDOW_CHUNKS`] are under way, so neither side holds more, whatever
//!           lies between them.
//! Refusal   Any frame may be refused; the stream ends, and what was taken is synced first.
//!           The refusal's kind says whether the same offer is worth another stream.
//!           What is applied there already is answered as done: the leader may have missed it.
//! Repeat    [`SendRetry`] gives a broken or refused stream its successor, until nothing
//!           new has arrived for long enough. The new stream resumes.
//!
//! Both sides are stepped: a frame goes in, a frame comes out, and the time comes with it.
//! They wait for nothing but the disk. A host that carries frames keeps those of a stream
//! in order; one that is lost or comes twice ends the stream with a typed refusal.
//!
//! Invariants
//! * The raft message is given out only when the snapshot is complete and synced.
//! * What comes from the other side is checked; nothing of it panics.
//!
//! Elsewhere: files (`strata_storage::snapshot`), sockets and threads (server).

mod rate;
mod receiver;
mod refusal;
mod retry;
mod sender;
mod slots;
#[cfg(test)]
mod tests;

use std::time::Duration;

use strata_storage::snapshot::CHUNK_BYTES;

pub use rate::RateLimit;
pub use receiver::{Received, SnapshotReceiver};
pub use refusal::refusal;
pub use retry::SendRetry;
pub use sender::{NextFrame, SendFault, SnapshotSender};
pub use slots::{ReceiveSlots, SlotRefused};

/// Chunks that a sender has under way at most, in whole chunks of the largest size.
pub const WINDOW_CHUNKS: u64 = 8;

/// How snapshots travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferOptions {
    /// Most bytes of a chunk, between 1 and [`CHUNK_BYTES`].
    pub chunk_bytes: usize,
    /// A side that hears nothing of the other for so long ends the stream.
    pub stall_time: Duration,
    /// Pause before the first repeat; doubles up to `retry_pause_max`, and begins again
    /// when something new arrived.
    pub retry_pause_min: Duration,
    /// Longest pause before a repeat.
    pub retry_pause_max: Duration,
    /// A snapshot of which nothing new arrives for so long is given up.
    pub send_timeout: Duration,
}

impl Default for TransferOptions {
    fn default() -> Self {
        TransferOptions {
            chunk_bytes: CHUNK_BYTES,
            stall_time: Duration::from_secs(10),
            retry_pause_min: Duration::from_millis(100),
            retry_pause_max: Duration::from_secs(2),
            send_timeout: Duration::from_secs(60),
        }
    }
}
