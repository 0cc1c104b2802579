//! One replica: its state and the changes of role.
//!
//! `step` lets messages in; the other files hold one idea of the protocol each, for both
//! sides of it: `election`, `replication`, `snapshot`, `heartbeat`, `read`, `transfer`,
//! `membership`. `raw_node` is the face to the driver and makes the Readys.
//!
//! Messages leave through two queues. What promises something that this replica must still
//! know after a crash (a vote asked for or given, entries taken) waits until that is synced;
//! everything else goes at once.
//!
//! Invariants
//! * Progress, reads, rounds, transferee are filled on a leader only.
//! * A leader's own progress matches what is persisted here, not what is in memory.

mod election;
mod heartbeat;
mod membership;
mod read;
mod replication;
mod snapshot;
mod step;
mod transfer;

use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_proto::eraftpb::{Entry, HardState, Message, MessageType};

use crate::conf_change::Membership;
use crate::config::Config;
use crate::error::Error;
use crate::log::RaftLog;
use crate::read_queue::ReadQueue;
use crate::rounds::Rounds;
use crate::status::Counts;
use crate::storage::Storage;
use crate::tracker::Tracker;
use crate::types::{Index, NO_PEER, PeerId, ReadState, Role, SoftState, Term, entry_bytes};

/// Context of a vote request that a leader has asked for by `MsgTimeoutNow`: that leader
/// has given up its lease, so the vote need not be withheld for its sake.
pub const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// State of one replica.
pub(crate) struct Replica<S> {
    pub id: PeerId,
    pub config: Config,
    pub log: RaftLog<S>,
    pub tracker: Tracker,

    term: Term,
    vote: PeerId,
    role: Role,
    leader: Option<PeerId>,

    /// The latest time given by the driver; it never goes back.
    now: Duration,
    /// When a leader was last heard from, in this term or an earlier one.
    heard_at: Option<Duration>,
    /// Before this time this replica neither votes nor campaigns.
    quiet_until: Duration,
    /// Ticks since the last word from a leader, vote or campaign; on a leader, since the
    /// last check of its quorum.
    election_elapsed: usize,
    heartbeat_elapsed: usize,
    election_timeout: usize,
    random: ChaCha8Rng,

    /// Index of the first entry of this leader's term.
    term_start: Index,
    /// Membership changes may be proposed once this is applied.
    pending_conf_index: Index,
    /// Bytes proposed in this term here and not yet handed out as committed.
    uncommitted_bytes: u64,
    rounds: Rounds,
    /// When the latest round was sent that a quorum has answered.
    lease_from: Option<Duration>,
    reads: ReadQueue,
    transferee: Option<PeerId>,
    /// Ticks since the transferee was chosen.
    transfer_elapsed: usize,
    /// Whether a transferee was told to campaign in this term: the lease is void.
    timeout_now_sent: bool,
    /// Requests for votes that went unheard because a leader may hold a lease.
    votes_withheld: u64,

    pub messages: Vec<Message>,
    pub messages_after_sync: Vec<Message>,
    pub read_states: Vec<ReadState>,
}

impl<S: Storage> Replica<S> {
    pub fn new(config: &Config, storage: S, now: Duration) -> Result<Self, Error> {
        config.check()?;
        let state = storage.initial_state()?;
        let membership = Membership::from_conf_state(&state.conf_state)?;
        let truncated = storage.first_index()?.saturating_sub(1);
        let last = storage.last_index()?;
        let applied = config.applied.max(truncated);
        // The commit index is not synced when it moves alone; what is applied or truncated is
        // committed as a matter of course.
        let committed = state.hard_state.commit.max(applied);
        if committed > last {
            return Err(Error::CorruptState(format!(
                "truncated {truncated}, applied {applied}, committed {committed}, last {last}"
            )));
        }
        // Planted: what was promised before a crash is not taken to be promised still.
        let quiet = if config.quiet_after_start && !planted!(LeaseForgottenAfterRestart) {
            config.election_timeout
        } else {
            Duration::ZERO
        };
        // The id is spread over the seed, so that replicas with equal seeds differ.
        let seed = config.seed ^ config.id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut replica = Self {
            id: config.id,
            config: config.clone(),
            log: RaftLog::new(storage, committed, applied)?,
            tracker: Tracker::new(membership, config.max_inflight_messages),
            term: state.hard_state.term,
            // Planted: a vote is given once in a term (section 5.2).
            vote: match planted!(VoteTwiceAfterRestart) {
                true => NO_PEER,
                false => state.hard_state.vote,
            },
            role: Role::Follower,
            leader: None,
            now,
            heard_at: None,
            quiet_until: now.saturating_add(quiet),
            election_elapsed: 0,
            heartbeat_elapsed: 0,
            election_timeout: 0,
            random: ChaCha8Rng::seed_from_u64(seed),
            term_start: 0,
            pending_conf_index: 0,
            uncommitted_bytes: 0,
            rounds: Rounds::default(),
            lease_from: None,
            reads: ReadQueue::default(),
            transferee: None,
            transfer_elapsed: 0,
            timeout_now_sent: false,
            votes_withheld: 0,
            messages: Vec::new(),
            messages_after_sync: Vec::new(),
            read_states: Vec::new(),
        };
        replica.draw_election_timeout();
        Ok(replica)
    }

    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    pub fn transferee(&self) -> Option<PeerId> {
        self.transferee
    }

