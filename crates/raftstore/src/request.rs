//! What a client may ask of a region, and the answers.
//!
//! A [`Request`] goes in with a [`Reply`]; the reply is delivered exactly once, by the
//! driver, with an [`Answer`] or an [`Error`]. Dropping the [`RequestToken`] gives the
//! request up as long as it is not proposed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use strata_proto::metapb;
use strata_proto::stratapb::{DataCommand, RawSpace};

use crate::error::Error;
use crate::system::SystemView;

/// One request to one region.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whom it addresses, and until when it is wanted.
    pub header: RequestHeader,
    /// What it asks.
    pub body: RequestBody,
}

/// Whom a request addresses, and until when it is wanted.
#[derive(Clone, Debug, Default)]
pub struct RequestHeader {
    /// The region.
    pub region_id: u64,
    /// The peer and store that the sender has in mind; `None`: not checked.
    pub peer: Option<metapb::Peer>,
    /// The epoch that the sender knows; only `version` is compared. `None`: not checked.
    pub epoch: Option<metapb::RegionEpoch>,
    /// The term that the sender knows; older by more than one is refused. 0: not checked.
    pub term: u64,
    /// True: any replica may answer a read, by ReadIndex.
    pub replica_read: bool,
    /// On the driver's clock; when it has passed and the request is neither proposed nor
    /// read, it is refused.
    pub deadline: Duration,
}

/// What a request asks.
#[derive(Clone, Debug)]
pub enum RequestBody {
    /// Reads raw data, linearizably.
    Read(ReadCommand),
    /// Executes the commands in order, all in one entry, which other requests may share.
    /// Answer: [`Answer::Written`] with one outcome per command.
    Write(Vec<DataCommand>),
    /// Hands the leadership to the peer on a store. Answer: [`Answer::Done`] when that
    /// peer leads.
    TransferLeader {
        /// The store whose peer shall lead.
        to_store_id: u64,
    },
    /// Changes the peers of the region: one change in one step, several by way of a joint
    /// membership, which the leader leaves by itself. The header's epoch is compared in
    /// both parts. Answer: [`Answer::Region`] when the change is applied; of several
    /// changes, when the joint membership is entered.
    ChangePeers {
        /// The changes; each peer and each store once.
        changes: Vec<PeerChange>,
    },
    /// Reads the system region, linearizably. Answer: [`Answer::System`].
    SystemRead,
    /// Executes one command of the system region's state machine.
    /// Answer: [`Answer::SystemWritten`].
    SystemWrite(Bytes),
}

/// One change of a region's peers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerChange {
    /// What becomes of the peer.
    pub kind: PeerChangeKind,
    /// Its id and store; the role is not looked at. Ids are never used twice.
    pub peer: metapb::Peer,
}

/// What becomes of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChangeKind {
    /// It votes: a new peer, or a learner so far.
    AddVoter,
    /// It gets the log and does not vote: a new peer, or a voter so far.
    AddLearner,
    /// It is no member any more, and destroys itself.
    Remove,
}

/// A read of raw data. Ranges are clipped to the region.
#[derive(Clone, Debug)]
pub enum ReadCommand {
    /// The value of a key. Answer: [`Answer::Value`].
    Get {
        /// Column family and comparison of the key.
        space: RawSpace,
        /// The key as the client sent it.
        key: Bytes,
    },
    /// The remaining life of a key. Answer: [`Answer::Ttl`].
    Ttl {
        /// Column family and comparison of the key.
        space: RawSpace,
        /// The key as the client sent it.
        key: Bytes,
    },
    /// The values of those keys that exist, in the order asked. Answer: [`Answer::Pairs`].
    BatchGet {
        /// Column family and comparison of the keys.
        space: RawSpace,
        /// The keys as the client sent them.
        keys: Vec<Bytes>,
    },
    /// Pairs of a range in order. Answer: [`Answer::Pairs`].
    Scan {
        /// Column family and comparison of the keys.
        space: RawSpace,
        /// Forward: inclusive lower bound. Reverse: exclusive upper bound; empty: unbounded.
        start: Bytes,
        /// Forward: exclusive upper bound; empty: unbounded. Reverse: inclusive lower bound.
        end: Bytes,
        /// At most so many pairs.
        limit: u32,
        /// True: values are left empty.
        key_only: bool,
        /// True: descending order.
        reverse: bool,
    },
    /// Pairs of several ranges, in the order of the ranges. Answer: [`Answer::Pairs`].
    BatchScan {
        /// Column family and comparison of the keys.
        space: RawSpace,
        /// `(start, end)` of each range, meant as in [`ReadCommand::Scan`].
        ranges: Vec<(Bytes, Bytes)>,
        /// At most so many pairs of each range.
        each_limit: u32,
        /// True: values are left empty.
        key_only: bool,
        /// True: each range in descending order.
        reverse: bool,
    },
    /// CRC-64/XZ over key then value of each pair, all XORed, by the region's clock.
    /// Answer: [`Answer::Checksum`].
    Checksum {
        /// Column family and comparison of the keys.
        space: RawSpace,
        /// Half-open ranges `(start, end)`; an empty end is unbounded.
        ranges: Vec<(Bytes, Bytes)>,
    },
}

