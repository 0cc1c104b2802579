//! One `strata node` process.

use crate::strata_binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// The store's id.
    pub id: u64,
    /// Words in front of the binary, of programs that become it.
    pub enter: Vec<String>,
    /// Where it listens.
    pub address: String,
    /// Its data folder.
    pub folder: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Words after those for id, address and folder.
    pub words: Vec<String>,
    /// Variables on top of the test's own environment.
    pub environment: Vec<(String, String)>,
}

/// A running node; it is killed when dropped.
#[derive(Debug)]
pub struct Node {
    process: Child,
}

impl Node {
    /// Starts a process. Must be called on a thread that outlives the process, as the
    /// kernel kills it with the thread that made it.
    ///
    /// # Panics
    /// When the process cannot be made.
    pub fn start(spec: &NodeSpec) -> Self {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .expect("the log can be written");
        let mut words = spec.enter.iter().map(OsString::from).collect::<Vec<_>>();
        words.push(strata_binary().into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["node", "--id", &spec.id.to_string()])
            .args(["--addr", &spec.address, "--data-dir"])
            .arg(&spec.folder)
            .args(&spec.words)
            .envs(spec.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log can be shared"))
            .stderr(output);
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        Self {
            process: command.spawn().expect("the node starts"),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Largest resident memory so far, in bytes.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path).expect("the node runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|word| word.parse::<u64>().ok())
            .expect("the kernel tells")
            << 10
    }

    /// Ends it without a chance to clean up, and waits for its end.
    pub fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        // A process that ended already is not an error here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks it to stop, as an operator does; `wait` for its end.
    pub fn terminate(&self) {
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_now();
    }
}
