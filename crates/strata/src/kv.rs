//! `strata kv`: raw operations.

mod export;
mod import;
mod progress;
pub mod rows;

use crate::args::{Format, Global, KvArgs, KvCommand};
use crate::connect::connect;
use crate::exit::{Failure, Outcome};
use crate::{output, text};
use bytes::Bytes;
use serde_json::json;
use std::io::Read;
use std::path::Path;
use strata_client::Scan;
use strata_client::clerk::Clerk;

/// Runs one operation.
pub async fn run(global: &Global, args: KvArgs) -> Outcome {
    let hex = args.hex;
    match args.command {
        KvCommand::Get { key } => get(global, &text::parse(&key, hex)?, hex).await,
        KvCommand::Put {
            key,
            value,
            file,
            ttl,
        } => {
            let key = checked(&key, hex)?;
            let value = read_value(value.as_deref(), file.as_deref(), hex)?;
            clerk(global).await?.put_with_ttl(&key, value, ttl).await?;
            done(global)
        }
        KvCommand::Append { key, value, file } => {
            let key = checked(&key, hex)?;
            let value = read_value(value.as_deref(), file.as_deref(), hex)?;
            clerk(global).await?.append(&key, value).await?;
            done(global)
        }
        KvCommand::Delete { key } => {
            let key = checked(&key, hex)?;
            clerk(global).await?.delete(&key).await?;
            done(global)
        }
        KvCommand::Scan {
            start,
            end,
            limit,
            reverse,
            keys_only,
        } => {
            let scan = Scan {
                start: text::parse(start.as_deref().unwrap_or_default(), hex)?,
                end: text::parse(end.as_deref().unwrap_or_default(), hex)?,
                limit,
                reverse,
                keys_only,
            };
            print_scan(global, scan, hex).await
        }
        KvCommand::DeleteRange { start, end } => {
            let start = text::parse(&start, hex)?;
            let end = text::parse(&end, hex)?;
            check_range(&start, &end)?;
            connect(global).await?.delete_range(&start, &end).await?;
            done(global)
        }
        KvCommand::Cas {
            key,
            old,
            absent: _,
            new,
        } => {
            let key = checked(&key, hex)?;
            let old = old.map(|word| text::parse(&word, hex)).transpose()?;
            let new = text::parse(&new, hex)?;
            cas(global, &key, old, new, hex).await
        }
        KvCommand::Import(args) => import::run(global, &args, hex).await,
        KvCommand::Export(args) => export::run(global, &args, hex).await,
    }
}

/// Writes of single keys are executed once, however often they have to be sent.
async fn clerk(global: &Global) -> Result<Clerk, Failure> {
    Ok(Clerk::new(connect(global).await?))
}

async fn get(global: &Global, key: &[u8], hex: bool) -> Outcome {
    if key.is_empty() {
        return Err(empty_key());
    }
    let value = connect(global).await?.get(key).await?;
    let found = value.is_some();
    if global.format == Format::Json {
        let value = value.map(|value| text::to_json(&value, hex));
        let line = json!({ "key": text::to_json(key, hex), "found": found, "value": value });
        output::print(global.format, &line, String::new)?;
        return if found {
            Ok(())
        } else {
            Err(Failure::Silent(1))
        };
    }
    match value {
        Some(value) if hex => output::write_out(format!("{}\n", text::hex(&value)).as_bytes()),
        Some(value) => {
            // The bytes as they are, so that a value can be piped on.
            let mut line = value.to_vec();
            line.push(b'\n');
            output::write_out(&line)
        }
        None => Err(Failure::No(format!(
            "key {} is absent",
            text::show(key, hex)
        ))),
    }
}

async fn print_scan(global: &Global, scan: Scan, hex: bool) -> Outcome {
    check_range(&scan.start, &scan.end)?;
    let client = connect(global).await?;
    let keys_only = scan.keys_only;
    let mut printed = Ok(());
    client
        .scan_each(scan, |key, value| {
            if printed.is_err() {
                return;
            }
            let mut row = json!({ "key": text::to_json(&key, hex) });
            if !keys_only {
                row["value"] = text::to_json(&value, hex);
            }
            printed = output::print(global.format, &row, || {
                if keys_only {
                    text::show(&key, hex)
                } else {
                    format!("{}\t{}", text::show(&key, hex), text::show(&value, hex))
                }
            });
        })
        .await?;
    printed
}

async fn cas(global: &Global, key: &[u8], old: Option<Bytes>, new: Bytes, hex: bool) -> Outcome {
    let swapped = clerk(global).await?.compare_and_swap(key, old, new).await?;
    let previous = swapped.previous.as_ref();
    let line = json!({
        "succeeded": swapped.succeeded,
        "previous": previous.map(|value| text::to_json(value, hex)),
    });
    if swapped.succeeded {
        return output::print(global.format, &line, || "ok".into());
    }
    if global.format == Format::Json {
        output::print(global.format, &line, String::new)?;
        return Err(Failure::Silent(1));
    }
    Err(Failure::No(match previous {
        Some(value) => format!("not written: the key holds {}", text::show(value, hex)),
        None => "not written: the key is absent".into(),
    }))
}

fn done(global: &Global) -> Outcome {
    output::print(global.format, &json!({ "ok": true }), || "ok".into())
}

fn empty_key() -> Failure {
    Failure::error("the key is empty: name one of at least one byte")
}

/// A key that may be written.
fn checked(word: &str, hex: bool) -> Result<Bytes, Failure> {
    let key = text::parse(word, hex)?;
    if key.is_empty() {
        return Err(empty_key());
    }
    Ok(key)
}

fn check_range(start: &Bytes, end: &Bytes) -> Outcome {
    if !end.is_empty() && end < start {
        return Err(Failure::error(
            "END lies before START: swap them (with --reverse too, START is the lower one)",
        ));
    }
    Ok(())
}

/// The value from the command line, from stdin (`-`) or from a file. What is read is
/// taken as it is, without decoding.
fn read_value(word: Option<&str>, file: Option<&Path>, hex: bool) -> Result<Bytes, Failure> {
    if let Some(path) = file {
        let value = std::fs::read(path).map_err(|error| {
            Failure::error(format!("{} cannot be read: {error}", path.display()))
        })?;
        return Ok(value.into());
    }
    match word {
        Some("-") => {
            let mut value = Vec::new();
            std::io::stdin()
                .read_to_end(&mut value)
                .map_err(|error| Failure::error(format!("stdin cannot be read: {error}")))?;
            Ok(value.into())
        }
        word => text::parse(word.unwrap_or_default(), hex),
    }
}
