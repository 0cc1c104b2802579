//! `strata kv import`: rows of a file as batches of puts.
//!
//! Read       Lines are parsed one after the other and collected into a batch. A batch is
//!            full by rows or bytes, and ends before a key that it holds already: its parts
//!            go out side by side, and the later row must win.
//! Write      Each batch is written whole before the next one is read. Puts leave the same
//!            state when repeated, so a batch whose outcome is unknown may run again.
//! Note       After each batch `FILE.strata-import` says how many lines are written, with
//!            the checksum of those lines; it is synced before it gets its name. It goes
//!            when the import is complete.
//! Bad row    What was collected before it is written and noted, then the line is named. A
//!            row that the store refuses is found by writing its batch row by row.
//! Resume     The noted lines are read again and skipped, if their checksum is still the
//!            noted one; else nothing is written.

use super::progress;
use super::rows::{self, Row};
use crate::args::{Global, ImportArgs, Rows};
use crate::connect::connect;
use crate::exit::{Failure, Outcome};
use crate::output;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use strata_client::{Error, RawClient};

/// Rows in a batch.
const BATCH_ROWS_MAX: usize = 4096;
/// Bytes of keys and values after which a batch is full.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Longest line. The largest value, every byte escaped, is shorter.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// What is written so far, counted from the file's beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    /// Lines, empty ones too.
    lines: u64,
    /// Rows among them.
    rows: u64,
    /// CRC-32 (IEEE) of these lines with their ends.
    crc32: u32,
}

/// Imports a file.
pub async fn run(global: &Global, args: &ImportArgs, hex: bool) -> Outcome {
    let note = Note::beside(&args.file);
    if args.resume && note.is_none() {
        return Err(Failure::CommandLine(
            "--resume needs a file: stdin cannot be read again from its beginning".into(),
        ));
    }
    let mut lines = Lines::open(&args.file)?;
    let resumed = match &note {
        Some(note) if args.resume => note.read()?,
        _ => Written::default(),
    };
    lines.skip(&resumed)?;
    let client = connect(global).await?;
    let form = args.rows.or(rows::form_by_name(&args.file));
    let mut import = Import {
        client,
        note,
        file: args.file.clone(),
        bar: lines.bar.clone(),
        written: resumed.clone(),
        batch: Batch::default(),
    };
    let result = import.all(&mut lines, form, hex).await;
    import.bar.finish_and_clear();
    result?;
    if let Some(note) = &import.note {
        note.remove()?;
    }
    let rows = import.written.rows - resumed.rows;
    let line = json!({ "rows": rows, "resumed_after_line": resumed.lines });
    let imported = output::count(rows, "row");
    output::print(global.format, &line, || match resumed.lines {
        0 => format!("{imported} imported"),
        skipped => format!("{imported} imported behind line {skipped}"),
    })
}

/// Lines of a file or of stdin, with their number and the checksum up to them.
struct Lines {
    name: String,
    input: Box<dyn BufRead>,
    bar: ProgressBar,
    number: u64,
    crc32: crc32fast::Hasher,
}

impl Lines {
    fn open(name: &str) -> Result<Self, Failure> {
        let (input, bytes): (Box<dyn BufRead>, _) = if name == "-" {
            (Box::new(BufReader::new(std::io::stdin())), None)
        } else {
            let cannot =
                |error: std::io::Error| Failure::error(format!("{name} cannot be read: {error}"));
            let file = File::open(name).map_err(cannot)?;
            let bytes = file.metadata().map_err(cannot)?.len();
            (
                Box::new(BufReader::with_capacity(1 << 20, file)),
                Some(bytes),
            )
        };
        Ok(Self {
            name: name.to_string(),
            input,
            bar: progress::bar(bytes),
            number: 0,
            crc32: crc32fast::Hasher::new(),
        })
    }

