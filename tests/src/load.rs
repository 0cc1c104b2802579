//! Writers that record what they did and saw.
//!
//! Each writer has a client and keys of its own, whose puts go to [`Acknowledged`], and
//! works on registers that all share: puts, gets and swaps, recorded with their times for
//! [`crate::linearizable`]. No request is sent twice, so each recorded operation is one.

use crate::linearizable::{self, Action, Operation};
use crate::{Acknowledged, Cluster};
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use strata_client::{Error, Options, RawClient};
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
    registers: Arc<[Bytes]>,
    started: Instant,
    writers: JoinSet<Writer>,
}

/// What a load recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Puts to keys of their own.
    pub acknowledged: Acknowledged,
    /// The registers' keys.
    pub registers: Arc<[Bytes]>,
    /// Histories in the order of the registers.
    pub histories: Vec<Vec<Operation>>,
    /// Longest time without any acknowledgement of any writer.
    pub longest_gap: Duration,
    started: Instant,
}

/// One writer.
struct Writer {
    number: usize,
    client: RawClient,
    regions: Arc<[Bytes]>,
    registers: Arc<[Bytes]>,
    pause: Duration,
    random: ChaCha8Rng,
    started: Instant,
    acknowledged: Acknowledged,
    histories: Vec<Vec<Operation>>,
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
        let started = Instant::now();
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
                registers: registers.clone(),
                pause: options.pause,
                random: ChaCha8Rng::seed_from_u64(seed),
                started,
                acknowledged: Acknowledged::default(),
                histories: vec![Vec::new(); registers.len()],
                times: Vec::new(),
                written: 0,
            };
            writers.spawn(writer.run(stop.clone(), acknowledgements.clone()));
        }
        Self {
            stop,
            acknowledgements,
            registers,
            started,
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
        let mut histories = vec![Vec::new(); self.registers.len()];
        let mut times = vec![self.started, Instant::now()];
        while let Some(writer) = self.writers.join_next().await {
            let writer = writer.expect("a writer ends");
            acknowledged.extend(writer.acknowledged);
            for (all, own) in histories.iter_mut().zip(writer.histories) {
                all.extend(own);
            }
            times.extend(writer.times);
        }
        times.sort();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        Recorded {
            acknowledged,
            registers: self.registers.clone(),
            histories,
            longest_gap: gaps.max().unwrap_or_default(),
            started: self.started,
        }
    }
}

impl Recorded {
    /// Reads every register once more, so that the end of each history is pinned down.
    ///
    /// # Panics
    /// When the cluster does not answer in time.
    pub async fn read_registers(&mut self, client: &RawClient) {
        for (key, history) in self.registers.iter().zip(&mut self.histories) {
            let start = self.started.elapsed();
            let seen = crate::eventually("a register to be read", || client.get(key)).await;
            history.push(Operation {
                client: usize::MAX,
                action: Action::Get(seen.map(|value| number(&value))),
                start,
                end: Some(self.started.elapsed()),
            });
        }
    }

    /// Checks every history.
    ///
    /// # Panics
    /// When one fits no order, with the place where it does not.
    pub fn assert_linearizable(&self) {
        for (key, history) in self.registers.iter().zip(&self.histories) {
            if let Err(violation) = linearizable::check(history) {
                panic!(
                    "register {key:?} is not linearizable over {} operations, near {:#?}",
                    history.len(),
                    violation.stuck_at
                );
            }
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

fn number(value: &[u8]) -> u64 {
    let digits = std::str::from_utf8(value).expect("registers hold text");
    digits.parse().expect("registers hold numbers")
}

fn expected_value(number: Option<u64>) -> Option<Bytes> {
    number.map(|number| number.to_string().into())
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
        let place = self.random.random_range(0..self.registers.len());
        let key = self.registers[place].clone();
        // Unique over all writers of the load.
        let new = self.number as u64 * 1_000_000_000 + self.written;
        let start = self.started.elapsed();
        let (action, known) = match self.random.random_range(0..10) {
            0..4 => match self.client.put(&key, new.to_string()).await {
                Ok(()) => (Action::Put(new), true),
                Err(Error::Unknown { .. }) => (Action::Put(new), false),
                Err(_) => return false,
            },
            4..8 => match self.client.get(&key).await {
                Ok(seen) => (Action::Get(seen.map(|value| number(&value))), true),
                Err(_) => return false,
            },
            _ => {
                let expected = self.last_seen(place);
                let swap =
                    self.client
                        .compare_and_swap(&key, expected_value(expected), new.to_string());
                match swap.await {
                    Ok(swapped) if swapped.succeeded => (Action::Swapped { expected, new }, true),
                    Ok(swapped) => {
                        let held = swapped.previous.map(|value| number(&value));
                        assert_ne!(held, expected, "a swap failed on what it expected");
                        (Action::NotSwapped { held }, true)
                    }
                    Err(Error::Unknown { .. }) => (Action::MaybeSwapped { expected, new }, false),
                    Err(_) => return false,
                }
            }
        };
        self.histories[place].push(Operation {
            client: self.number,
            action,
            start,
            end: known.then(|| self.started.elapsed()),
        });
        known
    }

    /// What this writer knows of a register, so that some of its swaps succeed.
    fn last_seen(&self, place: usize) -> Option<u64> {
        self.histories[place]
            .iter()
            .rev()
            .find_map(|operation| match (operation.end, operation.action) {
                (None, _) => None,
                (_, Action::Put(value) | Action::Swapped { new: value, .. }) => Some(Some(value)),
                (_, Action::Get(held) | Action::NotSwapped { held }) => Some(held),
                (_, Action::MaybeSwapped { .. }) => None,
            })
            .flatten()
    }
}
