//! One storage node from start to stop.
//!
//! Start  Options, port, folder, in this order: what is refused early touches nothing.
//!        Then the store with its threads, and at last the services.
//! Run    Until the caller's future completes. A store that finds a broken invariant or a
//!        failed disk ends the process by itself.
//! Stop   Streams end, calls under way get `server.shutdown-time`, then the store stops
//!        and makes its engines durable.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{Logger, info, warn};
use strata_proto::pdpb::pd_server::PdServer;
use strata_proto::stratapb::StoreIdent;
use strata_proto::stratapb::clerk_server::ClerkServer;
use strata_proto::stratapb::store_transport_server::StoreTransportServer;
use strata_proto::stratapb::strata_server::StrataServer;
use strata_proto::tikvpb::tikv_server::TikvServer;
use strata_raftstore::{Store, StoreHandle, StoreOptions, Surroundings};
use strata_scheduler::SchedulerMachine;
use strata_storage::snapshot::{SnapshotEngine, SnapshotManager};
use strata_storage::{Engine, Engines};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::service::Routes;

use crate::clerk_service::ClerkService;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::disk::{DiskSpace, Reserve, watch_space};
use crate::file_limit;
use crate::http::{self, HttpState};
use crate::listener::{self, PortServer, PortServices};
use crate::logging;
use crate::metrics::ServerMetrics;
use crate::open::{self, Opened};
use crate::options::{NodeError, NodeOptions};
use crate::pd::{Locator, PdService, ReportQueue, run_reporter};
use crate::raw::RawService;
use crate::settings::store_options;
use crate::strata_service::{ToolService, TransportService};
use crate::transport::{
    Admission, Attached, AttachedStore, ExchangeServer, Greeter, Incarnations, Liveness,
    NodeTransport, RaftTransport, SnapshotLink, SnapshotServer, SnapshotStreams,
};

/// How often a store that is not admitted says whom it waits for.
const ADMISSION_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Runs a node until `shutdown` completes, then stops it in order.
///
/// # Errors
/// [`NodeError`] with its exit code and the one line for standard error.
pub async fn run(
    options: NodeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), NodeError> {
    options.check()?;
    let metrics = Arc::new(ServerMetrics::new());
    let dropped = metrics.log_lines_dropped.clone();
    let logger = logging::logger(&options.config.log, options.id, dropped);
    for warning in &options.config_warnings {
        warn!(logger, "{}", warning);
    }
    let listener = listener::bind(&options.addr).await?;
    let folder = options.clone();
    let opened = spawn_blocking(move || open::open(&folder))
        .await
        .map_err(|error| {
            NodeError::Refused(format!("opening the data folder failed: {error}"))
        })??;
    let node = Node::start(&options, opened, metrics, logger).await?;
    node.serve(listener, shutdown).await
}

/// A started node without its port.
struct Node {
    config: Config,
    cluster: Arc<Cluster>,
    store: Store,
    locator: Arc<Locator>,
    transport: Arc<RaftTransport>,
    snapshots: Arc<dyn SnapshotStreams>,
    incarnations: Arc<Incarnations>,
    admission: Arc<Admission>,
    metrics: Arc<ServerMetrics>,
    disk: DiskSpace,
    logger: Logger,
    started: Instant,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    async fn start<E: SnapshotEngine>(
        options: &NodeOptions,
        opened: Opened<E>,
        metrics: Arc<ServerMetrics>,
        logger: Logger,
    ) -> Result<Node, NodeError> {
        let mut config = options.config.clone();
        config.server.max_connections = file_limit::fit(&config, &logger);
        let Opened {
            engines,
            snapshots,
            ident,
            layout,
            persist_admission,
        } = opened;
        info!(logger, "starting"; "cluster" => format!("{:016x}", ident.cluster_id),
            "incarnation" => format!("{:016x}", ident.incarnation), "admitted" => ident.admitted);
        let cluster = cluster_of(options, &ident);
        let incarnations = incarnations_in(&engines.kv)?;
        let admission = Arc::new(Admission::new(
            ident.admitted,
            cluster.others(),
            persist_admission,
            logger.clone(),
        ));
        let transport = RaftTransport::new(
            cluster.clone(),
            config.transport.clone(),
            config.server.max_message_size.bytes(),
            metrics.clone(),
            logger.clone(),
            Handle::current(),
        );
        let snapshot_link: Arc<dyn SnapshotStreams> = SnapshotLink::new(
            cluster.clone(),
            (&config.snapshot, config.transport.clone()),
            snapshots.clone(),
            metrics.clone(),
            logger.clone(),
            Handle::current(),
        );
        let system_changed = Arc::new(Notify::new());
        let reports = ReportQueue::new(system_changed.clone());
        let surroundings = Surroundings {
            transport: Arc::new(NodeTransport {
                raft: transport.clone(),
                snapshots: snapshot_link.clone(),
            }),
            heartbeats: reports.clone(),
            system: Arc::new(SchedulerMachine::new(layout.clone())),
            logger: logger.clone(),
            runtime: Handle::current(),
        };
        let settings = store_options(&config, open::random_number()?, ident.admitted);
        let store_id = ident.store_id;
        let store = start_store(store_id, settings, engines, snapshots, surroundings).await?;
        let locator = Locator::new(
            cluster.clone(),
            store.handle(),
            config.scheduler.clone(),
            layout,
            system_changed,
            logger.clone(),
        );
        let mut node = Node {
            disk: DiskSpace::new(&options.data_dir),
            config,
            cluster,
            store,
            locator,
            transport,
            snapshots: snapshot_link,
            incarnations,
            admission,
            metrics,
            logger,
            started: Instant::now(),
            stop: watch::channel(false).0,
            tasks: Vec::new(),
        };
        node.start_tasks(reports);
        Ok(node)
    }

