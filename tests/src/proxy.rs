//! A TCP proxy in front of a node, whose connections a test breaks, delays and holds back.
//!
//! Each direction of a connection is a [`Link`]. What is read from one side waits until it
//! is due and until its link is open, and is then written to the other side, in order: a
//! link that is closed loses nothing, as TCP sends again what a network lost. A lost packet
//! is therefore the pause after which TCP sends it again.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes that are read at once; as much as a packet between two processes of one machine.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks under way in one direction of one connection; then the sender waits.
const CHUNKS_MAX: usize = 64;
/// TCP's shortest pause before it sends a packet again; it doubles with each loss.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// Losses in a row of one packet.
const LOSSES_MAX: u32 = 4;

/// How bytes travel in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weather {
    /// Time that everything is under way.
    pub delay: Duration,
    /// Up to so much more.
    pub jitter: Duration,
    /// Part of the packets that are lost, from 0 to 1.
    pub loss: f64,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct LinkState {
    closed: bool,
    weather: Weather,
}

/// One direction between two places; shared by all connections that use it.
#[derive(Debug, Clone, Default)]
pub struct Link(Arc<watch::Sender<LinkState>>);

impl Link {
    /// Holds everything back, or lets it go on.
    pub fn set_closed(&self, closed: bool) {
        self.0.send_modify(|state| state.closed = closed);
    }

    /// Changes how long bytes are under way from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.0.send_modify(|state| state.weather = weather);
    }
}

/// Changes bytes on their way from the node.
type Alter = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// Forwards connections to one address until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    cut: Arc<watch::Sender<u64>>,
    task: JoinHandle<()>,
}

/// How a proxy forwards.
#[derive(Clone)]
struct Way {
    to: String,
    forth: Link,
    back: Link,
    alter: Option<Alter>,
}

impl Proxy {
    /// Listens on a port of the loopback that the kernel chooses.
    ///
    /// # Panics
    /// When it has none.
    pub async fn start(to: String) -> Self {
        Self::between(to, Link::default(), Link::default()).await
    }

    /// As [`Proxy::start`], over these links to the node and back.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    pub async fn between(to: String, forth: Link, back: Link) -> Self {
        let alter = None;
        Self::forwarding(Way {
            to,
            forth,
            back,
            alter,
        })
        .await
    }

    /// As [`Proxy::start`]; everything that comes from the node passes `alter`, piece by
    /// piece.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    pub async fn altering(to: String, alter: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self::forwarding(Way {
            to,
            forth: Link::default(),
            back: Link::default(),
            alter: Some(Arc::new(alter)),
        })
        .await
    }

    async fn forwarding(way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound port").to_string();
        let cut = Arc::new(watch::Sender::new(0));
        let cuts = cut.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                number += 1;
                let (way, mut cuts) = (way.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        // How it ended is for both sides to see.
                        _ = forward(stream, way, number) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, task }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Breaks all connections that are open. New ones are taken.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

/// Forwards one connection until either side ends it.
async fn forward(near: TcpStream, way: Way, number: u64) -> std::io::Result<()> {
    let far = TcpStream::connect(&way.to).await?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let random = |side| ChaCha8Rng::seed_from_u64(2 * number + side);
    tokio::try_join!(
        pump(near_read, far_write, &way.forth, None, random(0)),
        pump(far_read, near_write, &way.back, way.alter, random(1)),
    )?;
    Ok(())
}

/// Carries one direction.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: &Link,
    alter: Option<Alter>,
    mut random: ChaCha8Rng,
) -> std::io::Result<()> {
    let (send, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut last = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = from.read(&mut chunk).await?;
            if length == 0 {
                return Ok::<(), std::io::Error>(());
            }
            chunk.truncate(length);
            let weather = link.0.borrow().weather;
            last = last.max(Instant::now() + time_under_way(weather, &mut random));
            if send.send((last, chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        let mut state = link.0.subscribe();
        while let Some((due, mut chunk)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            // The sender of the state lives as long as this link.
            let _ = state.wait_for(|state| !state.closed).await;
            if let Some(alter) = &alter {
                alter(&mut chunk);
            }
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

/// How long a piece is under way.
fn time_under_way(weather: Weather, random: &mut ChaCha8Rng) -> Duration {
    let mut time = weather.delay + weather.jitter.mul_f64(random.random::<f64>());
    for losses in 0..LOSSES_MAX {
        if random.random::<f64>() >= weather.loss {
            break;
        }
        time += RETRANSMIT * 2u32.pow(losses);
    }
    time
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends everything back.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn exchange(stream: &mut TcpStream, word: &[u8]) -> Vec<u8> {
        stream.write_all(word).await.unwrap();
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn nemesis_proxy_holds_back_one_direction_and_loses_nothing() {
        let (forth, back) = (Link::default(), Link::default());
        let proxy = Proxy::between(echo().await, forth.clone(), back.clone()).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(exchange(&mut stream, b"first").await, b"first");
        for link in [forth, back] {
            link.set_closed(true);
            let held = exchange(&mut stream, b"later");
            let held = tokio::time::timeout(Duration::from_millis(200), held).await;
            assert!(held.is_err(), "it passed a closed link");
            link.set_closed(false);
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"later");
        }
        proxy.cut();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn nemesis_proxy_delays_and_alters() {
        let address = echo().await;
        let (forth, back) = (Link::default(), Link::default());
        let proxy = Proxy::between(address.clone(), forth.clone(), back).await;
        forth.set_weather(Weather {
            delay: Duration::from_millis(150),
            loss: 0.5,
            ..Weather::default()
        });
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let begun = Instant::now();
        assert_eq!(exchange(&mut stream, b"slow").await, b"slow");
        assert!(begun.elapsed() >= Duration::from_millis(150));
        let proxy = Proxy::altering(address, |bytes| bytes.make_ascii_uppercase()).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(exchange(&mut stream, b"small").await, b"SMALL");
    }
}
