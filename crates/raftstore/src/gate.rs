//! Where requests come in.
//!
//! Check   Form and limits; whom the request addresses, as far as is published.
//! Read    Under the leader's lease: check lease, generation and that all is applied, take an
//!         engine snapshot, check the generation again, serve. Small reads are answered here and now.
//! Pass    Everything else goes to the region's shard.
//!
//! The gate is shared by all threads and changes nothing. What it decides on may be out of
//! date by the time a shard looks: the shard checks again.
//!
//! Invariant: a read that is served here began after the lease was found to hold, by a
//! clock value taken after the request came in.

use std::sync::Arc;
use std::time::Duration;

use strata_proto::metapb::Region;
use strata_raft::planted;
use strata_storage::{Engine, keys, raw_value};

use crate::check::{PeerFacts, Standing, check_address, check_form, check_store};
use crate::directory::{DirectoryCell, DirectoryEntry};
use crate::error::Error;
use crate::metrics::StoreMetrics;
use crate::options::StoreOptions;
use crate::request::{Answer, ReadCommand, Reply, Request, RequestBody, RequestToken};
use crate::serve::{ReadFault, Served, serve};
use crate::task::{Expiry, PendingRequest, ReadBody, ReadTask};
use crate::time::Now;

/// Batch gets of at most so many keys are served by the calling thread.
const SMALL_BATCH_KEYS: usize = 16;

/// What the driver has to do with a request.
#[derive(Debug)]
pub enum GateAction<S> {
    /// Deliver a result.
    Reply {
        /// Takes the result.
        reply: Reply,
        /// The result.
        result: Result<Answer, Error>,
    },
    /// Hand the request to a shard; refuse it as busy where the inbox is full.
    ToShard {
        /// The shard.
        shard: usize,
        /// The request.
        pending: PendingRequest,
    },
    /// Serve a read on this snapshot, away from the caller's thread.
    Read {
        /// The snapshot.
        snapshot: S,
        /// The read.
        task: ReadTask,
    },
    /// Hand a read to its shard, so that the region's clock moves.
    ClockWanted(ReadTask),
    /// The process must stop.
    Fatal(ReadFault),
}

/// Checks requests and serves reads under the lease.
pub struct Gate<E: Engine> {
    store_id: u64,
    options: StoreOptions,
    directory: Arc<DirectoryCell>,
    kv: E,
    metrics: Arc<StoreMetrics>,
}

/// How a read under the lease went.
enum LeaseRead<S> {
    Answer(Answer),
    Snapshot(S),
    ClockBehind,
    TooLarge,
    /// The peer changed meanwhile: the shard has to look.
    Moved,
}

impl<E: Engine> Gate<E> {
    /// A gate of a store.
    pub fn new(
        store_id: u64,
        options: StoreOptions,
        directory: Arc<DirectoryCell>,
        kv: E,
        metrics: Arc<StoreMetrics>,
    ) -> Self {
        Gate {
            store_id,
            options,
            directory,
            kv,
            metrics,
        }
    }

    /// The regions of this store.
    pub fn directory(&self) -> &Arc<DirectoryCell> {
        &self.directory
    }

    /// Takes a request. `now` was read after it came in.
    pub fn admit(
        &self,
        now: Now,
        request: Request,
        reply: Reply,
    ) -> (RequestToken, GateAction<E::Snapshot>) {
        match self.check(now.monotonic, &request) {
            Err(error) => (
                RequestToken::settled(),
                GateAction::Reply {
                    reply,
                    result: Err(error),
                },
            ),
            Ok((entry, standing, bytes)) => {
                let (token, cancellation) = RequestToken::new();
                let arrived = now.monotonic;
                let pending = PendingRequest {
                    request,
                    reply,
                    cancellation,
                    bytes,
                    arrived,
                    taken: arrived,
                };
                (token, self.place(now, &entry, standing, pending))
            }
        }
    }

