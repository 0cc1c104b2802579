//! Requests between clients and stores.
//!
//! A call is one attempt. Its request travels to the store, goes through the production
//! gate, and its result travels back; either may be lost. A store that ends takes its
//! calls along: the client sees a broken connection and cannot tell what became of them.
//!
//! Tests may also send calls by hand ([`Cluster::call`]) and look at the bare result.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use strata_proto::metapb::RegionEpoch;
use strata_raftstore::{
    Answer, Error, Reply, Request, RequestBody, RequestHeader, RequestToken, RequestWatch,
};

use crate::client::{AttemptResult, ClientId};
use crate::cluster::{Cluster, Event};
use crate::network::between;
use crate::store::SimStore;
use crate::violation::Violation;

/// Travel time between clients and stores.
const TRAVEL: (Duration, Duration) = (Duration::from_micros(50), Duration::from_micros(600));
/// Deadlines of impatient clients.
const SHORT_DEADLINE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(150));

/// One attempt.
#[derive(Debug)]
pub(crate) struct Call {
    /// `None`: sent by the test itself.
    client: Option<ClientId>,
    store: u64,
    /// Length of the deadline, which starts when the request arrives.
    allowed: Duration,
    request: Option<Request>,
    /// Record of the system region that is asked for. It is read from the view that the
    /// store answers with before that store can end.
    record: Option<Bytes>,
    /// The hold on the request; dropped, it cancels.
    token: Option<RequestToken>,
    /// The region.
    region_id: u64,
    /// For a read that has arrived: index that some replica had applied by then.
    required: Option<u64>,
    /// Nobody takes the result.
    unheard: bool,
    /// Its client has gone while the request was on its way.
    orphaned: bool,
    /// The request has reached the store.
    arrived: bool,
    /// When it has.
    arrived_at: Duration,
    /// Delivered by the store, on its way to the client.
    answered: bool,
    /// Waits for the test to take it.
    result: Option<AttemptResult>,
}

impl Call {
    /// True while the sender holds on to the request.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

/// A write that may still be proposed.
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub store: u64,
    /// By the store's clock.
    pub deadline: Duration,
    pub waiting: RequestWatch,
}

/// Names a call that a test has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(u64);

/// How a test's own call is sent.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// Time until the deadline, from the arrival on.
    pub allowed: Duration,
    /// Whether any replica may serve it.
    pub replica_read: bool,
}

impl Default for CallOptions {
    fn default() -> Self {
        CallOptions {
            allowed: Duration::from_secs(2),
            replica_read: false,
        }
    }
}

impl Cluster {
    /// Sends a request to a store, as it is.
    pub fn call(
        &mut self,
        store: u64,
        region_id: u64,
        body: RequestBody,
        options: &CallOptions,
    ) -> CallId {
        let header = RequestHeader {
            region_id,
            replica_read: options.replica_read,
            ..RequestHeader::default()
        };
        let request = Request { header, body };
        CallId(self.send_request(None, store, request, options.allowed, None))
    }

    /// Sends a request to a store for whose result nobody waits.
    pub(crate) fn call_unheard(
        &mut self,
        store: u64,
        region_id: u64,
        epoch: Option<RegionEpoch>,
        body: RequestBody,
    ) {
        let header = RequestHeader {
            region_id,
            epoch,
            ..RequestHeader::default()
        };
        let request = Request { header, body };
        let allowed = CallOptions::default().allowed;
        let id = self.send_request(None, store, request, allowed, None);
        if let Some(call) = self.calls.get_mut(&id) {
            call.unheard = true;
        }
    }

    /// The result of a call, once; `None` while there is none.
    pub fn take_result(&mut self, call: CallId) -> Option<AttemptResult> {
        let result = self.calls.get_mut(&call.0)?.result.take();
        if result.is_some() {
            self.calls.remove(&call.0);
        }
        result
    }

    /// Lets time pass until a call has its result.
    ///
    /// # Panics
    /// If there is none within 30 s.
    pub fn wait_for(&mut self, call: CallId) -> AttemptResult {
        let has = |cluster: &Cluster| {
            cluster
                .calls
                .get(&call.0)
                .is_some_and(|call| call.result.is_some())
        };
        assert!(
            self.run_until(Duration::from_secs(30), has),
            "{call:?} was never answered"
        );
        self.take_result(call).expect("a result was there")
    }

    /// Drops the hold on a call's request.
    pub fn cancel(&mut self, call: CallId) {
        self.on_cancel(call.0);
    }

