//! `strata kv export`: pages of a scan, with times to live, as rows.
//!
//! A scan answers without times to live, so they are asked for key by key, some at a time.
//! A key that is gone by then is left out. Each page is one moment of each region that it
//! reaches; the whole is not. A file is written under another name, synced, and renamed
//! when it is complete, so that a cut export is never taken for a whole one. A device or a
//! pipe is written as it is.

use super::check_range;
use super::import::sync_folder_of;
use super::progress;
use super::rows::{self, Row};
use crate::args::{ExportArgs, Format, Global, Rows};
use crate::connect::connect;
use crate::exit::{Failure, Outcome};
use crate::{output, text};
use bytes::Bytes;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use strata_client::{RawClient, Scan};
use tokio::task::JoinSet;

/// Rows in the first page, of which nothing is known yet.
const PAGE_ROWS_FIRST: usize = 64;
/// Most rows in a page.
const PAGE_ROWS_MAX: usize = 1024;
/// Bytes that a page aims at, by the rows of the page before it.
const PAGE_BYTES: usize = 4 << 20;
/// Times to live that are asked for at a time.
const TTL_REQUESTS_MAX: usize = 64;

/// Exports a range.
pub async fn run(global: &Global, args: &ExportArgs, hex: bool) -> Outcome {
    let start = text::parse(args.start.as_deref().unwrap_or_default(), hex)?;
    let end = text::parse(args.end.as_deref().unwrap_or_default(), hex)?;
    check_range(&start, &end)?;
    let form = args.rows.or(rows::form_by_name(&args.file));
    let form = form.unwrap_or(Rows::Json);
    let client = connect(global).await?;
    let mut target = Target::open(&args.file)?;
    let bar = progress::bar(None);
    let (mut next, mut count) = (start, 0u64);
    let mut limit = PAGE_ROWS_FIRST;
    loop {
        let scan = Scan {
            start: next.clone(),
            end: end.clone(),
            limit: Some(limit),
            ..Scan::default()
        };
        let page = client.scan(scan).await?;
        let full = page.len() == limit;
        limit = page_rows(&page);
        if let Some((last, _)) = page.last() {
            next = [last, &b"\0"[..]].concat().into();
        }
        let ttls = if args.without_ttl {
            page.iter().map(|_| Some(0)).collect()
        } else {
            times_to_live(&client, &page).await?
        };
        let mut lines = String::new();
        for ((key, value), ttl) in page.into_iter().zip(ttls) {
            let Some(ttl_seconds) = ttl else { continue };
            let row = Row {
                key,
                value,
                ttl_seconds,
            };
            lines.push_str(&rows::write(&row, form, hex));
            count += 1;
        }
        target.write(lines.as_bytes())?;
        bar.inc(lines.len() as u64);
        bar.set_message(format!("{count} rows"));
        if !full {
            break;
        }
    }
    bar.finish_and_clear();
    if target.finish()? {
        let line = json!({ "rows": count, "file": args.file });
        return output::print(global.format, &line, || {
            format!("{} exported to {}", output::count(count, "row"), args.file)
        });
    }
    // Stdout holds the rows; what is to be said goes beside them.
    if global.format == Format::Text {
        eprintln!("{} exported", output::count(count, "row"));
    }
    Ok(())
}

/// Rows of the page behind this one.
fn page_rows(page: &[(Bytes, Bytes)]) -> usize {
    let bytes: usize = page
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    let row_bytes = (bytes / page.len().max(1)).max(1);
    (PAGE_BYTES / row_bytes).clamp(1, PAGE_ROWS_MAX)
}

