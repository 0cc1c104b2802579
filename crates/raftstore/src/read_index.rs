//! Linearizable reads that the gate could not serve under a lease.
//!
//! Lease    The leader's lease may hold by now: the read is served when all that is committed
//!          is applied here, for replicas may have shown it.
//! Ask      Else the reads that have gathered share one read index round: the leader asks a
//!          quorum whether it still leads, a replica asks its leader.
//! Confirm  The round's index comes with a Ready.
//! Serve    When that index is applied here, the reads go out to be served on a snapshot
//!          taken from then on.
//!
//! Invariants
//! * A round's context is never used twice, also over a restart: an answer that was
//!   delayed must not confirm a later read.
//! * A read is asked for after it came in, and served after its index is applied. While a
//!   snapshot is being installed nothing is: what was applied is being taken away.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use strata_raft::ReadState;
use strata_storage::Engine;

use crate::error::Error;
use crate::peer::{Peer, refuse_expired};
use crate::request::RequestBody;
use crate::shard::StepContext;
use crate::task::{Expiry, PendingRequest, ReadBody, ReadTask};

/// Rounds that may be under way at once; later reads gather for the next one.
const MAX_ROUNDS: usize = 4;

/// Reads of a region that wait.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Differs for every start of every peer.
    nonce: u128,
    last_round: u64,
    /// No round was started for these yet.
    asking: VecDeque<PendingRequest>,
    rounds: VecDeque<Round>,
    /// Confirmed; each waits until its index is applied.
    confirmed: Vec<(u64, ReadTask)>,
}

#[derive(Debug)]
struct Round {
    context: Bytes,
    asked_at: Duration,
    reads: VecDeque<PendingRequest>,
}

impl Reads {
    pub(crate) fn new(nonce: u128) -> Self {
        Reads {
            nonce,
            last_round: 0,
            asking: VecDeque::new(),
            rounds: VecDeque::new(),
            confirmed: Vec::new(),
        }
    }

    /// Whether no read waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.asking.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty()
    }

    /// Takes all reads that have no index yet.
    pub(crate) fn take_unconfirmed(&mut self) -> Vec<PendingRequest> {
        let asked = self.rounds.drain(..).flat_map(|round| round.reads);
        asked.chain(self.asking.drain(..)).collect()
    }

    /// Takes all reads that have an index and wait for it.
    pub(crate) fn take_confirmed(&mut self) -> Vec<ReadTask> {
        self.confirmed.drain(..).map(|(_, read)| read).collect()
    }

    fn next_context(&mut self) -> Bytes {
        self.last_round += 1;
        let mut context = BytesMut::with_capacity(24);
        context.put_u128(self.nonce);
        context.put_u64(self.last_round);
        context.freeze()
    }
}

impl<E: Engine> Peer<E> {
    /// Takes a read that this peer may serve.
    pub(crate) fn on_read(&mut self, context: &mut StepContext<'_>, pending: PendingRequest) {
        let now = context.now.monotonic;
        let leased = self.leads() && self.raft.lease_until().is_some_and(|until| now < until);
        // A replica may have shown entries that are committed and not applied here yet.
        if leased && self.committed <= self.apply_state.applied_index {
            context.metrics.reads_lease.increment();
            let task = self.read_task(context, pending);
            context.out.reads.push(task);
            return;
        }
        let waiting = self.reads.asking.len() + self.reads.confirmed.len();
        if waiting >= context.options.max_parked_requests {
            context.metrics.requests_busy.increment();
            let error = Error::ServerIsBusy {
                reason: "too many reads wait for their index",
                backoff_ms: context.options.park_time.as_millis() as u64,
            };
            context.out.replies.push((pending.reply, Err(error)));
            return;
        }
        if leased {
            context.metrics.reads_lease.increment();
            let task = self.read_task(context, pending);
            self.reads.confirmed.push((self.committed, task));
        } else {
            self.reads.asking.push_back(pending);
        }
    }

