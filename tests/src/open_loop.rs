//! Load by schedule, as many independent clients make it.
//!
//! Closed loop   Each client sends its next call when it has the answer to the last: it offers
//!               what is served, and so measures how much that is.
//! Open loop     Calls are due by a schedule, whatever became of those before. What a call
//!               takes counts from when it was due, so that a server which stalls cannot hide
//!               it by holding back the load.
//!
//! Answers are sorted into three: acknowledged, `ServerIsBusy`, and all else. Nothing is sent
//! twice.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use strata_proto::kvrpcpb::{Context, RawPutRequest};
use strata_proto::tikvpb::tikv_client::TikvClient;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Calls of an open loop that may be under way at one time. One that is due beyond them is
/// not sent, and counted.
pub const CALLS_UNDER_WAY_MAX: usize = 50_000;

/// How often the schedule is looked at.
const SCHEDULE_STEP: Duration = Duration::from_millis(1);

/// How a call was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallAnswer {
    /// It was done.
    Acknowledged,
    /// `ServerIsBusy`: it was not done, and may be tried again.
    Busy,
    /// Anything else, in words.
    Other(String),
}

/// What became of a load.
#[derive(Debug, Default)]
pub struct LoadAnswers {
    /// What each acknowledged call took.
    pub acknowledged: Vec<Duration>,
    /// What each call took that was refused as busy.
    pub busy: Vec<Duration>,
    /// How often each other answer came.
    pub other: BTreeMap<String, usize>,
    /// Calls that were due and found [`CALLS_UNDER_WAY_MAX`] others under way.
    pub unsent: usize,
    /// From the first call to the last answer.
    pub time: Duration,
}

impl LoadAnswers {
    fn note(&mut self, answer: CallAnswer, took: Duration) {
        match answer {
            CallAnswer::Acknowledged => self.acknowledged.push(took),
            CallAnswer::Busy => self.busy.push(took),
            CallAnswer::Other(words) => *self.other.entry(words).or_default() += 1,
        }
    }

    fn merge(&mut self, other: LoadAnswers) {
        self.acknowledged.extend(other.acknowledged);
        self.busy.extend(other.busy);
        for (words, count) in other.other {
            *self.other.entry(words).or_default() += count;
        }
        self.unsent += other.unsent;
    }

    /// Acknowledged calls in a second.
    pub fn rate(&self) -> f64 {
        self.acknowledged.len() as f64 / self.time.as_secs_f64()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let share = |times: &[Duration]| {
            let of = |part| percentile(times, part).as_secs_f64() * 1000.0;
            let (median, most) = (of(0.5), of(1.0));
            let count = times.len();
            format!(
                "{count} (p50 {median:.1} ms, p99 {:.1} ms, most {most:.1} ms)",
                of(0.99)
            )
        };
        format!(
            "{:.0} acknowledged a second; acknowledged {}; busy {}; other {:?}; unsent {}",
            self.rate(),
            share(&self.acknowledged),
            share(&self.busy),
            self.other,
            self.unsent
        )
    }
}

/// The time within which this part (0 to 1) of all calls was answered; zero where there are
/// none.
pub fn percentile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// `clients` that each have one call under way, for `time`; each makes one at least. `call`
/// gets numbers from 0 on, none twice.
///
/// # Panics
/// When a call panics.
pub async fn closed_loop<C, F>(clients: usize, time: Duration, call: C) -> LoadAnswers
where
    C: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = CallAnswer> + Send + 'static,
{
    let (call, next) = (Arc::new(call), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (call, next) = (call.clone(), next.clone());
        tasks.spawn(async move {
            let mut answers = LoadAnswers::default();
            loop {
                let sent = Instant::now();
                let answer = call(next.fetch_add(1, Ordering::Relaxed)).await;
                answers.note(answer, sent.elapsed());
                if begun.elapsed() >= time {
                    return answers;
                }
            }
        });
    }
    let mut answers = LoadAnswers::default();
    while let Some(done) = tasks.join_next().await {
        answers.merge(done.expect("a client ends by itself"));
    }
    answers.time = begun.elapsed();
    answers
}

