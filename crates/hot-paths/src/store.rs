//! Requests through whole stores, from the gate to the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use strata_proto::stratapb::data_command::Body;
use strata_proto::stratapb::{DataCommand, Mutation, RawSpace, WriteCommand};
use strata_raftstore::{
    Answer, CommandOutcome, Error, ReadCommand, Reply, Request, RequestBody, RequestHeader,
};

use crate::cluster::{Cluster, REGIONS};
use crate::paths::HotPath;

/// Keys that are written and read, over and over.
const KEYS: usize = 512;
/// Bytes of a value, as in `make bench`.
const VALUE_BYTES: usize = 256;
/// Time that a request has.
const DEADLINE: Duration = Duration::from_secs(1000);

/// Keys of one region, and where it is led.
struct Target {
    region_id: u64,
    leader: usize,
    keys: Vec<Bytes>,
    value: Bytes,
}

impl Target {
    fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let keys: Vec<Bytes> = (0..KEYS)
            .map(|at| Bytes::from(format!("hot-path-key-{at:016}")))
            .collect();
        let region_id = cluster.region_of(&keys[0])?.id;
        for key in &keys {
            let region = cluster.region_of(key)?.id;
            ensure!(region == region_id, "keys are in two regions");
        }
        Ok(Self {
            region_id,
            leader: cluster.leader(region_id)?,
            keys,
            value: Bytes::from(vec![b'v'; VALUE_BYTES]),
        })
    }

    fn request(&self, cluster: &Cluster, body: RequestBody) -> Request {
        let header = RequestHeader {
            region_id: self.region_id,
            deadline: cluster.now().monotonic + DEADLINE,
            ..RequestHeader::default()
        };
        Request { header, body }
    }

    fn put(&self, cluster: &Cluster, number: u64) -> Request {
        let write = WriteCommand {
            space: RawSpace::RawV1.into(),
            mutations: vec![Mutation {
                key: self.keys[number as usize % KEYS].clone(),
                value: Some(self.value.clone()),
                ttl_seconds: 0,
            }],
        };
        let command = DataCommand {
            session: None,
            body: Some(Body::Write(write)),
        };
        self.request(cluster, RequestBody::Write(vec![command]))
    }

    fn get(&self, cluster: &Cluster, number: u64) -> Request {
        let read = ReadCommand::Get {
            space: RawSpace::RawV1,
            key: self.keys[number as usize % KEYS].clone(),
        };
        self.request(cluster, RequestBody::Read(read))
    }
}

/// Counts the answers that are as they should be.
#[derive(Clone, Default)]
struct GoodAnswers(Arc<AtomicU64>);

impl GoodAnswers {
    fn reply(&self, is_good: fn(&Result<Answer, Error>) -> bool) -> Reply {
        let good = self.0.clone();
        Reply::new(move |result| {
            good.fetch_add(u64::from(is_good(&result)), Ordering::Relaxed);
        })
    }

    fn check(&self, wanted: u64) -> anyhow::Result<()> {
        let good = self.0.load(Ordering::Relaxed);
        ensure!(good == wanted, "{good} good answers of {wanted}");
        Ok(())
    }
}

fn is_written(result: &Result<Answer, Error>) -> bool {
    matches!(result, Ok(Answer::Written(outcomes)) if outcomes[..] == [CommandOutcome::Done])
}

fn is_value(result: &Result<Answer, Error>) -> bool {
    matches!(result, Ok(Answer::Value(Some(value))) if value.len() == VALUE_BYTES)
}

/// Puts values, several at a time.
pub struct StorePut {
    cluster: Cluster,
    target: Target,
    good: GoodAnswers,
    together: u64,
    sent: u64,
}

impl StorePut {
    /// A cluster. `together`: requests that arrive at once.
    ///
    /// # Errors
    /// The cluster does not start.
    pub fn new(together: u64) -> anyhow::Result<Self> {
        let cluster = Cluster::new(REGIONS)?;
        Ok(Self {
            target: Target::new(&cluster)?,
            cluster,
            good: GoodAnswers::default(),
            together,
            sent: 0,
        })
    }
}

impl HotPath for StorePut {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        let end = self.sent + operations;
        while self.sent < end {
            for _ in 0..self.together.min(end - self.sent) {
                let request = self.target.put(&self.cluster, self.sent);
                let reply = self.good.reply(is_written);
                self.cluster.send(self.target.leader, request, reply);
                self.sent += 1;
            }
            self.cluster.run_to_rest()?;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        self.good.check(operations)?;
        let metrics = self.cluster.core(self.target.leader).metrics();
        let commands = metrics.proposed_commands.get();
        ensure!(
            commands == operations,
            "{commands} commands in the logs of the leader's store"
        );
        Ok(())
    }
}

/// Gets values that are there.
pub struct LeaseGet {
    cluster: Cluster,
    target: Target,
    good: GoodAnswers,
    sent: u64,
}

impl LeaseGet {
    /// A cluster that holds all keys.
    ///
    /// # Errors
    /// The cluster does not start, or refuses a put.
    pub fn new() -> anyhow::Result<Self> {
        let mut put = StorePut::new(1)?;
        put.run(KEYS as u64)?;
        put.check(KEYS as u64)?;
        Ok(Self {
            cluster: put.cluster,
            target: put.target,
            good: GoodAnswers::default(),
            sent: 0,
        })
    }
}

impl HotPath for LeaseGet {
    fn run(&mut self, operations: u64) -> anyhow::Result<()> {
        for _ in 0..operations {
            let request = self.target.get(&self.cluster, self.sent);
            let reply = self.good.reply(is_value);
            self.cluster.send(self.target.leader, request, reply);
            self.sent += 1;
            self.cluster.run_to_rest()?;
        }
        Ok(())
    }

    fn check(&self, operations: u64) -> anyhow::Result<()> {
        self.good.check(operations)?;
        let metrics = self.cluster.core(self.target.leader).metrics();
        let reads = metrics.reads_lease.get();
        ensure!(reads == operations, "{reads} reads under the lease");
        Ok(())
    }
}