/// What each key of a page has left to live, in seconds; 0: for good, `None`: it is gone.
async fn times_to_live(
    client: &RawClient,
    page: &[(Bytes, Bytes)],
) -> Result<Vec<Option<u64>>, Failure> {
    let mut found = vec![None; page.len()];
    let mut running = JoinSet::new();
    let mut waiting = page.iter().enumerate();
    loop {
        while running.len() < TTL_REQUESTS_MAX {
            let Some((place, (key, _))) = waiting.next() else {
                break;
            };
            let (client, key) = (client.clone(), key.clone());
            running.spawn(async move { (place, client.ttl(&key).await) });
        }
        match running.join_next().await {
            None => return Ok(found),
            Some(Ok((place, ttl))) => found[place] = ttl?,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Where the rows go.
enum Target {
    Stdout,
    /// A device or a pipe: it is written as it is, and keeps its name.
    Device {
        path: PathBuf,
        file: BufWriter<File>,
    },
    File {
        path: PathBuf,
        part: Part,
        file: BufWriter<File>,
    },
}

/// A file that is not complete. Dropping it removes it, unless it has got its name.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // Nothing is lost with it, and it may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Target {
    fn open(name: &str) -> Result<Self, Failure> {
        if name == "-" {
            return Ok(Target::Stdout);
        }
        let path = PathBuf::from(name);
        if std::fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            // A folder is refused here.
            let file = File::options().write(true).open(&path);
            let file = BufWriter::new(file.map_err(|error| cannot_write(&path, &error))?);
            return Ok(Target::Device { path, file });
        }
        let part = PathBuf::from(format!("{name}.part"));
        let file = File::create(&part).map_err(|error| cannot_write(&part, &error))?;
        Ok(Target::File {
            path,
            part: Part(part),
            file: BufWriter::new(file),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome {
        let (path, file) = match self {
            Target::Stdout => return output::write_out(bytes),
            Target::Device { path, file } => (&*path, file),
            Target::File { part, file, .. } => (&part.0, file),
        };
        let written = file.write_all(bytes);
        written.map_err(|error| cannot_write(path, &error))
    }

    /// Gives a complete file its name; true if it was no stdout.
    fn finish(self) -> Result<bool, Failure> {
        match self {
            Target::Stdout => Ok(false),
            Target::Device { path, mut file } => {
                let finished = file.flush();
                finished.map_err(|error| cannot_write(&path, &error))?;
                Ok(true)
            }
            Target::File { path, part, file } => {
                let finished = file
                    .into_inner()
                    .map_err(std::io::IntoInnerError::into_error)
                    .and_then(|file| file.sync_all())
                    .and_then(|()| std::fs::rename(&part.0, &path))
                    .and_then(|()| sync_folder_of(&path));
                finished.map_err(|error| cannot_write(&path, &error))?;
                Ok(true)
            }
        }
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!(
        "{} cannot be written: {error}; name another file, or - for stdout",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_name_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.tsv");
        let name = path.to_str().unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let mut cut = Target::open(name).unwrap();
        cut.write(b"a\t1\n").unwrap();
        assert!(!path.exists());
        assert_eq!(files(), 1);
        drop(cut);
        assert_eq!(files(), 0, "the part is left behind");
        let mut whole = Target::open(name).unwrap();
        whole.write(b"a\t1\n").unwrap();
        assert!(whole.finish().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"a\t1\n");
        assert_eq!(files(), 1);
        assert!(Target::open(folder.path().to_str().unwrap()).is_err());
        assert_eq!(files(), 1);
    }

    /// Behind a link, so that a test that goes wrong replaces the link only.
    #[test]
    fn a_device_stays_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let mut target = Target::open(link.to_str().unwrap()).unwrap();
        target.write(b"a\t1\n").unwrap();
        assert!(target.finish().unwrap());
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn pages_hold_fewer_rows_the_larger_these_are() {
        let page = |bytes: usize| vec![(Bytes::from_static(b"k"), vec![0; bytes].into()); 4];
        assert_eq!(page_rows(&page(100)), PAGE_ROWS_MAX);
        assert_eq!(page_rows(&page((1 << 20) - 1)), 4);
        assert_eq!(page_rows(&page(PAGE_BYTES * 2)), 1);
        assert_eq!(page_rows(&[]), PAGE_ROWS_MAX);
    }
}
