//! Writers that record what they did and saw.
//!
//! Each writer has a client and keys of its own, whose puts go to [`Acknowledged`], and
//! works on registers that all share: puts, gets and swaps, all recorded in one history for
//! [`strata_sim::linearizability`]. No request is sent twice, so each recorded operation is
//! one.

use crate::{Acknowledged, Cluster};
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use strata_client::{Error, Options, RawClient};
use strata_sim::history::{Action, History, OperationId, Outcome};
use strata_sim::linearizability;
use tokio::task::JoinSet;

/// How much load, and of what kind.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Clients that work side by side.
    pub writers: usize,
    /// Registers that they share; they lie in all regions.
    pub registers: usize,
    /// Pause of a writer between two operations.
    pub pause: Duration,
    /// Seed of what the writers choose.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            writers: 8,
            registers: 24,
            pause: Duration::from_millis(2),
            seed: 1,
        }
    }
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledgements: Arc<AtomicUsize>,
    recorder: Recorder,
    writers: JoinSet<Writer>,
}

/// What a load recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Puts to keys of their own.
    pub acknowledged: Acknowledged,
    /// What was done with the registers.
    pub history: History,
    /// The registers' keys.
    pub registers: Arc<[Bytes]>,
    /// Longest time without any acknowledgement of any writer.
    pub longest_gap: Duration,
    recorder: Recorder,
}

/// The registers and the history of a load.
#[derive(Debug, Clone)]
struct Recorder {
    history: Arc<Mutex<History>>,
    registers: Arc<[Bytes]>,
    started: Instant,
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no writer panics")
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn invoke(&self, client: usize, key: &Bytes, action: Action) -> OperationId {
        let now = self.now();
        self.lock().invoke(client as u64, key.clone(), action, now)
    }

    /// Enters what an operation came to; true if it was answered.
    fn finish(&self, id: OperationId, writes: bool, result: Result<Outcome, Error>) -> bool {
        let now = self.now();
        let mut history = self.lock();
        match result {
            Ok(outcome) => {
                history.complete(id, outcome, now);
                return true;
            }
            Err(Error::Unknown { .. }) if writes => {}
            Err(_) => history.retract(id),
        }
        false
    }
}

/// One writer.
struct Writer {
    number: usize,
    client: RawClient,
    regions: Arc<[Bytes]>,
    recorder: Recorder,
    pause: Duration,
    random: ChaCha8Rng,
    acknowledged: Acknowledged,
    /// What this writer knows of registers, so that some of its swaps succeed.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    times: Vec<Instant>,
    written: u64,
}

/// Beginnings of keys, one in each region.
async fn prefixes(client: &RawClient) -> Arc<[Bytes]> {
    let regions = crate::eventually("regions", || client.scheduler().all_regions()).await;
    regions
        .into_iter()
        .map(|info| match info.region.start_key.len() {
            0 => Bytes::from_static(b"\0\0"),
            _ => info.region.start_key,
        })
        .collect()
}

fn join(prefix: &Bytes, name: &str) -> Bytes {
    [prefix, name.as_bytes()].concat().into()
}

impl Load {
    /// Starts writers against a cluster.
    ///
    /// # Panics
    /// When the cluster does not answer in time.
    pub async fn start(endpoints: &[String], options: LoadOptions) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledgements = Arc::new(AtomicUsize::new(0));
        let client = connect(endpoints, options.seed).await;
        let regions = prefixes(&client).await;
        let run = crate::eventually("a number for this load", || client.scheduler().alloc_ids(1));
        let run = run.await;
        let registers: Arc<[Bytes]> = (0..options.registers)
            .map(|place| {
                join(
                    &regions[place % regions.len()],
                    &format!("register-{run}-{place}"),
                )
            })
            .collect();
        let recorder = Recorder {
            history: Arc::default(),
            registers,
            started: Instant::now(),
        };
        let mut writers = JoinSet::new();
        for number in 0..options.writers {
            let seed = options.seed * 1000 + number as u64;
            let writer = Writer {
                number,
                client: connect(endpoints, seed).await,
                regions: regions
                    .iter()
                    .map(|region| join(region, &format!("own-{run}-")))
                    .collect(),
                recorder: recorder.clone(),
                pause: options.pause,
                random: ChaCha8Rng::seed_from_u64(seed),
                acknowledged: Acknowledged::default(),
                seen: BTreeMap::new(),
                times: Vec::new(),
                written: 0,
            };
            writers.spawn(writer.run(stop.clone(), acknowledgements.clone()));
        }
        Self {
            stop,
            acknowledgements,
            recorder,
            writers,
        }
    }

    /// How many operations were answered so far.
    pub fn acknowledgements(&self) -> usize {
        self.acknowledgements.load(Ordering::Relaxed)
    }

    /// Waits until `more` further operations were answered.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_for(&self, more: usize) {
        let goal = self.acknowledgements() + more;
        crate::eventually_sync("acknowledgements", || match self.acknowledgements() {
            count if count >= goal => Ok(()),
            count => Err(format!("{count} of {goal}")),
        })
        .await;
    }

    /// Stops the writers and puts together what they recorded.
    ///
    /// # Panics
    /// When a writer panicked.
    pub async fn stop(mut self) -> Recorded {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Acknowledged::default();
        let mut times = vec![self.recorder.started, Instant::now()];
        while let Some(writer) = self.writers.join_next().await {
            let writer = writer.expect("a writer ends");
            acknowledged.extend(writer.acknowledged);
            times.extend(writer.times);
        }
        times.sort();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let history = self.recorder.lock().clone();
        Recorded {
            acknowledged,
            history,
            registers: self.recorder.registers.clone(),
            longest_gap: gaps.max().unwrap_or_default(),
            recorder: self.recorder,
        }
    }
}

