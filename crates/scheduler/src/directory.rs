//! The regions of the cluster in key order: range, peers and epoch of each.
//!
//! Keys and boundaries are in the form that region boundaries have on the wire. A range is
//! half-open; an empty end is unbounded.
//!
//! Invariants
//! * No two regions overlap: a report that is taken removes the older regions which it
//!   overlaps, and is refused if one of them is not older.
//! * A region's epoch never falls.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use strata_proto::metapb::{Region, RegionEpoch};

use crate::records::SYSTEM_REGION_ID;

/// All regions but region 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    by_id: BTreeMap<u64, Region>,
    /// Start key to region id.
    by_start: BTreeMap<Bytes, u64>,
}

/// What taking a report means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportVerdict {
    /// The directory says the same already.
    Known,
    /// The region is new or changed; regions with these ids are older and go.
    Changed {
        /// Ids of the regions that it replaces, ascending, its own not among them.
        replaced: Vec<u64>,
    },
}

/// Why a report is not taken. The directory stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefused {
    /// No id, no epoch, no peers, an empty range, or region 1.
    #[error("region {0} is malformed or not for the directory")]
    Malformed(u64),
    /// The directory knows a newer state of the region.
    #[error(
        "region {region_id}: the reported epoch {reported_conf_ver}:{reported_version} is older \
         than {known_conf_ver}:{known_version}"
    )]
    StaleEpoch {
        /// The region.
        region_id: u64,
        /// Membership version of the report.
        reported_conf_ver: u64,
        /// Range version of the report.
        reported_version: u64,
        /// Membership version of the directory.
        known_conf_ver: u64,
        /// Range version of the directory.
        known_version: u64,
    },
    /// Range or peers differ under the same epoch.
    #[error("region {0}: range or peers differ under the same epoch")]
    SameEpochDiffers(u64),
    /// Another region that is not older holds part of the range.
    #[error("region {region_id} overlaps region {other_id}, which is not older")]
    Overlaps {
        /// The reported region.
        region_id: u64,
        /// The region in the directory.
        other_id: u64,
    },
}

impl Directory {
    /// A directory of these regions; later ones win over earlier ones with the same id,
    /// region 1 is left out.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Self {
        let mut directory = Directory::default();
        for region in regions {
            directory.insert(region);
        }
        directory
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if there is no region.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The region with an id; never region 1.
    pub fn by_id(&self, region_id: u64) -> Option<&Region> {
        self.by_id.get(&region_id)
    }

    /// The region that holds a key.
    pub fn find(&self, key: &[u8]) -> Option<&Region> {
        let (_, id) = self
            .by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()?;
        self.by_id.get(id).filter(|region| ends_behind(region, key))
    }

    /// The region just left of the one that holds a key.
    pub fn previous(&self, key: &[u8]) -> Option<&Region> {
        let holder = self.find(key)?;
        let (_, id) = self
            .by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&holder.start_key[..])))
            .next_back()?;
        let previous = self.by_id.get(id)?;
        (previous.end_key == holder.start_key).then_some(previous)
    }

    /// Regions in key order from the one that holds `start`, those that begin before
    /// `end` (empty: all).
    pub fn scan<'a>(
        &'a self,
        start: &'a [u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = &'a Region> + 'a {
        let from = self.find(start).map_or_else(
            || Bytes::copy_from_slice(start),
            |region| region.start_key.clone(),
        );
        self.by_start
            .range::<Bytes, _>((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| end.is_empty() || &key[..] < end)
            .filter_map(|(_, id)| self.by_id.get(id))
    }

    /// All regions by id.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.by_id.values()
    }

    /// Judges a report without taking it.
    ///
    /// # Errors
    /// [`ReportRefused`].
    pub fn judge(&self, region: &Region) -> Result<ReportVerdict, ReportRefused> {
        let epoch = well_formed_epoch(region)?;
        if let Some(known) = self.by_id.get(&region.id) {
            let known_epoch = known.region_epoch.unwrap_or_default();
            if epoch.version < known_epoch.version || epoch.conf_ver < known_epoch.conf_ver {
                return Err(ReportRefused::StaleEpoch {
                    region_id: region.id,
                    reported_conf_ver: epoch.conf_ver,
                    reported_version: epoch.version,
                    known_conf_ver: known_epoch.conf_ver,
                    known_version: known_epoch.version,
                });
            }
            if known == region {
                return Ok(ReportVerdict::Known);
            }
            if epoch == known_epoch {
                return Err(ReportRefused::SameEpochDiffers(region.id));
            }
        }
        let mut replaced = Vec::new();
        for other in self.scan(&region.start_key, &region.end_key) {
            // A scan starts at the region that holds the key or behind it, so what it
            // meets overlaps.
            if other.id == region.id {
                continue;
            }
            if other.region_epoch.unwrap_or_default().version >= epoch.version {
                return Err(ReportRefused::Overlaps {
                    region_id: region.id,
                    other_id: other.id,
                });
            }
            replaced.push(other.id);
        }
        replaced.sort_unstable();
        Ok(ReportVerdict::Changed { replaced })
    }

    /// Takes a report that [`judge`](Self::judge) found to be a change.
    ///
    /// # Errors
    /// [`ReportRefused`]; the directory stays as it is.
    pub fn take(&mut self, region: Region) -> Result<ReportVerdict, ReportRefused> {
        let verdict = self.judge(&region)?;
        if let ReportVerdict::Changed { replaced } = &verdict {
            for id in replaced {
                self.remove(*id);
            }
            self.insert(region);
        }
        Ok(verdict)
    }

    /// Removes a region.
    pub fn remove(&mut self, region_id: u64) {
        if let Some(region) = self.by_id.remove(&region_id)
            && self.by_start.get(&region.start_key) == Some(&region_id)
        {
            self.by_start.remove(&region.start_key);
        }
    }

    /// Puts a region in place of the one with its id, without judging it.
    pub(crate) fn insert(&mut self, region: Region) {
        if region.id == SYSTEM_REGION_ID {
            return;
        }
        self.remove(region.id);
        self.by_start.insert(region.start_key.clone(), region.id);
        self.by_id.insert(region.id, region);
    }
}

