//! Queues over real sockets of this machine: the test is the task, the threads that push, and the
//! store at the other end, which reads frames and looks at the order of their messages.

use super::*;
use bytes::Bytes;
use std::time::Duration;
use strata_proto::metapb::Peer;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

use super::super::frames::{FrameReader, messages_between};

const LIMITS: QueueLimits = QueueLimits {
    messages: 100,
    bytes: 64 << 20,
    frame_bytes: 1 << 20,
    message_bytes: 32 << 20,
};

fn queue(limits: QueueLimits) -> MessageQueue {
    MessageQueue::new(limits, IntCounter::new("frames", "frames").unwrap())
}

fn peer(store_id: u64) -> Peer {
    Peer {
        store_id,
        ..Peer::default()
    }
}

fn message(region_id: u64, bytes: usize) -> RaftMessage {
    RaftMessage {
        region_id,
        from_peer: Some(peer(2)),
        to_peer: Some(peer(1)),
        extra_ctx: Bytes::from(vec![7; bytes]),
        ..Default::default()
    }
}

fn ids<'a>(messages: impl IntoIterator<Item = &'a RaftMessage>) -> Vec<u64> {
    messages
        .into_iter()
        .map(|message| message.region_id)
        .collect()
}

/// Both ends of a connection.
async fn connection() -> (Arc<OwnedWriteHalf>, FrameReader<OwnedReadHalf>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let (_, write) = near.into_split();
    let (read, _) = far.into_split();
    (Arc::new(write), FrameReader::new(read))
}

async fn next(frames: &mut FrameReader<OwnedReadHalf>) -> Vec<u64> {
    let frame = tokio::time::timeout(Duration::from_secs(60), frames.next(usize::MAX));
    let frame = frame.await.expect("a frame").unwrap();
    let (messages, refused) = messages_between(frame, 2, 1).unwrap();
    assert_eq!(refused, 0);
    ids(&messages)
}

/// Attaches a socket and does all that the task has to do at first.
async fn attach(queue: &MessageQueue, socket: &Arc<OwnedWriteHalf>) {
    queue.attach(socket.clone());
    told(queue).await;
    write_all(queue, socket).await;
}

/// Takes the writer, as a thread does that stands still with it in its hand.
fn hold(queue: &MessageQueue) -> Writer {
    match std::mem::replace(&mut queue.state.lock().role, Role::Taken) {
        Role::Next(writer) => writer,
        _ => panic!("all was written"),
    }
}

/// Waits until the task is told that it has something to write.
async fn told(queue: &MessageQueue) {
    let told = tokio::time::timeout(Duration::from_secs(60), queue.ready());
    told.await.expect("the task is told");
}

/// Writes as the task does, until all is written.
async fn write_all(queue: &MessageQueue, socket: &OwnedWriteHalf) {
    loop {
        match queue.write_on() {
            Written::All => return,
            Written::Blocked => socket.writable().await.unwrap(),
            Written::More => tokio::task::yield_now().await,
            Written::Failed(error) => panic!("{error}"),
        }
    }
}

#[test]
fn frames_keep_the_order_and_the_size() {
    let queue = queue(LIMITS);
    assert_eq!(queue.push((1..=5).map(|id| message(id, 100)).collect()), 0);
    let take = |bytes| {
        let (ping, frame) = queue.state.lock().take_frame(bytes);
        assert!(!ping);
        ids(frame.iter().map(|(message, _)| message))
    };
    assert_eq!(take(250), [1, 2]);
    assert_eq!(take(1), [3], "one message always goes");
    assert_eq!(take(1 << 20), [4, 5]);
    assert!(take(1).is_empty());
    assert_eq!(queue.state.lock().bytes, 0);
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let waiting = |queue: &MessageQueue| ids(queue.state.lock().messages.iter().map(|(m, _)| m));
    let few = queue(QueueLimits {
        messages: 3,
        ..LIMITS
    });
    assert_eq!(few.push((1..=5).map(|id| message(id, 1)).collect()), 2);
    assert_eq!(waiting(&few), [1, 2, 3]);
    let small = queue(QueueLimits {
        bytes: 250,
        message_bytes: 2000,
        ..LIMITS
    });
    assert_eq!(small.push((1..=3).map(|id| message(id, 100)).collect()), 1);
    assert_eq!(small.clear(), 2);
    let large = message(9, 1000);
    assert_eq!(small.push(vec![large]), 0, "larger than the queue");
    assert_eq!(waiting(&small), [9]);
    assert_eq!(small.clear(), 1);
    let refused = message(9, 2000);
    assert_eq!(small.push(vec![refused]), 1, "larger than a receiver takes");
}

#[tokio::test]
async fn who_pushes_writes() {
    let queue = queue(LIMITS);
    assert_eq!(queue.push(vec![message(1, 10), message(2, 10)]), 0);
    let (socket, mut frames) = connection().await;
    queue.attach(socket.clone());
    queue.push(vec![message(3, 10)]);
    write_all(&queue, &socket).await;
    assert_eq!(
        next(&mut frames).await,
        [1, 2, 3],
        "what waited for the stream"
    );
    // From here on no task has a part in it.
    queue.push(vec![message(4, 10)]);
    assert_eq!(next(&mut frames).await, [4]);
    queue.push(vec![message(5, 10), message(6, 10)]);
    assert_eq!(next(&mut frames).await, [5, 6]);
    assert_eq!(queue.frames.get(), 3);
}

