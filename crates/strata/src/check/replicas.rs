//! Whether the replicas of the regions that a check has worked on hold the same.
//!
//! Own keys  Each replica is asked by itself for the sum over the check's keys in its region,
//!           once the load is over. Nobody else writes them, so all answers become equal as
//!           soon as what was under way has ended. A difference that stays is a violation.
//! Whole     Then for the sums over the whole region, in both raw key spaces. Others may
//!           write there, so that a region under load is not compared as a whole.
//!
//! A difference counts when the first replica says the same before and after the others, and
//! when several looks in a row show the very same: one that comes from a write between two
//! answers does not last.
//!
//! A replica that does not answer says nothing; the others are compared without it. With
//! less than two answers a region is not compared.

use super::plan::Group;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use strata_client::{Admin, Checksum, ReplicaRange};
use strata_proto::kvrpcpb::ApiVersion;
use strata_proto::metapb::Region;

/// How long replicas may differ: late writes end within their deadlines, and a replica that
/// lags is sent what it lacks.
const DIFFERENT_MAX: Duration = Duration::from_secs(10);
/// How long a replica that does not answer is asked again.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// How long the comparison of a region may take in all, whatever hangs.
const COMPARE_MAX: Duration = Duration::from_secs(15);
/// Longest time of one answer.
const CALL_TIME: Duration = Duration::from_secs(2);
/// Looks in a row that show the same difference before it counts.
const LOOKS_MIN: u32 = 10;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What a look at the replicas of a region has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    /// All that answered hold the same; why others did not answer.
    Equal { silent: Option<String> },
    /// They differ, and the first one did not change meanwhile.
    Different(String),
    /// The first one changed meanwhile.
    Changing,
    /// Less than two answered.
    Silent(String),
}

/// What became of all regions.
#[derive(Debug, Default)]
pub struct Compared {
    /// Regions in which at least two replicas hold the same of the check's keys.
    pub equal: usize,
    /// Regions among them that hold the same of all other keys, too.
    pub whole: usize,
    /// What differs.
    pub violations: Vec<String>,
    /// Regions that were not compared, with the reason.
    pub not_compared: Vec<String>,
    /// Replicas that did not answer, with the reason.
    pub silent: Vec<String>,
}

/// Compares the replicas of all groups' regions, side by side.
pub async fn compare(admin: &Admin, groups: &[Group]) -> Compared {
    let mut regions = tokio::task::JoinSet::new();
    for group in groups {
        let (admin, group) = (admin.clone(), group.clone());
        regions.spawn(async move { compare_region(&admin, &group).await });
    }
    let mut compared = Compared::default();
    // In the order of the regions, whichever was compared first.
    let mut looks = BTreeMap::new();
    while let Some(done) = regions.join_next().await {
        let (region, own, whole) = done.expect("a comparison does not panic");
        looks.insert(region, (own, whole));
    }
    for (region, (own, whole)) in looks {
        compared.add(region, own, whole);
    }
    compared
}

impl Compared {
    fn add(&mut self, region: u64, own: Look, whole: Look) {
        let different = |what: &str| format!("region {region}: replicas differ: {what}");
        match own {
            Look::Equal { silent } => {
                self.equal += 1;
                self.silent.extend(silent);
            }
            Look::Different(what) => self.violations.push(different(&what)),
            // Only others write so long, and they have none of these keys.
            Look::Changing => {
                let what = "they still change, with nobody writing to them";
                self.not_compared.push(format!("region {region}: {what}"));
            }
            Look::Silent(why) => self.not_compared.push(format!("region {region}: {why}")),
        }
        match whole {
            Look::Equal { .. } => self.whole += 1,
            Look::Different(what) => self.violations.push(different(&what)),
            Look::Changing | Look::Silent(_) => {}
        }
    }
}

/// The last look at the own keys of a region, and at the whole.
async fn compare_region(admin: &Admin, group: &Group) -> (u64, Look, Look) {
    let began = Instant::now();
    let keys = [(ApiVersion::V1, group.range())];
    let own = ask_until_equal(admin, group, &keys, began).await;
    let whole = if matches!(own, Look::Equal { .. }) {
        let spaces = [ApiVersion::V1, ApiVersion::V2];
        let spaces = spaces.map(|space| (space, (Bytes::new(), Bytes::new())));
        ask_until_equal(admin, group, &spaces, began).await
    } else {
        Look::Silent("its keys were not equal".into())
    };
    (group.region_id(), own, whole)
}

type Part = (ApiVersion, (Bytes, Bytes));