    fn check(
        &self,
        now: Duration,
        request: &Request,
    ) -> Result<(Arc<DirectoryEntry>, Standing, usize), Error> {
        let Request { header, body } = request;
        check_store(self.store_id, header)?;
        let bytes = check_form(&self.options, header, body)?;
        if header.deadline <= now {
            return Err(Error::DeadlineExceeded);
        }
        let region_id = header.region_id;
        let entry = self
            .directory
            .entry(region_id)
            .ok_or(Error::RegionNotFound { region_id })?;
        let facts = PeerFacts {
            region: &entry.region,
            peer_id: entry.peer.id,
            term: entry.view.term(),
            leader: entry.leader(),
        };
        let standing = check_address(self.store_id, header, body, &facts)?;
        Ok((entry, standing, bytes))
    }

    fn place(
        &self,
        now: Now,
        entry: &DirectoryEntry,
        standing: Standing,
        pending: PendingRequest,
    ) -> GateAction<E::Snapshot> {
        let body = match &pending.request.body {
            RequestBody::Read(command) => Some(ReadBody::Raw(command.clone())),
            RequestBody::SystemRead => Some(ReadBody::System),
            RequestBody::Write(_)
            | RequestBody::TransferLeader { .. }
            | RequestBody::ChangePeers { .. }
            | RequestBody::SystemWrite(_) => None,
        };
        let Some(body) = body.filter(|_| standing == Standing::Here) else {
            return GateAction::ToShard {
                shard: entry.shard,
                pending,
            };
        };
        let data_epoch = entry.view.data_epoch();
        match self.read_under_lease(now, entry, &body) {
            Err(fault) => GateAction::Fatal(fault),
            Ok(LeaseRead::Moved) => GateAction::ToShard {
                shard: entry.shard,
                pending,
            },
            Ok(LeaseRead::Answer(answer)) => {
                self.metrics.reads_lease.increment();
                GateAction::Reply {
                    reply: pending.reply,
                    result: Ok(answer),
                }
            }
            Ok(LeaseRead::Snapshot(snapshot)) => {
                self.metrics.reads_lease.increment();
                let task = self.read_task(now, entry, data_epoch, body, pending);
                GateAction::Read { snapshot, task }
            }
            Ok(LeaseRead::ClockBehind) => {
                GateAction::ClockWanted(self.read_task(now, entry, data_epoch, body, pending))
            }
            Ok(LeaseRead::TooLarge) => GateAction::Reply {
                reply: pending.reply,
                result: Err(answer_too_large(
                    &entry.region,
                    self.options.max_answer_bytes,
                )),
            },
        }
    }

    fn read_under_lease(
        &self,
        now: Now,
        entry: &DirectoryEntry,
        body: &ReadBody,
    ) -> Result<LeaseRead<E::Snapshot>, ReadFault> {
        let generation = entry.view.generation();
        if !entry.leads() || !entry.view.holds_lease(now.monotonic) {
            return Ok(LeaseRead::Moved);
        }
        // A replica may have shown what is committed and not applied here yet: the shard
        // lets the read wait for it.
        if !entry.view.is_applied_to_commit() {
            return Ok(LeaseRead::Moved);
        }
        // Planted: the peer that was read is the one that was checked.
        let unmoved = || entry.view.generation() == generation || planted!(ReadWithoutSecondCheck);
        if let Some(answer) = self.get_plain(&entry.region, body)? {
            return Ok(if unmoved() {
                LeaseRead::Answer(answer)
            } else {
                LeaseRead::Moved
            });
        }
        let snapshot = self.kv.snapshot();
        if !unmoved() {
            return Ok(LeaseRead::Moved);
        }
        if !is_small(body) {
            return Ok(LeaseRead::Snapshot(snapshot));
        }
        let expiry = Expiry::Leader {
            wall_ms: now.wall_ms,
        };
        Ok(
            match serve::<E>(
                &snapshot,
                &entry.region,
                body,
                expiry,
                self.options.max_answer_bytes,
            )? {
                Served::Answer(answer) => LeaseRead::Answer(answer),
                Served::ClockBehind => LeaseRead::ClockBehind,
                Served::TooLarge => LeaseRead::TooLarge,
            },
        )
    }