/// True if the region's end lies behind the key.
fn ends_behind(region: &Region, key: &[u8]) -> bool {
    region.end_key.is_empty() || key < &region.end_key[..]
}

/// The epoch of a region that can stand in the directory.
fn well_formed_epoch(region: &Region) -> Result<RegionEpoch, ReportRefused> {
    let range_is_empty = !region.end_key.is_empty() && region.start_key >= region.end_key;
    match region.region_epoch {
        Some(epoch)
            if region.id > SYSTEM_REGION_ID && !region.peers.is_empty() && !range_is_empty =>
        {
            Ok(epoch)
        }
        _ => Err(ReportRefused::Malformed(region.id)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use strata_proto::metapb::Peer;

    pub(crate) fn region(id: u64, start: &str, end: &str, conf_ver: u64, version: u64) -> Region {
        Region {
            id,
            start_key: Bytes::copy_from_slice(start.as_bytes()),
            end_key: Bytes::copy_from_slice(end.as_bytes()),
            region_epoch: Some(RegionEpoch { conf_ver, version }),
            peers: (1..=3)
                .map(|store_id| Peer {
                    id: id * 10 + store_id,
                    store_id,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn three() -> Directory {
        Directory::new([
            region(1, "", "", 1, 1),
            region(2, "", "g", 1, 1),
            region(3, "g", "p", 1, 1),
            region(4, "p", "", 1, 1),
        ])
    }

    fn ids<'a>(regions: impl Iterator<Item = &'a Region>) -> Vec<u64> {
        regions.map(|region| region.id).collect()
    }

    #[test]
    fn regions_are_found_by_key_and_region_1_never() {
        let directory = three();
        let find = |key: &str| directory.find(key.as_bytes()).map(|region| region.id);
        assert_eq!(find(""), Some(2));
        assert_eq!(find("fz"), Some(2));
        assert_eq!(find("g"), Some(3));
        assert_eq!(find("zzz"), Some(4));
        assert_eq!(directory.by_id(1), None);
        assert_eq!(directory.len(), 3);
        assert_eq!(directory.previous(b"a"), None);
        assert_eq!(directory.previous(b"g").map(|region| region.id), Some(2));
        assert_eq!(directory.previous(b"z").map(|region| region.id), Some(3));
    }

    #[test]
    fn scans_start_at_the_holder_and_stop_before_the_end() {
        let directory = three();
        assert_eq!(ids(directory.scan(b"", b"")), [2, 3, 4]);
        assert_eq!(ids(directory.scan(b"h", b"")), [3, 4]);
        assert_eq!(ids(directory.scan(b"a", b"g")), [2]);
        assert_eq!(ids(directory.scan(b"a", b"h")), [2, 3]);
    }

    #[test]
    fn a_stale_epoch_is_refused() {
        let mut directory = three();
        directory.take(region(3, "g", "p", 3, 1)).unwrap();
        for (conf_ver, version) in [(2, 1), (2, 9), (9, 0)] {
            let report = region(3, "g", "p", conf_ver, version);
            assert!(
                matches!(
                    directory.take(report),
                    Err(ReportRefused::StaleEpoch { region_id: 3, .. })
                ),
                "{conf_ver}:{version}"
            );
        }
        assert_eq!(
            directory.take(region(3, "g", "p", 3, 1)),
            Ok(ReportVerdict::Known)
        );
        let mut other_peers = region(3, "g", "p", 3, 1);
        other_peers.peers.pop();
        assert_eq!(
            directory.take(other_peers),
            Err(ReportRefused::SameEpochDiffers(3))
        );
    }

    #[test]
    fn a_report_replaces_what_is_older_and_refuses_what_is_not() {
        let mut directory = three();
        assert_eq!(
            directory.take(region(9, "h", "k", 1, 1)),
            Err(ReportRefused::Overlaps {
                region_id: 9,
                other_id: 3
            })
        );
        directory.take(region(3, "g", "k", 1, 2)).unwrap();
        directory.take(region(9, "k", "p", 1, 2)).unwrap();
        assert_eq!(ids(directory.scan(b"", b"")), [2, 3, 9, 4]);
        assert_eq!(
            directory.take(region(3, "g", "p", 1, 3)),
            Ok(ReportVerdict::Changed { replaced: vec![9] })
        );
        assert_eq!(ids(directory.scan(b"", b"")), [2, 3, 4]);
    }

    #[test]
    fn malformed_reports_are_refused() {
        let mut directory = three();
        let mut no_epoch = region(5, "a", "b", 1, 9);
        no_epoch.region_epoch = None;
        let mut no_peers = region(5, "a", "b", 1, 9);
        no_peers.peers.clear();
        for wrong in [
            no_epoch,
            no_peers,
            region(5, "b", "b", 1, 9),
            region(1, "a", "b", 1, 9),
            region(0, "a", "b", 1, 9),
        ] {
            assert!(matches!(
                directory.take(wrong),
                Err(ReportRefused::Malformed(_))
            ));
        }
        assert_eq!(directory, three());
    }
}
