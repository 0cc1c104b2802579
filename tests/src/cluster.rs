//! A cluster of node processes in a temporary folder.

use crate::binary::target_folder;
use crate::{Node, NodeSpec, ReservedPort, SyncRecord, SyncShim, eventually, http_get};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use strata_client::{Options, RawClient, RegionInfo};
use tempfile::TempDir;

/// Which cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Number of nodes.
    pub nodes: u64,
    /// `--replicas`.
    pub replicas: Option<u64>,
    /// `--regions`.
    pub regions: Option<u64>,
    /// Record the syncs of every node.
    pub record_syncs: bool,
    /// Variables of every node.
    pub environment: Vec<(String, String)>,
    /// Where each node runs; `None`: on ports of the loopback that the kernel gives.
    pub hosts: Option<Vec<Host>>,
}

/// Where one node runs.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where it listens.
    pub address: String,
    /// Words in front of its command.
    pub enter: Vec<String>,
    /// Variables of its own.
    pub environment: Vec<(String, String)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            replicas: None,
            regions: None,
            record_syncs: false,
            environment: Vec::new(),
            hosts: None,
        }
    }
}

impl Host {
    /// A node like the test itself, at this address.
    pub fn at(address: String) -> Self {
        Self {
            address,
            enter: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// A cluster; its processes are killed and its folder is removed when it is dropped. The
/// folder is kept when the test failed. A test in which a node panicked fails, whatever
/// else it saw.
pub struct Cluster {
    specs: Vec<NodeSpec>,
    nodes: Vec<Option<Node>>,
    _ports: Vec<ReservedPort>,
    folder: Option<TempDir>,
    _lock: Flock<File>,
}

/// Waits for its turn: one cluster at a time on this machine.
fn lock() -> Flock<File> {
    let folder = target_folder();
    std::fs::create_dir_all(&folder).expect("the target folder exists");
    let path = folder.join("process-tests.lock");
    let file = File::create(&path).expect("the lock file can be made");
    Flock::lock(file, FlockArg::LockExclusive).expect("the lock is waited for")
}

impl Cluster {
    /// Starts three nodes and waits until they serve.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn start() -> Self {
        Self::start_with(ClusterOptions::default()).await
    }

    /// Starts a cluster and waits until it serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn start_with(options: ClusterOptions) -> Self {
        let mut cluster = Self::prepare(options);
        cluster.start_all();
        cluster.wait_ready().await;
        cluster
    }

    /// Takes ports and a folder, and starts nothing yet.
    ///
    /// # Panics
    /// When the system has no port or folder.
    pub fn prepare(options: ClusterOptions) -> Self {
        let lock = lock();
        let folder = tempfile::Builder::new()
            .prefix("strata-test-")
            .tempdir()
            .expect("a temporary folder");
        let mut ports = Vec::new();
        let hosts = options.hosts.unwrap_or_else(|| {
            let on_port = |_| {
                let port = ReservedPort::any().expect("a free port");
                let host = Host::at(port.address());
                ports.push(port);
                host
            };
            (0..options.nodes).map(on_port).collect()
        });
        let members: Vec<String> = (1..)
            .zip(&hosts)
            .map(|(id, host): (u64, _)| format!("{id}={}", host.address))
            .collect();
        let mut words = vec!["--initial-cluster".to_string(), members.join(",")];
        for (flag, value) in [
            ("--replicas", options.replicas),
            ("--regions", options.regions),
        ] {
            if let Some(value) = value {
                words.extend([flag.to_string(), value.to_string()]);
            }
        }
        let shim = options.record_syncs.then(SyncShim::build);
        let specs: Vec<NodeSpec> = (1..)
            .zip(hosts)
            .map(|(id, host)| {
                let mut environment = options.environment.clone();
                environment.extend(host.environment);
                if let Some(shim) = &shim {
                    environment.extend(shim.environment(&sync_log(&folder, id)));
                }
                NodeSpec {
                    id,
                    enter: host.enter,
                    address: host.address,
                    folder: folder.path().join(format!("node-{id}")),
                    log: folder.path().join(format!("node-{id}.out")),
                    words: words.clone(),
                    environment,
                }
            })
            .collect();
        Self {
            nodes: specs.iter().map(|_| None).collect(),
            specs,
            _ports: ports,
            folder: Some(folder),
            _lock: lock,
        }
    }

    fn place(id: u64) -> usize {
        usize::try_from(id - 1).expect("a small id")
    }

    /// Ids of all nodes.
    pub fn ids(&self) -> Vec<u64> {
        self.specs.iter().map(|spec| spec.id).collect()
    }

    /// Ids of the nodes that were started and not stopped.
    pub fn running(&self) -> Vec<u64> {
        let ids = self.ids().into_iter();
        ids.filter(|id| self.nodes[Self::place(*id)].is_some())
            .collect()
    }

    /// How a node is started; may be changed while it is down.
    pub fn spec_mut(&mut self, id: u64) -> &mut NodeSpec {
        &mut self.specs[Self::place(id)]
    }

    /// How a node is started.
    pub fn spec(&self, id: u64) -> &NodeSpec {
        &self.specs[Self::place(id)]
    }

    /// Where a node listens.
    pub fn address(&self, id: u64) -> String {
        self.spec(id).address.clone()
    }

    /// Where all nodes listen.
    pub fn endpoints(&self) -> Vec<String> {
        self.specs.iter().map(|spec| spec.address.clone()).collect()
    }

    /// Endpoints as the command line takes them.
    pub fn endpoints_flag(&self) -> String {
        self.endpoints().join(",")
    }

    /// The process of a node.
    ///
    /// # Panics
    /// When the node is down.
    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes[Self::place(id)].as_mut().expect("the node runs")
    }

