//! What is checked at the end of a run.

use super::Nemesis;
use super::clients::read;
use crate::{DEADLINE, eventually_sync, strata};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use strata_client::RawClient;
use strata_sim::linearizability;

/// Client of the reads at the end.
const LAST_READS: u64 = 999;
/// What is not compared: it goes on by itself.
const SYSTEM_REGION: u64 = 1;

/// True if all nodes say the same.
fn same(of_nodes: &BTreeMap<u64, Value>) -> bool {
    let mut values = of_nodes.values();
    let first = values.next();
    first.is_some_and(|first| !first.is_null()) && values.all(|value| Some(value) == first)
}

impl Nemesis {
    /// Ends all faults and the load, and checks everything.
    ///
    /// # Panics
    /// When something is found.
    pub async fn finish(&mut self) {
        self.heal().await;
        self.progress(100).await;
        let findings = self.judge().await;
        assert!(
            findings.is_empty(),
            "seed {}: {}",
            self.seed,
            findings.join("\n")
        );
        self.compare_folders().await;
    }

    /// Ends the load and says what the checkers find; nothing in a good run. All nodes must
    /// run and reach each other.
    ///
    /// # Panics
    /// When the cluster does not answer in time.
    pub async fn judge(&mut self) -> Vec<String> {
        if let Some(clients) = self.clients.take() {
            clients.stop().await;
        }
        self.cluster.wait_ready().await;
        let client = self.cluster.client().await;
        let mut findings = self.recorder.unexpected();
        let acknowledged = self.recorder.acknowledged();
        assert!(!acknowledged.is_empty(), "nothing was acknowledged");
        let missing =
            crate::eventually("acknowledged writes", || acknowledged.missing(&client)).await;
        if !missing.is_empty() {
            findings.push(format!(
                "{} of {} acknowledged writes are missing, among them {:?}",
                missing.len(),
                acknowledged.len(),
                &missing[..missing.len().min(3)]
            ));
        }
        self.read_all(&client).await;
        let history = self.recorder.history();
        let unknown = history.operations().filter(|operation| {
            let mut touches = operation.touches.iter();
            operation.returned.is_none() && touches.any(|touch| touch.action.writes())
        });
        println!(
            "{} operations, {} of unknown outcome, {} calls on several keys, {} writes of own \
             keys; errors: {:?}",
            history.len(),
            unknown.count(),
            self.recorder.several(),
            acknowledged.len(),
            self.recorder.errors()
        );
        assert!(
            self.recorder.several() > 0,
            "no scan, batch or removal of a range was answered"
        );
        if let Err(fault) = linearizability::check(&history) {
            findings.push(fault.to_string());
        }
        let stores = self.cluster.running();
        match self.cluster.replicas_equal_within(&stores, DEADLINE).await {
            Ok(pairs) if pairs < acknowledged.len() as u64 => {
                findings.push(format!("the replicas hold {pairs} pairs only"));
            }
            Ok(_) => {}
            Err(difference) => findings.push(difference),
        }
        findings
    }

    /// Reads every key of the history once more, so that its end is pinned down.
    async fn read_all(&self, client: &RawClient) {
        let history = self.recorder.history();
        let keys: BTreeSet<_> = history
            .operations()
            .flat_map(|operation| operation.touches.iter().map(|touch| touch.key.clone()))
            .collect();
        for key in keys {
            read(client, &self.recorder, LAST_READS, &key).await;
        }
    }

    /// Stops all nodes and compares what `strata debug checksum` says of their folders. A
    /// leader that compacts its log meanwhile moves on, and takes the others along; so the
    /// nodes are started and stopped until all stand at the same index.
    async fn compare_folders(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            self.same_applied_indices().await;
            for id in self.cluster.ids() {
                self.cluster.node(id).terminate();
            }
            for id in self.cluster.ids() {
                let status = self.cluster.ended(id).await;
                assert!(status.success(), "node {id} ended with {status}");
            }
            let applied = self.by_region("apply-state", "applied_index");
            if applied.values().all(same) {
                break;
            }
            assert!(Instant::now() < until, "not at one index: {applied:?}");
            self.cluster.start_all();
            self.cluster.wait_ready().await;
        }
        let sums = self.by_region("checksum", "crc64");
        assert!(!sums.is_empty(), "no region to compare");
        for (region, sums) in sums {
            let whole = sums.len() as u64 == self.options.nodes;
            assert!(
                same(&sums) && whole,
                "seed {}: region {region}: {sums:?}",
                self.seed
            );
        }
    }

    /// What a command of `strata debug` says in a column, for each user region and node.
    fn by_region(&self, command: &str, column: &str) -> BTreeMap<u64, BTreeMap<u64, Value>> {
        let mut all: BTreeMap<u64, BTreeMap<u64, Value>> = BTreeMap::new();
        for id in self.cluster.ids() {
            // A small disk is seen from outside through its holder.
            let folder = match self.disks.get(&id) {
                Some(disk) => disk.path(),
                None => self.cluster.spec(id).folder.clone(),
            };
            let folder = folder.to_str().expect("a folder in UTF-8");
            let words = ["debug", command, "--format", "json", "--data-dir", folder];
            for line in strata(&words, b"").expect(0).stdout.lines() {
                let row: Value = serde_json::from_str(line).expect("a row");
                let region = row["region_id"].as_u64().expect("a region");
                let of_region = all.entry(region).or_default();
                of_region.insert(id, row[column].clone());
            }
        }
        all.remove(&SYSTEM_REGION);
        all
    }

    /// Waits until every replica of every region has applied the same.
    async fn same_applied_indices(&self) {
        let client = self.cluster.client().await;
        let regions = crate::eventually("regions", || client.scheduler().all_regions()).await;
        for info in regions {
            let region = info.region.id;
            eventually_sync("replicas to apply the same", || {
                let applied: Vec<Option<u64>> = self
                    .cluster
                    .ids()
                    .into_iter()
                    .map(|id| {
                        let state = self.cluster.region_state(id, region).ok()?;
                        state["applied_index"].as_u64()
                    })
                    .collect();
                let same = applied.windows(2).all(|two| two[0] == two[1]);
                (same && applied[0].is_some()).then_some(()).ok_or(applied)
            })
            .await;
        }
    }
}
