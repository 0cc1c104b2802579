//! The clients of a check: what they do, and how it enters the history.

use super::plan::{Group, Plan};
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use strata_client::clerk::Clerk;
use strata_client::{Error, RawClient, Scan, Swapped};
use strata_sim::history::{Action, History, OperationId, Outcome};
use tokio::task::JoinSet;

/// Longest pause of a client between two operations.
const PAUSE_MAX: Duration = Duration::from_millis(8);
/// Pause after an operation that failed, so that a dead cluster is not hammered.
const FAILED_PAUSE: Duration = Duration::from_millis(50);
/// How long the reads at the end may take, all together.
const READS_MAX: Duration = Duration::from_secs(10);

/// What a call says: for each of its steps what it says of each key.
type Told = Vec<Vec<Option<Outcome>>>;

/// A load on a cluster.
pub struct Load {
    pub client: RawClient,
    pub plan: Plan,
    pub clients: u64,
    pub length: Duration,
    pub seed: u64,
}

/// The history that all clients enter their operations into.
#[derive(Clone)]
struct Recorder {
    history: Arc<Mutex<History>>,
    began: Instant,
}

/// One client.
struct Worker {
    number: u64,
    client: RawClient,
    clerk: Clerk,
    plan: Plan,
    recorder: Recorder,
    rng: ChaCha8Rng,
    values: u64,
    /// What this client saw last of some key, as expectation of its next swap.
    seen: Option<(Bytes, Option<Bytes>)>,
}

impl Load {
    /// Runs it to its end; what was recorded, with a read of every key at the end.
    pub async fn run(self) -> History {
        let recorder = Recorder {
            history: Arc::default(),
            began: Instant::now(),
        };
        let end = recorder.began + self.length;
        let mut workers = JoinSet::new();
        for number in 1..=self.clients {
            let worker = Worker {
                number,
                client: self.client.clone(),
                clerk: Clerk::new(self.client.clone()),
                plan: self.plan.clone(),
                recorder: recorder.clone(),
                rng: ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(number)),
                values: 0,
                seen: None,
            };
            workers.spawn(worker.run(end));
        }
        while let Some(worker) = workers.join_next().await {
            worker.expect("a client does not panic");
        }
        let limit = Instant::now() + READS_MAX;
        for key in self.plan.groups.iter().flat_map(|group| &group.keys) {
            // What cannot be read stays open; the verdict is on what was seen.
            while Instant::now() < limit {
                let id = recorder.invoke(0, vec![(key.clone(), Action::Get)]);
                let seen = self.client.get(key).await;
                let read = seen.is_ok();
                let told = seen.map(|value| vec![vec![Some(Outcome::Value(value))]]);
                recorder.finish(&[id], false, told);
                if read {
                    break;
                }
                tokio::time::sleep(FAILED_PAUSE).await;
            }
        }
        recorder.lock().clone()
    }
}

