//! What one call of a load sends, and whether its answer is right.
//!
//! Choose   Keys are drawn at random; those of one call lie in one region, so that a batch is
//!          one request. A scan's are neighbours.
//! Call     The whole answer is compared with what the keys must hold.

use super::plan::Plan;
use super::server::Server;
use crate::args::Target;
use crate::exit::Failure;
use bytes::Bytes;
use rand::Rng;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One put of one key.
    Put,
    /// One get of one key.
    Get,
    /// One put of many keys.
    BatchPut {
        /// Keys in each.
        batch: u64,
    },
    /// One get of many keys.
    BatchGet {
        /// Keys in each.
        batch: u64,
    },
    /// One scan over neighbouring keys.
    Scan {
        /// Keys in each.
        limit: u64,
    },
}

impl Kind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::BatchPut { .. } => "batch-put",
            Kind::BatchGet { .. } => "batch-get",
            Kind::Scan { .. } => "scan",
        }
    }

    /// Keys that one call writes or reads.
    pub fn keys_per_call(self) -> u64 {
        match self {
            Kind::Put | Kind::Get => 1,
            Kind::BatchPut { batch } | Kind::BatchGet { batch } => batch,
            Kind::Scan { limit } => limit,
        }
    }

    /// Whether it writes.
    pub fn is_write(self) -> bool {
        match self {
            Kind::Put | Kind::BatchPut { .. } => true,
            Kind::Get | Kind::BatchGet { .. } | Kind::Scan { .. } => false,
        }
    }

    /// Refuses what the target has no call for.
    ///
    /// # Errors
    /// A wrong command line for batches and scans on etcd.
    pub fn check_target(self, target: Target) -> Result<(), Failure> {
        match (self, target) {
            (Kind::Put | Kind::Get, _) | (_, Target::Strata) => Ok(()),
            (_, Target::Etcd) => Err(Failure::CommandLine(format!(
                "`bench {}` speaks StrataKV's protocol only: leave --target away",
                self.name()
            ))),
        }
    }

    /// Draws the keys of one call into `chosen`, which is emptied first.
    pub fn choose(self, plan: &Plan, random: &mut impl Rng, chosen: &mut Vec<u64>) {
        chosen.clear();
        match self {
            Kind::Put | Kind::Get => chosen.push(random.random_range(0..plan.keys())),
            Kind::BatchPut { batch } | Kind::BatchGet { batch } => {
                let place = random.random_range(0..plan.places());
                // `Plan::check_calls` has seen that there are so many.
                let count = plan.keys_of(place);
                while (chosen.len() as u64) < batch.min(count) {
                    let index = plan.index(place, random.random_range(0..count));
                    if !chosen.contains(&index) {
                        chosen.push(index);
                    }
                }
            }
            Kind::Scan { limit } => {
                let place = random.random_range(0..plan.places());
                let count = plan.keys_of(place);
                let limit = limit.min(count);
                let first = random.random_range(0..=count - limit);
                chosen.extend((first..first + limit).map(|number| plan.index(place, number)));
            }
        }
    }

    /// Sends one call for the chosen keys; whether the answer is right.
    ///
    /// # Errors
    /// Says in words what happened.
    pub async fn call(self, server: &Server, plan: &Plan, chosen: &[u64]) -> Result<bool, String> {
        let Some(first) = chosen.first().copied() else {
            return Ok(true);
        };
        let pair = |index: &u64| (plan.key(*index), plan.value(*index));
        match self {
            Kind::Put => {
                let put = server.put(&plan.key(first), plan.value(first)).await;
                put.map(|()| true)
            }
            Kind::Get => {
                let value = server.get(&plan.key(first)).await?;
                Ok(value.is_some_and(|value| plan.is_value(first, &value)))
            }
            Kind::BatchPut { .. } => {
                let pairs = chosen.iter().map(pair).collect();
                // In boxes: every call would be as large as the largest otherwise.
                Box::pin(server.batch_put(pairs)).await.map(|()| true)
            }
            Kind::BatchGet { .. } => {
                let keys: Vec<Bytes> = chosen.iter().map(|index| plan.key(*index)).collect();
                let found = Box::pin(server.batch_get(keys)).await?;
                Ok(are_pairs(plan, chosen, &found))
            }
            Kind::Scan { .. } => {
                let found = Box::pin(server.scan(plan.key(first), chosen.len())).await?;
                Ok(are_pairs(plan, chosen, &found))
            }
        }
    }
}

/// Whether these are the pairs of these keys, in their order.
fn are_pairs(plan: &Plan, chosen: &[u64], found: &[(Bytes, Bytes)]) -> bool {
    let mut pairs = chosen.iter().zip(found);
    chosen.len() == found.len() && pairs.all(|(index, pair)| plan.is_pair(*index, pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeSet;

    fn chosen(kind: Kind, plan: &Plan) -> Vec<Vec<u64>> {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut chosen = Vec::new();
        let mut calls = Vec::new();
        for _ in 0..200 {
            kind.choose(plan, &mut random, &mut chosen);
            calls.push(chosen.clone());
        }
        calls
    }

    #[test]
    fn the_keys_of_a_batch_are_different_and_of_one_region() {
        let plan = Plan::of_regions(4, 103, 8);
        let calls = chosen(Kind::BatchGet { batch: 16 }, &plan);
        for call in &calls {
            assert_eq!(call.iter().collect::<BTreeSet<_>>().len(), 16, "{call:?}");
            let places = call.iter().map(|index| plan.region_place(*index));
            assert_eq!(places.collect::<BTreeSet<_>>().len(), 1, "{call:?}");
            assert!(call.iter().all(|index| *index < plan.keys()), "{call:?}");
        }
        let reached: BTreeSet<_> = calls
            .iter()
            .map(|call| plan.region_place(call[0]))
            .collect();
        assert_eq!(reached.len(), 4, "all regions are reached");
    }

    #[test]
    fn the_keys_of_a_scan_are_neighbours_in_key_order() {
        let plan = Plan::of_regions(3, 100, 8);
        for call in chosen(Kind::Scan { limit: 10 }, &plan) {
            assert_eq!(call.len(), 10);
            for pair in call.windows(2) {
                assert_eq!(pair[1], pair[0] + 3);
                assert!(plan.key(pair[0]) < plan.key(pair[1]));
            }
        }
        // As many as a region has: there is one place to begin.
        for call in chosen(Kind::Scan { limit: 33 }, &plan) {
            assert!(call[0] < 6, "{call:?}");
        }
    }

    #[test]
    fn etcd_has_only_the_calls_on_one_key() {
        assert!(Kind::Put.check_target(Target::Etcd).is_ok());
        assert!(Kind::Scan { limit: 1 }.check_target(Target::Strata).is_ok());
        let refused = Kind::BatchPut { batch: 2 }.check_target(Target::Etcd);
        assert!(matches!(refused, Err(Failure::CommandLine(_))));
    }
}
