//! The task that keeps one stream to one other store and fills it from a queue.
//!
//! It connects, greets, and then sends frames as fast as the stream takes them; while the
//! stream is full, messages gather in the queue and share frames. When the stream breaks,
//! what waited is dropped, Raft is told, and a new attempt follows after a pause that
//! doubles. A refusal is logged once, not at each attempt.

use std::sync::Arc;
use std::time::Duration;

use slog::{info, warn};
use strata_proto::stratapb::store_transport_client::StoreTransportClient;
use strata_proto::stratapb::{StoreFrame, StoreReply};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::greet::{Lost, accept_reply, connect, hello, lost_by};
use super::queue::MessageQueue;
use super::{RaftTransport, Running};

/// Frames that wait in the stream itself; all else waits in the queue, where it shares
/// frames.
const FRAMES_IN_STREAM: usize = 2;

/// Runs until the node stops.
pub(super) async fn run(transport: Arc<RaftTransport>, store_id: u64, queue: Arc<MessageQueue>) {
    let Some(running) = transport.running.get() else {
        return;
    };
    let config = &transport.config;
    let mut stopping = running.stopping.clone();
    let mut pause = config.reconnect_min;
    let mut logged = String::new();
    while !*stopping.borrow() {
        let mut stood = false;
        let lost = tokio::select! {
            lost = stream(&transport, running, store_id, &queue, &mut stood) => lost,
            _ = stopping.changed() => return,
        };
        if stood {
            pause = config.reconnect_min;
            logged.clear();
        }
        if logged != lost.reason() {
            logged = lost.reason().to_owned();
            log_lost(&transport, store_id, &lost);
        }
        if let Lost::Refused(_) = lost {
            running.liveness.refused(store_id);
        }
        let dropped = queue.clear();
        transport.metrics.transport_dropped_lost.inc_by(dropped);
        running.store.report_unreachable(store_id);
        wait(&queue, pause, &mut stopping).await;
        pause = (pause * 2).min(config.reconnect_max);
    }
}

async fn wait(
    queue: &MessageQueue,
    pause: Duration,
    stopping: &mut tokio::sync::watch::Receiver<bool>,
) {
    tokio::select! {
        () = sleep(pause) => {}
        () = queue.poked() => {}
        _ = stopping.changed() => {}
    }
}

fn log_lost(transport: &RaftTransport, store_id: u64, lost: &Lost) {
    let logger = &transport.logger;
    match lost {
        Lost::Rejected(reason) => {
            warn!(logger, "a store refuses this one"; "peer_store" => store_id, "reason" => reason);
        }
        Lost::Refused(reason) | Lost::Broken(reason) => {
            info!(logger, "no stream to a store"; "peer_store" => store_id, "reason" => reason);
        }
    }
}

/// Opens a stream and feeds it until it breaks.
async fn stream(
    transport: &RaftTransport,
    running: &Running,
    store_id: u64,
    queue: &MessageQueue,
    stood: &mut bool,
) -> Lost {
    let (frames, mut replies) = match open(transport, running, store_id).await {
        Ok(opened) => opened,
        Err(lost) => return lost,
    };
    *stood = true;
    info!(transport.logger, "stream to a store stands"; "peer_store" => store_id);
    running.liveness.connected(store_id);
    loop {
        let messages = queue.take(transport.config.frame_size.bytes());
        if messages.is_empty() {
            tokio::select! {
                () = queue.ready() => continue,
                end = replies.message() => return ended(end),
            }
        }
        let frame = StoreFrame {
            hello: None,
            messages,
        };
        tokio::select! {
            sent = frames.send(frame) => {
                if sent.is_err() {
                    return Lost::Broken("the stream was closed".to_owned());
                }
                transport.metrics.transport_frames.inc();
            }
            end = replies.message() => return ended(end),
        }
    }
}

/// The receiver says nothing after its answer, so whatever comes ends the stream.
fn ended(end: Result<Option<StoreReply>, Status>) -> Lost {
    match end {
        Ok(_) => Lost::Broken("the store ended the stream".to_owned()),
        Err(status) => lost_by(&status),
    }
}

/// Connects, greets, and checks the answer.
async fn open(
    transport: &RaftTransport,
    running: &Running,
    store_id: u64,
) -> Result<(mpsc::Sender<StoreFrame>, Streaming<StoreReply>), Lost> {
    let config = &transport.config;
    let channel = connect(&transport.cluster, config, store_id).await?;
    let (frames, stream) = mpsc::channel(FRAMES_IN_STREAM);
    let first = StoreFrame {
        hello: Some(hello(&transport.cluster, store_id)),
        messages: Vec::new(),
    };
    let _ = frames.send(first).await;
    let mut client =
        StoreTransportClient::new(channel).max_encoding_message_size(transport.message_bytes_max);
    let greet = async {
        let mut replies = client
            .exchange(ReceiverStream::new(stream))
            .await?
            .into_inner();
        let reply = replies.message().await?;
        Ok::<_, Status>((replies, reply))
    };
    let (replies, reply) = timeout(config.handshake_time, greet)
        .await
        .map_err(|_| Lost::Broken("the greeting was not answered".to_owned()))?
        .map_err(|status| lost_by(&status))?;
    let reply = reply.ok_or_else(|| Lost::Broken("the greeting was not answered".to_owned()))?;
    let incarnations = running.incarnations.clone();
    accept_reply(incarnations, running.admission.clone(), store_id, reply).await?;
    Ok((frames, replies))
}
