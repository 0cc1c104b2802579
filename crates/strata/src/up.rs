//! `strata up`: a local cluster of real processes in the foreground.
//!
//! ```text
//! token, counts -> ports free? -> folder -> one child a node -> ready? -> wait
//!                                                                          |
//!                Ctrl-C, SIGTERM: children get SIGTERM, after 8 s SIGKILL <-
//! ```
//! A child that dies is reported and not started again: whoever runs `up` wants to see
//! what the others do then. When none is left, `up` ends with an error.

mod children;
mod folder;
mod ready;

use crate::args::{Global, UpArgs};
use crate::exit::{Failure, Outcome};
use children::Children;
use folder::Folder;
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long children may take to stop before they are killed.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Starts the cluster and stays until it is stopped.
pub fn run(global: &Global, args: UpArgs) -> Outcome {
    let started = Instant::now();
    let folder = Folder::open(&args)?;
    let addresses = addresses(args.port, folder.nodes)?;
    for address in &addresses {
        check_port(address)?;
    }
    folder.keep()?;
    // Children die with the thread that made them (see `children`): this is the main
    // thread, which ends last.
    let children = Children::start(&folder, &addresses)?;
    for child in children.all() {
        say(&format!(
            "node {} {} pid {}",
            child.id, child.address, child.pid
        ));
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("no runtime for the network: {error}")))?
        .block_on(watch(global, children, addresses, started))
}

/// Waits for readiness, for children that end, and for the signal to stop.
async fn watch(
    global: &Global,
    mut children: Children,
    addresses: Vec<String>,
    started: Instant,
) -> Outcome {
    let (mut signals, mut ended) = Signals::new()?;
    let options = crate::connect::options(global);
    let ready = ready::wait(addresses, options);
    tokio::pin!(ready);
    let mut is_ready = false;
    children.report_ended();
    loop {
        if children.running() == 0 {
            return Err(Failure::error(
                "all nodes have ended: see the lines above and the logs beside their folders",
            ));
        }
        tokio::select! {
            () = &mut ready, if !is_ready => {
                is_ready = true;
                say(&format!("cluster ready in {} ms", started.elapsed().as_millis()));
            }
            () = signals.stop() => break,
            // Signals of children may merge, so all are looked at.
            _ = ended.recv() => children.report_ended(),
        }
    }
    children.stop(STOP_GRACE).await?;
    say("cluster stopped");
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Signals to stop, and the one of children that ended.
    fn new() -> Result<(Self, Signal), Failure> {
        let stop = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        Ok((stop, signal(SignalKind::child())?))
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// `127.0.0.1:(port+i-1)` for each node i.
fn addresses(port: u16, nodes: u64) -> Result<Vec<String>, Failure> {
    (0..nodes)
        .map(|i| {
            let port = u64::from(port) + i;
            if port > u64::from(u16::MAX) {
                return Err(Failure::CommandLine(format!(
                    "there is no port {port} for node {}: choose a lower --port",
                    i + 1
                )));
            }
            Ok(format!("127.0.0.1:{port}"))
        })
        .collect()
}

fn check_port(address: &str) -> Outcome {
    TcpListener::bind(address).map(drop).map_err(|error| {
        Failure::error(match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "{address} is taken by another process: stop that one, or choose another --port"
            ),
            _ => format!("{address} cannot be used ({error}): choose another --port"),
        })
    })
}

/// A line for whoever reads stdout; a reader that is gone is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_one_clear_line() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let Err(Failure::Error(line)) = check_port(&address) else {
            panic!("the taken port was not noticed");
        };
        assert!(line.contains(&address) && line.contains("taken"), "{line}");
        drop(listener);
        check_port(&address).unwrap();
    }

    #[test]
    fn ports_end_at_the_last_one() {
        assert_eq!(addresses(65_534, 2).unwrap().len(), 2);
        assert!(matches!(addresses(65_534, 3), Err(Failure::CommandLine(_))));
    }
}
