//! What each data command does to the kv engine.
//!
//! A command reads through the overlay of the batch under construction and adds its
//! changes to it. Its outcome is the same on every replica: expiry is judged by the
//! region's clock alone, which the entry has already moved.
//!
//! A command of a session goes through the session table: it is executed once, and its
//! repetitions get the answer of that one time.

use bytes::{Bytes, BytesMut};
use strata_proto::metapb::Region;
use strata_proto::stratapb::{
    AppendCommand, CompareAndSwapCommand, DataCommand, DeleteRangeCommand, Mutation,
    OpenSessionCommand, RawSpace, SessionOperation, SystemCommand, WriteCommand,
    data_command::Body,
};
use strata_raft::planted;
use strata_storage::{Engine, keys, raw_value};

use crate::apply::ApplyFault;
use crate::directory::SYSTEM_REGION_ID;
use crate::metrics::StoreMetrics;
use crate::overlay::Overlay;
use crate::request::CommandOutcome;
use crate::serve::{ReadFault, clip};
use crate::session_table::{Admission, SessionTable, Surroundings, session_id};
use crate::system::{SystemStateMachine, SystemWrites};

/// Where a command is executed.
pub(crate) struct CommandContext<'a, E> {
    pub kv: &'a E,
    pub system: &'a dyn SystemStateMachine,
    pub overlay: &'a mut Overlay,
    pub sessions: &'a mut SessionTable,
    pub metrics: &'a StoreMetrics,
    pub region: &'a Region,
    /// The region's clock as of this entry.
    pub clock_ms: u64,
    /// Index of the entry.
    pub index: u64,
}

/// A value that is alive by the region's clock.
struct LiveValue {
    value: Bytes,
    expires_at_ms: Option<u64>,
}

/// Executes the command at `place` of the entry, once if it belongs to a session.
pub(crate) fn execute<E: Engine>(
    context: &mut CommandContext<'_, E>,
    place: u32,
    command: &DataCommand,
) -> Result<CommandOutcome, ApplyFault> {
    let of_system = context.region.id == SYSTEM_REGION_ID;
    match (&command.session, &command.body) {
        (None, Some(Body::System(system))) if of_system => context.system(system),
        _ if of_system => Ok(CommandOutcome::Refused),
        (None, Some(Body::OpenSession(open))) => context.open_session(place, open),
        (None, body) => context.change_data(body.as_ref()),
        (Some(operation), body) => context.execute_once(operation, body.as_ref()),
    }
}

