//! The wire format of protobuf, without any schema: fields with number and value.
//!
//! A length-delimited value may be text, bytes or a message; the format does not tell, and so
//! [`looks_like_message`] guesses. Groups do not occur.

/// Largest field number that the format allows.
pub const FIELD_NUMBER_MAX: u32 = (1 << 29) - 1;

const TYPE_VARINT: u64 = 0;
const TYPE_FIXED64: u64 = 1;
const TYPE_BYTES: u64 = 2;
const TYPE_FIXED32: u64 = 5;

/// One field as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number, 1 to [`FIELD_NUMBER_MAX`].
    pub number: u32,
    /// Its value.
    pub value: Value,
}

/// A value by its wire type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Integers, truth values and enums.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// Text, bytes, messages and packed numbers.
    Bytes(Vec<u8>),
}

/// Takes a message apart; `None` if it is none.
#[must_use]
pub fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok()?;
        if !(1..=FIELD_NUMBER_MAX).contains(&number) {
            return None;
        }
        let value = match key & 7 {
            TYPE_VARINT => Value::Varint(take_varint(&mut bytes)?),
            TYPE_FIXED64 => {
                let (value, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Fixed64(u64::from_le_bytes(*value))
            }
            TYPE_FIXED32 => {
                let (value, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Fixed32(u32::from_le_bytes(*value))
            }
            TYPE_BYTES => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value.to_vec())
            }
            _ => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

/// Puts a message together.
#[must_use]
pub fn write(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for Field { number, value } in fields {
        let key = u64::from(*number) << 3;
        match value {
            Value::Varint(value) => {
                put_varint(&mut out, key | TYPE_VARINT);
                put_varint(&mut out, *value);
            }
            Value::Fixed64(value) => {
                put_varint(&mut out, key | TYPE_FIXED64);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Fixed32(value) => {
                put_varint(&mut out, key | TYPE_FIXED32);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Bytes(value) => {
                put_varint(&mut out, key | TYPE_BYTES);
                put_varint(&mut out, value.len() as u64);
                out.extend_from_slice(value);
            }
        }
    }
    out
}

/// True if bytes parse as a message with fields of small numbers, as messages have them and
/// other bytes seldom do.
#[must_use]
pub fn looks_like_message(bytes: &[u8]) -> bool {
    parse(bytes)
        .is_some_and(|fields| !fields.is_empty() && fields.iter().all(|field| field.number <= 64))
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_both_ways() {
        let values = [
            Value::Varint(0),
            Value::Varint(u64::MAX),
            Value::Fixed64(u64::MAX - 1),
            Value::Fixed32(7),
            Value::Bytes(b"text".to_vec()),
            Value::Bytes(Vec::new()),
        ];
        let fields: Vec<Field> = (1..)
            .zip(values)
            .map(|(number, value)| Field { number, value })
            .collect();
        assert_eq!(parse(&write(&fields)), Some(fields));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [
            &b"\x08"[..],                                        // no value
            b"\x0a\x05abc",                                      // longer than what is there
            b"\x00\x01",                                         // field 0
            b"\x0b\x01",                                         // a group
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", // eleven bytes
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
