//! The load of a nemesis test: clients of several kinds on keys that they share.
//!
//! Register clients   put, get, delete and swap; half of them write through a clerk, in
//!                    sessions. Each write has a value of its own.
//! Groups             of keys in each region, with scans, batches and removals of ranges
//!                    beside single reads and writes (`together`).
//! Appends            by all clerks, to lists that all read.
//! Own keys           each put once, to be present at the end if it was acknowledged.
//! Expiring keys      put once, to be gone at some time: in the history a removal of just
//!                    that value, of unknown outcome, goes with each.
//! Direct readers     one a store: they ask that store whatever the scheduler says, as leader
//!                    and as follower in turn, and wait long. What a stopped or cut off store
//!                    answers when it goes on stands in the history through them.
//! Timestamps         one client; each must be larger than the last.
//!
//! The shared keys change every [`GENERATION`], so that the history of each stays short.

use super::recorder::Recorder;
use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use strata_client::clerk::Clerk;
use strata_client::{Error, Options, RawClient, RegionInfo, Timestamps};
use strata_proto::kvrpcpb;
use strata_proto::tikvpb::tikv_client::TikvClient;
use strata_sim::history::{Action, Outcome};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

/// How long a set of shared keys is in use.
const GENERATION: Duration = Duration::from_secs(3);
/// Shared registers of a generation, and lists that are appended to.
const REGISTERS: usize = 12;
const LISTS: usize = 4;
/// Keys of a group; there is one group in each region and generation.
const GROUP_KEYS: [&str; 3] = ["a", "b", "c"];
/// Pause of a client between two operations.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest time of one operation. A clerk repeats within it.
const OPERATION_TIME: Duration = Duration::from_secs(3);
/// A direct reader waits longer than any store is stopped.
const DIRECT_TIME: Duration = Duration::from_secs(20);
const DIRECT_PAUSE: Duration = Duration::from_millis(20);
/// Reads of one direct reader that are under way: so many gather at a store that is stopped
/// for five seconds.
const DIRECT_MAX: usize = 256;
/// Seconds until an expiring key expires, at most.
const TTL_MAX: u64 = 4;
/// Numbers of direct readers in the history begin here.
const DIRECT_CLIENT: u64 = 100;

/// How many clients, and what they do besides.
#[derive(Debug, Clone)]
pub struct ClientsOptions {
    /// Register clients, half of them clerks.
    pub clients: u64,
    /// Use keys that expire, too.
    pub expiring: bool,
    /// Take timestamps.
    pub timestamps: bool,
    /// Bytes that are added to each value.
    pub value_padding: usize,
}

impl Default for ClientsOptions {
    fn default() -> Self {
        Self {
            clients: 10,
            expiring: false,
            timestamps: false,
            value_padding: 0,
        }
    }
}

/// What all clients know.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) recorder: Arc<Recorder>,
    regions: Arc<[RegionInfo]>,
    /// Number of this load in its cluster.
    run: u64,
    stop: Arc<AtomicBool>,
    options: ClientsOptions,
}

/// A running load.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Starts clients that know these endpoints; the stores are those of `stores`.
    pub(super) async fn start(
        endpoints: &[String],
        stores: &[(u64, String)],
        recorder: &Arc<Recorder>,
        options: &ClientsOptions,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = connect(endpoints, seed).await;
        let regions = crate::eventually("regions", || client.scheduler().all_regions()).await;
        let run = crate::eventually("a number", || client.scheduler().alloc_ids(1)).await;
        let common = Common {
            recorder: recorder.clone(),
            regions: regions.into(),
            run,
            stop: stop.clone(),
            options: options.clone(),
        };
        let mut tasks = JoinSet::new();
        for number in 0..options.clients {
            let seed = seed.wrapping_mul(1000).wrapping_add(number);
            let client = connect(endpoints, seed).await;
            let clerk = number.is_multiple_of(2).then(|| Clerk::new(client.clone()));
            let client = Client {
                number,
                client,
                clerk,
                random: ChaCha8Rng::seed_from_u64(seed),
                written: 0,
                common: common.clone(),
            };
            tasks.spawn(client.run());
        }
        for (store, address) in stores {
            tasks.spawn(read_directly(*store, address.clone(), common.clone(), seed));
        }
        if options.timestamps {
            tasks.spawn(take_timestamps(client, common));
        }
        Self { stop, tasks }
    }

    /// Waits until every client has ended its last operation.
    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("a client ends");
        }
    }
}

async fn connect(endpoints: &[String], seed: u64) -> RawClient {
    let options = Options {
        operation_timeout: OPERATION_TIME,
        repeat_unknown_writes: false,
        seed,
        ..Options::default()
    };
    crate::eventually("a client to connect", || {
        RawClient::connect(endpoints, options.clone())
    })
    .await
}

