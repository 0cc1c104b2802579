//! Replication: messages in, Readys out, entries to the log and to apply.
//!
//! Message    Checked for region, store, peer and membership, then stepped into the Raft core.
//! Ready      Messages that promise nothing about the own disk (a leader's appends,
//!            heartbeats) leave with this flush. Entries and hard state join the shard's log
//!            batch. Entries to be applied go to the apply shard with what waits for them.
//! Persisted  The batch is synced: the log writer sends votes and append answers, which were
//!            in it. Then the own match index counts, and the next Ready holds what may now be
//!            applied.
//! Applied    The Raft core and the reads that wait for an index move on.
//!
//! Invariants
//! * An entry goes to apply only if it is committed and synced here (crash rule 1).
//! * A commit index alone is never waited for; it may be lost.
//! * Entries that wait to be applied are held in memory up to a limit; beyond it only their
//!   indices are kept, and they are read from the log again when their turn comes.

use strata_proto::eraftpb::{Entry, Message, MessageType};
use strata_proto::raft_serverpb::RaftMessage;
use strata_raft::{EntryId, Ready, Role, Storage as _, planted};
use strata_storage::Engine;

use crate::apply::{Applied, ApplyTask, EntriesTask, Proposal, RegionChange};
use crate::directory::find_peer;
use crate::peer::{MAX_COMMITTED_BYTES_PER_READY, Peer};
use crate::shard::StepContext;

/// A Ready whose write is on its way to the disk.
#[derive(Debug)]
pub(crate) struct UnsyncedReady {
    pub(crate) number: u64,
    /// False: it only waits for those before it.
    pub(crate) must_sync: bool,
    /// To be sent from here when it is synced; most leave with the log batch.
    pub(crate) messages: Vec<Message>,
}

impl<E: Engine> Peer<E> {
    /// Takes a message from another store.
    pub(crate) fn on_raft_message(
        &mut self,
        context: &mut StepContext<'_>,
        mut envelope: RaftMessage,
    ) {
        if !self.is_for_this_peer(context, &envelope) {
            return;
        }
        // A question of a member, which needs no answer, has no message of the protocol.
        let Some(message) = envelope.message.take() else {
            return;
        };
        let from_sender = envelope
            .from_peer
            .is_some_and(|from| from.id == message.from);
        // Who installs a snapshot has nothing yet that it could lead with.
        let hand_over = message.msg_type() == MessageType::MsgTimeoutNow && self.is_installing();
        // A log begins behind the bootstrap, or behind a snapshot, with no exception.
        let from_nothing = !self.is_initialized()
            && message.msg_type() == MessageType::MsgAppend
            && message.index == 0;
        if !from_sender || message.to != self.peer.id || hand_over || from_nothing {
            context.metrics.messages_dropped_refused.increment();
            return;
        }
        if let Some(from) = envelope.from_peer
            && find_peer(&self.region, from.id).is_none()
        {
            self.addresses.note(from);
        }
        let now = context.now.monotonic;
        if self.leads() {
            self.log_gc.heard_from(message.from, now);
        }
        self.note_leader_word(now, &message);
        if message.msg_type() == MessageType::MsgSnapshot {
            envelope.message = Some(message);
            self.on_snapshot_message(context, envelope);
            return;
        }
        assert!(
            self.fresh.is_empty(),
            "region {}: {} proposals have no Ready yet",
            self.region.id,
            self.fresh.len()
        );
        if self.raft.step(context.now.monotonic, message).is_err() {
            context.metrics.messages_dropped_refused.increment();
        }
        self.note_counts(context.metrics);
    }

    /// True if a message is for this peer and its sender is no peer that was removed. One for
    /// a newer peer of this store, or one that marks this peer as removed, ends it.
    fn is_for_this_peer(&mut self, context: &mut StepContext<'_>, envelope: &RaftMessage) -> bool {
        let Some(to) = envelope
            .to_peer
            .filter(|to| to.store_id == context.store_id)
        else {
            context.metrics.messages_dropped_unknown.increment();
            return false;
        };
        let conf_ver = envelope.region_epoch.unwrap_or_default().conf_ver;
        let newer = to.id > self.peer.id;
        if (envelope.is_tombstone && to.id == self.peer.id) || newer {
            self.on_tombstone(context, conf_ver);
            return false;
        }
        if self.refuse_removed_sender(context, envelope) {
            return false;
        }
        if to.id != self.peer.id || envelope.is_tombstone {
            context.metrics.messages_dropped_unknown.increment();
            return false;
        }
        true
    }

