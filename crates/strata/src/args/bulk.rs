//! The words of `strata kv import` and `export`.

use clap::{Args, ValueEnum};

/// How a row is written; one row is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rows {
    /// `{"key": "k", "value": "v", "ttl": 60}`; bytes that are no text: `{"hex": "00ff"}`.
    Json,
    /// Key, value and, where there is one, time to live, with tabs between them.
    Tsv,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata kv import rows.json
  strata kv import rows.tsv --resume
  zcat rows.tsv.gz | strata kv import - --rows tsv

A JSON row is {\"key\": \"k\", \"value\": \"v\", \"ttl\": 60}; ttl, in seconds, may be left out.
Bytes that are no text are {\"hex\": \"00ff\"}. A TSV row is key, tab, value and maybe tab,
seconds, in which \\\\ \\t \\n \\r and \\xNN stand for backslash, tab, end of line and any
byte. With --hex all keys and values are pairs of hexadecimal digits. Empty lines are
skipped; lines may end with \\r\\n. Of two rows with the same key the later one counts.

A bad row ends the import with exit code 3 and names its line; all rows before it are
written, and how far that is stands in FILE.strata-import. With --resume the same command
goes on there. The lines before that must not have changed.")]
pub struct ImportArgs {
    /// The file to read; `-` is stdin.
    pub file: String,
    /// How rows are written; by the file's ending (.json, .jsonl, .tsv) or its first row
    /// unless given.
    #[arg(long, value_enum)]
    pub rows: Option<Rows>,
    /// Go on behind what an earlier run wrote.
    #[arg(long)]
    pub resume: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata kv export rows.json
  strata kv export rows.tsv --start user/ --end user0
  strata kv export --hex --rows tsv | gzip > rows.tsv.gz

Rows are as `strata kv import --help` says, in key order, with the seconds that are left of
a time to live. Keys that are written meanwhile may be there in either state. A file is
made as FILE.part and gets its name when it is complete.")]
pub struct ExportArgs {
    /// The file to write; `-` is stdout.
    #[arg(default_value = "-")]
    pub file: String,
    /// How rows are written; by the file's ending unless given, JSON on stdout.
    #[arg(long, value_enum)]
    pub rows: Option<Rows>,
    /// First key; the first of all unless given.
    #[arg(long, value_name = "KEY")]
    pub start: Option<String>,
    /// First key behind the range; no bound unless given.
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
    /// Do not ask for times to live: faster, and what can expire is written as if it could
    /// not.
    #[arg(long)]
    pub without_ttl: bool,
}
