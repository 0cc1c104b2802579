//! Messages for one other store, and the socket that they leave by.
//!
//! ```text
//! push -> waiting -> frame -> socket      by the thread that pushes, while the socket takes it
//!                         \-> the task    writes the rest when the socket takes more
//! ```
//!
//! Whoever holds the [`Writer`] writes, others add to what waits. So a message leaves with no
//! thread in between: a wake-up of the network's thread costs more than the write. What is large
//! or goes on for long is left to the store's task, so that a thread that has other things to do
//! is held up by one small write.
//!
//! Bounded by count and by bytes; what finds no room is dropped, the newest first, because
//! those before it are of use only in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntCounter;
use prost::Message as _;
use strata_proto::raft_serverpb::RaftMessage;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use super::frames::{EMPTY_FRAME, framed_bytes, put_messages};

/// Frames that a thread writes which pushes messages; the task goes on after them.
const PUSHED_FRAMES_MAX: usize = 2;
/// Bytes of waiting messages from which on they are left to the task.
const PUSHED_BYTES_MAX: usize = 64 << 10;
/// Frames that the task writes before others run.
const TASK_FRAMES_MAX: usize = 8;
/// Room that is kept for the next frame.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Limits of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    /// Messages that wait.
    pub(super) messages: usize,
    /// Bytes of messages that wait.
    pub(super) bytes: usize,
    /// Bytes from which on no further message joins a frame.
    pub(super) frame_bytes: usize,
    /// Bytes of one message; the receiver refuses larger frames.
    pub(super) message_bytes: usize,
}

/// A bounded queue with one writer at a time.
pub(super) struct MessageQueue {
    limits: QueueLimits,
    state: Mutex<State>,
    frames: IntCounter,
    ready: Notify,
    poked: Notify,
}

#[derive(Default)]
struct State {
    messages: VecDeque<(RaftMessage, usize)>,
    bytes: usize,
    ping: bool,
    /// Counts the streams: a writer of an earlier one is not put back.
    stream: u64,
    role: Role,
}

/// Who writes.
#[derive(Default)]
enum Role {
    /// There is no stream.
    #[default]
    Nobody,
    /// Whoever pushes next.
    Next(Writer),
    /// Somebody does.
    Taken,
    /// The task.
    Task(Writer),
    /// The stream has failed.
    Failed(io::Error),
}

/// A socket with what of a frame it did not take yet.
struct Writer {
    stream: u64,
    socket: Arc<OwnedWriteHalf>,
    outgoing: Vec<u8>,
    /// Bytes of it that the socket has taken.
    taken: usize,
}

/// How writing ended.
#[derive(Debug)]
pub(super) enum Written {
    /// All that waited, or somebody else is writing it.
    All,
    /// There is more, for which the socket has no room now.
    Blocked,
    /// There is more.
    More,
    /// The stream has failed.
    Failed(io::Error),
}

impl MessageQueue {
    /// `frames` counts frames with messages.
    pub(super) fn new(limits: QueueLimits, frames: IntCounter) -> Self {
        MessageQueue {
            limits,
            state: Mutex::default(),
            frames,
            ready: Notify::new(),
            poked: Notify::new(),
        }
    }

    /// Adds messages in order and returns how many found no room. One message always
    /// finds room in an empty queue, so that no entry is too large to be sent.
    pub(super) fn push(&self, messages: Vec<RaftMessage>) -> u64 {
        let mut state = self.state.lock();
        let dropped = state.add(messages, &self.limits);
        match std::mem::replace(&mut state.role, Role::Taken) {
            Role::Next(writer) if state.bytes <= PUSHED_BYTES_MAX => {
                drop(state);
                let written = self.write(writer, PUSHED_FRAMES_MAX, PUSHED_BYTES_MAX);
                if !matches!(written, Written::All) {
                    self.ready.notify_one();
                }
            }
            Role::Next(writer) => {
                state.role = Role::Task(writer);
                drop(state);
                self.ready.notify_one();
            }
            role => state.role = role,
        }
        dropped
    }

    /// From now on what is pushed leaves by `socket`, until [`MessageQueue::detach`].
    pub(super) fn attach(&self, socket: Arc<OwnedWriteHalf>) {
        let mut state = self.state.lock();
        state.stream += 1;
        state.ping = false;
        state.role = Role::Task(Writer {
            stream: state.stream,
            socket,
            outgoing: Vec::new(),
            taken: 0,
        });
        drop(state);
        self.ready.notify_one();
    }

    /// The stream is gone: what is pushed waits.
    pub(super) fn detach(&self) {
        let mut state = self.state.lock();
        state.stream += 1;
        state.role = Role::Nobody;
    }

