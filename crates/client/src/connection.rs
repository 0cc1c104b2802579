//! One HTTP/2 connection to a node, opened when it is needed and again after it broke.
//!
//! ```text
//! call -> open? no: a task connects, all waiting calls share what becomes of it
//!      -> one sender for all calls, which waits while the node has as many as it takes
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
//! * [`tonic::ConnectError`] means that the node has done nothing for the call: it was not sent, or
//!   the node refused the stream.
//! * A connection that failed is never used for a new call, and calls that were under way on it
//!   fail, each for itself.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http_body::Frame;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use strata_socket::Gathered;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
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
/// Calls that are sent before the node has said how many it takes at a time. A node refuses those
/// beyond its limit.
const STREAMS_BEFORE_SETTINGS: usize = 100;
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
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    /// A task of its own connects: no call is waited for, nor ends the attempt when it gives up.
    Connecting(watch::Receiver<Option<Attempt>>),
    Open(Open),
}

/// What became of an attempt to connect.
type Attempt = Result<Open, Arc<io::Error>>;

/// A connection that was open when it was last looked at.
type Open = Arc<Streams>;

/// Where calls begin. One sender for all of them: it holds back what is beyond the node's limit,
/// and those that wait have sent nothing.
struct Streams {
    sender: Mutex<Sender>,
    /// Held by the call that waits for room; the others queue behind it. A call that finds room
    /// never takes it: a lock that is handed to the next in line stands still with a caller that
    /// does not poll its call.
    turn: tokio::sync::Mutex<()>,
}

struct Sender {
    streams: SendRequest<Bytes>,
    /// There was no room for the last call that asked. The sender wakes only the last one.
    full: bool,
}

impl Sender {
    /// Begins a call, which is taken out of `head`, if the node takes one more.
    fn poll_begin(
        &mut self,
        head: &mut Request<()>,
        ends: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<Begun, h2::Error>> {
        let ready = self.streams.poll_ready(context);
        self.full = ready.is_pending();
        ready!(ready)?;
        Poll::Ready(self.streams.send_request(std::mem::take(head), ends))
    }
}

/// A call whose head was sent.
type Begun = (ResponseFuture, SendStream<Bytes>);

impl Streams {
    fn new(streams: SendRequest<Bytes>) -> Self {
        Self {
            sender: Mutex::new(Sender {
                streams,
                full: false,
            }),
            turn: tokio::sync::Mutex::default(),
        }
    }