    /// Takes one Ready and turns it into effects.
    pub(crate) fn on_ready(&mut self, context: &mut StepContext<'_>) {
        let mut ready = self.raft.ready(context.now.monotonic);
        self.name_fresh_proposals(context, &ready);
        for message in std::mem::take(&mut ready.messages) {
            self.send(context, message);
        }
        let committed = std::mem::take(&mut ready.committed_entries);
        let read_states = std::mem::take(&mut ready.read_states);
        let led_before = self.leads();
        let leader_changed = self.note_state(&ready);
        if ready.snapshot.is_some() {
            self.begin_snapshot(context, ready);
        } else {
            self.write_log(context, &mut ready);
            self.raft.advance_append_async(ready);
        }
        // Where nothing that must survive is on its way, nothing has to wait for it.
        self.on_persisted(context, 0);
        self.take_committed(context, committed);
        for state in read_states {
            self.on_read_state(context, &state);
        }
        if leader_changed {
            self.on_leader_change(context, led_before);
        }
    }

    /// Notes term, commit index and leader; returns whether the leader changed.
    fn note_state(&mut self, ready: &Ready) -> bool {
        let (old_leader, old_term) = (self.leader, self.term);
        if let Some(hard_state) = &ready.hard_state {
            assert!(
                hard_state.term >= self.term,
                "region {}: term went from {} to {}",
                self.region.id,
                self.term,
                hard_state.term
            );
            self.term = hard_state.term;
            self.committed = self.committed.max(hard_state.commit);
        }
        if let Some(soft_state) = &ready.soft_state {
            self.leader = soft_state.leader.unwrap_or(0);
        }
        old_leader != self.leader || (old_term != self.term && self.leader != 0)
    }

    /// Puts entries and hard state into the shard's log batch and remembers what has to wait
    /// for it.
    fn write_log(&mut self, context: &mut StepContext<'_>, ready: &mut Ready) {
        let mut messages = std::mem::take(&mut ready.persisted_messages);
        if ready.has_write() {
            let bytes: usize = ready.entries.iter().map(|entry| entry.data.len()).sum();
            context.metrics.log_bytes.add(bytes as u64);
            self.raft.storage_mut().append(
                ready.number,
                &ready.entries,
                ready.hard_state.as_ref(),
                &mut context.out.log,
            );
        }
        let number = ready.number;
        if ready.must_sync {
            context.out.log_sync = true;
            context.out.logged.push((self.region.id, number));
            // No need to come back here first.
            messages = messages
                .into_iter()
                .filter_map(|message| self.send_after_sync(context, message))
                .collect();
        }
        self.unsynced.push_back(UnsyncedReady {
            number,
            must_sync: ready.must_sync,
            messages,
        });
    }

    /// The Ready `number` and all before it are synced, and with them those that follow and
    /// ask for no sync of their own.
    pub(crate) fn on_persisted(&mut self, context: &mut StepContext<'_>, number: u64) {
        let mut settled = None;
        while let Some(front) = self.unsynced.front()
            && (front.number <= number || !front.must_sync)
        {
            let ready = self.unsynced.pop_front().expect("looked at above");
            settled = Some(ready.number);
            for message in ready.messages {
                self.send(context, message);
            }
        }
        if let Some(number) = settled {
            self.raft.storage_mut().on_persisted(number);
            self.raft.on_persist_ready(number);
            self.on_install_persisted(context, number);
        }
    }

    /// Whether this peer has something to do when its Readys are synced: all have but followers
    /// whose answers leave with the sync, and that know of nothing committed to apply.
    pub(crate) fn waits_for_sync(&self) -> bool {
        let follows = self.raft.soft_state().role == Role::Follower;
        let answered = self.unsynced.iter().all(|ready| ready.messages.is_empty());
        !follows
            || !answered
            || self.is_installing()
            || self.raft.has_snapshot()
            || self.raft.hard_state().commit > self.may_apply_up_to
    }

