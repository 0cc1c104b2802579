//! Operations of simulated clients: what they send, and what their answers mean.
//!
//! An operation touches one region. It becomes a request, and one operation of the history,
//! an atomic step on all keys that it reads or writes; the answer then becomes an outcome
//! for each of them.
//!
//! A value that expires is a write with a removal behind it, of exactly that value, which
//! happens some time or never: one that expired stays so, and nobody sees it again. Records
//! of the system region enter the history under a prefix of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use strata_proto::metapb::Region;
use strata_proto::stratapb::{
    AppendCommand, CompareAndSwapCommand, DataCommand, DeleteRangeCommand, Mutation, RawSpace,
    WriteCommand, data_command::Body,
};
use strata_raftstore::{Answer, CommandOutcome, ReadCommand, RequestBody};
use strata_storage::keys;

use crate::history::{Action, Outcome};
use crate::system::RecordMachine;

/// Prefix of the system region's records in histories.
const SYSTEM_PREFIX: &[u8] = b"system:";

/// Keys whose values may expire end so.
pub const EXPIRING_SUFFIX: &[u8] = b"~expiring";

/// One thing that a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOperation {
    /// Reads a key.
    Get(Bytes),
    /// Writes a key.
    Put(Bytes, Bytes),
    /// Writes a key whose value expires after so many seconds.
    PutExpiring(Bytes, Bytes, u64),
    /// Removes a key.
    Delete(Bytes),
    /// Appends to a key.
    Append(Bytes, Bytes),
    /// Replaces a value, if it is `expected`, by `new`.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// `None`: there must be no value.
        expected: Option<Bytes>,
        /// `None`: the value is removed.
        new: Option<Bytes>,
    },
    /// Reads keys of one region in one step.
    BatchGet(Vec<Bytes>),
    /// Writes keys of one region in one step.
    BatchPut(Vec<(Bytes, Bytes)>),
    /// Reads `[start, end)` as far as it lies in the region of `start`.
    Scan {
        /// First key.
        start: Bytes,
        /// Behind the last key; empty: unbounded.
        end: Bytes,
        /// At most so many pairs.
        limit: u32,
        /// From the end.
        reverse: bool,
    },
    /// Removes `[start, end)` as far as it lies in the region of `start`.
    DeleteRange {
        /// First key.
        start: Bytes,
        /// Behind the last key; empty: unbounded.
        end: Bytes,
    },
    /// Writes a record of the system region.
    SystemPut(Bytes, Bytes),
    /// Reads a record of the system region.
    SystemGet(Bytes),
}

impl ClientOperation {
    /// A key that names the region; `None` for the system region.
    #[must_use]
    pub fn anchor(&self) -> Option<&Bytes> {
        match self {
            Self::Get(key)
            | Self::Put(key, _)
            | Self::PutExpiring(key, _, _)
            | Self::Delete(key)
            | Self::Append(key, _)
            | Self::CompareAndSwap { key, .. } => Some(key),
            Self::BatchGet(keys) => keys.first(),
            Self::BatchPut(pairs) => pairs.first().map(|(key, _)| key),
            Self::Scan { start, .. } | Self::DeleteRange { start, .. } => Some(start),
            Self::SystemPut(..) | Self::SystemGet(_) => None,
        }
    }

    /// True if any replica may serve it.
    #[must_use]
    pub fn reads(&self) -> bool {
        matches!(self, Self::Get(_) | Self::BatchGet(_) | Self::Scan { .. })
    }

