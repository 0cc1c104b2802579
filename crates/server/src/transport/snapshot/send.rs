//! Sends one snapshot to one store, over as many streams as it takes.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use slog::{info, warn};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::store_transport_client::StoreTransportClient;
use strata_proto::stratapb::{
    SnapshotFrame, SnapshotRefusalKind, SnapshotReply, snapshot_frame::Frame, snapshot_reply::Reply,
};
use strata_raftstore::{SendFault, SendRetry, SnapshotSender};
use strata_storage::snapshot::{FileStore, SnapshotRef, from_raft};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::super::greet::{accept_reply, connect, hello, one_line};
use super::{Attached, SnapshotLink, UnderWay};

/// Frames that wait in the stream itself.
const FRAMES_IN_STREAM: usize = 1;
/// Chunks that are read, or wait for the stream, at a time: one read after the other leaves most
/// of a disk's speed unused.
const READS_AHEAD: usize = 4;
/// Bytes of the largest answer: a place for each file, or a refusal.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// A failure is reported after this pause: raft tries again at once, and what was refused
/// will be refused again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two lines about the progress of one snapshot.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The right to send a snapshot to one peer of a region, until a later one takes it.
pub(super) struct Turn<F: FileStore> {
    link: Arc<SnapshotLink<F>>,
    /// Region and peer.
    to: (u64, u64),
    /// Told when a later snapshot takes its place.
    end: Arc<Notify>,
}

impl<F: FileStore> Turn<F> {
    /// Takes the turn, from an earlier snapshot if need be.
    pub(super) fn take(link: Arc<SnapshotLink<F>>, message: &RaftMessage) -> Self {
        let to = (message.region_id, message.to_peer.map_or(0, |peer| peer.id));
        let end = Arc::new(Notify::new());
        let earlier = link.sends.lock().insert(to, end.clone());
        if let Some(earlier) = earlier {
            earlier.notify_one();
        }
        Turn { link, to, end }
    }
}

impl<F: FileStore> Drop for Turn<F> {
    fn drop(&mut self) {
        let mut sends = self.link.sends.lock();
        let mine = |end: &Arc<Notify>| Arc::ptr_eq(end, &self.end);
        if sends.get(&self.to).is_some_and(mine) {
            sends.remove(&self.to);
        }
    }
}

/// Sends a snapshot and reports how that ended. `has_place`: it may wait for its turn.
pub(super) async fn run<F: FileStore>(
    turn: &Turn<F>,
    to_store_id: u64,
    message: RaftMessage,
    has_place: bool,
) {
    let link = &*turn.link;
    let Some(attached) = link.attached().await else {
        return;
    };
    let (region_id, to_peer_id) = turn.to;
    let begun = link.now();
    let mut stopping = attached.stopping.clone();
    let sending = async {
        if !has_place {
            return Err(SendFault::Broken("too many snapshots wait".to_owned()));
        }
        send(link, &attached, to_store_id, &message).await
    };
    let sent = tokio::select! {
        sent = sending => sent,
        () = turn.end.notified() => {
            info!(link.logger, "a later snapshot takes the place of one under way";
                "region" => region_id, "to_store" => to_store_id);
            return;
        }
        _ = stopping.wait_for(|stops| *stops) => {
            Err(SendFault::Broken("the node stops".to_owned()))
        }
    };
    let seconds = format!("{:.1}", (link.now() - begun).as_secs_f64());
    match &sent {
        Ok(bytes) => {
            link.metrics.snapshots_sent.inc();
            info!(link.logger, "a snapshot was sent"; "region" => region_id,
                "to_store" => to_store_id, "bytes" => bytes, "seconds" => seconds);
        }
        Err(fault) => {
            link.metrics.snapshots_send_failed.inc();
            warn!(link.logger, "a snapshot could not be sent"; "region" => region_id,
                "to_store" => to_store_id, "seconds" => seconds,
                "reason" => one_line(&fault.to_string()));
            tokio::select! {
                () = sleep(FAILURE_PAUSE) => {}
                () = turn.end.notified() => return,
                _ = stopping.wait_for(|stops| *stops) => {}
            }
        }
    }
    attached
        .store
        .report_snapshot(region_id, to_peer_id, sent.is_ok());
}

