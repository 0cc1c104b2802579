//! Peers that are members no more and have not heard of it.
//!
//! Ask      A peer that has not heard from a leader for `peer_stale_time` asks all other
//!          members whether it is a member still, and again each time that passes. What it
//!          last took for its leader says nothing: a learner never campaigns and would
//!          believe in it for ever.
//! Answer   Who knows a later membership without the asking peer, or gets any other message
//!          from such a peer, tells it so with a message that is marked as a tombstone.
//!          So does a store that has a tombstone of the region ([`create`](crate::create)).
//! Obey     The peer destroys itself if the answer is for it and its membership is later
//!          than the own one.
//!
//! Invariants
//! * Only a committed and applied removal is ever told: a peer that is a member is never
//!   destroyed, however old its state. Who has an epoch but no membership (a peer that waits
//!   for its first snapshot, or the tombstone of one) tells nobody anything.
//! * A message from a peer that was removed goes no further: it must not disturb elections.

use std::time::Duration;

use strata_proto::eraftpb::{Message, MessageType};
use strata_proto::metapb::{Peer as PeerMeta, RegionEpoch};
use strata_proto::raft_serverpb::{ExtraMessage, ExtraMessageType, RaftMessage};
use strata_storage::Engine;

use crate::directory::find_peer;
use crate::peer::Peer;
use crate::shard::StepContext;

/// True for messages whose sender waits for an answer, or acts on its own: those that
/// merely answer are not answered.
pub(crate) fn wants_answer(message: &RaftMessage) -> bool {
    let Some(inner) = &message.message else {
        return message.extra_msg.is_some();
    };
    matches!(
        inner.msg_type(),
        MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgSnapshot
            | MessageType::MsgReadIndex
    )
}

/// Tells the sender of `message` that it is no member in a membership of this epoch.
pub(crate) fn tombstone_answer(message: &RaftMessage, epoch: RegionEpoch) -> Option<RaftMessage> {
    Some(RaftMessage {
        region_id: message.region_id,
        from_peer: Some(message.to_peer?),
        to_peer: Some(message.from_peer?),
        region_epoch: Some(epoch),
        is_tombstone: true,
        ..RaftMessage::default()
    })
}

impl<E: Engine> Peer<E> {
    /// True if the sender of a message was removed, as far as this peer has applied; it is
    /// told so, and the message goes no further.
    pub(crate) fn refuse_removed_sender(
        &self,
        context: &mut StepContext<'_>,
        message: &RaftMessage,
    ) -> bool {
        let own = self.region.region_epoch.unwrap_or_default();
        let sent = message.region_epoch.unwrap_or_default();
        let Some(from) = message.from_peer else {
            return false;
        };
        let removed = self.is_initialized()
            && sent.conf_ver < own.conf_ver
            && find_peer(&self.region, from.id).is_none();
        if removed {
            context.metrics.messages_dropped_removed.increment();
            let answer = tombstone_answer(message, own).filter(|_| wants_answer(message));
            context.out.send_to(from.store_id, answer);
        }
        removed
    }

    /// Notes word from a leader.
    pub(crate) fn note_leader_word(&mut self, now: Duration, message: &Message) {
        if matches!(
            message.msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        ) {
            self.leader_heard_at = Some(now);
        }
    }

    /// Asks the other members, if no leader was heard of for long.
    pub(crate) fn tick_stale(&mut self, context: &mut StepContext<'_>) {
        let now = context.now.monotonic;
        if self.leads() {
            self.leader_heard_at = Some(now);
            return;
        }
        let since = *self.leader_heard_at.get_or_insert(now);
        if now < since + context.options.peer_stale_time {
            return;
        }
        self.leader_heard_at = Some(now);
        context.metrics.stale_checks.increment();
        let others: Vec<PeerMeta> = if self.is_initialized() {
            self.region.peers.clone()
        } else {
            self.addresses.iter().copied().collect()
        };
        for to in others.into_iter().filter(|to| to.id != self.peer.id) {
            let question = RaftMessage {
                region_id: self.region.id,
                from_peer: Some(self.peer),
                to_peer: Some(to),
                region_epoch: self.region.region_epoch,
                extra_msg: Some(ExtraMessage {
                    r#type: ExtraMessageType::MsgCheckStalePeer.into(),
                }),
                ..RaftMessage::default()
            };
            context.out.send_to(to.store_id, Some(question));
        }
    }
}
