//! Calls of the store as futures.
//!
//! The store answers through a callback, exactly once. Dropping the future drops the
//! token, which gives the request up if it is not yet proposed: that is what happens when
//! a client goes away and its handler is cancelled.

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use strata_raftstore::{
    Answer, Error, Request, RequestBody, RequestHeader, StoreHandle, SystemView,
};
use strata_scheduler::SYSTEM_REGION_ID;
use tokio::sync::oneshot;

/// Executes a request and waits for its result.
pub(crate) async fn call(store: &StoreHandle, request: Request) -> Result<Answer, Error> {
    let (reply, answer) = oneshot::channel();
    let token = store.execute(
        request,
        Box::new(move |result| {
            // The receiver is gone when the handler was cancelled; nobody waits then.
            let _ = reply.send(result);
        }),
    );
    let result = answer
        .await
        .unwrap_or_else(|_| Err(Error::Stopping("the request was dropped".to_owned())));
    token.detach();
    result
}

fn system_request(store: &StoreHandle, body: RequestBody, time: Duration) -> Request {
    Request {
        header: RequestHeader {
            region_id: SYSTEM_REGION_ID,
            deadline: store.now() + time,
            ..Default::default()
        },
        body,
    }
}

/// Reads the system region, linearizably: this store led it at some instant of the call.
pub(crate) async fn read_system(
    store: &StoreHandle,
    time: Duration,
) -> Result<Arc<dyn SystemView>, Error> {
    match call(store, system_request(store, RequestBody::SystemRead, time)).await? {
        Answer::System(view) => Ok(view),
        other => Err(unexpected(&other)),
    }
}

/// Executes one command of the scheduler's state machine and returns its response.
pub(crate) async fn write_system(
    store: &StoreHandle,
    command: Bytes,
    time: Duration,
) -> Result<Bytes, Error> {
    let request = system_request(store, RequestBody::SystemWrite(command), time);
    match call(store, request).await? {
        Answer::SystemWritten(response) => Ok(response),
        other => Err(unexpected(&other)),
    }
}

/// The error for an answer of the wrong kind, which the store never gives.
pub(crate) fn unexpected(answer: &Answer) -> Error {
    Error::Stopping(format!("an answer of the wrong kind: {answer:?}"))
}
