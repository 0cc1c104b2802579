//! Serves a read on an engine snapshot.
//!
//! Where to read was decided before: the snapshot holds everything that was acknowledged
//! when the read began. Here ranges are clipped to the region and expiry is judged.
//!
//! Expiry is an event of the log: a value is gone when the region's clock, read from the
//! same snapshot, has passed its expiry. A leader that meets a value which its own wall
//! clock would let expire answers [`Served::ClockBehind`]; a clock entry is proposed and
//! the read served again. The region's clock is only fetched when a value can expire.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use crc::{CRC_64_XZ, Crc, Digest};
use strata_proto::metapb::Region;
use strata_proto::stratapb::{RaftApplyState, RawSpace};
use strata_storage::{
    Cf, Direction, Engine, ReadView, RecordKind, Visitor, keys, raw_value, record,
};

use crate::request::{Answer, ReadCommand};
use crate::system::SnapshotSystemView;
use crate::task::{Expiry, ReadBody};

static CRC64: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// Bytes of the first piece of memory that copies share, and most of a later one. Each piece is
/// twice the one before; a copy of more than an eighth of the largest has memory of its own.
const COPIES_BYTES_MIN: usize = 512;
const COPIES_BYTES_MAX: usize = 64 << 10;

/// What became of a read.
#[derive(Debug)]
pub enum Served {
    /// The answer.
    Answer(Answer),
    /// A value has expired by the wall clock and not by the region's: a clock entry has to
    /// be applied first.
    ClockBehind,
    /// The pairs are more than an answer may hold. A shorter answer would be taken for a
    /// complete one, so there is none.
    TooLarge,
}

/// A read met what must not be on disk, or the engine failed. The store stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFault {
    /// The engine failed or a record is corrupt.
    #[error(transparent)]
    Storage(#[from] strata_storage::Error),
    /// A raw value is damaged.
    #[error("region {region_id}: raw value is corrupt: {fault}")]
    RawValue {
        /// The region.
        region_id: u64,
        /// What is wrong.
        fault: raw_value::RawValueError,
    },
}

impl From<strata_storage::EngineError> for ReadFault {
    fn from(error: strata_storage::EngineError) -> Self {
        ReadFault::Storage(error.into())
    }
}

/// Serves a read. Keys and values of its answer come to at most `bytes_max`, beyond one
/// pair.
///
/// # Errors
/// The engine failed or holds damaged data: the process must not go on.
pub fn serve<E: Engine>(
    snapshot: &E::Snapshot,
    region: &Region,
    body: &ReadBody,
    expiry: Expiry,
    bytes_max: usize,
) -> Result<Served, ReadFault> {
    match body {
        ReadBody::System => {
            let view = SnapshotSystemView::new(snapshot.clone());
            Ok(Served::Answer(Answer::System(std::sync::Arc::new(view))))
        }
        ReadBody::Raw(command) => serve_raw(snapshot, region, command, expiry, bytes_max),
    }
}

fn serve_raw(
    view: &impl ReadView,
    region: &Region,
    command: &ReadCommand,
    expiry: Expiry,
    bytes_max: usize,
) -> Result<Served, ReadFault> {
    let reader = Reader {
        view,
        region,
        expiry,
        clock_ms: Cell::new(None),
        behind: Cell::new(false),
        bytes_max,
    };
    let answer = reader.answer(command)?;
    Ok(match answer {
        _ if reader.behind.get() => Served::ClockBehind,
        Some(answer) => Served::Answer(answer),
        None => Served::TooLarge,
    })
}

/// Whether a value can be seen.
enum Sight<V> {
    Visible { value: V, ttl_seconds: u64 },
    Gone,
}

struct Reader<'a, V> {
    view: &'a V,
    region: &'a Region,
    expiry: Expiry,
    /// The region's clock, once a value made it necessary.
    clock_ms: Cell<Option<u64>>,
    /// Set when a value asked for a clock entry.
    behind: Cell<bool>,
    /// Most bytes of keys and values in an answer.
    bytes_max: usize,
}

/// Copies of keys and values of one answer. Many share a piece of memory: they go together, and
/// an allocation for each would cost as much as finding it.
#[derive(Default)]
struct Copies {
    room: BytesMut,
    /// Bytes of the last piece.
    piece: usize,
}

impl Copies {
    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        // One that takes much of a piece would leave as much of the piece before unused.
        if bytes.is_empty() || bytes.len() > COPIES_BYTES_MAX / 8 {
            return Bytes::copy_from_slice(bytes);
        }
        // What was split off is no more in `room`, nor in its capacity.
        if self.room.capacity() < bytes.len() {
            self.piece = (self.piece * 2).clamp(COPIES_BYTES_MIN, COPIES_BYTES_MAX);
            self.room = BytesMut::with_capacity(self.piece.max(bytes.len()));
        }
        self.room.extend_from_slice(bytes);
        self.room.split().freeze()
    }
}

