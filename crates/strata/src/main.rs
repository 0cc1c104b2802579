//! The `strata` binary: starts nodes and clusters, reads and writes keys, operates
//! regions and stores, measures.
//!
//! One subcommand per question; each is a module with a `run`. A command ends in an
//! [`exit::Outcome`], which alone decides the exit code: 0 success, 1 "no", 2 a wrong
//! command line, 3 an error. Errors are one line on stderr that says what to do.

mod args;
mod bench;
mod check;
mod connect;
mod debug;
mod exit;
#[cfg(test)]
mod fuzz_tests;
mod http_get;
mod kv;
mod manual;
mod node;
mod output;
mod processor;
mod region;
mod sim;
mod spread;
mod status;
mod store;
mod text;
mod up;

use args::{Cli, Command};
use clap::Parser;
use exit::{Failure, Outcome};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings of the allocator, which reads them under this name before `main`. Pages that are free
/// go back to the system within two seconds instead of ten, by a thread of the allocator: 15 MB less
/// for a loaded node, at no cost that shows. `_RJEM_MALLOC_CONF` in the environment goes
/// before.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: Option<&'static std::ffi::c_char> = Some(
    // SAFETY: the pointer of a literal is valid for ever, and nobody writes to it.
    unsafe { &*c"background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0".as_ptr() },
);

fn main() -> std::process::ExitCode {
    let outcome = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => exit::command_line(&error),
    };
    exit::code(outcome)
}

fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Up(args) => up::run(&global, args),
        Command::Node(args) => processor::check().and_then(|()| node::run(args)),
        Command::Kv(args) => block_on(kv::run(&global, args)),
        Command::Status => block_on(status::run(&global)),
        Command::Region(args) => block_on(region::run(&global, args.command)),
        Command::Store(args) => block_on(store::run(&global, args.command)),
        Command::Bench(args) => bench::run(&global, args.command),
        Command::Check(args) => check::run(&global, args),
        Command::Debug(args) => processor::check().and_then(|()| debug::run(&global, args)),
        Command::Sim(args) => sim::run(&global, args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::pages(&global, dir.as_deref()),
        Command::NoopServer(args) => bench::noop::run(args),
    }
}

/// Runs a command that only talks to a cluster; one thread is enough for it.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no runtime for the network: {error}")))?
        .block_on(command)
}
