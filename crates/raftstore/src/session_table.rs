//! Client sessions: what makes a repeated command one operation.
//!
//! Open     A command of the log opens a session. Its id is the place of that command:
//!          region, index, place in the entry. No two are ever equal.
//! Use      An operation names session and sequence number. The number behind the last one
//!          is executed, and its whole answer kept; the last one again gets that answer
//!          and is not executed; any other is refused. A session that is not in the table
//!          is refused and never executed.
//! Expire   A session goes when the region's clock has passed its last use by its time to
//!          live, and the oldest go when one is opened beyond the limit. Both limits stand
//!          in the command that opened the session, so all replicas judge alike.
//!
//! A record a session lies in the kv engine, in the batch of the data that its operation
//! changed, and so travels in snapshots. Beside it the table keeps, in memory, the numbers
//! that most decisions need, and the order of expiry: by the moment at which a session
//! would expire, then by the entry that used it last (the region's clock stands still while
//! a leader's is behind it), then by id. That is read from the records when a region's first session
//! command comes after a start or an install, so it follows from them alone and is the same
//! on every replica. It takes about 150 bytes a session. Answers are not kept in memory: only
//! a repeated operation reads one.
//!
//! Invariants
//! * Records and memory hold the same sessions with the same numbers once a round is written.
//! * A refused command changes no session: only verdicts are kept and use up a number.
//! * Expired sessions are removed by the next session command of the region, before it looks
//!   at the table. Without one nothing happens, and nothing could tell the difference.
//!
//! Elsewhere: the limits (`stamp`), what the client does with the answers (`client::clerk`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use strata_proto::stratapb::{
    ClientSession, CompareAndSwapVerdict, Executed, OpenSessionCommand, SessionAnswer,
    SessionOperation, ValueTooLarge, session_answer::Outcome,
};
use strata_raft::planted;
use strata_storage::keys::SESSION_ID_BYTES;
use strata_storage::{Cf, Direction, Engine, RecordKind, keys, record};

use crate::apply::ApplyFault;
use crate::metrics::StoreMetrics;
use crate::overlay::Overlay;
use crate::request::CommandOutcome;
use crate::serve::ReadFault;

/// Names a session: region id, index and place in the entry, big-endian.
pub(crate) type SessionId = [u8; SESSION_ID_BYTES];

/// The id of the session that the command at `place` of an entry opens.
pub(crate) fn session_id(region_id: u64, index: u64, place: u32) -> SessionId {
    let mut id = [0; SESSION_ID_BYTES];
    id[..8].copy_from_slice(&region_id.to_be_bytes());
    id[8..16].copy_from_slice(&index.to_be_bytes());
    id[16..].copy_from_slice(&place.to_be_bytes());
    id
}

/// What a session command is judged by, and where its changes go.
pub(crate) struct Surroundings<'a, E> {
    pub kv: &'a E,
    pub overlay: &'a mut Overlay,
    pub metrics: &'a StoreMetrics,
    pub region_id: u64,
    /// The region's clock as of the entry.
    pub clock_ms: u64,
    /// Index of the entry.
    pub index: u64,
}

/// What the table says of an operation.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It is not executed: it was before, or it is refused.
    Settled(CommandOutcome),
    /// It is the session's next operation. Execute it, then call [`SessionTable::settle`].
    Execute(Admitted),
}

/// The next operation of a session.
#[derive(Debug)]
pub(crate) struct Admitted {
    id: SessionId,
    sequence: u64,
}

/// The sessions of one region.
#[derive(Debug, Default)]
pub(crate) struct SessionTable {
    /// None until a session command asks for it.
    loaded: Option<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_id: BTreeMap<SessionId, Standing>,
    /// The order in which they expire. Same sessions as `by_id`.
    by_expiry: BTreeSet<(Expiry, SessionId)>,
}

/// When a session expires, by the region's clock, and the entry that used it last.
type Expiry = (u64, u64);

/// A session's record without its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    last_sequence: u64,
    last_used_ms: u64,
    last_used_index: u64,
    ttl_ms: u64,
}

impl Standing {
    fn of(record: &ClientSession) -> Self {
        Standing {
            last_sequence: record.last_sequence,
            last_used_ms: record.last_used_ms,
            last_used_index: record.last_used_index,
            ttl_ms: record.ttl_ms,
        }
    }

    fn expiry(self) -> Expiry {
        let at_ms = self.last_used_ms.saturating_add(self.ttl_ms);
        (at_ms, self.last_used_index)
    }
}

