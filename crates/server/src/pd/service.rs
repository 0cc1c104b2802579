//! PD's protocol on every node.
//!
//! Unary calls run at the leader of region 1, wherever they come in; timestamps only there.
//! Region 1 appears in no answer.

use std::sync::Arc;
use std::time::Duration;

use slog::Logger;
use strata_proto::metapb::{Peer, Region};
use strata_proto::pdpb::pd_client::PdClient;
use strata_proto::pdpb::pd_server::Pd;
use strata_proto::pdpb::*;
use strata_scheduler::{Directory, allocate_ids, read_response};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::answer;
use super::leadership::Leadership;
use super::locate::{Locator, forwarding, is_forwarded, not_leading};
use super::timestamps::{self, TsoStream};
use crate::store_call::write_system;

/// Largest answer that a node takes from the leader to pass it on, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Serves `pdpb.PD`.
#[derive(Clone)]
pub(crate) struct PdService {
    locator: Arc<Locator>,
    logger: Logger,
}

/// One found region with its leader.
type Found = (Region, Option<Peer>);

impl PdService {
    pub(crate) fn new(locator: Arc<Locator>, logger: Logger) -> Self {
        PdService { locator, logger }
    }

    fn cluster_id(&self) -> u64 {
        self.locator.cluster.cluster_id
    }

    /// Runs a call at the leader of region 1: `local` here, `remote` there.
    async fn at_leader<Q, A, L, LF, R, RF>(
        &self,
        request: Request<Q>,
        header: impl Fn(&Q) -> Option<&RequestHeader>,
        local: L,
        remote: R,
    ) -> Result<Response<A>, Status>
    where
        Q: Clone + Send + Sync + 'static,
        L: Fn(Arc<Leadership>, Q, Instant) -> LF + Send + Sync,
        LF: Future<Output = Result<A, Status>> + Send,
        R: Fn(PdClient<Channel>, Request<Q>) -> RF + Send + Sync,
        RF: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let deadline = self.locator.deadline(request.metadata());
        let forwarded = is_forwarded(request.metadata());
        let message = request.into_inner();
        answer::check_header(header(&message), self.cluster_id())?;
        let pass_on = |channel: Channel, time: Duration| {
            let client = PdClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let answer = remote(client, forwarding(message.clone(), time));
            async move { answer.await.map(Response::into_inner) }
        };
        self.locator
            .with_leader(
                deadline,
                forwarded,
                |leadership| local(leadership, message.clone(), deadline),
                pass_on,
            )
            .await
            .map(Response::new)
    }

    /// GetMembers of a node that replicates region 1, for a node that does not.
    async fn ask_for_members(&self) -> Option<GetMembersResponse> {
        let deadline = Instant::now() + self.locator.config.forward_time;
        self.locator
            .with_leader(
                deadline,
                false,
                |_| async { Err(not_leading(None)) },
                |channel, time| async move {
                    let request = forwarding(GetMembersRequest::default(), time);
                    let answer = PdClient::new(channel).get_members(request).await?;
                    Ok(answer.into_inner())
                },
            )
            .await
            .ok()
    }

    /// Members as this node knows them, with the leader that it has heard from, else
    /// itself.
    fn own_members(&self) -> GetMembersResponse {
        let cluster = &self.locator.cluster;
        let members: Vec<_> = cluster
            .addresses()
            .iter()
            .map(|(id, address)| answer::member(*id, address))
            .collect();
        let member = |id: u64| {
            members
                .iter()
                .find(|member| member.member_id == id)
                .cloned()
        };
        let leader = self
            .locator
            .leader()
            .and_then(member)
            .or_else(|| member(cluster.store_id));
        GetMembersResponse {
            header: answer::header(cluster.cluster_id),
            etcd_leader: leader.clone(),
            leader,
            members,
            ..Default::default()
        }
    }
}

/// Looks one region up.
async fn look_up_one(
    leadership: &Leadership,
    deadline: Instant,
    find: impl Fn(&Directory) -> Option<Region>,
) -> Option<Found> {
    let found = leadership
        .look_up(deadline, |directory| find(directory).into_iter().collect())
        .await;
    found.into_iter().next()
}

/// Looks one region up and makes the answer of all three calls that do so.
async fn region_answer(
    cluster_id: u64,
    leadership: &Leadership,
    deadline: Instant,
    find: impl Fn(&Directory) -> Option<Region>,
) -> Result<GetRegionResponse, Status> {
    let found = look_up_one(leadership, deadline, find).await;
    let report = found
        .as_ref()
        .and_then(|(region, _)| leadership.region_report(region.id));
    Ok(answer::region(cluster_id, found, report))
}

#[tonic::async_trait]
impl Pd for PdService {
    async fn get_members(
        &self,
        request: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let forwarded = is_forwarded(request.metadata());
        let header = request.into_inner().header;
        answer::check_header(header.as_ref(), self.cluster_id())?;
        if !self.locator.has_own_peer()
            && !forwarded
            && let Some(members) = self.ask_for_members().await
        {
            return Ok(Response::new(members));
        }
        Ok(Response::new(self.own_members()))
    }