    /// Starts a round for the reads that have gathered.
    pub(crate) fn ask_reads(&mut self, context: &mut StepContext<'_>) {
        if self.reads.asking.is_empty() || self.reads.rounds.len() >= MAX_ROUNDS {
            return;
        }
        let round_context = self.reads.next_context();
        // Refused until the leader has committed an entry of its term: they stay.
        if self.raft.read_index(round_context.clone()).is_ok() {
            context.metrics.read_index_rounds.increment();
            let reads = std::mem::take(&mut self.reads.asking);
            let asked_at = context.now.monotonic;
            self.reads.rounds.push_back(Round {
                context: round_context,
                asked_at,
                reads,
            });
        }
    }

    /// A round is confirmed.
    pub(crate) fn on_read_state(&mut self, context: &mut StepContext<'_>, state: &ReadState) {
        let found = self
            .reads
            .rounds
            .iter()
            .position(|round| round.context == state.request_context);
        // A second answer to a round that was asked twice finds none.
        let Some(round) = found.and_then(|at| self.reads.rounds.remove(at)) else {
            return;
        };
        let count = round.reads.len() as u64;
        context.metrics.reads_index.add(count);
        if !self.leads() {
            context.metrics.reads_replica.add(count);
        }
        for pending in round.reads {
            let task = self.read_task(context, pending);
            if state.index <= self.apply_state.applied_index && !self.is_installing() {
                context.out.reads.push(task);
            } else {
                self.reads.confirmed.push((state.index, task));
            }
        }
    }

    /// Lets go of the confirmed reads whose index is applied.
    pub(crate) fn serve_reads_up_to_applied(&mut self, context: &mut StepContext<'_>) {
        let applied = self.apply_state.applied_index;
        let waiting = self
            .reads
            .confirmed
            .extract_if(.., |(index, _)| *index <= applied);
        context.out.reads.extend(waiting.map(|(_, task)| task));
    }

    /// Refuses reads that were given up or have waited too long, and asks again where a
    /// message may have been lost.
    pub(crate) fn expire_reads(&mut self, context: &mut StepContext<'_>) {
        if self.reads.is_empty() {
            return;
        }
        let (now, park_time) = (context.now.monotonic, context.options.park_time);
        let region_id = self.region.id;
        let error = if self.leads() {
            Error::ReadIndexNotReady { region_id }
        } else {
            Error::NotLeader {
                region_id,
                leader: self.known_leader(),
            }
        };
        refuse_expired(&mut self.reads.asking, context, now, park_time, &error);
        for round in &mut self.reads.rounds {
            // The deadline alone: these are under way, not parked.
            refuse_expired(&mut round.reads, context, now, Duration::MAX / 2, &error);
        }
        self.reads.rounds.retain(|round| !round.reads.is_empty());
        for (_, task) in self
            .reads
            .confirmed
            .extract_if(.., |(_, task)| task.given_up(now).is_some())
        {
            context.metrics.requests_dropped.increment();
            let error = task.given_up(now).unwrap_or(Error::DeadlineExceeded);
            context.out.replies.push((task.reply, Err(error)));
        }
        self.repeat_rounds(context);
    }

    fn repeat_rounds(&mut self, context: &mut StepContext<'_>) {
        if self.leads() {
            // The leader repeats its question with every heartbeat.
            return;
        }
        let now = context.now.monotonic;
        let patience = context.options.tick_interval * (2 * context.options.heartbeat_ticks) as u32;
        for round in &mut self.reads.rounds {
            if round.asked_at + patience <= now
                && self.raft.read_index(round.context.clone()).is_ok()
            {
                round.asked_at = now;
            }
        }
    }

    fn read_task(&self, context: &StepContext<'_>, pending: PendingRequest) -> ReadTask {
        let header = pending.request.header;
        let body = match pending.request.body {
            RequestBody::Read(command) => ReadBody::Raw(command),
            RequestBody::SystemRead => ReadBody::System,
            other => unreachable!("a read queue holds {other:?}"),
        };
        let expiry = if self.leads() {
            Expiry::Leader {
                wall_ms: context.now.wall_ms,
            }
        } else {
            Expiry::RegionClock
        };
        ReadTask {
            region: self.region.clone(),
            shard: context.shard,
            body,
            expiry,
            answer_bytes_max: context.options.max_answer_bytes,
            deadline: header.deadline,
            cancellation: pending.cancellation,
            view: self.view.clone(),
            data_epoch: self.view.data_epoch(),
            reply: pending.reply,
        }
    }
}
