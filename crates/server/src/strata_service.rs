//! StrataKV's own services: streams between stores, reports, and calls for tools.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use strata_proto::pdpb::RegionHeartbeatRequest;
use strata_proto::stratapb::store_transport_server::StoreTransport;
use strata_proto::stratapb::strata_client::StrataClient;
use strata_proto::stratapb::strata_server::Strata;
use strata_proto::stratapb::*;
use strata_raftstore::{Error, Request as StoreRequest, RequestBody, RequestHeader};
use strata_scheduler::SYSTEM_REGION_ID;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::config::ServerConfig;
use crate::deadline::request_time;
use crate::pd::{Leadership, Locator, forwarding, is_forwarded};
use crate::store_call::call;
use crate::transport::{SnapshotReplyStream, SnapshotServer};

/// Batches of reports that wait for a slow watcher in its stream.
const BATCHES_IN_STREAM: usize = 4;
/// Reports in one message to a watcher.
const REPORTS_IN_MESSAGE: usize = 1000;

/// Serves `StoreTransport`.
#[derive(Clone)]
pub(crate) struct TransportService {
    pub(crate) snapshots: SnapshotServer,
    pub(crate) locator: Arc<Locator>,
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl StoreTransport for TransportService {
    type SendSnapshotStream = SnapshotReplyStream;

    async fn send_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<Self::SendSnapshotStream>, Status> {
        self.snapshots.send_snapshot(request).await
    }

    async fn report_regions(
        &self,
        request: Request<RegionReports>,
    ) -> Result<Response<RegionReportsReply>, Status> {
        let deadline = self.locator.deadline(request.metadata());
        let reports = request.into_inner();
        let cluster = &self.locator.cluster;
        if reports.cluster_id != cluster.cluster_id || !cluster.is_member(reports.store_id) {
            return Err(Status::invalid_argument(format!(
                "store {} of cluster {:016x} does not belong to this cluster",
                reports.store_id, reports.cluster_id
            )));
        }
        // Reports are for the leader that was asked; they are never passed on.
        self.locator
            .with_leader(
                deadline,
                true,
                |leadership| {
                    leadership.on_reports(reports.clone());
                    async { Ok(()) }
                },
                |_, _| async { Err(Status::internal("a report was passed on")) },
            )
            .await?;
        Ok(Response::new(RegionReportsReply {}))
    }
}

/// Serves `Strata`.
#[derive(Clone)]
pub(crate) struct ToolService {
    pub(crate) locator: Arc<Locator>,
    pub(crate) config: ServerConfig,
}

impl ToolService {
    /// The status of the cluster, asked from the leader of region 1.
    pub(crate) async fn status_of_cluster(
        &self,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<StatusResponse, Status> {
        let cluster = &self.locator.cluster;
        let (cluster_id, own_id) = (cluster.cluster_id, cluster.store_id);
        self.locator
            .with_leader(
                deadline,
                forwarded,
                |leadership| async move {
                    Ok(StatusResponse {
                        cluster_id,
                        stores: leadership.store_statuses(),
                        scheduler_store_id: own_id,
                    })
                },
                |channel, time| async move {
                    let request = forwarding(StatusRequest {}, time);
                    let answer = StrataClient::new(channel).status(request).await?;
                    Ok(answer.into_inner())
                },
            )
            .await
    }

    /// The store that leads a region.
    async fn leader_of(&self, region_id: u64, deadline: Instant) -> Result<u64, Status> {
        let own = self.locator.store.leader_of(region_id);
        if let Some(leader) = own {
            return Ok(leader.store_id);
        }
        let answer = self
            .locator
            .with_leader(
                deadline,
                false,
                |leadership| async move {
                    let found = leadership
                        .look_up(deadline, |directory| {
                            directory.by_id(region_id).into_iter().cloned().collect()
                        })
                        .await;
                    Ok(found.into_iter().next().and_then(|(_, leader)| leader))
                },
                |channel, time| async move {
                    let message = strata_proto::pdpb::GetRegionByIdRequest {
                        region_id,
                        ..Default::default()
                    };
                    let answer = strata_proto::pdpb::pd_client::PdClient::new(channel)
                        .get_region_by_id(forwarding(message, time))
                        .await?;
                    Ok(answer.into_inner().leader)
                },
            )
            .await?;
        answer.map(|leader| leader.store_id).ok_or_else(|| {
            Status::not_found(format!(
                "region {region_id} does not exist or has no leader"
            ))
        })
    }

    async fn transfer_here(
        &self,
        message: &TransferLeaderRequest,
        time: Duration,
    ) -> Result<(), Status> {
        let store = &self.locator.store;
        let request = StoreRequest {
            header: RequestHeader {
                region_id: message.region_id,
                deadline: store.now() + time,
                ..Default::default()
            },
            body: RequestBody::TransferLeader {
                to_store_id: message.to_store_id,
            },
        };
        call(store, request).await.map(|_| ()).map_err(|error| {
            let text = error.to_string();
            match error {
                Error::RegionNotFound { .. } => Status::not_found(text),
                Error::Invalid(_) => Status::invalid_argument(text),
                _ => Status::unavailable(text),
            }
        })
    }
}

#[tonic::async_trait]
impl Strata for ToolService {
    type WatchRegionsStream = Boxed<WatchRegionsResponse>;