    fn start_tasks(&mut self, reports: Arc<ReportQueue>) {
        let store = self.store.handle();
        self.admission.attach(store.clone());
        self.snapshots.attach(Attached {
            store: Arc::new(AttachedStore {
                store_id: self.cluster.store_id,
                handle: store.clone(),
            }),
            admission: self.admission.clone(),
            incarnations: self.incarnations.clone(),
            stopping: self.stop.subscribe(),
        });
        self.transport.start(
            store,
            self.admission.clone(),
            self.incarnations.clone(),
            Arc::new(LeadershipLiveness(self.locator.clone())),
            self.stop.subscribe(),
        );
        let locator = self.locator.clone().run(self.stop.subscribe());
        let reporter = run_reporter(
            self.locator.clone(),
            reports,
            self.disk.clone(),
            self.stop.subscribe(),
        );
        let waiting = log_missing(
            self.admission.clone(),
            self.logger.clone(),
            self.stop.subscribe(),
        );
        let watching = watch_space(
            self.disk.clone(),
            Reserve::new(self.config.store.reserve_space.bytes() as u64),
            self.config.store.space_check_interval,
            self.store.handle(),
            self.logger.clone(),
            self.stop.subscribe(),
        );
        self.tasks = vec![
            tokio::spawn(watching),
            tokio::spawn(locator),
            tokio::spawn(reporter),
            tokio::spawn(waiting),
        ];
    }