async fn ask_until_equal(admin: &Admin, group: &Group, parts: &[Part], began: Instant) -> Look {
    let mut last = Look::Changing;
    let mut same = 0;
    loop {
        let left = COMPARE_MAX.saturating_sub(began.elapsed());
        let look = tokio::time::timeout(left, look(admin, group, parts)).await;
        let look = look.unwrap_or_else(|_| {
            Look::Silent(format!(
                "the replicas did not all answer in {COMPARE_MAX:?}"
            ))
        });
        same = if look == last { same + 1 } else { 1 };
        let patience = match &look {
            Look::Equal { silent: None } => return look,
            Look::Equal { silent: Some(_) } | Look::Silent(_) => SILENT_MAX,
            Look::Different(_) | Look::Changing => DIFFERENT_MAX,
        };
        if began.elapsed() >= patience {
            return match look {
                Look::Different(_) if same < LOOKS_MIN => Look::Changing,
                look => look,
            };
        }
        last = look;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks each replica once, and the first one that answered once more if they differ.
async fn look(admin: &Admin, group: &Group, parts: &[Part]) -> Look {
    let region = match admin.scheduler().region_by_id(group.region_id()).await {
        Ok(info) => info.region,
        Err(error) => return Look::Silent(error.to_string()),
    };
    let mut sums: Vec<(u64, Vec<Checksum>)> = Vec::new();
    let mut silent = None;
    for peer in &region.peers {
        match sums_of(admin, &region, peer.store_id, parts).await {
            Ok(sum) => sums.push((peer.store_id, sum)),
            Err(error) => silent = Some(format!("store {}: {error}", peer.store_id)),
        }
    }
    // A region with one replica is equal to itself.
    if sums.len() < region.peers.len().min(2) {
        return Look::Silent(silent.unwrap_or_else(|| "no replica".into()));
    }
    let Some(((first, held), others)) = sums.split_first() else {
        return Look::Silent("no replica".into());
    };
    if others.iter().all(|(_, other)| other == held) {
        return Look::Equal { silent };
    }
    match sums_of(admin, &region, *first, parts).await {
        Ok(again) if again == *held => Look::Different(describe(&sums)),
        Ok(_) => Look::Changing,
        Err(error) => Look::Silent(format!("store {first}: {error}")),
    }
}

async fn sums_of(
    admin: &Admin,
    region: &Region,
    store_id: u64,
    parts: &[Part],
) -> Result<Vec<Checksum>, String> {
    let peer = region.peers.iter().find(|peer| peer.store_id == store_id);
    let peer = *peer.ok_or("it has no replica any more")?;
    let store = admin.scheduler().store(store_id).await;
    let address = store.map_err(|error| error.to_string())?.address;
    let mut sums = Vec::new();
    for (space, (start, end)) in parts {
        let range = ReplicaRange {
            region: region.clone(),
            peer,
            space: *space,
            start: start.clone(),
            end: end.clone(),
        };
        let sum = admin.replica_checksum(&address, &range, CALL_TIME).await;
        sums.push(sum.map_err(|error| error.to_string())?);
    }
    Ok(sums)
}

/// What each store holds, in a line.
fn describe(sums: &[(u64, Vec<Checksum>)]) -> String {
    let of_store = |(store, sums): &(u64, Vec<Checksum>)| {
        let pairs: u64 = sums.iter().map(|sum| sum.pairs).sum();
        let crc64 = sums.iter().fold(0, |all, sum| all ^ sum.crc64);
        format!("store {store} holds {pairs} pairs, crc64 {crc64:016x}")
    };
    sums.iter().map(of_store).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_stays_is_a_violation_and_silence_is_none() {
        let equal = || Look::Equal { silent: None };
        let different = || Look::Different("store 1 holds more".into());
        let mut compared = Compared::default();
        compared.add(2, equal(), equal());
        compared.add(3, equal(), Look::Changing);
        compared.add(4, different(), Look::Changing);
        compared.add(5, equal(), different());
        compared.add(6, Look::Silent("nobody".into()), Look::Changing);
        let one_down = Look::Equal {
            silent: Some("store 3: refused".into()),
        };
        compared.add(7, one_down, Look::Silent("busy".into()));
        assert_eq!((compared.equal, compared.whole), (4, 1));
        let violation = |region| format!("region {region}: replicas differ: store 1 holds more");
        assert_eq!(compared.violations, [violation(4), violation(5)]);
        assert_eq!(compared.not_compared, ["region 6: nobody"]);
        assert_eq!(compared.silent, ["store 3: refused"]);
    }

    #[test]
    fn sums_are_told_by_store() {
        let sum = |pairs, crc64| Checksum {
            pairs,
            crc64,
            bytes: 0,
        };
        let line = describe(&[(1, vec![sum(2, 1), sum(1, 3)]), (2, vec![sum(2, 1)])]);
        assert_eq!(
            line,
            "store 1 holds 3 pairs, crc64 0000000000000002; \
             store 2 holds 2 pairs, crc64 0000000000000001"
        );
    }
}
