//! The command line of `strata bench`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata bench put --clients 64 --seconds 5
  strata bench get
  strata bench batch-put --clients 16 --batch 64
  strata bench put --rate 2000 --clients 256   a fixed rate, latency from the scheduled time
  strata bench noop                            what this machine could do at best")]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Write random keys; a sample is read back and compared.
    #[command(after_help = "Examples:
  strata bench put
  strata bench put --clients 64 --seconds 30 --value-size 1024
  strata bench put --single-region --format json
  strata bench put --rate 2000

The keys stay in the cluster; they contain `strata-bench-`.")]
    Put(LoadArgs),
    /// Read random keys, which are written before the clock starts; every answer is compared.
    #[command(after_help = "Examples:
  strata bench get
  strata bench get --clients 1 --keys 1000
  strata bench get --target etcd --endpoints 127.0.0.1:22379   the same load on an etcd")]
    Get(LoadArgs),
    /// Write batches of random keys, each of one region; counted in keys. A sample is read
    /// back and compared.
    #[command(after_help = "Examples:
  strata bench batch-put --clients 16
  strata bench batch-put --batch 256 --value-size 1024")]
    BatchPut(BatchArgs),
    /// Read batches of random keys, each of one region; counted in keys. The keys are written
    /// before the clock starts; every answer is compared.
    #[command(after_help = "Examples:
  strata bench batch-get --clients 16
  strata bench batch-get --batch 256 --loaded")]
    BatchGet(BatchArgs),
    /// Scan from random keys of a region; counted in keys. The keys are written before the
    /// clock starts; every answer is compared.
    #[command(after_help = "Examples:
  strata bench scan --clients 16
  strata bench scan --limit 100 --single-region")]
    Scan(ScanArgs),
    /// Iterate over the keys of a kv engine without any server, in one thread: what a scan
    /// is measured against.
    #[command(after_help = "Examples:
  strata bench iterator
  strata bench iterator --limit 100 --seconds 5 --dir /var/tmp")]
    Iterator(IteratorArgs),
    /// Measure the ceiling: a server that answers from constants, on this machine.
    #[command(after_help = "Examples:
  strata bench noop --clients 256")]
    Noop(LoadArgs),
}

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Requests under way at a time; with --rate at most so many.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub clients: u64,
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=8_000_000))]
    pub value_size: u64,
    /// Number of different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,
    /// All keys in one region instead of over all; etcd has no regions.
    #[arg(long)]
    pub single_region: bool,
    /// Whose protocol the endpoints speak.
    #[arg(long, value_enum, default_value_t = Target::Strata)]
    pub target: Target,
    /// Do not write the keys before reads: an earlier run of the same kind with the same
    /// --keys, --value-size and --single-region did.
    #[arg(long)]
    pub loaded: bool,
    /// Connections to each node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub connections: u64,
    /// Threads of the load generator; 0: one for two processors, as many as a node has for its
    /// network.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1024))]
    pub threads: u64,
    /// Requests a second, sent by a schedule over all clients, whether or not earlier ones are
    /// answered. Latency counts from the scheduled time; what no client was free to send by
    /// the end is counted as unsent. Left out: each client sends when it has its answer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// The servers' processes on this machine: reports their CPU time for each operation,
    /// their memory, and what they wrote to disk.
    #[arg(long, value_name = "PID,...", value_delimiter = ',')]
    pub server_pids: Vec<u32>,
}

#[derive(Debug, Clone, Args)]
pub struct BatchArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Keys in each request.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub batch: u64,
}

#[derive(Debug, Clone, Args)]
pub struct ScanArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Keys in each scan.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub limit: u64,
}

#[derive(Debug, Clone, Args)]
pub struct IteratorArgs {
    /// Keys that are visited from each start.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub limit: u64,
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=8_000_000))]
    pub value_size: u64,
    /// Number of different keys; at least --limit.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,
    /// Where the engine's folder is made, and removed at the end; the system's folder for
    /// temporary files unless given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// Whose protocol a load speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// StrataKV: raw keys.
    Strata,
    /// etcd: Put, and linearizable Range of one key.
    Etcd,
}

#[derive(Debug, Args)]
pub struct NoopServerArgs {
    #[arg(long)]
    pub value_size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<BenchCommand, clap::Error> {
        let words = [&["strata", "bench"], words].concat();
        match Cli::try_parse_from(words)?.command {
            Command::Bench(args) => Ok(args.command),
            other => panic!("{other:?} is no benchmark"),
        }
    }

    #[test]
    fn a_load_has_one_connection_to_each_node_and_no_rate_unless_told() {
        let BenchCommand::Put(args) = parse(&["put"]).unwrap() else {
            panic!("not a put");
        };
        assert_eq!((args.connections, args.rate), (1, None));
        let BenchCommand::Put(args) = parse(&["put", "--rate", "2000"]).unwrap() else {
            panic!("not a put");
        };
        assert_eq!(args.rate, Some(2000));
    }

    #[test]
    fn sizes_of_calls_have_bounds() {
        let BenchCommand::BatchPut(args) = parse(&["batch-put", "--clients", "16"]).unwrap() else {
            panic!("not a batch");
        };
        assert_eq!((args.batch, args.load.clients), (64, 16));
        let BenchCommand::Scan(args) = parse(&["scan"]).unwrap() else {
            panic!("not a scan");
        };
        assert_eq!(args.limit, 1000);
        for wrong in [
            &["put", "--rate", "0"][..],
            &["batch-get", "--batch", "0"],
            &["batch-get", "--batch", "1025"],
            &["scan", "--limit", "0"],
            &["iterator", "--limit", "0"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
