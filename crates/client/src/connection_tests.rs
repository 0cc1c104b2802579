//! Calls over a connection to a server of HTTP/2 that does as each test says.

use std::pin::pin;

use bytes::BytesMut;
use futures::future::join_all;
use h2::server::SendResponse;
use http_body_util::{BodyExt, StreamBody};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn request(body: Body) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri("/service/Call")
        .body(body)
        .unwrap()
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Body::new(http_body_util::Full::new(bytes.into()))
}

/// A body whose pieces come from the sender.
fn pieces() -> (mpsc::UnboundedSender<Bytes>, Body) {
    let (pieces, stream) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(stream)
        .map(|piece| Ok::<_, tonic::Status>(Frame::data(piece)));
    (pieces, Body::new(StreamBody::new(frames)))
}

async fn whole(mut stream: RecvStream) -> Bytes {
    let mut all = BytesMut::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.unwrap();
        stream.flow_control().release_capacity(piece.len()).unwrap();
        all.extend_from_slice(&piece);
    }
    all.freeze()
}

/// Answers with what came, and a trailer.
async fn echo(asked: Request<RecvStream>, mut answer: SendResponse<Bytes>) {
    let bytes = whole(asked.into_body()).await;
    let mut stream = answer.send_response(Response::new(()), false).unwrap();
    stream.send_data(bytes, false).unwrap();
    let mut trailers = tonic::codegen::http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

/// Serves one connection, each call by [`echo`]; ends after `calls`, and closes it.
async fn serve(listener: &TcpListener, calls: usize) -> Vec<Request<()>> {
    let (socket, _) = listener.accept().await.unwrap();
    let mut server = h2::server::handshake(socket).await.unwrap();
    let mut heads = Vec::new();
    let mut answering = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = server.accept() => {
                let Some(Ok((asked, answer))) = accepted else { break };
                let (head, stream) = asked.into_parts();
                heads.push(Request::from_parts(head, ()));
                answering.spawn(echo(Request::new(stream), answer));
            }
            Some(_) = answering.join_next() => {
                if heads.len() == calls && answering.is_empty() {
                    server.graceful_shutdown();
                }
            }
        }
    }
    heads
}

async fn ask(connection: &Connection, body: Body) -> Result<(Bytes, usize), StdError> {
    let answer = connection.clone().call(request(body)).await?;
    let collected = answer.into_body().collect().await?;
    let trailers = collected.trailers().map_or(0, |trailers| trailers.len());
    Ok((collected.to_bytes(), trailers))
}

fn is_never_sent(error: &StdError) -> bool {
    error.is::<ConnectError>()
}

#[tokio::test]
async fn calls_share_a_connection_and_say_where_they_go() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let calls = (0..50).map(|number| ask(&connection, body(format!("call {number}"))));
    // The server accepts once.
    let (answers, heads) = tokio::join!(join_all(calls), serve(&listener, 50));
    for (number, answer) in answers.into_iter().enumerate() {
        let (bytes, trailers) = answer.unwrap();
        assert_eq!(
            (&bytes[..], trailers),
            (format!("call {number}").as_bytes(), 1)
        );
    }
    assert_eq!(heads.len(), 50);
    assert_eq!(
        heads[0].uri().to_string(),
        format!("http://{address}/service/Call")
    );
    assert!(
        heads[0].headers()[USER_AGENT]
            .to_str()
            .unwrap()
            .starts_with("strata-client/")
    );
}

#[tokio::test]
async fn a_connection_that_was_closed_is_opened_again() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    for round in 0..3 {
        let (answer, _) = tokio::join!(ask(&connection, body("again")), serve(&listener, 1));
        let (bytes, _) = answer.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(bytes, "again");
    }
}