    /// Has a ping leave before what waits. The task writes it.
    pub(super) fn ping(&self) {
        self.state.lock().ping = true;
    }

    /// The task's share: writes what nobody else does.
    pub(super) fn write_on(&self) -> Written {
        let mut state = self.state.lock();
        let writer = match std::mem::replace(&mut state.role, Role::Taken) {
            Role::Next(writer) | Role::Task(writer) => writer,
            Role::Failed(error) => {
                state.role = Role::Nobody;
                return Written::Failed(error);
            }
            role => {
                state.role = role;
                return Written::All;
            }
        };
        drop(state);
        self.write(writer, TASK_FRAMES_MAX, usize::MAX)
    }

    /// Writes frames until nothing waits, the socket is full, there were so many, or more waits
    /// than so many bytes.
    fn write(&self, mut writer: Writer, frames: usize, waiting_bytes_max: usize) -> Written {
        for _ in 0..frames {
            if writer.outgoing.is_empty() {
                let mut state = self.state.lock();
                if state.stream != writer.stream {
                    // What waits is another stream's.
                    return Written::All;
                }
                if state.bytes > waiting_bytes_max {
                    break;
                }
                let (ping, messages) = state.take_frame(self.limits.frame_bytes);
                if !ping && messages.is_empty() {
                    state.put_back(writer, Role::Next);
                    return Written::All;
                }
                drop(state);
                writer.add(ping, &messages);
                self.frames.inc_by(u64::from(!messages.is_empty()));
            }
            match writer.write() {
                Ok(true) => {}
                Ok(false) => {
                    self.state.lock().put_back(writer, Role::Task);
                    return Written::Blocked;
                }
                Err(error) => {
                    let again = io::Error::new(error.kind(), error.to_string());
                    self.state.lock().put_back(writer, |_| Role::Failed(again));
                    return Written::Failed(error);
                }
            }
        }
        self.state.lock().put_back(writer, Role::Task);
        Written::More
    }

    /// Drops all that waits and returns how many messages those were.
    pub(super) fn clear(&self) -> u64 {
        let mut state = self.state.lock();
        state.bytes = 0;
        let dropped = state.messages.len();
        state.messages.clear();
        dropped as u64
    }

    /// Waits until the task has something to write.
    pub(super) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Ends a pause between two attempts to connect.
    pub(super) fn poke(&self) {
        self.poked.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.poked.notified().await;
    }
}

impl State {
    fn add(&mut self, messages: Vec<RaftMessage>, limits: &QueueLimits) -> u64 {
        let mut dropped = 0;
        for message in messages {
            let bytes = message.encoded_len();
            let full = self.messages.len() >= limits.messages || self.bytes + bytes > limits.bytes;
            if full && !self.messages.is_empty() || framed_bytes(bytes) > limits.message_bytes {
                dropped += 1;
                continue;
            }
            self.bytes += bytes;
            self.messages.push_back((message, bytes));
        }
        dropped
    }

    /// Takes a ping that is due, and messages up to a size, at least one if there is one.
    fn take_frame(&mut self, frame_bytes: usize) -> (bool, Vec<(RaftMessage, usize)>) {
        let mut total = 0;
        let fitting = self.messages.iter().take_while(|(_, bytes)| {
            total += bytes;
            total <= frame_bytes
        });
        let count = fitting.count().max(1).min(self.messages.len());
        let frame: Vec<_> = self.messages.drain(..count).collect();
        self.bytes -= frame.iter().map(|(_, bytes)| bytes).sum::<usize>();
        (std::mem::take(&mut self.ping), frame)
    }

    /// Gives the part of the writer to another one, unless its stream is gone.
    fn put_back(&mut self, writer: Writer, role: impl FnOnce(Writer) -> Role) {
        if writer.stream == self.stream {
            self.role = role(writer);
        }
    }
}

impl Writer {
    fn add(&mut self, ping: bool, messages: &[(RaftMessage, usize)]) {
        if self.outgoing.capacity() > KEPT_BYTES_MAX {
            self.outgoing = Vec::new();
        }
        if ping {
            self.outgoing.extend_from_slice(&EMPTY_FRAME);
        }
        if !messages.is_empty() {
            put_messages(&mut self.outgoing, messages);
        }
    }

    /// True if the socket took all, false if it has no more room.
    fn write(&mut self) -> io::Result<bool> {
        while self.taken < self.outgoing.len() {
            match self.socket.try_write(&self.outgoing[self.taken..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.taken += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.taken = 0;
        Ok(true)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