    type TsoStream = TsoStream;

    async fn tso(
        &self,
        request: Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        let deadline = Instant::now() + self.locator.config.forward_time;
        // A marked call is never passed on, and this one cannot be: streams stay here.
        let leadership = self
            .locator
            .with_leader(
                deadline,
                true,
                |leadership| async move { Ok(leadership) },
                |_, _| async { Err(not_leading(None)) },
            )
            .await?;
        let stream = timestamps::serve(
            self.locator.clone(),
            leadership,
            request.into_inner(),
            self.logger.clone(),
        );
        Ok(Response::new(stream))
    }

    async fn alloc_id(
        &self,
        request: Request<AllocIdRequest>,
    ) -> Result<Response<AllocIdResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, deadline| async move {
                let count = message.count.max(1);
                let time = deadline.saturating_duration_since(Instant::now());
                let response = write_system(&leadership.store, allocate_ids(count), time)
                    .await
                    .map_err(|error| Status::unavailable(error.to_string()))?;
                let response = read_response(response)
                    .map_err(|error| Status::resource_exhausted(error.to_string()))?;
                Ok(AllocIdResponse {
                    header: answer::header(cluster_id),
                    id: response.first_id + u64::from(count) - 1,
                    count,
                })
            },
            |mut client, request| async move { client.alloc_id(request).await },
        )
        .await
    }

    async fn get_store(
        &self,
        request: Request<GetStoreRequest>,
    ) -> Result<Response<GetStoreResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, _| async move {
                let (header, store) =
                    answer::store(cluster_id, leadership.stores(), message.store_id);
                let stats = leadership
                    .store_statuses()
                    .into_iter()
                    .find(|status| status.store.as_ref().map(|s| s.id) == Some(message.store_id))
                    .and_then(|status| status.stats);
                Ok(GetStoreResponse {
                    header,
                    store,
                    stats,
                })
            },
            |mut client, request| async move { client.get_store(request).await },
        )
        .await
    }

    async fn get_all_stores(
        &self,
        request: Request<GetAllStoresRequest>,
    ) -> Result<Response<GetAllStoresResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, _| async move {
                let gone = strata_proto::metapb::StoreState::Tombstone as i32;
                let mut stores = leadership.stores();
                stores.retain(|store| !message.exclude_tombstone_stores || store.state != gone);
                Ok(GetAllStoresResponse {
                    header: answer::header(cluster_id),
                    stores,
                })
            },
            |mut client, request| async move { client.get_all_stores(request).await },
        )
        .await
    }

    async fn get_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, deadline| async move {
                region_answer(cluster_id, &leadership, deadline, |directory| {
                    directory.find(&message.region_key).cloned()
                })
                .await
            },
            |mut client, request| async move { client.get_region(request).await },
        )
        .await
    }

    async fn get_prev_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, deadline| async move {
                region_answer(cluster_id, &leadership, deadline, |directory| {
                    directory.previous(&message.region_key).cloned()
                })
                .await
            },
            |mut client, request| async move { client.get_prev_region(request).await },
        )
        .await
    }

    async fn get_region_by_id(
        &self,
        request: Request<GetRegionByIdRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, deadline| async move {
                region_answer(cluster_id, &leadership, deadline, |directory| {
                    directory.by_id(message.region_id).cloned()
                })
                .await
            },
            |mut client, request| async move { client.get_region_by_id(request).await },
        )
        .await
    }

    async fn scan_regions(
        &self,
        request: Request<ScanRegionsRequest>,
    ) -> Result<Response<ScanRegionsResponse>, Status> {
        let cluster_id = self.cluster_id();
        self.at_leader(
            request,
            |message| message.header.as_ref(),
            |leadership, message, deadline| async move {
                // Zero and below: all of them.
                let limit = usize::try_from(message.limit)
                    .ok()
                    .filter(|limit| *limit > 0)
                    .unwrap_or(usize::MAX);
                let found = leadership
                    .look_up(deadline, |directory| {
                        directory
                            .scan(&message.start_key, &message.end_key)
                            .take(limit)
                            .cloned()
                            .collect()
                    })
                    .await;
                Ok(answer::regions(cluster_id, found))
            },
            |mut client, request| async move { client.scan_regions(request).await },
        )
        .await
    }

    async fn get_cluster_info(
        &self,
        request: Request<GetClusterInfoRequest>,
    ) -> Result<Response<GetClusterInfoResponse>, Status> {
        let header = request.into_inner().header;
        answer::check_header(header.as_ref(), self.cluster_id())?;
        Ok(Response::new(GetClusterInfoResponse {
            header: answer::header(self.cluster_id()),
            service_modes: vec![ServiceMode::PdSvcMode.into()],
            tso_urls: Vec::new(),
        }))
    }
}