/// `rate` calls a second for `time`, by schedule; returns when all are answered. `call` gets
/// numbers from 0 on.
///
/// # Panics
/// When a call panics.
pub async fn open_loop<C, F>(rate: f64, time: Duration, call: C) -> LoadAnswers
where
    C: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = CallAnswer> + Send + 'static,
{
    let calls = (rate * time.as_secs_f64()) as u64;
    let places = Arc::new(Semaphore::new(CALLS_UNDER_WAY_MAX));
    let mut answers = LoadAnswers::default();
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    let mut next = 0;
    while next < calls {
        tokio::time::sleep(SCHEDULE_STEP).await;
        let now = Instant::now();
        loop {
            let due = begun + Duration::from_secs_f64(next as f64 / rate);
            if next >= calls || due > now {
                break;
            }
            match places.clone().try_acquire_owned() {
                Err(_) => answers.unsent += 1,
                Ok(place) => {
                    let calling = call(next);
                    tasks.spawn(async move {
                        let answer = calling.await;
                        drop(place);
                        (answer, due.elapsed())
                    });
                }
            }
            next += 1;
        }
        while let Some(done) = tasks.try_join_next() {
            let (answer, took) = done.expect("a call ends by itself");
            answers.note(answer, took);
        }
    }
    while let Some(done) = tasks.join_next().await {
        let (answer, took) = done.expect("a call ends by itself");
        answers.note(answer, took);
    }
    answers.time = begun.elapsed();
    answers
}

/// Puts into one region, straight to the store of its leader.
#[derive(Debug, Clone)]
pub struct DirectPuts {
    /// Connections to the store, used in turn.
    pub connections: Vec<TikvClient<Channel>>,
    /// The region, its epoch and its leader.
    pub context: Context,
    /// Put in front of each key.
    pub prefix: Bytes,
    /// The value.
    pub value: Bytes,
    /// How long a call may take; the server is told.
    pub deadline: Duration,
}

impl DirectPuts {
    /// Puts the key of this number.
    pub fn put(&self, number: u64) -> impl Future<Output = CallAnswer> + Send + use<> {
        let place = (number % self.connections.len() as u64) as usize;
        let mut connection = self.connections[place].clone();
        let mut request = tonic::Request::new(RawPutRequest {
            context: Some(self.context.clone()),
            key: [self.prefix.as_ref(), &number.to_be_bytes()]
                .concat()
                .into(),
            value: self.value.clone(),
            ..Default::default()
        });
        request.set_timeout(self.deadline);
        async move {
            let answer = match connection.raw_put(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return CallAnswer::Other(format!("status {:?}", status.code())),
            };
            match answer.region_error {
                None if answer.error.is_empty() => CallAnswer::Acknowledged,
                None => CallAnswer::Other(answer.error),
                Some(error) if error.server_is_busy.is_some() => CallAnswer::Busy,
                Some(error) => CallAnswer::Other(error.message),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_loop_counts_from_when_a_call_was_due() {
        // A server that answers one call after the other, each in a millisecond or more.
        let server = Arc::new(tokio::sync::Mutex::new(()));
        let answers = open_loop(5000.0, Duration::from_millis(100), move |number| {
            let server = server.clone();
            async move {
                let _turn = server.lock().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                match number % 3 {
                    0 => CallAnswer::Acknowledged,
                    1 => CallAnswer::Busy,
                    _ => CallAnswer::Other("other".into()),
                }
            }
        })
        .await;
        assert_eq!((answers.acknowledged.len(), answers.busy.len()), (167, 167));
        assert_eq!(answers.other, BTreeMap::from([("other".into(), 166)]));
        assert_eq!(answers.unsent, 0);
        // The last of 500 calls was due after 100 ms and had 400 others before it.
        let most = percentile(&answers.acknowledged, 1.0);
        assert!(most >= Duration::from_millis(390), "{most:?}");
        assert!(answers.time >= Duration::from_millis(500));
    }

    #[tokio::test]
    async fn a_closed_loop_has_one_call_of_each_client_under_way() {
        let (under_way, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, seen) = (under_way.clone(), most.clone());
        let answers = closed_loop(5, Duration::from_millis(50), move |_| {
            let (counted, seen) = (counted.clone(), seen.clone());
            async move {
                seen.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                counted.fetch_sub(1, Ordering::SeqCst);
                CallAnswer::Acknowledged
            }
        })
        .await;
        assert!(answers.acknowledged.len() >= 5);
        assert_eq!(most.load(Ordering::SeqCst), 5);
        assert!(answers.rate() > 0.0);
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<Duration> = (0..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&times, 1.0), Duration::from_millis(100));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