#[tokio::test]
async fn a_call_that_was_under_way_fails_and_may_have_been_executed() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let dies = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(socket).await.unwrap();
        let accepted = server.accept().await.unwrap().unwrap();
        drop(server);
        drop(accepted);
    };
    let (lost, ()) = tokio::join!(ask(&connection, body("lost")), dies);
    let error = lost.unwrap_err();
    assert!(!is_never_sent(&error), "{error:?}");
    let (answer, _) = tokio::join!(ask(&connection, body("next")), serve(&listener, 1));
    assert_eq!(answer.unwrap().0, "next");
}

#[tokio::test]
async fn calls_to_a_node_that_is_not_there_were_not_sent() {
    let (listener, address) = listen().await;
    drop(listener);
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let calls = (0..20).map(|_| ask(&connection, body("nobody")));
    for answer in join_all(calls).await {
        let error = answer.unwrap_err();
        assert!(is_never_sent(&error), "{error:?}");
    }
    // A node that comes later is found.
    let listener = TcpListener::bind(&address).await.unwrap();
    let (answer, _) = tokio::join!(ask(&connection, body("there")), serve(&listener, 1));
    assert_eq!(answer.unwrap().0, "there");
}

#[tokio::test]
async fn a_connection_that_takes_too_long_is_given_up() {
    const SHORT: Duration = Duration::from_millis(50);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // Nobody accepts: once the queue is full the system lets further ones wait.
    let mut queued = Vec::new();
    while let Ok(socket) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        queued.push(socket.unwrap());
        assert!(queued.len() < 100, "the queue has no end");
    }
    let connection = Connection::new(&address.to_string(), SHORT).unwrap();
    let asked = tokio::time::timeout(PATIENCE, ask(&connection, body("late"))).await;
    let error = asked.expect("a connection was made").unwrap_err();
    assert!(is_never_sent(&error), "{error:?}");
    assert!(
        error.to_string().contains("no connection in 50ms"),
        "{error}"
    );
}

#[tokio::test]
async fn a_call_that_nobody_polls_holds_up_no_other() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    // It has asked for the connection, and is left alone.
    let mut idle = pin!(ask(&connection, body("idle")));
    assert!(futures::poll!(idle.as_mut()).is_pending());
    let (answer, _) = tokio::join!(ask(&connection, body("other")), serve(&listener, 1));
    assert_eq!(answer.unwrap().0, "other");
}

#[tokio::test]
async fn a_call_that_waits_for_room_holds_up_none_that_has_it() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let calls = async {
        ask(&connection, body("first")).await.unwrap();
        let open = connection.shared.open().await.unwrap();
        // As one that waited when there was no room, and is not polled.
        let _turn = open.turn.lock().await;
        ask(&connection, body("second")).await
    };
    let (second, _) = tokio::join!(calls, serve(&listener, 2));
    assert_eq!(second.unwrap().0, "second");
}

#[test]
fn an_attempt_whose_runtime_ended_is_made_again() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let second = runtime();
    let (listener, address) = second.block_on(listen());
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let first = runtime();
    first.block_on(async {
        let mut asked = pin!(ask(&connection, body("cut off")));
        assert!(futures::poll!(asked.as_mut()).is_pending());
    });
    drop(first);
    second.block_on(async {
        let error = ask(&connection, body("too early")).await.unwrap_err();
        assert!(is_never_sent(&error), "{error:?}");
        let (answer, _) = tokio::join!(ask(&connection, body("anew")), serve(&listener, 1));
        assert_eq!(answer.unwrap().0, "anew");
    });
}

#[tokio::test]
async fn calls_beyond_the_limit_of_the_node_wait() {
    const LIMIT: u32 = 3;
    const CALLS: usize = 300;
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let server = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(LIMIT);
        let mut server = builder.handshake::<_, Bytes>(socket).await.unwrap();
        while let Some(Ok((asked, answer))) = server.accept().await {
            tokio::spawn(echo(asked, answer));
        }
    });
    // The node's settings are there when the first is answered.
    ask(&connection, body("first")).await.unwrap();
    let calls = (0..CALLS).map(|number| ask(&connection, body(format!("call {number}"))));
    for (number, answer) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().0, format!("call {number}"));
    }
    server.abort();
}