    /// Starts a node that is down, without waiting.
    ///
    /// # Panics
    /// When it runs.
    pub fn start_node(&mut self, id: u64) {
        let place = Self::place(id);
        assert!(self.nodes[place].is_none(), "node {id} runs already");
        self.nodes[place] = Some(Node::start(&self.specs[place]));
    }

    /// Starts all nodes that are down, without waiting.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            if self.nodes[Self::place(id)].is_none() {
                self.start_node(id);
            }
        }
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, id: u64) {
        if let Some(node) = self.nodes[Self::place(id)].take() {
            node.kill();
        }
    }

    /// Stops a node as an operator does, with `signal`, and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time, or not with exit code 0.
    pub async fn stop(&mut self, id: u64, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.node(id).pid() as i32);
        nix::sys::signal::kill(pid, signal).expect("the node runs");
        let status = self.ended(id).await;
        assert!(status.success(), "node {id} ended with {status}");
    }

    /// Waits until a node has ended by itself, and counts it as stopped.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&mut self, id: u64) -> std::process::ExitStatus {
        let place = Self::place(id);
        let node = self.nodes[place].as_mut().expect("the node runs");
        let status =
            crate::eventually_sync("the node to end", || node.ended().ok_or("it runs")).await;
        self.nodes[place] = None;
        status
    }

    /// Kills all nodes, as close to each other as can be.
    pub fn kill_all(&mut self) {
        for node in self.nodes.iter().flatten() {
            let pid = nix::unistd::Pid::from_raw(node.pid() as i32);
            // One that ended already is waited for below.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        for node in &mut self.nodes {
            *node = None;
        }
    }

    /// Waits until all running nodes answer and every region has a leader that serves.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_ready(&mut self) {
        for spec in &self.specs {
            let place = Self::place(spec.id);
            if self.nodes[place].is_none() {
                continue;
            }
            let node = &mut self.nodes[place];
            crate::eventually_sync(&format!("node {} to answer", spec.id), || {
                if let Some(status) = node.as_mut().and_then(Node::ended) {
                    panic!("node {} ended with {status}:\n{}", spec.id, tail(spec));
                }
                match http_get(&spec.address, "/healthz") {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        let client = self.client().await;
        eventually("every region to serve", || serve(&client)).await;
    }

    /// A client that gives up after some seconds, so that tests can ask again.
    ///
    /// # Panics
    /// When no node answers in time.
    pub async fn client(&self) -> RawClient {
        let options = Options {
            operation_timeout: Duration::from_secs(10),
            ..Options::default()
        };
        self.client_with(options).await
    }

    /// A client with these settings.
    ///
    /// # Panics
    /// When no node answers in time.
    pub async fn client_with(&self, options: Options) -> RawClient {
        let endpoints = self.endpoints();
        eventually("a client to connect", || {
            RawClient::connect(&endpoints, options.clone())
        })
        .await
    }

    /// The region that holds a key, once it has a leader.
    ///
    /// # Panics
    /// When it has none in time.
    pub async fn region_of(&self, client: &RawClient, key: &[u8]) -> RegionInfo {
        eventually("a region with a leader", || async {
            let info = client.scheduler().region(key).await;
            let info = info.map_err(|error| error.to_string())?;
            match info.leader {
                Some(_) => Ok(info),
                None => Err("no leader".to_string()),
            }
        })
        .await
    }

    /// `GET /debug/regions/ID` of a node.
    ///
    /// # Errors
    /// When the node does not answer with JSON.
    pub fn region_state(&self, id: u64, region_id: u64) -> anyhow::Result<serde_json::Value> {
        let answer = http_get(&self.address(id), &format!("/debug/regions/{region_id}"))?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// What a node printed.
    pub fn output(&self, id: u64) -> String {
        let bytes = std::fs::read(&self.spec(id).log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The syncs that a node completed so far.
    ///
    /// # Panics
    /// When they are not recorded.
    pub fn syncs(&self, id: u64) -> Vec<SyncRecord> {
        let folder = self.folder.as_ref().expect("the folder is there");
        let path = sync_log(folder, id);
        assert!(path.exists(), "the syncs of node {id} are not recorded");
        SyncShim::read(&path)
    }
}

fn sync_log(folder: &TempDir, id: u64) -> PathBuf {
    folder.path().join(format!("node-{id}.syncs"))
}

/// One get in each region, which needs a leader that serves.
async fn serve(client: &RawClient) -> Result<(), String> {
    let regions = client.scheduler().all_regions().await;
    let regions = regions.map_err(|error| error.to_string())?;
    if regions.is_empty() {
        return Err("no region".into());
    }
    for info in regions {
        if info.leader.is_none() {
            return Err(format!("region {} has no leader", info.region.id));
        }
        let key = [info.region.start_key.as_ref(), b"\0"].concat();
        client.get(&key).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn tail(spec: &NodeSpec) -> String {
    let bytes = std::fs::read(&spec.log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            *node = None;
        }
        if !std::thread::panicking() {
            for spec in &self.specs {
                let bytes = std::fs::read(&spec.log).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes);
                let line = text.lines().find(|line| line.contains("panicked at"));
                assert!(line.is_none(), "node {} panicked: {line:?}", spec.id);
            }
        }
        if std::thread::panicking() {
            for spec in &self.specs {
                eprintln!("--- end of the output of node {}\n{}", spec.id, tail(spec));
            }
            if let Some(folder) = self.folder.take() {
                eprintln!("--- the folder is kept: {}", folder.keep().display());
            }
        }
    }
}
