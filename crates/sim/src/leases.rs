//! At most one lease: nobody is elected while another peer may serve reads from its own state.
//!
//! When a peer leads a term for the first time, no other store of its region may hold a lease
//! of an earlier term at that moment. Then it could not have shown a read that misses what
//! the new leader is going to commit, whether a client asks there or not.
//!
//! An election that passes over a lease needs the word of the leader that held it: who asks for
//! votes in the name of a hand-over was told to by the leader of the term before.
//!
//! A store whose process stands still serves nothing; its clock tells when it goes on.

use std::collections::BTreeSet;

use strata_proto::eraftpb::MessageType;
use strata_proto::raft_serverpb::RaftMessage;
use strata_raft::CAMPAIGN_TRANSFER;

use crate::cluster::Cluster;
use crate::violation::Violation;

/// Terms that somebody was seen to lead, and hand-overs.
#[derive(Debug, Default)]
pub(crate) struct LedTerms {
    seen: BTreeSet<(u64, u64)>,
    /// By region and term: the peer that was told to take over.
    handed_to: BTreeSet<(u64, u64, u64)>,
}

impl LedTerms {
    /// Looks at hand-overs, and at elections in their name.
    ///
    /// # Errors
    /// `ForcedElection`.
    pub(crate) fn check_hand_over(&mut self, envelope: &RaftMessage) -> Result<(), Violation> {
        let Some(message) = &envelope.message else {
            return Ok(());
        };
        let (region_id, term) = (envelope.region_id, message.term);
        match message.msg_type() {
            MessageType::MsgTimeoutNow => {
                self.handed_to.insert((region_id, term, message.to));
                Ok(())
            }
            MessageType::MsgRequestVote if message.context.as_ref() == CAMPAIGN_TRANSFER => {
                let peer_id = message.from;
                let told = (region_id, term.saturating_sub(1), peer_id);
                if self.handed_to.contains(&told) {
                    return Ok(());
                }
                Err(Violation::ForcedElection {
                    region_id,
                    peer_id,
                    term,
                })
            }
            _ => Ok(()),
        }
    }

    /// Notes a message; returns the term if its sender is the first sign of a new leader.
    pub(crate) fn on_send(&mut self, envelope: &RaftMessage) -> Option<u64> {
        let message = envelope.message.as_ref()?;
        let leads = matches!(
            message.msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat
        );
        let news = leads && self.seen.insert((envelope.region_id, message.term));
        news.then_some(message.term)
    }
}

impl Cluster {
    /// Looks for leases of earlier terms now that a store leads `term`.
    pub(crate) fn check_leases(&mut self, leader: u64, region_id: u64, term: u64) {
        let now = self.queue.now();
        let holders = self.stores.iter().filter_map(|(id, store)| {
            let entry = store.core.as_ref()?.directory().entry(region_id)?;
            let held = *id != leader
                && store.paused_until <= now
                && entry.leads()
                && entry.view.term() < term
                && entry.view.holds_lease(store.clock.now(now).monotonic);
            held.then(|| (*id, entry.view.term()))
        });
        let broken: Vec<_> = holders
            .map(|(holder, holder_term)| Violation::LeaseBroken {
                region_id,
                holder,
                holder_term,
                leader,
                term,
            })
            .collect();
        broken
            .into_iter()
            .for_each(|found| self.watch.report(found));
    }
}
