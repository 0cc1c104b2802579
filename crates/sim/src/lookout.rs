//! Where the checkers that look on get their facts: messages, starts, reads and deadlines.
//!
//! Most look at what a store shows to others, or at what its disks hold. Leases, deadlines and
//! reads of data that were given up are judged with what the store says of itself, for nobody
//! else knows it.
//!
//! | checker | looks at |
//! |---|---|
//! | `promises` | messages that leave; crashes; starts |
//! | `commits` | commit indices of leaders; disks of their voters |
//! | `leases` | the first message of each leader; leases of all others |
//! | `freshness` | answers to reads; applied indices of all replicas |
//! | here | what is applied ahead of the log; writes that wait behind their deadline; memberships of the Raft cores |

use strata_proto::eraftpb::ConfState;
use strata_proto::raft_serverpb::{PeerState, RaftMessage, RegionLocalState};
use strata_raft::Storage as _;
use strata_raftstore::{Peer, StoreEvent};
use strata_storage::{
    Change, Engines, MemEngine, RecordKind, WriteBatch, conf_state_of, keys, read_raft_state,
    record,
};

use crate::calls::Call;
use crate::cluster::Cluster;
use crate::commits::{VoterDisk, check_commit};
use crate::promises::PeerMemory;
use crate::store::SimStore;
use crate::violation::Violation;

impl Cluster {
    /// A store has begun a life.
    pub(crate) fn look_at_start(&mut self, id: u64) {
        let store = &self.stores[&id];
        let Some(core) = &store.core else { return };
        let mut found = Vec::new();
        for peer in core.shards().iter().flat_map(|shard| shard.peers()) {
            let region_id = peer.region_id();
            let applied = peer.apply_state().applied_index;
            self.freshness.on_start(id, region_id, applied);
            // A store that came back empty has forgotten, and must be silent for that.
            if store.options.admitted {
                let names = (region_id, peer.raft().status().id);
                let memory = memory_of(peer);
                found.extend(
                    self.promises
                        .on_start((id, store.life), names, &memory)
                        .err(),
                );
            }
        }
        found.into_iter().for_each(|one| self.watch.report(one));
    }

    /// A crash has left these engines of a store.
    pub(crate) fn look_at_crash(&mut self, id: u64, engines: &Engines<MemEngine>) {
        self.watch.on_crash(id, engines);
        match self.promises.on_crash(id, engines) {
            Ok(found) => found.into_iter().for_each(|one| self.watch.report(one)),
            Err(error) => self.watch.damaged(id, &error),
        }
    }

    /// A message leaves a store.
    pub(crate) fn look_at_message(&mut self, from: u64, message: &RaftMessage) {
        let store = &self.stores[&from];
        let region_id = message.region_id;
        let memory = || find_peer(store, region_id).map(memory_of);
        let kept = self.promises.on_send((from, store.life), message, memory);
        let entry = store.core.as_ref();
        let entry = entry.and_then(|core| core.directory().entry(region_id));
        let mut found: Vec<Violation> = kept.err().into_iter().collect();
        found.extend(self.led_terms.check_hand_over(message).err());
        found.extend(self.commits.check_order(message).err());
        if let Some(entry) = entry
            && let Some(commit) = self.commits.on_send(message, &entry.region)
        {
            let term = message.message.as_ref().map_or(0, |inner| inner.term);
            let disk = |id: u64| {
                let store = self.stores.get(&id)?;
                match store.options.admitted {
                    true => Some(VoterDisk::Present {
                        raft: store.engines.raft.durable(),
                        kv: store.engines.kv.durable(),
                    }),
                    false => Some(VoterDisk::Lost {
                        last_index: self.lost_logs.get(&(id, region_id)).copied().unwrap_or(0),
                    }),
                }
            };
            found.extend(check_commit(&entry.region, (term, commit), disk).err());
        }
        found.into_iter().for_each(|one| self.watch.report(one));
        if let Some(term) = self.led_terms.on_send(message) {
            self.check_leases(from, region_id, term);
        }
    }

