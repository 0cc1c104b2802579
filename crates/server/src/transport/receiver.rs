//! The receiving side of streams of raft messages between stores.
//!
//! Greet     The preface and a greeting, which is checked and answered, or refused with one line.
//! Deliver   Frame by frame, messages between the two stores go to the inboxes of their regions'
//!           shards, which drop what they have no room for: the stream never waits for them.
//! Say       A word for each ping, and every half of the sender's keepalive in which bytes came, so
//!           that the sender knows this side to live while a large frame is on its way.
//! End       With the connection, the node, a malformed frame, or five keepalives without a byte.
//!
//! Elsewhere: how the port tells such a stream apart (`listener`), the check of a greeting
//! (`greet`), what follows it in the stream of a snapshot (`snapshot`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use slog::{Logger, debug, info};
use strata_proto::stratapb::{StoreHello, StoreReply};
use strata_raftstore::StoreHandle;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::frames::{EMPTY_FRAME, FrameError, FrameReader, messages_between, put_frame};
use super::greet::{Greeter, one_line};
use crate::metrics::ServerMetrics;

/// Largest greeting: ids and an address.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// What `transport.keepalive` may be.
const KEEPALIVE_MIN: Duration = Duration::from_millis(100);
const KEEPALIVE_MAX: Duration = Duration::from_secs(600);
/// A sender pings each `transport.keepalive`. One that says nothing for so many of them is gone.
const SILENT_PINGS_MAX: u32 = 5;

/// Takes streams of raft messages.
#[derive(Clone)]
pub(crate) struct ExchangeServer {
    pub(crate) greeter: Greeter,
    pub(crate) store: StoreHandle,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) logger: Logger,
    pub(crate) handshake_time: Duration,
    /// Largest frame, in bytes.
    pub(crate) frame_bytes_max: usize,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// A greeting that was accepted.
struct Greeted {
    store_id: u64,
    /// The sender's pause between two pings.
    keepalive: Duration,
    frames: FrameReader<OwnedReadHalf>,
    socket: OwnedWriteHalf,
}

impl ExchangeServer {
    /// Takes a connection that begins with the preface: checks its greeting, answers it, and
    /// delivers what follows until the stream or the node ends.
    pub(crate) async fn serve(self, stream: TcpStream) {
        let mut stopping = self.stopping.clone();
        let ended = tokio::select! {
            ended = self.take(stream) => ended,
            _ = stopping.changed() => return,
        };
        match ended {
            Ok(()) => {}
            Err(FrameError::Closed) => {
                debug!(self.logger, "a stream from a store was closed");
            }
            Err(error) => {
                self.metrics.connections_failed.inc();
                debug!(self.logger, "a stream from a store broke off"; "reason" => %error);
            }
        }
    }

    async fn take(&self, stream: TcpStream) -> Result<(), FrameError> {
        let patience = self.handshake_time;
        let greeted = timeout(patience, self.greet(stream))
            .await
            .map_err(|_| FrameError::Silent(patience))??;
        let Some(greeted) = greeted else {
            return Ok(());
        };
        info!(self.logger, "stream from a store stands"; "peer_store" => greeted.store_id);
        self.receive(greeted).await
    }

    /// `None`: the sender was refused.
    async fn greet(&self, stream: TcpStream) -> Result<Option<Greeted>, FrameError> {
        let (from, mut socket) = stream.into_split();
        let mut frames = FrameReader::new(from);
        frames.preface().await?;
        let hello = StoreHello::decode(frames.next(HELLO_BYTES_MAX).await?)?;
        let (reply, accepted) = match self.greeter.accept(&hello).await {
            Ok(reply) => (reply, true),
            Err(status) => {
                let refusal = one_line(status.message());
                let reply = StoreReply {
                    refusal,
                    ..StoreReply::default()
                };
                (reply, false)
            }
        };
        let mut answer = Vec::new();
        put_frame(&mut answer, &reply);
        socket.write_all(&answer).await?;
        Ok(accepted.then_some(Greeted {
            store_id: hello.store_id,
            keepalive: Duration::from_millis(hello.keepalive_ms)
                .clamp(KEEPALIVE_MIN, KEEPALIVE_MAX),
            frames,
            socket,
        }))
    }

    /// Delivers messages, and says a word to each ping and while bytes come.
    async fn receive(&self, mut greeted: Greeted) -> Result<(), FrameError> {
        let to_store_id = self.greeter.cluster.store_id;
        let pause = greeted.keepalive / 2;
        let mut words = interval_at(Instant::now() + pause, pause);
        words.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reads, mut silent) = (0, 0);
        loop {
            let frame = tokio::select! {
                biased;
                _ = words.tick() => {
                    if reads != greeted.frames.reads() {
                        (reads, silent) = (greeted.frames.reads(), 0);
                        say(&greeted.socket)?;
                        continue;
                    }
                    silent += 1;
                    if silent >= 2 * SILENT_PINGS_MAX {
                        let patience = greeted.keepalive * SILENT_PINGS_MAX;
                        return Err(FrameError::Silent(patience));
                    }
                    continue;
                }
                frame = greeted.frames.next(self.frame_bytes_max) => frame?,
            };
            if frame.is_empty() {
                say(&greeted.socket)?;
                continue;
            }
            let (fitting, refused) = messages_between(frame, greeted.store_id, to_store_id)?;
            self.metrics.transport_refused.inc_by(refused);
            if !fitting.is_empty() {
                self.store.deliver(fitting);
            }
        }
    }
}

/// Says a word to the sender. One that reads none of them has no room for another, and needs none.
fn say(socket: &OwnedWriteHalf) -> Result<(), FrameError> {
    match socket.try_write(&EMPTY_FRAME) {
        Ok(written) if written == EMPTY_FRAME.len() => Ok(()),
        // Half a word; what follows would not be understood.
        Ok(_) => Err(FrameError::Closed),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.into()),
    }
}