impl SessionTable {
    /// Opens a session.
    ///
    /// # Errors
    /// The engine failed or holds damaged records.
    ///
    /// # Panics
    /// If the id is in use: two commands would stand in the same place of the log.
    pub(crate) fn open<E: Engine>(
        &mut self,
        at: &mut Surroundings<'_, E>,
        id: SessionId,
        command: &OpenSessionCommand,
    ) -> Result<(), ApplyFault> {
        let sessions = self.sessions(at)?;
        assert!(
            !sessions.by_id.contains_key(&id),
            "region {}: session {id:?} is opened twice",
            at.region_id
        );
        // This one needs a place of its own, also under a limit of 0.
        let others = command.max_sessions.max(1) as usize - 1;
        while sessions.by_id.len() > others {
            sessions.remove_first(at);
            at.metrics.sessions_evicted.increment();
        }
        sessions.put(
            at,
            id,
            &ClientSession {
                last_sequence: 0,
                last_answer: None,
                last_used_ms: at.clock_ms,
                last_used_index: at.index,
                ttl_ms: command.ttl_ms,
            },
        );
        at.metrics.sessions_opened.increment();
        Ok(())
    }

    /// Decides about an operation of a session. `wants_verdict`: it is a compare-and-swap, so
    /// that a verdict may be its answer. Another operation under the same number is a fault of
    /// its client; a large value is not read and written again for it.
    ///
    /// # Errors
    /// The engine failed or holds damaged records.
    pub(crate) fn admit<E: Engine>(
        &mut self,
        at: &mut Surroundings<'_, E>,
        operation: &SessionOperation,
        wants_verdict: bool,
    ) -> Result<Admission, ApplyFault> {
        let sessions = self.sessions(at)?;
        let Ok(id) = SessionId::try_from(&operation.session_id[..]) else {
            return Ok(Admission::Settled(CommandOutcome::Refused));
        };
        if planted!(UnknownSessionAsNew) && !sessions.by_id.contains_key(&id) {
            // Planted: nobody knows what a session that is gone has done.
            let record = reopened(at, operation);
            sessions.put(at, id, &record);
        }
        let Some(standing) = sessions.by_id.get(&id).copied() else {
            return Ok(Admission::Settled(CommandOutcome::SessionExpired));
        };
        let (sequence, last_sequence) = (operation.sequence, standing.last_sequence);
        if last_sequence.checked_add(1) == Some(sequence) {
            return Ok(Admission::Execute(Admitted { id, sequence }));
        }
        let repeated = if sequence == last_sequence && last_sequence > 0 {
            sessions.repeat(at, id, standing, wants_verdict)?
        } else {
            None
        };
        let outcome = repeated.unwrap_or(CommandOutcome::SequenceMismatch {
            sequence,
            last_sequence,
        });
        Ok(Admission::Settled(outcome))
    }

    /// Keeps the answer of an operation that was executed. A refusal leaves the session as
    /// it was: the client may send the operation again.
    ///
    /// # Panics
    /// If the session is not the one that [`SessionTable::admit`] saw.
    pub(crate) fn settle<E: Engine>(
        &mut self,
        at: &mut Surroundings<'_, E>,
        admitted: Admitted,
        outcome: &CommandOutcome,
    ) {
        let Some(answer) = answer_of(outcome) else {
            return;
        };
        let Admitted { id, sequence } = admitted;
        let sessions = self.loaded.as_mut().expect("loaded when it was admitted");
        let standing = sessions.by_id[&id];
        assert_eq!(
            standing.last_sequence + 1,
            sequence,
            "region {}: session {id:?} went on before its operation was settled",
            at.region_id
        );
        let record = ClientSession {
            last_sequence: sequence,
            last_answer: Some(answer),
            last_used_ms: at.clock_ms,
            last_used_index: at.index,
            ttl_ms: standing.ttl_ms,
        };
        sessions.put(at, id, &record);
    }

    /// The table without what has expired.
    fn sessions<E: Engine>(
        &mut self,
        at: &mut Surroundings<'_, E>,
    ) -> Result<&mut Sessions, ApplyFault> {
        let sessions = match &mut self.loaded {
            Some(sessions) => sessions,
            none => none.insert(Sessions::load(at.kv, at.region_id)?),
        };
        while sessions
            .by_expiry
            .first()
            .is_some_and(|((expires_at_ms, _), _)| *expires_at_ms <= at.clock_ms)
        {
            sessions.remove_first(at);
            at.metrics.sessions_expired.increment();
        }
        Ok(sessions)
    }
}

impl Sessions {
    /// Reads the table of a region. Nothing of it can be pending in the overlay: only the
    /// table writes there, and it is loaded before it does.
    fn load<E: Engine>(kv: &E, region_id: u64) -> Result<Self, ApplyFault> {
        let mut sessions = Sessions::default();
        let (start, end) = keys::session_range(region_id);
        let mut fault = None;
        kv.scan(
            Cf::Raft,
            &start,
            Some(&end),
            Direction::Forward,
            &mut |key, value| match read_standing(region_id, &start, key, value) {
                Ok((id, standing)) => {
                    sessions.by_expiry.insert((standing.expiry(), id));
                    sessions.by_id.insert(id, standing);
                    ControlFlow::Continue(())
                }
                Err(found) => {
                    fault = Some(found);
                    ControlFlow::Break(())
                }
            },
        )
        .map_err(ReadFault::from)?;
        fault.map_or(Ok(sessions), Err)
    }

