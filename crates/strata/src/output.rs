//! Tables for people, JSON for programs.

use crate::args::Format;
use crate::exit::{Failure, Outcome};
use serde_json::Value;
use std::io::Write;

/// Prints one JSON value a line, or the text that `text` makes.
///
/// # Errors
/// When stdout cannot be written; a reader that closed the pipe is no error.
pub fn print(format: Format, json: &Value, text: impl FnOnce() -> String) -> Outcome {
    let line = match format {
        Format::Json => json.to_string(),
        Format::Text => text(),
    };
    write_out(format!("{line}\n").as_bytes())
}

/// Writes bytes to stdout.
///
/// # Errors
/// As [`print()`].
pub fn write_out(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Silent(0)),
        Err(error) => Err(Failure::error(format!("stdout cannot be written: {error}"))),
    }
}

/// Columns as wide as their widest cell; the last line has no end of line. What a terminal
/// would obey is shown as a replacement character: cells may hold a server's words.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let plain = |cell: &String| cell.replace(char::is_control, "\u{fffd}");
    let plain_row = |row: &Vec<String>| row.iter().map(plain).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(plain_row).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        line.trim_end().to_string()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| line(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}

/// A number with its noun: `1 row`, `2 rows`.
pub fn count(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// Bytes in the largest unit that leaves at least one.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["1".into(), "up".into()],
            vec!["100".into(), "ä".into()],
        ];
        assert_eq!(
            table(&["id", "state"], &rows),
            "id   state\n1    up\n100  ä"
        );
    }

    #[test]
    fn a_cell_says_nothing_to_a_terminal() {
        let rows = vec![vec!["\u{1b}[2J\nup".into()]];
        assert_eq!(table(&["x"], &rows), "x\n\u{fffd}[2J\u{fffd}up");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