    /// Takes committed entries over. Those beyond the limit of the backlog are let go: what
    /// is committed does not change, and the log keeps it.
    fn take_committed(&mut self, context: &mut StepContext<'_>, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else {
            return;
        };
        let synced = self.raft.storage().persisted_index();
        assert!(
            last <= synced || planted!(AppliedBeforeOwnSync),
            "region {}: entry {last} is to be applied, synced is {synced}",
            self.region.id
        );
        self.committed = self.committed.max(last);
        if self.has_deferred()
            || self.is_installing()
            || self.apply_backlog_bytes > context.options.max_apply_backlog_bytes
        {
            self.may_apply_up_to = last;
            return;
        }
        self.may_apply_up_to = last;
        self.hand_to_apply(context, entries);
    }

    /// Hands entries to the apply shard, with the proposals that wait for them.
    fn hand_to_apply(&mut self, context: &mut StepContext<'_>, entries: Vec<Entry>) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        assert_eq!(
            first.index,
            self.handed_to_apply + 1,
            "region {}: entry {} is handed to apply after {}",
            self.region.id,
            first.index,
            self.handed_to_apply
        );
        self.handed_to_apply = last.index;
        self.apply_backlog_bytes += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        let ready = self
            .proposals
            .partition_point(|proposal| proposal.id.index <= self.handed_to_apply);
        let proposals: Vec<Proposal> = self.proposals.drain(..ready).collect();
        context.out.apply.push(ApplyTask::Entries(EntriesTask {
            region_id: self.region.id,
            entries,
            proposals,
            committed: context.now.monotonic,
        }));
    }

    /// Reads entries that were let go from the log again, as far as there is room.
    pub(crate) fn resume_apply(&mut self, context: &mut StepContext<'_>) {
        while self.has_deferred()
            && !self.is_installing()
            && self.apply_backlog_bytes <= context.options.max_apply_backlog_bytes
        {
            let range = (self.handed_to_apply + 1, self.may_apply_up_to + 1);
            let entries = self
                .raft
                .storage()
                .entries(range.0, range.1, MAX_COMMITTED_BYTES_PER_READY)
                .unwrap_or_else(|error| {
                    panic!("region {}: cannot read {range:?}: {error}", self.region.id)
                });
            self.hand_to_apply(context, entries);
        }
    }

    /// True while entries that may be applied are not handed over for want of room.
    pub(crate) fn has_deferred(&self) -> bool {
        self.may_apply_up_to > self.handed_to_apply
    }

    /// Entries of this region are in the kv engine.
    pub(crate) fn on_applied(&mut self, context: &mut StepContext<'_>, applied: Applied) {
        assert!(
            applied.state.applied_index >= self.apply_state.applied_index,
            "region {}: applied went from {} to {}",
            self.region.id,
            self.apply_state.applied_index,
            applied.state.applied_index
        );
        self.apply_backlog_bytes -= applied.entry_bytes;
        self.window.on_applied(
            applied.state.applied_index,
            context.now.monotonic,
            context.options.max_write_wait,
        );
        let begun = applied.changes.contains(&RegionChange::InstallBegun);
        for change in applied.changes {
            self.on_region_change(context, change);
        }
        if self.is_installing() {
            // Readers see the old state until the new data are there. Of entries that were
            // applied before the snapshot took the log's place, raft need not know.
            if !begun {
                self.apply_state = applied.state;
            }
            return;
        }
        self.apply_state = applied.state;
        self.raft.storage_mut().set_apply_state(self.apply_state);
        self.raft.advance_apply_to(self.apply_state.applied_index);
        self.ask_log_gc(context);
        self.resume_apply(context);
        self.serve_reads_up_to_applied(context);
    }

    /// A change of the region itself is synced.
    fn on_region_change(&mut self, context: &mut StepContext<'_>, change: RegionChange) {
        match change {
            RegionChange::InstallBegun => self.on_install_begun(context),
            RegionChange::Conf {
                index,
                change,
                region,
            } => self.on_conf_changed(context, index, &change, region),
            RegionChange::Removed { .. } => self.doom(context),
            RegionChange::Destroyed => {
                panic!("region {}: destroyed under its peer", self.region.id)
            }
        }
    }

    /// Gives the proposals made since the last Ready the term of their entries. The term is
    /// taken from the log itself: a role may have changed since it was last looked at.
    fn name_fresh_proposals(&mut self, context: &mut StepContext<'_>, ready: &Ready) {
        for fresh in std::mem::take(&mut self.fresh) {
            let entry = ready
                .entries
                .first()
                .and_then(|first| fresh.index.checked_sub(first.index))
                .and_then(|at| ready.entries.get(at as usize))
                .unwrap_or_else(|| {
                    panic!(
                        "region {}: proposal {} is not in its Ready",
                        self.region.id, fresh.index
                    )
                });
            let id = EntryId::of(entry);
            self.drop_overwritten(context, id);
            self.proposals.push_back(Proposal {
                id,
                waiting: fresh.waiting,
            });
        }
    }
}
