//! The handle through which a driver steps one replica.
//!
//! ```text
//! tick, step, propose, ...   inputs, any number of them
//! ready                      takes all effects since the last time
//! advance*                   the driver has written them
//! on_persist_ready           ... and synced them
//! advance_apply_to           ... and applied what was committed
//! ```
//!
//! `advance` does the last three at once, `advance_append` the first two of them. Between
//! `ready` and `advance*` nothing but reading calls and inputs may happen; a second `ready`
//! is a broken invariant.

use std::time::Duration;

use bytes::Bytes;
use strata_proto::eraftpb::{ConfChangeV2, ConfState, Entry, HardState, Message, MessageType};

use crate::config::Config;
use crate::error::Error;
use crate::ready::{LightReady, Ready};
use crate::replica::Replica;
use crate::status::{Counts, Status};
use crate::storage::Storage;
use crate::types::{Index, PeerId, SnapshotStatus, SoftState};

/// Messages for which a queue keeps memory from one Ready to the next. A message takes about
/// 300 bytes, and a store has many groups.
const KEPT_MESSAGES: usize = 8;

/// One replica of one group.
pub struct RawNode<S> {
    replica: Replica<S>,
    /// Number of the latest Ready; 0 before the first.
    number: u64,
    /// Whether the latest Ready is not advanced yet.
    taken: bool,
    soft_state: SoftState,
    hard_state: HardState,
}

impl<S: Storage> RawNode<S> {
    /// Starts a replica from what `storage` holds. A snapshot that was installed before is
    /// part of that and not reported again.
    ///
    /// # Errors
    /// `InvalidConfig`; `CorruptState` or `ConfChange` if what is stored contradicts itself;
    /// `Storage` if it cannot be read.
    pub fn new(config: &Config, storage: S, now: Duration) -> Result<Self, Error> {
        let saved = storage.initial_state()?.hard_state;
        let replica = Replica::new(config, storage, now)?;
        Ok(Self {
            soft_state: replica.soft_state(),
            // What differs from the saved state, as a commit index raised to the truncation
            // point, goes into the first Ready.
            hard_state: saved,
            replica,
            number: 0,
            taken: false,
        })
    }

    /// Lets one tick pass. Ticks that were missed are dropped by the driver, never made up
    /// for in a burst. Returns whether a Ready may have come up.
    pub fn tick(&mut self, now: Duration) -> bool {
        self.replica.set_now(now);
        self.replica.tick();
        self.has_ready()
    }

    /// How many of the coming ticks would do nothing but count, as long as nothing but ticks
    /// happens.
    pub fn quiet_ticks(&self) -> usize {
        self.replica.quiet_ticks()
    }

    /// Lets ticks pass that do nothing but count: what `tick` would have done so many times.
    ///
    /// # Panics
    /// If they are more than [`RawNode::quiet_ticks`].
    pub fn pass_ticks(&mut self, ticks: usize) {
        let quiet = self.replica.quiet_ticks();
        assert!(
            ticks <= quiet,
            "{ticks} ticks were passed over, {quiet} would have done nothing"
        );
        self.replica.pass_ticks(ticks);
    }

    /// Starts an election now. No effect on a leader.
    ///
    /// # Errors
    /// `CampaignTooEarly` while a promise forbids it, `NotPromotable`.
    pub fn campaign(&mut self, now: Duration) -> Result<(), Error> {
        self.replica.set_now(now);
        self.replica.campaign()
    }

    /// Appends a command to the leader's log and returns its index. It is sent with the next
    /// Ready, and committed or lost later: the caller follows term and index.
    ///
    /// # Errors
    /// `NotLeader`, `ProposalDropped`.
    pub fn propose(&mut self, context: Bytes, data: Bytes) -> Result<Index, Error> {
        self.replica.propose(Entry {
            data,
            context,
            ..Entry::default()
        })
    }

