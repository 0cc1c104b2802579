//! Takes one stream in.

use std::sync::Arc;
use std::time::Duration;

use slog::{info, warn};
use strata_proto::raft_serverpb::RaftMessage;
use strata_proto::stratapb::{SnapshotFrame, SnapshotMeta, SnapshotReply};
use strata_raftstore::{Received, SnapshotReceiver};
use strata_storage::snapshot::{FileStore, SnapshotError, total_bytes};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};
use tokio_stream::StreamExt;

use super::{Attached, ReplySender, SnapshotFrames, SnapshotLink, UnderWay};

/// A slot of a stream. Dropping it gives it back.
struct Slot<F: FileStore> {
    link: Arc<SnapshotLink<F>>,
    number: u64,
}

impl<F: FileStore> Drop for Slot<F> {
    fn drop(&mut self) {
        let mut slots = self.link.slots.lock();
        slots.slots.leave(self.number);
        slots.ends.remove(&self.number);
    }
}

/// One stream with its receiver.
struct Incoming<F: FileStore> {
    link: Arc<SnapshotLink<F>>,
    attached: Attached,
    from_store_id: u64,
    /// Told when a later stream takes this one's place.
    end: Arc<Notify>,
    receiver: SnapshotReceiver<F>,
    /// From the offer on.
    begun: Option<Begun<F>>,
}

/// What an offer that was accepted holds.
struct Begun<F: FileStore> {
    _slot: Slot<F>,
    under_way: UnderWay,
    region_id: u64,
    at: Duration,
    total_bytes: u64,
}

/// Runs until the stream has ended; dropping `replies` then ends the answers.
pub(super) async fn run<F: FileStore>(
    link: &Arc<SnapshotLink<F>>,
    from_store_id: u64,
    mut frames: SnapshotFrames,
    replies: ReplySender,
) {
    let Some(attached) = link.attached().await else {
        return;
    };
    let mut stopping = attached.stopping.clone();
    let end = Arc::new(Notify::new());
    let mut incoming = Incoming {
        receiver: SnapshotReceiver::new(
            link.manager.clone(),
            from_store_id,
            link.cluster.store_id,
            &link.options,
            link.now(),
        ),
        link: link.clone(),
        attached,
        from_store_id,
        end: end.clone(),
        begun: None,
    };
    let ends = loop {
        let stalls_at = link.instant(incoming.receiver.stalls_at());
        let frame = tokio::select! {
            frame = frames.next() => match frame {
                Some(Ok(frame)) => Some(frame),
                Some(Err(status)) => break status.message().to_owned(),
                None => break "the sender ended the stream".to_owned(),
            },
            () = sleep_until(stalls_at) => None,
            () = replies.closed() => break "the sender is gone".to_owned(),
            () = end.notified() => break "a later stream takes its place".to_owned(),
            _ = stopping.wait_for(|stops| *stops) => break "the node stops".to_owned(),
        };
        let (back, received) = link.blocking(move || incoming.step(frame)).await;
        incoming = back;
        let Some(received) = received else {
            continue;
        };
        match incoming.settle(received) {
            Settled::GoesOn(reply) => {
                if !say(link, &replies, reply).await {
                    break "the sender takes no answers".to_owned();
                }
            }
            Settled::Over(reply) => {
                say(link, &replies, reply).await;
                return;
            }
        }
    };
    incoming.close(&ends).await;
}

/// False if the answer does not leave.
async fn say<F: FileStore>(
    link: &SnapshotLink<F>,
    replies: &ReplySender,
    reply: SnapshotReply,
) -> bool {
    let sent = timeout(link.options.stall_time, replies.send(Ok(reply))).await;
    matches!(sent, Ok(Ok(())))
}

enum Settled {
    GoesOn(SnapshotReply),
    Over(SnapshotReply),
}

