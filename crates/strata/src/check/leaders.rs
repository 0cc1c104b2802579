//! At most one leader in a term: what the stores say while a check runs.
//!
//! Poll   Each store is asked again and again for `/debug/regions/ID` of the regions that the
//!        check works on: the term, and who leads in it as far as this store knows.
//! Note   What a store says twice in a row counts. Term and leader stand in one page without
//!        being read at one instant, so that a page may show an old leader in a new term;
//!        two pages in a row do not.
//! Judge  Two leaders of one region in one term are a violation, whoever named them.
//!
//! A leader of less than two polls may be missed, and a store that does not answer says
//! nothing. Indices that go back are not looked for: pages do not tell one life of a process
//! from the next.

use super::plan::Plan;
use crate::http_get::http_get;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strata_client::Scheduler;
use tokio::task::JoinSet;

/// Pause between two polls of a store.
const POLL: Duration = Duration::from_millis(100);
/// A store that is up answers far sooner.
const PAGE_TIME: Duration = Duration::from_secs(1);

/// What one page says: term, and store and peer of the leader.
type Said = (u64, Leader);
/// Store and peer.
type Leader = (u64, u64);

/// Who led which region in which term.
#[derive(Debug, Default)]
pub struct Leaders {
    /// What a store said last of a region.
    last: BTreeMap<(u64, u64), Said>,
    /// By region and term.
    seen: BTreeMap<(u64, u64), BTreeSet<Leader>>,
}

impl Leaders {
    /// Takes in what a store says of a region.
    fn note(&mut self, store_id: u64, region_id: u64, said: Option<Said>) {
        let place = (store_id, region_id);
        let Some(said) = said else {
            self.last.remove(&place);
            return;
        };
        if self.last.insert(place, said) == Some(said) {
            let (term, leader) = said;
            self.seen
                .entry((region_id, term))
                .or_default()
                .insert(leader);
        }
    }

    /// Terms in which a leader was seen, over all regions.
    pub fn terms(&self) -> usize {
        self.seen.len()
    }

    /// Terms with two leaders.
    pub fn violations(&self) -> Vec<String> {
        let two = self.seen.iter().filter(|(_, leaders)| leaders.len() > 1);
        let line = |((region, term), leaders): (&(u64, u64), &BTreeSet<Leader>)| {
            let leaders = leaders.iter();
            let named = leaders.map(|(store, peer)| format!("peer {peer} on store {store}"));
            let named = named.collect::<Vec<_>>().join(" and ");
            format!("region {region}: two leaders in term {term}: {named}")
        };
        two.map(line).collect()
    }
}

/// Watches from now on.
pub struct Watch {
    leaders: Arc<Mutex<Leaders>>,
    polls: JoinSet<()>,
}

impl Watch {
    /// Begins to poll every store of the plan's regions whose address the scheduler knows.
    pub async fn begin(scheduler: &Scheduler, plan: &Plan) -> Watch {
        let mut regions_of: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for group in plan.groups.iter() {
            for store_id in group.stores() {
                regions_of
                    .entry(store_id)
                    .or_default()
                    .push(group.region_id());
            }
        }
        let mut watch = Watch {
            leaders: Arc::default(),
            polls: JoinSet::new(),
        };
        for (store_id, regions) in regions_of {
            if let Ok(store) = scheduler.store(store_id).await {
                let poll = poll(store_id, store.address, regions, watch.leaders.clone());
                watch.polls.spawn(poll);
            }
        }
        watch
    }

    /// Ends the polls; what they have seen.
    pub async fn end(mut self) -> Leaders {
        self.polls.shutdown().await;
        std::mem::take(&mut *lock(&self.leaders))
    }
}

fn lock(leaders: &Mutex<Leaders>) -> std::sync::MutexGuard<'_, Leaders> {
    leaders.lock().unwrap_or_else(|broken| broken.into_inner())
}

async fn poll(store_id: u64, address: String, regions: Vec<u64>, leaders: Arc<Mutex<Leaders>>) {
    loop {
        for region_id in &regions {
            let path = format!("/debug/regions/{region_id}");
            let page = http_get(&address, &path, PAGE_TIME).await;
            let said = page.ok().and_then(|(_, body)| said_by(&body));
            lock(&leaders).note(store_id, *region_id, said);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What a page says; `None` without a leader.
fn said_by(page: &str) -> Option<Said> {
    let page: Value = serde_json::from_str(page).ok()?;
    let leader = &page["leader"];
    let leader = (leader["store_id"].as_u64()?, leader["peer_id"].as_u64()?);
    Some((page["term"].as_u64()?, leader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_in_a_term_are_a_violation_when_each_was_said_twice() {
        let mut leaders = Leaders::default();
        for said in [(6, (1, 11)), (6, (1, 11)), (7, (2, 12)), (7, (2, 12))] {
            leaders.note(1, 4, Some(said));
        }
        // Another region, another term: no violation.
        for _ in 0..2 {
            leaders.note(2, 5, Some((6, (2, 22))));
            leaders.note(2, 4, Some((7, (2, 12))));
        }
        assert_eq!(leaders.terms(), 3);
        // A page that was read while the term changed, and the next one.
        leaders.note(3, 4, Some((7, (1, 11))));
        leaders.note(3, 4, None);
        leaders.note(3, 4, Some((7, (1, 11))));
        assert_eq!(leaders.violations(), Vec::<String>::new());
        leaders.note(3, 4, Some((7, (1, 11))));
        assert_eq!(
            leaders.violations(),
            ["region 4: two leaders in term 7: peer 11 on store 1 and peer 12 on store 2"]
        );
    }

    #[test]
    fn a_page_names_term_and_leader_or_says_nothing() {
        let page = r#"{"region_id":4,"term":7,"leader":{"peer_id":12,"store_id":2}}"#;
        assert_eq!(said_by(page), Some((7, (2, 12))));
        for page in ["", "{}", r#"{"term":7,"leader":null}"#, "not found"] {
            assert_eq!(said_by(page), None, "{page}");
        }
    }
}