    pub fn counts(&self) -> Counts {
        Counts {
            votes_withheld: self.votes_withheld,
            conflicts: self.log.conflicts(),
        }
    }

    pub fn soft_state(&self) -> SoftState {
        SoftState {
            leader: self.leader,
            role: self.role,
        }
    }

    pub fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed(),
        }
    }

    /// Takes the driver's time; one that goes back counts as standing still.
    pub fn set_now(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        match self.role {
            Role::Leader => self.tick_leader(),
            Role::Follower | Role::PreCandidate | Role::Candidate => self.tick_election(),
        }
    }

    /// How many of the coming ticks would only count.
    pub fn quiet_ticks(&self) -> usize {
        let before = |due: usize, elapsed: usize| due.saturating_sub(elapsed.saturating_add(1));
        match self.role {
            Role::Leader if self.transferee.is_some() => 0,
            Role::Leader => before(self.config.heartbeat_ticks, self.heartbeat_elapsed)
                .min(before(self.config.election_ticks, self.election_elapsed)),
            Role::Follower | Role::PreCandidate | Role::Candidate => {
                before(self.election_timeout, self.election_elapsed)
            }
        }
    }

    /// Counts ticks that do nothing else.
    pub fn pass_ticks(&mut self, ticks: usize) {
        self.election_elapsed += ticks;
        if self.is_leader() {
            self.heartbeat_elapsed += ticks;
            self.transfer_elapsed = self.transfer_elapsed.saturating_add(ticks);
        }
    }

    fn draw_election_timeout(&mut self) {
        let range = self.config.election_ticks..self.config.election_ticks_max;
        self.election_timeout = self.random.random_range(range);
    }

    /// Forgets all that belongs to a role, and the vote if the term is new.
    fn reset(&mut self, term: Term) {
        if term != self.term {
            assert!(term > self.term, "term {} -> {term}", self.term);
            self.term = term;
            self.vote = NO_PEER;
            self.timeout_now_sent = false;
        }
        self.leader = None;
        self.election_elapsed = 0;
        self.heartbeat_elapsed = 0;
        self.draw_election_timeout();
        self.tracker.clear_votes();
        self.tracker.stop_progress();
        self.transferee = None;
        self.rounds.clear();
        self.lease_from = None;
        self.reads.clear();
        self.pending_conf_index = 0;
        self.uncommitted_bytes = 0;
    }

    fn become_follower(&mut self, term: Term, leader: Option<PeerId>) {
        self.reset(term);
        self.role = Role::Follower;
        self.leader = leader;
    }

    /// Takes office: appends an empty entry of the own term, so that what earlier terms left
    /// can be committed (section 5.4.2).
    fn become_leader(&mut self) {
        assert_eq!(self.role, Role::Candidate, "only a candidate wins");
        self.reset(self.term);
        self.role = Role::Leader;
        self.leader = Some(self.id);
        let last = self.log.last_index();
        self.tracker.start_progress(last + 1);
        let persisted = self.log.persisted();
        if let Some(own) = self.tracker.progress_mut(self.id) {
            own.become_replicate();
            own.recent_active = true;
            own.maybe_update(persisted);
        }
        // A membership change may lie among what is not applied; look for none.
        self.pending_conf_index = last;
        self.term_start = last + 1;
        self.append_own(Entry::default());
    }

    /// Appends `entry`, completed by term and index, to a leader's log.
    fn append_own(&mut self, entry: Entry) -> Index {
        let entry = self.place(entry);
        let index = entry.index;
        self.log.push(entry);
        index
    }

    /// The entry with the term and index that it gets when it is appended now.
    fn place(&self, entry: Entry) -> Entry {
        Entry {
            term: self.term,
            index: self.log.last_index() + 1,
            ..entry
        }
    }

    /// Counts a proposal against the limit of uncommitted bytes and appends it. Entries
    /// without data always pass, and so does the first whatever its size.
    fn append_proposal(&mut self, entry: Entry) -> Result<Index, Error> {
        let entry = self.place(entry);
        let total = self.uncommitted_bytes.saturating_add(entry_bytes(&entry));
        let allowed = entry.data.is_empty()
            || self.uncommitted_bytes == 0
            || total <= self.config.max_uncommitted_bytes;
        if !allowed {
            return Err(Error::ProposalDropped);
        }
        self.uncommitted_bytes = total;
        let index = entry.index;
        self.log.push(entry);
        Ok(index)
    }

    /// `entries` were handed out as committed: they count no more. Those of the leader's own
    /// making, which were never counted, make no difference that lasts: the count ends at 0.
    pub fn release_uncommitted(&mut self, entries: &[Entry]) {
        if self.uncommitted_bytes == 0 {
            return;
        }
        for entry in entries.iter().filter(|e| e.index > self.term_start) {
            let bytes = entry_bytes(entry);
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes);
        }
    }

    /// Appends a command to the leader's log.
    pub fn propose(&mut self, entry: Entry) -> Result<Index, Error> {
        self.check_proposal()?;
        self.append_proposal(entry)
    }

    fn check_proposal(&self) -> Result<(), Error> {
        if !self.is_leader() {
            return Err(Error::NotLeader {
                leader: self.leader,
            });
        }
        if self.transferee.is_some() {
            return Err(Error::ProposalDropped);
        }
        Ok(())
    }

    /// A message to `to` in the present term.
    fn message(&self, to: PeerId, msg_type: MessageType) -> Message {
        Message {
            msg_type: msg_type as i32,
            to,
            from: self.id,
            term: self.term,
            // Every field by name: a default message would be built first and taken apart.
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            snapshot: None,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
            request_snapshot: 0,
            deprecated_priority: 0,
            priority: 0,
        }
    }

    /// Queues a message that promises nothing about this replica's disk.
    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Queues a message that may leave only when all state up to now is synced.
    fn send_after_sync(&mut self, message: Message) {
        // Planted: an answer is sent when what it answers is synced (figure 2).
        if planted!(AcknowledgeBeforeSync) && message.msg_type() == MessageType::MsgAppendResponse {
            return self.send(message);
        }
        self.messages_after_sync.push(message);
    }

    /// Entries up to the log's persisted index count for a leader now.
    pub fn on_persisted(&mut self) {
        if !self.is_leader() {
            return;
        }
        let persisted = self.log.persisted();
        if let Some(own) = self.tracker.progress_mut(self.id) {
            own.maybe_update(persisted);
        }
        self.maybe_commit();
    }

    /// The driver has applied everything up to `index`.
    pub fn applied_to(&mut self, index: Index) {
        self.log.applied_to(index);
        self.maybe_leave_joint();
    }

    /// Driver time until which a read from the own state is linearizable.
    pub fn lease_until(&self) -> Option<Duration> {
        let valid = self.is_leader()
            && self.config.check_quorum
            // Planted: who has handed over has no lease.
            && (!self.timeout_now_sent || planted!(LeaseReadAfterTransfer))
            && self.log.applied() >= self.term_start;
        let from = self.lease_from.filter(|_| valid)?;
        Some(from.saturating_add(self.config.lease()))
    }

    /// A read state for this replica's own reader.
    fn answer_read(&mut self, index: Index, request_context: Bytes) {
        self.read_states.push(ReadState {
            index,
            request_context,
        });
    }
}
