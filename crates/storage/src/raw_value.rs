//! The value of a raw key in the engine: a flags byte, an expiry where there is one, the
//! user's value.
//!
//! | flags | then | then |
//! |---|---|---|
//! | 0 | user value | |
//! | 1 | expiry: 8 bytes, big-endian, milliseconds since 1970 | user value |
//!
//! Time to live is always on; it costs one byte on values that never expire. The expiry
//! is absolute and fixed when the command is applied, by the region's clock, so that all
//! replicas hold the same bytes.

use bytes::{BufMut, Bytes, BytesMut};

const FLAGS_PLAIN: u8 = 0;
const FLAGS_EXPIRY: u8 = 1;
const EXPIRY_BYTES: usize = 8;
const MILLISECONDS_PER_SECOND: u64 = 1000;

/// Longest time to live in seconds. Half of what 64 bits of milliseconds can count: the
/// other half is left to the clock, so that no expiry ever overflows.
pub const TTL_SECONDS_MAX: u64 = i64::MAX as u64 / MILLISECONDS_PER_SECOND;

/// Why an engine value is not a raw value. Such a value was damaged or not written by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RawValueError {
    /// Not even a flags byte.
    #[error("raw value is empty, it lacks its flags byte")]
    Empty,
    /// Flags that this version does not know.
    #[error("raw value has unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// Flags announce an expiry, but the value ends before it does.
    #[error("raw value of {0} bytes is too short for its expiry")]
    Truncated(usize),
}

/// A decoded raw value; `V` is `&[u8]` or [`Bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawValue<V> {
    /// What the user wrote.
    pub value: V,
    /// When it expires, milliseconds since 1970; `None`: never.
    pub expires_at_ms: Option<u64>,
}

impl<V> RawValue<V> {
    /// True if the value is gone at `clock_ms`: expired when expiry <= clock.
    pub fn is_expired(&self, clock_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|expiry| expiry <= clock_ms)
    }

    /// Whole seconds left at `clock_ms`, rounded up; `None` if it never expires, 0 if it
    /// is expired. Rounding up keeps a live value from looking like "no expiry".
    pub fn ttl_seconds(&self, clock_ms: u64) -> Option<u64> {
        self.expires_at_ms.map(|expiry| {
            expiry
                .saturating_sub(clock_ms)
                .div_ceil(MILLISECONDS_PER_SECOND)
        })
    }
}

/// The expiry of a value written at `clock_ms` with a time to live; `None` for 0 seconds,
/// which means for ever. Saturates instead of overflowing.
#[must_use]
pub fn expiry_after(clock_ms: u64, ttl_seconds: u64) -> Option<u64> {
    (ttl_seconds > 0)
        .then(|| clock_ms.saturating_add(ttl_seconds.saturating_mul(MILLISECONDS_PER_SECOND)))
}

/// The engine's form of a value.
#[must_use]
pub fn encode(value: &[u8], expires_at_ms: Option<u64>) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + EXPIRY_BYTES + value.len());
    match expires_at_ms {
        None => out.put_u8(FLAGS_PLAIN),
        Some(expiry) => {
            out.put_u8(FLAGS_EXPIRY);
            out.put_u64(expiry);
        }
    }
    out.put_slice(value);
    out.freeze()
}

/// Reads the engine's form without copying.
///
/// # Errors
/// If it was not written by [`encode`].
pub fn decode(bytes: &[u8]) -> Result<RawValue<&[u8]>, RawValueError> {
    match bytes.split_first() {
        None => Err(RawValueError::Empty),
        Some((&FLAGS_PLAIN, value)) => Ok(RawValue {
            value,
            expires_at_ms: None,
        }),
        Some((&FLAGS_EXPIRY, rest)) => {
            let (expiry, value) = rest
                .split_first_chunk::<EXPIRY_BYTES>()
                .ok_or(RawValueError::Truncated(bytes.len()))?;
            Ok(RawValue {
                value,
                expires_at_ms: Some(u64::from_be_bytes(*expiry)),
            })
        }
        Some((&flags, _)) => Err(RawValueError::UnknownFlags(flags)),
    }
}

/// As [`decode`], sharing the buffer of owned bytes.
///
/// # Errors
/// If it was not written by [`encode`].
pub fn decode_bytes(bytes: &Bytes) -> Result<RawValue<Bytes>, RawValueError> {
    let decoded = decode(bytes)?;
    Ok(RawValue {
        value: bytes.slice_ref(decoded.value),
        expires_at_ms: decoded.expires_at_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn raw_value_forms_are_fixed() {
        assert_eq!(&encode(b"ab", None)[..], b"\x00ab");
        assert_eq!(
            &encode(b"ab", Some(0x0102))[..],
            b"\x01\0\0\0\0\0\0\x01\x02ab"
        );
    }

    #[test]
    fn raw_value_expires_when_clock_reaches_expiry() {
        let value = RawValue {
            value: (),
            expires_at_ms: Some(1000),
        };
        assert!(!value.is_expired(999));
        assert!(value.is_expired(1000));
        assert_eq!(value.ttl_seconds(1), Some(1));
        assert_eq!(value.ttl_seconds(1000), Some(0));
        assert_eq!(expiry_after(5, 0), None);
        assert_eq!(expiry_after(5, 2), Some(2005));
        assert_eq!(expiry_after(5, u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn raw_value_refuses_damage() {
        assert_eq!(decode(b""), Err(RawValueError::Empty));
        assert_eq!(decode(b"\x02x"), Err(RawValueError::UnknownFlags(2)));
        assert_eq!(decode(b"\x011234567"), Err(RawValueError::Truncated(8)));
    }

    proptest! {
        #[test]
        fn raw_value_round_trips(value: Vec<u8>, expiry: Option<u64>) {
            let encoded = encode(&value, expiry);
            let back = decode_bytes(&encoded).unwrap();
            prop_assert_eq!(&back.value[..], &value[..]);
            prop_assert_eq!(back.expires_at_ms, expiry);
        }

        #[test]
        fn raw_value_decode_never_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
