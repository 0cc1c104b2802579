//! Finds the leader of region 1 and brings calls to it.
//!
//! A node that holds a peer of region 1 knows the leader from it. Another one asks the
//! stores that hold one, and remembers who answered. A call that was forwarded carries a
//! mark; a node that does not lead refuses a marked call and names the leader it knows, so
//! no call goes in circles.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slog::{Logger, info, warn};
use strata_proto::metapb::Region;
use strata_raftstore::StoreHandle;
use strata_scheduler::{SYSTEM_REGION_ID, SystemState};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::leadership::Leadership;
use crate::cluster::Cluster;
use crate::config::SchedulerConfig;
use crate::deadline::grpc_timeout;
use crate::store_call::read_system;

/// Marks a call that one node forwards to another.
const FORWARDED: &str = "strata-forwarded";
/// Names the store that leads region 1, in a refusal.
const LEADER: &str = "strata-leader";
/// Pause between two attempts to reach the leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How much longer a forwarding node waits than it lets the leader work.
const FORWARD_MARGIN: Duration = Duration::from_millis(100);
/// How often this store's own peer of region 1 is asked who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// Time for the first read of the replicated state in a term.
const LOAD_TIME: Duration = Duration::from_secs(2);

/// Knows who leads region 1, this store or another.
pub(crate) struct Locator {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) store: StoreHandle,
    pub(crate) config: SchedulerConfig,
    bootstrap: Vec<Region>,
    logger: Logger,
    leading: watch::Sender<Option<Arc<Leadership>>>,
    /// Told when this store's peer of region 1 may have won or lost.
    wake: Arc<Notify>,
    /// The store that last answered as the leader; for nodes without a peer of region 1.
    answered: Mutex<Option<u64>>,
}