/// One snapshot on its way.
struct Outgoing<'a, F: FileStore> {
    link: &'a SnapshotLink<F>,
    attached: &'a Attached,
    to_store_id: u64,
    message: &'a RaftMessage,
    snapshot: SnapshotRef<F>,
    term: u64,
    retry: SendRetry,
    under_way: UnderWay,
    /// When the last line about it was written.
    told: Duration,
}

/// Returns the bytes of the snapshot once its receiver has it whole.
async fn send<F: FileStore>(
    link: &SnapshotLink<F>,
    attached: &Attached,
    to_store_id: u64,
    message: &RaftMessage,
) -> Result<u64, SendFault> {
    let raft = message.message.clone().unwrap_or_default();
    let meta = from_raft(&raft.snapshot.unwrap_or_default(), F::FORM)?;
    let snapshot = link.manager.find_generated(&meta).ok_or(SendFault::Gone)?;
    let total_bytes = snapshot.total_bytes();
    let now = link.now();
    let counts = &link.counts;
    let mut outgoing = Outgoing {
        link,
        attached,
        to_store_id,
        message,
        snapshot,
        term: raft.term,
        retry: SendRetry::new(&link.options, now),
        under_way: counts.begin(message.region_id, true, to_store_id, total_bytes),
        told: now,
    };
    loop {
        outgoing.check_leads()?;
        let waits_since = link.now();
        let permit = link.permits.acquire().await;
        outgoing.retry.on_waited(link.now() - waits_since);
        let streamed = outgoing.stream().await;
        // Others may go on while this one pauses.
        drop(permit);
        let Err(fault) = streamed else {
            outgoing.under_way.on_whole();
            return Ok(total_bytes);
        };
        let fault = outgoing.blame(fault).await;
        let Some(pause) = outgoing.retry.on_fault(link.now(), &fault) else {
            return Err(fault);
        };
        link.metrics.snapshot_streams_broken.inc();
        info!(link.logger, "a snapshot's stream ended, another follows";
            "region" => message.region_id, "to_store" => to_store_id,
            "reason" => one_line(&fault.to_string()), "pause_ms" => pause.as_millis() as u64);
        sleep(pause).await;
    }
}

