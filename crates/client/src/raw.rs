//! Raw calls on single keys and on batches.
//!
//! A call on one key is routed, tried, and routed again until it is answered. A batch is
//! cut by region and size, its parts go out side by side, and what a part did not get
//! done is cut anew: a region may have been split meanwhile.

use crate::attempt::{Call, Core, Kind, StoreAnswer};
use crate::budget::Budget;
use crate::scheduler::timed;
use crate::{Admin, Error, Options, Result, Scheduler};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use strata_proto::kvrpcpb;
use tokio::task::JoinSet;

/// Keys in one part of a batch.
const PART_KEYS_MAX: usize = 1024;
/// Bytes of keys and values in one part of a batch; one larger pair goes alone.
const PART_BYTES_MAX: usize = 512 << 10;
/// Parts of one batch that are under way at a time.
const PARTS_AT_ONCE: usize = 16;

/// The outcome of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swapped {
    /// True when the key held what was expected and now holds the new value.
    pub succeeded: bool,
    /// What the key held before; `None`: it was absent.
    pub previous: Option<Bytes>,
}

/// Reads and writes raw keys. Clones share connections and the region cache.
#[derive(Clone)]
pub struct RawClient {
    pub(crate) core: Arc<Core>,
}

type SendPart<I, T> = Arc<
    dyn Fn(
            Call,
            Vec<I>,
        ) -> Pin<
            Box<dyn Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>> + Send>,
        > + Send
        + Sync,
>;

impl RawClient {
    /// Connects to a cluster through one or more of its nodes.
    ///
    /// # Errors
    /// As [`Scheduler::connect`].
    pub async fn connect<S: AsRef<str>>(endpoints: &[S], options: Options) -> Result<Self> {
        Ok(Self::new(Scheduler::connect(endpoints, options).await?))
    }