    /// What is sent.
    #[must_use]
    pub fn body(&self, space: RawSpace) -> RequestBody {
        let write = |mutations| write(space, mutations);
        match self.clone() {
            Self::Get(key) => RequestBody::Read(ReadCommand::Get { space, key }),
            Self::Put(key, value) => write(vec![mutation(key, Some(value), 0)]),
            Self::PutExpiring(key, value, ttl) => write(vec![mutation(key, Some(value), ttl)]),
            Self::Delete(key) => write(vec![mutation(key, None, 0)]),
            Self::Append(key, value) => command(Body::Append(AppendCommand {
                space: space.into(),
                key,
                value,
                max_value_bytes: 0,
            })),
            Self::CompareAndSwap { key, expected, new } => {
                command(Body::CompareAndSwap(CompareAndSwapCommand {
                    space: space.into(),
                    key,
                    expected,
                    value: new,
                    ttl_seconds: 0,
                }))
            }
            Self::BatchGet(keys) => RequestBody::Read(ReadCommand::BatchGet { space, keys }),
            Self::BatchPut(pairs) => {
                let mutations = pairs.into_iter();
                write(
                    mutations
                        .map(|(key, value)| mutation(key, Some(value), 0))
                        .collect(),
                )
            }
            Self::Scan {
                start,
                end,
                limit,
                reverse,
            } => {
                let (start, end) = if reverse { (end, start) } else { (start, end) };
                RequestBody::Read(ReadCommand::Scan {
                    space,
                    start,
                    end,
                    limit,
                    key_only: false,
                    reverse,
                })
            }
            Self::DeleteRange { start, end } => command(Body::DeleteRange(DeleteRangeCommand {
                space: space.into(),
                start_key: start,
                end_key: end,
            })),
            Self::SystemPut(key, value) => {
                RequestBody::SystemWrite(RecordMachine::put(&key, &value))
            }
            Self::SystemGet(_) => RequestBody::SystemRead,
        }
    }

    /// The expiry of the value that it writes: a step of its own, at some time or never. The
    /// answer tells of the write alone.
    #[must_use]
    pub fn expiry(&self) -> Option<(Bytes, Action)> {
        let Self::PutExpiring(key, value, _) = self else {
            return None;
        };
        let expiry = Action::CompareAndSwap {
            expected: Some(value.clone()),
            new: None,
        };
        Some((key.clone(), expiry))
    }

    /// What the history holds of it: an action for each key. `universe` holds all keys that
    /// any client may write. Empty if it touches no key of the history.
    #[must_use]
    pub fn actions(
        &self,
        space: RawSpace,
        region: &Region,
        universe: &BTreeSet<Bytes>,
    ) -> Vec<(Bytes, Action)> {
        let one = |key: &Bytes, action| vec![(key.clone(), action)];
        match self {
            Self::Get(key) => one(key, Action::Get),
            Self::Put(key, value) => one(key, Action::Put(value.clone())),
            Self::PutExpiring(key, value, _) => one(key, Action::Put(value.clone())),
            Self::Delete(key) => one(key, Action::Delete),
            Self::Append(key, value) => one(key, Action::Append(value.clone())),
            Self::CompareAndSwap { key, expected, new } => {
                let (expected, new) = (expected.clone(), new.clone());
                one(key, Action::CompareAndSwap { expected, new })
            }
            Self::BatchGet(keys) => keys.iter().map(|k| (k.clone(), Action::Get)).collect(),
            Self::BatchPut(pairs) => pairs
                .iter()
                .map(|(key, value)| (key.clone(), Action::Put(value.clone())))
                .collect(),
            Self::Scan { start, end, .. } => covered(space, region, universe, start, end)
                .map(|key| (key.clone(), Action::Get))
                .collect(),
            Self::DeleteRange { start, end } => covered(space, region, universe, start, end)
                .map(|key| (key.clone(), Action::Delete))
                .collect(),
            Self::SystemPut(key, value) => {
                vec![(system_key(key), Action::Put(value.clone()))]
            }
            Self::SystemGet(key) => vec![(system_key(key), Action::Get)],
        }
    }

