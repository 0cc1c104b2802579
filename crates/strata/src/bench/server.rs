//! Whom the load is for: StrataKV, or etcd with the same calls beside it.

use super::etcd::EtcdClient;
use crate::args::{Global, LoadArgs, Target};
use crate::connect;
use crate::exit::Failure;
use bytes::Bytes;
use strata_client::{Options, RawClient};
use tokio::task::JoinSet;

/// More connections do not help: the servers share the machine's cores.
const CONNECTIONS_MAX: u64 = 4;
/// One connection serves this many clients well.
const CLIENTS_PER_CONNECTION: u64 = 64;
/// Keys in one batch of a load.
const BATCH: usize = 4096;
/// Puts under way where there are no batches.
const PUTS_AT_ONCE: usize = 128;

/// A cluster under load; clones share connections.
#[derive(Clone)]
pub enum Server {
    /// StrataKV's raw keys.
    Strata(RawClient),
    /// etcd's keys.
    Etcd(EtcdClient),
}

impl Server {
    /// Connects to what the flags name.
    ///
    /// # Errors
    /// As [`connect::connect_with`].
    pub async fn connect(global: &Global, args: &LoadArgs) -> Result<Self, Failure> {
        let usual = args.clients.div_ceil(CLIENTS_PER_CONNECTION);
        let connections = args.connections.unwrap_or(usual.min(CONNECTIONS_MAX));
        let options = Options {
            connections_per_store: connections as usize,
            ..connect::options(global)
        };
        Ok(match args.target {
            Target::Strata => Server::Strata(connect::connect_with(global, options).await?),
            Target::Etcd => Server::Etcd(EtcdClient::new(&global.endpoints, options)?),
        })
    }

    /// Writes one key.
    ///
    /// # Errors
    /// Says in words what happened.
    pub async fn put(&self, key: &Bytes, value: Bytes) -> Result<(), String> {
        match self {
            Server::Strata(client) => {
                let put = client.put(key, value).await;
                put.map_err(|error| error.to_string())
            }
            Server::Etcd(client) => client.put(key, value).await,
        }
    }

    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, String> {
        match self {
            Server::Strata(client) => client.get(key).await.map_err(|error| error.to_string()),
            Server::Etcd(client) => client.get(key).await,
        }
    }

    /// Writes many keys, in batches where the server has them.
    ///
    /// # Errors
    /// As [`Self::put`], the first one.
    pub async fn load(
        &self,
        pairs: impl Iterator<Item = (Bytes, Bytes)> + Send,
    ) -> Result<(), String> {
        let mut pairs = pairs.peekable();
        match self {
            Server::Strata(client) => {
                while pairs.peek().is_some() {
                    let batch = pairs.by_ref().take(BATCH).collect();
                    let put = client.batch_put(batch, 0).await;
                    put.map_err(|error| error.to_string())?;
                }
            }
            Server::Etcd(client) => {
                let mut running = JoinSet::new();
                loop {
                    while running.len() < PUTS_AT_ONCE {
                        let Some((key, value)) = pairs.next() else {
                            break;
                        };
                        let client = client.clone();
                        running.spawn(async move { client.put(&key, value).await });
                    }
                    match running.join_next().await {
                        None => break,
                        Some(Ok(put)) => put?,
                        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    }
                }
            }
        }
        Ok(())
    }
}
