//! Streams of timestamps, answered by the leader of region 1 alone.
//!
//! Each request gets exactly one answer, in order, with its own count. Requests that wait
//! together share one check of the lease: a linearizable read of region 1 that begins
//! after they came in, so no later leader can have given out anything before them. A
//! stream ends as soon as the lead is lost, because clients wait for an answer without a
//! time-out.

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
        if read_system(&leadership.store, leadership.config.forward_time)
            .await
            .is_err()
        {
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
    let response = read_response(response).map_err(|error| Status::internal(error.to_string()))?;
    leadership
        .oracle
        .lock()
        .reserved(response.reserved_until_ms);
    Ok(())
}
