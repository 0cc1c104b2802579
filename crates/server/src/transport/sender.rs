//! The task that keeps one stream to one other store.
//!
//! Open      It connects, says the preface and a greeting, and checks the answer.
//! Write     The threads that push messages write them; the task writes what the socket did not
//!           take at once, and what is large (`queue`).
//! Ping      One each `transport.keepalive`. The other store must have said something before the
//!           next is due.
//! Break     What waited is dropped, Raft is told, and a new attempt follows after a pause that
//!           doubles. A refusal is logged once, not at each attempt.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use slog::{info, warn};
use strata_proto::stratapb::StoreReply;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::frames::{FrameError, FrameReader, PREFACE, put_frame};
use super::greet::{Lost, accept_reply, hello, one_line};
use super::queue::{MessageQueue, Written};
use super::{RaftTransport, Running};

/// Largest answer to a greeting: ids and one line.
const REPLY_BYTES_MAX: usize = 4 << 10;

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

/// Opens a stream and keeps it until it breaks.
async fn stream(
    transport: &RaftTransport,
    running: &Running,
    store_id: u64,
    queue: &MessageQueue,
    stood: &mut bool,
) -> Lost {
    let (mut replies, socket) = match open(transport, running, store_id).await {
        Ok(opened) => opened,
        Err(lost) => return lost,
    };
    *stood = true;
    info!(transport.logger, "stream to a store stands"; "peer_store" => store_id);
    running.liveness.connected(store_id);
    let _attached = Attachment::new(queue, socket.clone());
    let pause = transport.config.keepalive;
    let mut pings = interval_at(Instant::now() + pause, pause);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = false;
    loop {
        let written = match queue.write_on() {
            Written::Failed(error) => return Lost::Broken(one_line(&error.to_string())),
            written => written,
        };
        let go_on = async {
            match written {
                Written::Blocked => socket.writable().await?,
                Written::More => yield_now().await,
                Written::All | Written::Failed(_) => queue.ready().await,
            }
            Ok::<_, io::Error>(())
        };
        tokio::select! {
            // A word that has come counts, however late this task looks.
            biased;
            word = replies.next(0) => match word {
                Ok(_) => silent = false,
                Err(FrameError::Closed) => {
                    return Lost::Broken("the store ended the stream".to_owned());
                }
                Err(error) => return Lost::Broken(one_line(&error.to_string())),
            },
            _ = pings.tick() => {
                if silent {
                    return Lost::Broken(format!("no answer to a ping in {pause:?}"));
                }
                silent = true;
                queue.ping();
            }
            ready = go_on => if let Err(error) = ready {
                return Lost::Broken(one_line(&error.to_string()));
            },
        }
    }
}

/// A queue whose messages leave by a stream, as long as this lives.
struct Attachment<'a>(&'a MessageQueue);

impl<'a> Attachment<'a> {
    fn new(queue: &'a MessageQueue, socket: Arc<OwnedWriteHalf>) -> Self {
        queue.attach(socket);
        Attachment(queue)
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        self.0.detach();
    }
}

/// Connects, greets, and checks the answer.
async fn open(
    transport: &RaftTransport,
    running: &Running,
    store_id: u64,
) -> Result<(FrameReader<OwnedReadHalf>, Arc<OwnedWriteHalf>), Lost> {
    let config = &transport.config;
    let patience = config.handshake_time;
    let address = transport.cluster.address(store_id).unwrap_or_default();
    let stream = reach(&address, patience).await?;
    let mut greeting = PREFACE.to_vec();
    let mut hello = hello(&transport.cluster, store_id);
    hello.keepalive_ms = config.keepalive.as_millis() as u64;
    put_frame(&mut greeting, &hello);
    let greet = async {
        stream.set_nodelay(true)?;
        let (from, mut socket) = stream.into_split();
        socket.write_all(&greeting).await?;
        let mut replies = FrameReader::new(from);
        let reply = StoreReply::decode(replies.next(REPLY_BYTES_MAX).await?)?;
        Ok::<_, FrameError>((reply, replies, socket))
    };
    let (reply, replies, socket) = timeout(patience, greet)
        .await
        .map_err(|_| Lost::Broken("the greeting was not answered".to_owned()))?
        .map_err(|error| Lost::Broken(format!("greeting: {}", one_line(&error.to_string()))))?;
    if !reply.refusal.is_empty() {
        return Err(Lost::Rejected(one_line(&reply.refusal)));
    }
    let incarnations = running.incarnations.clone();
    accept_reply(incarnations, running.admission.clone(), store_id, reply).await?;
    Ok((replies, Arc::new(socket)))
}

/// Connects to the first address of a name that takes the connection; each has its share of the
/// time.
async fn reach(address: &str, patience: Duration) -> Result<TcpStream, Lost> {
    let late = || Lost::Broken(format!("{address}: connecting took too long"));
    let broken =
        |error: &io::Error| Lost::Broken(format!("{address}: {}", one_line(&error.to_string())));
    let addresses: Vec<_> = timeout(patience, lookup_host(address))
        .await
        .map_err(|_| late())?
        .map_err(|error| broken(&error))?
        .collect();
    let share = patience / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut lost = Lost::Broken(format!("{address}: the name has no address"));
    for address in addresses {
        let reason = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                lost = Lost::Refused(one_line(&error.to_string()));
                continue;
            }
            Ok(Err(error)) => broken(&error),
            Err(_) => late(),
        };
        // That nobody listens at one of them says more than that another is silent.
        if !matches!(lost, Lost::Refused(_)) {
            lost = reason;
        }
    }
    Err(lost)
}