#[tokio::test]
async fn a_stream_that_the_node_refuses_was_not_executed() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let refuses = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(socket).await.unwrap();
        let (_asked, mut answer) = server.accept().await.unwrap().unwrap();
        answer.send_reset(Reason::REFUSED_STREAM);
        server.accept().await.is_none()
    };
    let error = tokio::select! {
        error = ask(&connection, body("refused")) => error.unwrap_err(),
        _ = refuses => panic!("the connection ended"),
    };
    assert!(is_never_sent(&error), "{error:?}");
}

#[tokio::test]
async fn a_call_that_is_given_up_is_reset_at_the_node() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    // One with a whole body, one whose body never ends.
    let never = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, tonic::Status>>());
    for body in [body("whole"), Body::new(never)] {
        let asking = tokio::spawn({
            let connection = connection.clone();
            async move { ask(&connection, body).await }
        });
        let (socket, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake::<_>(socket).await.unwrap();
        let (_asked, mut answer) = server.accept().await.unwrap().unwrap();
        asking.abort();
        let reset = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                reset = poll_fn(|context| answer.poll_reset(context)) => reset.unwrap(),
                _ = server.accept() => panic!("the connection ended"),
            }
        });
        assert_eq!(reset.await.expect("no reset"), Reason::CANCEL);
        // The next one is to have a connection of its own.
        *connection.shared.state.lock() = State::Closed;
    }
}

#[tokio::test]
async fn a_body_in_pieces_is_sent_as_it_comes_and_as_there_is_room() {
    // Far more than the window of 64 KiB that a server gives unless it says otherwise.
    const PIECE: usize = 100_000;
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let (pieces, streamed) = pieces();
    let asking = pin!(ask(&connection, streamed));
    let sending = async {
        for number in 0..10u8 {
            pieces.send(vec![number; PIECE].into()).unwrap();
            tokio::task::yield_now().await;
        }
        drop(pieces);
    };
    let (answer, (), _) = tokio::join!(asking, sending, serve(&listener, 1));
    let (bytes, _) = answer.unwrap();
    assert_eq!(bytes.len(), 10 * PIECE);
    assert!(
        bytes
            .chunks(PIECE)
            .zip(0..)
            .all(|(piece, number)| piece.iter().all(|byte| *byte == number))
    );
}

#[tokio::test]
async fn an_answer_begins_before_the_request_ends() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let (pieces, streamed) = pieces();
    let server = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(socket).await.unwrap();
        let (asked, mut answer) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let mut out = answer.send_response(Response::new(()), false).unwrap();
        let mut asked = asked.into_body();
        while let Some(piece) = asked.data().await {
            out.send_data(piece.unwrap(), false).unwrap();
        }
        out.send_data(Bytes::new(), true).unwrap();
    });
    let asked = request(streamed);
    let answer = connection.clone().call(asked).await.unwrap();
    let mut answers = answer.into_body();
    for piece in ["one", "two"] {
        pieces.send(Bytes::from(piece)).unwrap();
        let frame = answers.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(pieces);
    let rest = answers.collect().await.unwrap().to_bytes();
    assert!(rest.is_empty(), "{rest:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn a_body_that_fails_sends_nothing() {
    let (listener, address) = listen().await;
    let connection = Connection::new(&address, PATIENCE).unwrap();
    let fails = tokio_stream::once(Err::<Frame<Bytes>, _>(tonic::Status::internal("no body")));
    let error = ask(&connection, Body::new(StreamBody::new(fails)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no body"), "{error}");
    let (answer, heads) = tokio::join!(ask(&connection, body("whole")), serve(&listener, 1));
    assert_eq!(answer.unwrap().0, "whole");
    assert_eq!(heads.len(), 1, "the failed call was sent");
}