/// What a served request yields.
#[derive(Clone)]
pub enum Answer {
    /// The value of a key; `None`: there is none, or it has expired.
    Value(Option<Bytes>),
    /// Remaining seconds, 0 for a value that never expires; `None`: there is no value.
    Ttl(Option<u64>),
    /// Keys, as clients name them, with their values.
    Pairs(Vec<(Bytes, Bytes)>),
    /// Checksum of the visible pairs.
    Checksum {
        /// CRC-64/XZ of each pair's key then value, XORed.
        crc64: u64,
        /// Number of pairs.
        pairs: u64,
        /// Sum of the lengths of keys and values.
        bytes: u64,
    },
    /// One outcome per command, in order.
    Written(Vec<CommandOutcome>),
    /// The system region as of an engine snapshot.
    System(Arc<dyn SystemView>),
    /// The response of the system region's state machine.
    SystemWritten(Bytes),
    /// The region after a change.
    Region(metapb::Region),
    /// Done; there is nothing to tell.
    Done,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => f.debug_tuple("Value").field(value).finish(),
            Answer::Ttl(seconds) => f.debug_tuple("Ttl").field(seconds).finish(),
            Answer::Pairs(pairs) => f.debug_tuple("Pairs").field(pairs).finish(),
            Answer::Checksum {
                crc64,
                pairs,
                bytes,
            } => f
                .debug_struct("Checksum")
                .field("crc64", crc64)
                .field("pairs", pairs)
                .field("bytes", bytes)
                .finish(),
            Answer::Written(outcomes) => f.debug_tuple("Written").field(outcomes).finish(),
            Answer::System(_) => f.write_str("System"),
            Answer::SystemWritten(bytes) => f.debug_tuple("SystemWritten").field(bytes).finish(),
            Answer::Region(region) => f.debug_tuple("Region").field(region).finish(),
            Answer::Done => f.write_str("Done"),
        }
    }
}

/// What became of one command of an entry. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Executed.
    Done,
    /// The verdict of a compare-and-swap.
    CompareAndSwap {
        /// True: the new value was written.
        succeeded: bool,
        /// The value seen before, by the region's clock.
        previous: Option<Bytes>,
    },
    /// A key of the command is not in the region; the command changed nothing.
    KeyNotInRegion {
        /// The key as the client sent it.
        key: Bytes,
        /// First boundary of the region.
        start_key: Bytes,
        /// Exclusive last boundary of the region; empty: unbounded.
        end_key: Bytes,
    },
    /// The response of the system region's state machine.
    System(Bytes),
    /// A session was opened; its id, 20 bytes.
    SessionOpened(Bytes),
    /// The session of the command is not known: it expired, or never was. The command was
    /// not executed.
    SessionExpired,
    /// The sequence number is neither that of the session's last operation nor the next
    /// one. The command was not executed.
    SequenceMismatch {
        /// The command's number.
        sequence: u64,
        /// That of the session's last operation; 0: there was none.
        last_sequence: u64,
    },
    /// The value would have become longer than an entry may be; the command changed
    /// nothing.
    ValueTooLarge {
        /// Length that the value would have had.
        bytes: u64,
        /// Largest length that is allowed.
        limit_bytes: u64,
    },
    /// The command has no body that this version knows, or a key that cannot exist; it
    /// changed nothing.
    Refused,
}