impl<F: FileStore> Outgoing<'_, F> {
    fn check_leads(&self) -> Result<(), SendFault> {
        if self.attached.store.leads(self.message.region_id, self.term) {
            return Ok(());
        }
        Err(SendFault::Outdated { term: self.term })
    }

    /// A file that is damaged at its receiver may have been damaged here.
    async fn blame(&self, fault: SendFault) -> SendFault {
        let kind = match &fault {
            SendFault::Refused { kind, .. } => *kind,
            _ => return fault,
        };
        if kind != SnapshotRefusalKind::DamagedFile {
            return fault;
        }
        let snapshot = self.snapshot.clone();
        let checked = self.link.blocking(move || {
            let files = 0..snapshot.meta().files.len() as u32;
            files
                .into_iter()
                .try_for_each(|file| snapshot.verify_file(file))
        });
        match checked.await {
            Ok(()) => fault,
            Err(error) => {
                self.link.manager.condemn(self.snapshot.key());
                SendFault::Files(error)
            }
        }
    }

    /// Opens one stream and feeds it until the snapshot is whole at its receiver.
    async fn stream(&mut self) -> Result<(), SendFault> {
        let (frames, mut replies) = self.open().await?;
        let link = self.link;
        let message = self.message.clone();
        let (snapshot, options) = (self.snapshot.clone(), &link.options);
        let mut sender = SnapshotSender::new(snapshot, message, options, link.now());
        info!(link.logger, "sending a snapshot"; "region" => self.message.region_id,
            "to_store" => self.to_store_id, "bytes" => self.snapshot.total_bytes(),
            "index" => self.snapshot.meta().index);
        let mut reading = FuturesOrdered::new();
        let mut ready = None;
        while !sender.is_done() {
            while reading.len() < READS_AHEAD
                && let Some(next) = sender.next_to_send()
            {
                reading.push_back(link.blocking(move || next.into_frame()));
            }
            tokio::select! {
                // Answers first: a refusal says more than a stream that is closed.
                biased;
                reply = replies.message() => {
                    sender.handle(link.now(), answer(reply)?)?;
                    self.note(&sender);
                    self.check_leads()?;
                }
                permit = frames.reserve(), if ready.is_some() => {
                    let Ok(permit) = permit else {
                        return Err(self.last_words(sender, replies).await);
                    };
                    if let Some(frame) = ready.take() {
                        self.wait_for_rate(&frame, &mut sender).await;
                        self.count(&frame);
                        permit.send(frame);
                    }
                }
                Some(frame) = reading.next(), if ready.is_none() => {
                    ready = Some(frame?);
                    // The own disk was waited for, not the receiver.
                    sender.forgive(link.now());
                }
                () = sleep_until(link.instant(sender.stalls_at())) => {
                    sender.check_stall(link.now())?;
                }
            }
        }
        Ok(())
    }

    /// Why the receiver has closed the stream, if it still says so.
    async fn last_words(
        &self,
        mut sender: SnapshotSender<F>,
        mut replies: Streaming<SnapshotReply>,
    ) -> SendFault {
        let listen = async {
            loop {
                let heard = answer(replies.message().await);
                if let Err(fault) = heard.and_then(|reply| sender.handle(self.link.now(), reply)) {
                    return fault;
                }
            }
        };
        let silent = |_| SendFault::Broken("the stream was closed".to_owned());
        let heard = timeout(self.link.transport.handshake_time, listen).await;
        heard.unwrap_or_else(silent)
    }

    async fn wait_for_rate(&self, frame: &SnapshotFrame, sender: &mut SnapshotSender<F>) {
        let Some(Frame::Chunk(chunk)) = &frame.frame else {
            return;
        };
        let bytes = chunk.data.len() as u64;
        let wait = self.link.rate.lock().take(self.link.now(), bytes);
        if !wait.is_zero() {
            sleep(wait).await;
            sender.forgive(self.link.now());
        }
    }

    fn count(&self, frame: &SnapshotFrame) {
        if matches!(frame.frame, Some(Frame::Chunk(_))) {
            self.under_way.on_chunk_sent();
            self.link.metrics.snapshot_chunks_sent.inc();
        }
    }

    /// Notes how far it is, and writes a line now and then.
    fn note(&mut self, sender: &SnapshotSender<F>) {
        let (now, held) = (self.link.now(), sender.held_bytes());
        self.retry.on_held(now, held);
        self.under_way.set_held(held);
        if now - self.told >= PROGRESS_INTERVAL {
            self.told = now;
            let total = self.snapshot.total_bytes();
            info!(self.link.logger, "a snapshot is being sent";
                "region" => self.message.region_id, "to_store" => self.to_store_id,
                "percent" => held * 100 / total.max(1), "bytes" => total);
        }
    }

    /// Connects and greets.
    async fn open(
        &self,
    ) -> Result<(mpsc::Sender<SnapshotFrame>, Streaming<SnapshotReply>), SendFault> {
        let (link, store_id) = (self.link, self.to_store_id);
        let broken = |reason: &str| SendFault::Broken(reason.to_owned());
        let config = &link.transport;
        let channel = connect(&link.cluster, config, store_id)
            .await
            .map_err(|lost| broken(lost.reason()))?;
        let (frames, stream) = mpsc::channel(FRAMES_IN_STREAM);
        let greeting = Frame::Hello(hello(&link.cluster, store_id));
        let first = SnapshotFrame {
            frame: Some(greeting),
        };
        let _ = frames.send(first).await;
        let mut client =
            StoreTransportClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        let greet = async {
            let stream = ReceiverStream::new(stream);
            let mut replies = client.send_snapshot(stream).await?.into_inner();
            let reply = replies.message().await?;
            Ok::<_, Status>((replies, reply))
        };
        let (replies, reply) = timeout(config.handshake_time, greet)
            .await
            .map_err(|_| broken("the greeting was not answered"))?
            .map_err(|status| broken(&one_line(status.message())))?;
        let Some(Reply::Hello(reply)) = reply.and_then(|reply| reply.reply) else {
            return Err(broken("the greeting was not answered"));
        };
        accept_reply(
            self.attached.incarnations.clone(),
            self.attached.admission.clone(),
            store_id,
            reply,
        )
        .await
        .map_err(|lost| broken(lost.reason()))?;
        Ok((frames, replies))
    }
}

fn answer(reply: Result<Option<SnapshotReply>, Status>) -> Result<SnapshotReply, SendFault> {
    match reply {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(SendFault::Broken("the store ended the stream".to_owned())),
        Err(status) => Err(SendFault::Broken(one_line(status.message()))),
    }
}
