//! Faults on real processes, under load, with everything checked at the end.
//!
//! ```text
//!   run_nemesis
//!     network     namespaces or proxies (`network`)
//!     nodes       `strata node` with clocks of their own (`node_shim`), some on small disks
//!     load        clients that write down what they did and saw (`clients`, `together`,
//!                 `recorder`)
//!     faults      the test's body: kill, stop, cut, slow down, move clocks, fill disks
//!     heal        all faults end
//!     judge       acknowledged writes present, history linearizable, replicas equal, and
//!                 their checksums too, on the folders of the stopped nodes
//! ```
//!
//! All that is drawn comes from one seed, which is printed; `NEMESIS_SEED` sets it.
//! The schedule of the processes is the machine's, so a seed repeats the faults and not the
//! run.

mod clients;
mod judge;
mod recorder;
mod together;

use crate::network::{Cuts, Needs, Network, Proxies, choose};
use crate::node_shim::{self, NodeClocks};
use crate::proxy::{Proxy, Weather};
use crate::{Cluster, ClusterOptions, Host, SmallDisk, network};
use clients::Clients;
pub use clients::ClientsOptions;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recorder::Recorder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Variable that sets the seed.
const SEED: &str = "NEMESIS_SEED";
/// Threads of the test beside its own; the nodes need the machine.
const THREADS: usize = 2;
/// Regions of a new cluster that hold user data.
const USER_REGIONS: std::ops::Range<u64> = 2..8;
/// Pause between two looks at a node.
const POLL: Duration = Duration::from_millis(50);

/// Changes the answers of nodes on their way to clients.
pub type AlterAnswers = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// Which cluster, which load.
#[derive(Clone)]
pub struct NemesisOptions {
    /// Number of nodes, each with a replica of every region.
    pub nodes: u64,
    /// What the network must be able to.
    pub needs: Needs,
    /// The load.
    pub clients: ClientsOptions,
    /// Nodes whose data folder is a small disk, with its size in bytes.
    pub small_disks: BTreeMap<u64, u64>,
    /// Variables of every node.
    pub environment: Vec<(String, String)>,
    /// A planted fault: clients reach the nodes through proxies that do this. The network
    /// is the loopback then, and nothing between nodes can be cut.
    pub alter_answers: Option<AlterAnswers>,
}

impl Default for NemesisOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            needs: Needs::Cuts,
            clients: ClientsOptions::default(),
            small_disks: BTreeMap::new(),
            environment: Vec::new(),
            alter_answers: None,
        }
    }
}

/// A cluster under load, and the means to make it suffer.
pub struct Nemesis {
    /// The nodes.
    pub cluster: Cluster,
    /// What is drawn.
    pub random: ChaCha8Rng,
    disks: BTreeMap<u64, SmallDisk>,
    network: Network,
    clocks: Vec<NodeClocks>,
    stopped: BTreeSet<u64>,
    /// The region whose leader was asked for last.
    region: u64,
    recorder: Arc<Recorder>,
    clients: Option<Clients>,
    options: NemesisOptions,
    seed: u64,
    _altering: Vec<Proxy>,
    _folder: TempDir,
}

/// Runs a test on a thread of its own, from which the kernel ends all that is left.
///
/// # Panics
/// When the body does, or something of the network is left behind.
pub fn run_nemesis<F>(options: NemesisOptions, body: F)
where
    F: AsyncFnOnce(&mut Nemesis) + Send + 'static,
{
    let thread = std::thread::spawn(move || {
        let namespaces = match options.alter_answers {
            Some(_) => None,
            None => choose(options.needs, options.nodes),
        };
        let holders = namespaces.as_ref().map(network::Namespaces::holders);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(THREADS).enable_all();
        if let Some(namespaces) = &namespaces {
            let hub = namespaces.hub();
            network::enter_thread(&hub);
            builder.on_thread_start(move || network::enter_thread(&hub));
        }
        let runtime = builder.build().expect("a runtime");
        runtime.block_on(async {
            let network = match namespaces {
                Some(namespaces) => Network::Namespaces(namespaces),
                None => Network::Proxies(Proxies::create(options.nodes).await),
            };
            let mut nemesis = Nemesis::start(options, network).await;
            body(&mut nemesis).await;
        });
        runtime.shutdown_background();
        for holder in holders.into_iter().flatten() {
            let namespace = std::fs::read_link(format!("/proc/{holder}/ns/net"));
            assert!(namespace.is_err(), "namespace of {holder} is left");
        }
    });
    if let Err(cause) = thread.join() {
        std::panic::resume_unwind(cause);
    }
}

fn seed() -> u64 {
    let given = std::env::var(SEED).ok();
    given.map_or_else(
        || {
            let time = SystemTime::now().duration_since(UNIX_EPOCH);
            time.unwrap_or_default().as_millis() as u64 % 1_000_000_000
        },
        |word| word.parse().expect("a number as seed"),
    )
}