impl Locator {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        store: StoreHandle,
        config: SchedulerConfig,
        bootstrap: Vec<Region>,
        wake: Arc<Notify>,
        logger: Logger,
    ) -> Arc<Self> {
        Arc::new(Locator {
            cluster,
            store,
            config,
            bootstrap,
            logger,
            leading: watch::channel(None).0,
            wake,
            answered: Mutex::new(None),
        })
    }

    /// What this store holds as the leader of region 1, if it leads and has loaded it.
    pub(crate) fn leading(&self) -> Option<Arc<Leadership>> {
        self.leading.borrow().clone()
    }

    /// Changes of [`Locator::leading`].
    pub(crate) fn leading_changes(&self) -> watch::Receiver<Option<Arc<Leadership>>> {
        self.leading.subscribe()
    }

    /// The store that leads region 1 as far as this node knows.
    pub(crate) fn leader(&self) -> Option<u64> {
        match self.store.leader_of(SYSTEM_REGION_ID) {
            Some(peer) => Some(peer.store_id),
            None if self.has_own_peer() => None,
            None => *self.answered.lock(),
        }
    }

    /// True if this store replicates region 1.
    pub(crate) fn has_own_peer(&self) -> bool {
        self.system_stores().any(|id| id == self.cluster.store_id)
    }

    fn system_stores(&self) -> impl Iterator<Item = u64> + '_ {
        self.bootstrap
            .iter()
            .filter(|region| region.id == SYSTEM_REGION_ID)
            .flat_map(|region| region.peers.iter().map(|peer| peer.store_id))
    }

    /// The store to ask: the leader, or any that replicates region 1.
    fn candidate(&self, attempt: usize) -> Option<u64> {
        if let Some(leader) = self.leader() {
            return Some(leader);
        }
        if self.has_own_peer() {
            return None;
        }
        let stores: Vec<_> = self.system_stores().collect();
        stores.get(attempt % stores.len().max(1)).copied()
    }

    /// When a call with these headers must be answered.
    pub(crate) fn deadline(&self, metadata: &MetadataMap) -> Instant {
        let own = self.config.forward_time;
        let time = grpc_timeout(metadata).map_or(own, |asked| {
            let margin = if is_forwarded(metadata) {
                FORWARD_MARGIN.min(asked / 2)
            } else {
                Duration::ZERO
            };
            own.min(asked - margin)
        });
        Instant::now() + time
    }

    /// Runs `local` if this store leads region 1, else `remote` with the leader's channel,
    /// until one answers or the deadline passes.
    pub(crate) async fn with_leader<A, L, LF, R, RF>(
        &self,
        deadline: Instant,
        forwarded: bool,
        local: L,
        remote: R,
    ) -> Result<A, Status>
    where
        L: Fn(Arc<Leadership>) -> LF + Send,
        LF: Future<Output = Result<A, Status>> + Send,
        R: Fn(Channel, Duration) -> RF + Send,
        RF: Future<Output = Result<A, Status>> + Send,
    {
        let mut attempt = 0;
        let mut changes = self.leading_changes();
        loop {
            if let Some(leadership) = self.leading() {
                return local(leadership).await;
            }
            let own = self.cluster.store_id;
            match self.candidate(attempt).filter(|id| *id != own) {
                Some(leader) if forwarded => return Err(not_leading(Some(leader))),
                Some(leader) => {
                    if let Some(answer) = self.ask(leader, deadline, &remote).await {
                        return answer;
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(not_leading(None));
            }
            attempt += 1;
            let pause = tokio::time::sleep_until((Instant::now() + RETRY_PAUSE).min(deadline));
            tokio::select! {
                () = pause => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Asks one store; `None`: it does not lead or cannot be reached, so another attempt
    /// makes sense.
    async fn ask<A, R, RF>(
        &self,
        leader: u64,
        deadline: Instant,
        remote: &R,
    ) -> Option<Result<A, Status>>
    where
        R: Fn(Channel, Duration) -> RF + Send,
        RF: Future<Output = Result<A, Status>> + Send,
    {
        let Some(channel) = self.cluster.channel(leader) else {
            *self.answered.lock() = None;
            return None;
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(RETRY_PAUSE);
        let time = left + FORWARD_MARGIN;
        match timeout(time, remote(channel, time)).await {
            Ok(Ok(answer)) => {
                *self.answered.lock() = Some(leader);
                Some(Ok(answer))
            }
            Ok(Err(status)) if answers_the_call(status.code()) => Some(Err(status)),
            Ok(Err(status)) => {
                // A store that nobody knows, or this one, would be asked for ever.
                let named = leader_named_by(status.metadata());
                let named = named.filter(|id| self.cluster.others().contains(id));
                *self.answered.lock() = named;
                None
            }
            Err(_) => {
                *self.answered.lock() = None;
                None
            }
        }
    }

    /// Follows this store's peer of region 1 until the node stops.
    pub(crate) async fn run(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        while !*stopping.borrow() {
            self.follow().await;
            tokio::select! {
                () = tokio::time::sleep(LEADER_POLL) => {}
                () = self.wake.notified() => {}
                _ = stopping.changed() => {}
            }
        }
        self.leading.send_replace(None);
    }

    /// Loads a new term, or ends the old one.
    async fn follow(&self) {
        let term = self
            .store
            .region_state(SYSTEM_REGION_ID)
            .filter(|state| {
                state
                    .leader
                    .as_ref()
                    .is_some_and(|leader| leader.store_id == self.cluster.store_id)
            })
            .map(|state| state.term);
        let held = self.leading().map(|leadership| leadership.term);
        if term == held {
            return;
        }
        if held.is_some() {
            info!(self.logger, "no longer the scheduler's leader"; "term" => held);
            self.leading.send_replace(None);
        }
        let Some(term) = term else {
            return;
        };
        let Ok(view) = read_system(&self.store, LOAD_TIME).await else {
            return;
        };
        match SystemState::load(&*view, &self.bootstrap) {
            Ok(system) => {
                info!(self.logger, "the scheduler's leader"; "term" => term);
                let leadership = Leadership::new(
                    term,
                    self.store.clone(),
                    self.cluster.clone(),
                    self.config.clone(),
                    self.logger.clone(),
                    system,
                );
                self.leading.send_replace(Some(Arc::new(leadership)));
            }
            Err(error) => {
                warn!(self.logger, "the scheduler's state cannot be read"; "reason" => %error);
            }
        }
    }
}

/// True for codes that the leader gives as its answer; others say that it was not reached
/// or does not lead.
fn answers_the_call(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented | Code::ResourceExhausted
    )
}

/// The refusal of a node that does not lead region 1.
pub(crate) fn not_leading(leader: Option<u64>) -> Status {
    let mut status = Status::unavailable(match leader {
        Some(leader) => format!("this node is not the scheduler's leader, store {leader} is"),
        None => "the scheduler has no leader; try again".to_owned(),
    });
    if let Some(leader) = leader {
        status
            .metadata_mut()
            .insert(LEADER, MetadataValue::from(leader));
    }
    status
}

fn leader_named_by(metadata: &MetadataMap) -> Option<u64> {
    metadata.get(LEADER)?.to_str().ok()?.parse().ok()
}

/// True if another node forwarded the call.
pub(crate) fn is_forwarded(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FORWARDED)
}

/// A message as it is forwarded.
pub(crate) fn forwarding<T>(message: T, time: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
        .metadata_mut()
        .insert(FORWARDED, MetadataValue::from_static("1"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_leader_it_knows() {
        assert_eq!(leader_named_by(not_leading(Some(3)).metadata()), Some(3));
        assert_eq!(leader_named_by(not_leading(None).metadata()), None);
        assert_eq!(not_leading(None).code(), Code::Unavailable);
    }

    #[test]
    fn forwarded_calls_are_marked_and_timed() {
        let request = forwarding((), Duration::from_millis(600));
        assert!(is_forwarded(request.metadata()));
        assert_eq!(
            grpc_timeout(request.metadata()),
            Some(Duration::from_millis(600))
        );
        assert!(!is_forwarded(&MetadataMap::new()));
    }
}
