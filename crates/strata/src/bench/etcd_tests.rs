//! The client against a server that answers Put and Range from a map, in etcd's words.

use super::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::server::NamedService;

/// What the servers of a test share.
#[derive(Default)]
struct State {
    pairs: BTreeMap<Bytes, Bytes>,
    /// Requests that are refused before others are served.
    refuse: usize,
    served: usize,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

impl Fake {
    fn admit(&self) -> Result<(), Status> {
        let mut state = self.0.lock();
        if state.refuse > 0 {
            state.refuse -= 1;
            return Err(Status::unavailable("etcdserver: leader changed"));
        }
        state.served += 1;
        Ok(())
    }
}

impl tonic::server::UnaryService<PutRequest> for Fake {
    type Response = PutResponse;
    type Future = std::future::Ready<Result<tonic::Response<PutResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<PutRequest>) -> Self::Future {
        let PutRequest { key, value } = request.into_inner();
        std::future::ready(self.admit().map(|()| {
            self.0.lock().pairs.insert(key, value);
            tonic::Response::new(PutResponse {})
        }))
    }
}

impl tonic::server::UnaryService<RangeRequest> for Fake {
    type Response = RangeResponse;
    type Future = std::future::Ready<Result<tonic::Response<RangeResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<RangeRequest>) -> Self::Future {
        let RangeRequest { key } = request.into_inner();
        std::future::ready(self.admit().map(|()| {
            let value = self.0.lock().pairs.get(&key).cloned();
            let kvs = Vec::from_iter(value.map(|value| KeyValue { key, value }));
            tonic::Response::new(RangeResponse { kvs })
        }))
    }
}

impl Service<http::Request<tonic::body::Body>> for Fake {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                PUT => {
                    let codec = ProstCodec::<PutResponse, PutRequest>::default();
                    tonic::server::Grpc::new(codec).unary(fake, request).await
                }
                RANGE => {
                    let codec = ProstCodec::<RangeResponse, RangeRequest>::default();
                    tonic::server::Grpc::new(codec).unary(fake, request).await
                }
                other => panic!("unknown path {other}"),
            })
        })
    }
}

impl NamedService for Fake {
    const NAME: &'static str = "etcdserverpb.KV";
}

/// A server on a port of its own, and the place where it listens.
async fn serve(fake: Fake) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(fake);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

fn options(operation_ms: u64) -> Options {
    Options {
        operation_timeout: Duration::from_millis(operation_ms),
        connections_per_store: 2,
        ..Options::default()
    }
}

#[tokio::test]
async fn values_are_written_and_read_over_all_endpoints() {
    let fake = Fake::default();
    let endpoints = [serve(fake.clone()).await, serve(fake.clone()).await];
    let client = EtcdClient::new(&endpoints, options(10_000)).unwrap();
    assert_eq!(
        client.connections.len(),
        4,
        "two connections to each endpoint"
    );
    let key = |number: u8| Bytes::from(vec![b'k', number]);
    for number in 0..8 {
        client.put(&key(number), vec![number].into()).await.unwrap();
    }
    for number in 0..8 {
        let value = client.get(&key(number)).await.unwrap();
        assert_eq!(value, Some(vec![number].into()));
    }
    assert_eq!(client.get(&key(9)).await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_request_is_repeated_until_its_time_is_over() {
    let fake = Fake::default();
    let endpoints = [serve(fake.clone()).await];
    let client = EtcdClient::new(&endpoints, options(10_000)).unwrap();
    fake.0.lock().refuse = 3;
    let key = Bytes::from_static(b"k");
    client.put(&key, Bytes::from_static(b"v")).await.unwrap();
    assert_eq!(fake.0.lock().served, 1);
    fake.0.lock().refuse = usize::MAX;
    let hasty = EtcdClient::new(&endpoints, options(50)).unwrap();
    let error = hasty.get(&key).await.unwrap_err();
    assert!(error.contains("leader changed"), "{error}");
    let wrong = EtcdClient::new(&["no endpoint".to_string()], options(50));
    assert!(matches!(wrong, Err(Failure::CommandLine(_))));
}
