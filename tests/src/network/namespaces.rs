//! Network namespaces: one for each node, and one in the middle where the test's own threads
//! are.
//!
//! ```text
//!   test's threads      hub: bridge 10.99.0.254
//!                        |        |        |        veth pairs
//!   nodes             node 1   node 2   node 3      10.99.0.1, .2, .3
//! ```
//!
//! A namespace has no name: a waiting process holds it, which the kernel ends with the
//! thread that made it. So nothing can be left over, also when the test is killed: with its
//! processes a namespace goes, and with it all its links. The machine's own network is never
//! touched.
//!
//! Every address has a fixed place in every node's neighbour table. A direction is cut by
//! a hardware address there that nobody has: the packet leaves and reaches nobody, without
//! an error at the sender.

use super::Cuts;
use crate::proxy::Weather;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const HUB: u64 = 254;
const PORT: u16 = 2379;
/// Beginning of the hardware addresses of the nodes, and of those that nobody has.
const LIVE: &str = "02:00:00:00:00";
const DEAD: &str = "02:00:00:00:dd";

/// A process that does nothing but hold a namespace.
#[derive(Debug)]
struct Holder(Child);

/// Namespaces for a cluster.
#[derive(Debug)]
pub struct Namespaces {
    hub: Holder,
    nodes: Vec<Holder>,
    netem: bool,
}

/// Words by which a command joins the namespace of a process.
fn enter(process: u32) -> Vec<String> {
    vec!["nsenter".into(), format!("--net=/proc/{process}/ns/net")]
}

