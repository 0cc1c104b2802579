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
use strata_proto::stratapb::{StoreFrame, StoreHello, StoreReply};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::queue::MessageQueue;
use super::{RaftTransport, Running};
use crate::cluster::endpoint;

/// Frames that wait in the stream itself; all else waits in the queue, where it shares
/// frames.
const FRAMES_IN_STREAM: usize = 2;

/// Why a stream is not there.
enum Lost {
    /// Nothing listens at the store's address.
    Refused(String),
    /// The store answered that it will not have this store.
    Rejected(String),
    /// Anything else.
    Broken(String),
}

impl Lost {
    fn reason(&self) -> &str {
        match self {
            Lost::Refused(reason) | Lost::Rejected(reason) | Lost::Broken(reason) => reason,
        }
    }
}

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

fn lost_by(status: &Status) -> Lost {
    match status.code() {
        Code::FailedPrecondition => Lost::Rejected(status.message().to_owned()),
        _ => Lost::Broken(one_line(status.message())),
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// Connects, greets, and checks the answer.
async fn open(
    transport: &RaftTransport,
    running: &Running,
    store_id: u64,
) -> Result<(mpsc::Sender<StoreFrame>, Streaming<StoreReply>), Lost> {
    let cluster = &transport.cluster;
    let config = &transport.config;
    let address = cluster.address(store_id).unwrap_or_default();
    let endpoint = endpoint(&address, config)
        .ok_or_else(|| Lost::Broken(format!("{address} is no address")))?;
    let channel = timeout(config.handshake_time, endpoint.connect())
        .await
        .map_err(|_| Lost::Broken("connecting took too long".to_owned()))?
        .map_err(|error| not_connected(&error))?;
    let (frames, stream) = mpsc::channel(FRAMES_IN_STREAM);
    let hello = StoreHello {
        cluster_id: cluster.cluster_id,
        store_id: cluster.store_id,
        incarnation: cluster.incarnation,
        to_store_id: store_id,
        address: cluster.address(cluster.store_id).unwrap_or_default(),
    };
    let first = StoreFrame {
        hello: Some(hello),
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
    accept_reply(running, store_id, reply).await?;
    Ok((frames, replies))
}

/// Checks who answered, and counts the answer for this store's own admission.
async fn accept_reply(running: &Running, store_id: u64, reply: StoreReply) -> Result<(), Lost> {
    if reply.store_id != store_id {
        return Err(Lost::Rejected(format!(
            "store {} answers at the address of store {store_id}",
            reply.store_id
        )));
    }
    let incarnations = running.incarnations.clone();
    let admission = running.admission.clone();
    // Both sync to disk.
    tokio::task::spawn_blocking(move || {
        incarnations
            .meet(store_id, reply.incarnation)
            .map_err(|error| Lost::Rejected(error.to_string()))?;
        admission.on_recorded_by(store_id).map_err(Lost::Broken)
    })
    .await
    .unwrap_or_else(|_| Err(Lost::Broken("the answer could not be checked".to_owned())))
}

fn not_connected(error: &tonic::transport::Error) -> Lost {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    let mut refused = false;
    while let Some(cause) = source {
        reason = cause.to_string();
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            refused |= io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = cause.source();
    }
    let reason = one_line(&reason);
    if refused {
        Lost::Refused(reason)
    } else {
        Lost::Broken(reason)
    }
}