    /// A batch of an apply shard is in the kv engine. What it counts as applied is synced in the
    /// raft engine (crash rule 1), whatever a crash takes from now on.
    pub(crate) fn look_at_apply(&mut self, id: u64, batch: &WriteBatch) {
        let named = self.freshness.on_write(id, batch);
        let states = states_written(batch);
        // The first batch of an install is ahead of the raft engine (crash rule 3).
        let installs = |region_id| states.contains(&(region_id, PeerState::Applying));
        for (region_id, applied) in named {
            if installs(region_id) {
                continue;
            }
            let durable = self.stores[&id].engines.raft.durable();
            let log = read_raft_state(&durable, region_id).ok().flatten();
            let last = log.map_or(0, |state| state.last_index);
            if applied > last {
                self.watch.report(Violation::AppliedBeyondLog {
                    region_id,
                    store_id: id,
                    applied,
                    last,
                });
            }
        }
    }

    /// A store is about to handle events: notes the regions of reads that may not be served any
    /// more.
    pub(crate) fn look_at_reads(&mut self, id: u64, events: &[StoreEvent]) {
        let store = &self.stores[&id];
        let gone = |region_id: &u64| {
            let entry = store.core.as_ref();
            let entry = entry.and_then(|core| core.directory().entry(*region_id));
            let installing = entry.is_none_or(|entry| entry.view.is_installing());
            installing || find_peer(store, *region_id).is_none()
        };
        let regions = events.iter().filter_map(|event| match event {
            StoreEvent::Serve(task) => Some(task.region.id),
            _ => None,
        });
        self.given_up = regions.filter(gone).collect();
    }

    /// A store has had a turn: no write was proposed there behind its deadline, and after a tick
    /// none waits behind it.
    pub(crate) fn look_at_deadlines(&mut self, id: u64, ticked: bool) {
        if self.pending_writes.is_empty() {
            return;
        }
        let now = self.stores[&id].clock.monotonic(self.queue.now());
        let mut late = Vec::new();
        self.pending_writes.retain(|call, write| {
            if write.store != id {
                return true;
            }
            let token = self.calls.get(call).is_some_and(Call::has_token);
            let waits = write.waiting.is_waiting(token);
            let proposed = !waits && self.unanswered.contains_key(call);
            let passed = if waits {
                write.deadline <= now && ticked
            } else {
                write.deadline < now
            };
            if passed && (waits || proposed) {
                late.push((*call, proposed));
            }
            waits
        });
        for (call, proposed) in late {
            let store_id = id;
            self.watch.report(match proposed {
                true => Violation::ProposedPastDeadline { store_id, call },
                false => Violation::KeptPastDeadline { store_id, call },
            });
        }
    }

    /// At rest: every replica's Raft core works with the membership of its region.
    pub(crate) fn check_memberships(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (id, store) in &self.stores {
            let Some(core) = &store.core else { continue };
            for peer in core.shards().iter().flat_map(|shard| shard.peers()) {
                let region_id = peer.region_id();
                let Some(entry) = core.directory().entry(region_id) else {
                    continue;
                };
                let wanted = sorted(conf_state_of(&entry.region));
                let own = sorted(peer.raft().status().conf_state);
                if own != wanted {
                    found.push(Violation::MembershipDiffers {
                        region_id,
                        store_id: *id,
                        detail: format!("raft has {own:?}, the region {wanted:?}"),
                    });
                }
            }
        }
        found
    }
}

/// The regions whose state a batch writes, and that state.
pub(crate) fn states_written(batch: &WriteBatch) -> Vec<(u64, PeerState)> {
    let written = batch.changes().iter().filter_map(|change| match change {
        Change::Put { key, value, .. } => {
            let region_id = keys::parse_region_state(key)?;
            let kind = RecordKind::RegionLocalState;
            let state: RegionLocalState = record::decode(kind, key, value)
                .unwrap_or_else(|error| panic!("a batch with a broken record: {error}"));
            Some((region_id, state.state()))
        }
        _ => None,
    });
    written.collect()
}

fn find_peer(store: &SimStore, region_id: u64) -> Option<&Peer<MemEngine>> {
    let core = store.core.as_ref()?;
    let mut peers = core.shards().iter().flat_map(|shard| shard.peers());
    peers.find(|peer| peer.region_id() == region_id)
}

fn memory_of(peer: &Peer<MemEngine>) -> PeerMemory {
    PeerMemory {
        hard_state: peer.raft().hard_state(),
        last_index: peer.raft().storage().last_index().unwrap_or(0),
    }
}

/// Members in the order of their ids, without what the region does not know.
fn sorted(mut state: ConfState) -> ConfState {
    state.voters.sort_unstable();
    state.voters_outgoing.sort_unstable();
    state.learners.sort_unstable();
    state.learners_next.sort_unstable();
    state.auto_leave = false;
    state
}
