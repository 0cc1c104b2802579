//! Rows of `strata kv import` and `export`: one key with its value, as one line.
//!
//! What is written is read back as the same bytes, in both forms, with and without
//! `--hex`.

use crate::args::Rows;
use crate::{output, text};
use bytes::Bytes;
use serde_json::{Value, json};
use std::path::Path;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key, never empty.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Seconds to live; 0: for good.
    pub ttl_seconds: u64,
}

/// The form that the name of a file asks for.
pub fn form_by_name(file: &str) -> Option<Rows> {
    let ending = Path::new(file).extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "json" | "jsonl" | "ndjson" => Some(Rows::Json),
        "tsv" => Some(Rows::Tsv),
        _ => None,
    }
}

/// The form that a first row looks like.
pub fn form_by_row(line: &[u8]) -> Rows {
    if line.trim_ascii_start().starts_with(b"{") {
        Rows::Json
    } else {
        Rows::Tsv
    }
}

/// True for a line that holds no row. Of a row in the second form, whose key is spaces and
/// whose value is empty, the tab is all that tells it from such a line.
pub fn is_blank(line: &[u8], form: Option<Rows>) -> bool {
    line.trim_ascii().is_empty() && (form == Some(Rows::Json) || !line.contains(&b'\t'))
}

/// Reads a row.
///
/// # Errors
/// Says in a few words what is wrong with it.
pub fn parse(line: &[u8], form: Rows, hex: bool) -> Result<Row, String> {
    let row = match form {
        Rows::Json => parse_json(line, hex)?,
        Rows::Tsv => parse_tsv(line, hex)?,
    };
    if row.key.is_empty() {
        return Err("the key is empty".into());
    }
    Ok(row)
}

fn parse_json(line: &[u8], hex: bool) -> Result<Row, String> {
    let row: Value =
        serde_json::from_slice(line).map_err(|error| format!("not a JSON object ({error})"))?;
    let Value::Object(fields) = row else {
        return Err("not a JSON object".into());
    };
    let (mut key, mut value, mut ttl_seconds) = (None, None, 0);
    for (name, field) in &fields {
        match name.as_str() {
            "key" => key = Some(json_bytes(name, field, hex)?),
            "value" => value = Some(json_bytes(name, field, hex)?),
            "ttl" => {
                let seconds = field.as_u64();
                ttl_seconds = seconds.ok_or("ttl is not a number of whole seconds")?;
            }
            _ => {
                return Err(format!(
                    "unknown field {name:?}: a row has key, value and ttl"
                ));
            }
        }
    }
    Ok(Row {
        key: key.ok_or("it has no key")?,
        value: value.ok_or("it has no value")?,
        ttl_seconds,
    })
}

fn json_bytes(name: &str, field: &Value, hex: bool) -> Result<Bytes, String> {
    let digits = match field {
        Value::String(text) if hex => text,
        Value::String(text) => return Ok(text.clone().into_bytes().into()),
        Value::Object(parts) if parts.len() == 1 => match parts.get("hex") {
            Some(Value::String(digits)) => digits,
            _ => {
                return Err(format!(
                    "{name} is neither a string nor {{\"hex\": \"...\"}}"
                ));
            }
        },
        _ => {
            return Err(format!(
                "{name} is neither a string nor {{\"hex\": \"...\"}}"
            ));
        }
    };
    from_hex(name, digits)
}

fn from_hex(name: &str, digits: &str) -> Result<Bytes, String> {
    text::parse(digits, true)
        .map_err(|_| format!("{name} is not hexadecimal: two digits 0-9 a-f for each byte"))
}

fn parse_tsv(line: &[u8], hex: bool) -> Result<Row, String> {
    let cells: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
    if cells.len() < 2 || cells.len() > 3 {
        return Err(format!(
            "{}: a row is key, tab, value and maybe tab, seconds to live",
            output::count(cells.len() as u64, "column")
        ));
    }
    let bytes = |name: &str, cell: &[u8]| {
        if hex {
            from_hex(name, &String::from_utf8_lossy(cell))
        } else {
            unescape(cell).map_err(|reason| format!("{name}: {reason}"))
        }
    };
    let ttl_seconds = match cells.get(2) {
        None => 0,
        Some(cell) => std::str::from_utf8(cell)
            .ok()
            .and_then(|word| word.parse().ok())
            .ok_or("the third column is not a number of whole seconds")?,
    };
    Ok(Row {
        key: bytes("the key", cells[0])?,
        value: bytes("the value", cells[1])?,
        ttl_seconds,
    })
}

