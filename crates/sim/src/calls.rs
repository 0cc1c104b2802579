//! Requests between clients and stores, and the clients' turns.
//!
//! A call is one attempt. Its request travels to the store, goes through the production
//! gate, and its result travels back; either may be lost. A store that ends takes its
//! calls along: the client sees a broken connection and cannot tell what became of them.
//!
//! Tests may also send calls by hand ([`Cluster::call`]) and look at the bare result.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use strata_proto::metapb::Region;
use strata_raftstore::{
    Answer, Error, Reply, Request, RequestBody, RequestHeader, RequestToken, SYSTEM_REGION_ID,
};

use crate::client::{Attempt, AttemptResult, Client, ClientId, Next};
use crate::cluster::{Cluster, Event};
use crate::network::between;
use crate::operation::ClientOperation;
use crate::violation::Violation;
use crate::workload::Workload;

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

    /// Adds a client with a workload, which starts at once.
    pub fn add_client(&mut self, workload: Workload) -> ClientId {
        self.universe.extend(workload.universe());
        let id = self.clients.len() as u64 + 1;
        self.clients.insert(id, Client::new(id, Some(workload)));
        self.queue
            .push(Duration::ZERO, Event::Client { client: id });
        id
    }

    /// Ends the workloads; what is under way is still finished.
    pub fn stop_clients(&mut self) {
        for client in self.clients.values_mut() {
            client.workload = None;
        }
    }

    /// True if no client has anything under way.
    #[must_use]
    pub fn clients_are_idle(&self) -> bool {
        self.clients.values().all(Client::is_idle)
    }

    /// Operations that were acknowledged, over all clients.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.clients
            .values()
            .map(|client| client.acknowledged)
            .sum()
    }

    /// Executes one operation through a client of its own, with retries, until it is
    /// acknowledged. `None` if it was not within `limit`.
    pub fn execute(&mut self, operation: ClientOperation, limit: Duration) -> Option<Answer> {
        let client = Client::new(self.clients.len() as u64 + 1, None);
        self.execute_by(client, operation, limit)
    }

    /// As [`Cluster::execute`], by a client that takes `store` for the leader of the
    /// operation's region.
    pub fn execute_at(
        &mut self,
        store: u64,
        operation: ClientOperation,
        limit: Duration,
    ) -> Option<Answer> {
        let mut client = Client::new(self.clients.len() as u64 + 1, None);
        client.leaders.insert(self.region_for(&operation).id, store);
        self.execute_by(client, operation, limit)
    }

    fn execute_by(
        &mut self,
        mut client: Client,
        operation: ClientOperation,
        limit: Duration,
    ) -> Option<Answer> {
        let id = client.id;
        client.queue.push_back(operation);
        self.clients.insert(id, client);
        self.queue
            .push(Duration::ZERO, Event::Client { client: id });
        let done = |cluster: &Cluster| cluster.clients[&id].is_idle();
        let finished = self.run_until(limit, done);
        let client = self.clients.get_mut(&id).expect("it was entered above");
        if !finished {
            // What it still has under way stays an operation of unknown outcome.
            client.operation = None;
            client.attempt = None;
        }
        client.last_answer.take().filter(|_| finished)
    }

    /// Puts a value, with retries for up to 20 s.
    ///
    /// # Panics
    /// If it was not acknowledged.
    pub fn put(&mut self, key: &str, value: &str) {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        self.must(ClientOperation::Put(key, value));
    }

    /// Gets a value, with retries for up to 20 s.
    ///
    /// # Panics
    /// If there was no answer.
    pub fn get(&mut self, key: &str) -> Option<Bytes> {
        match self.must(ClientOperation::Get(key.to_owned().into())) {
            Answer::Value(value) => value,
            other => panic!("{other:?} answers a get"),
        }
    }

    /// Executes an operation, with retries for up to 20 s.
    ///
    /// # Panics
    /// If it was not acknowledged.
    pub fn must(&mut self, operation: ClientOperation) -> Answer {
        let shown = format!("{operation:?}");
        self.execute(operation, Duration::from_secs(20))
            .unwrap_or_else(|| panic!("{shown} was not acknowledged\n{}", self.trace))
    }

    fn send_request(
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
        let reply = Reply::new(move |result| {
            mailbox
                .lock()
                .unwrap_or_else(|broken| broken.into_inner())
                .push((id, result));
        });
        let mut effects = Vec::new();
        let token = core.admit(local, request, reply, &mut effects);
        call.token = Some(token);
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
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            assert!(!call.answered, "call {id} was answered twice");
            call.answered = true;
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

    /// A store has ended: nobody answers what was under way there.
    pub(crate) fn lose_calls(&mut self, store: u64) {
        // Replies that were dropped with the core answer "stopping"; no store sent that.
        self.mailbox
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .clear();
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

    /// A client's turn: the next attempt, if there is something to do.
    pub(crate) fn on_client(&mut self, id: ClientId) {
        let Some(mut client) = self.clients.remove(&id) else {
            return;
        };
        if client.attempt.is_none() {
            self.take_turn(&mut client);
        }
        self.clients.insert(id, client);
    }

    fn take_turn(&mut self, client: &mut Client) {
        if client.operation.is_none() {
            client.tries = 0;
            client.operation = client.queue.pop_front().or_else(|| {
                let workload = client.workload.as_mut()?;
                let next = workload.next(client.id, &mut self.rng);
                if next.is_none() {
                    client.workload = None;
                }
                next
            });
        }
        let Some(operation) = client.operation.clone() else {
            return;
        };
        client.tries += 1;
        let region = self.region_for(&operation).clone();
        let replica_reads = client.workload.as_ref().map_or(0.0, |w| w.replica_reads);
        let replica_read =
            operation.reads() && replica_reads > 0.0 && self.rng.random_bool(replica_reads);
        let store = client.target(&region, replica_read, &mut self.rng);
        let now = self.queue.now().as_micros() as u64;
        let space = self.options.space;
        let actions = operation.actions(space, &region, &self.universe);
        let (keys, entries) = actions
            .into_iter()
            .map(|(key, action)| {
                let entry = self.history.invoke(client.id, key.clone(), action, now);
                (key, entry)
            })
            .unzip();
        let header = RequestHeader {
            region_id: region.id,
            peer: region
                .peers
                .iter()
                .find(|peer| peer.store_id == store)
                .cloned(),
            epoch: region.region_epoch,
            replica_read,
            ..RequestHeader::default()
        };
        let request = Request {
            header,
            body: operation.body(space),
        };
        let allowed = self.options.attempt_time;
        let record = match &operation {
            ClientOperation::SystemGet(record) => Some(record.clone()),
            _ => None,
        };
        let call = self.send_request(Some(client.id), store, request, allowed, record);
        client.attempt = Some(Attempt {
            call,
            entries,
            keys,
        });
        let cancelled = client.workload.as_ref().map_or(0.0, |w| w.cancelled);
        if cancelled > 0.0 && self.rng.random_bool(cancelled) {
            let delay = between(&mut self.rng, (Duration::ZERO, Duration::from_millis(4)));
            self.queue.push(delay, Event::Cancel { call });
        }
    }

    fn region_for(&self, operation: &ClientOperation) -> &Region {
        match operation.anchor() {
            Some(key) => self.region_of(key),
            None => self
                .regions
                .iter()
                .find(|region| region.id == SYSTEM_REGION_ID)
                .expect("every layout has the system region"),
        }
    }

    /// A client learns what its attempt came to.
    fn finish_attempt(&mut self, id: ClientId, call: u64, store: u64, result: &AttemptResult) {
        let Some(mut client) = self.clients.remove(&id) else {
            return;
        };
        let current = client
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.call == call);
        if current
            && let Some(attempt) = client.attempt.take()
            && let Some(operation) = client.operation.clone()
        {
            self.record(&client, &operation, &attempt, result);
            let region = self.region_for(&operation).clone();
            let next = client.decide(&region, store, result, &mut self.rng);
            self.go_on(&mut client, &operation, next, result);
        }
        self.clients.insert(id, client);
    }

    fn go_on(
        &mut self,
        client: &mut Client,
        operation: &ClientOperation,
        next: Next,
        result: &AttemptResult,
    ) {
        let delay = match next {
            Next::Again(delay) => delay,
            Next::Done | Next::GiveUp => {
                client.operation = None;
                if let AttemptResult::Answered(answer) = result {
                    client.acknowledged += 1;
                    client.last_answer = Some(answer.clone());
                }
                let pause = client.workload.as_ref().map(|w| w.pause(&mut self.rng));
                pause.unwrap_or(Duration::ZERO)
            }
        };
        if let (
            Some(workload),
            ClientOperation::Get(key),
            AttemptResult::Answered(Answer::Value(value)),
        ) = (&mut client.workload, operation, result)
        {
            workload.seen = Some((key.clone(), value.clone()));
        }
        self.queue.push(delay, Event::Client { client: client.id });
    }

    /// Enters what an attempt came to into the history.
    fn record(
        &mut self,
        client: &Client,
        operation: &ClientOperation,
        attempt: &Attempt,
        result: &AttemptResult,
    ) {
        let now = self.queue.now().as_micros() as u64;
        match result {
            AttemptResult::Answered(answer) => match operation.outcomes(&attempt.keys, answer) {
                Ok(outcomes) => {
                    for (entry, outcome) in attempt.entries.iter().zip(outcomes) {
                        match outcome {
                            Some(outcome) => self.history.complete(*entry, outcome, now),
                            None => self.history.retract(*entry),
                        }
                    }
                }
                Err(detail) => {
                    let detail = format!("client {}: {detail}", client.id);
                    self.watch.report(Violation::UnexpectedAnswer(detail));
                }
            },
            AttemptResult::Refused(error) => {
                if is_surprising(error) {
                    let detail = format!("client {}: {operation:?}: {error}", client.id);
                    self.watch.report(Violation::UnexpectedAnswer(detail));
                }
                attempt
                    .entries
                    .iter()
                    .for_each(|entry| self.history.retract(*entry));
            }
            AttemptResult::Unreachable => {
                attempt
                    .entries
                    .iter()
                    .for_each(|entry| self.history.retract(*entry));
            }
            // Writes stay as operations of unknown outcome; reads without an answer say
            // nothing.
            AttemptResult::Unknown(_) if operation.reads() => {
                attempt
                    .entries
                    .iter()
                    .for_each(|entry| self.history.retract(*entry));
            }
            AttemptResult::Unknown(_) => {}
        }
    }
}

/// True for refusals that a client with the right layout never gets.
fn is_surprising(error: &Error) -> bool {
    match error {
        Error::NotLeader { .. }
        | Error::StaleCommand { .. }
        | Error::ServerIsBusy { .. }
        | Error::ReadIndexNotReady { .. }
        | Error::DeadlineExceeded
        | Error::Cancelled
        | Error::Undetermined { .. }
        | Error::Stopping(_) => false,
        Error::RegionNotFound { .. }
        | Error::KeyNotInRegion { .. }
        | Error::EpochNotMatch { .. }
        | Error::StoreNotMatch { .. }
        | Error::MismatchPeerId { .. }
        | Error::RaftEntryTooLarge { .. }
        | Error::DiskFull { .. }
        | Error::Invalid(_) => true,
    }
}
