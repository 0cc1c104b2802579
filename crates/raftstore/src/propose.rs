//! Writes: from the queue into the log.
//!
//! Gather   Writes that came in during one drain wait in the region's queue. While the disk
//!          is nearly full those that need room are refused; deletes make some. Writes that
//!          would wait too long for those before them are refused at once (`write_window`).
//! Propose  Those that fit share one entry, which carries the leader's wall clock and the
//!          region's epoch. Those that were given up by now are refused: until here
//!          nothing has happened.
//! Name     The Ready that follows tells the entry's term; index and term name the
//!          proposal from then on.
//! Settle   Apply finds the proposal with its entry and answers; with another committed
//!          entry in its place the command never happens and is stale. A leader that lost
//!          its leadership waits for that for `park_time`, and then says that it cannot
//!          tell; so it does where a later entry of its own takes the place.
//!
//! Invariants
//! * Only data commands share an entry.
//! * A refusal other than `Undetermined` means that the command is in no log.
//! * A Ready is taken right behind proposing, before any other event: what it holds at a
//!   fresh proposal's index is that proposal.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use strata_proto::stratapb::{DataCommand, EntryCommand, SystemCommand, data_command::Body};
use strata_raft::EntryId;
use strata_storage::Engine;

use crate::apply::Waiting;
use crate::error::Error;
use crate::peer::{Peer, refuse_expired};
use crate::request::RequestBody;
use crate::shard::StepContext;
use crate::stamp::stamp_limits;
use crate::task::{Expiry, PendingRequest, ReadTask};
use crate::write_stages::WriteTimes;

/// Shortest time between two entries that only move a region's clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// A proposal whose term is not known yet.
#[derive(Debug)]
pub(crate) struct FreshProposal {
    pub index: u64,
    pub waiting: Vec<Waiting>,
}

