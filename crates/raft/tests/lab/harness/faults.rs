//! Faults planted on purpose, to show that the checkers see them.
//!
//! Each breaks a server, a disk or a message, never the core and never a checker. A run
//! with one of them must end in the violation that belongs to it.

use strata_proto::eraftpb::{Message, MessageType};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A restart loses the vote and keeps the term.
    ForgetVote,
    /// A restart loses the last synced entries, as a disk that ignores fsync would.
    LoseSyncedEntries,
    /// Votes and answers to appends leave before the write is synced.
    PromiseBeforeSync,
    /// The service applies each tenth entry twice.
    ApplyTwice,
    /// The service skips each tenth entry.
    SkipEntry,
    /// One server's service writes down something else than it was given.
    ApplyOther,
    /// An append tells that all it holds is committed.
    CommitUncommitted,
    /// Requests for votes claim a log that is longer than any other.
    ClaimLongLog,
    /// An append's entries are changed on the way.
    ChangeEntries,
    /// Reads are answered from the own applied state by whoever believes to lead.
    ReadWithoutQuorum,
    /// Snapshots are taken and the log stays.
    NeverCompact,
    /// An installed snapshot is lost, and its log with it, but not the index.
    EmptySnapshot,
    /// All messages are dropped, for ever.
    SilentNetwork,
}

impl Fault {
    /// Changes a message on its way.
    pub fn rewrite(self, message: &mut Message) {
        match (self, message.msg_type()) {
            (Fault::CommitUncommitted, MessageType::MsgAppend) => {
                message.commit = message.index + message.entries.len() as u64;
            }
            (Fault::ClaimLongLog, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote) => {
                message.index = u64::MAX / 2;
                message.log_term = message.term;
            }
            (Fault::ChangeEntries, MessageType::MsgAppend) if message.to.is_multiple_of(2) => {
                for entry in message
                    .entries
                    .iter_mut()
                    .filter(|entry| entry.data.len() >= 8)
                {
                    let mut data = entry.data.to_vec();
                    data[0] ^= 1;
                    entry.data = data.into();
                }
            }
            (Fault::EmptySnapshot, MessageType::MsgSnapshot) => {
                if let Some(snapshot) = message.snapshot.as_mut() {
                    snapshot.data = bytes::Bytes::new();
                }
            }
            _ => {}
        }
    }
}
