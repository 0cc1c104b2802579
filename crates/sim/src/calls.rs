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
use strata_raftstore::{Answer, Error, Reply, Request, RequestBody, RequestHeader, RequestToken};

use crate::client::{AttemptResult, ClientId};
use crate::cluster::{Cluster, Event};
use crate::network::between;
use crate::violation::Violation;

/// Travel time between clients and stores.
const TRAVEL: (Duration, Duration) = (Duration::from_micros(50), Duration::from_micros(600));
/// What a client waits beyond the deadline of its request.
const PATIENCE: Duration = Duration::from_millis(250);

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
    /// For a write that has arrived: its deadline, by the store's clock.
    deadline: Option<Duration>,
    /// The request has reached the store.
    arrived: bool,
    /// Delivered by the store, on its way to the client.
    answered: bool,
    /// Waits for the test to take it.
    result: Option<AttemptResult>,
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
        let call = Call {
            client,
            store,
            allowed,
            region_id: request.header.region_id,
            required: None,
            deadline: None,
            request: Some(request),
            record,
            token: None,
            arrived: false,
            answered: false,
            result: None,
        };
        self.calls.insert(id, call);
        if client.is_none() || !self.is_lost() {
            let delay = between(&mut self.rng, TRAVEL);
            self.queue.push(delay, Event::Request { call: id });
        }
        if client.is_some() {
            self.queue
                .push(allowed + PATIENCE, Event::Patience { call: id });
        }
        id
    }

    fn is_lost(&mut self) -> bool {
        let share = self.options.client_loss;
        share > 0.0 && self.rng.random_bool(share)
    }

    pub(crate) fn on_request(&mut self, id: u64) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let (now, store_id) = (self.queue.now(), call.store);
        let pause = self.store(store_id).paused_until;
        if pause > now && self.store(store_id).is_up() {
            return self.queue.push(pause - now, Event::Request { call: id });
        }
        let mailbox = self.mailbox.clone();
        let call = self.calls.get_mut(&id).expect("looked up above");
        let Some(mut request) = call.request.take() else {
            return;
        };
        let store = self
            .stores
            .get_mut(&store_id)
            .unwrap_or_else(|| panic!("no store {store_id}"));
        let Some(core) = store.core.as_mut() else {
            return self.finish_call(id, AttemptResult::Unreachable);
        };
        let local = store.clock.now(now);
        request.header.deadline = local.monotonic + call.allowed;
        call.arrived = true;
        match &request.body {
            RequestBody::Read(_) | RequestBody::SystemRead => {
                call.required = Some(self.freshness.required(call.region_id));
            }
            RequestBody::Write(_) | RequestBody::SystemWrite(_) => {
                call.deadline = Some(request.header.deadline);
            }
            RequestBody::TransferLeader { .. } | RequestBody::ChangePeers { .. } => {}
        }
        let reply = Reply::new(move |result| {
            mailbox
                .lock()
                .unwrap_or_else(|broken| broken.into_inner())
                .push((id, result));
        });
        let mut effects = Vec::new();
        let token = core.admit(local, request, reply, &mut effects);
        call.token = Some(token);
        self.unanswered.insert(id, store_id);
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
        for (id, result) in results {
            self.unanswered.remove(&id);
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            assert!(!call.answered, "call {id} was answered twice");
            call.answered = true;
            if let Some(required) = call.required.filter(|_| result.is_ok()) {
                let (region_id, store_id) = (call.region_id, call.store);
                let applied = self.freshness.applied(store_id, region_id);
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
                    Err(error) => panic!("call {id}: {error}"),
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
    }

    /// True if a write is neither proposed nor answered and `now` is its deadline.
    pub(crate) fn waits_past(&self, id: u64, now: Duration) -> bool {
        self.calls.get(&id).is_some_and(|call| {
            let waits = call.token.as_ref().is_some_and(RequestToken::is_waiting);
            waits && call.deadline.is_some_and(|deadline| deadline <= now)
        })
    }

    /// A store has ended: nobody answers what was under way there.
    pub(crate) fn lose_calls(&mut self, store: u64) {
        // Replies that were dropped with the core answer "stopping"; no store sent that.
        self.mailbox
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .clear();
        self.unanswered.retain(|_, taken_by| *taken_by != store);
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
        if let Some(call) = self.calls.get_mut(&id) {
            call.token = None;
        }
    }

    fn finish_call(&mut self, id: u64, result: AttemptResult) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        match call.client {
            None if call.result.is_none() => call.result = Some(result),
            None => {}
            Some(client) => {
                let store = call.store;
                if let Some(token) = self.calls.remove(&id).and_then(|call| call.token) {
                    // A client that has gone away lets its request run.
                    token.detach();
                }
                self.finish_attempt(client, id, store, &result);
            }
        }
    }
}