/// Pairs of an answer, as long as they are within its limit.
#[derive(Default)]
struct Pairs {
    copies: Copies,
    found: Vec<(Bytes, Bytes)>,
    bytes: usize,
    /// A pair did not fit: there is no answer.
    overflowed: bool,
}

impl Pairs {
    /// Takes a pair. The first always fits: a value that was written can be read.
    fn push(&mut self, key: Bytes, value: Bytes, bytes_max: usize) -> ControlFlow<()> {
        self.bytes += key.len() + value.len();
        self.overflowed = self.bytes > bytes_max && !self.found.is_empty();
        if self.overflowed {
            return ControlFlow::Break(());
        }
        self.found.push((key, value));
        ControlFlow::Continue(())
    }

    fn into_answer(self) -> Option<Answer> {
        (!self.overflowed).then_some(Answer::Pairs(self.found))
    }
}

impl<V: ReadView> Reader<'_, V> {
    /// `None`: the answer is too large.
    fn answer(&self, command: &ReadCommand) -> Result<Option<Answer>, ReadFault> {
        let mut pairs = Pairs::default();
        match command {
            ReadCommand::Get { space, key } => {
                let value = self.get(*space, key)?.map(|(value, _)| value);
                return Ok(Some(Answer::Value(value)));
            }
            ReadCommand::Ttl { space, key } => {
                let ttl = self.get(*space, key)?.map(|(_, ttl)| ttl);
                return Ok(Some(Answer::Ttl(ttl)));
            }
            ReadCommand::Checksum { space, ranges } => {
                return self.checksum(*space, ranges).map(Some);
            }
            ReadCommand::BatchGet { space, keys } => self.batch_get(*space, keys, &mut pairs)?,
            ReadCommand::Scan {
                space,
                start,
                end,
                limit,
                key_only,
                reverse,
            } => {
                let scan = RawScan {
                    space: *space,
                    limit: *limit,
                    key_only: *key_only,
                };
                self.scan(&scan, start, end, *reverse, &mut pairs)?;
            }
            ReadCommand::BatchScan {
                space,
                ranges,
                each_limit,
                key_only,
                reverse,
            } => {
                let scan = RawScan {
                    space: *space,
                    limit: *each_limit,
                    key_only: *key_only,
                };
                for (start, end) in ranges {
                    self.scan(&scan, start, end, *reverse, &mut pairs)?;
                    if pairs.overflowed {
                        break;
                    }
                }
            }
        }
        Ok(pairs.into_answer())
    }

    fn batch_get(
        &self,
        space: RawSpace,
        keys: &[Bytes],
        pairs: &mut Pairs,
    ) -> Result<(), ReadFault> {
        for key in keys {
            if let Some((value, _)) = self.get(space, key)?
                && pairs.push(key.clone(), value, self.bytes_max).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, space: RawSpace, key: &[u8]) -> Result<Option<(Bytes, u64)>, ReadFault> {
        let Some(stored) = self
            .view
            .get(keys::raw_cf(space), &keys::raw_key(space, key))?
        else {
            return Ok(None);
        };
        let decoded = raw_value::decode_bytes(&stored).map_err(|fault| self.damaged(fault))?;
        Ok(match self.see(decoded)? {
            Sight::Visible { value, ttl_seconds } => Some((value, ttl_seconds)),
            Sight::Gone => None,
        })
    }

    fn scan(
        &self,
        scan: &RawScan,
        start: &[u8],
        end: &[u8],
        reverse: bool,
        pairs: &mut Pairs,
    ) -> Result<(), ReadFault> {
        let (lower, upper) = if reverse { (end, start) } else { (start, end) };
        let Some((lower, upper)) = clip(self.region, scan.space, lower, upper) else {
            return Ok(());
        };
        let direction = if reverse {
            Direction::Backward
        } else {
            Direction::Forward
        };
        let mut left = scan.limit;
        if left == 0 {
            return Ok(());
        }
        self.visit(scan.space, &lower, &upper, direction, &mut |key, value| {
            let key = pairs.copies.copy(key);
            let value = if scan.key_only {
                Bytes::new()
            } else {
                pairs.copies.copy(value)
            };
            left -= 1;
            let room = pairs.push(key, value, self.bytes_max);
            if left == 0 {
                ControlFlow::Break(())
            } else {
                room
            }
        })
    }

    fn checksum(&self, space: RawSpace, ranges: &[(Bytes, Bytes)]) -> Result<Answer, ReadFault> {
        let (mut crc64, mut pairs, mut bytes) = (0u64, 0u64, 0u64);
        for (start, end) in ranges {
            let Some((lower, upper)) = clip(self.region, space, start, end) else {
                continue;
            };
            self.visit(
                space,
                &lower,
                &upper,
                Direction::Forward,
                &mut |key, value| {
                    let mut digest: Digest<'_, u64> = CRC64.digest();
                    digest.update(key);
                    digest.update(value);
                    crc64 ^= digest.finalize();
                    pairs += 1;
                    bytes += (key.len() + value.len()) as u64;
                    ControlFlow::Continue(())
                },
            )?;
        }
        Ok(Answer::Checksum {
            crc64,
            pairs,
            bytes,
        })
    }

    /// Visits the visible pairs of an engine range, keys as clients name them.
    fn visit(
        &self,
        space: RawSpace,
        lower: &[u8],
        upper: &[u8],
        direction: Direction,
        visit: Visitor<'_>,
    ) -> Result<(), ReadFault> {
        let cf = keys::raw_cf(space);
        let mut fault = None;
        self.view
            .scan(cf, lower, Some(upper), direction, &mut |key, stored| {
                let Some(key) = keys::parse_raw_key(space, key) else {
                    return ControlFlow::Continue(());
                };
                let seen = raw_value::decode(stored)
                    .map_err(|broken| self.damaged(broken))
                    .and_then(|decoded| self.see(decoded));
                match seen {
                    Ok(Sight::Visible { value, .. }) => visit(&key, value),
                    Ok(Sight::Gone) if self.behind.get() => ControlFlow::Break(()),
                    Ok(Sight::Gone) => ControlFlow::Continue(()),
                    Err(broken) => {
                        fault = Some(broken);
                        ControlFlow::Break(())
                    }
                }
            })?;
        fault.map_or(Ok(()), Err)
    }

    fn see<T>(&self, decoded: raw_value::RawValue<T>) -> Result<Sight<T>, ReadFault> {
        if decoded.expires_at_ms.is_none() {
            return Ok(Sight::Visible {
                value: decoded.value,
                ttl_seconds: 0,
            });
        }
        let clock_ms = self.clock()?;
        if decoded.is_expired(clock_ms) {
            return Ok(Sight::Gone);
        }
        let mut shown_clock_ms = clock_ms;
        if let Expiry::Leader { wall_ms } = self.expiry {
            if decoded.is_expired(wall_ms) {
                self.behind.set(true);
                return Ok(Sight::Gone);
            }
            shown_clock_ms = clock_ms.max(wall_ms);
        }
        // A value that is still seen has at least a second: 0 means "for ever".
        let ttl_seconds = decoded.ttl_seconds(shown_clock_ms).unwrap_or(0).max(1);
        Ok(Sight::Visible {
            value: decoded.value,
            ttl_seconds,
        })
    }

    fn clock(&self) -> Result<u64, ReadFault> {
        if let Some(clock_ms) = self.clock_ms.get() {
            return Ok(clock_ms);
        }
        let state: Option<RaftApplyState> = record::get(
            self.view,
            Cf::Raft,
            RecordKind::RaftApplyState,
            &keys::apply_state(self.region.id),
        )?;
        let clock_ms = state.map_or(0, |state| state.region_clock_ms);
        self.clock_ms.set(Some(clock_ms));
        Ok(clock_ms)
    }

    fn damaged(&self, fault: raw_value::RawValueError) -> ReadFault {
        ReadFault::RawValue {
            region_id: self.region.id,
            fault,
        }
    }
}