impl Common {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A key in one of the regions, by turns.
    fn key(&self, turn: usize, name: &str) -> (Bytes, &RegionInfo) {
        let info = &self.regions[turn % self.regions.len()];
        let start = match info.region.start_key.len() {
            0 => &b"\0\0"[..],
            _ => &info.region.start_key[..],
        };
        let name = format!("nemesis-{}-{name}", self.run);
        ([start, name.as_bytes()].concat().into(), info)
    }

    fn generation(&self) -> u64 {
        self.recorder.at() / GENERATION.as_millis() as u64
    }

    fn register(&self, place: usize) -> (Bytes, &RegionInfo) {
        let name = format!("register-{}-{place}", self.generation());
        self.key(place, &name)
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.regions.len()
    }

    /// The keys of a group, in order.
    pub(super) fn group(&self, place: usize) -> Vec<Bytes> {
        let generation = self.generation();
        let keys = GROUP_KEYS.iter();
        keys.map(|key| self.key(place, &format!("group-{generation}-{key}")).0)
            .collect()
    }

    fn list(&self, place: usize) -> (Bytes, &RegionInfo) {
        let name = format!("list-{}-{place}", self.generation());
        self.key(place, &name)
    }
}

pub(super) struct Client {
    pub(super) number: u64,
    pub(super) client: RawClient,
    clerk: Option<Clerk>,
    pub(super) random: ChaCha8Rng,
    written: u64,
    pub(super) common: Common,
}

impl Client {
    async fn run(mut self) {
        while !self.common.stopped() {
            self.written += 1;
            match self.random.random_range(0..100) {
                0..42 => self.use_register().await,
                42..60 => self.use_group().await,
                60..70 => self.use_list().await,
                70..80 if self.common.options.expiring => self.use_expiring_key().await,
                _ => self.put_own_key().await,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Unlike any other of the run, however long.
    pub(super) fn value(&self) -> Bytes {
        let padding = ".".repeat(self.common.options.value_padding);
        format!("{}-{}{padding}", self.number, self.written).into()
    }

    async fn put(&mut self, key: &Bytes, value: Bytes, ttl: u64) -> Result<(), Error> {
        match &mut self.clerk {
            Some(clerk) => clerk.put_with_ttl(key, value, ttl).await,
            None => self.client.put_with_ttl(key, value, ttl).await,
        }
    }

    async fn use_register(&mut self) {
        let place = self.random.random_range(0..REGISTERS);
        let (key, _) = self.common.register(place);
        match self.random.random_range(0..100) {
            0..50 => self.read(&key).await,
            50..80 => self.put_one(&key).await,
            80..88 => {
                let id = (self.common.recorder).invoke(self.number, &key, Action::Delete);
                let done = match &mut self.clerk {
                    Some(clerk) => clerk.delete(&key).await,
                    None => self.client.delete(&key).await,
                };
                self.note(id, done.map(|()| Outcome::Done));
            }
            _ => self.swap(&key).await,
        }
    }

    /// Puts a value of its own to a key that others write, too.
    pub(super) async fn put_one(&mut self, key: &Bytes) {
        let value = self.value();
        let action = Action::Put(value.clone());
        let id = self.common.recorder.invoke(self.number, key, action);
        let done = self.put(key, value, 0).await;
        self.note(id, done.map(|()| Outcome::Done));
    }

    /// Swaps what a read has just seen, so that some succeed.
    async fn swap(&mut self, key: &Bytes) {
        let Ok(expected) = self.client.get(key).await else {
            return;
        };
        let new = self.value();
        let action = Action::CompareAndSwap {
            expected: expected.clone(),
            new: Some(new.clone()),
        };
        let id = self.common.recorder.invoke(self.number, key, action);
        let swapped = match &mut self.clerk {
            Some(clerk) => clerk.compare_and_swap(key, expected, new).await,
            None => self.client.compare_and_swap(key, expected, new).await,
        };
        let outcome = swapped.map(|swapped| Outcome::Swapped {
            succeeded: swapped.succeeded,
            previous: Some(swapped.previous),
        });
        self.note(id, outcome);
    }

    async fn use_list(&mut self) {
        let place = self.random.random_range(0..LISTS);
        let (key, _) = self.common.list(place);
        let word = Bytes::from(format!("{}-{} ", self.number, self.written));
        let Some(clerk) = &mut self.clerk else {
            return self.read(&key).await;
        };
        let action = Action::Append(word.clone());
        let id = self.common.recorder.invoke(self.number, &key, action);
        let done = clerk.append(&key, word).await;
        self.note(id, done.map(|()| Outcome::Done));
    }

    /// Puts a key that expires, and reads it now and a little later.
    async fn use_expiring_key(&mut self) {
        let name = format!("expiring-{}-{}", self.number, self.written);
        let (key, _) = self.common.key(self.written as usize, &name);
        let key = key.clone();
        let value = self.value();
        let recorder = self.common.recorder.clone();
        let put = recorder.invoke(self.number, &key, Action::Put(value.clone()));
        // Expiry: may remove this value at any time from now on, or never.
        let expiry = Action::CompareAndSwap {
            expected: Some(value.clone()),
            new: None,
        };
        recorder.invoke(self.number, &key, expiry);
        let ttl = self.random.random_range(1..=TTL_MAX);
        let done = self.put(&key, value, ttl).await;
        self.note(put, done.map(|()| Outcome::Done));
        self.read(&key).await;
        let (client, number) = (self.client.clone(), self.number);
        tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                read(&client, &recorder, number, &key).await;
            }
        });
    }