impl CommandOutcome {
    /// Bytes of the value that it carries.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            CommandOutcome::CompareAndSwap {
                previous: Some(value),
                ..
            }
            | CommandOutcome::System(value) => value.len(),
            _ => 0,
        }
    }
}

/// Delivers the result of one request, exactly once.
///
/// The stepped core only carries replies and hands them back with a result; the driver
/// calls [`Reply::deliver`]. A reply that is dropped delivers [`Error::Stopping`], so that
/// no client waits for a store that has gone; once its command is proposed that would
/// promise too much, and it delivers [`Error::Undetermined`].
pub struct Reply {
    deliver: Option<ReplyFn>,
    /// The region in whose log the command stands, if it does.
    proposed_to: Option<u64>,
}

/// A function that takes the result of a request. It is called once and must not block.
pub type ReplyFn = Box<dyn FnOnce(Result<Answer, Error>) + Send>;

impl Reply {
    /// Wraps a function that takes the result. It must not block.
    pub fn new(deliver: impl FnOnce(Result<Answer, Error>) + Send + 'static) -> Self {
        Reply {
            deliver: Some(Box::new(deliver)),
            proposed_to: None,
        }
    }

    /// The command stands in the log of a region: whoever drops the reply from now on
    /// cannot know what becomes of it.
    pub(crate) fn proposed(mut self, region_id: u64) -> Self {
        self.proposed_to = Some(region_id);
        self
    }

    /// Hands the result to the sender of the request.
    pub fn deliver(mut self, result: Result<Answer, Error>) {
        if let Some(deliver) = self.deliver.take() {
            deliver(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take() {
            deliver(Err(match self.proposed_to {
                None => Error::Stopping("the request was dropped".to_owned()),
                Some(region_id) => Error::Undetermined {
                    region_id,
                    leader: None,
                },
            }));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// The sender's hold on a request. Dropping it gives the request up if it is not yet
/// proposed; [`RequestToken::detach`] lets it run.
#[derive(Debug)]
pub struct RequestToken {
    cancelled: Option<Arc<AtomicBool>>,
}

impl RequestToken {
    /// Token of a request that can no longer be cancelled.
    pub(crate) fn settled() -> Self {
        RequestToken { cancelled: None }
    }

    /// Token and the flag that its drop raises.
    pub(crate) fn new() -> (Self, Cancellation) {
        let flag = Arc::new(AtomicBool::new(false));
        (
            RequestToken {
                cancelled: Some(flag.clone()),
            },
            Cancellation { flag: Some(flag) },
        )
    }

    /// True while the request waits to be proposed or served: giving it up still has an
    /// effect.
    pub fn is_waiting(&self) -> bool {
        self.cancelled
            .as_ref()
            .is_some_and(|flag| Arc::strong_count(flag) > 1)
    }

    /// Looks on, whatever becomes of the token.
    pub fn watch(&self) -> RequestWatch {
        RequestWatch {
            flag: self
                .cancelled
                .as_ref()
                .map(Arc::downgrade)
                .unwrap_or_default(),
        }
    }

    /// Lets the request run to its end whatever its sender does.
    pub fn detach(mut self) {
        self.cancelled = None;
    }
}

/// Looks on at a request, for tests: whether it still waits, also when its sender has gone.
#[derive(Debug)]
pub struct RequestWatch {
    /// Held by the request, and by its token.
    flag: Weak<AtomicBool>,
}

impl RequestWatch {
    /// True while the request waits to be proposed or served; `token` says whether its token
    /// is still there.
    pub fn is_waiting(&self, token: bool) -> bool {
        self.flag.strong_count() > usize::from(token)
    }
}

impl Drop for RequestToken {
    fn drop(&mut self) {
        if let Some(flag) = &self.cancelled {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

/// The other side of a [`RequestToken`].
#[derive(Clone, Debug, Default)]
pub struct Cancellation {
    flag: Option<Arc<AtomicBool>>,
}

impl Cancellation {
    /// True once the sender has given the request up.
    pub fn is_cancelled(&self) -> bool {
        self.flag
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}
