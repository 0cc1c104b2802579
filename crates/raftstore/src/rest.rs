//! Ticks that a peer need not see.
//!
//! Rest    When a peer has been collected, or ticked without anything to collect, it is asked how
//!         many of the coming ticks would do nothing but count ([`Peer::settle`]). None, while
//!         anything waits in it. The shard passes it over for so long, and until the first time
//!         at which something is due.
//! Wake    Any other event that reaches it ends its rest: first the ticks that it has not seen
//!         are counted, all at once, so that it stands where it would stand with them.
//!
//! Why: a tick looks into every place where something may wait, and most regions of a store have
//! nothing anywhere. Many peers do not fit into the processor's caches, so that looking costs more
//! than what there is to do.
//!
//! Invariant: a tick that is passed over would have had no effect on the world, and none on the
//! peer but the count of Raft's ticks. (A leader also notes at each tick that it has heard of a
//! leader; that may be older by the ticks between two heartbeats, where hours are compared.)
//!
//! What is looked at here must be what [`Peer::on_tick`] looks at.

use std::time::Duration;

use strata_storage::Engine;

use crate::change_peers::is_joint;
use crate::options::StoreOptions;
use crate::peer::Peer;

/// Until when a peer rests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    /// Ticks of the shard that the peer has counted.
    counted: u64,
    /// The first tick of the shard that it must see.
    until_tick: u64,
    /// The first time at which it must see a tick, whatever its number.
    until: Duration,
}

impl Rest {
    /// Awake, with all ticks so far counted.
    pub(crate) fn awake(ticks: u64) -> Rest {
        Rest {
            counted: ticks,
            until_tick: 0,
            until: Duration::ZERO,
        }
    }

    /// Whether the shard's tick `tick` may pass the peer over.
    pub(crate) fn covers(&self, tick: u64, now: Duration) -> bool {
        tick < self.until_tick && now < self.until
    }
}

impl<E: Engine> Peer<E> {
    /// Ends the rest before an event: counts the ticks up to `ticks`.
    pub(crate) fn wake(&mut self, ticks: u64) {
        let passed = ticks - self.rest.counted;
        if passed > 0 {
            self.raft.pass_ticks(passed as usize);
        }
        self.rest = Rest::awake(ticks);
    }

    /// Begins a rest if there is nothing to do. All ticks up to `ticks` were counted.
    pub(crate) fn settle(&mut self, options: &StoreOptions, ticks: u64) {
        let until = match self.is_at_rest() {
            true => self.next_due(options),
            false => None,
        };
        self.rest = Rest::awake(ticks);
        if let Some(until) = until {
            self.rest.until_tick = ticks + 1 + self.raft.quiet_ticks() as u64;
            self.rest.until = until;
        }
    }

    /// Whether nothing waits that a tick would look at. What holds most often under load, or is
    /// quickly asked, comes first.
    fn is_at_rest(&self) -> bool {
        let waits = !self.proposals.is_empty()
            || !self.writes.is_empty()
            || !self.parked.is_empty()
            || !self.reads.is_empty()
            || self.transfer.is_some()
            || self.lost_leadership_at.is_some()
            || self.campaigns_first()
            || self.is_installing()
            || self.changes.is_due()
            || self.snapshots.are_timed()
            || self.raft.storage().wants_snapshot()
            || self.leads() && is_joint(&self.region)
            || self.raft.has_ready();
        !waits
    }

    /// When the first of what is done by the clock is due; `None`: with the next tick.
    fn next_due(&self, options: &StoreOptions) -> Option<Duration> {
        if self.leads() {
            let report = self.reported_at? + options.heartbeat_interval;
            Some(report.min(self.log_gc.next_at()?))
        } else if self.log_gc.has_led() {
            None
        } else {
            Some(self.leader_heard_at? + options.peer_stale_time)
        }
    }
}
