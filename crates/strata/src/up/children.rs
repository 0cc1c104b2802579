//! The node processes of a local cluster.
//!
//! Each child asks the kernel to be killed when its parent ends, so that none is left
//! behind even when the parent is killed itself. The kernel takes the *thread* that forked
//! for the parent: children are started on the main thread only.

use super::folder::Folder;
use crate::exit::{Failure, Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// One node process.
pub struct Node {
    /// The store's id.
    pub id: u64,
    /// Where it listens.
    pub address: String,
    /// Its process id.
    pub pid: u32,
    log: PathBuf,
    process: Child,
    ended: bool,
}

/// All node processes.
pub struct Children {
    nodes: Vec<Node>,
}

impl Children {
    /// Starts one process a node.
    ///
    /// # Errors
    /// When a process or its log cannot be made; those already started are killed.
    pub fn start(folder: &Folder, addresses: &[String]) -> Result<Self, Failure> {
        let mut children = Self { nodes: Vec::new() };
        for (id, address) in (1..).zip(addresses) {
            match start_node(folder, id, address, addresses) {
                Ok(node) => children.nodes.push(node),
                Err(error) => {
                    children.signal(Signal::SIGKILL);
                    for node in &mut children.nodes {
                        let _ = node.process.wait();
                    }
                    return Err(error);
                }
            }
        }
        Ok(children)
    }

    /// All nodes in the order of their ids.
    pub fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// How many still run, as far as was noticed.
    pub fn running(&self) -> usize {
        self.nodes.iter().filter(|node| !node.ended).count()
    }

    /// Looks for processes that ended, and says so on stderr.
    pub fn report_ended(&mut self) {
        for node in &mut self.nodes {
            if node.ended {
                continue;
            }
            if let Ok(Some(status)) = node.process.try_wait() {
                node.ended = true;
                eprintln!(
                    "node {} (pid {}) ended: {}; its log is {}",
                    node.id,
                    node.pid,
                    reason(status, &node.log),
                    node.log.display()
                );
            }
        }
    }

    /// Stops all nodes in order, those that take longer than `grace` by force.
    ///
    /// # Errors
    /// Names the nodes that had to be killed.
    pub async fn stop(mut self, grace: Duration) -> Outcome {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + grace;
        loop {
            for node in &mut self.nodes {
                if !node.ended && matches!(node.process.try_wait(), Ok(Some(_))) {
                    node.ended = true;
                }
            }
            if self.running() == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let late: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| !node.ended)
            .map(|node| node.id.to_string())
            .collect();
        self.signal(Signal::SIGKILL);
        for node in &mut self.nodes {
            let _ = node.process.wait();
        }
        Err(Failure::error(format!(
            "nodes {} did not stop within {} s and were killed; what was acknowledged is on disk",
            late.join(", "),
            grace.as_secs()
        )))
    }

    fn signal(&self, signal: Signal) {
        for node in self.nodes.iter().filter(|node| !node.ended) {
            // A process that just ended is not waited for yet, so the id is still its own.
            let _ = kill(Pid::from_raw(node.pid as i32), signal);
        }
    }
}

fn start_node(
    folder: &Folder,
    id: u64,
    address: &str,
    addresses: &[String],
) -> Result<Node, Failure> {
    let executable = std::env::current_exe()
        .map_err(|error| Failure::error(format!("the own executable is not found: {error}")))?;
    let log = folder.log(id);
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|error| Failure::error(format!("{} cannot be written: {error}", log.display())))?;
    let members: Vec<String> = (1..)
        .zip(addresses)
        .map(|(id, address): (u64, _)| format!("{id}={address}"))
        .collect();
    let mut command = Command::new(executable);
    command
        .args(["node", "--id", &id.to_string(), "--addr", address])
        .arg("--data-dir")
        .arg(folder.node(id))
        .args(["--initial-cluster", &members.join(",")])
        .args(["--cluster-token", &folder.token])
        .args(["--regions", &folder.regions.to_string()])
        .args(["--replicas", &folder.replicas.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let parent = Pid::this();
    // SAFETY: between fork and exec only system calls are made that are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // The parent ended before the kernel was asked.
                return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            Ok(())
        });
    }
    let process = command
        .spawn()
        .map_err(|error| Failure::error(format!("node {id} cannot be started: {error}")))?;
    Ok(Node {
        id,
        address: address.to_string(),
        pid: process.id(),
        log,
        process,
        ended: false,
    })
}

/// Why a process ended: its status, and the last line that it wrote when it failed.
fn reason(status: ExitStatus, log: &Path) -> String {
    if status.code().is_none() || status.success() {
        return status.to_string();
    }
    match last_line(log) {
        Some(line) => format!("{status} ({line})"),
        None => status.to_string(),
    }
}

/// The last line of a log, however long it has become; of a long line its end.
fn last_line(log: &Path) -> Option<String> {
    const LINE_BYTES_MAX: u64 = 4096;
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_BYTES_MAX)))
        .ok()?;
    let mut end = Vec::new();
    file.take(LINE_BYTES_MAX).read_to_end(&mut end).ok()?;
    String::from_utf8_lossy(&end)
        .lines()
        .last()
        .map(str::to_owned)
}
