//! The receiving side of streams between stores.
//!
//! Elsewhere: how the port tells such a stream apart (`listener`), the check of a greeting
//! (`greet`), what follows it in the stream of a snapshot (`snapshot`).

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use slog::{Logger, debug, info};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{StoreHello, StoreReply};
use strata_raftstore::StoreHandle;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::frames::{EMPTY_FRAME, FrameError, FrameReader, messages_of, put_frame};
use super::greet::{Greeter, one_line};
use crate::metrics::ServerMetrics;

/// Largest greeting: ids and an address.
const HELLO_BYTES_MAX: usize = 4 << 10;
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
    pub(crate) keepalive: Duration,
    /// Largest frame, in bytes.
    pub(crate) frame_bytes_max: usize,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// A greeting that was accepted.
struct Greeted {
    store_id: u64,
    frames: FrameReader<OwnedReadHalf>,
    socket: OwnedWriteHalf,
}

impl ExchangeServer {
    /// Takes a connection that begins with the preface: checks its greeting, answers it, and
    /// delivers what follows until the stream or the node ends.
    pub(crate) async fn serve(mut self, stream: TcpStream) {
        let Ok(greeted) = timeout(self.handshake_time, self.greet(stream)).await else {
            self.metrics.connections_failed.inc();
            return;
        };
        let ended = match greeted {
            Ok(Some(greeted)) => {
                info!(self.logger, "stream from a store stands"; "peer_store" => greeted.store_id);
                self.receive(greeted).await
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) | Err(FrameError::Closed) => {}
            Err(error) => {
                self.metrics.connections_failed.inc();
                debug!(self.logger, "a stream from a store broke off"; "reason" => %error);
            }
        }
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
            frames,
            socket,
        }))
    }

    /// Delivers messages and answers pings.
    async fn receive(&mut self, mut greeted: Greeted) -> Result<(), FrameError> {
        let patience = self.keepalive * SILENT_PINGS_MAX;
        let to_store_id = self.greeter.cluster.store_id;
        loop {
            let frame = tokio::select! {
                frame = timeout(patience, greeted.frames.next(self.frame_bytes_max)) => frame,
                _ = self.stopping.changed() => return Ok(()),
            };
            let frame = frame.map_err(|_| FrameError::Silent(patience))??;
            if frame.is_empty() {
                // A sender that does not read its answers is held up by nothing but this.
                timeout(patience, greeted.socket.write_all(&EMPTY_FRAME))
                    .await
                    .map_err(|_| FrameError::Silent(patience))??;
                continue;
            }
            let messages = messages_of(frame)?;
            let (fitting, refused) = split_fitting(messages, greeted.store_id, to_store_id);
            self.metrics.transport_refused.inc_by(refused);
            if !fitting.is_empty() {
                self.store.deliver(fitting);
            }
        }
    }
}

/// Messages that come from and go to the stores of the stream, and how many do not.
pub(crate) fn split_fitting(
    messages: Vec<RaftMessage>,
    from: u64,
    to: u64,
) -> (Vec<RaftMessage>, u64) {
    let all = messages.len();
    let fits = |message: &RaftMessage| {
        let on = |peer: &Option<strata_proto::metapb::Peer>, store| {
            peer.as_ref().is_some_and(|peer| peer.store_id == store)
        };
        on(&message.from_peer, from) && on(&message.to_peer, to)
    };
    let fitting: Vec<_> = messages.into_iter().filter(fits).collect();
    let refused = all - fitting.len();
    (fitting, refused as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::metapb::Peer;

    #[test]
    fn messages_of_other_stores_are_refused() {
        let peer = |store_id| Peer {
            id: 1,
            store_id,
            ..Default::default()
        };
        let message = |from, to| RaftMessage {
            from_peer: Some(peer(from)),
            to_peer: Some(peer(to)),
            ..Default::default()
        };
        let messages = vec![
            message(2, 1),
            message(3, 1),
            message(2, 3),
            RaftMessage::default(),
        ];
        let (fitting, refused) = split_fitting(messages, 2, 1);
        assert_eq!((fitting.len(), refused), (1, 3));
    }
}
