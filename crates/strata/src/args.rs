//! The command line: words, flags, defaults, examples. No logic.

mod bench;
mod bulk;
mod check;
mod debug;
mod sim;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

pub use bench::{BenchArgs, BenchCommand, IteratorArgs, LoadArgs, NoopServerArgs, Target};
pub use bulk::{ExportArgs, ImportArgs, Rows};
pub use check::CheckArgs;
pub use debug::{DebugArgs, DebugCommand, Family};
pub use sim::SimArgs;

/// A replicated, TiKV-compatible key-value store.
#[derive(Debug, Parser)]
#[command(
    name = "strata",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  strata up                          start a cluster of three nodes on this machine
  strata kv put greeting hello       write a key
  strata kv get greeting             read it
  strata status                      stores, leaders, regions, health

Exit codes: 0 done; 1 the answer is no, such as a key that is absent; 2 the command line is
wrong; 3 anything else. What went wrong is one line on stderr."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command, before or after its name.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Any node or nodes of the cluster, HOST:PORT,...; asked in this order until one answers,
    /// unless given those of `strata up`
    #[arg(
        long,
        global = true,
        env = "STRATA_ENDPOINTS",
        default_value = "127.0.0.1:2379,127.0.0.1:2380,127.0.0.1:2381",
        value_delimiter = ',',
        value_name = "HOST:PORT,..."
    )]
    pub endpoints: Vec<String>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Longest time for one operation, in seconds.
    #[arg(long, global = true, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: f64,
}

