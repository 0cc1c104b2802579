//! The clients' turns: the next operation, its attempts, and what they came to.
//!
//! Turn     The client takes an operation from its queue or workload, enters it into the
//!          history and sends a request.
//! Answer   The outcome goes into the history. What the client does next it decides itself
//!          ([`client`](crate::client)).
//!
//! Tests execute single operations the same way, through clients of their own.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use strata_client::clerk::course::Step;
use strata_proto::metapb::Region;
use strata_raftstore::{Answer, Error, Request, RequestBody, RequestHeader, SYSTEM_REGION_ID};

use crate::clerk::needs_session;
use crate::client::{Attempt, AttemptResult, Client, ClientId, Entered, Next};
use crate::cluster::{Cluster, Event};
use crate::network::between;
use crate::operation::ClientOperation;
use crate::violation::Violation;
use crate::workload::Workload;

impl Cluster {
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
        let stores = if self.options.peers_move {
            self.store_ids()
        } else {
            region.peers.iter().map(|peer| peer.store_id).collect()
        };
        let store = client.target(&region, &stores, replica_read, &mut self.rng);
        let (step, body, entered) = self.prepare_attempt(client, &operation, &region);
        let peers_move = self.options.peers_move;
        let header = RequestHeader {
            region_id: region.id,
            peer: region
                .peers
                .iter()
                // The layout's ids say nothing where peers move.
                .find(|peer| peer.store_id == store && !peers_move)
                .cloned(),
            epoch: region.region_epoch,
            replica_read,
            ..RequestHeader::default()
        };
        let request = Request { header, body };
        let allowed = self.options.attempt_time;
        let record = match &operation {
            ClientOperation::SystemGet(record) => Some(record.clone()),
            _ => None,
        };
        let call = self.send_request(Some(client.id), store, request, allowed, record);
        client.attempt = Some(Attempt {
            call,
            entered,
            step,
        });
        let cancelled = client.workload.as_ref().map_or(0.0, |w| w.cancelled);
        if cancelled > 0.0 && self.rng.random_bool(cancelled) {
            let delay = between(&mut self.rng, (Duration::ZERO, Duration::from_millis(4)));
            self.queue.push(delay, Event::Cancel { call });
        }
    }

    /// What is sent, with the operation's place in the history.
    fn prepare_attempt(
        &mut self,
        client: &mut Client,
        operation: &ClientOperation,
        region: &Region,
    ) -> (Option<Step>, RequestBody, Entered) {
        if client.clerk.is_some() && needs_session(operation) {
            let (step, body, entered) = self.prepare_clerk_attempt(client, operation);
            return (Some(step), body, entered);
        }
        let entered = self.enter_into_history(client.id, operation, region);
        (None, operation.body(self.options.space), entered)
    }

    /// Enters an attempt into the history, as one step on all its keys.
    pub(crate) fn enter_into_history(
        &mut self,
        client: ClientId,
        operation: &ClientOperation,
        region: &Region,
    ) -> Entered {
        let now = self.queue.now().as_micros() as u64;
        let actions = operation.actions(self.options.space, region, &self.universe);
        let keys = actions.iter().map(|(key, _)| key.clone()).collect();
        if let Some((key, expiry)) = operation.expiry() {
            self.history.invoke(client, key, expiry, now);
        }
        let operation =
            (!actions.is_empty()).then(|| self.history.invoke_all(client, actions, now));
        Entered { keys, operation }
    }

    pub(crate) fn region_for(&self, operation: &ClientOperation) -> &Region {
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
    pub(crate) fn finish_attempt(
        &mut self,
        id: ClientId,
        call: u64,
        store: u64,
        result: &AttemptResult,
    ) {
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
            let next = if attempt.step.is_some() {
                self.finish_clerk_attempt(&mut client, &operation, attempt, store, result)
            } else {
                self.record(&client, &operation, &attempt, result);
                let region = self.region_for(&operation).clone();
                client.decide(&region, store, result, &mut self.rng)
            };
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
                if next == Next::Done
                    && let AttemptResult::Answered(answer) = result
                {
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
    pub(crate) fn record(
        &mut self,
        client: &Client,
        operation: &ClientOperation,
        attempt: &Attempt,
        result: &AttemptResult,
    ) {
        let now = self.queue.now().as_micros() as u64;
        let entered = &attempt.entered;
        match result {
            AttemptResult::Answered(answer) => match operation.outcomes(&entered.keys, answer) {
                Ok(outcomes) => {
                    if let Some(id) = entered.operation {
                        self.history.complete_all(id, outcomes, now);
                    }
                }
                Err(detail) => {
                    let detail = format!("client {}: {detail}", client.id);
                    self.watch.report(Violation::UnexpectedAnswer(detail));
                }
            },
            AttemptResult::Refused(error) => {
                if self.is_surprising(error) {
                    let detail = format!("client {}: {operation:?}: {error}", client.id);
                    self.watch.report(Violation::UnexpectedAnswer(detail));
                }
                self.retract(entered);
            }
            AttemptResult::Unreachable => self.retract(entered),
            // Writes stay as operations of unknown outcome; reads without an answer say
            // nothing.
            AttemptResult::Unknown(_) if operation.reads() => self.retract(entered),
            AttemptResult::Unknown(_) => {}
        }
    }

    fn retract(&mut self, entered: &Entered) {
        if let Some(id) = entered.operation {
            self.history.retract(id);
        }
    }
}

impl Cluster {
    /// True for refusals that no client gets here.
    pub(crate) fn is_surprising(&self, error: &Error) -> bool {
        let moved = matches!(error, Error::RegionNotFound { .. }) && self.options.peers_move;
        is_surprising(error) && !moved
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
        | Error::AnswerTooLarge { .. }
        | Error::DiskFull { .. }
        | Error::Invalid(_) => true,
    }
}