/// Removes the keys of a check, until it succeeds.
pub async fn remove_keys(client: &RawClient, plan: &Plan) {
    for group in plan.groups.iter() {
        let (start, end) = group.range();
        while client.delete_range(&start, &end).await.is_err() {
            tokio::time::sleep(FAILED_PAUSE).await;
        }
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Enters a step of one region.
    fn invoke(&self, client: u64, actions: Vec<(Bytes, Action)>) -> OperationId {
        let now = self.now();
        self.lock().invoke_all(client, actions, now)
    }

    /// Enters what a call came to.
    fn finish(&self, ids: &[OperationId], writes: bool, result: Result<Told, Error>) {
        let now = self.now();
        let mut history = self.lock();
        match result {
            Ok(told) => {
                for (id, outcomes) in ids.iter().zip(told) {
                    history.complete_all(*id, outcomes, now);
                }
            }
            // Of a call over several regions a part may have been executed all the same.
            Err(error) if !writes || (ids.len() == 1 && changed_nothing(&error)) => {
                ids.iter().for_each(|id| history.retract(*id));
            }
            Err(_) => {}
        }
    }
}

/// True for errors after which nothing was executed and nothing will be.
fn changed_nothing(error: &Error) -> bool {
    match error {
        Error::BadEndpoint { .. }
        | Error::InvalidArgument(_)
        | Error::Exhausted { .. }
        | Error::Refused { .. }
        | Error::EntryTooLarge { .. }
        | Error::NotFound(_)
        | Error::Scheduler { .. } => true,
        Error::Unknown { .. } | Error::AnswerTooLarge { .. } | Error::Malformed(_) => false,
    }
}

impl Worker {
    async fn run(mut self, end: Instant) {
        while Instant::now() < end {
            let pause = match self.work().await {
                Ok(()) => self.rng.random_range(Duration::ZERO..PAUSE_MAX),
                Err(_) => FAILED_PAUSE,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One operation, recorded.
    async fn work(&mut self) -> Result<(), Error> {
        let (group, key) = self.draw_key();
        match self.rng.random_range(0..100) {
            0..25 => self.get(key).await,
            25..45 => self.put(key).await,
            45..51 => self.delete(key).await,
            51..62 => self.append(key).await,
            62..75 => self.swap(key).await,
            75..82 => self.batch_get().await,
            82..90 => self.batch_put().await,
            90..98 => self.scan(&group).await,
            _ => self.delete_range(&group).await,
        }
    }

    fn draw_key(&mut self) -> (Group, Bytes) {
        let groups = &self.plan.groups;
        let group = groups[self.rng.random_range(0..groups.len())].clone();
        let key = group.keys[self.rng.random_range(0..group.keys.len())].clone();
        (group, key)
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> Bytes {
        self.values += 1;
        format!("{}.{};", self.number, self.values).into()
    }

    fn begin(&self, key: &Bytes, action: Action) -> OperationId {
        self.recorder
            .invoke(self.number, vec![(key.clone(), action)])
    }

    /// Records what a write of one key came to.
    fn end(&self, id: OperationId, result: Result<Outcome, Error>) -> Result<(), Error> {
        let ended = result.as_ref().map(|_| ()).map_err(Clone::clone);
        let told = result.map(|outcome| vec![vec![Some(outcome)]]);
        self.recorder.finish(&[id], true, told);
        ended
    }

    async fn get(&mut self, key: Bytes) -> Result<(), Error> {
        let id = self.begin(&key, Action::Get);
        let seen = self.client.get(&key).await;
        if let Ok(value) = &seen {
            self.seen = Some((key, value.clone()));
        }
        let ended = seen.as_ref().map(|_| ()).map_err(Clone::clone);
        let told = seen.map(|value| vec![vec![Some(Outcome::Value(value))]]);
        self.recorder.finish(&[id], false, told);
        ended
    }

    async fn put(&mut self, key: Bytes) -> Result<(), Error> {
        let value = self.value();
        let id = self.begin(&key, Action::Put(value.clone()));
        // Three in four in a session, where it is sent until it is answered.
        let result = if self.rng.random_bool(0.75) {
            self.clerk.put(&key, value).await
        } else {
            self.client.put(&key, value).await
        };
        self.end(id, result.map(|()| Outcome::Done))
    }

    async fn delete(&mut self, key: Bytes) -> Result<(), Error> {
        let id = self.begin(&key, Action::Delete);
        let result = if self.rng.random() {
            self.clerk.delete(&key).await
        } else {
            self.client.delete(&key).await
        };
        self.end(id, result.map(|()| Outcome::Done))
    }

    async fn append(&mut self, key: Bytes) -> Result<(), Error> {
        let value = self.value();
        let id = self.begin(&key, Action::Append(value.clone()));
        let result = self.clerk.append(&key, value).await;
        self.end(id, result.map(|()| Outcome::Done))
    }

    async fn swap(&mut self, key: Bytes) -> Result<(), Error> {
        let (key, expected) = match self.seen.take() {
            Some(seen) => seen,
            None => (key, None),
        };
        let new = self.value();
        let action = Action::CompareAndSwap {
            expected: expected.clone(),
            new: Some(new.clone()),
        };
        let id = self.begin(&key, action);
        let result = if self.rng.random() {
            self.clerk.compare_and_swap(&key, expected, new).await
        } else {
            self.client.compare_and_swap(&key, expected, new).await
        };
        let told = |swapped: Swapped| Outcome::Swapped {
            succeeded: swapped.succeeded,
            previous: Some(swapped.previous),
        };
        self.end(id, result.map(told))
    }

    /// Some keys of one region, or of two.
    fn draw_parts(&mut self) -> Vec<Vec<Bytes>> {
        let regions = self.plan.groups.len();
        let first = self.rng.random_range(0..regions);
        let mut places = vec![first];
        if regions > 1 && self.rng.random_bool(0.3) {
            places.push((first + self.rng.random_range(1..regions)) % regions);
        }
        places
            .into_iter()
            .map(|place| {
                let mut keys = self.plan.groups[place].keys.clone();
                let count = self.rng.random_range(1..=keys.len());
                while keys.len() > count {
                    keys.swap_remove(self.rng.random_range(0..keys.len()));
                }
                keys
            })
            .collect()
    }

    async fn batch_get(&mut self) -> Result<(), Error> {
        let parts = self.draw_parts();
        let ids = self.begin_parts(&parts, |_| Action::Get);
        let keys = parts.iter().flatten().cloned().collect();
        let found = self.client.batch_get(keys).await;
        self.end_reads(&ids, &parts, found, |_| true)
    }

    async fn batch_put(&mut self) -> Result<(), Error> {
        let parts = self.draw_parts();
        let pairs: Vec<(Bytes, Bytes)> = parts
            .iter()
            .flatten()
            .map(|key| (key.clone(), self.value()))
            .collect();
        let values: BTreeMap<Bytes, Bytes> = pairs.iter().cloned().collect();
        let ids = self.begin_parts(&parts, |key| Action::Put(values[key].clone()));
        let result = self.client.batch_put(pairs, 0).await;
        self.end_writes(&ids, &parts, result)
    }

    async fn scan(&mut self, group: &Group) -> Result<(), Error> {
        let parts = vec![group.keys.clone()];
        let ids = self.begin_parts(&parts, |_| Action::Get);
        let (start, end) = group.range();
        let limit = self
            .rng
            .random_bool(0.3)
            .then(|| self.rng.random_range(1..4));
        let reverse = self.rng.random();
        let scan = Scan {
            start,
            end,
            limit,
            reverse,
            ..Scan::default()
        };
        let found = self.client.scan(scan).await;
        // Behind its limit it says nothing.
        let pairs = found.as_deref().unwrap_or_default();
        let last = pairs.last().filter(|_| Some(pairs.len()) == limit);
        let last = last.map(|(key, _)| key.clone());
        self.end_reads(&ids, &parts, found, |key| match &last {
            None => true,
            Some(last) if reverse => key >= last,
            Some(last) => key <= last,
        })
    }

    async fn delete_range(&mut self, group: &Group) -> Result<(), Error> {
        let parts = vec![group.keys.clone()];
        let ids = self.begin_parts(&parts, |_| Action::Delete);
        let (start, end) = group.range();
        let result = self.client.delete_range(&start, &end).await;
        self.end_writes(&ids, &parts, result)
    }

    fn begin_parts(
        &self,
        parts: &[Vec<Bytes>],
        action: impl Fn(&Bytes) -> Action,
    ) -> Vec<OperationId> {
        let steps = parts.iter().map(|keys| {
            let actions = keys.iter().map(|key| (key.clone(), action(key)));
            self.recorder.invoke(self.number, actions.collect())
        });
        steps.collect()
    }

    fn end_reads(
        &self,
        ids: &[OperationId],
        parts: &[Vec<Bytes>],
        found: Result<Vec<(Bytes, Bytes)>, Error>,
        said: impl Fn(&Bytes) -> bool,
    ) -> Result<(), Error> {
        let ended = found.as_ref().map(|_| ()).map_err(Clone::clone);
        let told = found.map(|pairs| {
            let values: BTreeMap<Bytes, Bytes> = pairs.into_iter().collect();
            let seen = |key: &Bytes| said(key).then(|| Outcome::Value(values.get(key).cloned()));
            parts
                .iter()
                .map(|keys| keys.iter().map(seen).collect())
                .collect()
        });
        self.recorder.finish(ids, false, told);
        ended
    }

    fn end_writes(
        &self,
        ids: &[OperationId],
        parts: &[Vec<Bytes>],
        result: Result<(), Error>,
    ) -> Result<(), Error> {
        let ended = result.clone();
        let done = |()| {
            parts
                .iter()
                .map(|keys| vec![Some(Outcome::Done); keys.len()])
                .collect()
        };
        self.recorder.finish(ids, true, result.map(done));
        ended
    }
}
