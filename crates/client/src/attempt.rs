//! One request to the leader of a region, and what follows from its answer.
//!
//! ```text
//! route (cache, else scheduler) -> address (cache, else scheduler) -> request
//!     answer        -> done
//!     region error  -> `verdict`: cache repaired, pause, try again
//!     no such store -> never sent: route dropped, pause, try again
//!     no connection -> the same
//!     other status  -> read: try again; write: unknown, try again only where allowed
//! ```

use crate::budget::Budget;
use crate::cache::{Cache, Route, contains, reaches_up_to};
use crate::scheduler::{RegionInfo, first_line, is_final};
use crate::verdict::{self, Verdict};
use crate::{Connection, Error, Result, Scheduler, channels};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use strata_proto::tikvpb::tikv_client::TikvClient;
use strata_proto::{errorpb, kvrpcpb, metapb, stratapb};

/// How much longer than its `grpc-timeout` a request is waited for, so that the store's
/// own answer to a missed deadline arrives.
const GRACE: Duration = Duration::from_millis(250);

/// Leader hints that are followed without a pause; two nodes that point at each other
/// cost no more than these.
const FREE_HINTS: u32 = 2;

/// What may be done with a request whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It changes nothing: ask again.
    Read,
    /// It may have been executed; executing it again is allowed.
    RepeatableWrite,
    /// It may have been executed, and must not be sent again.
    SingleWrite,
}

/// What all answers of raw calls have.
pub(crate) trait StoreAnswer {
    /// Takes the region error out.
    fn take_region_error(&mut self) -> Option<errorpb::Error>;
    /// The refusal in words; empty: none.
    fn refusal(&self) -> &str;
}

macro_rules! store_answers {
    ($($name:path),*) => {
        $(impl StoreAnswer for $name {
            fn take_region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }
            fn refusal(&self) -> &str {
                &self.error
            }
        })*
    };
}

macro_rules! store_answers_without_refusal {
    ($($name:ident),*) => {
        $(impl StoreAnswer for kvrpcpb::$name {
            fn take_region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }
            fn refusal(&self) -> &str {
                ""
            }
        })*
    };
}

store_answers!(
    kvrpcpb::RawGetResponse,
    kvrpcpb::RawGetKeyTtlResponse,
    kvrpcpb::RawPutResponse,
    kvrpcpb::RawBatchPutResponse,
    kvrpcpb::RawDeleteResponse,
    kvrpcpb::RawBatchDeleteResponse,
    kvrpcpb::RawDeleteRangeResponse,
    kvrpcpb::RawCompareAndSwapResponse,
    kvrpcpb::RawChecksumResponse,
    stratapb::OpenSessionResponse,
    stratapb::ExecuteResponse
);
store_answers_without_refusal!(RawBatchGetResponse, RawScanResponse);

/// Scheduler and cache of one client.
pub(crate) struct Core {
    pub(crate) scheduler: Scheduler,
    pub(crate) cache: Cache,
    /// Bytes of a row in the last scan and in the last one of keys alone, and one more; 0:
    /// there was none.
    row_bytes: [AtomicUsize; 2],
}

/// Where and how one request goes.
pub(crate) struct Call {
    /// The store's service.
    pub(crate) client: TikvClient<Connection>,
    /// The connection under it, for services of our own.
    pub(crate) connection: Connection,
    /// Region, epoch and peer.
    pub(crate) context: kvrpcpb::Context,
    /// Time limit, to be sent along.
    pub(crate) time: Duration,
}

/// What came in the place of an answer.
enum Failed {
    /// The store's word on the region.
    Region(Box<errorpb::Error>),
    /// An error of the call.
    Status(tonic::Status),
    /// Nothing, in this time and some more.
    Silence(Duration),
}

