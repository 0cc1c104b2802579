//! The words of `strata debug`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata debug region-state --data-dir /data/1
  strata debug checksum --region 2 --data-dir /data/1
  strata debug raft-log --region 2 --limit 20 --data-dir /data/1

The node must be stopped: a folder in use is refused. Nothing in the folder is written.")]
pub struct DebugArgs {
    /// The folder of a stopped node.
    #[arg(long, global = true)]
    pub data_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: DebugCommand,
}

#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Entries of a region's raft log.
    #[command(after_help = "Examples:
  strata debug raft-log --region 2 --data-dir /data/1
  strata debug raft-log --region 2 --from 1000 --limit 10 --format json --data-dir /data/1
  strata debug raft-log --region 2 --hex --data-dir /data/1

Where there is more, the last line on stderr says how to go on.")]
    RaftLog {
        /// The region's id.
        #[arg(long, value_name = "ID")]
        region: u64,
        /// First index; the first of the log unless given.
        #[arg(long, default_value_t = 0, value_name = "INDEX")]
        from: u64,
        /// Most entries to print.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// Keys as hexadecimal digits, and each entry's data in full.
        #[arg(long)]
        hex: bool,
    },
    /// Term, vote, commit and log bounds, of one region or of all.
    #[command(after_help = "Examples:
  strata debug raft-state --data-dir /data/1
  strata debug raft-state --region 2 --format json --data-dir /data/1")]
    RaftState(OneOrAll),
    /// Applied and truncated index and the region's clock, of one region or of all.
    #[command(after_help = "Examples:
  strata debug apply-state --data-dir /data/1
  strata debug apply-state --region 2 --format json --data-dir /data/1")]
    ApplyState(OneOrAll),
    /// Range, epoch, peers and state, of one region or of all; destroyed ones too.
    #[command(after_help = "Examples:
  strata debug region-state --data-dir /data/1
  strata debug region-state --region 2 --hex --data-dir /data/1")]
    RegionState {
        #[command(flatten)]
        which: OneOrAll,
        /// Boundaries are written as hexadecimal digits.
        #[arg(long)]
        hex: bool,
    },
    /// Keys as the engine holds them, expired ones too.
    #[command(after_help = "Examples:
  strata debug keys --data-dir /data/1
  strata debug keys --region 2 --limit 10 --data-dir /data/1
  strata debug keys --cf raft --hex --data-dir /data/1
  strata debug keys --start user/ --end user0 --values --data-dir /data/1

Keys of the families raw and raw2 are written as clients write them. Those of default, lock
and write keep their encoding, API byte and timestamp, those of raft are whole engine keys.
Where there is more, the last line on stderr says how to go on.")]
    Keys {
        /// The column family.
        #[arg(long, value_enum, default_value_t = Family::Raw)]
        cf: Family,
        /// Only what belongs to this region.
        #[arg(long, value_name = "ID")]
        region: Option<u64>,
        /// First key; the first of all unless given.
        #[arg(long, value_name = "KEY")]
        start: Option<String>,
        /// First key behind the range; no bound unless given.
        #[arg(long, value_name = "KEY")]
        end: Option<String>,
        /// Most keys to print.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// With values.
        #[arg(long)]
        values: bool,
        /// Keys and values are written as hexadecimal digits, in and out.
        #[arg(long)]
        hex: bool,
    },
    /// One line `region ID keys N crc64 X`: equal on replicas that applied the same index.
    #[command(after_help = "Examples:
  strata debug checksum --region 2 --data-dir /data/1
  strata debug checksum --data-dir /data/1             all regions of the store

The sum covers what the region holds by its own clock: raw keys that have not expired,
records of transactions, client sessions (in the sum, not in N), and for region 1 the
scheduler's records.")]
    Checksum(OneOrAll),
}

#[derive(Debug, Clone, Copy, Args)]
pub struct OneOrAll {
    /// The region's id; all regions of the store unless given.
    #[arg(long, value_name = "ID")]
    pub region: Option<u64>,
}

/// A column family of the kv engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Raw keys of API v1.
    Raw,
    /// Raw keys of API v2.
    Raw2,
    /// Values of transactions.
    Default,
    /// Locks of transactions.
    Lock,
    /// Commit records of transactions.
    Write,
    /// State records, sessions and the scheduler's records.
    Raft,
}
