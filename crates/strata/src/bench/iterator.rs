//! `strata bench iterator`: a kv engine of its own, written and iterated over in one thread.
//!
//! It shows what a scan could cost at least: the engine of a node with its default settings,
//! the keys and values in the form in which a node keeps them, starts drawn as a scan's are,
//! and nothing around it. Every key and value is compared, as a scan's are.

use super::{Plan, command_line};
use crate::args::{Global, IteratorArgs};
use crate::exit::{Failure, Outcome};
use crate::output;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strata_proto::stratapb::RawSpace;
use strata_storage::keys;
use strata_storage::{
    Direction, Durability, Engine, EngineError, EngineOptions, ReadView, RocksEngine, WriteBatch,
    raw_value,
};

/// Bytes of a batch in which the keys are written.
const BATCH_BYTES: usize = 1 << 20;
const SPACE: RawSpace = RawSpace::RawV1;

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What was visited.
#[derive(Debug, Default, PartialEq, Eq)]
struct Visited {
    scans: u64,
    keys: u64,
    /// Scans that did not show what was written.
    wrong: u64,
}

/// Writes, iterates, prints.
///
/// # Errors
/// A wrong command line for more keys in a scan than there are; exit code 1 for a wrong scan,
/// else an error of the engine or of its folder.
pub fn run(global: &Global, args: &IteratorArgs) -> Outcome {
    crate::processor::check()?;
    if args.keys < args.limit {
        return Err(Failure::CommandLine(format!(
            "--keys {} is less than --limit {}: give at least as many",
            args.keys, args.limit
        )));
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder(parent.join(format!("strata-bench-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).map_err(|error| {
        Failure::error(format!(
            "{} cannot be made: {error}; name another with --dir",
            folder.0.display()
        ))
    })?;
    let engine = RocksEngine::open(&folder.0, &EngineOptions::default())
        .map_err(|error| Failure::error(error.to_string()))?;
    let plan = Plan::without_regions(args.keys, args.value_size);
    fill(&engine, &plan).map_err(|error| Failure::error(error.to_string()))?;
    let started = Instant::now();
    let until = started + Duration::from_secs(args.seconds);
    let visited = iterate(&engine, &plan, args.limit, || Instant::now() < until)
        .map_err(|error| Failure::error(error.to_string()))?;
    let seconds = started.elapsed().as_secs_f64();
    print(global, args, &visited, seconds)?;
    if visited.wrong > 0 {
        return Err(Failure::No(format!(
            "{} scans were not what was written",
            visited.wrong
        )));
    }
    Ok(())
}

fn print(global: &Global, args: &IteratorArgs, visited: &Visited, seconds: f64) -> Outcome {
    let keys_per_second = visited.keys as f64 / seconds.max(f64::EPSILON);
    let row = json!({
        "target": "rocksdb",
        "kind": "iterator",
        "command": command_line(),
        "seconds": seconds,
        "value_size": args.value_size,
        "keys": args.keys,
        "keys_per_call": args.limit,
        "calls": visited.scans,
        "operations": visited.keys,
        "ops_per_second": keys_per_second,
        "wrong_answers": visited.wrong,
    });
    output::print(global.format, &row, || {
        format!(
            "iterator: {keys_per_second:.0} keys/s  {} wrong scans\n\
             {} keys in {} scans in {seconds:.1} s by one thread, values of {} bytes",
            visited.wrong, visited.keys, visited.scans, args.value_size
        )
    })
}

/// Writes all keys of the plan, and makes them durable.
fn fill(engine: &RocksEngine, plan: &Plan) -> Result<(), EngineError> {
    let mut batch = WriteBatch::new();
    for index in 0..plan.keys() {
        let key = keys::raw_key(SPACE, &plan.key(index));
        let value = raw_value::encode(&plan.value(index), None);
        batch.put(keys::raw_cf(SPACE), key, value);
        if batch.approximate_bytes() >= BATCH_BYTES {
            engine.write(&batch, Durability::Unsynced)?;
            batch.clear();
        }
    }
    engine.write(&batch, Durability::Synced)
}

/// Visits `limit` keys from random starts, as long as `go_on` says so.
fn iterate(
    engine: &RocksEngine,
    plan: &Plan,
    limit: u64,
    go_on: impl Fn() -> bool,
) -> Result<Visited, EngineError> {
    let mut random = ChaCha8Rng::seed_from_u64(limit);
    let mut visited = Visited::default();
    while go_on() {
        let first = random.random_range(0..=plan.keys() - limit);
        let start = keys::raw_key(SPACE, &plan.key(first));
        let mut index = first;
        let mut right = true;
        let cf = keys::raw_cf(SPACE);
        engine.scan(cf, &start, None, Direction::Forward, &mut |key, value| {
            let key = keys::parse_raw_key(SPACE, key);
            let value = raw_value::decode(value).ok().map(|decoded| decoded.value);
            right &= key.as_deref() == Some(&plan.key(index)[..]);
            right &= value == Some(&plan.value(index)[..]);
            index += 1;
            if index == first + limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        visited.scans += 1;
        visited.keys += index - first;
        visited.wrong += u64::from(!right || index != first + limit);
    }
    Ok(visited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn open(folder: &std::path::Path) -> RocksEngine {
        RocksEngine::open(folder, &EngineOptions::default()).unwrap()
    }

    fn times(count: u64) -> impl Fn() -> bool {
        let left = Cell::new(count);
        move || {
            let go_on = left.get() > 0;
            left.set(left.get().saturating_sub(1));
            go_on
        }
    }

    #[test]
    fn each_scan_shows_what_was_written_and_a_missing_key_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let engine = open(folder.path());
        let plan = Plan::without_regions(50, 16);
        fill(&engine, &plan).unwrap();
        let visited = iterate(&engine, &plan, 50, times(3)).unwrap();
        let expected = Visited {
            scans: 3,
            keys: 150,
            wrong: 0,
        };
        assert_eq!(visited, expected);
        let mut batch = WriteBatch::new();
        batch.delete(keys::raw_cf(SPACE), keys::raw_key(SPACE, &plan.key(20)));
        engine.write(&batch, Durability::Unsynced).unwrap();
        assert_eq!(iterate(&engine, &plan, 50, times(3)).unwrap().wrong, 3);
    }
}