    async fn put_own_key(&mut self) {
        let name = format!("own-{}-{}", self.number, self.written);
        let (key, _) = self.common.key(self.random.random_range(0..1 << 16), &name);
        let key = key.clone();
        let value = self.value();
        match self.put(&key, value.clone(), 0).await {
            Ok(()) => self.common.recorder.acknowledge(key, value),
            Err(error) => self.common.recorder.failed(None, &error),
        }
    }

    pub(super) async fn read(&self, key: &Bytes) {
        read(&self.client, &self.common.recorder, self.number, key).await;
    }

    fn note(&self, id: strata_sim::history::OperationId, outcome: Result<Outcome, Error>) {
        match outcome {
            Ok(outcome) => self.common.recorder.complete(id, outcome),
            Err(error) => self.common.recorder.failed(Some(id), &error),
        }
    }
}

/// One read through the client.
pub(super) async fn read(client: &RawClient, recorder: &Recorder, number: u64, key: &Bytes) {
    let id = recorder.invoke(number, key, Action::Get);
    match client.get(key).await {
        Ok(seen) => recorder.complete(id, Outcome::Value(seen)),
        Err(error) => recorder.failed(Some(id), &error),
    }
}

/// Reads from one store, whoever leads. Refusals and lost answers say nothing.
async fn read_directly(store: u64, address: String, common: Common, seed: u64) {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect_timeout(OPERATION_TIME).connect_lazy();
    let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_add(store));
    let under_way = Arc::new(Semaphore::new(DIRECT_MAX));
    let mut reads = JoinSet::new();
    while !common.stopped() {
        tokio::time::sleep(DIRECT_PAUSE).await;
        while reads.try_join_next().is_some() {}
        let Ok(permit) = under_way.clone().try_acquire_owned() else {
            continue;
        };
        let place = random.random_range(0..REGISTERS + LISTS);
        let (key, info) = match place.checked_sub(REGISTERS) {
            None => common.register(place),
            Some(place) => common.list(place),
        };
        let peers = &info.region.peers;
        let Some(peer) = peers.iter().find(|peer| peer.store_id == store) else {
            continue;
        };
        let mut request = tonic::Request::new(kvrpcpb::RawGetRequest {
            context: Some(kvrpcpb::Context {
                region_id: info.region.id,
                region_epoch: info.region.region_epoch,
                peer: Some(*peer),
                replica_read: random.random(),
                ..Default::default()
            }),
            key: key.clone(),
            ..Default::default()
        });
        request.set_timeout(DIRECT_TIME);
        let (recorder, mut client) = (common.recorder.clone(), TikvClient::new(channel.clone()));
        reads.spawn(async move {
            let id = recorder.invoke(DIRECT_CLIENT + store, &key, Action::Get);
            let answer = tokio::time::timeout(DIRECT_TIME, client.raw_get(request)).await;
            match answer.map(|answer| answer.map(tonic::Response::into_inner)) {
                Ok(Ok(answer)) if answer.region_error.is_none() && answer.error.is_empty() => {
                    let value = (!answer.not_found).then_some(answer.value);
                    recorder.complete(id, Outcome::Value(value));
                }
                _ => recorder.retract(id),
            }
            drop(permit);
        });
    }
    // A read that is still under way says nothing any more.
    reads.detach_all();
}

/// Takes timestamps one after the other.
async fn take_timestamps(client: RawClient, common: Common) {
    let mut timestamps = Timestamps::new(client.scheduler());
    let mut last = None;
    while !common.stopped() {
        if let Ok(taken) = timestamps.take(1).await {
            if last.is_some_and(|last| taken <= last) {
                let complaint = format!("timestamp {taken:?} after {last:?}");
                common.recorder.complain(complaint);
            }
            last = Some(taken);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
