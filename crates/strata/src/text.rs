//! Bytes as words: hexadecimal digits, escapes for people, strings for JSON.

use crate::exit::Failure;
use bytes::Bytes;
use serde_json::{Value, json};

/// The bytes of a key or value as it stands on the command line.
///
/// # Errors
/// A wrong command line when `hex` is set and the word is not pairs of digits.
pub fn parse(word: &str, hex: bool) -> Result<Bytes, Failure> {
    if !hex {
        return Ok(Bytes::copy_from_slice(word.as_bytes()));
    }
    let wrong = || {
        Failure::CommandLine(format!(
            "{word:?} is not hexadecimal: write two digits 0-9 a-f for each byte"
        ))
    };
    let digits = word.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8);
    digits
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
        .ok_or_else(wrong)
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Printable text as it is, other bytes as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => {
                    let mut buffer = [0; 4];
                    for byte in character.encode_utf8(&mut buffer).bytes() {
                        text.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                character => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// As the user wrote it: hexadecimal, or escaped text.
pub fn show(bytes: &[u8], as_hex: bool) -> String {
    if as_hex { hex(bytes) } else { escape(bytes) }
}

/// A JSON string; bytes that are not text become `{"hex": "..."}` unless all are asked
/// for in hexadecimal.
pub fn to_json(bytes: &[u8], as_hex: bool) -> Value {
    if as_hex {
        return json!(hex(bytes));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parse(&hex(&bytes), true).unwrap(), bytes);
        assert_eq!(parse("0aFF", true).unwrap(), &b"\x0a\xff"[..]);
        for wrong in ["0", "zz", "0x00", "é"] {
            assert!(matches!(parse(wrong, true), Err(Failure::CommandLine(_))));
        }
    }

    #[test]
    fn what_cannot_be_printed_is_escaped() {
        assert_eq!(escape("grüße".as_bytes()), "grüße");
        assert_eq!(escape(b"a\0\n\\\xff"), "a\\x00\\x0a\\\\\\xff");
        assert_eq!(to_json(b"\xff", false), json!({ "hex": "ff" }));
        assert_eq!(to_json(b"a", true), json!("61"));
    }
}
