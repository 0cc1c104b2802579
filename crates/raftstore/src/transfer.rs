//! Hands the leadership of a region to the peer on another store.
//!
//! Request  The leader asks its Raft core to hand over; it takes no proposals until that
//!          has ended.
//! Settle   When the chosen peer leads, the request is done. When another one does, or
//!          nothing has happened for two election timeouts, it is refused.
//!
//! Invariant: one hand-over of a region at a time.

use strata_proto::metapb::PeerRole;
use strata_storage::Engine;

use crate::directory::find_peer_on;
use crate::error::{Error, InvalidRequest};
use crate::peer::Peer;
use crate::request::Answer;
use crate::shard::StepContext;
use crate::task::PendingRequest;

/// A hand-over under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Peer id that shall lead.
    to: u64,
    pending: PendingRequest,
}

impl Transfer {
    /// The request that waits for its end.
    pub(crate) fn into_pending(self) -> PendingRequest {
        self.pending
    }
}

impl<E: Engine> Peer<E> {
    /// Starts a hand-over.
    pub(crate) fn on_transfer(
        &mut self,
        context: &mut StepContext<'_>,
        pending: PendingRequest,
        store_id: u64,
    ) {
        let region_id = self.region.id;
        let voter = find_peer_on(&self.region, store_id)
            .filter(|peer| peer.role() == PeerRole::Voter)
            .map(|peer| peer.id);
        let result = match voter {
            None => Err(InvalidRequest::NoVoterOnStore {
                region_id,
                store_id,
            }
            .into()),
            Some(to) if to == self.leader => Ok(Answer::Done),
            Some(_) if self.transfer.is_some() => Err(Error::ServerIsBusy {
                reason: "the leadership is being handed over",
                backoff_ms: context.options.park_time.as_millis() as u64,
            }),
            Some(to) => {
                self.raft.transfer_leader(to);
                self.transfer = Some(Transfer { to, pending });
                return;
            }
        };
        context.out.replies.push((pending.reply, result));
    }

    /// Answers the request of a hand-over when a leader is known.
    pub(crate) fn settle_transfer(&mut self, context: &mut StepContext<'_>) {
        if self.leader == 0 {
            return;
        }
        let Some(Transfer { to, pending }) = self.transfer.take() else {
            return;
        };
        let result = if self.leader == to {
            Ok(Answer::Done)
        } else {
            Err(Error::NotLeader {
                region_id: self.region.id,
                leader: self.known_leader(),
            })
        };
        context.out.replies.push((pending.reply, result));
    }

    /// Gives up on a hand-over that does not come to its end.
    pub(crate) fn expire_transfer(&mut self, context: &mut StepContext<'_>) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        let now = context.now.monotonic;
        let patience = context.options.election_timeout() * 2;
        let late = (transfer.pending.arrived + patience <= now).then_some(Error::ServerIsBusy {
            reason: "the leadership was not taken over in time",
            backoff_ms: patience.as_millis() as u64,
        });
        if let Some(error) = transfer.pending.given_up(now).or(late)
            && let Some(transfer) = self.transfer.take()
        {
            context
                .out
                .replies
                .push((transfer.pending.reply, Err(error)));
        }
    }
}