    /// The next line without its end; `None` behind the last one.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = Vec::new();
        let mut limited = (&mut self.input).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        let number = self.number + 1;
        let read = read.map_err(|error| {
            Failure::error(format!(
                "{} cannot be read at line {number}: {error}",
                self.name
            ))
        })?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            return Err(Failure::error(format!(
                "{} line {number}: longer than {LINE_BYTES_MAX} bytes; is it a file of rows?",
                self.name
            )));
        }
        self.number = number;
        self.crc32.update(&line);
        self.bar.inc(read as u64);
        if line.ends_with(b"\n") {
            line.pop();
        }
        if line.ends_with(b"\r") {
            line.pop();
        }
        Ok(Some(line))
    }

    fn crc32(&self) -> u32 {
        self.crc32.clone().finalize()
    }

    /// Reads what an earlier run wrote, and checks that it is the same.
    fn skip(&mut self, written: &Written) -> Outcome {
        let mut there = true;
        while self.number < written.lines && there {
            there = self.next()?.is_some();
        }
        if self.number < written.lines || self.crc32() != written.crc32 {
            return Err(Failure::error(format!(
                "{}: its first {} lines are not those that were imported; import it without --resume",
                self.name, written.lines
            )));
        }
        Ok(())
    }
}

/// Rows that wait to be written.
#[derive(Default)]
struct Batch {
    rows: Vec<(u64, Row)>,
    keys: BTreeSet<Bytes>,
    bytes: usize,
}

impl Batch {
    fn is_full_for(&self, row: &Row) -> bool {
        self.rows.len() >= BATCH_ROWS_MAX
            || self.bytes >= BATCH_BYTES_MAX
            || self.keys.contains(&row.key)
    }

    fn push(&mut self, line: u64, row: Row) {
        self.bytes += row.key.len() + row.value.len();
        self.keys.insert(row.key.clone());
        self.rows.push((line, row));
    }
}

struct Import {
    client: RawClient,
    note: Option<Note>,
    file: String,
    bar: ProgressBar,
    /// What is written and noted.
    written: Written,
    batch: Batch,
}

impl Import {
    async fn all(&mut self, lines: &mut Lines, form: Option<Rows>, hex: bool) -> Outcome {
        let mut form = form;
        // The state as of the line before the one that is looked at.
        let mut before = (lines.number, lines.crc32());
        while let Some(line) = lines.next()? {
            if !rows::is_blank(&line, form) {
                let form = *form.get_or_insert_with(|| rows::form_by_row(&line));
                let row = match rows::parse(&line, form, hex) {
                    Ok(row) => row,
                    Err(reason) => {
                        self.write(before).await?;
                        return Err(self.bad_row(lines.number, &reason, self.written.rows));
                    }
                };
                if self.batch.is_full_for(&row) {
                    self.write(before).await?;
                }
                self.batch.push(lines.number, row);
            }
            before = (lines.number, lines.crc32());
        }
        self.write(before).await
    }

    /// Writes the batch, which holds the rows up to the line `upto`, and notes it.
    async fn write(&mut self, (upto, crc32): (u64, u32)) -> Outcome {
        let batch = std::mem::take(&mut self.batch);
        let mut by_ttl: BTreeMap<u64, Vec<(Bytes, Bytes)>> = BTreeMap::new();
        for (_, row) in &batch.rows {
            let pairs = by_ttl.entry(row.ttl_seconds).or_default();
            pairs.push((row.key.clone(), row.value.clone()));
        }
        for (ttl, pairs) in by_ttl {
            match self.client.batch_put(pairs, ttl).await {
                Ok(()) => {}
                Err(Error::Refused { .. } | Error::EntryTooLarge { .. }) => {
                    return self.find_refused(batch).await;
                }
                Err(error) => return Err(self.stopped(&error)),
            }
        }
        self.written.rows += batch.rows.len() as u64;
        self.written.lines = upto;
        self.written.crc32 = crc32;
        self.bar.set_message(format!("{} rows", self.written.rows));
        self.save()
    }

    /// Writes row by row up to the one that the store refuses.
    async fn find_refused(&mut self, batch: Batch) -> Outcome {
        for (rows, (line, row)) in (self.written.rows..).zip(batch.rows) {
            let ttl_seconds = row.ttl_seconds;
            let put = self.client.put_with_ttl(&row.key, row.value, ttl_seconds);
            match put.await {
                Ok(()) => {}
                Err(error @ (Error::Refused { .. } | Error::EntryTooLarge { .. })) => {
                    return Err(self.bad_row(line, &error.to_string(), rows));
                }
                Err(error) => return Err(self.stopped(&error)),
            }
        }
        Err(Failure::error(format!(
            "{}: the store refused a batch of rows and none of them alone{}",
            self.file,
            self.way_on("run")
        )))
    }

