//! The sum over what a region holds, equal on all replicas that applied the same index.
//!
//! Logical content is what the log alone decides: raw pairs that have not expired by the
//! region's clock, the records of transactions, the client sessions (they decide answers
//! to repeated commands), and the system region's records. Not in the sum: the log, hard
//! state, apply state and region state, and expired values, which each replica drops in
//! its own time.
//!
//! The sum is one CRC-64/XZ over all of it in order: for each content its name and a zero
//! byte, then for each record the length of its engine key (8 bytes, big-endian), the key,
//! the length of the stored value, the value. It is not the sum that the read `Checksum`
//! of raw keys answers: that one XORs a CRC of each pair, as clients expect it. A CRC is
//! linear, so two values of one length that changed places cancel out there.

use std::ops::ControlFlow;

use crc::{CRC_64_XZ, Crc, Digest};
use strata_proto::metapb::Region;

use crate::engine::ReadView;
use crate::error::Error;
use crate::raw_value;
use crate::record::hex;
use crate::snapshot::Content;

static CRC64: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// The sum over a region's logical content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionChecksum {
    /// Raw pairs, records of transactions and system records; sessions are not counted.
    pub keys: u64,
    /// CRC-64/XZ over all records in order.
    pub crc64: u64,
}

/// Sums up a region by its clock `clock_ms`, milliseconds since 1970. `kv` must be one
/// consistent state.
///
/// # Errors
/// Errors of the engine; `CorruptValue` names a raw value that cannot be read.
pub fn region_checksum(
    kv: &impl ReadView,
    region: &Region,
    clock_ms: u64,
) -> Result<RegionChecksum, Error> {
    let mut sum = Sum {
        digest: CRC64.digest(),
        keys: 0,
    };
    for content in Content::ALL {
        let Some((start, end)) = content.range(region) else {
            continue;
        };
        sum.begin(content);
        let mut fault = None;
        let mut visit = |key: &[u8], stored: &[u8]| match sum.add(content, key, stored, clock_ms) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                fault = Some(error);
                ControlFlow::Break(())
            }
        };
        kv.scan_once(content.cf(), &start, Some(&end), &mut visit)?;
        if let Some(fault) = fault {
            return Err(fault);
        }
    }
    Ok(RegionChecksum {
        keys: sum.keys,
        crc64: sum.digest.finalize(),
    })
}

/// The sum as far as it is.
struct Sum {
    digest: Digest<'static, u64>,
    keys: u64,
}

impl Sum {
    fn begin(&mut self, content: Content) {
        self.digest.update(content.name().as_bytes());
        self.digest.update(&[0]);
    }

