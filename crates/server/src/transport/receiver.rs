//! The receiving side of streams between stores.
//!
//! Elsewhere: the check of a greeting (`greet`), what follows it in the stream of a
//! snapshot (`snapshot`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, info};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{StoreFrame, StoreReply};
use strata_raftstore::StoreHandle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::greet::Greeter;
use crate::metrics::ServerMetrics;

/// Answers of one stream.
pub(crate) type ReplyStream =
    Pin<Box<dyn Stream<Item = Result<StoreReply, Status>> + Send + 'static>>;

/// Serves `Exchange`.
#[derive(Clone)]
pub(crate) struct ExchangeServer {
    pub(crate) greeter: Greeter,
    pub(crate) store: StoreHandle,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) logger: Logger,
    pub(crate) handshake_time: Duration,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl ExchangeServer {
    /// Takes a stream: checks its greeting, answers it, and delivers what follows.
    pub(crate) async fn exchange(
        &self,
        request: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<ReplyStream>, Status> {
        let mut frames = request.into_inner();
        let first = timeout(self.handshake_time, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream did not greet"))??;
        let hello = first
            .and_then(|frame| frame.hello)
            .ok_or_else(|| Status::invalid_argument("the first frame must be a greeting"))?;
        let reply = self.greeter.accept(&hello).await?;
        info!(self.logger, "stream from a store stands"; "peer_store" => hello.store_id);
        let (replies, stream) = mpsc::channel(1);
        let _ = replies.send(Ok(reply)).await;
        let server = self.clone();
        tokio::spawn(async move { server.receive(hello.store_id, frames, replies).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    /// Delivers messages until the stream ends; dropping `replies` then ends the answers.
    async fn receive(
        self,
        from_store_id: u64,
        mut frames: Streaming<StoreFrame>,
        replies: mpsc::Sender<Result<StoreReply, Status>>,
    ) {
        let mut stopping = self.stopping.clone();
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = replies.closed() => return,
                _ = stopping.changed() => return,
            };
            let Ok(Some(frame)) = frame else {
                return;
            };
            let (fitting, refused) =
                split_fitting(frame.messages, from_store_id, self.greeter.cluster.store_id);
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