    pub(crate) fn send_request(
        &mut self,
        client: Option<ClientId>,
        store: u64,
        request: Request,
        allowed: Duration,
        record: Option<Bytes>,
    ) -> u64 {
        let id = self.next_call;
        self.next_call += 1;
        let waits = allowed + self.options.patience;
        let (hold, allowed) = match client {
            Some(_) => self.draw_hold(allowed),
            None => (Duration::ZERO, allowed),
        };
        let call = Call {
            client,
            store,
            allowed,
            region_id: request.header.region_id,
            required: None,
            request: Some(request),
            record,
            token: None,
            unheard: false,
            orphaned: false,
            arrived: false,
            arrived_at: Duration::ZERO,
            answered: false,
            result: None,
        };
        self.calls.insert(id, call);
        if client.is_none() || !self.is_lost() {
            let delay = between(&mut self.rng, TRAVEL) + hold;
            self.queue.push(delay, Event::Request { call: id });
        } else if let Some(call) = self.calls.get_mut(&id) {
            call.request = None;
        }
        if client.is_some() {
            self.queue.push(waits, Event::Patience { call: id });
        }
        id
    }

    /// How long a request is held back on its way, and what is left of its time when it
    /// arrives: whoever holds it back may count that, as a proxy does, or not.
    fn draw_hold(&mut self, allowed: Duration) -> (Duration, Duration) {
        let short = self.options.short_deadlines;
        let allowed = if short > 0.0 && self.rng.random_bool(short) {
            between(&mut self.rng, SHORT_DEADLINE)
        } else {
            allowed
        };
        match self.options.held_requests {
            Some((share, times)) if self.rng.random_bool(share) => {
                let hold = between(&mut self.rng, times);
                let counted = self.rng.random_bool(0.3);
                let left = if counted {
                    allowed.saturating_sub(hold)
                } else {
                    allowed
                };
                (hold, left)
            }
            _ => (Duration::ZERO, allowed),
        }
    }

    /// The store that a call is sent to, while the call is under way.
    pub(crate) fn store_of_call(&self, id: u64) -> Option<u64> {
        self.calls.get(&id).map(|call| call.store)
    }

    fn is_lost(&mut self) -> bool {
        let share = self.options.client_loss;
        let lost = share > 0.0 && self.rng.random_bool(share);
        self.counters.lost_to_clients += u64::from(lost);
        lost
    }

    /// True if some link between two members of a region is cut.
    fn is_cut_within(&self, region_id: u64) -> bool {
        let region = self.present_region(region_id);
        let stores = || region.peers.iter().map(|peer| peer.store_id);
        stores().any(|from| stores().any(|to| self.network.is_cut(from, to)))
    }

    pub(crate) fn on_request(&mut self, id: u64) {
        let now = self.queue.now();
        let mailbox = self.mailbox.clone();
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let (store_id, allowed) = (call.store, call.allowed);
        let Some(mut request) = call.request.take() else {
            return;
        };
        // A forged message may have brought a store to name one that does not exist.
        if !self.stores.get(&store_id).is_some_and(SimStore::is_up) {
            return self.finish_call(id, AttemptResult::Unreachable);
        }
        let deadline = self.store(store_id).clock.monotonic(now) + allowed;
        let required = self.freshness.required(request.header.region_id);
        if let Some(call) = self.calls.get_mut(&id) {
            call.arrived = true;
            match &request.body {
                RequestBody::Read(_) | RequestBody::SystemRead => call.required = Some(required),
                RequestBody::Write(_)
                | RequestBody::SystemWrite(_)
                | RequestBody::TransferLeader { .. }
                | RequestBody::ChangePeers { .. } => {}
            }
            call.arrived_at = now;
        }
        let writes = matches!(
            request.body,
            RequestBody::Write(_) | RequestBody::SystemWrite(_)
        );
        let reply = Reply::new(move |result| {
            mailbox
                .lock()
                .unwrap_or_else(|broken| broken.into_inner())
                .push((id, result));
        });
        self.unanswered.insert(id, store_id);
        let mut effects = Vec::new();
        let admitted = self.step_core(store_id, |core, local| {
            request.header.deadline = local.monotonic + allowed;
            core.admit(local, request, reply, &mut effects)
        });
        let Some(token) = admitted else {
            return;
        };
        if writes {
            let pending = PendingWrite {
                store: store_id,
                deadline,
                waiting: token.watch(),
            };
            self.pending_writes.insert(id, pending);
        }
        match self.calls.get_mut(&id) {
            Some(call) if !call.orphaned => call.token = Some(token),
            // A client that has gone away lets its request run.
            _ => token.detach(),
        }
        self.trace
            .note(now, "request", [id, store_id, effects.len() as u64, 0]);
        self.carry_out(store_id, effects);
        self.schedule_step(store_id);
    }

