//! Writes that are executed exactly once, however often they have to be sent.
//!
//! A clerk opens a session in each region that it writes to and numbers its operations
//! there. The region keeps the last number with its answer; an operation that is sent
//! again, to the next leader or after a lost answer, gets that answer and is not executed
//! again. So a clerk goes on trying where a raw call must stop in doubt.
//!
//! A session that was not used for a while expires (`session.ttl`). A clerk that finds its
//! session gone opens another one, unless it had sent the operation before: then nobody can
//! tell, and the operation ends in [`Error::Unknown`]. It ends so too when its time is over.
//!
//! Elsewhere: what is sent when ([`course`]), the table of sessions (`strata_raftstore`).

pub mod course;

use crate::attempt::{Call, Kind};
use crate::budget::Budget;
use crate::cache::Route;
use crate::scheduler::timed;
use crate::{Connection, Error, RawClient, Result, Swapped, channels};
use bytes::Bytes;
use course::{Course, Met, Sessions, Step};
use std::sync::Arc;
use std::time::Duration;
use strata_proto::stratapb::{
    AppendCommand, CompareAndSwapCommand, DataCommand, ExecuteRequest, ExecuteResponse, Mutation,
    OpenSessionRequest, RawSpace, SessionAnswer, SessionOperation, WriteCommand,
    clerk_client::ClerkClient, data_command::Body, execute_response, session_answer,
};

/// Writes raw keys exactly once. It does one operation at a time; take several clerks for
/// several at once, they share connections and region cache with their [`RawClient`].
pub struct Clerk {
    client: RawClient,
    sessions: Sessions,
}

impl Clerk {
    /// A clerk over an open connection. Opens nothing before the first write.
    pub fn new(client: RawClient) -> Self {
        Clerk {
            client,
            sessions: Sessions::default(),
        }
    }

