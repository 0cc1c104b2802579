//! Put and Range of etcd, declared by hand: what a comparison needs of its protocol.
//!
//! The messages hold the fields that are used; field numbers are those of etcd's
//! `rpc.proto`, and what is left out is skipped when it is read. A get is linearizable,
//! as Range is unless `serializable` is set.
//!
//! Requests go to all endpoints in turn, as etcd's own client balances them. Connections, pauses
//! and time limits are those of StrataKV's client: an attempt that failed is repeated, at
//! another endpoint, until the operation's time is over. A put writes the same value
//! however often it is sent, so it is repeated as StrataKV's client repeats it.

use crate::exit::Failure;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use strata_client::{Connection, Options};
use tonic::Status;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";

/// `etcdserverpb.PutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`, of which nothing is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// `etcdserverpb.RangeRequest`; without an end it asks for one key.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// A client of an etcd cluster; clones share connections.
#[derive(Clone)]
pub struct EtcdClient {
    connections: Arc<[Connection]>,
    turn: Arc<AtomicUsize>,
    options: Options,
}

impl EtcdClient {
    /// A client of these endpoints; connections are opened when they are used.
    ///
    /// # Errors
    /// A wrong command line for an endpoint that is none.
    pub fn new(endpoints: &[String], options: Options) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for _ in 0..options.connections_per_store {
            for endpoint in endpoints {
                let connection = Connection::new(endpoint, options.connect_timeout);
                connections.push(connection.map_err(|error| {
                    Failure::CommandLine(format!("endpoint {endpoint:?} is not HOST:PORT: {error}"))
                })?);
            }
        }
        Ok(Self {
            connections: connections.into(),
            turn: Arc::new(AtomicUsize::new(0)),
            options,
        })
    }

    /// Writes a key.
    ///
    /// # Errors
    /// The last attempt's, in words.
    pub async fn put(&self, key: &Bytes, value: Bytes) -> Result<(), String> {
        let request = PutRequest {
            key: key.clone(),
            value,
        };
        let _: PutResponse = self.call(PUT, request).await?;
        Ok(())
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, String> {
        let request = RangeRequest { key: key.clone() };
        let answer: RangeResponse = self.call(RANGE, request).await?;
        let found = answer.kvs.into_iter().find(|pair| pair.key == *key);
        Ok(found.map(|pair| pair.value))
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let until = Instant::now() + self.options.operation_timeout;
        let mut pause = self.options.pause_min;
        loop {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let connection = self.connections[turn % self.connections.len()].clone();
            let attempt = once(connection, path, request.clone());
            let last = match tokio::time::timeout(self.options.attempt_timeout, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status.message().to_string(),
                Err(_) => format!("no answer in {:?}", self.options.attempt_timeout),
            };
            if Instant::now() + pause >= until {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
            pause = Duration::min(pause * 2, self.options.pause_max);
        }
    }
}

async fn once<Q, A>(connection: Connection, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(connection);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let request = tonic::Request::new(request);
    let codec = ProstCodec::<Q, A>::default();
    Ok(client.unary(request, path, codec).await?.into_inner())
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
mod fake;

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// Bytes as `protoc --encode` writes them from etcd's own definition.
    #[test]
    fn messages_have_the_numbers_of_etcds() {
        let put = PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
        };
        assert_eq!(put.encode_to_vec(), b"\x0a\x01k\x12\x01v");
        let range = RangeRequest {
            key: Bytes::from_static(b"k"),
        };
        assert_eq!(range.encode_to_vec(), b"\x0a\x01k");
        // Header with a revision; one pair with revisions, version and value; count.
        let answer = b"\x0a\x02\x18\x07\x12\x0c\x0a\x01k\x10\x02\x18\x03\x20\x01\x2a\x01v\x20\x01";
        let answer = RangeResponse::decode(&answer[..]).unwrap();
        assert_eq!(answer.kvs.len(), 1);
        assert_eq!(answer.kvs[0].key, "k");
        assert_eq!(answer.kvs[0].value, "v");
    }
}
