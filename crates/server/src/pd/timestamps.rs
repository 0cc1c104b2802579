//! Streams of timestamps, answered by the leader of region 1 alone.
//!
//! Each request gets exactly one answer, in order, with its own count. Requests that wait
//! together share one check of the lease: a linearizable read of region 1 that begins
//! after they came in, so no later leader can have given out anything before them. A
//! stream ends as soon as the lead is lost, because clients wait for an answer without a
//! time-out.
//!
//! Invariant: nothing is given out, and no mark is taken over, that the store did not read
//! or write in the very term of the [`Leadership`]. A store that lost the lead and won it
//! back reads region 1 as well as before, but another one gave out timestamps in between.

use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt;
use slog::{Logger, debug};
use strata_proto::pdpb::{Timestamp, TsoRequest, TsoResponse};
use strata_scheduler::{Grant, OracleError, read_response, reserve_timestamps};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::answer;
use super::leadership::{Leadership, WRITE_TIME, wall_clock_ms};
use super::locate::{Locator, not_leading};
use crate::store_call::{read_system, write_system};

/// Answers of one stream.
pub(crate) type TsoStream = Pin<Box<dyn Stream<Item = Result<TsoResponse, Status>> + Send>>;

/// Requests that share one check of the lease.
const REQUESTS_TOGETHER: usize = 256;
/// Answers that wait for a slow client before its requests are no longer read.
const ANSWERS_WAITING: usize = 64;