    /// The value of a key, or `None`; linearizable. Reading needs no session.
    ///
    /// # Errors
    /// As [`RawClient::get`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.client.get(key).await
    }

    /// Writes a key, for good.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty key, [`Error::Refused`] and
    /// [`Error::EntryTooLarge`] for what no store takes, [`Error::Exhausted`] when the time
    /// is over and nothing was executed, [`Error::Unknown`] when nobody can tell.
    pub async fn put(&mut self, key: &[u8], value: impl Into<Bytes>) -> Result<()> {
        self.put_with_ttl(key, value, 0).await
    }

    /// Writes a key for `ttl` seconds; 0: for good.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_with_ttl(
        &mut self,
        key: &[u8],
        value: impl Into<Bytes>,
        ttl: u64,
    ) -> Result<()> {
        self.write(key, Some(value.into()), ttl).await
    }

    /// Removes a key; one that is absent already is removed too.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.write(key, None, 0).await
    }

    /// Appends to the value of a key, which keeps its expiry; an absent key becomes the
    /// appended bytes.
    ///
    /// # Errors
    /// As [`Self::put`]; [`Error::Refused`] when the whole value would be larger than an
    /// entry of the log may be.
    pub async fn append(&mut self, key: &[u8], value: impl Into<Bytes>) -> Result<()> {
        let body = Body::Append(AppendCommand {
            space: RawSpace::RawV1.into(),
            key: Bytes::copy_from_slice(key),
            value: value.into(),
            max_value_bytes: 0,
        });
        self.execute(key, body).await.and_then(executed)
    }

    /// Writes `value` if the key holds `expected` (`None`: is absent), and says what it
    /// held.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn compare_and_swap(
        &mut self,
        key: &[u8],
        expected: Option<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Swapped> {
        let body = Body::CompareAndSwap(CompareAndSwapCommand {
            space: RawSpace::RawV1.into(),
            key: Bytes::copy_from_slice(key),
            expected,
            value: Some(value.into()),
            ttl_seconds: 0,
        });
        match self.execute(key, body).await?.outcome {
            Some(session_answer::Outcome::CompareAndSwap(verdict)) => Ok(Swapped {
                succeeded: verdict.succeeded,
                previous: verdict.previous,
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn write(&mut self, key: &[u8], value: Option<Bytes>, ttl: u64) -> Result<()> {
        let mutation = Mutation {
            key: Bytes::copy_from_slice(key),
            value,
            ttl_seconds: ttl,
        };
        let body = Body::Write(WriteCommand {
            space: RawSpace::RawV1.into(),
            mutations: vec![mutation],
        });
        self.execute(key, body).await.and_then(executed)
    }

    /// Executes one operation on a key exactly once.
    async fn execute(&mut self, key: &[u8], body: Body) -> Result<SessionAnswer> {
        if key.is_empty() {
            return Err(Error::InvalidArgument(
                "the key is empty: name one of at least one byte".into(),
            ));
        }
        let mut budget = self.client.scheduler().budget();
        self.sessions.begin();
        let result = self.drive(key, &body, &mut budget).await;
        if result.is_err() {
            self.sessions.give_up();
        }
        result
    }

    async fn drive(
        &mut self,
        key: &[u8],
        body: &Body,
        budget: &mut Budget,
    ) -> Result<SessionAnswer> {
        loop {
            let route = self.client.core.route(key, budget).await?;
            match self.sessions.next(route.region.id) {
                Step::Open => self.open(&route, budget).await?,
                Step::Execute {
                    session_id,
                    sequence,
                } => {
                    let command = DataCommand {
                        session: Some(SessionOperation {
                            session_id,
                            sequence,
                        }),
                        body: Some(body.clone()),
                    };
                    if let Some(answer) = self.send(&route, command, budget).await? {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    async fn open(&mut self, route: &Arc<Route>, budget: &mut Budget) -> Result<()> {
        let opening = |call: Call| {
            let request = OpenSessionRequest {
                context: Some(call.context),
            };
            async move {
                let mut client = client(call.connection);
                client.open_session(timed(request, call.time)).await
            }
        };
        // A session too many does no harm, so that a lost answer is no doubt.
        let core = &self.client.core;
        if let Some(answer) = core.attempt(route, Kind::Read, budget, opening).await? {
            self.sessions.on_opened(route.region.id, answer.session_id);
        }
        Ok(())
    }

    /// Sends the operation once. `None`: it is to be sent again.
    async fn send(
        &mut self,
        route: &Arc<Route>,
        command: DataCommand,
        budget: &mut Budget,
    ) -> Result<Option<SessionAnswer>> {
        let sending = |call: Call| {
            let request = ExecuteRequest {
                context: Some(call.context),
                command: Some(command),
            };
            async move {
                client(call.connection)
                    .execute(timed(request, call.time))
                    .await
            }
        };
        let core = &self.client.core;
        let answer = core
            .attempt(route, Kind::RepeatableWrite, budget, sending)
            .await;
        if let Err(Error::Refused { .. } | Error::EntryTooLarge { .. }) = &answer
            && !budget.is_unknown()
        {
            // Nothing has happened: the number is free, and the session goes on.
            self.sessions.on_met(Met::Refused);
        }
        let answer = answer?;
        let Some(ExecuteResponse { outcome, .. }) = answer else {
            let met = if budget.is_unknown() {
                Met::Lost
            } else {
                Met::Refused
            };
            self.sessions.on_met(met);
            return Ok(None);
        };
        let (met, what) = match outcome {
            Some(execute_response::Outcome::Answer(answer)) => {
                self.sessions.on_met(Met::Executed);
                return Ok(Some(answer));
            }
            Some(execute_response::Outcome::SessionExpired(_)) => {
                (Met::Expired, "the session of the operation expired".into())
            }
            Some(execute_response::Outcome::SequenceMismatch(mismatch)) => (
                Met::OutOfOrder,
                format!(
                    "operation {} does not follow operation {} of its session",
                    mismatch.sequence, mismatch.last_sequence
                ),
            ),
            // Nothing says whether it was executed.
            None => {
                return Err(Error::Unknown {
                    last: "the answer holds no outcome".into(),
                });
            }
        };
        match self.sessions.on_met(met) {
            Course::Again => {
                budget.note(what);
                // Where more clerks write than the region keeps sessions for, each new one
                // drives another out.
                budget.pause(Duration::ZERO).await;
                Ok(None)
            }
            Course::Unknown => Err(Error::Unknown { last: what }),
            Course::Broken | Course::Done => Err(budget.close_with(Error::Malformed(what))),
        }
    }
}

fn client(channel: Connection) -> ClerkClient<Connection> {
    ClerkClient::new(channel)
        .max_decoding_message_size(channels::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(channels::MESSAGE_BYTES_MAX)
}

fn executed(answer: SessionAnswer) -> Result<()> {
    match answer.outcome {
        Some(session_answer::Outcome::Executed(_)) => Ok(()),
        Some(session_answer::Outcome::ValueTooLarge(large)) => Err(Error::Refused {
            message: format!(
                "the value would grow to {} bytes, above the limit of {}",
                large.bytes, large.limit_bytes
            ),
        }),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(outcome: &Option<session_answer::Outcome>) -> Error {
    Error::Malformed(format!("an answer of another operation: {outcome:?}"))
}
