//! The command line of `strata check`.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata check                                   8 clients for 30 seconds
  strata check --clients 16 --seconds 60 --history run.jsonl
  strata check --verify run.jsonl                judge a recorded history, without a cluster

Clients put, get, delete, append, compare and swap, scan, write batches and remove ranges on
keys of their own that all of them share, in up to eight regions; then the history is judged.
Meanwhile all stores are asked who leads, and no region may have two leaders in one term. At the
end the replicas of each region must come to hold the same within 10 seconds: the check's keys,
and all others where nobody else writes. The keys contain `strata-check-` and are removed. Nodes
may be killed, cut off or restarted meanwhile; what was found by then is said in any case.

Exit codes: 0 linearizable and nothing else found; 1 not linearizable, two leaders in a term, or
replicas that differ; 2 the command line is wrong; 3 not decided, replicas that could not be
compared, or an error.")]
pub struct CheckArgs {
    /// Clients that work side by side.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub clients: u64,
    /// How long they work.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Seed of what the clients choose; another one each time unless given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Write the history to a file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// Judge the history in a file instead of a cluster. Operations that were not finished
    /// count as maybe done; a file that was cut short is refused.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["clients", "seconds", "seed", "history"])]
    pub verify: Option<PathBuf>,
}