impl Holder {
    fn start() -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c", "echo held && exec sleep infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command.spawn().map_err(|e| format!("unshare: {e}"))?;
        let mut said = [0; 5];
        let held = child.stdout.as_mut().expect("a pipe").read_exact(&mut said);
        let mut holder = Holder(child);
        if held.is_ok() && &said == b"held\n" {
            return Ok(holder);
        }
        let _ = holder.0.kill();
        let mut complaint = String::new();
        let stderr = holder.0.stderr.as_mut().expect("a pipe");
        let _ = stderr.read_to_string(&mut complaint);
        Err(complaint.trim().to_owned())
    }

    /// Runs `ip` or `tc` in the namespace, one command a line.
    fn run(&self, program: &str, lines: &[String]) -> Result<(), String> {
        let words = enter(self.0.id());
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .args([program, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", words[0]))?;
        let mut stdin = process.stdin.take().expect("a pipe");
        let written = stdin.write_all(lines.join("\n").as_bytes());
        drop(stdin);
        let output = process.wait_with_output().map_err(|e| e.to_string())?;
        match (written, output.status.success()) {
            (Ok(()), true) => Ok(()),
            _ => {
                let complaint = String::from_utf8_lossy(&output.stderr);
                Err(format!("{program}: {}", complaint.trim()))
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A process that ended already is not an error here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The line that says where what goes to a node is sent.
fn neighbour(id: u64, beginning: &str) -> String {
    format!("neigh replace 10.99.0.{id} lladdr {beginning}:{id:02x} nud permanent dev eth0")
}

impl Namespaces {
    /// Makes them. Must be called on a thread that outlives them, as the kernel ends them
    /// with it.
    ///
    /// # Errors
    /// Why this machine or this user has none.
    pub fn create(count: u64) -> Result<Self, String> {
        let hub = Holder::start()?;
        let nodes: Result<Vec<Holder>, String> = (0..count).map(|_| Holder::start()).collect();
        let nodes = nodes?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add name hub type bridge forward_delay 0".to_owned(),
            format!("link set hub address {LIVE}:{HUB:02x}"),
            format!("addr add 10.99.0.{HUB}/24 dev hub"),
            "link set hub up".to_owned(),
        ];
        for (id, node) in (1..).zip(&nodes) {
            let holder = node.0.id();
            lines.push(format!(
                "link add name v{id} type veth peer name eth0 netns {holder} \
                 address {LIVE}:{id:02x}"
            ));
            lines.push(format!("link set v{id} master hub up"));
        }
        hub.run("ip", &lines)?;
        for (id, node) in (1..).zip(&nodes) {
            let mut lines = vec![
                "link set lo up".to_owned(),
                format!("addr add 10.99.0.{id}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                neighbour(HUB, LIVE),
            ];
            let others = (1..=count).filter(|other| *other != id);
            lines.extend(others.map(|other| neighbour(other, LIVE)));
            node.run("ip", &lines)?;
        }
        let probe = [
            "qdisc add dev lo root netem delay 1ms".to_owned(),
            "qdisc del dev lo root".to_owned(),
        ];
        let netem = hub.run("tc", &probe).is_ok();
        Ok(Self { hub, nodes, netem })
    }

    /// True if the kernel can delay and lose packets.
    pub fn has_netem(&self) -> bool {
        self.netem
    }

    /// What a thread needs to join the middle.
    ///
    /// # Panics
    /// When the namespace is gone.
    pub fn hub(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.hub.0.id())).expect("the hub is held")
    }

    /// The namespace of a node.
    ///
    /// # Panics
    /// When it is gone.
    pub fn of_node(&self, id: u64) -> File {
        let holder = self.holder(id).0.id();
        File::open(format!("/proc/{holder}/ns/net")).expect("the namespace is held")
    }

    fn holder(&self, id: u64) -> &Holder {
        &self.nodes[usize::try_from(id - 1).expect("a small id")]
    }

    /// Ids of the processes that hold the namespaces.
    pub fn holders(&self) -> Vec<u32> {
        let all = self.nodes.iter().chain([&self.hub]);
        all.map(|holder| holder.0.id()).collect()
    }

    pub(super) fn address(&self, id: u64) -> String {
        format!("10.99.0.{id}:{PORT}")
    }

    pub(super) fn enter(&self, id: u64) -> Vec<String> {
        enter(self.holder(id).0.id())
    }

    pub(super) fn cut(&mut self, cuts: &Cuts) {
        let count = self.nodes.len() as u64;
        for from in 1..=count {
            let others = (1..=count).filter(|to| *to != from);
            let lines: Vec<String> = others
                .map(|to| {
                    let dead = cuts.contains(&(from, to));
                    neighbour(to, if dead { DEAD } else { LIVE })
                })
                .collect();
            let done = self.holder(from).run("ip", &lines);
            done.expect("the neighbours are changed");
        }
    }

    pub(super) fn set_weather(&mut self, weather: Weather) {
        let line = if weather == Weather::default() {
            "qdisc replace dev eth0 root pfifo".to_owned()
        } else {
            format!(
                "qdisc replace dev eth0 root netem delay {}us {}us loss {}%",
                weather.delay.as_micros(),
                weather.jitter.as_micros(),
                weather.loss * 100.0
            )
        };
        for node in &self.nodes {
            let done = node.run("tc", std::slice::from_ref(&line));
            done.expect("the kernel has netem");
        }
    }
}

/// Moves the calling thread, and what it starts from now on, to a namespace.
///
/// # Panics
/// When the user may not.
pub(crate) fn enter_thread(namespace: &File) {
    // SAFETY: the descriptor is open, and the call changes this thread alone.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a namespace is joined: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::one_way;
    use std::net::UdpSocket;
    use std::time::Duration;

    /// Says that a row was not run, also where the output of good rows is not shown: past
    /// the test library, which keeps it, and by `success-output` in `.config/nextest.toml`.
    fn not_tested(reason: &str) {
        assert_ne!(
            std::env::var(super::super::CHOICE).as_deref(),
            Ok("namespaces"),
            "there are no namespaces: {reason}"
        );
        let line = format!("NOT TESTED, there are no network namespaces here: {reason}\n");
        let written = std::io::stderr().write_all(line.as_bytes());
        written.expect("stderr takes a line");
    }

    /// Runs on a thread in a node's namespace.
    fn inside<T: Send>(namespaces: &Namespaces, id: u64, run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter_thread(&namespaces.of_node(id));
                run()
            });
            thread.join().expect("the thread ends")
        })
    }

    fn bound(namespaces: &Namespaces, id: u64) -> UdpSocket {
        inside(namespaces, id, || {
            let socket = UdpSocket::bind(format!("10.99.0.{id}:7000")).unwrap();
            let limit = Some(Duration::from_millis(300));
            socket.set_read_timeout(limit).unwrap();
            socket
        })
    }

    /// Whether one of several packets arrives.
    fn arrives(sockets: &[UdpSocket], from: usize, to: usize) -> bool {
        let (source, target) = (&sockets[from - 1], &sockets[to - 1]);
        source.send_to(b"x", format!("10.99.0.{to}:7000")).unwrap();
        target.recv_from(&mut [0; 8]).is_ok()
    }

    #[test]
    fn nemesis_namespaces_cut_one_direction_at_a_time() {
        let mut namespaces = match Namespaces::create(3) {
            Ok(namespaces) => namespaces,
            Err(reason) => return not_tested(&reason),
        };
        let sockets = [1, 2, 3].map(|id| bound(&namespaces, id));
        assert!(arrives(&sockets, 1, 2) && arrives(&sockets, 2, 1));
        namespaces.cut(&one_way(1, &[2]));
        assert!(!arrives(&sockets, 1, 2));
        assert!(arrives(&sockets, 2, 1) && arrives(&sockets, 1, 3));
        namespaces.cut(&Cuts::new());
        assert!(arrives(&sockets, 1, 2));
    }

    /// A thread that ends without dropping anything is what a killed test looks like.
    #[test]
    fn nemesis_namespaces_end_with_the_thread_that_made_them() {
        let made = std::thread::spawn(|| {
            Namespaces::create(3).map(|namespaces| {
                let holders = namespaces.holders();
                std::mem::forget(namespaces);
                holders
            })
        });
        let holders = match made.join().expect("the thread ends") {
            Ok(holders) => holders,
            Err(reason) => return not_tested(&reason),
        };
        assert_eq!(holders.len(), 4);
        let until = std::time::Instant::now() + crate::DEADLINE;
        for holder in holders {
            // Nobody waits for it, so it stays as a zombie without a namespace.
            while std::fs::read_link(format!("/proc/{holder}/ns/net")).is_ok() {
                assert!(std::time::Instant::now() < until, "{holder} is left");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
