//! Exactly-once writes: StrataKV's `Clerk` service.
//!
//! A thin adapter: a request becomes one command of the region's log, and its outcome goes
//! back whole. What is executed and what is only repeated the log decides
//! (`strata_raftstore`, session table).

use std::sync::Arc;

use strata_proto::kvrpcpb::Context;
use strata_proto::stratapb::clerk_server::Clerk;
use strata_proto::stratapb::{
    CompareAndSwapVerdict, DataCommand, ExecuteRequest, ExecuteResponse, Executed,
    OpenSessionCommand, OpenSessionRequest, OpenSessionResponse, SequenceMismatch, SessionAnswer,
    SessionExpired, ValueTooLarge, data_command::Body, execute_response, session_answer,
};
use strata_raftstore::{Answer, CommandOutcome, Request as StoreRequest, RequestBody, StoreHandle};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::config::ServerConfig;
use crate::deadline::request_time;
use crate::metrics::ServerMetrics;
use crate::raw::convert;
use crate::raw::refusal::{Refusal, refuse, refuse_outcome};
use crate::store_call::{call, unexpected};

/// Serves `stratapb.Clerk`.
#[derive(Clone)]
pub(crate) struct ClerkService {
    pub(crate) store: StoreHandle,
    pub(crate) store_id: u64,
    pub(crate) config: ServerConfig,
    pub(crate) metrics: Arc<ServerMetrics>,
}

impl ClerkService {
    /// Puts a command into the region's log and waits for its outcome.
    async fn execute_command(
        &self,
        metadata: &MetadataMap,
        context: Option<&Context>,
        command: DataCommand,
    ) -> Result<CommandOutcome, Refusal> {
        let deadline = self.store.now() + request_time(metadata, &self.config);
        let request = StoreRequest {
            header: convert::header(context, deadline),
            body: RequestBody::Write(vec![command]),
        };
        let answer = call(&self.store, request)
            .await
            .map_err(|error| refuse(error, self.store_id))?;
        match answer {
            Answer::Written(mut outcomes) if outcomes.len() == 1 => Ok(outcomes.remove(0)),
            other => Err(refuse(unexpected(&other), self.store_id)),
        }
    }
}

#[tonic::async_trait]
impl Clerk for ClerkService {
    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let timer = self.metrics.call("open_session");
        let (metadata, _, message) = request.into_parts();
        let command = DataCommand {
            session: None,
            body: Some(Body::OpenSession(OpenSessionCommand::default())),
        };
        let outcome = self
            .execute_command(&metadata, message.context.as_ref(), command)
            .await;
        let opened = outcome.and_then(|outcome| match outcome {
            CommandOutcome::SessionOpened(id) => Ok(id),
            other => Err(refuse_in(message.context.as_ref(), other)),
        });
        timer.finish(opened.is_ok());
        Ok(Response::new(match opened {
            Ok(session_id) => OpenSessionResponse {
                session_id,
                ..Default::default()
            },
            Err(refusal) => {
                let (region_error, error) = refusal.into_fields();
                OpenSessionResponse {
                    region_error,
                    error,
                    ..Default::default()
                }
            }
        }))
    }

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<ExecuteResponse>, Status> {
        let timer = self.metrics.call("execute");
        let (metadata, _, message) = request.into_parts();
        let context = message.context.as_ref();
        let outcome = match message.command {
            Some(command) if command.session.is_some() => {
                self.execute_command(&metadata, context, command).await
            }
            _ => Err(Refusal::text("the request names no session")),
        };
        let result = outcome.and_then(|outcome| {
            outcome_message(outcome).map_err(|other| refuse_in(context, other))
        });
        timer.finish(result.is_ok());
        Ok(Response::new(match result {
            Ok(outcome) => ExecuteResponse {
                outcome: Some(outcome),
                ..Default::default()
            },
            Err(refusal) => {
                let (region_error, error) = refusal.into_fields();
                ExecuteResponse {
                    region_error,
                    error,
                    ..Default::default()
                }
            }
        }))
    }
}

/// The refusal for an outcome that answers nothing.
fn refuse_in(context: Option<&Context>, outcome: CommandOutcome) -> Refusal {
    let region_id = context.map_or(0, |context| context.region_id);
    let text = format!("an outcome of the wrong kind: {outcome:?}");
    refuse_outcome(outcome, region_id).unwrap_or_else(|| Refusal::text(text))
}

/// An outcome as the wire has it; `Err`: it is none of an operation in a session.
fn outcome_message(outcome: CommandOutcome) -> Result<execute_response::Outcome, CommandOutcome> {
    use execute_response::Outcome;
    let answer = |outcome| {
        Outcome::Answer(SessionAnswer {
            outcome: Some(outcome),
        })
    };
    Ok(match outcome {
        CommandOutcome::Done => answer(session_answer::Outcome::Executed(Executed {})),
        CommandOutcome::CompareAndSwap {
            succeeded,
            previous,
        } => answer(session_answer::Outcome::CompareAndSwap(
            CompareAndSwapVerdict {
                succeeded,
                previous,
            },
        )),
        CommandOutcome::ValueTooLarge { bytes, limit_bytes } => {
            answer(session_answer::Outcome::ValueTooLarge(ValueTooLarge {
                bytes,
                limit_bytes,
            }))
        }
        CommandOutcome::SessionExpired => Outcome::SessionExpired(SessionExpired {}),
        CommandOutcome::SequenceMismatch {
            sequence,
            last_sequence,
        } => Outcome::SequenceMismatch(SequenceMismatch {
            sequence,
            last_sequence,
        }),
        other @ (CommandOutcome::KeyNotInRegion { .. }
        | CommandOutcome::System(_)
        | CommandOutcome::SessionOpened(_)
        | CommandOutcome::Refused) => return Err(other),
    })
}