    fn add(
        &mut self,
        content: Content,
        key: &[u8],
        stored: &[u8],
        clock_ms: u64,
    ) -> Result<(), Error> {
        match content {
            Content::Raw | Content::Raw2 => {
                let value = raw_value::decode(stored).map_err(|fault| Error::CorruptValue {
                    cf: content.cf(),
                    key: hex(key),
                    detail: fault.to_string(),
                })?;
                if value.is_expired(clock_ms) {
                    return Ok(());
                }
                self.keys += 1;
            }
            Content::Default | Content::Lock | Content::Write | Content::System => self.keys += 1,
            Content::Session => {}
        }
        for part in [key, stored] {
            self.digest.update(&(part.len() as u64).to_be_bytes());
            self.digest.update(part);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cf, Durability, Engine, MemEngine, WriteBatch, keys};
    use bytes::Bytes;
    use strata_proto::stratapb::RawSpace;

    const CLOCK_MS: u64 = 1000;

    fn region() -> Region {
        Region {
            id: 7,
            start_key: Bytes::from_static(b"b"),
            end_key: Bytes::from_static(b"y"),
            ..Region::default()
        }
    }

    fn sum_of(fill: impl FnOnce(&mut WriteBatch)) -> Result<RegionChecksum, Error> {
        let kv = MemEngine::new_pair().kv;
        let mut batch = WriteBatch::new();
        fill(&mut batch);
        kv.write(&batch, Durability::Unsynced).unwrap();
        region_checksum(&kv, &region(), CLOCK_MS)
    }

    fn raw(batch: &mut WriteBatch, key: &[u8], value: &[u8], expires_at_ms: Option<u64>) {
        let key = keys::raw_key(RawSpace::RawV1, key);
        batch.put(Cf::Raw, key, raw_value::encode(value, expires_at_ms));
    }

    #[test]
    fn region_checksum_covers_the_range_and_not_what_expired() {
        let inside = sum_of(|batch| {
            raw(batch, b"b", b"1", None);
            raw(batch, b"c", b"2", Some(CLOCK_MS + 1));
        })
        .unwrap();
        assert_eq!(inside.keys, 2);
        let with_others = sum_of(|batch| {
            raw(batch, b"a", b"outside", None);
            raw(batch, b"b", b"1", None);
            raw(batch, b"c", b"2", Some(CLOCK_MS + 1));
            raw(batch, b"d", b"expired", Some(CLOCK_MS));
            raw(batch, b"y", b"outside", None);
        })
        .unwrap();
        assert_eq!(with_others, inside);
        let other_value = sum_of(|batch| {
            raw(batch, b"b", b"1", None);
            raw(batch, b"c", b"3", None);
        })
        .unwrap();
        assert_ne!(other_value.crc64, inside.crc64);
    }

    /// A sum of linear sums would not see any of these.
    #[test]
    fn region_checksum_sees_what_changed_places() {
        let sum = |pairs: &[(&[u8], &[u8])]| {
            let answer = sum_of(|batch| {
                for (key, value) in pairs {
                    raw(batch, key, value, None);
                }
            });
            answer.unwrap().crc64
        };
        assert_ne!(
            sum(&[(b"c", b"1"), (b"d", b"2")]),
            sum(&[(b"c", b"2"), (b"d", b"1")])
        );
        assert_ne!(sum(&[(b"c", b"d1")]), sum(&[(b"cd", b"1")]));
        let all: Vec<(Vec<u8>, Vec<u8>)> = (0..8u8)
            .map(|number| (vec![b'c', number], b"same".to_vec()))
            .collect();
        let all: Vec<(&[u8], &[u8])> = all.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_ne!(sum(&all), sum(&[]));
    }

    #[test]
    fn region_checksum_tells_contents_apart() {
        let nothing = sum_of(|_| {}).unwrap();
        let mut seen = std::collections::BTreeSet::from([nothing.crc64]);
        for cf in [Cf::Default, Cf::Lock, Cf::Write] {
            let sum = sum_of(|batch| batch.put(cf, &b"zc"[..], &b"v"[..])).unwrap();
            assert_eq!(sum.keys, 1);
            assert!(seen.insert(sum.crc64), "{cf} is not told apart");
        }
        let session = keys::session(7, &[1; keys::SESSION_ID_BYTES]);
        let sum = sum_of(|batch| batch.put(Cf::Raft, session, &b"v"[..])).unwrap();
        assert_eq!(sum.keys, 0, "sessions are no keys");
        assert!(seen.insert(sum.crc64), "sessions do not count");
        let foreign = keys::session(8, &[1; keys::SESSION_ID_BYTES]);
        let sum = sum_of(|batch| batch.put(Cf::Raft, foreign, &b"v"[..])).unwrap();
        assert_eq!(sum, nothing);
    }

    #[test]
    fn region_checksum_names_a_damaged_value() {
        let key = keys::raw_key(RawSpace::RawV1, b"c");
        let answer = sum_of(|batch| batch.put(Cf::Raw, key, &b"\x07"[..]));
        assert!(
            matches!(&answer, Err(Error::CorruptValue { cf: Cf::Raw, key, .. }) if key == "7a63"),
            "{answer:?}"
        );
    }
}
