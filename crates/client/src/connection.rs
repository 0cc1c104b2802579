//! One HTTP/2 connection to a node, opened when it is needed and again after it broke.
//!
//! ```text
//! call -> open? no: connect, all waiting calls share the attempt and what became of it
//!      -> stream: head and first piece of the body, in the caller's task
//!         the rest of a streamed body -> a task that goes at the pace of the node
//!      -> answer, whose pieces give their room back as they are taken
//! ```
//!
//! Why not tonic's channel, which does the same: there a call passes a queue to a worker, a
//! second one to the connection, and takes a task of its own to wait for the answer. Here the
//! caller's task does all of it but the socket's reads and writes, for half of the CPU time
//! (`docs/decisions/performance.md`). Where a node and its clients share processors, as in
//! `make bench`, that is time that the node gets.
//!
//! Invariants
//! * [`tonic::ConnectError`] means that nothing of the call was sent.
//! * A connection that failed is never used for a new call, and calls that were under way on it
//!   fail, each for itself.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http_body::Frame;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use strata_socket::Gathered;
use tokio::net::TcpStream;
use tonic::ConnectError;
use tonic::body::Body;
use tonic::codegen::http::header::USER_AGENT;
use tonic::codegen::http::uri::{Authority, InvalidUri, Scheme, Uri};
use tonic::codegen::http::{HeaderValue, Request, Response, request};
use tonic::codegen::{Body as HttpBody, Service, StdError};

/// Bytes that a node may send on one stream ahead of its reader.
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes that a node may send on all streams together ahead of their readers.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Attempts to find a connection that takes the call: one that may turn out to have failed, and
/// a new one.
const ATTEMPTS: usize = 2;

const OUR_NAME: HeaderValue =
    HeaderValue::from_static(concat!("strata-client/", env!("CARGO_PKG_VERSION")));

/// A connection to one node, for clients that `tonic` generates. Clones share it.
///
/// Nothing is sent and nothing resolved before the first call. A call may wait as long as its
/// caller does; a time limit is the caller's to set.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    authority: Authority,
    connect_timeout: Duration,
    open: Mutex<Option<Open>>,
    /// Attempts to connect that have ended.
    ended: AtomicU64,
    /// Held by the call that connects; why the last attempt failed.
    connecting: tokio::sync::Mutex<Option<Arc<io::Error>>>,
}

/// A connection that was open when it was last looked at.
#[derive(Clone)]
struct Open {
    /// The attempt that opened it.
    number: u64,
    streams: SendRequest<Bytes>,
}

impl Connection {
    /// A connection to `address`, which is `HOST:PORT`; an attempt to open it takes at most
    /// `connect_timeout`.
    ///
    /// # Errors
    /// When `address` cannot stand in a URI.
    pub fn new(address: &str, connect_timeout: Duration) -> Result<Self, InvalidUri> {
        Ok(Self {
            shared: Arc::new(Shared {
                authority: address.parse()?,
                connect_timeout,
                open: Mutex::default(),
                ended: AtomicU64::new(0),
                connecting: tokio::sync::Mutex::default(),
            }),
        })
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<AnswerBody>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, StdError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.send(request).await })
    }
}

impl Shared {
    async fn send(&self, request: Request<Body>) -> Result<Response<AnswerBody>, StdError> {
        let (head, body) = request.into_parts();
        let outgoing = Outgoing::begin(body).await?;
        let head = self.complete(head)?;
        let mut open = self.ready().await?;
        let sent = open.streams.send_request(head, outgoing.is_empty());
        let (answer, stream) = sent.map_err(|error| {
            self.forget(&open);
            never_sent(error)
        })?;
        outgoing.send(stream)?;
        Ok(answer.await?.map(AnswerBody::new))
    }

    /// The head as HTTP/2 wants it: tonic leaves out where the call goes.
    fn complete(&self, mut head: request::Parts) -> Result<Request<()>, StdError> {
        let mut uri = head.uri.into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        head.uri = Uri::from_parts(uri)?;
        head.headers.insert(USER_AGENT, OUR_NAME);
        Ok(Request::from_parts(head, ()))
    }

    /// A connection that takes a call now.
    async fn ready(&self) -> Result<Open, ConnectError> {
        let mut attempt = 1;
        loop {
            let mut open = self.open().await?;
            match poll_fn(|context| open.streams.poll_ready(context)).await {
                Ok(()) => return Ok(open),
                Err(error) => {
                    self.forget(&open);
                    if attempt == ATTEMPTS {
                        return Err(never_sent(error));
                    }
                    attempt += 1;
                }
            }
        }
    }

