//! Whom the load is for: StrataKV, or etcd with the same calls beside it.

use super::etcd::EtcdClient;
use crate::args::{Global, LoadArgs, Target};
use crate::connect;
use crate::exit::Failure;
use bytes::Bytes;
use strata_client::{Options, RawClient, Scan};
use tokio::task::JoinSet;

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
        let options = Options {
            connections_per_store: args.connections as usize,
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

    /// Writes some keys in one request for each region that they lie in.
    ///
    /// # Errors
    /// As [`Self::put`]; etcd is sent single keys only.
    pub async fn batch_put(&self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), String> {
        let put = self.raw()?.batch_put(pairs, 0).await;
        put.map_err(|error| error.to_string())
    }

    /// Reads some keys in one request for each region that they lie in; those that are there,
    /// in the order of `keys`.
    ///
    /// # Errors
    /// As [`Self::batch_put`].
    pub async fn batch_get(&self, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Bytes)>, String> {
        let found = self.raw()?.batch_get(keys).await;
        found.map_err(|error| error.to_string())
    }

    /// Reads the first `limit` pairs from `start` on.
    ///
    /// # Errors
    /// As [`Self::batch_put`].
    pub async fn scan(&self, start: Bytes, limit: usize) -> Result<Vec<(Bytes, Bytes)>, String> {
        let scan = Scan {
            start,
            limit: Some(limit),
            ..Scan::default()
        };
        let found = self.raw()?.scan(scan).await;
        found.map_err(|error| error.to_string())
    }

    fn raw(&self) -> Result<&RawClient, String> {
        match self {
            Server::Strata(client) => Ok(client),
            Server::Etcd(_) => Err("etcd is sent single keys only".into()),
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