    fn save(&self) -> Outcome {
        match &self.note {
            Some(note) => note.write(&self.written),
            None => Ok(()),
        }
    }

    /// `rows`: rows before the bad one, all of them written.
    fn bad_row(&self, line: u64, reason: &str, rows: u64) -> Failure {
        Failure::error(format!(
            "{} line {line}: {reason}; written before it: {}{}",
            self.file,
            output::count(rows, "row"),
            self.way_on("mend the line and run")
        ))
    }

    fn stopped(&self, error: &Error) -> Failure {
        Failure::error(format!(
            "{}: {error}; the first {} lines are written, some behind them may be{}",
            self.file,
            self.written.lines,
            self.way_on("run")
        ))
    }

    fn way_on(&self, what: &str) -> String {
        match &self.note {
            Some(_) => format!("; {what} again with --resume"),
            None => String::new(),
        }
    }
}

/// The file that says how far an import came.
struct Note {
    path: PathBuf,
}

impl Note {
    /// The note of a file; stdin has none.
    fn beside(file: &str) -> Option<Self> {
        (file != "-").then(|| Self {
            path: PathBuf::from(format!("{file}.strata-import")),
        })
    }

    /// What is noted; nothing where there is no note.
    fn read(&self) -> Result<Written, Failure> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Written::default());
            }
            Err(error) => return Err(self.failure("read", &error)),
        };
        serde_json::from_slice(&text).map_err(|error| {
            Failure::error(format!(
                "{} is not the note of an import ({error}); remove it, and import without --resume",
                self.path.display()
            ))
        })
    }

    fn write(&self, written: &Written) -> Outcome {
        let temporary = self.path.with_extension("strata-import.tmp");
        let save = || {
            let mut file = File::create(&temporary)?;
            file.write_all(format!("{}\n", json!(written)).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            sync_folder_of(&self.path)
        };
        save().map_err(|error: std::io::Error| self.failure("written", &error))
    }

    fn remove(&self) -> Outcome {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.failure("removed", &error))
            }
            _ => Ok(()),
        }
    }

    fn failure(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::error(format!(
            "{} cannot be {what}: {error}; it notes how far the import is",
            self.path.display()
        ))
    }
}

pub(super) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &'static str, value: usize) -> Row {
        Row {
            key: Bytes::from_static(key.as_bytes()),
            value: vec![b'v'; value].into(),
            ttl_seconds: 0,
        }
    }

    #[test]
    fn a_batch_ends_before_a_key_that_it_holds() {
        let mut batch = Batch::default();
        assert!(!batch.is_full_for(&row("a", 1)));
        batch.push(1, row("a", 1));
        assert!(batch.is_full_for(&row("a", 2)));
        assert!(!batch.is_full_for(&row("b", 2)));
        batch.push(2, row("b", BATCH_BYTES_MAX));
        assert!(batch.is_full_for(&row("c", 1)));
    }

    #[test]
    fn noted_lines_are_skipped_only_if_they_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.tsv");
        let name = path.to_str().unwrap();
        std::fs::write(&path, "a\t1\r\n\nb\t2").unwrap();
        let mut lines = Lines::open(name).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), b"a\t1");
        assert_eq!(lines.next().unwrap().unwrap(), b"");
        let written = Written {
            lines: 2,
            rows: 1,
            crc32: lines.crc32(),
        };
        let note = Note::beside(name).unwrap();
        assert_eq!(note.read().unwrap(), Written::default());
        note.write(&written).unwrap();
        assert_eq!(note.read().unwrap(), written);

        let mut again = Lines::open(name).unwrap();
        again.skip(&written).unwrap();
        assert_eq!(again.next().unwrap().unwrap(), b"b\t2");
        assert_eq!(again.next().unwrap(), None);
        for changed in ["x\t1\r\n\nb\t2", "a\t1\r\n"] {
            std::fs::write(&path, changed).unwrap();
            let mut lines = Lines::open(name).unwrap();
            assert!(lines.skip(&written).is_err(), "{changed:?}");
        }
        note.remove().unwrap();
        note.remove().unwrap();
    }
}
