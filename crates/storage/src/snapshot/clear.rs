//! Clears what a region holds in the kv engine: before an install, and of a replica that
//! is gone.
//!
//! A clear is cut, when it runs, to what no live replica covers (crash rule 11): it may
//! have waited while the range found a new owner. The system region has no range, so it
//! covers nothing and nothing of it is cut.

use strata_proto::metapb::Region;

use crate::batch::WriteBatch;
use crate::bootstrap::SYSTEM_REGION_ID;
use crate::engine::Cf;
use crate::keys;

use super::content::Content;

/// A range of data keys in the engine's form, half-open.
type Range = (Vec<u8>, Vec<u8>);

/// The batch that removes all that a region holds beside its state records: data that no
/// region of `live` covers, sessions and, for the system region, its records. Regions of
/// `live` with the same id are not counted.
#[must_use]
pub fn clear_region<'a>(region: &Region, live: impl IntoIterator<Item = &'a Region>) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let live = live.into_iter().filter(|other| other.id != region.id);
    clear_data(&mut batch, &uncovered(region, live));
    for content in [Content::Session, Content::System] {
        if let Some((start, end)) = content.range(region) {
            batch.delete_range(content.cf(), start, end);
        }
    }
    batch
}

/// Adds the removal of ranges from all column families with data.
pub(super) fn clear_data(batch: &mut WriteBatch, ranges: &[Range]) {
    for (start, end) in ranges {
        for cf in [Cf::Default, Cf::Lock, Cf::Write, Cf::Raw, Cf::Raw2] {
            batch.delete_range(cf, start.clone(), end.clone());
        }
    }
}

/// The parts of a region's range that none of `others` covers, ascending.
pub(super) fn uncovered<'a>(
    region: &Region,
    others: impl IntoIterator<Item = &'a Region>,
) -> Vec<Range> {
    let Some((mut next, end)) = data_range(region) else {
        return Vec::new();
    };
    let mut covered: Vec<Range> = others.into_iter().filter_map(data_range).collect();
    covered.sort();
    let mut parts = Vec::new();
    for (from, to) in covered {
        if from >= end {
            break;
        }
        if from > next {
            parts.push((next.clone(), from));
        }
        next = next.max(to);
    }
    if next < end {
        parts.push((next, end));
    }
    parts
}

/// True if two regions have keys in common.
pub(super) fn overlaps(one: &Region, other: &Region) -> bool {
    match (data_range(one), data_range(other)) {
        (Some(one), Some(other)) => one.0 < other.1 && other.0 < one.1,
        _ => false,
    }
}

/// A region's slice of the data; none for the system region, and for a replica that a
/// message created and that knows no range.
fn data_range(region: &Region) -> Option<Range> {
    let has_range = region.id != SYSTEM_REGION_ID && !region.peers.is_empty();
    has_range.then(|| keys::data_range(&region.start_key, &region.end_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_proto::metapb::Peer;

    fn region(id: u64, start: &str, end: &str) -> Region {
        Region {
            id,
            start_key: start.to_owned().into(),
            end_key: end.to_owned().into(),
            peers: vec![Peer::default()],
            ..Region::default()
        }
    }

    fn parts(of: &Region, others: &[Region]) -> Vec<(String, String)> {
        let text = |key: Vec<u8>| String::from_utf8(key).unwrap();
        let parts = uncovered(of, others).into_iter();
        parts.map(|(start, end)| (text(start), text(end))).collect()
    }

    #[test]
    fn crash_rule_late_clear_is_cut_to_what_no_live_peer_covers() {
        let gone = region(7, "c", "m");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(parts(&gone, &[]), [pair("zc", "zm")]);
        let live = [region(8, "e", "g"), region(9, "", "d"), region(10, "k", "")];
        assert_eq!(parts(&gone, &live), [pair("zd", "ze"), pair("zg", "zk")]);
        assert!(parts(&gone, &[region(8, "", "")]).is_empty());
        assert_eq!(parts(&gone, &[region(8, "m", "x")]), [pair("zc", "zm")]);
    }

    #[test]
    fn system_region_covers_no_data_and_is_cleared_of_its_records_only() {
        let system = region(SYSTEM_REGION_ID, "", "");
        let user = region(7, "c", "m");
        assert!(!overlaps(&system, &user) && !overlaps(&user, &system));
        assert_eq!(uncovered(&user, [&system]).len(), 1);
        let cleared = clear_region(&system, []);
        let families: Vec<_> = cleared.changes().iter().map(crate::Change::cf).collect();
        assert_eq!(families, [Cf::Raft, Cf::Raft]);
    }

    #[test]
    fn region_without_peers_covers_nothing() {
        let created = Region {
            id: 8,
            ..Region::default()
        };
        assert!(!overlaps(&created, &region(7, "c", "m")));
        assert!(overlaps(&region(9, "", ""), &region(7, "c", "m")));
    }
}