impl Recorded {
    /// Reads every register once more, so that the end of the history is pinned down.
    ///
    /// # Panics
    /// When the cluster does not answer in time.
    pub async fn read_registers(&mut self, client: &RawClient) {
        for key in self.registers.iter() {
            let begun = self.recorder.now();
            let id = self.history.invoke(0, key.clone(), Action::Get, begun);
            let seen = crate::eventually("a register to be read", || client.get(key)).await;
            let ended = self.recorder.now();
            self.history.complete(id, Outcome::Value(seen), ended);
        }
    }

    /// Checks the history.
    ///
    /// # Panics
    /// When it fits no order, with the shortest part that does not.
    pub fn assert_linearizable(&self) {
        if let Err(fault) = linearizability::check(&self.history) {
            panic!(
                "{} operations on {} registers: {fault}",
                self.history.len(),
                self.registers.len()
            );
        }
    }

    /// All checks that every run ends in: acknowledged writes present, histories
    /// linearizable, replicas equal.
    ///
    /// # Panics
    /// When one fails.
    pub async fn assert_all(mut self, cluster: &Cluster) {
        let client = cluster.client().await;
        self.acknowledged.assert_present(&client).await;
        self.read_registers(&client).await;
        self.assert_linearizable();
        let pairs = cluster.assert_replicas_equal().await;
        assert!(
            pairs >= self.acknowledged.len() as u64,
            "the replicas hold {pairs} pairs, {} were acknowledged",
            self.acknowledged.len()
        );
    }
}

async fn connect(endpoints: &[String], seed: u64) -> RawClient {
    let options = Options {
        operation_timeout: Duration::from_secs(5),
        repeat_unknown_writes: false,
        seed,
        ..Options::default()
    };
    crate::eventually("a client to connect", || {
        RawClient::connect(endpoints, options.clone())
    })
    .await
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            self.written += 1;
            let done = if self.written.is_multiple_of(2) {
                self.put_own_key().await
            } else {
                self.use_register().await
            };
            if done {
                self.times.push(Instant::now());
                count.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(self.pause).await;
        }
        self
    }

    async fn put_own_key(&mut self) -> bool {
        let region = self.random.random_range(0..self.regions.len());
        let name = format!("{}-{}", self.number, self.written);
        let key = join(&self.regions[region], &name);
        let value = Bytes::from(format!("value of {name}"));
        match self.client.put(&key, value.clone()).await {
            Ok(()) => {
                self.acknowledged.note(key, value);
                true
            }
            Err(_) => false,
        }
    }

    async fn use_register(&mut self) -> bool {
        let place = self.random.random_range(0..self.recorder.registers.len());
        let key = self.recorder.registers[place].clone();
        // Unique over all writers of the load.
        let new = Bytes::from(format!("{}.{}", self.number, self.written));
        match self.random.random_range(0..10) {
            0..4 => {
                let id = self.begin(&key, Action::Put(new.clone()));
                let result = self.client.put(&key, new.clone()).await;
                self.end(key, id, result.map(|()| (Outcome::Done, Some(new))))
            }
            4..8 => {
                let id = self.begin(&key, Action::Get);
                match self.client.get(&key).await {
                    Ok(value) => {
                        let told = (Outcome::Value(value.clone()), value);
                        self.end(key, id, Ok(told))
                    }
                    // A read without an answer says nothing.
                    Err(error) => self.recorder.finish(id, false, Err(error)),
                }
            }
            _ => {
                let expected = self.seen.get(&key).cloned().flatten();
                let action = Action::CompareAndSwap {
                    expected: expected.clone(),
                    new: Some(new.clone()),
                };
                let id = self.begin(&key, action);
                let swap = self.client.compare_and_swap(&key, expected, new.clone());
                let told = swap.await.map(|swapped| {
                    let held = if swapped.succeeded {
                        Some(new)
                    } else {
                        swapped.previous.clone()
                    };
                    let outcome = Outcome::Swapped {
                        succeeded: swapped.succeeded,
                        previous: Some(swapped.previous),
                    };
                    (outcome, held)
                });
                self.end(key, id, told)
            }
        }
    }

    fn begin(&self, key: &Bytes, action: Action) -> OperationId {
        self.recorder.invoke(self.number + 1, key, action)
    }

    /// Records what came back: the outcome, and what the register holds then.
    fn end(
        &mut self,
        key: Bytes,
        id: OperationId,
        result: Result<(Outcome, Option<Bytes>), Error>,
    ) -> bool {
        let outcome = result.map(|(outcome, held)| {
            self.seen.insert(key, held);
            outcome
        });
        self.recorder.finish(id, true, outcome)
    }
}
