//! Accepts the streams of snapshots: who greets rightly is handed on.

use std::sync::Arc;
use std::time::Duration;

use strata_proto::stratapb::{
    SnapshotFrame, SnapshotReply, snapshot_frame::Frame, snapshot_reply::Reply,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{SnapshotReplyStream, SnapshotStreams};
use crate::transport::Greeter;

/// Serves `SendSnapshot`.
#[derive(Clone)]
pub(crate) struct SnapshotServer {
    pub(crate) greeter: Greeter,
    pub(crate) snapshots: Arc<dyn SnapshotStreams>,
    pub(crate) handshake_time: Duration,
}

impl SnapshotServer {
    /// Takes the stream of one snapshot: checks its greeting, answers it, and hands the
    /// rest on.
    pub(crate) async fn send_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotReplyStream>, Status> {
        let mut frames = request.into_inner();
        let first = timeout(self.handshake_time, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream did not greet"))??;
        let Some(Frame::Hello(hello)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument(
                "the first frame must be a greeting",
            ));
        };
        let reply = self.greeter.accept(&hello).await?;
        let (replies, stream) = mpsc::channel(1);
        let reply = SnapshotReply {
            reply: Some(Reply::Hello(reply)),
        };
        let _ = replies.send(Ok(reply)).await;
        let snapshots = self.snapshots.clone();
        tokio::spawn(snapshots.receive(hello.store_id, Box::pin(frames), replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