    /// A client over an open connection, with a region cache of its own.
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            core: Arc::new(Core::new(scheduler)),
        }
    }

    /// The scheduler of the same cluster, over the same connections.
    pub fn scheduler(&self) -> &Scheduler {
        &self.core.scheduler
    }

    /// The calls of tools, over the same connections.
    pub fn admin(&self) -> Admin {
        Admin::new(self.scheduler().clone())
    }

    /// The kind of a write that leaves the same state when executed twice in a row.
    pub(crate) fn repeatable(&self) -> Kind {
        if self.scheduler().options().repeat_unknown_writes {
            Kind::RepeatableWrite
        } else {
            Kind::SingleWrite
        }
    }

    /// Calls the leader of the region that holds `key` until it answers.
    pub(crate) async fn on_key<T, F, Fut>(&self, key: &[u8], kind: Kind, send: F) -> Result<T>
    where
        T: StoreAnswer,
        F: Fn(Call) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        if key.is_empty() {
            return Err(Error::InvalidArgument(
                "the key is empty: name one of at least one byte".into(),
            ));
        }
        let mut budget = self.scheduler().budget();
        loop {
            let route = self.core.route(key, &mut budget).await?;
            if let Some(answer) = self.core.attempt(&route, kind, &mut budget, &send).await? {
                return Ok(answer);
            }
        }
    }

    /// The value of a key, or `None`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty key, [`Error::Refused`] for one that is too
    /// long, [`Error::Exhausted`] without an answer in time.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let answer = self
            .on_key(key, Kind::Read, |mut call: Call| {
                let request = kvrpcpb::RawGetRequest {
                    context: Some(call.context),
                    key: Bytes::copy_from_slice(key),
                    ..Default::default()
                };
                async move { call.client.raw_get(timed(request, call.time)).await }
            })
            .await?;
        Ok((!answer.not_found).then_some(answer.value))
    }

    /// Remaining time to live of a key in seconds: `None` when the key is absent,
    /// `Some(0)` when it does not expire.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn ttl(&self, key: &[u8]) -> Result<Option<u64>> {
        let answer = self
            .on_key(key, Kind::Read, |mut call: Call| {
                let request = kvrpcpb::RawGetKeyTtlRequest {
                    context: Some(call.context),
                    key: Bytes::copy_from_slice(key),
                    ..Default::default()
                };
                async move { call.client.raw_get_key_ttl(timed(request, call.time)).await }
            })
            .await?;
        Ok((!answer.not_found).then_some(answer.ttl))
    }

    /// Writes a key, for good.
    ///
    /// # Errors
    /// As [`Self::get`], [`Error::EntryTooLarge`], and [`Error::Unknown`] when an answer
    /// was lost.
    pub async fn put(&self, key: &[u8], value: impl Into<Bytes>) -> Result<()> {
        self.put_with_ttl(key, value, 0).await
    }

    /// Writes a key for `ttl` seconds; 0: for good.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_with_ttl(&self, key: &[u8], value: impl Into<Bytes>, ttl: u64) -> Result<()> {
        let value = value.into();
        self.on_key(key, self.repeatable(), |mut call: Call| {
            let request = kvrpcpb::RawPutRequest {
                context: Some(call.context),
                key: Bytes::copy_from_slice(key),
                value: value.clone(),
                ttl,
                ..Default::default()
            };
            async move { call.client.raw_put(timed(request, call.time)).await }
        })
        .await?;
        Ok(())
    }

    /// Removes a key; one that is absent already is removed too.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, key: &[u8]) -> Result<()> {
        self.on_key(key, self.repeatable(), |mut call: Call| {
            let request = kvrpcpb::RawDeleteRequest {
                context: Some(call.context),
                key: Bytes::copy_from_slice(key),
                ..Default::default()
            };
            async move { call.client.raw_delete(timed(request, call.time)).await }
        })
        .await?;
        Ok(())
    }

    /// Writes `value` if the key holds `expected` (`None`: is absent), and says what it
    /// held. Never sent again once it may have been executed.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Swapped> {
        let value = value.into();
        let answer = self
            .on_key(key, Kind::SingleWrite, |mut call: Call| {
                let request = kvrpcpb::RawCompareAndSwapRequest {
                    context: Some(call.context),
                    key: Bytes::copy_from_slice(key),
                    value: value.clone(),
                    previous_not_exist: expected.is_none(),
                    previous_value: expected.clone().unwrap_or_default(),
                    ..Default::default()
                };
                async move {
                    let request = timed(request, call.time);
                    call.client.raw_compare_and_swap(request).await
                }
            })
            .await?;
        Ok(Swapped {
            succeeded: answer.succeed,
            previous: (!answer.previous_not_exist).then_some(answer.previous_value),
        })
    }

    /// The values of many keys; absent ones are left out, the others keep their order.
    ///
    /// # Errors
    /// As [`Self::get`]. A key that is too long is absent.
    pub async fn batch_get(&self, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Bytes)>> {
        let send: SendPart<Bytes, kvrpcpb::RawBatchGetResponse> =
            Arc::new(|mut call: Call, keys: Vec<Bytes>| {
                Box::pin(async move {
                    let request = kvrpcpb::RawBatchGetRequest {
                        context: Some(call.context),
                        keys,
                        ..Default::default()
                    };
                    call.client.raw_batch_get(timed(request, call.time)).await
                })
            });
        let answers = self
            .on_batch(keys.clone(), |key| (key, key.len()), Kind::Read, send)
            .await?;
        let found: BTreeMap<Bytes, Bytes> = answers
            .into_iter()
            .flat_map(|answer| answer.pairs)
            .map(|pair| (pair.key, pair.value))
            .collect();
        Ok(keys
            .into_iter()
            .filter_map(|key| found.get(&key).cloned().map(|value| (key, value)))
            .collect())
    }

    /// Writes many pairs for `ttl` seconds (0: for good). Atomic within a part of one
    /// region only; after an error some parts may be written. Parts go out side by side, so
    /// a key that stands twice may end with either value.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn batch_put(&self, pairs: Vec<(Bytes, Bytes)>, ttl: u64) -> Result<()> {
        let send: SendPart<(Bytes, Bytes), kvrpcpb::RawBatchPutResponse> =
            Arc::new(move |mut call: Call, pairs: Vec<(Bytes, Bytes)>| {
                Box::pin(async move {
                    let pairs = pairs
                        .into_iter()
                        .map(|(key, value)| kvrpcpb::KvPair {
                            key,
                            value,
                            ..Default::default()
                        })
                        .collect();
                    let request = kvrpcpb::RawBatchPutRequest {
                        context: Some(call.context),
                        pairs,
                        ttls: vec![ttl],
                        ..Default::default()
                    };
                    call.client.raw_batch_put(timed(request, call.time)).await
                })
            });
        self.on_batch(
            pairs,
            |pair| (&pair.0, pair.0.len() + pair.1.len()),
            self.repeatable(),
            send,
        )
        .await?;
        Ok(())
    }

    /// Removes many keys. Atomic within a part of one region only.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn batch_delete(&self, keys: Vec<Bytes>) -> Result<()> {
        let send: SendPart<Bytes, kvrpcpb::RawBatchDeleteResponse> =
            Arc::new(|mut call: Call, keys: Vec<Bytes>| {
                Box::pin(async move {
                    let request = kvrpcpb::RawBatchDeleteRequest {
                        context: Some(call.context),
                        keys,
                        ..Default::default()
                    };
                    call.client
                        .raw_batch_delete(timed(request, call.time))
                        .await
                })
            });
        self.on_batch(keys, |key| (key, key.len()), self.repeatable(), send)
            .await?;
        Ok(())
    }

    /// Cuts items by region and size and sends the parts until all are answered.
    async fn on_batch<I, T>(
        &self,
        items: Vec<I>,
        key_and_size: fn(&I) -> (&Bytes, usize),
        kind: Kind,
        send: SendPart<I, T>,
    ) -> Result<Vec<T>>
    where
        I: Clone + Send + Sync + 'static,
        T: StoreAnswer + Send + 'static,
    {
        if items.iter().any(|item| key_and_size(item).0.is_empty()) {
            return Err(Error::InvalidArgument(
                "a key of the batch is empty: each needs at least one byte".into(),
            ));
        }
        let mut budget = self.scheduler().budget();
        let mut answers = Vec::new();
        let mut waiting = items;
        while !waiting.is_empty() {
            let parts = self.cut(waiting, key_and_size, &mut budget).await?;
            waiting = Vec::new();
            let mut queue = VecDeque::from(parts);
            let mut running = JoinSet::new();
            let mut failure = None;
            loop {
                while failure.is_none() && running.len() < PARTS_AT_ONCE {
                    let Some((route, part)) = queue.pop_front() else {
                        break;
                    };
                    let core = self.core.clone();
                    let send = send.clone();
                    let mut budget = budget.part(self.scheduler().next_operation());
                    running.spawn(async move {
                        let items = part.clone();
                        let sent = core
                            .attempt(&route, kind, &mut budget, |call| send(call, items))
                            .await;
                        (route, part, sent, budget)
                    });
                }
                let Some(ended) = running.join_next().await else {
                    break;
                };
                let (route, mut part, sent, part_budget) = match ended {
                    Ok(ended) => ended,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                };
                budget.absorb(part_budget);
                match sent {
                    Ok(Some(answer)) => answers.push(answer),
                    Ok(None) => waiting.extend(part),
                    Err(Error::AnswerTooLarge { .. }) if part.len() > 1 => {
                        let second = part.split_off(part.len() / 2);
                        queue.push_front((route.clone(), second));
                        queue.push_front((route, part));
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if let Some(error) = failure {
                return Err(budget.close_with(error));
            }
        }
        Ok(answers)
    }

    /// Parts of a batch, each for one region and within the limits.
    async fn cut<I>(
        &self,
        items: Vec<I>,
        key_and_size: fn(&I) -> (&Bytes, usize),
        budget: &mut Budget,
    ) -> Result<Vec<(Arc<crate::Route>, Vec<I>)>> {
        let mut by_region: BTreeMap<Bytes, (Arc<crate::Route>, Vec<I>)> = BTreeMap::new();
        for item in items {
            let route = self.core.route(key_and_size(&item).0, budget).await?;
            by_region
                .entry(route.region.start_key.clone())
                .or_insert_with(|| (route, Vec::new()))
                .1
                .push(item);
        }
        let mut parts = Vec::new();
        for (route, items) in by_region.into_values() {
            let mut part = Vec::new();
            let mut bytes = 0;
            for item in items {
                let size = key_and_size(&item).1;
                let full = part.len() == PART_KEYS_MAX || bytes + size > PART_BYTES_MAX;
                if full && !part.is_empty() {
                    parts.push((route.clone(), std::mem::take(&mut part)));
                    bytes = 0;
                }
                bytes += size;
                part.push(item);
            }
            parts.push((route, part));
        }
        Ok(parts)
    }
}
