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

use bytes::Bytes;
use crc::{CRC_64_XZ, Crc, Digest};
use strata_proto::metapb::Region;
use strata_proto::stratapb::{RaftApplyState, RawSpace};
use strata_storage::{Cf, Direction, Engine, ReadView, RecordKind, keys, raw_value, record};

use crate::request::{Answer, ReadCommand};
use crate::system::SnapshotSystemView;
use crate::task::{Expiry, ReadBody};

static CRC64: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// What became of a read.
#[derive(Debug)]
pub enum Served {
    /// The answer.
    Answer(Answer),
    /// A value has expired by the wall clock and not by the region's: a clock entry has to
    /// be applied first.
    ClockBehind,
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

/// Serves a read.
///
/// # Errors
/// The engine failed or holds damaged data: the process must not go on.
pub fn serve<E: Engine>(
    snapshot: &E::Snapshot,
    region: &Region,
    body: &ReadBody,
    expiry: Expiry,
) -> Result<Served, ReadFault> {
    match body {
        ReadBody::System => {
            let view = SnapshotSystemView::new(snapshot.clone());
            Ok(Served::Answer(Answer::System(std::sync::Arc::new(view))))
        }
        ReadBody::Raw(command) => serve_raw(snapshot, region, command, expiry),
    }
}

fn serve_raw(
    view: &impl ReadView,
    region: &Region,
    command: &ReadCommand,
    expiry: Expiry,
) -> Result<Served, ReadFault> {
    let reader = Reader {
        view,
        region,
        expiry,
        clock_ms: Cell::new(None),
        behind: Cell::new(false),
    };
    let answer = reader.answer(command)?;
    Ok(if reader.behind.get() {
        Served::ClockBehind
    } else {
        Served::Answer(answer)
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
}

impl<V: ReadView> Reader<'_, V> {
    fn answer(&self, command: &ReadCommand) -> Result<Answer, ReadFault> {
        match command {
            ReadCommand::Get { space, key } => Ok(Answer::Value(
                self.get(*space, key)?.map(|(value, _)| value),
            )),
            ReadCommand::Ttl { space, key } => {
                Ok(Answer::Ttl(self.get(*space, key)?.map(|(_, ttl)| ttl)))
            }
            ReadCommand::BatchGet { space, keys } => {
                let mut pairs = Vec::new();
                for key in keys {
                    if let Some((value, _)) = self.get(*space, key)? {
                        pairs.push((key.clone(), value));
                    }
                }
                Ok(Answer::Pairs(pairs))
            }
            ReadCommand::Scan {
                space,
                start,
                end,
                limit,
                key_only,
                reverse,
            } => {
                let mut pairs = Vec::new();
                let scan = RawScan {
                    space: *space,
                    limit: *limit,
                    key_only: *key_only,
                };
                self.scan(&scan, start, end, *reverse, &mut pairs)?;
                Ok(Answer::Pairs(pairs))
            }
            ReadCommand::BatchScan {
                space,
                ranges,
                each_limit,
                key_only,
                reverse,
            } => {
                let mut pairs = Vec::new();
                let scan = RawScan {
                    space: *space,
                    limit: *each_limit,
                    key_only: *key_only,
                };
                for (start, end) in ranges {
                    self.scan(&scan, start, end, *reverse, &mut pairs)?;
                }
                Ok(Answer::Pairs(pairs))
            }
            ReadCommand::Checksum { space, ranges } => self.checksum(*space, ranges),
        }
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
        pairs: &mut Vec<(Bytes, Bytes)>,
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
            let value = if scan.key_only {
                Bytes::new()
            } else {
                Bytes::copy_from_slice(value)
            };
            pairs.push((key, value));
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
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
                    digest.update(&key);
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
        visit: &mut dyn FnMut(Bytes, &[u8]) -> ControlFlow<()>,
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
                    Ok(Sight::Visible { value, .. }) => visit(Bytes::copy_from_slice(&key), value),
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