/// Undoes [`text::escape`], and knows `\t`, `\n` and `\r` besides.
fn unescape(cell: &[u8]) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(cell.len());
    let mut rest = cell;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (letter, behind) = rest
            .split_first()
            .ok_or("a backslash at the end: write it twice")?;
        rest = behind;
        match letter {
            b'\\' => bytes.push(b'\\'),
            b't' => bytes.push(b'\t'),
            b'n' => bytes.push(b'\n'),
            b'r' => bytes.push(b'\r'),
            b'x' => {
                let digits = rest.get(..2).and_then(|two| std::str::from_utf8(two).ok());
                let byte = digits.and_then(|two| text::parse(two, true).ok());
                let byte = byte.ok_or("\\x needs two hexadecimal digits")?;
                bytes.extend_from_slice(&byte);
                rest = &rest[2..];
            }
            _ => {
                return Err(format!(
                    "\\{} is no escape: there are \\\\ \\t \\n \\r and \\xNN",
                    char::from(*letter).escape_default()
                ));
            }
        }
    }
    Ok(bytes.into())
}

/// Writes a row with its end of line.
pub fn write(row: &Row, form: Rows, hex: bool) -> String {
    match form {
        Rows::Json => {
            let mut line = json!({
                "key": text::to_json(&row.key, hex),
                "value": text::to_json(&row.value, hex),
            });
            if row.ttl_seconds > 0 {
                line["ttl"] = json!(row.ttl_seconds);
            }
            format!("{line}\n")
        }
        Rows::Tsv => {
            let (key, value) = (text::show(&row.key, hex), text::show(&row.value, hex));
            if row.ttl_seconds > 0 {
                format!("{key}\t{value}\t{}\n", row.ttl_seconds)
            } else {
                format!("{key}\t{value}\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_back_as_they_were_written() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let values: [&[u8]; 5] = [
            b"",
            b"plain",
            "grüße\u{85}".as_bytes(),
            b"\t\n\\x41",
            &every_byte,
        ];
        for form in [Rows::Json, Rows::Tsv] {
            for hex in [false, true] {
                for value in values {
                    for ttl_seconds in [0, 60] {
                        let row = Row {
                            key: Bytes::from([b"k", value].concat()),
                            value: Bytes::copy_from_slice(value),
                            ttl_seconds,
                        };
                        let line = write(&row, form, hex);
                        let body = line.strip_suffix('\n').unwrap();
                        assert!(!body.contains('\n'), "{body:?}");
                        assert_eq!(parse(body.as_bytes(), form, hex), Ok(row), "{body:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn row_of_white_space_is_a_row() {
        let row = Row {
            key: Bytes::from_static(b" "),
            value: Bytes::new(),
            ttl_seconds: 0,
        };
        for form in [Rows::Json, Rows::Tsv] {
            let line = write(&row, form, false);
            let line = line.trim_end_matches('\n').as_bytes();
            assert!(!is_blank(line, Some(form)), "{form:?}");
            assert_eq!(parse(line, form, false), Ok(row.clone()));
        }
        assert!(!is_blank(b" \t", None));
        for blank in [&b""[..], b"  "] {
            for form in [None, Some(Rows::Json), Some(Rows::Tsv)] {
                assert!(is_blank(blank, form), "{blank:?} {form:?}");
            }
        }
        assert!(is_blank(b"\t ", Some(Rows::Json)));
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        let json = |line: &str| parse(line.as_bytes(), Rows::Json, false).unwrap_err();
        assert!(json("{").contains("not a JSON object"));
        assert!(json("[1]").contains("not a JSON object"));
        assert!(json(r#"{"key": "k"}"#).contains("no value"));
        assert!(json(r#"{"value": "k"}"#).contains("no key"));
        assert!(json(r#"{"key": "", "value": "v"}"#).contains("empty"));
        assert!(json(r#"{"key": 1, "value": "v"}"#).contains("neither"));
        assert!(json(r#"{"key": {"hex": "0"}, "value": "v"}"#).contains("hexadecimal"));
        assert!(json(r#"{"key": "k", "value": "v", "ttl": -1}"#).contains("ttl"));
        assert!(json(r#"{"key": "k", "value": "v", "tll": 1}"#).contains("tll"));
        let tsv = |line: &str| parse(line.as_bytes(), Rows::Tsv, false).unwrap_err();
        assert!(tsv("k").contains("1 column:"));
        assert!(tsv("k\tv\t1\t2").contains("4 columns"));
        assert!(tsv("\tv").contains("empty"));
        assert!(tsv("k\tv\tsoon").contains("seconds"));
        assert!(tsv("k\\q\tv").contains("no escape"));
        assert!(tsv("k\tv\\").contains("backslash"));
        assert!(tsv("k\tv\\x4").contains("two hexadecimal digits"));
        assert!(
            parse(b"6b\txy", Rows::Tsv, true)
                .unwrap_err()
                .contains("hexadecimal")
        );
    }

    #[test]
    fn the_form_is_known_by_name_or_by_the_first_row() {
        assert_eq!(form_by_name("a/b.TSV"), Some(Rows::Tsv));
        assert_eq!(form_by_name("b.jsonl"), Some(Rows::Json));
        assert_eq!(form_by_name("json"), None);
        assert_eq!(form_by_row(b" {\"key\""), Rows::Json);
        assert_eq!(form_by_row(b"key\tvalue"), Rows::Tsv);
    }
}
