//! The receiving side of one stream.
//!
//! Waiting    For the offer: it must be a snapshot from that store to this one, its
//!            description must hold, and the host's check must want it.
//! Receiving  Each chunk is checked and appended; now and then all is synced.
//! Over       The snapshot was completed or something was refused.
//!
//! Invariant: once a stream is over, the parts are free for the next stream, and what was
//! taken of them is synced.

use std::time::Duration;

use strata_proto::eraftpb::MessageType;
use strata_proto::metapb::Peer;
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{
    SnapshotDone, SnapshotFrame, SnapshotMeta, SnapshotReply, SnapshotTaken, snapshot_frame::Frame,
    snapshot_reply::Reply,
};
use strata_storage::snapshot::{
    FileStore, MetaFault, Offered, Receiver, SnapshotError, SnapshotManager, from_raft,
};

use super::{TransferOptions, refusal};

/// What became of a frame.
#[derive(Debug)]
pub enum Received {
    /// Send the reply; more frames are to come.
    Reply(SnapshotReply),
    /// The snapshot is complete and synced. Deliver the message to the region's shard,
    /// then send the reply; the stream is over.
    Complete {
        /// The offer's, whose data is the description.
        message: Box<RaftMessage>,
        /// Says so to the sender.
        reply: SnapshotReply,
    },
    /// Send the reply; the stream is over. A fatal error must end the process. The reply to a
    /// snapshot that is not needed any more says that it is done.
    Refused {
        /// Why.
        error: SnapshotError,
        /// Says so to the sender.
        reply: SnapshotReply,
    },
}

enum Phase<F: FileStore> {
    Waiting,
    Receiving {
        receiver: Receiver<F>,
        message: Box<RaftMessage>,
    },
    Over,
}

/// Takes one snapshot from one stream.
pub struct SnapshotReceiver<F: FileStore> {
    manager: SnapshotManager<F>,
    from_store_id: u64,
    own_store_id: u64,
    stall_time: Duration,
    phase: Phase<F>,
    heard: Duration,
}

impl<F: FileStore> SnapshotReceiver<F> {
    /// A receiver for a new stream from a store, opened at `now`.
    #[must_use]
    pub fn new(
        manager: SnapshotManager<F>,
        from_store_id: u64,
        own_store_id: u64,
        options: &TransferOptions,
        now: Duration,
    ) -> Self {
        SnapshotReceiver {
            manager,
            from_store_id,
            own_store_id,
            stall_time: options.stall_time,
            phase: Phase::Waiting,
            heard: now,
        }
    }

    /// Takes one frame. `check` is asked once, at the offer, with the whole message and
    /// its description: is this snapshot wanted here?
    pub fn handle(
        &mut self,
        now: Duration,
        frame: SnapshotFrame,
        check: impl FnOnce(&SnapshotMeta, &RaftMessage) -> Result<(), SnapshotError>,
    ) -> Received {
        self.heard = self.heard.max(now);
        let done = match (frame.frame, &mut self.phase) {
            (Some(Frame::Offer(offer)), Phase::Waiting) => {
                self.on_offer(offer.message.unwrap_or_default(), check)
            }
            (Some(Frame::Chunk(chunk)), Phase::Receiving { receiver, .. }) => {
                receiver.accept(&chunk).map(|()| {
                    Received::Reply(reply(Reply::Taken(SnapshotTaken {
                        id: chunk.id,
                        held_bytes: receiver.held_bytes(),
                    })))
                })
            }
            (Some(Frame::End(end)), Phase::Receiving { .. }) => self.on_end(end.id),
            (frame, phase) => Err(SnapshotError::OutOfTurn {
                expected: phase.expects(),
                found: name_of(frame.as_ref()),
            }),
        };
        done.unwrap_or_else(|error| self.refuse(error))
    }

    /// Ends a stream whose sender has been silent for too long; `None` if it has not.
    pub fn check_stall(&mut self, now: Duration) -> Option<Received> {
        let silent = now.saturating_sub(self.heard);
        if matches!(self.phase, Phase::Over) || silent < self.stall_time {
            return None;
        }
        let silent_ms = silent.as_millis() as u64;
        Some(self.refuse(SnapshotError::Stalled { silent_ms }))
    }

    /// When [`SnapshotReceiver::check_stall`] refuses if nothing is heard until then.
    #[must_use]
    pub fn stalls_at(&self) -> Duration {
        self.heard + self.stall_time
    }