    async fn begin(&self, head: &mut Request<()>, ends: bool) -> Result<Begun, h2::Error> {
        let begun = poll_fn(|context| {
            let mut sender = self.sender.lock();
            Poll::Ready(match sender.full {
                true => Poll::Pending,
                false => sender.poll_begin(head, ends, context),
            })
        });
        if let Poll::Ready(begun) = begun.await {
            return begun;
        }
        let _turn = self.turn.lock().await;
        poll_fn(|context| self.sender.lock().poll_begin(head, ends, context)).await
    }
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
                state: Mutex::default(),
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
    async fn send(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<AnswerBody>, StdError> {
        let (head, body) = request.into_parts();
        let outgoing = Outgoing::begin(body).await?;
        let head = self.complete(head)?;
        let (answer, stream) = self.begin(head, outgoing.is_empty()).await?;
        let cancel = outgoing.send(stream)?;
        match answer.await {
            Ok(answer) => Ok(answer.map(|stream| AnswerBody::new(stream, cancel))),
            // RFC 9113, section 8.7: the node has done nothing for it.
            Err(error) if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) => {
                Err(never_sent(error).into())
            }
            Err(error) => Err(error.into()),
        }
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

    /// Puts the head of a call on a connection, as soon as the node takes one more.
    async fn begin(
        self: &Arc<Self>,
        mut head: Request<()>,
        ends: bool,
    ) -> Result<Begun, ConnectError> {
        let mut attempt = 1;
        loop {
            let open = self.open().await?;
            let error = match open.begin(&mut head, ends).await {
                Ok(begun) => return Ok(begun),
                Err(error) => error,
            };
            self.forget(&open);
            // A head without its address was taken: the error came with it.
            if attempt == ATTEMPTS || head.uri().authority().is_none() {
                return Err(never_sent(error));
            }
            attempt += 1;
        }
    }

    /// The connection, opened if there is none.
    async fn open(self: &Arc<Self>) -> Result<Open, ConnectError> {
        let mut attempt = {
            let mut state = self.state.lock();
            match &*state {
                State::Open(open) => return Ok(open.clone()),
                State::Connecting(attempt) => attempt.clone(),
                State::Closed => {
                    let (ended, attempt) = watch::channel(None);
                    *state = State::Connecting(attempt.clone());
                    tokio::spawn(self.clone().connect(ended));
                    attempt
                }
            }
        };
        let ended = attempt.wait_for(Option::is_some).await;
        let attempt = ended.ok().and_then(|ended| ended.clone());
        match attempt {
            Some(Ok(open)) => Ok(open),
            Some(Err(error)) => Err(ConnectError(Box::new(error))),
            // The runtime of the call that began it has ended; the next call begins anew.
            None => {
                let mut state = self.state.lock();
                if matches!(&*state, State::Connecting(attempt) if attempt.has_changed().is_err()) {
                    *state = State::Closed;
                }
                Err(ConnectError("the attempt to connect was given up".into()))
            }
        }
    }

    /// Connects, and says what became of it to all that wait for it.
    async fn connect(self: Arc<Self>, ended: watch::Sender<Option<Attempt>>) {
        let waited = self.connect_timeout;
        let attempt = tokio::time::timeout(waited, self.handshake()).await;
        let attempt = attempt.unwrap_or_else(|_| {
            let text = format!("no connection in {waited:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
        let attempt = attempt.map_err(Arc::new);
        *self.state.lock() = match &attempt {
            Ok(open) => State::Open(open.clone()),
            Err(_) => State::Closed,
        };
        ended.send_replace(Some(attempt));
    }

    async fn handshake(&self) -> io::Result<Open> {
        let socket = self.reach().await?;
        socket.set_nodelay(true)?;
        let socket = Gathered::new(socket);
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .enable_push(false)
            .handshake(socket.clone());
        let (streams, connection) = handshake.await.map_err(io::Error::other)?;
        // Ends when all streams and their senders are gone, or with an error that every call on
        // it is told.
        tokio::spawn(async move {
            let _ = socket.drive(pin!(connection)).await;
        });
        Ok(Arc::new(Streams::new(streams)))
    }

    /// Tries the addresses of the node's name in turn; each has its share of the time.
    async fn reach(&self) -> io::Result<TcpStream> {
        let addresses: Vec<_> = tokio::net::lookup_host(self.authority.as_str())
            .await?
            .collect();
        let share = self.connect_timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => failure = error,
                Err(_) => {
                    let text = format!("no connection in {share:?}");
                    failure = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(failure)
    }

    /// Has the next call open a new connection, unless one did so already.
    fn forget(&self, failed: &Open) {
        let mut state = self.state.lock();
        if let State::Open(open) = &*state
            && Arc::ptr_eq(open, failed)
        {
            *state = State::Closed;
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
    /// sends what does, until the returned end is dropped.
    fn send(self, mut stream: SendStream<Bytes>) -> Result<Option<oneshot::Sender<()>>, h2::Error> {
        let Self { pieces, rest } = self;
        let mut pieces = pieces.into_iter().flatten().peekable();
        while let Some(piece) = pieces.next() {
            let ends = rest.is_none() && pieces.peek().is_none();
            stream.send_data(piece, ends)?;
        }
        Ok(rest.map(|rest| {
            let (cancel, cancelled) = oneshot::channel();
            tokio::spawn(async move {
                tokio::select! {
                    () = send_rest(&mut stream, rest) => {}
                    _ = cancelled => stream.send_reset(Reason::CANCEL),
                }
            });
            cancel
        }))
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
async fn send_rest(stream: &mut SendStream<Bytes>, mut body: Body) {
    loop {
        let next = poll_fn(|context| match stream.poll_reset(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => poll_piece(&mut body, context).map(Some),
        });
        let sent = match next.await {
            // The node wants no more, or the connection failed.
            None => return,
            Some(Some(Ok(piece))) => send_piece(stream, piece).await,
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
    /// Ends what is still sent of the request when nobody reads the answer any more.
    _cancel: Option<oneshot::Sender<()>>,
    /// All data was read; trailers are next.
    data_ended: bool,
}

impl AnswerBody {
    fn new(stream: RecvStream, cancel: Option<oneshot::Sender<()>>) -> Self {
        Self {
            stream,
            _cancel: cancel,
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