fn seconds(word: &str) -> Result<f64, String> {
    match word.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(value),
        _ => Err("give seconds between 0 and 86400".into()),
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: JSON, one value a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a local cluster of real processes in the foreground.
    Up(UpArgs),
    /// Run one storage node.
    Node(NodeArgs),
    /// Read and write raw keys.
    Kv(KvArgs),
    /// Stores, leaders, regions and health of the cluster.
    #[command(after_help = "Examples:
  strata status
  strata --endpoints 10.0.0.1:2379 status --format json")]
    Status,
    /// Look at regions and operate them.
    Region(RegionArgs),
    /// Look at stores.
    Store(StoreArgs),
    /// Measure the cluster.
    Bench(BenchArgs),
    /// Check that the cluster is linearizable, under a concurrent load.
    Check(CheckArgs),
    /// Look into the folder of a stopped node.
    Debug(DebugArgs),
    /// Simulate whole clusters under faults and check what their clients saw.
    Sim(SimArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:
  strata completions bash > /etc/bash_completion.d/strata
  strata completions zsh > ~/.zfunc/_strata
  strata completions fish > ~/.config/fish/completions/strata.fish")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write a page for each command.
    #[command(after_help = "Examples:
  strata man | man -l -
  strata man --dir /usr/local/share/man/man1")]
    Man {
        /// Write the pages of all commands into this folder.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// The server that `bench noop` measures.
    #[command(hide = true)]
    NoopServer(NoopServerArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata up                                   three nodes on ports 2379 to 2381, data in ./strata-data
  strata up --nodes 5 --replicas 5 --data-dir /var/tmp/five
  strata up --regions 100 --port 12379

Ctrl-C stops the cluster; the same command on the same folder resumes it.")]
pub struct UpArgs {
    /// Number of nodes; 3 for a new folder, else as the folder has it.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    pub nodes: Option<u64>,
    /// Replicas of each region: 1, 3 or 5; the largest of 1, 3 that fits unless given.
    #[arg(long, value_parser = replicas)]
    pub replicas: Option<u64>,
    /// Number of regions, 6 to 10000; 6 for a new folder.
    #[arg(long, value_parser = clap::value_parser!(u64).range(REGIONS_RANGE))]
    pub regions: Option<u64>,
    /// Port of the first node; node i listens on this one plus i - 1.
    #[arg(long, default_value_t = 2379, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Where the nodes keep their data, node i in node-i.
    #[arg(long, default_value = "strata-data")]
    pub data_dir: PathBuf,
}

/// Most nodes of a local cluster.
pub const NODES_MAX: u64 = 100;
/// Replicas that a region may have.
pub const REPLICAS: [u64; 3] = [1, 3, 5];
/// Regions that a new cluster may have.
pub const REGIONS_RANGE: std::ops::RangeInclusive<u64> = 6..=10_000;

fn replicas(word: &str) -> Result<u64, String> {
    match word.parse() {
        Ok(number) if REPLICAS.contains(&number) => Ok(number),
        _ => Err("give 1, 3 or 5".into()),
    }
}

fn member(word: &str) -> Result<(u64, String), String> {
    let (id, address) = word.split_once('=').ok_or("write ID=HOST:PORT")?;
    match id.trim().parse::<u64>() {
        Ok(id) if id > 0 => Ok((id, address.trim().to_string())),
        _ => Err(format!("{id:?} is not an id: write ID=HOST:PORT")),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata node --id 1 --addr 127.0.0.1:2379 --data-dir /data/1 \\
      --initial-cluster 1=127.0.0.1:2379,2=127.0.0.1:2380,3=127.0.0.1:2381
  strata node --id 1 --addr 0.0.0.0:2379 --advertise-addr node1.example:2379 --data-dir /data/1 \\
      --initial-cluster 1=node1.example:2379 --config strata.toml")]
pub struct NodeArgs {
    /// The store's id in its cluster.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Where the node listens: one port for gRPC and HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    pub addr: String,
    /// Where the node keeps its data.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The nodes that found the cluster, this one among them.
    #[arg(long, value_name = "1=HOST:PORT,...", value_delimiter = ',', required = true, value_parser = member)]
    pub initial_cluster: Vec<(u64, String)>,
    /// Tells apart clusters founded by the same nodes; `strata` unless given.
    #[arg(long)]
    pub cluster_token: Option<String>,
    /// Number of regions of a new cluster, 6 to 10000; 6 unless given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(REGIONS_RANGE))]
    pub regions: Option<u64>,
    /// Replicas of each region: 1, 3 or 5; the largest of 1, 3 that fits unless given.
    #[arg(long, value_parser = replicas)]
    pub replicas: Option<u64>,
    /// Where others reach the node, if not at --addr.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// Settings in TOML; STRATA_SECTION_KEY variables win over it.
    #[arg(long)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata kv put greeting hello
  strata kv get greeting
  strata kv scan --hex --limit 10

Each operation has examples of its own: strata kv put --help")]
pub struct KvArgs {
    /// Keys and values are written as hexadecimal digits, in and out.
    #[arg(long, global = true)]
    pub hex: bool,
    #[command(subcommand)]
    pub command: KvCommand,
}

#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key; exit code 1 if it is absent.
    #[command(after_help = "Examples:
  strata kv get greeting
  strata kv get --hex 00ff")]
    Get {
        /// The key, as text or with --hex.
        key: String,
    },
    /// Write a key.
    #[command(
        override_usage = "strata kv put [OPTIONS] <KEY> <VALUE|-|--file FILE>",
        group = ArgGroup::new("source").required(true).args(["value", "file"]),
        after_help = "Examples:
  strata kv put greeting hello
  date | strata kv put today -
  strata kv put picture --file picture.png
  strata kv put session abc --ttl 60"
    )]
    Put {
        /// The key, as text or with --hex.
        key: String,
        /// The value; `-` reads it from stdin, as it is.
        #[arg(allow_negative_numbers = true)]
        value: Option<String>,
        /// Read the value from a file, as it is.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Seconds after which the key expires; 0: never.
        #[arg(long, default_value_t = 0)]
        ttl: u64,
    },
    /// Append to the value of a key, once; an absent key is written. Keeps its expiry.
    #[command(
        override_usage = "strata kv append [OPTIONS] <KEY> <VALUE|-|--file FILE>",
        group = ArgGroup::new("appended").required(true).args(["value", "file"]),
        after_help = "Examples:
  strata kv append journal 'one more line'
  date | strata kv append journal -
  strata kv append --hex 00ff 0a"
    )]
    Append {
        /// The key, as text or with --hex.
        key: String,
        /// What is appended; `-` reads it from stdin, as it is.
        #[arg(allow_negative_numbers = true)]
        value: Option<String>,
        /// Read what is appended from a file, as it is.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Remove a key.
    #[command(after_help = "Examples:
  strata kv delete greeting")]
    Delete {
        /// The key, as text or with --hex.
        key: String,
    },
    /// Print the pairs with START ≤ key < END.
    #[command(after_help = "Examples:
  strata kv scan                       all pairs
  strata kv scan user/ user0 --limit 10
  strata kv scan --reverse --limit 1   the last pair
  strata kv scan a b --keys-only --format json")]
    Scan {
        /// First key; the first of all unless given.
        start: Option<String>,
        /// First key behind the range; no bound unless given.
        end: Option<String>,
        /// Most pairs to print.
        #[arg(long)]
        limit: Option<usize>,
        /// In descending order.
        #[arg(long)]
        reverse: bool,
        /// Without values.
        #[arg(long)]
        keys_only: bool,
    },
    /// Remove all keys with START ≤ key < END.
    #[command(after_help = "Examples:
  strata kv delete-range user/ user0")]
    DeleteRange {
        /// First key to remove.
        start: String,
        /// First key behind the range; empty: no bound.
        end: String,
    },
    /// Write a key if it holds what is expected; exit code 1 if it does not.
    #[command(
        override_usage = "strata kv cas [OPTIONS] <KEY> <--old V|--absent> --new V",
        group = ArgGroup::new("expected").required(true).args(["old", "absent"]),
        after_help = "Examples:
  strata kv cas lock --absent --new me
  strata kv cas counter --old 1 --new 2"
    )]
    Cas {
        /// The key, as text or with --hex.
        key: String,
        /// The value that the key must hold.
        #[arg(long, value_name = "V", allow_negative_numbers = true)]
        old: Option<String>,
        /// The key must be absent.
        #[arg(long)]
        absent: bool,
        /// The value to write.
        #[arg(long, value_name = "V", allow_negative_numbers = true)]
        new: String,
    },
    /// Write the keys of a file, a row a line.
    Import(ImportArgs),
    /// Write keys and values to a file, a row a line.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata region list
  strata region show 2
  strata region transfer-leader 2 --to 3")]
pub struct RegionArgs {
    #[command(subcommand)]
    pub command: RegionCommand,
}

#[derive(Debug, Subcommand)]
pub enum RegionCommand {
    /// All regions in key order.
    #[command(after_help = "Examples:
  strata region list
  strata region list --format json")]
    List,
    /// One region, with what each of its stores says of its replica.
    #[command(after_help = "Examples:
  strata region show 2
  strata region show 2 --format json")]
    Show {
        /// Its id.
        id: u64,
    },
    /// The region that holds a key.
    #[command(after_help = "Examples:
  strata region find greeting
  strata region find --hex 00ff")]
    Find {
        /// The key, as text or with --hex.
        key: String,
        /// The key is written as hexadecimal digits.
        #[arg(long)]
        hex: bool,
    },
    /// Move the leadership of a region to another of its stores.
    #[command(after_help = "Examples:
  strata region transfer-leader 2 --to 3")]
    TransferLeader {
        /// The region's id.
        id: u64,
        /// The store that shall lead.
        #[arg(long, value_name = "STORE")]
        to: u64,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata store list
  strata store show 1 --format json")]
pub struct StoreArgs {
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// All stores.
    #[command(after_help = "Examples:
  strata store list")]
    List,
    /// One store.
    #[command(after_help = "Examples:
  strata store show 1")]
    Show {
        /// Its id.
        id: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.starts_with("Examples:")),
                "{} has no examples",
                command.get_name()
            );
            let visible = command.get_subcommands().filter(|of| !of.is_hide_set());
            visible.for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for words in [
            ["strata", "--format", "json", "status"],
            ["strata", "status", "--format", "json"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.global.format, Format::Json);
        }
    }

    #[test]
    fn a_node_names_the_cluster_it_belongs_to() {
        let base = [
            "strata",
            "node",
            "--id",
            "1",
            "--addr",
            "a:1",
            "--data-dir",
            "d",
        ];
        let parse = |more: &[&str]| Cli::try_parse_from(base.iter().chain(more));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--initial-cluster", "1=a:1,2=b:1"]).is_ok());
        assert!(parse(&["--initial-cluster", "a:1"]).is_err());
        assert!(parse(&["--initial-cluster", "0=a:1"]).is_err());
        assert!(parse(&["--initial-cluster", "1=a:1", "--replicas", "2"]).is_err());
    }

    /// A local cluster of which one node is dead needs no flag either.
    #[test]
    fn the_nodes_of_a_local_cluster_are_asked_unless_others_are_named() {
        let parse = |words: &[&str]| Cli::try_parse_from(words).unwrap();
        let cli = parse(&["strata", "status"]);
        if std::env::var_os("STRATA_ENDPOINTS").is_none() {
            let ports = [2379, 2380, 2381].map(|port| format!("127.0.0.1:{port}"));
            assert_eq!(cli.global.endpoints, ports);
        }
        let cli = parse(&["strata", "status", "--endpoints", "a:1,b:2"]);
        assert_eq!(cli.global.endpoints, ["a:1", "b:2"]);
    }

    #[test]
    fn a_value_may_be_a_negative_number() {
        for words in [
            &["strata", "kv", "put", "balance", "-5"][..],
            &["strata", "kv", "put", "balance", "-5", "--ttl", "9"],
            &["strata", "kv", "append", "balance", "-0.5"],
            &[
                "strata", "kv", "cas", "balance", "--old", "-5", "--new", "-6",
            ],
        ] {
            assert!(Cli::try_parse_from(words).is_ok(), "{words:?}");
        }
        // A word that is no flag and looks like one is a slip.
        assert!(Cli::try_parse_from(["strata", "kv", "put", "k", "-v"]).is_err());
    }

    #[test]
    fn a_value_comes_from_one_place() {
        let parse = |more: &[&str]| {
            Cli::try_parse_from(["strata", "kv", "put", "k"].iter().chain(more)).is_ok()
        };
        assert!(parse(&["v"]));
        assert!(parse(&["-"]));
        assert!(parse(&["--file", "f"]));
        assert!(!parse(&[]));
        assert!(!parse(&["v", "--file", "f"]));
    }
}