impl Nemesis {
    async fn start(options: NemesisOptions, network: Network) -> Self {
        let seed = seed();
        println!("seed {seed}: {SEED}={seed} draws the same faults");
        let folder = TempDir::with_prefix("strata-nemesis-").expect("a folder");
        let ids: Vec<u64> = (1..=options.nodes).collect();
        let clocks: Vec<NodeClocks> = ids
            .iter()
            .map(|id| NodeClocks::create(&folder.path().join(format!("clocks-{id}"))))
            .collect();
        let hosts = ids
            .iter()
            .zip(&clocks)
            .map(|(id, clocks)| Host {
                address: network.address(*id),
                enter: network.enter(*id),
                environment: node_shim::environment(clocks, &network.roads(*id)),
            })
            .collect();
        let mut cluster = Cluster::prepare(ClusterOptions {
            nodes: options.nodes,
            replicas: Some(options.nodes),
            environment: options.environment.clone(),
            hosts: Some(hosts),
            ..ClusterOptions::default()
        });
        let mut altering = Vec::new();
        if let Some(alter) = &options.alter_answers {
            for id in &ids {
                let alter = alter.clone();
                let alter = move |bytes: &mut [u8]| alter(bytes);
                let proxy = Proxy::altering(network.address(*id), alter).await;
                let flag = ["--advertise-addr".to_owned(), proxy.address().to_owned()];
                cluster.spec_mut(*id).words.extend(flag);
                altering.push(proxy);
            }
        }
        let mut disks = BTreeMap::new();
        for (id, bytes) in &options.small_disks {
            let spec = cluster.spec_mut(*id);
            let disk = SmallDisk::mount(&spec.folder, *bytes);
            spec.enter = [disk.enter(), spec.enter.clone()].concat();
            disks.insert(*id, disk);
        }
        cluster.start_all();
        cluster.wait_ready().await;
        let recorder = Arc::new(Recorder::new());
        let stores: Vec<_> = ids.iter().map(|id| (*id, cluster.address(*id))).collect();
        let endpoints = cluster.endpoints();
        let clients = Clients::start(&endpoints, &stores, &recorder, &options.clients, seed).await;
        let mut nemesis = Self {
            cluster,
            random: ChaCha8Rng::seed_from_u64(seed),
            disks,
            network,
            clocks,
            stopped: BTreeSet::new(),
            region: USER_REGIONS.start,
            recorder,
            clients: Some(clients),
            options,
            seed,
            _altering: altering,
            _folder: folder,
        };
        nemesis.progress(100).await;
        nemesis
    }

    /// Says what is done, with its time.
    fn say(&self, what: &str) {
        println!("{:6} ms {what}", self.recorder.at());
    }

    /// Ids of all nodes.
    pub fn ids(&self) -> Vec<u64> {
        self.cluster.ids()
    }

