//! Timestamps, over one stream to the scheduler's leader.
//!
//! Only the leader of region 1 answers this call, and its streams end when its lease is
//! lost: then the leader is asked for again and a new stream is opened. Answers come in
//! the order of the requests, so one request is in flight at a time.

use crate::budget::Budget;
use crate::channels;
use crate::scheduler::first_line;
use crate::{Error, Result, Scheduler};
use std::time::Duration;
use strata_proto::pdpb;
use strata_proto::pdpb::pd_client::PdClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A point in the cluster's time. Later calls give larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Milliseconds since 1970 by the scheduler's clock.
    pub physical: i64,
    /// Tells apart timestamps of one millisecond.
    pub logical: i64,
}

/// A stream of timestamps.
pub struct Timestamps {
    scheduler: Scheduler,
    stream: Option<Stream>,
    /// The highest that was given out.
    last: Option<Timestamp>,
}

struct Stream {
    requests: mpsc::Sender<pdpb::TsoRequest>,
    answers: tonic::Streaming<pdpb::TsoResponse>,
}

impl Timestamps {
    /// A stream that is opened with the first call.
    pub fn new(scheduler: &Scheduler) -> Self {
        Self {
            scheduler: scheduler.clone(),
            stream: None,
            last: None,
        }
    }

    /// The highest of `count` timestamps that are now the caller's; the others differ in
    /// `logical` alone.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when no leader answers in time, [`Error::Malformed`] when the
    /// answer does not fit the request.
    pub async fn take(&mut self, count: u32) -> Result<Timestamp> {
        let mut budget = self.scheduler.budget();
        loop {
            let time = budget.next_attempt(self.scheduler.options().attempt_timeout)?;
            match tokio::time::timeout(time, self.attempt(count)).await {
                Ok(Ok(answer)) => {
                    let taken = self.check(count, &answer);
                    match taken {
                        Ok(timestamp) => self.last = Some(timestamp),
                        Err(_) => self.stream = None,
                    }
                    return taken;
                }
                Ok(Err(reason)) => self.give_up(&mut budget, reason).await,
                Err(_) => {
                    self.give_up(&mut budget, format!("no timestamp in {time:?}"))
                        .await;
                }
            }
        }
    }

    /// The timestamp of an answer that fits: to this request, and behind the last.
    fn check(&self, count: u32, answer: &pdpb::TsoResponse) -> Result<Timestamp> {
        if answer.count != count {
            return Err(Error::Malformed(format!(
                "{} timestamps for {count} asked",
                answer.count
            )));
        }
        let Some(timestamp) = &answer.timestamp else {
            return Err(Error::Malformed("an answer without a timestamp".into()));
        };
        let timestamp = Timestamp {
            physical: timestamp.physical,
            logical: timestamp.logical,
        };
        match self.last {
            Some(last) if timestamp <= last => Err(Error::Malformed(format!(
                "timestamp {timestamp:?} after {last:?}"
            ))),
            _ => Ok(timestamp),
        }
    }

    async fn give_up(&mut self, budget: &mut Budget, reason: String) {
        self.stream = None;
        budget.note(reason);
        budget.pause(Duration::ZERO).await;
    }

    async fn attempt(&mut self, count: u32) -> std::result::Result<pdpb::TsoResponse, String> {
        let request = pdpb::TsoRequest {
            header: Some(self.scheduler.header()),
            count,
            ..Default::default()
        };
        if self.stream.is_none() {
            self.stream = Some(open(&self.scheduler, request.clone()).await?);
        } else if let Some(stream) = &self.stream {
            stream
                .requests
                .send(request)
                .await
                .map_err(|_| "the stream of timestamps ended".to_string())?;
        }
        let Some(stream) = &mut self.stream else {
            return Err("no stream of timestamps".into());
        };
        match stream.answers.message().await {
            Ok(Some(answer)) => match answer.header.as_ref().and_then(|head| head.error.as_ref()) {
                None => Ok(answer),
                Some(error) => Err(first_line(&error.message)),
            },
            Ok(None) => Err("the stream of timestamps ended".into()),
            Err(status) => Err(channels::describe(&status)),
        }
    }
}

/// Opens a stream to the leader with its first request.
async fn open(
    scheduler: &Scheduler,
    first: pdpb::TsoRequest,
) -> std::result::Result<Stream, String> {
    let members = scheduler
        .members()
        .await
        .map_err(|error| error.to_string())?;
    let address = leader_address(&members).ok_or("no leader of the scheduler is known")?;
    let channel = scheduler
        .channels()
        .to(&address)
        .map_err(|error| error.to_string())?;
    let (requests, queue) = mpsc::channel(1);
    requests
        .send(first)
        .await
        .map_err(|_| "the stream of timestamps ended".to_string())?;
    let answers = PdClient::new(channel)
        .tso(ReceiverStream::new(queue))
        .await
        .map_err(|status| channels::describe(&status))?
        .into_inner();
    Ok(Stream { requests, answers })
}

/// `HOST:PORT` of the member that leads.
pub(crate) fn leader_address(members: &pdpb::GetMembersResponse) -> Option<String> {
    let leader = members.leader.as_ref()?;
    leader
        .client_urls
        .iter()
        .find_map(|url| channels::normalize(url).ok())
}
