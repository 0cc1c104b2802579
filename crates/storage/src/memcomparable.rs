//! The memcomparable encoding of byte strings.
//!
//! Groups of eight bytes, the last padded with zeros, each followed by a marker: 0xFF
//! minus the number of padding bytes. A full group that ends the string is followed by a
//! group of padding alone (marker 0xF7). Two properties carry the key layout:
//! * the order of encodings, byte for byte, is the order of the strings;
//! * no encoding is a prefix of another one, so what follows it never disturbs the order.

/// Bytes of payload in a group.
const GROUP_BYTES: usize = 8;
/// Marker of a group without padding.
const MARKER_FULL: u8 = 0xff;

/// Why bytes are no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end within a group.
    #[error("encoded key ends within a group")]
    UnexpectedEnd,
    /// A marker is below what eight padding bytes need.
    #[error("encoded key has the invalid marker {0:#04x}")]
    InvalidMarker(u8),
    /// Padding is not zero.
    #[error("encoded key has padding that is not zero")]
    InvalidPadding,
}

/// Length of the encoding of `length` bytes.
#[must_use]
pub fn encoded_len(length: usize) -> usize {
    (length / GROUP_BYTES + 1) * (GROUP_BYTES + 1)
}

/// Appends the encoding of `plain` to `out`.
pub fn encode_into(out: &mut Vec<u8>, plain: &[u8]) {
    out.reserve(encoded_len(plain.len()));
    let mut groups = plain.chunks_exact(GROUP_BYTES);
    for group in &mut groups {
        out.extend_from_slice(group);
        out.push(MARKER_FULL);
    }
    let rest = groups.remainder();
    let padding = GROUP_BYTES - rest.len();
    out.extend_from_slice(rest);
    out.resize(out.len() + padding, 0);
    out.push(MARKER_FULL - padding as u8);
}

/// The encoding of `plain`.
#[must_use]
pub fn encode(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(&mut out, plain);
    out
}

/// Reads one encoding at the front of `bytes`; returns the plain string and how many
/// bytes the encoding takes.
///
/// # Errors
/// If `bytes` do not begin with a well-formed encoding.
pub fn decode(bytes: &[u8]) -> Result<(Vec<u8>, usize), DecodeError> {
    let mut plain = Vec::with_capacity(bytes.len());
    for (number, group) in bytes.chunks_exact(GROUP_BYTES + 1).enumerate() {
        let (payload, marker) = (&group[..GROUP_BYTES], group[GROUP_BYTES]);
        let padding = usize::from(MARKER_FULL - marker);
        if padding > GROUP_BYTES {
            return Err(DecodeError::InvalidMarker(marker));
        }
        let (kept, padded) = payload.split_at(GROUP_BYTES - padding);
        if padded.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::InvalidPadding);
        }
        plain.extend_from_slice(kept);
        if padding > 0 {
            return Ok((plain, (number + 1) * (GROUP_BYTES + 1)));
        }
    }
    Err(DecodeError::UnexpectedEnd)
}

/// True if `bytes` are exactly one well-formed encoding.
#[must_use]
pub fn is_encoding(bytes: &[u8]) -> bool {
    decode(bytes).is_ok_and(|(_, length)| length == bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memcomparable_known_forms() {
        assert_eq!(encode(b""), [0, 0, 0, 0, 0, 0, 0, 0, 0xf7]);
        assert_eq!(encode(b"r\0\0\0"), [b'r', 0, 0, 0, 0, 0, 0, 0, 0xfb]);
        assert_eq!(
            encode(b"12345678"),
            b"12345678\xff\0\0\0\0\0\0\0\0\xf7".to_vec()
        );
    }

    #[test]
    fn memcomparable_refuses_malformed() {
        assert_eq!(decode(b""), Err(DecodeError::UnexpectedEnd));
        assert_eq!(decode(b"12345678\xff"), Err(DecodeError::UnexpectedEnd));
        assert_eq!(
            decode(&[0, 0, 0, 0, 0, 0, 0, 0, 0xf6]),
            Err(DecodeError::InvalidMarker(0xf6))
        );
        assert_eq!(
            decode(&[1, 0, 0, 0, 0, 0, 0, 0, 0xf7]),
            Err(DecodeError::InvalidPadding)
        );
    }

    /// Short strings over few bytes: they meet at the group boundaries all the time.
    fn strings() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()],
            0..20,
        )
    }

    proptest! {
        #[test]
        fn key_encoding_order_matches_plain_order(a in strings(), b in strings()) {
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), a.cmp(&b));
        }

        #[test]
        fn key_encoding_order_survives_suffixes(
            a in strings(), b in strings(), x in strings(), y in strings()
        ) {
            prop_assume!(a != b);
            let with = |key: &[u8], tail: &[u8]| [encode(key), tail.to_vec()].concat();
            prop_assert_eq!(with(&a, &x).cmp(&with(&b, &y)), a.cmp(&b));
        }

        #[test]
        fn key_encoding_round_trips(a in strings(), tail in strings()) {
            let mut bytes = encode(&a);
            prop_assert_eq!(bytes.len(), encoded_len(a.len()));
            prop_assert!(is_encoding(&bytes));
            let length = bytes.len();
            bytes.extend(&tail);
            prop_assert_eq!(decode(&bytes), Ok((a, length)));
        }

        #[test]
        fn key_decoding_never_panics_and_is_canonical(bytes in strings()) {
            if let Ok((plain, length)) = decode(&bytes) {
                prop_assert_eq!(encode(&plain), bytes[..length].to_vec());
            }
        }
    }
}
