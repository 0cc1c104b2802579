//! One server of the lab: a replica with its disk, its clock and its service.
//!
//! A server that is down is a disk and a clock; what it held in memory is its [`Life`],
//! which a crash ends.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use strata_proto::eraftpb::{Entry, Message};
use strata_raft::{Index, PeerId, RawNode};

use super::disk::{Checkpoint, Disk};
use super::service::Service;
use crate::rules::View;

/// A clock that runs fast or slow and was set at another moment than the others'.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it shows at simulated time 0.
    pub offset: Duration,
    /// Its speed in millionths: 1,050,000 gains 5 %.
    pub rate_ppm: u64,
}

impl Clock {
    /// What it shows at simulated time `now`.
    pub fn read(&self, now: Duration) -> Duration {
        let shown = now.as_nanos() as u64 / 1_000 * self.rate_ppm / 1_000_000;
        self.offset + Duration::from_micros(shown)
    }

    /// How much simulated time passes while it shows `span`.
    pub fn simulated(&self, span: Duration) -> Duration {
        Duration::from_micros(span.as_micros() as u64 * 1_000_000 / self.rate_ppm)
    }
}

/// What waits for a write to be synced.
#[derive(Debug)]
pub struct Unsynced {
    /// Sequence number of the write on the disk.
    pub sequence: u64,
    /// Number of the Ready.
    pub ready: u64,
    /// To be sent then.
    pub messages: Vec<Message>,
    /// To be taken over by the service then.
    pub install: Option<Rc<Checkpoint>>,
}

/// What a server holds in memory while it is up.
pub struct Life {
    /// The replica.
    pub node: RawNode<Disk>,
    /// The service.
    pub service: Service,
    /// Readys whose write is not synced, oldest first.
    pub unsynced: VecDeque<Unsynced>,
    /// Committed entries that the service has not applied yet.
    pub to_apply: VecDeque<Entry>,
    /// An apply event is on its way.
    pub apply_scheduled: bool,
    /// What the checkers saw last.
    pub view: View,
    /// The floor of each read that waits: the index committed anywhere when it was asked.
    pub reads: BTreeMap<u64, Index>,
}

/// One server, up or down.
pub struct Server {
    /// Its id in the group.
    pub id: PeerId,
    /// Its disk; outlives it.
    pub disk: Disk,
    /// Its clock; runs on while it is down.
    pub clock: Clock,
    /// How often it was started. Events of an earlier life are void.
    pub incarnation: u64,
    /// Nothing is done before this simulated time: the process stands still.
    pub paused_until: Duration,
    /// What it holds in memory; None while it is down.
    pub life: Option<Life>,
}

impl Life {
    /// The core's role, term and commit index.
    pub fn read_view(&self) -> View {
        let hard_state = self.node.hard_state();
        View {
            role: self.node.soft_state().role,
            term: hard_state.term,
            commit: hard_state.commit,
        }
    }
}
