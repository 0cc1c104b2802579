//! What is written together, in which order, and what happens where the socket is full or gone.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::*;

async fn pair() -> (Gathered, TcpStream) {
    const SYSTEM_BUFFER_BYTES: u32 = 64 << 10;
    let listening = TcpSocket::new_v4().unwrap();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    listening.set_recv_buffer_size(SYSTEM_BUFFER_BYTES).unwrap();
    let listener = listening.listen(1).unwrap();
    let near = TcpSocket::new_v4().unwrap();
    near.set_send_buffer_size(SYSTEM_BUFFER_BYTES).unwrap();
    let near = near.connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let near = near.unwrap();
    near.set_nodelay(true).unwrap();
    (Gathered::new(near), far.unwrap().0)
}

/// Bytes that tell their place.
fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count)
        .map(|place| (place % 251) as u8)
        .collect()
}

fn buffered(socket: &Gathered) -> usize {
    socket.shared.lock().buffer.len()
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn what_ready_tasks_write_before_the_second_poll_goes_out_with_the_first() {
    let (socket, mut far) = pair().await;
    let mut writer = socket.clone();
    let mut from = 0;
    let connection = pin!(poll_fn(|context| {
        let wrote = Pin::new(&mut writer).poll_write(context, &bytes(from, 100));
        assert!(matches!(wrote, Poll::Ready(Ok(100))), "{wrote:?}");
        from += 100;
        assert!(Pin::new(&mut writer).poll_flush(context).is_ready());
        Poll::<()>::Pending
    }));
    let mut driven = pin!(socket.drive(connection));
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let mut context = Context::from_waker(&waker);
    for round in 1..=3 {
        assert!(driven.as_mut().poll(&mut context).is_pending());
        assert_eq!(buffered(&socket), 100, "written before others could run");
        assert_eq!(woken.0.load(Ordering::Relaxed), round, "nobody is to poll");
        assert!(driven.as_mut().poll(&mut context).is_pending());
        assert_eq!(buffered(&socket), 0, "written late");
        let mut got = vec![0; 1000];
        let count = far.read(&mut got).await.unwrap();
        assert_eq!(got[..count], bytes((round - 1) * 200, 200));
    }
}

#[tokio::test]
async fn small_and_large_writes_keep_their_order() {
    let (socket, mut far) = pair().await;
    let sizes = [
        1,
        300,
        LARGE_BYTES,
        5,
        LARGE_BYTES * 9 + 7,
        LARGE_BYTES - 1,
        2,
    ];
    let total: usize = sizes.iter().sum();
    let mut writer = socket.clone();
    let writing = pin!(async move {
        let mut from = 0;
        for size in sizes {
            writer.write_all(&bytes(from, size)).await.unwrap();
            from += size;
        }
        writer.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    let (_, read) = tokio::join!(socket.drive(writing), far.read_to_end(&mut got));
    assert_eq!(read.unwrap(), total);
    assert!(got == bytes(0, total), "bytes changed places");
}

#[tokio::test]
async fn what_is_left_is_written_though_the_connection_is_not_woken() {
    let (socket, mut far) = pair().await;
    let mut writer = socket.clone();
    let connection = pin!(async move {
        writer.write_all(b"answer").await.unwrap();
        writer.flush().await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut got = [0; 6];
    tokio::select! {
        () = socket.drive(connection) => unreachable!("it never ends"),
        read = far.read_exact(&mut got) => assert_eq!(read.unwrap(), 6),
    }
    assert_eq!(&got, b"answer");
}

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_is_slow() {
    const TOTAL: usize = 32 << 20;
    const PIECE: usize = 1000;
    let (socket, mut far) = pair().await;
    let mut writer = socket.clone();
    let written = Arc::new(Mutex::new(0));
    let count = written.clone();
    let connection = tokio::spawn({
        let socket = socket.clone();
        async move {
            let writing = pin!(async move {
                for from in (0..TOTAL).step_by(PIECE) {
                    let piece = bytes(from, PIECE.min(TOTAL - from));
                    writer.write_all(&piece).await.unwrap();
                    *count.lock() += piece.len();
                    assert!(buffered(&writer) < BUFFER_BYTES_MAX + PIECE);
                }
                writer.shutdown().await.unwrap();
            });
            socket.drive(writing).await;
        }
    });
    // Nobody reads: it comes to a stand.
    let mut before = usize::MAX;
    while before != *written.lock() {
        before = *written.lock();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }
    assert!(before < TOTAL, "all was taken with nobody to read it");
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert!(got == bytes(0, TOTAL), "{} of {TOTAL} bytes", got.len());
    connection.await.unwrap();
}

#[tokio::test]
async fn a_failure_of_the_last_write_is_told_to_the_connection() {
    let (socket, far) = pair().await;
    // Unread bytes at its end make the peer answer with a reset.
    let mut writer = socket.clone();
    let connection = pin!(async move {
        loop {
            if let Err(error) = writer.write_all(b"x").await {
                return error;
            }
            if let Err(error) = writer.flush().await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    drop(far);
    let error = socket.drive(connection).await;
    let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

#[tokio::test]
async fn a_failed_write_wakes_the_connection_once() {
    let (socket, _far) = pair().await;
    let mut writer = socket.clone();
    // From here on the socket takes no writes, while it may still be read.
    poll_fn(|context| Pin::new(&mut socket.shared.lock().socket).poll_shutdown(context))
        .await
        .unwrap();
    let mut polls = 0;
    let connection = pin!(poll_fn(|context| {
        polls += 1;
        let touched = match polls {
            1 => Pin::new(&mut writer).poll_write(context, b"x").map_ok(drop),
            4 => Pin::new(&mut writer).poll_flush(context),
            _ => return Poll::Pending,
        };
        match touched {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            _ => Poll::Pending,
        }
    }));
    let mut driven = pin!(socket.drive(connection));
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let mut context = Context::from_waker(&waker);
    for wanted in [1, 2, 2] {
        assert!(driven.as_mut().poll(&mut context).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), wanted);
    }
    match driven.as_mut().poll(&mut context) {
        Poll::Ready(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
        Poll::Pending => panic!("the connection was not told"),
    }
}

#[tokio::test]
async fn others_run_between_two_reads() {
    let (socket, mut far) = pair().await;
    let sent = bytes(0, READ_BYTES_MAX * 3);
    far.write_all(&sent).await.unwrap();
    let mut reader = socket.clone();
    let mut got = Vec::new();
    let mut polls = 0;
    let connection = pin!(poll_fn(|context| {
        polls += 1;
        let before = got.len();
        loop {
            let mut piece = [0; READ_BYTES_MAX / 2];
            let mut into = ReadBuf::new(&mut piece);
            if Pin::new(&mut reader)
                .poll_read(context, &mut into)
                .is_pending()
            {
                break;
            }
            got.extend_from_slice(into.filled());
        }
        assert!(got.len() - before <= READ_BYTES_MAX, "{polls}: {before}");
        if got.len() < sent.len() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }));
    socket.drive(connection).await;
    assert_eq!(got, sent);
}
