//! Creates a peer on the first message for it.
//!
//! Unknown   A shard gets a message for a region that it does not know and asks the store FSM,
//!           for a limited number of messages at a time.
//! Judge     A tombstone of the region, if there is one, must be older than the message and
//!           of an older peer; a sender that is no member any more is told so, by a
//!           tombstone that knows the members. Only a
//!           request for a vote or a leader's first heartbeat creates a peer: any other
//!           message means a peer that was here once and has lost its data.
//! Hold      While a live region covers part of the range that the message names, the
//!           message is held (crash rule 12): that region has not applied its split, or has
//!           not been told that it is gone. Whenever a region changes its range or goes, the
//!           held messages are judged again. Limited in number and time.
//! Create    The shard opens the replica: hard state and log come from the raft engine
//!           (crash rule 4), so a vote given under the same region id is not forgotten. The
//!           peer has no range, no membership and no data until its first snapshot; it may
//!           vote. Then it takes the message.
//!
//! Invariants
//! * A region is in the directory, or is being created, or is being destroyed, or neither.
//! * A held message has changed nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use strata_proto::eraftpb::MessageType;
use strata_proto::metapb::{Peer as PeerMeta, Region};
use strata_proto::raft_serverpb::RaftMessage;
use strata_raft::planted;
use strata_storage::{Durability, Engine, PeerStorage, PeerStorageOptions, keys};

use crate::directory::{Directory, PeerView, SYSTEM_REGION_ID, find_peer, find_peer_on};
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::peer::Peer;
use crate::shard::{Shard, ShardEvent, shard_of};
use crate::stale_peer::{tombstone_answer, wants_answer};
use crate::store_request::{StoreAnswer, StoreRequest};
use crate::time::Now;

/// How long a message is held; its sender repeats it much sooner.
const HOLD_TIME: Duration = Duration::from_secs(10);
/// Most messages that are held of one region: one vote and one heartbeat of a few members.
const MAX_HELD_OF_REGION: usize = 16;

/// A message that waits for its range to become free.
#[derive(Debug)]
struct Held {
    message: Box<RaftMessage>,
    since: Duration,
}

/// What becomes of a message.
enum Verdict {
    Create { region: Box<Region>, peer: PeerMeta },
    Hold,
    Refuse { answer: Option<Box<RaftMessage>> },
}

/// Peers that are being created, and those that are gone. Part of the store FSM.
#[derive(Debug)]
pub(crate) struct Creations {
    store_id: u64,
    raft_shards: usize,
    /// Most messages that are held, and most peers that wait for their first snapshot.
    limit: usize,
    /// By region: the region as the peer knew it, its own peer among the others.
    tombstones: BTreeMap<u64, Region>,
    /// Peers without a place in the directory, by region.
    created: BTreeMap<u64, (PeerMeta, Arc<PeerView>)>,
    held: VecDeque<Held>,
    metrics: Arc<StoreMetrics>,
}

impl Creations {
    /// Nothing is created yet.
    pub(crate) fn new(store_id: u64, options: &StoreOptions, metrics: Arc<StoreMetrics>) -> Self {
        Creations {
            store_id,
            raft_shards: options.raft_shards,
            limit: options.max_pending_messages,
            tombstones: BTreeMap::new(),
            created: BTreeMap::new(),
            held: VecDeque::new(),
            metrics,
        }
    }

    /// Notes the tombstone of a region; a peer that was being created is no more.
    pub(crate) fn bury(&mut self, region: Region) {
        self.created.remove(&region.id);
        self.tombstones.insert(region.id, region);
    }

    /// The view of a peer that was created and gets its place in the directory now.
    pub(crate) fn take_view(&mut self, region_id: u64) -> Option<Arc<PeerView>> {
        self.created.remove(&region_id).map(|(_, view)| view)
    }

    /// The peers that wait for their first snapshot, by region.
    pub(crate) fn creating(&self) -> BTreeMap<u64, PeerMeta> {
        let peers = self.created.iter();
        peers.map(|(id, (peer, _))| (*id, *peer)).collect()
    }