    /// Serves the port until `shutdown` completes, then stops everything.
    async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), NodeError> {
        let server = PortServer {
            services: self.services(),
            server: self.config.server.clone(),
            transport: self.config.transport.clone(),
            metrics: self.metrics.clone(),
            logger: self.logger.clone(),
            stopping: self.stop.subscribe(),
        };
        info!(self.logger, "serving";
            "address" => self.cluster.address(self.cluster.store_id).unwrap_or_default());
        let serving = tokio::spawn(server.run(listener));
        shutdown.await;
        info!(self.logger, "stopping");
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
        let _ = serving.await;
        let store = self.store;
        spawn_blocking(move || store.shutdown())
            .await
            .map_err(|error| NodeError::Refused(format!("stopping the store failed: {error}")))?;
        info!(self.logger, "stopped");
        Ok(())
    }

    /// All services and routes of the port.
    fn services(&self) -> PortServices<RawService> {
        let store: StoreHandle = self.store.handle();
        let limit = self.config.server.max_message_size.bytes();
        let raw = RawService::new(
            store.clone(),
            self.cluster.store_id,
            self.config.server.clone(),
            self.config.store.max_key_size.bytes(),
            self.metrics.clone(),
        );
        let clerk = ClerkService {
            store: store.clone(),
            store_id: self.cluster.store_id,
            config: self.config.server.clone(),
            metrics: self.metrics.clone(),
        };
        let pd = PdService::new(self.locator.clone(), self.logger.clone());
        let tools = ToolService {
            locator: self.locator.clone(),
            config: self.config.server.clone(),
        };
        let greeter = Greeter {
            cluster: self.cluster.clone(),
            incarnations: self.incarnations.clone(),
            transport: self.transport.clone(),
            logger: self.logger.clone(),
            refusals: Arc::default(),
        };
        let handshake_time = self.config.transport.handshake_time;
        let exchange = ExchangeServer {
            greeter: greeter.clone(),
            store: store.clone(),
            metrics: self.metrics.clone(),
            logger: self.logger.clone(),
            handshake_time,
            frame_bytes_max: limit,
            stopping: self.stop.subscribe(),
        };
        let transport = TransportService {
            snapshots: SnapshotServer {
                greeter,
                snapshots: self.snapshots.clone(),
                handshake_time,
            },
            locator: self.locator.clone(),
        };
        let plain = HttpState {
            cluster_id: self.cluster.cluster_id,
            store_id: self.cluster.store_id,
            address: self
                .cluster
                .address(self.cluster.store_id)
                .unwrap_or_default(),
            store,
            snapshots: self.snapshots.clone(),
            admission: self.admission.clone(),
            metrics: self.metrics.clone(),
            disk: self.disk.clone(),
            started: self.started,
            pd: pd.clone(),
            tools: tools.clone(),
            forward_time: self.config.scheduler.forward_time,
        };
        let rest = Routes::new(PdServer::new(pd).max_decoding_message_size(limit))
            .add_service(StoreTransportServer::new(transport).max_decoding_message_size(limit))
            .add_service(StrataServer::new(tools).max_decoding_message_size(limit))
            .add_service(ClerkServer::new(clerk).max_decoding_message_size(limit))
            .into_axum_router()
            .fallback(http::unknown)
            .merge(http::routes(plain));
        PortServices {
            tikv: TikvServer::new(raw).max_decoding_message_size(limit),
            rest,
            exchange: Some(exchange),
        }
    }
}

/// This node and its address book, from the command line.
fn cluster_of(options: &NodeOptions, ident: &StoreIdent) -> Arc<Cluster> {
    let mut addresses = options.initial_cluster.clone();
    addresses.insert(ident.store_id, options.advertised().to_owned());
    let started_seconds = crate::pd::wall_clock_ms() / 1000;
    Arc::new(Cluster::new(
        ident.cluster_id,
        ident.store_id,
        ident.incarnation,
        started_seconds as i64,
        addresses,
        &options.config,
    ))
}

/// What the data engine holds of other stores' folders, and where more is written.
fn incarnations_in<E: Engine>(kv: &E) -> Result<Arc<Incarnations>, NodeError> {
    let known = open::read_incarnations(kv)?;
    let kv = kv.clone();
    let persist = Box::new(move |found: &_| open::write_incarnation(&kv, found));
    Ok(Arc::new(Incarnations::new(known, persist)))
}

/// Loads all regions and starts the store's threads, away from the network's threads.
async fn start_store<E: SnapshotEngine>(
    store_id: u64,
    settings: StoreOptions,
    engines: Engines<E>,
    snapshots: SnapshotManager<E::Files>,
    surroundings: Surroundings,
) -> Result<Store, NodeError> {
    spawn_blocking(move || Store::start(store_id, settings, engines, snapshots, surroundings))
        .await
        .map_err(|error| NodeError::Refused(format!("starting the store failed: {error}")))?
        .map_err(|error| NodeError::Refused(error.to_string()))
}

/// Tells the leader of region 1, if that is this node, which stores live.
struct LeadershipLiveness(Arc<Locator>);

impl Liveness for LeadershipLiveness {
    fn connected(&self, store_id: u64) {
        if let Some(leadership) = self.0.leading() {
            leadership.on_connected(store_id);
        }
    }

    fn refused(&self, store_id: u64) {
        if let Some(leadership) = self.0.leading() {
            leadership.on_refused(store_id);
        }
    }
}

/// Names the stores that an admission waits for, again and again.
async fn log_missing(
    admission: Arc<Admission>,
    logger: Logger,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ADMISSION_LOG_INTERVAL) => {}
            _ = stopping.changed() => return,
        }
        let missing = admission.missing();
        if admission.is_admitted() {
            return;
        }
        warn!(logger, "this store has a new folder and takes no part until these stores have \
            recorded it"; "missing" => format!("{missing:?}"));
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
