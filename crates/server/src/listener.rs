//! The node's one port: HTTP/2 for gRPC, HTTP/1.1 for tooling, and other stores' streams of raft
//! messages, side by side. The first byte tells a stream of raft messages from the others.
//!
//! Calls of TiKV's service, which are nearly all there is, go to it at once; the rest is found by
//! the router, whose matching costs as much as a small call itself.
//!
//! What does not speak HTTP is closed and counted, and so is a connection that says nothing
//! for `transport.handshake-time`: it would hold its place for ever. When the node stops,
//! connections get some time to finish what they have begun.
//!
//! Answers of one connection that are ready together are written together ([`Gathered`]).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body as RouterBody;
use bytes::Bytes;
use futures::future::{BoxFuture, Either, FutureExt, MapOk, TryFutureExt};
use http_body_util::Either as EitherBody;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use slog::{Logger, debug, o, warn};
use strata_proto::tikvpb::tikv_server::{Tikv, TikvServer};
use strata_socket::Gathered;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::body::Body as CallBody;
use tonic::codegen::{Body, Service, StdError, http};
use tonic::service::Routes;

use crate::config::{Config, ServerConfig, TransportConfig};
use crate::metrics::ServerMetrics;
use crate::options::NodeError;
use crate::transport::{ExchangeServer, PREFACE};

/// Receive windows of a stream and of a connection: an entry or a large batch fits in.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest frame of HTTP/2 that is taken: a chunk of a snapshot travels in a few of them.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// Pause after the system refused a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Largest header block of a request.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// Takes the port.
///
/// # Errors
/// One line that names the port and what to do.
pub(crate) async fn bind(address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|error| {
        NodeError::Refused(match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "the address {address} is taken by another process; stop it or choose another \
                 --addr"
            ),
            _ => format!("cannot listen on {address}: {error}; choose another --addr"),
        })
    })
}

/// Serves `tikv` and `routes` on a port exactly as a node serves its own, until `shutdown`
/// completes: the same limits, windows and keep-alives. For servers that are measured against a
/// node.
pub async fn serve_port<T: Tikv>(
    config: &Config,
    listener: TcpListener,
    tikv: TikvServer<T>,
    routes: Routes,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(false);
    let server = PortServer {
        services: PortServices {
            tikv,
            rest: routes.into_axum_router(),
            exchange: None,
        },
        server: config.server.clone(),
        transport: config.transport.clone(),
        metrics: Arc::new(ServerMetrics::new()),
        logger: Logger::root(slog::Discard, o!()),
        stopping,
    };
    let stopped = async {
        shutdown.await;
        stop.send_replace(true);
    };
    tokio::join!(server.run(listener), stopped);
}

/// Path of TiKV's service.
const TIKV_PATH: &str = "/tikvpb.Tikv/";

/// All that a port serves.
pub(crate) struct PortServices<T> {
    pub(crate) tikv: TikvServer<T>,
    pub(crate) rest: Router,
    /// Takes connections of other stores that carry raft messages, where there are any.
    pub(crate) exchange: Option<ExchangeServer>,
}

impl<T> Clone for PortServices<T> {
    fn clone(&self) -> Self {
        PortServices {
            tikv: self.tikv.clone(),
            rest: self.rest.clone(),
            exchange: self.exchange.clone(),
        }
    }
}

/// The body of an answer.
type PortBody = EitherBody<CallBody, RouterBody>;
/// An answer that is under way, whose body becomes one of two.
type Answering<B> = MapOk<
    BoxFuture<'static, Result<http::Response<B>, Infallible>>,
    fn(http::Response<B>) -> http::Response<PortBody>,
>;

impl<T, B> Service<http::Request<B>> for PortServices<T>
where
    T: Tikv,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<PortBody>;
    type Error = Infallible;
    type Future = Either<Answering<CallBody>, Answering<RouterBody>>;

    // Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path().starts_with(TIKV_PATH) {
            let answer: BoxFuture<'static, _> = self.tikv.call(request);
            Either::Left(answer.map_ok(|answer| answer.map(EitherBody::Left)))
        } else {
            let answer: BoxFuture<'static, _> = self.rest.call(request).boxed();
            Either::Right(answer.map_ok(|answer| answer.map(EitherBody::Right)))
        }
    }
}

/// Accepts connections and serves `services` on each.
pub(crate) struct PortServer<T> {
    pub(crate) services: PortServices<T>,
    pub(crate) server: ServerConfig,
    pub(crate) transport: TransportConfig,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) logger: Logger,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl<T: Tikv> PortServer<T> {
    /// Serves until the node stops, then waits for connections as long as it may.
    pub(crate) async fn run(self, listener: TcpListener) {
        let connections = self.server.max_connections as usize;
        let places = Arc::new(Semaphore::new(connections));
        let mut stopping = self.stopping.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.changed() => break,
            };
            match accepted {
                Ok((stream, _)) => match places.clone().try_acquire_owned() {
                    Ok(place) => self.serve(stream, place),
                    Err(_) => self.metrics.connections_refused.inc(),
                },
                Err(error) => {
                    warn!(self.logger, "cannot accept a connection"; "reason" => %error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all = u32::try_from(connections).unwrap_or(u32::MAX);
        // Those still open when the time is up are cut when the process ends.
        let _ = timeout(self.server.shutdown_time, places.acquire_many(all)).await;
    }

    fn serve(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let services = self.services.clone();
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.server.max_connection_streams as u32)
            // Calls that were given up before they were looked at, as they are while a node stands
            // still. A few are taken for an attack by default, and cost the connection.
            .max_pending_accept_reset_streams(self.server.max_connection_streams as usize)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(self.transport.keepalive * 5)
            .keep_alive_timeout(self.transport.keepalive * 5);
        builder.http1().timer(TokioTimer::new());
        let metrics = self.metrics.clone();
        let logger = self.logger.clone();
        let mut stopping = self.stopping.clone();
        let patience = self.transport.handshake_time;
        tokio::spawn(async move {
            let Some(first) = first_byte(&stream, patience).await else {
                metrics.connections_failed.inc();
                return;
            };
            if first == PREFACE[0]
                && let Some(exchange) = services.exchange
            {
                exchange.serve(stream).await;
                drop(place);
                return;
            }
            let service = TowerToHyperService::new(services);
            let socket = Gathered::new(stream);
            let connection = builder.serve_connection(TokioIo::new(socket.clone()), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = socket.drive(connection.as_mut()) => ended,
                _ = stopping.changed() => {
                    connection.as_mut().graceful_shutdown();
                    socket.drive(connection).await
                }
            };
            if let Err(error) = ended {
                metrics.connections_failed.inc();
                debug!(logger, "a connection broke off"; "reason" => %error);
            }
            drop(place);
        });
    }
}

/// Waits for the first byte and leaves it there; `None` if it does not come within `patience`.
async fn first_byte(stream: &TcpStream, patience: Duration) -> Option<u8> {
    let mut first = [0];
    match timeout(patience, stream.peek(&mut first)).await {
        Ok(Ok(read)) if read > 0 => Some(first[0]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn bad_input_silent_stranger_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(first_byte(&stream, Duration::from_millis(20)).await, None);
        client.write_all(b"P").await.unwrap();
        let patience = Duration::from_secs(60);
        assert_eq!(first_byte(&stream, patience).await, Some(b'P'));
        let (closing, _) = {
            drop(TcpStream::connect(address).await.unwrap());
            listener.accept().await.unwrap()
        };
        assert_eq!(first_byte(&closing, patience).await, None, "closed");
    }
}
