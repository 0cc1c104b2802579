//! The sending side of one stream.
//!
//! Offered   The offer is out; its answer says how much of each file is synced there.
//! Sending   Files in order, each from there on, at most a window ahead of what was taken.
//! Ended     All is sent; the receiver syncs, reads back and compares what is left.
//! Done      It said that the snapshot is complete.
//!
//! A sender lives as long as its stream. The next stream has a new one.

use std::time::Duration;

use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{
    SnapshotEnd, SnapshotFrame, SnapshotOffer, SnapshotProgress, SnapshotRefusal,
    SnapshotRefusalKind, SnapshotReply, snapshot_frame::Frame, snapshot_reply::Reply,
};
use strata_storage::snapshot::{CHUNK_BYTES, FileStore, SnapshotError, SnapshotRef};

use super::{TransferOptions, WINDOW_CHUNKS};

/// Bytes a second that a receiver reads at least: its parts at the offer. At the end, as much
/// time is enough for the last sync.
const READ_BACK_BYTES_PER_SECOND: u64 = 64 << 20;

/// Longest reason of a receiver that is kept, in characters.
const REASON_CHARS_MAX: usize = 500;

/// Why a stream ended without the snapshot being complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFault {
    /// The receiver ended it.
    #[error("refused ({}): {reason}", kind.as_str_name())]
    Refused {
        /// What can be done about it.
        kind: SnapshotRefusalKind,
        /// One line for people.
        reason: String,
    },
    /// The receiver answered what does not fit.
    #[error("the receiver's answer does not fit: {0}")]
    Unexpected(String),
    /// The receiver has answered nothing for too long.
    #[error("the receiver has answered nothing for {silent_ms} ms")]
    Stalled {
        /// Milliseconds since its last answer.
        silent_ms: u64,
    },
    /// The connection broke or could not be made; said by the host.
    #[error("{0}")]
    Broken(String),
    /// The own files cannot be read, or are damaged.
    #[error(transparent)]
    Files(#[from] SnapshotError),
    /// The snapshot is not among the own files any more.
    #[error("its files are gone")]
    Gone,
    /// The snapshot is of no use any more: this store does not lead the region in the
    /// message's term; said by the host.
    #[error("this store no longer leads the region in term {term}")]
    Outdated {
        /// Term of the message.
        term: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The offer is to be sent.
    New,
    Offered,
    Sending,
    Ended,
    Done,
}

/// A frame that is to leave next. If it carries a chunk, that is counted as sent, and still in its
/// file.
#[derive(Debug)]
pub struct NextFrame<F: FileStore>(Source<F>);

#[derive(Debug)]
enum Source<F: FileStore> {
    Ready(Box<SnapshotFrame>),
    File {
        snapshot: SnapshotRef<F>,
        file: u32,
        offset: u64,
        /// At most [`CHUNK_BYTES`].
        bytes: u64,
    },
}

impl<F: FileStore> NextFrame<F> {
    /// The frame. Blocks for the disk where a chunk is read.
    ///
    /// # Errors
    /// `Files`. The stream is of no use then.
    pub fn into_frame(self) -> Result<SnapshotFrame, SendFault> {
        let (snapshot, file, offset, bytes) = match self.0 {
            Source::Ready(frame) => return Ok(*frame),
            Source::File {
                snapshot,
                file,
                offset,
                bytes,
            } => (snapshot, file, offset, bytes),
        };
        let chunk = snapshot.read_chunk_of(file, offset, bytes as usize)?;
        Ok(SnapshotFrame {
            frame: Some(Frame::Chunk(chunk)),
        })
    }
}

/// Sends one snapshot over one stream.
#[derive(Debug)]
pub struct SnapshotSender<F: FileStore> {
    snapshot: SnapshotRef<F>,
    message: RaftMessage,
    chunk_bytes: usize,
    stall_time: Duration,
    phase: Phase,
    /// Of each file, how much was sent or is there already.
    sent: Vec<u64>,
    /// Bytes of all files that the receiver holds.
    /// Invariant: at most the sum of `sent`; never decreases.
    held_bytes: u64,
    /// When the receiver was last heard of, or had last nothing to say.
    heard: Duration,
    chunks_sent: u64,
}

impl<F: FileStore> SnapshotSender<F> {
    /// A sender for a new stream that was opened at `now`. `message` carries the
    /// description of `snapshot`.
    #[must_use]
    pub fn new(
        snapshot: SnapshotRef<F>,
        message: RaftMessage,
        options: &TransferOptions,
        now: Duration,
    ) -> Self {
        SnapshotSender {
            sent: vec![0; snapshot.meta().files.len()],
            snapshot,
            message,
            chunk_bytes: options.chunk_bytes.clamp(1, CHUNK_BYTES),
            stall_time: options.stall_time,
            phase: Phase::New,
            held_bytes: 0,
            heard: now,
            chunks_sent: 0,
        }
    }

    /// Takes one answer of the receiver.
    ///
    /// # Errors
    /// `Refused`, `Unexpected`. The stream is of no use then.
    pub fn handle(&mut self, now: Duration, reply: SnapshotReply) -> Result<(), SendFault> {
        self.heard = self.heard.max(now);
        match (reply.reply, self.phase) {
            (Some(Reply::Refused(refusal)), _) => Err(refused(refusal)),
            (Some(Reply::Progress(progress)), Phase::Offered) => self.on_progress(&progress),
            (Some(Reply::Taken(taken)), Phase::Sending | Phase::Ended) => {
                self.check_id(taken.id)?;
                self.on_taken(taken.held_bytes)
            }
            (Some(Reply::Done(done)), Phase::Offered | Phase::Ended) => {
                self.check_id(done.id)?;
                self.held_bytes = self.snapshot.total_bytes();
                self.phase = Phase::Done;
                Ok(())
            }
            (reply, phase) => Err(SendFault::Unexpected(format!(
                "{} while {phase:?}",
                name_of(reply.as_ref())
            ))),
        }
    }

    /// The next frame, if one may be sent now: a chunk is read when it is asked for.
    ///
    /// # Errors
    /// `Files`.
    pub fn next_frame(&mut self) -> Result<Option<SnapshotFrame>, SendFault> {
        self.next_to_send().map(NextFrame::into_frame).transpose()
    }

    /// As [`SnapshotSender::next_frame`], but what is to be read for it is left to the caller, who
    /// may read several chunks at a time. Their frames must leave in the order of the calls.
    #[must_use]
    pub fn next_to_send(&mut self) -> Option<NextFrame<F>> {
        let frame = match self.phase {
            Phase::New => {
                self.phase = Phase::Offered;
                Frame::Offer(SnapshotOffer {
                    message: Some(self.message.clone()),
                })
            }
            Phase::Sending => match self.next_file() {
                Some(_) if !self.has_room() => return None,
                Some(file) => {
                    let (offset, bytes) = (self.sent[file as usize], self.next_chunk_bytes(file));
                    self.sent[file as usize] += bytes;
                    self.chunks_sent += 1;
                    return Some(NextFrame(Source::File {
                        snapshot: self.snapshot.clone(),
                        file,
                        offset,
                        bytes,
                    }));
                }
                None => {
                    self.phase = Phase::Ended;
                    Frame::End(SnapshotEnd {
                        id: self.snapshot.meta().id,
                    })
                }
            },
            Phase::Offered | Phase::Ended | Phase::Done => return None,
        };
        let frame = SnapshotFrame { frame: Some(frame) };
        Some(NextFrame(Source::Ready(Box::new(frame))))
    }

    /// The host waited until `now` by its own will (for the rate limit), or for its own disk: that
    /// time does not count as the receiver's silence.
    pub fn forgive(&mut self, now: Duration) {
        self.heard = self.heard.max(now);
    }

    /// Ends a stream whose receiver is silent while it owes an answer.
    ///
    /// # Errors
    /// `Stalled`.
    pub fn check_stall(&self, now: Duration) -> Result<(), SendFault> {
        if self.phase == Phase::Done || now < self.stalls_at() {
            return Ok(());
        }
        let silent = now.saturating_sub(self.heard);
        Err(SendFault::Stalled {
            silent_ms: silent.as_millis() as u64,
        })
    }

    /// When [`SnapshotSender::check_stall`] refuses if nothing is heard until then.
    #[must_use]
    pub fn stalls_at(&self) -> Duration {
        let read_back = match self.phase {
            Phase::Offered | Phase::Ended => {
                self.snapshot.total_bytes() / READ_BACK_BYTES_PER_SECOND
            }
            Phase::New | Phase::Sending | Phase::Done => 0,
        };
        self.heard + self.stall_time + Duration::from_secs(read_back)
    }

    /// True once the receiver has the whole snapshot.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Bytes of all files that the receiver holds, as far as it has said.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Chunks that this stream has carried.
    #[must_use]
    pub fn chunks_sent(&self) -> u64 {
        self.chunks_sent
    }

    /// The answer to the offer; a receiver may hold no more than the files have.
    fn on_progress(&mut self, progress: &SnapshotProgress) -> Result<(), SendFault> {
        self.check_id(progress.id)?;
        let files = &self.snapshot.meta().files;
        if progress.parts.len() != files.len() {
            return Err(SendFault::Unexpected(format!(
                "progress of {} files, there are {}",
                progress.parts.len(),
                files.len()
            )));
        }
        for (part, file) in progress.parts.iter().zip(files) {
            if part.synced > file.length {
                return Err(SendFault::Unexpected(format!(
                    "{} bytes of {} held, there are {}",
                    part.synced, file.name, file.length
                )));
            }
        }
        self.sent = progress.parts.iter().map(|part| part.synced).collect();
        self.held_bytes = self.sent_bytes();
        self.phase = Phase::Sending;
        Ok(())
    }

    fn on_taken(&mut self, held_bytes: u64) -> Result<(), SendFault> {
        if held_bytes < self.held_bytes || held_bytes > self.sent_bytes() {
            return Err(SendFault::Unexpected(format!(
                "{held_bytes} bytes held, between {} and {} can be",
                self.held_bytes,
                self.sent_bytes()
            )));
        }
        self.held_bytes = held_bytes;
        Ok(())
    }

    fn check_id(&self, found: u64) -> Result<(), SendFault> {
        let expected = self.snapshot.meta().id;
        if found == expected {
            return Ok(());
        }
        Err(SendFault::Unexpected(format!(
            "snapshot {found:016x}, this is {expected:016x}"
        )))
    }

    /// The first file that is not sent whole.
    fn next_file(&self) -> Option<u32> {
        (0..self.sent.len() as u32).find(|file| self.sent[*file as usize] < self.length(*file))
    }

    fn length(&self, file: u32) -> u64 {
        self.snapshot.meta().files[file as usize].length
    }

    fn sent_bytes(&self) -> u64 {
        self.sent.iter().sum()
    }

    /// Bytes of the next chunk of a file that is not sent whole.
    fn next_chunk_bytes(&self, file: u32) -> u64 {
        let left = self.length(file) - self.sent[file as usize];
        left.min(self.chunk_bytes as u64)
    }

    fn has_room(&self) -> bool {
        self.sent_bytes() - self.held_bytes < WINDOW_CHUNKS * self.chunk_bytes as u64
    }
}

/// The receiver's words become a part of one line in the log.
fn refused(refusal: SnapshotRefusal) -> SendFault {
    let words = refusal.reason.replace(char::is_control, " ");
    SendFault::Refused {
        kind: refusal.kind(),
        reason: words.chars().take(REASON_CHARS_MAX).collect(),
    }
}

fn name_of(reply: Option<&Reply>) -> &'static str {
    match reply {
        None => "an empty answer",
        Some(Reply::Hello(_)) => "an answer to a hello",
        Some(Reply::Progress(_)) => "progress",
        Some(Reply::Taken(_)) => "a chunk's answer",
        Some(Reply::Done(_)) => "done",
        Some(Reply::Refused(_)) => "a refusal",
    }
}