    /// A message for a region that its shard did not know.
    pub(crate) fn on_unknown(
        &mut self,
        now: Now,
        directory: &Directory,
        message: Box<RaftMessage>,
    ) -> Vec<StoreAnswer> {
        let region_id = message.region_id;
        let settled = self.answer(region_id, ShardEvent::UnknownSettled);
        let judged = self.judge(now.monotonic, directory, message);
        judged.into_iter().chain([settled]).collect()
    }

    /// A region has changed its range, or is gone: judges what was held again.
    pub(crate) fn retry_held(&mut self, now: Now, directory: &Directory) -> Vec<StoreAnswer> {
        let mut answers = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if held.since + HOLD_TIME <= now.monotonic {
                self.metrics.messages_dropped_held.increment();
                continue;
            }
            answers.extend(self.judge(held.since, directory, held.message));
        }
        answers
    }

    fn judge(
        &mut self,
        since: Duration,
        directory: &Directory,
        message: Box<RaftMessage>,
    ) -> Option<StoreAnswer> {
        let region_id = message.region_id;
        if directory.get(region_id).is_some() || self.created.contains_key(&region_id) {
            // It was created meanwhile.
            return Some(self.answer(region_id, ShardEvent::Message(message)));
        }
        match self.verdict(directory, &message) {
            Verdict::Create { region, peer } => {
                self.metrics.peers_created.increment();
                let view = Arc::new(PeerView::default());
                self.created.insert(region_id, (peer, view.clone()));
                let event = ShardEvent::Create {
                    region,
                    peer,
                    view,
                    message,
                };
                Some(self.answer(region_id, event))
            }
            Verdict::Hold => {
                self.hold(message, since);
                None
            }
            Verdict::Refuse { answer } => {
                self.metrics.messages_dropped_unknown.increment();
                answer.map(|message| self.answer(region_id, ShardEvent::Tell(message)))
            }
        }
    }

    fn verdict(&self, directory: &Directory, message: &RaftMessage) -> Verdict {
        let refuse = Verdict::Refuse { answer: None };
        let (Some(from), Some(to)) = (message.from_peer, message.to_peer) else {
            return refuse;
        };
        if to.store_id != self.store_id || to.id == 0 || from.id == 0 {
            return refuse;
        }
        let epoch = message.region_epoch.unwrap_or_default();
        if let Some(tombstone) = self.tombstones.get(&message.region_id) {
            let gone = tombstone.region_epoch.unwrap_or_default();
            let older = epoch.conf_ver < gone.conf_ver;
            let removed = knows_members(tombstone) && find_peer(tombstone, from.id).is_none();
            if older && removed && wants_answer(message) {
                let answer = tombstone_answer(message, gone).map(Box::new);
                return Verdict::Refuse { answer };
            }
            let own = find_peer_on(tombstone, self.store_id).map_or(0, |own| own.id);
            if epoch.conf_ver <= gone.conf_ver || to.id <= own {
                return refuse;
            }
        }
        let well_formed = message.end_key.is_empty() || message.start_key < message.end_key;
        let known = epoch.conf_ver > 0 && epoch.version > 0;
        if !may_create(message) || !well_formed || !known {
            return refuse;
        }
        let covered = directory
            .iter()
            .any(|entry| covers_part(&entry.region, message));
        if covered || self.created.len() >= self.limit {
            return Verdict::Hold;
        }
        let region = Region {
            id: message.region_id,
            region_epoch: Some(epoch),
            ..Region::default()
        };
        let region = Box::new(region);
        Verdict::Create { region, peer: to }
    }

    fn hold(&mut self, message: Box<RaftMessage>, since: Duration) {
        let region_id = message.region_id;
        let of_region = |held: &Held| held.message.region_id == region_id;
        let too_many = self.held.iter().filter(|held| of_region(held)).count();
        let oldest = if too_many >= MAX_HELD_OF_REGION {
            self.held.iter().position(of_region)
        } else {
            (self.held.len() >= self.limit).then_some(0)
        };
        if let Some(oldest) = oldest {
            self.metrics.messages_dropped_held.increment();
            self.held.remove(oldest);
        }
        self.metrics.messages_held.increment();
        self.held.push_back(Held { message, since });
    }

    fn answer(&self, region_id: u64, event: ShardEvent) -> StoreAnswer {
        StoreAnswer {
            shard: shard_of(region_id, self.raft_shards),
            event,
        }
    }
}

