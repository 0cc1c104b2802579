//! A progress bar on stderr, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

const BYTES: &str = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";
const BYTES_OPEN: &str = "{spinner} {bytes}  {bytes_per_sec}  {msg}";

/// A bar over bytes that are read or written; without a total where that is not known.
/// Hidden unless stderr is a terminal.
pub fn bar(bytes_total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes_total {
        Some(total) => (ProgressBar::new(total), BYTES),
        None => (ProgressBar::new_spinner(), BYTES_OPEN),
    };
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