impl<E: Engine> Peer<E> {
    /// Takes a write; it is proposed when the drain has ended.
    pub(crate) fn on_write(&mut self, context: &mut StepContext<'_>, pending: PendingRequest) {
        if context.disk_nearly_full && needs_room(&pending) {
            context.metrics.requests_disk_full.increment();
            let store_id = context.store_id;
            let error = Error::DiskFull { store_id };
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        let room = context.options.max_queued_write_bytes;
        let queued = self.writes.bytes();
        if self.writes.len() >= context.options.max_parked_requests
            || (queued > 0 && queued + pending.bytes > room)
        {
            context.metrics.requests_busy.increment();
            context
                .out
                .replies
                .push((pending.reply, Err(busy(context))));
            return;
        }
        let wait = context.options.max_write_wait;
        let queued = self.writes.len();
        if self.window.is_full(context.now.monotonic, queued, wait) {
            context.metrics.requests_busy.increment();
            let error = Error::ServerIsBusy {
                reason: "writes of the region come faster than they are executed",
                backoff_ms: wait.as_millis() as u64,
            };
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        self.writes.push_back(pending);
    }

    /// Proposes what waits, as far as there is room.
    pub(crate) fn propose_writes(&mut self, context: &mut StepContext<'_>) {
        self.propose_clock(context);
        while self.leads()
            && !self.writes.is_empty()
            && self.apply_backlog_bytes <= context.options.max_apply_backlog_bytes
        {
            let group = self.take_group(context);
            if group.is_empty() || !self.propose_group(context, group) {
                return;
            }
        }
    }

    /// Takes as many writes as may share an entry; the first always goes.
    fn take_group(&mut self, context: &mut StepContext<'_>) -> Vec<PendingRequest> {
        let (mut bytes, mut commands, mut rewrites) = (0, 0, 0);
        let mut group = Vec::new();
        while let Some(next) = self.writes.front() {
            let (next_commands, next_rewrites) = (command_count(next), rewrite_count(next));
            let fits = bytes + next.bytes <= context.options.shared_entry_bytes
                && commands + next_commands <= context.options.shared_entry_commands
                && rewrites + next_rewrites <= context.options.shared_entry_rewrites;
            if !group.is_empty() && !fits {
                break;
            }
            let pending = self.writes.pop_front().expect("looked at above");
            if let Some(error) = pending.given_up(context.now.monotonic) {
                context.metrics.requests_dropped.increment();
                context.out.replies.push((pending.reply, Err(error)));
                continue;
            }
            bytes += pending.bytes;
            commands += next_commands;
            rewrites += next_rewrites;
            group.push(pending);
        }
        group
    }

    /// Proposes one entry. False: there is no room, the writes are back in the queue.
    fn propose_group(
        &mut self,
        context: &mut StepContext<'_>,
        mut group: Vec<PendingRequest>,
    ) -> bool {
        let mut commands = Vec::new();
        let counts: Vec<usize> = group
            .iter_mut()
            .map(|pending| take_commands(pending, &mut commands))
            .collect();
        let total = commands.len() as u64;
        stamp_limits(&mut commands, context.options);
        let entry = self.entry(context, commands);
        match self
            .raft
            .propose(Bytes::new(), entry.encode_to_vec().into())
        {
            Ok(index) => {
                context.metrics.proposals.increment();
                context.metrics.proposed_commands.add(total);
                let now = context.now.monotonic;
                self.window.on_proposed(index, group.len(), now);
                let waiting = group
                    .into_iter()
                    .zip(counts)
                    .map(|(pending, commands)| wait_for(pending, commands, now))
                    .collect();
                self.fresh.push(FreshProposal { index, waiting });
                true
            }
            Err(_) => {
                // No room, a hand-over, or a leadership just lost: the next Ready tells.
                let mut commands = entry.commands.into_iter();
                for (pending, count) in group.iter_mut().zip(counts) {
                    restore_commands(pending, commands.by_ref().take(count));
                }
                self.writes.put_back(group);
                false
            }
        }
    }

    fn entry(&self, context: &StepContext<'_>, commands: Vec<DataCommand>) -> EntryCommand {
        EntryCommand {
            leader_clock_ms: context.now.wall_ms,
            region_epoch: self.region.region_epoch,
            commands,
            admin: None,
        }
    }

    /// A read met a value that has expired by this store's wall clock and not by the
    /// region's. Lets the log decide, at most once a second; the entry is proposed when the
    /// drain has ended, like all others.
    pub(crate) fn on_clock_wanted(&mut self, context: &mut StepContext<'_>, mut read: ReadTask) {
        read.expiry = Expiry::RegionClock;
        let now = context.now.monotonic;
        let recent = self
            .clock_proposed_at
            .is_some_and(|at| now < at + CLOCK_INTERVAL);
        if recent || !self.leads() {
            context.out.reads.push(read);
        } else {
            self.clock_wanted.push(read);
        }
    }

    fn propose_clock(&mut self, context: &mut StepContext<'_>) {
        let reads = std::mem::take(&mut self.clock_wanted);
        if reads.is_empty() {
            return;
        }
        let entry = self.entry(context, Vec::new());
        match self
            .raft
            .propose(Bytes::new(), entry.encode_to_vec().into())
        {
            Ok(index) => {
                context.metrics.clock_proposals.increment();
                self.clock_proposed_at = Some(context.now.monotonic);
                let waiting = reads.into_iter().map(Waiting::Clock).collect();
                self.fresh.push(FreshProposal { index, waiting });
            }
            // No room, or a leadership just lost: the region's clock alone decides.
            Err(_) => context.out.reads.extend(reads),
        }
    }

    /// Refuses writes for which there was no room for too long.
    pub(crate) fn expire_writes(&mut self, context: &mut StepContext<'_>) {
        if self.writes.is_empty() {
            return;
        }
        let error = busy(context);
        let (now, park_time) = (context.now.monotonic, context.options.park_time);
        let mut waiting = self.writes.take();
        refuse_expired(&mut waiting, context, now, park_time, &error);
        waiting
            .into_iter()
            .for_each(|pending| self.writes.push_back(pending));
    }

    /// Writes that nobody has settled in time: their senders are told that the outcome is
    /// not known. That is at their deadline, or, under a lost leadership, when the entry
    /// has not come back for `park_time`; they look for the new leader then.
    pub(crate) fn expire_proposals(&mut self, context: &mut StepContext<'_>) {
        if self.proposals.is_empty() && self.lost_leadership_at.is_none() {
            return;
        }
        let now = context.now.monotonic;
        let error = Error::Undetermined {
            region_id: self.region.id,
            leader: self.known_leader(),
        };
        let grace = context.options.park_time;
        if self.lost_leadership_at.is_some_and(|at| at + grace <= now) {
            self.lost_leadership_at = None;
            for waiting in self
                .proposals
                .drain(..)
                .flat_map(|proposal| proposal.waiting)
            {
                waiting.refuse(error.clone(), &mut context.out.replies);
            }
        }
        for waiting in self
            .proposals
            .iter_mut()
            .flat_map(|proposal| &mut proposal.waiting)
        {
            let late = waiting
                .take_late(now)
                .map(|reply| (reply, Err(error.clone())));
            context.out.replies.extend(late);
        }
    }

    /// Settles older proposals at and behind `id`, where this leader's log holds other
    /// entries. That does not refuse them: until an entry of this term is committed, a
    /// replica that still holds the old ones may win an election and commit them.
    pub(crate) fn drop_overwritten(&mut self, context: &mut StepContext<'_>, id: EntryId) {
        while self
            .proposals
            .back()
            .is_some_and(|last| last.id.index >= id.index)
        {
            let overwritten = self.proposals.pop_back().expect("looked at above");
            let error = Error::Undetermined {
                region_id: self.region.id,
                leader: self.known_leader(),
            };
            for waiting in overwritten.waiting {
                waiting.refuse(error.clone(), &mut context.out.replies);
            }
        }
    }
}

fn busy(context: &StepContext<'_>) -> Error {
    Error::ServerIsBusy {
        reason: "too many writes of the region are not committed or applied yet",
        backoff_ms: context.options.park_time.as_millis() as u64,
    }
}

fn command_count(pending: &PendingRequest) -> usize {
    match &pending.request.body {
        RequestBody::Write(commands) => commands.len(),
        _ => 1,
    }
}

/// True for a request that stores a value. Sessions are small and the deletes of clerks need
/// them; the system region's records are the cluster's own.
fn needs_room(pending: &PendingRequest) -> bool {
    let stores = |command: &DataCommand| match &command.body {
        Some(Body::Write(write)) => write.mutations.iter().any(|one| one.value.is_some()),
        Some(Body::CompareAndSwap(swap)) => swap.value.is_some(),
        Some(Body::Append(_)) => true,
        Some(Body::DeleteRange(_) | Body::OpenSession(_) | Body::System(_)) | None => false,
    };
    match &pending.request.body {
        RequestBody::Write(commands) => commands.iter().any(stores),
        _ => false,
    }
}

/// Commands that may write or answer far more than they hold. An entry is applied as a
/// whole, so what it may come to has to be bounded here.
fn rewrite_count(pending: &PendingRequest) -> usize {
    let rewrites = |command: &&DataCommand| {
        let body = &command.body;
        matches!(body, Some(Body::Append(_) | Body::CompareAndSwap(_)))
    };
    match &pending.request.body {
        RequestBody::Write(commands) => commands.iter().filter(rewrites).count(),
        _ => 0,
    }
}

/// Moves the commands of a request behind `commands` and returns their number.
fn take_commands(pending: &mut PendingRequest, commands: &mut Vec<DataCommand>) -> usize {
    match &mut pending.request.body {
        RequestBody::Write(own) => {
            let count = own.len();
            commands.append(own);
            count
        }
        RequestBody::SystemWrite(request) => {
            let system = SystemCommand {
                request: std::mem::take(request),
            };
            commands.push(DataCommand {
                session: None,
                body: Some(Body::System(system)),
            });
            1
        }
        other => unreachable!("a write queue holds {other:?}"),
    }
}

/// Undoes [`take_commands`].
fn restore_commands(pending: &mut PendingRequest, commands: impl Iterator<Item = DataCommand>) {
    match &mut pending.request.body {
        RequestBody::Write(own) => own.extend(commands),
        RequestBody::SystemWrite(request) => {
            for command in commands {
                if let Some(Body::System(system)) = command.body {
                    *request = system.request;
                }
            }
        }
        other => unreachable!("a write queue holds {other:?}"),
    }
}

fn wait_for(pending: PendingRequest, commands: usize, now: Duration) -> Waiting {
    let deadline = pending.request.header.deadline;
    let times = WriteTimes::proposed(&pending, now);
    let reply = Some(pending.reply.proposed(pending.request.header.region_id));
    match pending.request.body {
        RequestBody::SystemWrite(_) => Waiting::System { reply, deadline },
        _ => Waiting::Write {
            commands,
            reply,
            deadline,
            times,
        },
    }
}