    /// Appends a membership change to the leader's log and returns its index. The empty
    /// change leaves a joint membership.
    ///
    /// # Errors
    /// `NotLeader`, `ProposalDropped`, `ConfChangePending`, `ConfChange`.
    pub fn propose_conf_change(
        &mut self,
        context: Bytes,
        change: ConfChangeV2,
    ) -> Result<Index, Error> {
        self.replica.propose_conf_change(context, &change)
    }

    /// Puts a committed membership change in force and returns the new membership, which the
    /// driver saves. Called for each such entry when it is applied, before
    /// `advance_apply_to` reaches it; not called for one that the driver refuses to carry
    /// out.
    ///
    /// # Errors
    /// `ConfChange` if it does not fit. That is the same on every replica; the membership
    /// stays as it is.
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        self.replica.apply_conf_change(change)
    }

    /// Takes a message from a peer. Never panics, whatever the message.
    ///
    /// # Errors
    /// `LocalMessage`, `UnknownPeer`, `Malformed`: the message was dropped.
    pub fn step(&mut self, now: Duration, mut message: Message) -> Result<(), Error> {
        self.replica.set_now(now);
        self.replica.step(&mut message)
    }

    /// Whether `ready` would return anything to do. False between `ready` and `advance*`.
    pub fn has_ready(&self) -> bool {
        let replica = &self.replica;
        !self.taken
            && (!replica.messages.is_empty()
                || !replica.messages_after_sync.is_empty()
                || !replica.read_states.is_empty()
                || replica.log.has_write()
                || replica.log.has_committed()
                || replica.needs_round()
                || replica.has_appends()
                || replica.soft_state() != self.soft_state
                || replica.hard_state() != self.hard_state)
    }

    /// Takes the messages, if all that `ready` would return is messages that may go at once: as
    /// most heartbeats and their answers are. Nothing is to be advanced after it.
    pub fn take_lone_messages(&mut self) -> Option<Vec<Message>> {
        let replica = &self.replica;
        let alone = !self.taken
            && !replica.messages.is_empty()
            && replica.messages_after_sync.is_empty()
            && replica.read_states.is_empty()
            && !replica.log.has_write()
            && !replica.log.has_committed()
            && !replica.log.has_unsynced_promise()
            && !replica.needs_round()
            && !replica.has_appends()
            && replica.soft_state() == self.soft_state
            && replica.hard_state() == self.hard_state;
        alone.then(|| take_filled(&mut self.replica.messages))
    }

    /// Takes the effects of all inputs since the last time. Appends and the heartbeat round
    /// for waiting reads are built now.
    ///
    /// # Panics
    /// If the last Ready was not advanced.
    pub fn ready(&mut self, now: Duration) -> Ready {
        assert!(!self.taken, "ready {} is not advanced", self.number);
        self.replica.set_now(now);
        self.replica.send_read_round();
        self.replica.send_appends();
        self.taken = true;
        self.number += 1;
        let soft_state = self.replica.soft_state();
        let known = std::mem::replace(&mut self.soft_state, soft_state);
        let hard_state = self.replica.hard_state();
        let saved = std::mem::replace(&mut self.hard_state, hard_state);
        let promises = (hard_state.term, hard_state.vote) != (saved.term, saved.vote);
        let entries = self.replica.log.take_write(self.number, promises);
        let must_sync = promises || !entries.is_empty() || self.has_snapshot();
        let committed_entries = self.take_committed();
        let (messages, persisted_messages) = self.take_messages();
        // Built at once and last: it is large.
        Ready {
            number: self.number,
            soft_state: (soft_state != known).then_some(soft_state),
            hard_state: (hard_state != saved).then_some(hard_state),
            read_states: std::mem::take(&mut self.replica.read_states),
            must_sync,
            entries,
            snapshot: self.replica.log.snapshot().cloned(),
            committed_entries,
            messages,
            persisted_messages,
        }
    }

    fn take_committed(&mut self) -> Vec<Entry> {
        let limit = self.replica.config.max_committed_bytes_per_ready;
        let entries = self.replica.log.take_committed(limit);
        self.replica.release_uncommitted(&entries);
        entries
    }

    /// Deals the messages out to before and after the sync.
    fn take_messages(&mut self) -> (Vec<Message>, Vec<Message>) {
        if self.replica.log.has_unsynced() {
            let mut persisted = take_filled(&mut self.replica.messages_after_sync);
            let messages = self.take_free_messages(&mut persisted);
            return (messages, persisted);
        }
        // Everything that they promise is on the disk already.
        let mut persisted = Vec::new();
        let mut messages = self.take_free_messages(&mut persisted);
        messages.append(&mut self.replica.messages_after_sync);
        (messages, persisted)
    }

    /// Takes the messages that may go at once; the others join `held` while term or vote are
    /// not synced. A leader whose own vote is not synced yet (it is the only voter) could lose
    /// its term and lead it again with other entries. A follower that answers a heartbeat
    /// gives a lease, and what makes it keep quiet after a crash is its term on the disk.
    fn take_free_messages(&mut self, held: &mut Vec<Message>) -> Vec<Message> {
        let messages = take_filled(&mut self.replica.messages);
        if !self.replica.log.has_unsynced_promise() {
            return messages;
        }
        let (waiting, free): (Vec<_>, Vec<_>) = messages.into_iter().partition(needs_term);
        held.extend(waiting);
        free
    }

    /// Everything in `ready` is written, synced and applied; so is everything handed out
    /// before. Returns what has come up; its entries are reported by `advance_apply`.
    pub fn advance(&mut self, mut ready: Ready) -> LightReady {
        let applied = self.replica.log.handed();
        let light = self.advance_written_and_synced(&mut ready);
        self.replica.applied_to(applied);
        light
    }

    /// Everything in `ready` is written and synced, and so are all Readys before.
    pub fn advance_append(&mut self, mut ready: Ready) -> LightReady {
        self.advance_written_and_synced(&mut ready)
    }

    fn advance_written_and_synced(&mut self, ready: &mut Ready) -> LightReady {
        self.advance_written(ready);
        self.on_persist_ready(ready.number);
        let mut light = LightReady {
            committed_entries: self.take_committed(),
            ..LightReady::default()
        };
        let now = self.replica.hard_state();
        if (now.term, now.vote) == (self.hard_state.term, self.hard_state.vote) {
            // Else an input since `ready` has changed term or vote: what is to be sent then
            // waits for the Ready that saves them.
            self.replica.send_appends();
            light.messages = take_filled(&mut self.replica.messages);
        }
        if now.commit != self.hard_state.commit {
            self.hard_state.commit = now.commit;
            light.commit_index = Some(now.commit);
        }
        light
    }

    /// Everything in `ready` is written and shown by the storage, but not synced. Vectors that
    /// the driver has drained or left in `ready` are used again for the next one.
    ///
    /// # Panics
    /// If `ready` is not the latest one, or was advanced before.
    pub fn advance_append_async(&mut self, mut ready: Ready) {
        self.advance_written(&mut ready);
    }

    fn advance_written(&mut self, ready: &mut Ready) {
        assert!(
            self.taken && ready.number == self.number,
            "ready {} is advanced, ready {} was taken",
            ready.number,
            self.number
        );
        self.taken = false;
        self.replica.log.stable(ready.number);
        self.replica.log.take_back(&mut ready.entries);
        take_back(&mut self.replica.messages, &mut ready.messages);
        take_back(
            &mut self.replica.messages_after_sync,
            &mut ready.persisted_messages,
        );
    }

    /// The writes of Ready `number` and of all before it are synced.
    ///
    /// # Panics
    /// If that Ready was not advanced.
    pub fn on_persist_ready(&mut self, number: u64) {
        let advanced = self.number - u64::from(self.taken);
        assert!(
            number <= advanced,
            "ready {number} is synced, ready {advanced} was advanced"
        );
        if self.replica.log.on_persist(number) {
            self.replica.on_persisted();
        }
    }

    /// Everything that was handed out is applied.
    pub fn advance_apply(&mut self) {
        self.replica.applied_to(self.replica.log.handed());
    }

    /// Everything up to `applied` is applied.
    ///
    /// # Panics
    /// If it was not handed out, or is less than was reported before.
    pub fn advance_apply_to(&mut self, applied: Index) {
        self.replica.applied_to(applied);
    }

    /// Asks for a linearizable read point; it comes out of a later Ready with `context`. It
    /// never comes if the leader changes meanwhile or a message is lost: the caller asks
    /// again.
    ///
    /// # Errors
    /// `NotLeader` without a known leader, `ReadNotReady`, `TooManyReads`.
    pub fn read_index(&mut self, context: Bytes) -> Result<(), Error> {
        self.replica.read_index(context)
    }

    /// Driver time until which a leader may serve reads from its own state. `None` if it has
    /// no lease: it does not lead, no entry of its term is applied, no quorum has answered,
    /// it has told another to take over in this term, or votes are not withheld because
    /// `check_quorum` is off.
    pub fn lease_until(&self) -> Option<Duration> {
        self.replica.lease_until()
    }

    /// Hands leadership over to `to`; on a follower, asks the leader to. No effect if `to` is
    /// no voter. Progress shows in the soft state.
    pub fn transfer_leader(&mut self, to: PeerId) {
        self.replica.transfer_leader(to);
    }

    /// A message to `id` could not be delivered.
    pub fn report_unreachable(&mut self, id: PeerId) {
        self.replica.report_unreachable(id);
    }

    /// The sending of a snapshot to `id` has ended. Must follow every `MsgSnapshot`, since
    /// nothing else is sent to that follower before.
    pub fn report_snapshot(&mut self, id: PeerId, status: SnapshotStatus) {
        self.replica.report_snapshot(id, status);
    }

    /// Copy of the state for operators and tests.
    pub fn status(&self) -> Status {
        let replica = &self.replica;
        Status {
            id: replica.id,
            hard_state: replica.hard_state(),
            soft_state: replica.soft_state(),
            applied: replica.log.applied(),
            persisted: replica.log.persisted(),
            first_index: replica.log.first_index(),
            last_index: replica.log.last_index(),
            conf_state: replica.tracker.membership().to_conf_state(),
            progress: replica
                .tracker
                .all_progress()
                .map(|(id, progress)| (id, progress.clone()))
                .collect(),
            transferee: replica.transferee(),
        }
    }

    /// What has happened to this replica since it was made. Cheap.
    pub fn counts(&self) -> Counts {
        self.replica.counts()
    }

    /// Term, vote and commit index as in memory, saved or not. Cheap, unlike `status`.
    pub fn hard_state(&self) -> HardState {
        self.replica.hard_state()
    }

    /// Role and leader. Cheap, unlike `status`.
    pub fn soft_state(&self) -> SoftState {
        self.replica.soft_state()
    }

    /// Whether a snapshot was taken from the leader and is not handed out with a Ready yet.
    pub fn has_snapshot(&self) -> bool {
        self.replica.log.has_snapshot()
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        self.replica.log.storage()
    }

    /// The storage, for the driver to write what a Ready holds, or to compact.
    pub fn storage_mut(&mut self) -> &mut S {
        self.replica.log.storage_mut()
    }
}

/// Takes what is queued; an empty queue keeps its memory.
fn take_filled(queue: &mut Vec<Message>) -> Vec<Message> {
    if queue.is_empty() {
        return Vec::new();
    }
    std::mem::take(queue)
}

/// Gives the memory of `used` to `queue`, if that has none of its own.
fn take_back(queue: &mut Vec<Message>, used: &mut Vec<Message>) {
    if queue.capacity() == 0 && used.capacity() <= KEPT_MESSAGES {
        used.clear();
        std::mem::swap(queue, used);
    }
}

/// Whether a message rests on the term, though not on entries: those that only a leader
/// sends, and the answer to a heartbeat.
fn needs_term(message: &Message) -> bool {
    matches!(
        MessageType::try_from(message.msg_type),
        Ok(MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgSnapshot
            | MessageType::MsgTimeoutNow
            | MessageType::MsgReadIndexResp)
    )
}