    /// Sends the results that stores have delivered on their way.
    pub(crate) fn empty_mailbox(&mut self) {
        let results = {
            let mut mailbox = self
                .mailbox
                .lock()
                .unwrap_or_else(|broken| broken.into_inner());
            std::mem::take(&mut *mailbox)
        };
        let mut failed = Vec::new();
        for (id, result) in results {
            self.unanswered.remove(&id);
            let arrived_at = self.calls.get(&id).map(|call| call.arrived_at);
            let waited = arrived_at.is_none_or(|at| at < self.queue.now());
            self.counters.add_answer(&result, waited);
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            assert!(!call.answered, "call {id} was answered twice");
            call.answered = true;
            if let Some(required) = call.required.filter(|_| result.is_ok()) {
                let (region_id, store_id) = (call.region_id, call.store);
                let applied = self.freshness.applied(store_id, region_id);
                if self.given_up.contains(&region_id) {
                    let given_up = Violation::ReadOfGivenUpData {
                        region_id,
                        store_id,
                    };
                    self.watch.report(given_up);
                }
                if applied < required {
                    self.watch.report(Violation::StaleRead {
                        region_id,
                        store_id,
                        applied,
                        required,
                    });
                }
            }
            let result = match (&call.record, result) {
                (Some(record), Ok(Answer::System(view))) => match view.get(record) {
                    Ok(value) => Ok(Answer::Value(value)),
                    Err(error) => {
                        // The store ends before it has sent an answer.
                        call.answered = false;
                        failed.push((call.store, error.to_string()));
                        continue;
                    }
                },
                (_, result) => result,
            };
            let to_test = call.client.is_none();
            if to_test || !self.is_lost() {
                let delay = between(&mut self.rng, TRAVEL);
                let result = Box::new(result);
                self.queue.push(delay, Event::Answer { call: id, result });
            }
        }
        for (store, reason) in failed {
            if self.store(store).is_up() {
                self.store_failed(store, reason);
            }
        }
    }

    /// A store has ended: nobody answers what was under way there.
    pub(crate) fn lose_calls(&mut self, store: u64) {
        // Replies that were dropped with the core answer "stopping"; no store sent that.
        self.mailbox
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .clear();
        self.unanswered.retain(|_, taken_by| *taken_by != store);
        self.pending_writes.retain(|_, write| write.store != store);
        let lost: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.store == store && call.arrived && !call.answered)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.finish_call(id, AttemptResult::Unknown(None));
        }
    }

    pub(crate) fn on_answer(&mut self, id: u64, result: Result<Answer, Error>) {
        let now = self.queue.now();
        self.trace
            .note(now, "answer", [id, u64::from(result.is_ok()), 0, 0]);
        self.finish_call(id, AttemptResult::of(result));
    }

    pub(crate) fn on_patience(&mut self, id: u64) {
        let waits = self
            .calls
            .get(&id)
            .is_some_and(|call| call.result.is_none());
        if waits {
            self.finish_call(id, AttemptResult::Unknown(None));
        }
    }

    pub(crate) fn on_cancel(&mut self, id: u64) {
        // What was given up is not proposed any more.
        self.pending_writes.remove(&id);
        if let Some(call) = self.calls.get_mut(&id) {
            call.token = None;
        }
    }

    fn finish_call(&mut self, id: u64, result: AttemptResult) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if call.orphaned || call.unheard {
            let region_id = call.region_id;
            let moved = matches!(result, AttemptResult::Answered(Answer::Region(_)));
            let cut = moved && self.is_cut_within(region_id);
            self.counters.conf_changes_in_partition += u64::from(cut);
            if let Some(token) = self.calls.remove(&id).and_then(|call| call.token) {
                token.detach();
            }
            return;
        }
        match call.client {
            None if call.result.is_none() => call.result = Some(result),
            None => {}
            Some(client) => {
                let store = call.store;
                if call.request.is_some() && matches!(result, AttemptResult::Unknown(_)) {
                    // It is held back on its way and arrives some time.
                    call.orphaned = true;
                } else if let Some(token) = self.calls.remove(&id).and_then(|call| call.token) {
                    // A client that has gone away lets its request run.
                    token.detach();
                }
                self.finish_attempt(client, id, store, &result);
            }
        }
    }
}
