//! What simulated clients do all day: a random mix of operations over some keys.
//!
//! Values are unique to client and number, so that a read tells which write it saw.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::client::ClientId;
use crate::network::between;
use crate::operation::{ClientOperation, EXPIRING_SUFFIX};

/// How often each operation is chosen, as weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Single reads.
    pub get: u32,
    /// Single writes.
    pub put: u32,
    /// Single removals.
    pub delete: u32,
    /// Appends.
    pub append: u32,
    /// Compare-and-swaps.
    pub swap: u32,
    /// Scans over some of the keys.
    pub scan: u32,
    /// Batch reads.
    pub batch_get: u32,
    /// Batch writes.
    pub batch_put: u32,
    /// Removals of ranges.
    pub delete_range: u32,
    /// Writes of values that expire, and reads of them.
    pub expiring: u32,
    /// Writes and reads of the system region.
    pub system: u32,
}

impl Mix {
    /// As the course's generic tests: half appends, half scans.
    #[must_use]
    pub fn append_and_scan() -> Self {
        Mix {
            append: 1,
            scan: 1,
            ..Mix::none()
        }
    }

    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Mix {
            get: 8,
            put: 6,
            delete: 2,
            append: 3,
            swap: 4,
            scan: 2,
            batch_get: 2,
            batch_put: 2,
            delete_range: 1,
            expiring: 2,
            system: 1,
        }
    }

    /// Nothing; to be filled in.
    #[must_use]
    pub fn none() -> Self {
        Mix {
            get: 0,
            put: 0,
            delete: 0,
            append: 0,
            swap: 0,
            scan: 0,
            batch_get: 0,
            batch_put: 0,
            delete_range: 0,
            expiring: 0,
            system: 0,
        }
    }

    /// True if there is something to choose from, and no weight is out of bounds.
    pub(crate) fn is_possible(&self) -> bool {
        let weights = self.weights();
        weights.iter().all(|weight| *weight <= 1_000) && weights.iter().any(|weight| *weight > 0)
    }

    fn weights(&self) -> [u32; 11] {
        [
            self.get,
            self.put,
            self.delete,
            self.append,
            self.swap,
            self.scan,
            self.batch_get,
            self.batch_put,
            self.delete_range,
            self.expiring,
            self.system,
        ]
    }
}

/// A client's source of operations.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The keys, in groups that lie in one region each.
    pub groups: Vec<Vec<Bytes>>,
    /// What is done.
    pub mix: Mix,
    /// Pause between operations.
    pub pause: (Duration, Duration),
    /// Share of reads that go to any replica.
    pub replica_reads: f64,
    /// Share of attempts that the client gives up after a moment.
    pub cancelled: f64,
    /// True: a batch write covers all keys of its group, with one value.
    pub whole_batches: bool,
    /// Operations left; `None`: without end.
    pub left: Option<u64>,
    /// Number of the last value.
    pub values: u64,
    /// What the client saw last of some keys, as expectation of the next swap.
    pub seen: Option<(Bytes, Option<Bytes>)>,
}

impl Workload {
    /// A workload over groups of keys, without pauses worth mentioning.
    #[must_use]
    pub fn new(groups: Vec<Vec<Bytes>>, mix: Mix) -> Self {
        Workload {
            groups,
            mix,
            pause: (Duration::from_micros(50), Duration::from_millis(4)),
            replica_reads: 0.0,
            cancelled: 0.0,
            whole_batches: false,
            left: None,
            values: 0,
            seen: None,
        }
    }

    /// All keys that may be written and are in the history.
    #[must_use]
    pub fn universe(&self) -> BTreeSet<Bytes> {
        let keys = self.groups.iter().flatten();
        if self.mix.expiring == 0 {
            return keys.cloned().collect();
        }
        keys.flat_map(|key| [key.clone(), expiring(key)]).collect()
    }