/// Serves one stream until it ends or the lead is lost.
pub(super) fn serve(
    locator: Arc<Locator>,
    leadership: Arc<Leadership>,
    requests: Streaming<TsoRequest>,
    logger: Logger,
) -> TsoStream {
    let (answers, stream) = mpsc::channel(ANSWERS_WAITING);
    tokio::spawn(async move {
        let status = tokio::select! {
            status = answer_all(&locator, &leadership, requests, &answers) => status,
            () = lead_lost(&locator, &leadership) => Some(not_leading(None)),
            () = answers.closed() => None,
        };
        if let Some(status) = status {
            debug!(logger, "a stream of timestamps ends"; "reason" => status.message());
            let _ = answers.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

/// Returns when the term of this leadership is over.
async fn lead_lost(locator: &Locator, leadership: &Leadership) {
    let mut changes = locator.leading_changes();
    loop {
        let same = changes
            .borrow_and_update()
            .as_ref()
            .is_some_and(|held| held.term == leadership.term);
        if !same || changes.changed().await.is_err() {
            return;
        }
    }
}

/// Answers until the client ends the stream (`None`) or something fails.
async fn answer_all(
    locator: &Locator,
    leadership: &Leadership,
    requests: Streaming<TsoRequest>,
    answers: &mpsc::Sender<Result<TsoResponse, Status>>,
) -> Option<Status> {
    let cluster_id = locator.cluster.cluster_id;
    let mut together = requests.ready_chunks(REQUESTS_TOGETHER);
    while let Some(requests) = together.next().await {
        if !holds_lease(leadership).await {
            return Some(not_leading(None));
        }
        for request in requests {
            let request = match request {
                Ok(request) => request,
                Err(status) => return Some(status),
            };
            if let Err(status) = answer::check_header(request.header.as_ref(), cluster_id) {
                return Some(status);
            }
            let timestamp = match grant(leadership, request.count).await {
                Ok(timestamp) => timestamp,
                Err(status) => return Some(status),
            };
            let response = TsoResponse {
                header: answer::header(cluster_id),
                count: request.count,
                timestamp: Some(timestamp),
            };
            if answers.send(Ok(response)).await.is_err() {
                return None;
            }
        }
    }
    None
}

/// True if this store held the lease of region 1 in the leadership's own term at some
/// instant of the call.
async fn holds_lease(leadership: &Leadership) -> bool {
    let read = read_system(&leadership.store, leadership.config.forward_time).await;
    read.is_ok() && leadership.is_of_present_term()
}

/// Takes timestamps from the oracle, replicating a higher mark when it asks for one.
async fn grant(leadership: &Leadership, count: u32) -> Result<Timestamp, Status> {
    loop {
        let granted = leadership.oracle.lock().grant(count, wall_clock_ms(), true);
        match granted {
            Ok(Grant::Timestamp {
                physical_ms,
                logical,
            }) => {
                return Ok(Timestamp {
                    physical: physical_ms as i64,
                    logical: logical as i64,
                    suffix_bits: 0,
                });
            }
            Ok(Grant::Reserve { .. }) => reserve(leadership).await?,
            Err(OracleError::NotLeading) => return Err(not_leading(None)),
            Err(error @ OracleError::BadCount(_)) => {
                return Err(Status::invalid_argument(error.to_string()));
            }
        }
    }
}

/// Replicates a higher mark. Who waited while another did it finds it done.
async fn reserve(leadership: &Leadership) -> Result<(), Status> {
    let _turn = leadership.reserving.lock().await;
    let Some(until_ms) = leadership.oracle.lock().wants_reserve(wall_clock_ms()) else {
        return Ok(());
    };
    let response = write_system(&leadership.store, reserve_timestamps(until_ms), WRITE_TIME)
        .await
        .map_err(|_| not_leading(None))?;
    // Written in a later term, the mark covers what another leader gave out meanwhile.
    if !leadership.is_of_present_term() {
        return Err(not_leading(None));
    }
    let response = read_response(response).map_err(|error| Status::internal(error.to_string()))?;
    leadership
        .oracle
        .lock()
        .reserved(response.reserved_until_ms);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use strata_proto::raft_serverpb::RaftMessage;
    use strata_raftstore::{Store, StoreOptions, Surroundings, Transport};
    use strata_scheduler::{SYSTEM_REGION_ID, SchedulerMachine, SystemState};
    use strata_storage::MemEngine;
    use strata_storage::bootstrap::{ClusterSpec, write_bootstrap};
    use strata_storage::snapshot::{MemFiles, SnapshotManager};

    use super::super::reporter::ReportQueue;
    use super::*;
    use crate::cluster::Cluster;
    use crate::config::Config;

    struct Nowhere;

    impl Transport for Nowhere {
        fn send(&self, _: u64, _: Vec<RaftMessage>) {}
        fn send_snapshot(&self, _: u64, _: RaftMessage) {}
    }

    /// A store that lost the lead and won it back reads and writes region 1 as before, but
    /// another one gave out timestamps in between: the old lead gives out nothing more.
    #[tokio::test]
    async fn a_lead_of_an_earlier_term_gives_out_nothing() {
        let logger = Logger::root(slog::Discard, slog::o!());
        let spec = ClusterSpec::new(&[1], "test", 6, 1).unwrap();
        let engines = MemEngine::new_pair();
        write_bootstrap(&engines, &spec.ident(1, 7), &spec.layout()).unwrap();
        let snapshots = SnapshotManager::open(MemFiles::new(), u64::MAX).unwrap();
        let surroundings = Surroundings {
            transport: Arc::new(Nowhere),
            heartbeats: ReportQueue::new(Arc::default()),
            system: Arc::new(SchedulerMachine::new(spec.layout())),
            logger: logger.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let store =
            Store::start(1, StoreOptions::default(), engines, snapshots, surroundings).unwrap();
        let handle = store.handle();
        while handle.leader_of(SYSTEM_REGION_ID).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let view = read_system(&handle, Duration::from_secs(10)).await.unwrap();
        let config = Config::default();
        let addresses = BTreeMap::from([(1, "a:1".to_owned())]);
        let cluster = Arc::new(Cluster::new(9, 1, 7, 0, addresses, &config));
        let lead_of = |term| {
            Leadership::new(
                term,
                handle.clone(),
                cluster.clone(),
                config.scheduler.clone(),
                logger.clone(),
                SystemState::load(&*view, &spec.layout()).unwrap(),
            )
        };
        let term = handle.region_state(SYSTEM_REGION_ID).unwrap().term;
        let earlier = lead_of(term - 1);
        assert!(!holds_lease(&earlier).await);
        assert!(grant(&earlier, 1).await.is_err(), "a mark of another term");
        let present = lead_of(term);
        assert!(holds_lease(&present).await);
        assert!(grant(&present, 1).await.is_ok());
        tokio::task::spawn_blocking(move || store.shutdown())
            .await
            .unwrap();
    }
}