#[tokio::test]
async fn large_messages_are_left_to_the_task() {
    let queue = queue(LIMITS);
    let (socket, mut frames) = connection().await;
    attach(&queue, &socket).await;
    queue.push(vec![message(1, 10 << 20)]);
    queue.push(vec![message(2, 10)]);
    assert_eq!(queue.frames.get(), 0, "nothing is written by who pushes");
    told(&queue).await;
    let write = write_all(&queue, &socket);
    let read = async {
        assert_eq!(next(&mut frames).await, [1]);
        assert_eq!(next(&mut frames).await, [2]);
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn a_socket_without_room_is_the_tasks() {
    let queue = queue(LIMITS);
    let (socket, mut frames) = connection().await;
    attach(&queue, &socket).await;
    let mut pushed = 0;
    while matches!(queue.state.lock().role, Role::Next(_)) {
        pushed += 1;
        queue.push(vec![message(pushed, 60_000)]);
        assert!(pushed < 10_000, "a socket that nobody reads has an end");
    }
    told(&queue).await;
    queue.push(vec![message(pushed + 1, 10)]);
    let read = async {
        for id in 1..=pushed + 1 {
            assert_eq!(next(&mut frames).await, [id]);
        }
    };
    tokio::join!(write_all(&queue, &socket), read);
    queue.push(vec![message(7, 10)]);
    assert_eq!(next(&mut frames).await, [7], "the part went back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_threads_push_in_order() {
    const THREADS: u64 = 4;
    const MESSAGES: u64 = 2_000;
    let queue = Arc::new(queue(QueueLimits {
        messages: 100_000,
        ..LIMITS
    }));
    let (socket, mut frames) = connection().await;
    queue.attach(socket.clone());
    let task = tokio::spawn({
        let (queue, socket) = (queue.clone(), socket.clone());
        async move {
            loop {
                write_all(&queue, &socket).await;
                queue.ready().await;
            }
        }
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let queue = queue.clone();
            std::thread::spawn(move || {
                for count in 0..MESSAGES {
                    let id = thread * MESSAGES + count;
                    // Some are the task's.
                    let bytes = if count % 100 == 0 { 100_000 } else { 10 };
                    assert_eq!(queue.push(vec![message(id, bytes)]), 0);
                }
            })
        })
        .collect();
    let mut expected: Vec<u64> = (0..THREADS).map(|thread| thread * MESSAGES).collect();
    let mut seen = 0;
    while seen < THREADS * MESSAGES {
        for id in next(&mut frames).await {
            let place = &mut expected[(id / MESSAGES) as usize];
            assert_eq!(id, *place, "messages of one thread keep their order");
            *place += 1;
            seen += 1;
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
    task.abort();
}

#[tokio::test]
async fn pings_leave_first_and_a_failure_is_told_to_the_task() {
    let queue = queue(LIMITS);
    let (socket, mut frames) = connection().await;
    attach(&queue, &socket).await;
    queue.ping();
    queue.push(vec![message(1, 10)]);
    assert!(next(&mut frames).await.is_empty());
    assert_eq!(next(&mut frames).await, [1]);
    queue.ping();
    write_all(&queue, &socket).await;
    assert!(next(&mut frames).await.is_empty());
    assert_eq!(queue.frames.get(), 1, "pings are not counted");
    drop(frames);
    let failed = async {
        loop {
            queue.push(vec![message(2, 10)]);
            if matches!(queue.state.lock().role, Role::Failed(_)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), failed).await;
    assert!(waited.is_ok(), "the other end is gone");
    told(&queue).await;
    assert!(matches!(queue.write_on(), Written::Failed(_)));
    // Without a stream messages wait; one that comes later has its own.
    queue.detach();
    queue.clear();
    queue.push(vec![message(3, 10)]);
    let (socket, mut frames) = connection().await;
    attach(&queue, &socket).await;
    assert_eq!(next(&mut frames).await, [3]);
}

#[tokio::test]
async fn a_writer_of_an_earlier_stream_takes_nothing_of_a_later_one() {
    let queue = queue(LIMITS);
    let (old, mut old_frames) = connection().await;
    attach(&queue, &old).await;
    let writer = hold(&queue);
    queue.detach();
    let (new, mut frames) = connection().await;
    queue.attach(new.clone());
    queue.ping();
    queue.push(vec![message(1, 10)]);
    assert!(matches!(queue.write(writer, 2, usize::MAX), Written::All));
    write_all(&queue, &new).await;
    assert!(next(&mut frames).await.is_empty(), "the ping");
    assert_eq!(next(&mut frames).await, [1]);
    drop(old);
    let rest = old_frames.next(usize::MAX).await;
    assert!(rest.is_err(), "nothing went out by the old stream");
}

#[tokio::test]
async fn what_came_meanwhile_and_is_large_is_left_to_the_task() {
    let queue = queue(LIMITS);
    let (socket, mut frames) = connection().await;
    attach(&queue, &socket).await;
    let writer = hold(&queue);
    queue.push(vec![message(1, 1 << 20)]);
    let written = queue.write(writer, PUSHED_FRAMES_MAX, PUSHED_BYTES_MAX);
    assert!(matches!(written, Written::More), "{written:?}");
    assert_eq!(queue.frames.get(), 0);
    let read = async { assert_eq!(next(&mut frames).await, [1]) };
    tokio::join!(write_all(&queue, &socket), read);
}