    async fn watch_regions(
        &self,
        request: Request<WatchRegionsRequest>,
    ) -> Result<Response<Self::WatchRegionsStream>, Status> {
        let deadline = self.locator.deadline(request.metadata());
        let forwarded = is_forwarded(request.metadata());
        let locator = &self.locator;
        let stream = locator
            .with_leader(
                deadline,
                forwarded,
                |leadership| {
                    let stream: Self::WatchRegionsStream = watch(locator.clone(), &leadership);
                    async { Ok(stream) }
                },
                |channel: Channel, _| async move {
                    // Without a time-out: the stream stays open.
                    let mut request = forwarding(WatchRegionsRequest {}, Duration::ZERO);
                    request.metadata_mut().remove("grpc-timeout");
                    let answer = StrataClient::new(channel).watch_regions(request).await?;
                    let stream: Self::WatchRegionsStream = Box::pin(answer.into_inner());
                    Ok(stream)
                },
            )
            .await?;
        Ok(Response::new(stream))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let time = request_time(request.metadata(), &self.config);
        let forwarded = is_forwarded(request.metadata());
        let message = request.into_inner();
        if message.region_id == SYSTEM_REGION_ID {
            return Err(Status::not_found(
                "region 1 holds the scheduler and is not moved",
            ));
        }
        let deadline = Instant::now() + time;
        let own_id = self.locator.cluster.store_id;
        let leader = if forwarded {
            own_id
        } else {
            self.leader_of(message.region_id, deadline).await?
        };
        if leader == own_id {
            self.transfer_here(&message, time).await?;
            return Ok(Response::new(TransferLeaderResponse {}));
        }
        let channel = self.locator.cluster.channel(leader).ok_or_else(|| {
            Status::unavailable(format!("the address of store {leader} is not known"))
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        StrataClient::new(channel)
            .transfer_leader(forwarding(message, left))
            .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let deadline = self.locator.deadline(request.metadata());
        let forwarded = is_forwarded(request.metadata());
        let status = self.status_of_cluster(deadline, forwarded).await?;
        Ok(Response::new(status))
    }
}

/// Reports known now, then those that come in, until the lead is lost.
fn watch(locator: Arc<Locator>, leadership: &Arc<Leadership>) -> Boxed<WatchRegionsResponse> {
    let (messages, stream) = mpsc::channel(BATCHES_IN_STREAM);
    let (known, news) = leadership.watch();
    let term = leadership.term;
    tokio::spawn(async move {
        let end = tokio::select! {
            status = feed(&messages, known, news) => status,
            () = term_over(&locator, term) => Status::unavailable("the scheduler's leader changed"),
            () = messages.closed() => return,
        };
        let _ = messages.send(Err(end)).await;
    });
    Box::pin(ReceiverStream::new(stream))
}

async fn feed(
    messages: &mpsc::Sender<Result<WatchRegionsResponse, Status>>,
    known: Vec<RegionHeartbeatRequest>,
    mut news: broadcast::Receiver<Arc<Vec<RegionHeartbeatRequest>>>,
) -> Status {
    let closed = || Status::cancelled("the watcher went away");
    for batch in known.chunks(REPORTS_IN_MESSAGE) {
        if send(messages, batch).await.is_err() {
            return closed();
        }
    }
    loop {
        let batch = match news.recv().await {
            Ok(batch) => batch,
            Err(broadcast::error::RecvError::Closed) => {
                return Status::unavailable("the scheduler's leader changed");
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {
                return Status::resource_exhausted("the watcher is too slow; watch again");
            }
        };
        for part in batch.chunks(REPORTS_IN_MESSAGE) {
            if send(messages, part).await.is_err() {
                return closed();
            }
        }
    }
}

async fn send(
    messages: &mpsc::Sender<Result<WatchRegionsResponse, Status>>,
    regions: &[RegionHeartbeatRequest],
) -> Result<(), ()> {
    let message = WatchRegionsResponse {
        regions: regions.to_vec(),
    };
    messages.send(Ok(message)).await.map_err(|_| ())
}

async fn term_over(locator: &Locator, term: u64) {
    let mut changes = locator.leading_changes();
    loop {
        let same = changes
            .borrow_and_update()
            .as_ref()
            .is_some_and(|held| held.term == term);
        if !same || changes.changed().await.is_err() {
            return;
        }
    }
}