    /// The stream broke or is given up: syncs what was taken, so that the next one begins
    /// behind it, and lets the parts go.
    ///
    /// # Errors
    /// `SyncFailed`, which is fatal; others mean that less is kept.
    pub fn close(&mut self) -> Result<(), SnapshotError> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Receiving { mut receiver, .. } => receiver.sync(),
            Phase::Waiting | Phase::Over => Ok(()),
        }
    }

    /// Bytes that are here and bytes that there will be; `None` while nothing is received.
    #[must_use]
    pub fn progress(&self) -> Option<(u64, u64)> {
        match &self.phase {
            Phase::Receiving { receiver, .. } => Some((
                receiver.held_bytes(),
                strata_storage::snapshot::total_bytes(receiver.meta()),
            )),
            Phase::Waiting | Phase::Over => None,
        }
    }

    fn on_offer(
        &mut self,
        message: RaftMessage,
        check: impl FnOnce(&SnapshotMeta, &RaftMessage) -> Result<(), SnapshotError>,
    ) -> Result<Received, SnapshotError> {
        let meta = self.description(&message)?;
        match check(&meta, &message) {
            Err(error @ SnapshotError::Stale { .. }) => return Ok(self.not_needed(error, meta.id)),
            checked => checked?,
        }
        let message = Box::new(message);
        match self.manager.receive(&meta)? {
            Offered::Complete(_) => Ok(self.complete(message, meta.id)),
            Offered::Receive(receiver) => {
                let progress = receiver.progress();
                self.phase = Phase::Receiving { receiver, message };
                Ok(Received::Reply(reply(Reply::Progress(progress))))
            }
        }
    }

    /// The description in an offer, once all of the offer fits together.
    fn description(&self, message: &RaftMessage) -> Result<SnapshotMeta, SnapshotError> {
        let on = |peer: &Option<Peer>, store| peer.is_some_and(|peer| peer.store_id == store);
        let elsewhere = SnapshotError::NotForHere {
            region_id: message.region_id,
            from: self.from_store_id,
            to: self.own_store_id,
        };
        let raft = message
            .message
            .as_ref()
            .filter(|raft| raft.msg_type() == MessageType::MsgSnapshot);
        let snapshot = raft.and_then(|raft| raft.snapshot.as_ref());
        let fits =
            on(&message.from_peer, self.from_store_id) && on(&message.to_peer, self.own_store_id);
        let Some(snapshot) = snapshot.filter(|_| fits) else {
            return Err(elsewhere);
        };
        let meta = from_raft(snapshot, F::FORM)?;
        let described = meta.region.as_ref().map(|region| region.id);
        if described != Some(message.region_id) {
            return Err(MetaFault::Message.into());
        }
        Ok(meta)
    }

    fn on_end(&mut self, id: u64) -> Result<Received, SnapshotError> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Receiving { receiver, message } if receiver.meta().id == id => {
                receiver.finish()?;
                Ok(self.complete(message, id))
            }
            Phase::Receiving { receiver, message } => {
                let expected = receiver.meta().id;
                self.phase = Phase::Receiving { receiver, message };
                Err(SnapshotError::ForeignId {
                    expected,
                    found: id,
                })
            }
            Phase::Waiting | Phase::Over => {
                unreachable!("an end is handled only while receiving")
            }
        }
    }

    fn complete(&mut self, message: Box<RaftMessage>, id: u64) -> Received {
        self.phase = Phase::Over;
        Received::Complete {
            message,
            reply: reply(Reply::Done(SnapshotDone { id })),
        }
    }

    /// What the snapshot covers is applied here already: a leader that offers it has not heard
    /// so. It is told that the snapshot is done and probes behind it; were it told of a failure,
    /// it would make the same offer again, for ever.
    fn not_needed(&mut self, error: SnapshotError, id: u64) -> Received {
        self.phase = Phase::Over;
        Received::Refused {
            error,
            reply: reply(Reply::Done(SnapshotDone { id })),
        }
    }

    fn refuse(&mut self, error: SnapshotError) -> Received {
        // A sync that fails while the stream ends matters more than why it ends.
        let error = match self.close() {
            Err(failed) if failed.is_fatal() => failed,
            Ok(()) | Err(_) => error,
        };
        Received::Refused {
            reply: refusal(&error),
            error,
        }
    }
}

impl<F: FileStore> Phase<F> {
    fn expects(&self) -> &'static str {
        match self {
            Phase::Waiting => "an offer",
            Phase::Receiving { .. } => "a chunk or an end",
            Phase::Over => "nothing",
        }
    }
}

fn reply(reply: Reply) -> SnapshotReply {
    SnapshotReply { reply: Some(reply) }
}

fn name_of(frame: Option<&Frame>) -> &'static str {
    match frame {
        None => "an empty frame",
        Some(Frame::Hello(_)) => "a hello",
        Some(Frame::Offer(_)) => "an offer",
        Some(Frame::Chunk(_)) => "a chunk",
        Some(Frame::End(_)) => "an end",
    }
}
