//! A TCP proxy in front of a node, whose connections a test breaks.

use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections to one address until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    cut: Arc<watch::Sender<u64>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port of the loopback that the kernel chooses.
    ///
    /// # Panics
    /// When it has none.
    pub async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound port").to_string();
        let cut = Arc::new(watch::Sender::new(0));
        let cuts = cut.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(forward(stream, to.clone(), cuts.subscribe()));
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

/// Forwards one connection until it ends or is cut.
async fn forward(mut near: TcpStream, to: String, mut cuts: watch::Receiver<u64>) {
    let Ok(mut far) = TcpStream::connect(&to).await else {
        return;
    };
    tokio::select! {
        // How it ended is for both sides to see.
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = cuts.changed() => {}
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}
