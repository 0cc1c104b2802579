//! Clerks: clients whose writes are executed once, however often they are sent.
//!
//! What is sent when is the decision of the production clerk ([`strata_client`]); here it
//! is carried out. A write is one operation of the history from its first attempt to its
//! answer, so that one that was executed twice has no order. One of which the clerk says
//! that nobody can tell stays open.

use std::time::Duration;

use strata_client::clerk::course::{Course, Met, Step};
use strata_proto::stratapb::{
    DataCommand, OpenSessionCommand, SessionOperation, data_command::Body,
};
use strata_raftstore::{Answer, CommandOutcome, RequestBody};

use crate::client::{Attempt, AttemptResult, Client, ClientId, Entered, Next};
use crate::cluster::{Cluster, Event};
use crate::operation::ClientOperation;
use crate::violation::Violation;
use crate::workload::Workload;

impl Cluster {
    /// Adds a clerk with a workload, which starts at once, or one that waits for orders.
    pub fn add_clerk(&mut self, workload: Option<Workload>) -> ClientId {
        if let Some(workload) = &workload {
            self.universe.extend(workload.universe());
        }
        let id = self.clients.len() as u64 + 1;
        let mut client = Client::new(id, workload);
        client.clerk = Some(Default::default());
        self.clients.insert(id, client);
        self.queue
            .push(Duration::ZERO, Event::Client { client: id });
        id
    }

    /// Orders a clerk to execute an operation when it is done with those before.
    ///
    /// # Panics
    /// If there is no such client.
    pub fn order(&mut self, client: ClientId, operation: ClientOperation) {
        let ordered = self.clients.get_mut(&client);
        let ordered = ordered.unwrap_or_else(|| panic!("no client {client}"));
        ordered.queue.push_back(operation);
        self.queue.push(Duration::ZERO, Event::Client { client });
    }

    /// True if a client has done all that it was ordered.
    ///
    /// # Panics
    /// If there is no such client.
    #[must_use]
    pub fn has_done_all(&self, client: ClientId) -> bool {
        self.clients[&client].is_idle()
    }

    /// The answer to the last operation of a client that was acknowledged.
    ///
    /// # Panics
    /// If there is no such client.
    #[must_use]
    pub fn last_answer(&self, client: ClientId) -> Option<&Answer> {
        self.clients[&client].last_answer.as_ref()
    }

    /// A clerk learns what its attempt came to.
    pub(crate) fn finish_clerk_attempt(
        &mut self,
        client: &mut Client,
        operation: &ClientOperation,
        attempt: Attempt,
        store: u64,
        result: &AttemptResult,
    ) -> Next {
        if let AttemptResult::Refused(error) = result
            && self.is_surprising(error)
        {
            let detail = format!("clerk {}: {operation:?}: {error}", client.id);
            self.watch.report(Violation::UnexpectedAnswer(detail));
        }
        let region = self.region_for(operation).clone();
        // Leaders and pauses as any other client.
        let pause = match client.decide(&region, store, result, &mut self.rng) {
            Next::Again(pause) => pause,
            Next::Done | Next::GiveUp => Duration::ZERO,
        };
        let sessions = client
            .clerk
            .as_mut()
            .expect("only a clerk has attempts in sessions");
        if attempt.step == Some(Step::Open) {
            if let AttemptResult::Answered(Answer::Written(outcomes)) = result
                && let [CommandOutcome::SessionOpened(id)] = &outcomes[..]
            {
                sessions.on_opened(region.id, id.clone());
            }
            client.entered = Some(attempt.entered);
            return Next::Again(pause);
        }
        match sessions.on_met(met(result)) {
            Course::Done => {
                self.record(client, operation, &attempt, result);
                Next::Done
            }
            Course::Again => {
                client.entered = Some(attempt.entered);
                Next::Again(pause)
            }
            Course::Unknown => Next::GiveUp,
            Course::Broken => {
                let detail = format!("clerk {}: {operation:?}: {result:?}", client.id);
                self.watch.report(Violation::UnexpectedAnswer(detail));
                Next::GiveUp
            }
        }
    }

    /// What a clerk sends for an operation, with the operation's place in the history.
    pub(crate) fn prepare_clerk_attempt(
        &mut self,
        client: &mut Client,
        operation: &ClientOperation,
    ) -> (Step, RequestBody, Entered) {
        let region = self.region_for(operation).clone();
        let entered = match client.entered.take() {
            Some(entered) => entered,
            None => self.enter_into_history(client.id, operation, &region),
        };
        let sessions = client.clerk.as_mut().expect("called for a clerk");
        if client.tries == 1 {
            sessions.begin();
        }
        let step = sessions.next(region.id);
        let body = match &step {
            Step::Open => RequestBody::Write(vec![DataCommand {
                session: None,
                body: Some(Body::OpenSession(OpenSessionCommand::default())),
            }]),
            Step::Execute {
                session_id,
                sequence,
            } => {
                let operation_of_session = SessionOperation {
                    session_id: session_id.clone(),
                    sequence: *sequence,
                };
                in_session(operation.body(self.options.space), operation_of_session)
            }
        };
        (step, body, entered)
    }
}

/// True for what a clerk executes in a session.
pub(crate) fn needs_session(operation: &ClientOperation) -> bool {
    !operation.reads()
        && !matches!(
            operation,
            ClientOperation::SystemPut(..) | ClientOperation::SystemGet(_)
        )
}

fn in_session(body: RequestBody, operation: SessionOperation) -> RequestBody {
    match body {
        RequestBody::Write(mut commands) => {
            assert_eq!(commands.len(), 1, "an operation is one command");
            commands[0].session = Some(operation);
            RequestBody::Write(commands)
        }
        other => panic!("{other:?} is no operation of a session"),
    }
}

fn met(result: &AttemptResult) -> Met {
    match result {
        AttemptResult::Answered(Answer::Written(outcomes)) => match &outcomes[..] {
            [CommandOutcome::SessionExpired] => Met::Expired,
            [CommandOutcome::SequenceMismatch { .. }] => Met::OutOfOrder,
            _ => Met::Executed,
        },
        AttemptResult::Answered(_) => Met::Executed,
        AttemptResult::Refused(_) | AttemptResult::Unreachable => Met::Refused,
        AttemptResult::Unknown(_) => Met::Lost,
    }
}