    /// The next operation; `None` when the workload has ended.
    pub fn next(&mut self, client: ClientId, rng: &mut ChaCha8Rng) -> Option<ClientOperation> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        let group = rng.random_range(0..self.groups.len());
        let key = self.pick(group, rng);
        let weights = self.mix.weights();
        let mut draw = rng.random_range(0..weights.iter().sum::<u32>());
        let chosen = weights.iter().position(|weight| {
            let hit = draw < *weight;
            draw = draw.saturating_sub(*weight);
            hit
        });
        Some(match chosen {
            Some(0) => ClientOperation::Get(key),
            Some(1) => ClientOperation::Put(key, self.value(client)),
            Some(2) => ClientOperation::Delete(key),
            Some(3) => ClientOperation::Append(key, self.value(client)),
            Some(4) => self.swap(key, client, rng),
            Some(5) => self.scan(group, rng),
            Some(6) => ClientOperation::BatchGet(self.some(group, rng)),
            Some(7) if self.whole_batches => {
                let value = self.value(client);
                let keys = self.groups[group].iter().cloned();
                ClientOperation::BatchPut(keys.map(|key| (key, value.clone())).collect())
            }
            Some(7) => {
                let keys = self.some(group, rng);
                let pairs = keys.into_iter().map(|key| (key, self.value(client)));
                ClientOperation::BatchPut(pairs.collect())
            }
            Some(8) => {
                let (start, end) = self.range(group, rng);
                ClientOperation::DeleteRange { start, end }
            }
            Some(9) => {
                let key = expiring(&key);
                match rng.random_range(0..5) {
                    0 | 1 => {
                        let seconds = rng.random_range(1..=3);
                        ClientOperation::PutExpiring(key, self.value(client), seconds)
                    }
                    2 => self.swap(key, client, rng),
                    _ => ClientOperation::Get(key),
                }
            }
            _ => {
                let key = Bytes::from_static(if rng.random() { b"one" } else { b"two" });
                if rng.random() {
                    ClientOperation::SystemPut(key, self.value(client))
                } else {
                    ClientOperation::SystemGet(key)
                }
            }
        })
    }

    /// The pause before the next operation.
    pub fn pause(&self, rng: &mut ChaCha8Rng) -> Duration {
        between(rng, self.pause)
    }

    fn value(&mut self, client: ClientId) -> Bytes {
        self.values += 1;
        format!("{client}.{};", self.values).into()
    }

    fn pick(&self, group: usize, rng: &mut ChaCha8Rng) -> Bytes {
        let keys = &self.groups[group];
        keys[rng.random_range(0..keys.len())].clone()
    }

    /// Some different keys of a group, in a random order.
    fn some(&self, group: usize, rng: &mut ChaCha8Rng) -> Vec<Bytes> {
        let mut keys = self.groups[group].clone();
        let count = rng.random_range(1..=keys.len().min(4));
        for place in 0..count {
            let other = rng.random_range(place..keys.len());
            keys.swap(place, other);
        }
        keys.truncate(count);
        keys
    }

    fn swap(&mut self, key: Bytes, client: ClientId, rng: &mut ChaCha8Rng) -> ClientOperation {
        let new = rng.random_bool(0.85).then(|| self.value(client));
        match self.seen.take() {
            Some((key, expected)) if rng.random_bool(0.8) => {
                ClientOperation::CompareAndSwap { key, expected, new }
            }
            _ => ClientOperation::CompareAndSwap {
                key,
                expected: None,
                new,
            },
        }
    }

    fn range(&self, group: usize, rng: &mut ChaCha8Rng) -> (Bytes, Bytes) {
        let (one, other) = (self.pick(group, rng), self.pick(group, rng));
        // Behind the greater of the two, which is part of the range.
        let end = [&one.clone().max(other.clone())[..], b"\0"].concat();
        (one.min(other), end.into())
    }

    fn scan(&self, group: usize, rng: &mut ChaCha8Rng) -> ClientOperation {
        let (start, end) = self.range(group, rng);
        ClientOperation::Scan {
            start,
            end,
            limit: if rng.random_bool(0.8) {
                1_000
            } else {
                rng.random_range(1..4)
            },
            reverse: rng.random_bool(0.3),
        }
    }
}

/// The key beside this one whose values expire.
fn expiring(key: &[u8]) -> Bytes {
    [key, EXPIRING_SUFFIX].concat().into()
}