impl<F: FileStore> Incoming<F> {
    /// Handles a frame, or a silence. Blocks while files are written.
    fn step(mut self, frame: Option<SnapshotFrame>) -> (Self, Option<Received>) {
        let now = self.link.now();
        let Some(frame) = frame else {
            let received = self.receiver.check_stall(now);
            return (self, received);
        };
        let mut begun = None;
        let received = {
            let (link, attached) = (&self.link, &self.attached);
            let (from_store_id, end) = (self.from_store_id, &self.end);
            let check = |meta: &SnapshotMeta, message: &RaftMessage| {
                let to_peer = message.to_peer.unwrap_or_default();
                attached.store.check_snapshot(meta, &to_peer)?;
                let slot = enter(link, from_store_id, end, message)?;
                let (region_id, total_bytes) = (message.region_id, total_bytes(meta));
                begun = Some(Begun {
                    under_way: link
                        .counts
                        .begin(region_id, false, from_store_id, total_bytes),
                    _slot: slot,
                    region_id,
                    at: now,
                    total_bytes,
                });
                info!(link.logger, "a snapshot is offered"; "region" => region_id,
                    "from_store" => from_store_id, "bytes" => total_bytes,
                    "index" => meta.index);
                Ok(())
            };
            self.receiver.handle(now, frame, check)
        };
        if begun.is_some() {
            self.begun = begun;
        }
        if let (Some((held, _)), Some(begun)) = (self.receiver.progress(), &self.begun) {
            begun.under_way.set_held(held);
        }
        (self, Some(received))
    }

    /// Does what a frame has come to.
    fn settle(&mut self, received: Received) -> Settled {
        let link = &self.link;
        match received {
            Received::Reply(reply) => Settled::GoesOn(reply),
            Received::Complete { message, reply } => {
                if let Some(begun) = self.begun.take() {
                    begun.under_way.on_whole();
                    let seconds = (link.now() - begun.at).as_secs_f64();
                    info!(link.logger, "a snapshot was received"; "region" => begun.region_id,
                        "from_store" => self.from_store_id, "bytes" => begun.total_bytes,
                        "seconds" => format!("{seconds:.1}"));
                }
                link.metrics.snapshots_received.inc();
                self.attached.store.deliver_snapshot(*message);
                Settled::Over(reply)
            }
            Received::Refused { error, reply } => {
                link.check_fatal(&error);
                link.metrics.snapshots_refused.inc();
                warn!(link.logger, "a snapshot is refused"; "from_store" => self.from_store_id,
                    "region" => self.begun.as_ref().map(|begun| begun.region_id),
                    "reason" => %error);
                // The slot is free before the sender learns that it may come again.
                self.begun = None;
                Settled::Over(reply)
            }
        }
    }

    /// The stream ended by itself: what was taken of it is synced.
    async fn close(mut self, why: &str) {
        let link = self.link.clone();
        if let Some(begun) = &self.begun {
            info!(link.logger, "a snapshot's stream ended"; "region" => begun.region_id,
                "from_store" => self.from_store_id, "reason" => why);
        }
        let closed = link.blocking(move || self.receiver.close()).await;
        if let Err(error) = closed {
            link.check_fatal(&error);
        }
    }
}

/// Takes a slot for an offer. A stream that must give way is told so.
fn enter<F: FileStore>(
    link: &Arc<SnapshotLink<F>>,
    from_store_id: u64,
    end: &Arc<Notify>,
    message: &RaftMessage,
) -> Result<Slot<F>, SnapshotError> {
    let term = message.message.as_ref().map_or(0, |raft| raft.term);
    let mut slots = link.slots.lock();
    match slots.slots.enter(message.region_id, from_store_id, term) {
        Ok(number) => {
            slots.ends.insert(number, end.clone());
            drop(slots);
            Ok(Slot {
                link: link.clone(),
                number,
            })
        }
        Err(refused) => {
            let gives_way = refused.end.and_then(|number| slots.ends.get(&number));
            if let Some(end) = gives_way {
                end.notify_one();
            }
            Err(refused.error)
        }
    }
}