impl<E: Engine> CommandContext<'_, E> {
    fn open_session(
        &mut self,
        place: u32,
        open: &OpenSessionCommand,
    ) -> Result<CommandOutcome, ApplyFault> {
        let id = session_id(self.region.id, self.index, place);
        let (sessions, mut surroundings) = self.sessions();
        sessions.open(&mut surroundings, id, open)?;
        Ok(CommandOutcome::SessionOpened(Bytes::copy_from_slice(&id)))
    }

    /// Executes an operation of a session, or repeats its answer.
    fn execute_once(
        &mut self,
        operation: &SessionOperation,
        body: Option<&Body>,
    ) -> Result<CommandOutcome, ApplyFault> {
        let (sessions, mut surroundings) = self.sessions();
        let wants_verdict = matches!(body, Some(Body::CompareAndSwap(_)));
        match sessions.admit(&mut surroundings, operation, wants_verdict)? {
            Admission::Settled(outcome) => Ok(outcome),
            Admission::Execute(admitted) => {
                let outcome = self.change_data(body)?;
                let (sessions, mut surroundings) = self.sessions();
                sessions.settle(&mut surroundings, admitted, &outcome);
                Ok(outcome)
            }
        }
    }

    fn sessions(&mut self) -> (&mut SessionTable, Surroundings<'_, E>) {
        let surroundings = Surroundings {
            kv: self.kv,
            overlay: self.overlay,
            metrics: self.metrics,
            region_id: self.region.id,
            clock_ms: self.clock_ms,
            index: self.index,
        };
        (self.sessions, surroundings)
    }

    fn change_data(&mut self, body: Option<&Body>) -> Result<CommandOutcome, ApplyFault> {
        match body {
            Some(Body::Write(write)) => Ok(self.write(write)),
            Some(Body::DeleteRange(range)) => Ok(self.delete_range(range)),
            Some(Body::CompareAndSwap(cas)) => self.compare_and_swap(cas),
            Some(Body::Append(append)) => self.append(append),
            Some(Body::OpenSession(_) | Body::System(_)) | None => Ok(CommandOutcome::Refused),
        }
    }

    /// All mutations or none: a key outside the region refuses the command.
    fn write(&mut self, write: &WriteCommand) -> CommandOutcome {
        let space = write.space();
        let outside = write
            .mutations
            .iter()
            .find_map(|one| self.outside(space, &one.key));
        if let Some(refusal) = outside {
            return refusal;
        }
        for Mutation {
            key,
            value,
            ttl_seconds,
        } in &write.mutations
        {
            self.set(
                space,
                key,
                value.as_deref(),
                raw_value::expiry_after(self.clock_ms, *ttl_seconds),
            );
        }
        CommandOutcome::Done
    }

    fn delete_range(&mut self, range: &DeleteRangeCommand) -> CommandOutcome {
        let space = range.space();
        if let Some((lower, upper)) = clip(self.region, space, &range.start_key, &range.end_key) {
            self.overlay
                .batch_mut()
                .delete_range(keys::raw_cf(space), lower, upper);
        }
        CommandOutcome::Done
    }

    fn compare_and_swap(
        &mut self,
        cas: &CompareAndSwapCommand,
    ) -> Result<CommandOutcome, ApplyFault> {
        let space = cas.space();
        if let Some(refusal) = self.outside(space, &cas.key) {
            return Ok(refusal);
        }
        // Planted: a command sees what those before it have written.
        let stored = match planted!(CasPastPendingBatch) {
            true => self.flushed(space, &cas.key)?,
            false => self.stored(space, &cas.key)?,
        };
        let previous = self.alive(stored)?.map(|live| live.value);
        let succeeded = previous == cas.expected;
        if succeeded {
            let expiry = raw_value::expiry_after(self.clock_ms, cas.ttl_seconds);
            self.set(space, &cas.key, cas.value.as_deref(), expiry);
        }
        Ok(CommandOutcome::CompareAndSwap {
            succeeded,
            previous,
        })
    }

    fn append(&mut self, append: &AppendCommand) -> Result<CommandOutcome, ApplyFault> {
        let space = append.space();
        if let Some(refusal) = self.outside(space, &append.key) {
            return Ok(refusal);
        }
        let live = self.live(space, &append.key)?;
        let old_bytes = live.as_ref().map_or(0, |live| live.value.len());
        let bytes = (old_bytes + append.value.len()) as u64;
        let limit_bytes = append.max_value_bytes;
        if limit_bytes > 0 && bytes > limit_bytes {
            return Ok(CommandOutcome::ValueTooLarge { bytes, limit_bytes });
        }
        let (value, expiry) = match live {
            None => (append.value.clone(), None),
            Some(live) => {
                let mut whole = BytesMut::with_capacity(live.value.len() + append.value.len());
                whole.extend_from_slice(&live.value);
                whole.extend_from_slice(&append.value);
                (whole.freeze(), live.expires_at_ms)
            }
        };
        self.set(space, &append.key, Some(&value), expiry);
        Ok(CommandOutcome::Done)
    }

    fn system(&mut self, command: &SystemCommand) -> Result<CommandOutcome, ApplyFault> {
        let mut writes = SystemWrites::default();
        let view = self.overlay.system_view(self.kv);
        let response = self.system.apply(&view, &command.request, &mut writes)?;
        self.overlay.add_system_writes(&writes);
        Ok(CommandOutcome::System(response))
    }

    fn set(&mut self, space: RawSpace, key: &[u8], value: Option<&[u8]>, expiry: Option<u64>) {
        let (cf, key) = (keys::raw_cf(space), keys::raw_key(space, key));
        let batch = self.overlay.batch_mut();
        match value {
            Some(value) => batch.put(cf, key, raw_value::encode(value, expiry)),
            None => batch.delete(cf, key),
        }
    }

    /// The value of a key as the commands before this one left it.
    fn live(&mut self, space: RawSpace, key: &[u8]) -> Result<Option<LiveValue>, ApplyFault> {
        let stored = self.stored(space, key)?;
        self.alive(stored)
    }

    fn stored(&mut self, space: RawSpace, key: &[u8]) -> Result<Option<Bytes>, ApplyFault> {
        let key = keys::raw_key(space, key);
        let stored = self.overlay.get(self.kv, keys::raw_cf(space), &key);
        Ok(stored.map_err(ReadFault::from)?)
    }

    /// As the engine has it, without the pending batch.
    fn flushed(&self, space: RawSpace, key: &[u8]) -> Result<Option<Bytes>, ApplyFault> {
        let key = keys::raw_key(space, key);
        let stored = self.kv.get(keys::raw_cf(space), &key);
        Ok(stored.map_err(ReadFault::from)?)
    }

    fn alive(&self, stored: Option<Bytes>) -> Result<Option<LiveValue>, ApplyFault> {
        let Some(stored) = stored else {
            return Ok(None);
        };
        let decoded = raw_value::decode_bytes(&stored).map_err(|fault| ReadFault::RawValue {
            region_id: self.region.id,
            fault,
        })?;
        let live = !decoded.is_expired(self.clock_ms);
        Ok(live.then_some(LiveValue {
            value: decoded.value,
            expires_at_ms: decoded.expires_at_ms,
        }))
    }

    /// The refusal of a command with a key that is empty or not in the region.
    fn outside(&self, space: RawSpace, key: &Bytes) -> Option<CommandOutcome> {
        if key.is_empty() {
            return Some(CommandOutcome::Refused);
        }
        let compared = keys::compared_form(space, key);
        let Region {
            start_key, end_key, ..
        } = self.region;
        if keys::range_contains(start_key, end_key, &compared) {
            return None;
        }
        Some(CommandOutcome::KeyNotInRegion {
            key: key.clone(),
            start_key: start_key.clone(),
            end_key: end_key.clone(),
        })
    }
}
