//! `hot-paths`: runs one hot path a fixed number of times, in one thread.
//!
//! `scripts/hot_paths.py` runs each path under callgrind and compares the instructions of an
//! operation with those of an earlier commit. A count, unlike a time, hardly depends on what
//! else the machine does, so a small loss can be told from noise.
//!
//! List      `hot-paths list` names the paths ([`paths`]), with their number of operations.
//! Set up    `hot-paths run NAME` builds what the path needs and runs it once to warm up.
//! Measure   [`strata_hot_path_measured`] runs it again. Callgrind is told to collect only
//!           within that function, in the thread that calls it, so that neither the set-up nor
//!           RocksDB's own threads count.
//! Check     The path shows that it has done its work; a path that fails at once is fast.
//!
//! Why not two runs of different length, and their difference: that takes twice as long, and
//! what RocksDB's threads do meanwhile is in both and not the same.
//!
//! Invariant: equal builds do equal work. No path looks at a clock or draws at random.

mod cluster;
mod idle;
mod messages;
mod paths;
mod peer_log;
mod raft_group;
mod raft_log;
mod rocks;
mod store;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

use paths::HotPath;

#[derive(Parser)]
#[command(about = "Runs one hot path a fixed number of times, for a count of its instructions")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a line for each path: name, operations, and what an operation is, with tabs
    /// between them
    List,
    /// Run one path
    Run {
        /// The path
        name: String,
        /// An empty folder for those that need a disk
        #[arg(long, value_name = "DIR")]
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Options::parse().command {
        Command::List => {
            for path in &paths::PATHS {
                println!("{}\t{}\t{}", path.name, path.operations, path.operation);
            }
        }
        Command::Run { name, folder } => {
            let path = paths::find(&name)
                .with_context(|| format!("there is no path {name}; see `hot-paths list`"))?;
            let mut work = (path.prepare)(&folder).context("set-up")?;
            work.run(path.operations).context("warm-up")?;
            strata_hot_path_measured(work.as_mut(), path.operations)?;
            work.check(2 * path.operations).context("check")?;
        }
    }
    Ok(())
}

/// What callgrind collects: it knows this function by its name.
// SAFETY: no other function of this program, or of a library in it, has such a name.
#[unsafe(no_mangle)]
#[inline(never)]
fn strata_hot_path_measured(work: &mut dyn HotPath, operations: u64) -> anyhow::Result<()> {
    let done = work.run(operations);
    // Not a tail call, which would leave this function before the work begins.
    std::hint::black_box(done)
}