    /// What an answer says of each of the `keys` of [`ClientOperation::actions`]; `None`
    /// for a key of which it says nothing.
    ///
    /// # Errors
    /// The answer does not belong to the operation, or names a key that nobody wrote.
    pub fn outcomes(
        &self,
        keys: &[Bytes],
        answer: &Answer,
    ) -> Result<Vec<Option<Outcome>>, String> {
        match (self, answer) {
            (Self::Get(_) | Self::SystemGet(_), Answer::Value(value)) => {
                Ok(vec![Some(Outcome::Value(value.clone()))])
            }
            (Self::BatchGet(_), Answer::Pairs(pairs)) => seen(keys, pairs, |_| true),
            (Self::Scan { limit, reverse, .. }, Answer::Pairs(pairs)) => {
                if pairs.len() > *limit as usize {
                    return Err(format!("{} pairs for a limit of {limit}", pairs.len()));
                }
                let sorted = pairs
                    .windows(2)
                    .all(|two| (two[0].0 < two[1].0) != *reverse);
                if !sorted {
                    return Err("pairs out of order".to_owned());
                }
                let last = pairs.last().filter(|_| pairs.len() == *limit as usize);
                seen(keys, pairs, |key| match last {
                    Some((last, _)) if *reverse => key >= last,
                    Some((last, _)) => key <= last,
                    None => true,
                })
            }
            (Self::SystemPut(..), Answer::SystemWritten(_)) => Ok(vec![Some(Outcome::Done)]),
            (_, Answer::Written(outcomes)) => self.written(keys, outcomes),
            (operation, answer) => Err(format!("{answer:?} answers {operation:?}")),
        }
    }

    fn written(
        &self,
        keys: &[Bytes],
        outcomes: &[CommandOutcome],
    ) -> Result<Vec<Option<Outcome>>, String> {
        match (self, outcomes) {
            (
                Self::CompareAndSwap { .. },
                [
                    CommandOutcome::CompareAndSwap {
                        succeeded,
                        previous,
                    },
                ],
            ) => Ok(vec![Some(Outcome::Swapped {
                succeeded: *succeeded,
                previous: Some(previous.clone()),
            })]),
            (Self::CompareAndSwap { .. }, _) => Err(format!("{outcomes:?} answers {self:?}")),
            (Self::PutExpiring(..), [CommandOutcome::Done]) => Ok(vec![Some(Outcome::Done)]),
            (_, [CommandOutcome::Done]) => Ok(vec![Some(Outcome::Done); keys.len()]),
            _ => Err(format!("{outcomes:?} answers {self:?}")),
        }
    }
}

fn system_key(key: &Bytes) -> Bytes {
    [SYSTEM_PREFIX, key].concat().into()
}

fn mutation(key: Bytes, value: Option<Bytes>, ttl_seconds: u64) -> Mutation {
    Mutation {
        key,
        value,
        ttl_seconds,
    }
}

fn write(space: RawSpace, mutations: Vec<Mutation>) -> RequestBody {
    command(Body::Write(WriteCommand {
        space: space.into(),
        mutations,
    }))
}

fn command(body: Body) -> RequestBody {
    RequestBody::Write(vec![DataCommand {
        session: None,
        body: Some(body),
    }])
}

/// Keys of the universe in `[start, end)` and in the region.
fn covered<'a>(
    space: RawSpace,
    region: &'a Region,
    universe: &'a BTreeSet<Bytes>,
    start: &Bytes,
    end: &Bytes,
) -> impl Iterator<Item = &'a Bytes> {
    let upper = if end.is_empty() {
        Bound::Unbounded
    } else {
        Bound::Excluded(end.clone().max(start.clone()))
    };
    universe
        .range((Bound::Included(start.clone()), upper))
        .filter(move |key| region_holds(space, region, key))
}

/// True if a key lies in a region.
#[must_use]
pub fn region_holds(space: RawSpace, region: &Region, key: &[u8]) -> bool {
    let compared = keys::compared_form(space, key);
    keys::range_contains(&region.start_key, &region.end_key, &compared)
}

/// What pairs say of `keys`, those that `said` holds for.
fn seen(
    keys: &[Bytes],
    pairs: &[(Bytes, Bytes)],
    said: impl Fn(&Bytes) -> bool,
) -> Result<Vec<Option<Outcome>>, String> {
    let mut values: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(k, v)| (k, v)).collect();
    let outcomes = keys
        .iter()
        .map(|key| {
            let value = values.remove(key).cloned();
            said(key).then_some(Outcome::Value(value))
        })
        .collect();
    match values.into_keys().next() {
        None => Ok(outcomes),
        Some(key) => Err(format!(
            "key \"{}\" was never asked for",
            key.escape_ascii()
        )),
    }
}