impl Core {
    pub(crate) fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            cache: Cache::default(),
            row_bytes: Default::default(),
        }
    }

    /// Bytes of a row in the last scan of this client, of keys alone or with values.
    pub(crate) fn row_bytes(&self, keys_only: bool) -> Option<usize> {
        self.row_bytes[usize::from(keys_only)]
            .load(Ordering::Relaxed)
            .checked_sub(1)
    }

    pub(crate) fn remember_row_bytes(&self, keys_only: bool, bytes: usize) {
        self.row_bytes[usize::from(keys_only)].store(bytes.saturating_add(1), Ordering::Relaxed);
    }

    /// The route of the region that holds `key`; waits for one with a leader.
    pub(crate) async fn route(&self, key: &[u8], budget: &mut Budget) -> Result<Arc<Route>> {
        match self.cache.route(key) {
            Some(route) => Ok(route),
            None => Box::pin(self.find_route(key, budget)).await,
        }
    }

    async fn find_route(&self, key: &[u8], budget: &mut Budget) -> Result<Arc<Route>> {
        loop {
            if let Some(route) = self.cache.route(key) {
                return Ok(route);
            }
            let info = self.scheduler.region_within(key, budget).await;
            let info = info.map_err(|error| budget.close_with(error))?;
            if let Some(route) = self.take_in(info, |region| contains(region, key), budget) {
                return Ok(route);
            }
            budget.next_attempt(Duration::ZERO)?;
            budget.pause(Duration::ZERO).await;
        }
    }

    /// The route of the region that holds the keys just below `upper`; empty: the last.
    pub(crate) async fn route_below(
        &self,
        upper: &[u8],
        budget: &mut Budget,
    ) -> Result<Arc<Route>> {
        if upper.is_empty() {
            if let Some(route) = self.cache.route_below(upper) {
                return Ok(route);
            }
            let mut route = self.route(&[0xff; 16], budget).await?;
            while !route.region.end_key.is_empty() {
                route = self.route(&route.region.end_key, budget).await?;
            }
            return Ok(route);
        }
        loop {
            if let Some(route) = self.cache.route_below(upper) {
                return Ok(route);
            }
            let above = self.route(upper, budget).await?;
            if above.region.start_key.as_ref() < upper {
                return Ok(above);
            }
            let info = self.scheduler.previous_region_within(upper, budget).await;
            let info = info.map_err(|error| budget.close_with(error))?;
            let fits = |region: &metapb::Region| reaches_up_to(region, upper);
            if let Some(route) = self.take_in(info, fits, budget) {
                return Ok(route);
            }
            // Perhaps the region above begins elsewhere by now.
            self.cache.forget(&above);
            budget.next_attempt(Duration::ZERO)?;
            budget.pause(Duration::ZERO).await;
        }
    }

    /// Takes in what the scheduler says of a region. `None`, and a note: it has no leader, or
    /// is not the one that was asked for. A scheduler that knows less than a store has told
    /// names an older form of the region, which the cache does not take; a walk over regions
    /// that believed it would go back, or leave keys out.
    fn take_in(
        &self,
        info: RegionInfo,
        fits: impl Fn(&metapb::Region) -> bool,
        budget: &mut Budget,
    ) -> Option<Arc<Route>> {
        let id = info.region.id;
        if !fits(&info.region) {
            budget.note(format!(
                "the scheduler names region {id}, which is elsewhere"
            ));
            return None;
        }
        let Some(leader) = info.leader else {
            budget.note(format!("region {id} has no leader"));
            return None;
        };
        let region = info.region;
        let route = self.cache.insert(Route { region, leader });
        if !fits(&route.region) {
            budget.note(format!("the scheduler knows an older range of region {id}"));
            return None;
        }
        Some(route)
    }

    /// The address of the route's leader. `None`, and a pause: the scheduler knows of no such
    /// store.
    async fn find_address(
        &self,
        route: &Arc<Route>,
        budget: &mut Budget,
    ) -> Result<Option<Arc<str>>> {
        let store_id = route.leader.store_id;
        let found = self.scheduler.store_within(store_id, budget).await;
        match found.and_then(|store| channels::normalize(&store.address)) {
            Ok(address) => Ok(Some(self.cache.set_address(store_id, &address))),
            // Whoever named this leader was wrong, or knew of it before the scheduler did.
            Err(
                error @ (Error::NotFound(_) | Error::Scheduler { .. } | Error::BadEndpoint { .. }),
            ) => {
                self.cache.forget(route);
                budget.note(format!("region {}: {error}", route.region.id));
                budget.next_attempt(Duration::ZERO)?;
                budget.pause(Duration::ZERO).await;
                Ok(None)
            }
            Err(error) => Err(budget.close_with(error)),
        }
    }

    /// Sends one request to the route's leader. `None`: it was not executed (or may be
    /// repeated), the cache is repaired, the pause is over; route it anew.
    pub(crate) async fn attempt<T, F, Fut>(
        &self,
        route: &Arc<Route>,
        kind: Kind,
        budget: &mut Budget,
        send: F,
    ) -> Result<Option<T>>
    where
        T: StoreAnswer,
        F: FnOnce(Call) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let address = match self.cache.address(route.leader.store_id) {
            Some(address) => address,
            None => match Box::pin(self.find_address(route, budget)).await? {
                Some(address) => address,
                None => return Ok(None),
            },
        };
        let time = budget.next_attempt(self.scheduler.options().attempt_timeout)?;
        let connection = self.scheduler.channels().to(&address);
        let connection = connection.map_err(|error| budget.close_with(error))?;
        let client = TikvClient::new(connection.clone())
            .max_decoding_message_size(channels::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(channels::MESSAGE_BYTES_MAX);
        let call = Call {
            client,
            connection,
            context: context(route),
            time,
        };
        // In a box: the future of a call is large, and would be moved with each that holds it.
        let wait = (time + GRACE).min(budget.left());
        let answer = tokio::time::timeout(wait, Box::pin(send(call))).await;
        let failure = match answer {
            Ok(Ok(answer)) => {
                let mut answer = answer.into_inner();
                match answer.take_region_error() {
                    None if answer.refusal().is_empty() => return Ok(Some(answer)),
                    None => {
                        return Err(budget.close_with(Error::Refused {
                            message: first_line(answer.refusal()),
                        }));
                    }
                    Some(error) => Failed::Region(Box::new(error)),
                }
            }
            Ok(Err(status)) => Failed::Status(status),
            Err(_) => Failed::Silence(time),
        };
        // In a box, too: few calls fail.
        let what = format!("region {} on {address}", route.region.id);
        Box::pin(self.on_failure(route, kind, budget, &what, failure)).await?;
        Ok(None)
    }

    async fn on_failure(
        &self,
        route: &Arc<Route>,
        kind: Kind,
        budget: &mut Budget,
        what: &str,
        failure: Failed,
    ) -> Result<()> {
        match failure {
            Failed::Region(error) => {
                self.on_region_error(route, kind, budget, what, &error)
                    .await
            }
            Failed::Status(status) => self.on_status(route, kind, budget, what, &status).await,
            Failed::Silence(time) => {
                self.cache.forget(route);
                on_lost(kind, budget, format!("{what}: no answer in {time:?}"))
            }
        }
    }

    async fn on_region_error(
        &self,
        route: &Arc<Route>,
        kind: Kind,
        budget: &mut Budget,
        what: &str,
        error: &errorpb::Error,
    ) -> Result<()> {
        let met = format!("{what}: {}", verdict::describe(error));
        let mut pause = Some(Duration::ZERO);
        match verdict::judge(error) {
            Verdict::Leader(leader) if leader != route.leader => {
                self.cache.set_leader(route, leader);
                if budget.take_free_step(FREE_HINTS) {
                    pause = None;
                }
            }
            Verdict::Leader(_) | Verdict::Forget => self.cache.forget(route),
            Verdict::ForgetStore => {
                self.cache.forget(route);
                self.cache.forget_address(route.leader.store_id);
            }
            Verdict::Regions(regions) => {
                self.cache.forget(route);
                let known = !regions.is_empty();
                for region in regions {
                    self.adopt(region, route.leader.store_id);
                }
                if known && budget.take_free_step(FREE_HINTS) {
                    pause = None;
                }
            }
            Verdict::Wait(at_least) => pause = Some(at_least),
            // The protocol has one error for commands and answers that are too large.
            Verdict::Fail(Error::EntryTooLarge { size }) if kind == Kind::Read => {
                return Err(Error::AnswerTooLarge { limit: size });
            }
            Verdict::Fail(error) => return Err(budget.close_with(error)),
            Verdict::Unknown { message, leader } => {
                match leader {
                    Some(leader) => self.cache.set_leader(route, leader),
                    None => self.cache.forget(route),
                }
                on_lost(kind, budget, format!("{what}: {message}"))?;
                budget.pause(Duration::ZERO).await;
                return Ok(());
            }
        }
        budget.note(met);
        if let Some(at_least) = pause {
            budget.pause(at_least).await;
        }
        Ok(())
    }

    /// Takes in a region that a store described, led by that store's own peer: it was the
    /// leader of the range when it answered.
    fn adopt(&self, region: metapb::Region, store_id: u64) {
        let leader = region.peers.iter().find(|peer| peer.store_id == store_id);
        if let Some(leader) = leader.copied() {
            self.cache.insert(Route { region, leader });
        }
    }

    async fn on_status(
        &self,
        route: &Arc<Route>,
        kind: Kind,
        budget: &mut Budget,
        what: &str,
        status: &tonic::Status,
    ) -> Result<()> {
        let met = format!("{what}: {}", channels::describe(status));
        if channels::was_never_sent(status) {
            self.cache.forget(route);
            self.cache.forget_address(route.leader.store_id);
            budget.note(met);
            budget.pause(Duration::ZERO).await;
            return Ok(());
        }
        if kind == Kind::Read && status.code() == tonic::Code::OutOfRange {
            let limit = channels::MESSAGE_BYTES_MAX as u64;
            return Err(Error::AnswerTooLarge { limit });
        }
        if is_final(status) {
            return Err(budget.close_with(Error::Refused {
                message: channels::describe(status),
            }));
        }
        self.cache.forget(route);
        on_lost(kind, budget, met)?;
        budget.pause(Duration::ZERO).await;
        Ok(())
    }
}

/// Decides about an attempt whose answer was lost.
fn on_lost(kind: Kind, budget: &mut Budget, met: String) -> Result<()> {
    match kind {
        Kind::Read => budget.note(met),
        Kind::RepeatableWrite => budget.note_unknown(met),
        Kind::SingleWrite => {
            budget.note_unknown(met);
            return Err(budget.closing_error());
        }
    }
    Ok(())
}

fn context(route: &Route) -> kvrpcpb::Context {
    kvrpcpb::Context {
        region_id: route.region.id,
        region_epoch: route.region.region_epoch,
        peer: Some(route.leader),
        ..Default::default()
    }
}