    /// All nodes but these.
    pub fn others(&self, than: &[u64]) -> Vec<u64> {
        let ids = self.ids().into_iter();
        ids.filter(|id| !than.contains(id)).collect()
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick(&mut self, ids: &[u64]) -> u64 {
        *ids.choose(&mut self.random).expect("one to choose")
    }

    /// All nodes in random order.
    pub fn shuffled(&mut self) -> Vec<u64> {
        let ids = self.ids();
        let mut order: Vec<(u32, u64)> = ids.iter().map(|id| (self.random.random(), *id)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Lets a fault last, from `min` to twice as long.
    pub async fn last(&mut self, min: Duration) {
        let more = min.mul_f64(self.random.random());
        tokio::time::sleep(min + more).await;
    }

    /// Waits until clients had `more` further answers.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn progress(&mut self, more: usize) {
        let goal = self.recorder.answers() + more;
        crate::eventually_sync("answers", || match self.recorder.answers() {
            count if count >= goal => Ok(()),
            count => Err(format!("{count} of {goal}")),
        })
        .await;
    }

    /// The store that leads a region that is drawn now.
    ///
    /// # Panics
    /// When none leads in time.
    pub async fn leader(&mut self) -> u64 {
        self.region = self.random.random_range(USER_REGIONS);
        self.wait_for_leader(|_| true).await
    }

    /// Waits until another store leads the region that was drawn last.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn another_leads(&mut self, than: u64) -> u64 {
        self.wait_for_leader(|id| id != than).await
    }

    /// Asks the nodes that are not out; the newest term counts, as one that is cut off does
    /// not know better.
    async fn wait_for_leader(&self, wanted: impl Fn(u64) -> bool) -> u64 {
        let mut running = self.cluster.running();
        running.retain(|id| !self.stopped.contains(id));
        crate::eventually_sync("a leader", || {
            let leaders = running.iter().filter_map(|id| {
                let state = self.cluster.region_state(*id, self.region).ok()?;
                let leads = state["leader"]["store_id"].as_u64() == Some(*id);
                leads.then(|| (state["term"].as_u64(), *id))
            });
            match leaders.max() {
                Some((_, id)) if wanted(id) => Ok(id),
                other => Err(format!("region {}: {other:?}", self.region)),
            }
        })
        .await
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, id: u64) {
        self.say(&format!("kill -9 {id}"));
        self.stopped.remove(&id);
        self.cluster.kill(id);
    }

    /// Kills all nodes at once.
    pub fn kill_all(&mut self) {
        self.say("kill -9 of all");
        self.stopped.clear();
        self.cluster.kill_all();
    }

    /// Starts what is down.
    pub fn start_all(&mut self) {
        self.say("start all that are down");
        self.cluster.start_all();
    }

    /// Stops a node with SIGSTOP.
    pub fn pause(&mut self, id: u64) {
        self.say(&format!("SIGSTOP {id}"));
        self.signal(id, Signal::SIGSTOP);
        self.stopped.insert(id);
    }

    /// Lets a stopped node go on.
    pub fn resume(&mut self, id: u64) {
        if self.stopped.remove(&id) {
            self.say(&format!("SIGCONT {id}"));
            self.signal(id, Signal::SIGCONT);
        }
    }

    /// Lets all stopped nodes go on.
    pub fn resume_all(&mut self) {
        for id in self.stopped.clone() {
            self.resume(id);
        }
    }

    fn signal(&mut self, id: u64, signal: Signal) {
        let pid = self.cluster.node(id).pid();
        kill(Pid::from_raw(pid as i32), signal).expect("the node is there");
    }

    /// True if a node is down, stopped, or has ended because its disk is full. One that ended
    /// counts as down from then on.
    ///
    /// # Panics
    /// When a node has ended for another reason.
    pub fn is_out(&mut self, id: u64) -> bool {
        if self.stopped.contains(&id) || !self.cluster.running().contains(&id) {
            return true;
        }
        let Some(status) = self.cluster.node(id).ended() else {
            return false;
        };
        let full = self.cluster.output(id).contains("No space left");
        assert!(
            full && self.disks.contains_key(&id),
            "node {id} ended by itself: {status}"
        );
        self.say(&format!("{id} ended, its disk is full: {status}"));
        self.cluster.kill(id);
        true
    }

    /// Cuts these directions and mends all others.
    pub fn cut(&mut self, what: &str, cuts: &Cuts) {
        self.say(&format!("cut {what}: {cuts:?}"));
        self.network.cut(cuts);
    }

    /// Mends all directions.
    pub fn mend(&mut self) {
        self.say("mend the network");
        self.network.cut(&Cuts::new());
    }

    /// True if [`Nemesis::weather`] is possible.
    pub fn has_weather(&self) -> bool {
        self.network.has_weather()
    }

    /// Delays and loses what nodes send.
    pub fn weather(&mut self, weather: Weather) {
        self.say(&format!("{weather:?}"));
        self.network.set_weather(weather);
    }

    /// Breaks the connections between nodes, where there are proxies.
    pub fn break_connections(&mut self) {
        self.say("break connections");
        self.network.break_connections();
    }

    /// Puts a node's wall clock so many seconds off.
    pub fn set_wall(&mut self, id: u64, offset: i64) {
        self.say(&format!("wall clock of {id}: {offset:+} s"));
        self.clocks[id as usize - 1].set_wall_offset(offset);
    }

    /// Lets a node's `CLOCK_BOOTTIME` run faster or slower, in parts per million.
    pub fn set_rate(&mut self, id: u64, rate: i64) {
        self.say(&format!("boot time of {id}: {rate:+} ppm"));
        self.clocks[id as usize - 1].set_rate(rate);
    }

    /// Leaves so many bytes on the small disk of a node.
    pub fn fill_disk(&self, id: u64, bytes: u64) {
        self.say(&format!("{bytes} bytes are left on the disk of {id}"));
        self.disk(id).fill_but(bytes);
    }

    /// The small disk of a node.
    ///
    /// # Panics
    /// When it has none.
    pub fn disk(&self, id: u64) -> &SmallDisk {
        &self.disks[&id]
    }

    /// Ends all faults, but wall clocks stay where they are. Disks must have room.
    ///
    /// # Panics
    /// When the cluster does not serve in time.
    pub async fn heal(&mut self) {
        self.say("heal");
        self.resume_all();
        self.network.cut(&Cuts::new());
        if self.network.has_weather() {
            self.network.set_weather(Weather::default());
        }
        for clocks in &mut self.clocks {
            clocks.set_rate(0);
        }
        let until = Instant::now() + crate::DEADLINE;
        for id in self.ids() {
            let address = self.cluster.address(id);
            // A node may be about to end by what it met before there was room.
            loop {
                if self.is_out(id) {
                    self.cluster.start_node(id);
                }
                let answer = crate::http_get(&address, "/healthz");
                if answer.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
                assert!(Instant::now() < until, "node {id} does not answer");
                tokio::time::sleep(POLL).await;
            }
        }
        self.cluster.wait_ready().await;
    }
}