    fn read_task(
        &self,
        now: Now,
        entry: &DirectoryEntry,
        data_epoch: u64,
        body: ReadBody,
        pending: PendingRequest,
    ) -> ReadTask {
        ReadTask {
            region: entry.region.clone(),
            shard: entry.shard,
            body,
            expiry: Expiry::Leader {
                wall_ms: now.wall_ms,
            },
            answer_bytes_max: self.options.max_answer_bytes,
            deadline: pending.request.header.deadline,
            cancellation: pending.cancellation,
            view: entry.view.clone(),
            data_epoch,
            reply: pending.reply,
        }
    }

    /// The fast path: a single key that is absent or never expires needs no snapshot, for
    /// nothing else has to be consistent with it.
    fn get_plain(&self, region: &Region, body: &ReadBody) -> Result<Option<Answer>, ReadFault> {
        let ReadBody::Raw(ReadCommand::Get { space, key }) = body else {
            return Ok(None);
        };
        let (cf, engine_key) = (keys::raw_cf(*space), keys::raw_key(*space, key));
        let Some(stored) = self.kv.get(cf, &engine_key)? else {
            return Ok(Some(Answer::Value(None)));
        };
        let decoded = raw_value::decode_bytes(&stored).map_err(|fault| ReadFault::RawValue {
            region_id: region.id,
            fault,
        })?;
        Ok(decoded
            .expires_at_ms
            .is_none()
            .then_some(Answer::Value(Some(decoded.value))))
    }
}

/// True for reads that the calling thread may serve itself.
fn is_small(body: &ReadBody) -> bool {
    match body {
        ReadBody::System => true,
        ReadBody::Raw(ReadCommand::Get { .. } | ReadCommand::Ttl { .. }) => true,
        ReadBody::Raw(ReadCommand::BatchGet { keys, .. }) => keys.len() <= SMALL_BATCH_KEYS,
        ReadBody::Raw(
            ReadCommand::Scan { .. } | ReadCommand::BatchScan { .. } | ReadCommand::Checksum { .. },
        ) => false,
    }
}

fn answer_too_large(region: &Region, bytes_max: usize) -> Error {
    Error::AnswerTooLarge {
        region_id: region.id,
        limit_bytes: bytes_max as u64,
    }
}

/// What became of a read that was served away from its shard.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Deliver a result.
    Reply {
        /// Takes the result.
        reply: Reply,
        /// The result.
        result: Result<Answer, Error>,
    },
    /// Hand the read to its shard, so that the region's clock moves.
    ClockWanted(ReadTask),
    /// The process must stop.
    Fatal(ReadFault),
}

/// Serves a read on a snapshot, which was taken before this is called.
pub fn serve_task<E: Engine>(now: Now, snapshot: &E::Snapshot, task: ReadTask) -> ReadOutcome {
    let refusal = task.given_up(now.monotonic).or_else(|| task.superseded());
    if let Some(error) = refusal {
        return ReadOutcome::Reply {
            reply: task.reply,
            result: Err(error),
        };
    }
    let bytes_max = task.answer_bytes_max;
    match serve::<E>(snapshot, &task.region, &task.body, task.expiry, bytes_max) {
        Ok(Served::Answer(answer)) => ReadOutcome::Reply {
            reply: task.reply,
            result: Ok(answer),
        },
        Ok(Served::ClockBehind) => ReadOutcome::ClockWanted(task),
        Ok(Served::TooLarge) => ReadOutcome::Reply {
            reply: task.reply,
            result: Err(answer_too_large(&task.region, bytes_max)),
        },
        Err(fault) => ReadOutcome::Fatal(fault),
    }
}