    /// The connection, opened if there is none.
    async fn open(&self) -> Result<Open, ConnectError> {
        if let Some(open) = self.current() {
            return Ok(open);
        }
        let before = self.ended.load(Ordering::Acquire);
        let mut failure = self.connecting.lock().await;
        if let Some(open) = self.current() {
            return Ok(open);
        }
        // One attempt answers all that waited for it: they would wait once more each otherwise.
        if self.ended.load(Ordering::Acquire) != before
            && let Some(failure) = &*failure
        {
            return Err(ConnectError(Box::new(failure.clone())));
        }
        let connected = self.connect().await;
        let number = self.ended.fetch_add(1, Ordering::AcqRel);
        match connected {
            Ok(streams) => {
                *failure = None;
                let open = Open { number, streams };
                *self.open.lock() = Some(open.clone());
                Ok(open)
            }
            Err(error) => {
                let error = Arc::new(error);
                *failure = Some(error.clone());
                Err(ConnectError(Box::new(error)))
            }
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Bytes>> {
        let connecting = async {
            let socket = TcpStream::connect(self.authority.as_str()).await?;
            socket.set_nodelay(true)?;
            let socket = Gathered::new(socket);
            let handshake = h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .enable_push(false)
                .handshake(socket.clone());
            let (streams, connection) = handshake.await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((streams, connection, socket))
        };
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let (streams, connection, socket) = connected.map_err(|_| {
            let waited = self.connect_timeout;
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection in {waited:?}"),
            )
        })??;
        // Ends when all streams and their senders are gone, or with an error that every call on
        // it is told.
        tokio::spawn(async move {
            let _ = socket.drive(pin!(connection)).await;
        });
        Ok(streams)
    }

    fn current(&self) -> Option<Open> {
        self.open.lock().clone()
    }

    /// Has the next call open a new connection, unless one did so already.
    fn forget(&self, failed: &Open) {
        let mut open = self.open.lock();
        if open
            .as_ref()
            .is_some_and(|open| open.number == failed.number)
        {
            *open = None;
        }
    }
}

fn never_sent(error: h2::Error) -> ConnectError {
    ConnectError(Box::new(error))
}

/// A call's body on its way out.
struct Outgoing {
    /// What is there already, in order.
    pieces: [Option<Bytes>; 2],
    /// What comes later; `None`: nothing.
    rest: Option<Body>,
}

impl Outgoing {
    /// Takes what is there without waiting: all of it for a call with one message.
    async fn begin(body: Body) -> Result<Self, StdError> {
        let mut outgoing = Self {
            pieces: [None, None],
            rest: Some(body),
        };
        for place in 0..outgoing.pieces.len() {
            let Some(body) = &mut outgoing.rest else {
                break;
            };
            match poll_fn(|context| Poll::Ready(poll_piece(body, context))).await {
                Poll::Ready(Some(piece)) => outgoing.pieces[place] = Some(piece?),
                Poll::Ready(None) => outgoing.rest = None,
                Poll::Pending => break,
            }
        }
        Ok(outgoing)
    }

    fn is_empty(&self) -> bool {
        self.pieces[0].is_none() && self.rest.is_none()
    }

    /// Sends the pieces, the last with the end of the stream if nothing comes later; else a task
    /// sends what does.
    fn send(self, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
        let Self { pieces, rest } = self;
        let mut pieces = pieces.into_iter().flatten().peekable();
        while let Some(piece) = pieces.next() {
            let ends = rest.is_none() && pieces.peek().is_none();
            stream.send_data(piece, ends)?;
        }
        if let Some(rest) = rest {
            tokio::spawn(send_rest(stream, rest));
        }
        Ok(())
    }
}

/// The next piece of a body; what is no data is skipped, as requests have no trailers.
fn poll_piece(
    body: &mut Body,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, tonic::Status>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Poll::Ready(Some(Ok(piece)));
                }
            }
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
            None => return Poll::Ready(None),
        }
    }
}

/// Sends a body piece by piece, each when the node has room for it, until either side ends.
async fn send_rest(mut stream: SendStream<Bytes>, mut body: Body) {
    loop {
        let next = poll_fn(|context| match stream.poll_reset(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => poll_piece(&mut body, context).map(Some),
        });
        let sent = match next.await {
            // The node wants no more, or the connection failed.
            None => return,
            Some(Some(Ok(piece))) => send_piece(&mut stream, piece).await,
            Some(Some(Err(_))) => {
                stream.send_reset(Reason::CANCEL);
                return;
            }
            Some(None) => {
                // An error is told to whoever reads the answer.
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_piece(stream: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), h2::Error> {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        match poll_fn(|context| stream.poll_capacity(context)).await {
            Some(room) => {
                let part = piece.split_to(room?.min(piece.len()));
                if !part.is_empty() {
                    stream.send_data(part, false)?;
                }
            }
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}

/// The body of an answer. Room for what was read goes back to the node at once.
pub struct AnswerBody {
    stream: RecvStream,
    /// All data was read; trailers are next.
    data_ended: bool,
}

impl AnswerBody {
    fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            data_ended: false,
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Fails only where the stream is gone, which the next read tells.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(context));
        Poll::Ready(trailers.transpose().map(|end| end.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