/// False for the tombstone of a peer that never got its snapshot: it names that peer alone,
/// so that somebody is not in it says nothing.
fn knows_members(tombstone: &Region) -> bool {
    tombstone.peers.len() > 1
}

/// True for messages that may create a peer.
fn may_create(message: &RaftMessage) -> bool {
    let Some(inner) = message.message.as_ref().filter(|_| !message.is_tombstone) else {
        return false;
    };
    match inner.msg_type() {
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => true,
        // The leader knows nothing to be here: this peer has never answered.
        MessageType::MsgHeartbeat => inner.commit == 0,
        _ => false,
    }
}

/// True if a live region has keys in common with the region that a message is about.
fn covers_part(live: &Region, message: &RaftMessage) -> bool {
    if live.id == SYSTEM_REGION_ID || message.region_id == SYSTEM_REGION_ID {
        return false;
    }
    let (start, end) = keys::data_range(&live.start_key, &live.end_key);
    let (from, to) = keys::data_range(&message.start_key, &message.end_key);
    start < to && from < end
}

impl<E: Engine> Shard<E> {
    /// A message for a region that has no peer here.
    pub(crate) fn on_unknown_region(&mut self, mut message: RaftMessage) {
        let busy = self.unknown_out >= self.options.max_pending_messages;
        let silent = message.is_tombstone || !(may_create(&message) || wants_answer(&message));
        if self.destroying.contains_key(&message.region_id) || busy || silent {
            self.metrics.messages_dropped_unknown.increment();
            return;
        }
        if !may_create(&message)
            && let Some(inner) = &mut message.message
        {
            // Only its sender counts.
            inner.entries.clear();
            inner.snapshot = None;
        }
        self.unknown_out += 1;
        let message = Box::new(message);
        self.out.store.push(StoreRequest::Unknown { message });
    }

    /// The store FSM is done with a message.
    pub(crate) fn on_unknown_settled(&mut self) {
        assert!(self.unknown_out > 0, "no message is with the store FSM");
        self.unknown_out -= 1;
    }

    /// The store FSM has something to say to another store.
    pub(crate) fn on_tell(&mut self, message: RaftMessage) {
        if let Some(to) = message.to_peer {
            self.out.send_to(to.store_id, Some(message));
        }
    }

    /// Creates a peer without range, membership and data, and lets it take its first
    /// message.
    ///
    /// # Panics
    /// If the raft engine holds what a peer without data cannot have, or cannot be read.
    pub(crate) fn on_create(
        &mut self,
        now: Now,
        region: Region,
        peer: PeerMeta,
        view: Arc<PeerView>,
        message: RaftMessage,
    ) {
        let region_id = region.id;
        assert!(
            !self.peers.contains_key(&region_id) && !self.destroying.contains_key(&region_id),
            "region {region_id}: created where it has a peer"
        );
        let stop = |error: &dyn std::fmt::Display| -> ! {
            panic!("region {region_id}: its new peer cannot start: {error}")
        };
        if planted!(VoteForgottenAtCreation) {
            // Planted: term and vote of the region stay, whoever comes (crash rule 4).
            let forgotten = crate::destroy::without_log(region_id);
            let written = self.engines.raft.write(&forgotten, Durability::Unsynced);
            written.unwrap_or_else(|error| stop(&error));
        }
        let storage_options = PeerStorageOptions::default();
        let storage = PeerStorage::open(&self.engines, region.clone(), peer.id, &storage_options)
            .unwrap_or_else(|error| stop(&error));
        let created = Peer::new(&self.options, Arc::new(region), peer, storage, view, now)
            .unwrap_or_else(|error| stop(&error));
        self.add_peer(created);
        self.handle(now, ShardEvent::Message(Box::new(message)));
    }
}
