//! Plain HTTP on the same port: health, status, metrics, state that checks read, and the
//! part of PD's HTTP interface that clients' tooling asks for.

mod json;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use strata_proto::pdpb::pd_server::Pd as _;
use strata_proto::pdpb::{GetMembersRequest, ScanRegionsRequest};
use strata_raftstore::StoreHandle;
use strata_scheduler::SYSTEM_REGION_ID;
use tonic::Request;

use crate::disk::DiskSpace;
use crate::metrics::ServerMetrics;
use crate::pd::PdService;
use crate::strata_service::ToolService;
use crate::transport::{Admission, SnapshotStreams};

/// What the handlers read.
pub(crate) struct HttpState {
    pub(crate) cluster_id: u64,
    pub(crate) store_id: u64,
    pub(crate) address: String,
    pub(crate) store: StoreHandle,
    pub(crate) snapshots: Arc<dyn SnapshotStreams>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) disk: DiskSpace,
    pub(crate) started: Instant,
    pub(crate) pd: PdService,
    pub(crate) tools: ToolService,
    pub(crate) forward_time: Duration,
}

type Shared = State<Arc<HttpState>>;

/// Routes of plain HTTP.
pub(crate) fn routes(state: HttpState) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/debug/regions/{id}", get(region_state))
        .route("/pd/api/v1/regions", get(regions))
        .route("/pd/api/v1/stores", get(stores))
        .route("/pd/api/v1/members", get(members))
        .with_state(Arc::new(state))
}

/// Paths that nobody serves: for gRPC a method that does not exist, for others no page.
pub(crate) async fn unknown(request: axum::extract::Request) -> Response {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return tonic::Status::unimplemented("this version does not serve the method")
            .into_http::<axum::body::Body>();
    }
    refuse(StatusCode::NOT_FOUND, "there is no such page")
}

fn answer(value: Value) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        format!("{value}\n"),
    )
        .into_response()
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    let body = format!("{}\n", json!({ "error": reason }));
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// 200 once the store takes part in its cluster.
async fn health(State(state): Shared) -> Response {
    let missing = state.admission.missing();
    if state.admission.is_admitted() {
        return answer(json!({ "health": "ok" }));
    }
    let reason = format!("waiting for stores {missing:?} to record this store's folder");
    refuse(StatusCode::SERVICE_UNAVAILABLE, &reason)
}

async fn status(State(state): Shared) -> Response {
    let regions = state.store.regions();
    let users: Vec<_> = regions
        .iter()
        .filter(|region| region.region.id != SYSTEM_REGION_ID)
        .collect();
    let led = users
        .iter()
        .filter(|region| {
            region
                .leader
                .as_ref()
                .is_some_and(|leader| leader.store_id == state.store_id)
        })
        .count();
    let (capacity, available) = state.disk.measure();
    answer(json!({
        "store_id": state.store_id,
        "cluster_id": state.cluster_id,
        "address": state.address,
        "version": env!("CARGO_PKG_VERSION"),
        "admitted": state.admission.is_admitted(),
        "regions": users.len(),
        "leaders": led,
        "uptime_seconds": state.started.elapsed().as_secs(),
        "disk": {
            "capacity_bytes": capacity,
            "available_bytes": available,
            "used_bytes": state.disk.used(),
        },
    }))
}

async fn metrics(State(state): Shared) -> Response {
    let text = state.metrics.render(&state.store.metrics());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn region_state(State(state): Shared, Path(id): Path<String>) -> Response {
    let Ok(region_id) = id.parse::<u64>() else {
        return refuse(StatusCode::BAD_REQUEST, "the region id must be a number");
    };
    match state.store.region_state(region_id) {
        Some(region) => answer(json::region_state(
            &region,
            &state.snapshots.of_region(region_id),
        )),
        None => refuse(
            StatusCode::NOT_FOUND,
            &format!("region {region_id} has no replica on this store"),
        ),
    }
}

async fn regions(State(state): Shared) -> Response {
    match state
        .pd
        .scan_regions(Request::new(ScanRegionsRequest::default()))
        .await
    {
        Ok(found) => answer(json::regions(&found.into_inner())),
        Err(status) => refuse(StatusCode::SERVICE_UNAVAILABLE, status.message()),
    }
}

async fn stores(State(state): Shared) -> Response {
    let deadline = tokio::time::Instant::now() + state.forward_time;
    match state.tools.status_of_cluster(deadline, false).await {
        Ok(found) => answer(json::stores(&found)),
        Err(status) => refuse(StatusCode::SERVICE_UNAVAILABLE, status.message()),
    }
}

async fn members(State(state): Shared) -> Response {
    match state
        .pd
        .get_members(Request::new(GetMembersRequest::default()))
        .await
    {
        Ok(found) => answer(json::members(&found.into_inner())),
        Err(status) => refuse(StatusCode::SERVICE_UNAVAILABLE, status.message()),
    }
}