struct RawScan {
    space: RawSpace,
    limit: u32,
    key_only: bool,
}

/// The engine range of `[lower, upper)` within a region; an empty `upper` is unbounded.
/// `None`: nothing is left.
pub(crate) fn clip(
    region: &Region,
    space: RawSpace,
    lower: &[u8],
    upper: &[u8],
) -> Option<(Vec<u8>, Vec<u8>)> {
    let (first, last) = keys::data_range(&region.start_key, &region.end_key);
    // An empty lower bound is the start of all keys, also where keys are encoded.
    let lower = if lower.is_empty() {
        first.clone()
    } else {
        first.max(keys::raw_key(space, lower))
    };
    let upper = if upper.is_empty() {
        last
    } else {
        last.min(keys::raw_key(space, upper))
    };
    (lower < upper).then_some((lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_memory_and_stay_what_they_were() {
        let mut copies = Copies::default();
        let originals: Vec<Vec<u8>> = (0..2000usize)
            .map(|number| vec![number as u8; (number * 37) % 1500])
            .chain([vec![7; COPIES_BYTES_MAX * 3]])
            .collect();
        let made: Vec<Bytes> = originals.iter().map(|bytes| copies.copy(bytes)).collect();
        assert_eq!(made, originals);
        let next_to_each_other = made
            .windows(2)
            .filter(|pair| !pair[0].is_empty() && pair[0].as_ptr_range().end == pair[1].as_ptr())
            .count();
        assert!(next_to_each_other > 1800, "{next_to_each_other} of 2000");
    }
}
