//! A server of all services that answers what a test tells it, as bytes.

use bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

/// What becomes of one message of a call.
pub enum Say {
    /// These bytes are the answer.
    Answer(Vec<u8>),
    /// The call ends with this status.
    Refuse(Status),
    /// The answer begins, and nothing of it ever comes.
    Nothing,
}

/// Answers by the path of the call and the request's bytes.
pub type Script = Arc<dyn Fn(&str, Bytes) -> Say + Send + Sync>;

/// A server that runs until it is dropped.
pub struct Liar {
    pub address: String,
    requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Liar {
    /// Serves a script, which is given the server's own address.
    pub async fn start(script: impl Fn(&str, &str, Bytes) -> Say + Send + Sync + 'static) -> Liar {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let (own, count) = (address.clone(), requests.clone());
        let script: Script = Arc::new(move |path, request| {
            count.fetch_add(1, Ordering::Relaxed);
            script(&own, path, request)
        });
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder()
            .add_service(Pd(script.clone()))
            .add_service(Tikv(script.clone()))
            .add_service(Clerk(script.clone()))
            .add_service(Strata(script));
        let serving = tokio::spawn(async move {
            let _ = server.serve_with_incoming(incoming).await;
        });
        Liar {
            address,
            requests,
            serving,
        }
    }

    /// Messages that came.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

macro_rules! services {
    ($($name:ident $path:literal),*) => {$(
        #[derive(Clone)]
        struct $name(Script);

        impl NamedService for $name {
            const NAME: &'static str = $path;
        }

        impl Service<http::Request<Body>> for $name {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let path = request.uri().path().to_owned();
                let call = Call { script: self.0.clone(), path };
                Box::pin(async move { Ok(Grpc::new(Raw).streaming(call, request).await) })
            }
        }
    )*};
}

services!(Pd "pdpb.PD", Tikv "tikvpb.Tikv", Clerk "stratapb.Clerk", Strata "stratapb.Strata");

/// One call. On the wire, a call with one message is a stream of one.
struct Call {
    script: Script,
    path: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (script, path) = (self.script.clone(), self.path.clone());
        let answers = request.into_inner().then(move |message| {
            let (script, path) = (script.clone(), path.clone());
            async move {
                match script(&path, message?) {
                    Say::Answer(bytes) => Ok(bytes.into()),
                    Say::Refuse(status) => Err(status),
                    Say::Nothing => std::future::pending().await,
                }
            }
        });
        let answers: Answers = Box::pin(answers);
        Box::pin(async move { Ok(Response::new(answers)) })
    }
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