    /// The answer of a session's last operation, once more. A use like any other: the
    /// session lives on. `None`: that was the verdict of a compare-and-swap, and this is none.
    fn repeat<E: Engine>(
        &mut self,
        at: &mut Surroundings<'_, E>,
        id: SessionId,
        standing: Standing,
        wants_verdict: bool,
    ) -> Result<Option<CommandOutcome>, ApplyFault> {
        let key = keys::session(at.region_id, &id);
        let corrupt = |detail| ApplyFault::CorruptSession {
            region_id: at.region_id,
            detail,
        };
        let stored = at
            .overlay
            .get(at.kv, Cf::Raft, &key)
            .map_err(ReadFault::from)?
            .ok_or_else(|| corrupt("it is missing"))?;
        let mut record: ClientSession =
            record::decode(RecordKind::Session, &key, &stored).map_err(ReadFault::from)?;
        assert_eq!(
            Standing::of(&record),
            standing,
            "region {}: session {id:?} differs between record and memory",
            at.region_id
        );
        let outcome = record
            .last_answer
            .clone()
            .and_then(outcome_of)
            .ok_or_else(|| corrupt("it holds no answer that this version knows"))?;
        if matches!(outcome, CommandOutcome::CompareAndSwap { .. }) && !wants_verdict {
            return Ok(None);
        }
        (record.last_used_ms, record.last_used_index) = (at.clock_ms, at.index);
        self.put(at, id, &record);
        at.metrics.session_repeats.increment();
        Ok(Some(outcome))
    }

    fn put<E>(&mut self, at: &mut Surroundings<'_, E>, id: SessionId, record: &ClientSession) {
        let standing = Standing::of(record);
        if let Some(before) = self.by_id.insert(id, standing) {
            self.by_expiry.remove(&(before.expiry(), id));
        }
        self.by_expiry.insert((standing.expiry(), id));
        let key = keys::session(at.region_id, &id);
        record::put(at.overlay.batch_mut(), Cf::Raft, key, record);
    }

    /// Removes the session that expires first.
    fn remove_first<E>(&mut self, at: &mut Surroundings<'_, E>) {
        let Some((_, id)) = self.by_expiry.pop_first() else {
            return;
        };
        self.by_id.remove(&id);
        let key = keys::session(at.region_id, &id);
        at.overlay.batch_mut().delete(Cf::Raft, key);
    }
}

/// Reads a record whose key begins with `prefix`, the region's.
fn read_standing(
    region_id: u64,
    prefix: &[u8],
    key: &[u8],
    value: &[u8],
) -> Result<(SessionId, Standing), ApplyFault> {
    let id = key
        .strip_prefix(prefix)
        .and_then(|id| SessionId::try_from(id).ok())
        .ok_or(ApplyFault::CorruptSession {
            region_id,
            detail: "its key does not hold an id",
        })?;
    let stored = Bytes::copy_from_slice(value);
    let record: ClientSession =
        record::decode(RecordKind::Session, key, &stored).map_err(ReadFault::from)?;
    Ok((id, Standing::of(&record)))
}

/// The record of a session that goes on with an operation: the planted fault of one that
/// comes back from nothing.
fn reopened<E>(at: &Surroundings<'_, E>, operation: &SessionOperation) -> ClientSession {
    ClientSession {
        last_sequence: operation.sequence.saturating_sub(1),
        last_answer: None,
        last_used_ms: at.clock_ms,
        last_used_index: at.index,
        ttl_ms: u64::MAX,
    }
}

/// What is kept of an outcome; `None` for a refusal.
fn answer_of(outcome: &CommandOutcome) -> Option<SessionAnswer> {
    let outcome = match outcome.clone() {
        CommandOutcome::Done => Outcome::Executed(Executed {}),
        CommandOutcome::CompareAndSwap {
            succeeded,
            previous,
        } => Outcome::CompareAndSwap(CompareAndSwapVerdict {
            succeeded,
            previous,
        }),
        CommandOutcome::ValueTooLarge { bytes, limit_bytes } => {
            Outcome::ValueTooLarge(ValueTooLarge { bytes, limit_bytes })
        }
        CommandOutcome::KeyNotInRegion { .. }
        | CommandOutcome::System(_)
        | CommandOutcome::SessionOpened(_)
        | CommandOutcome::SessionExpired
        | CommandOutcome::SequenceMismatch { .. }
        | CommandOutcome::Refused => return None,
    };
    Some(SessionAnswer {
        outcome: Some(outcome),
    })
}

fn outcome_of(answer: SessionAnswer) -> Option<CommandOutcome> {
    Some(match answer.outcome? {
        Outcome::Executed(Executed {}) => CommandOutcome::Done,
        Outcome::CompareAndSwap(CompareAndSwapVerdict {
            succeeded,
            previous,
        }) => CommandOutcome::CompareAndSwap {
            succeeded,
            previous,
        },
        Outcome::ValueTooLarge(ValueTooLarge { bytes, limit_bytes }) => {
            CommandOutcome::ValueTooLarge { bytes, limit_bytes }
        }
    })
}

#[cfg(test)]
mod tests;
