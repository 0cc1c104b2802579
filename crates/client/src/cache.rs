//! What the client believes about regions and stores.
//!
//! Routes are kept by start key; a route that overlaps a newer one is removed when the
//! newer one is inserted, so that a key never has two. The cache may be wrong at any time:
//! stores check every request, and their answers repair it.

use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use strata_proto::metapb;

/// A region and the replica that is believed to lead it.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The region as the scheduler or a store described it.
    pub region: metapb::Region,
    /// Where requests go.
    pub leader: metapb::Peer,
}

impl Route {
    /// True when the region's range, start ≤ key < end, holds the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        contains(&self.region, key)
    }
}

/// True when the region's range, start ≤ key < end (empty: unbounded), holds the key.
pub(crate) fn contains(region: &metapb::Region, key: &[u8]) -> bool {
    region.start_key.as_ref() <= key && (region.end_key.is_empty() || key < region.end_key.as_ref())
}

/// True when the region's range holds the keys just below `upper`, which is not empty.
pub(crate) fn reaches_up_to(region: &metapb::Region, upper: &[u8]) -> bool {
    region.start_key.as_ref() < upper
        && (region.end_key.is_empty() || upper <= region.end_key.as_ref())
}

/// Routes and addresses.
#[derive(Default)]
pub(crate) struct Cache {
    routes: RwLock<BTreeMap<Bytes, Arc<Route>>>,
    addresses: RwLock<BTreeMap<u64, Arc<str>>>,
}

impl Cache {
    /// The route of the region that holds `key`.
    pub(crate) fn route(&self, key: &[u8]) -> Option<Arc<Route>> {
        let routes = self.routes.read();
        let upto: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Included(key));
        let (_, route) = routes.range::<[u8], _>(upto).next_back()?;
        route.contains(key).then(|| route.clone())
    }

    /// The route of the region that holds the keys just below `upper`; empty: the last.
    pub(crate) fn route_below(&self, upper: &[u8]) -> Option<Arc<Route>> {
        let routes = self.routes.read();
        if upper.is_empty() {
            let (_, route) = routes.last_key_value()?;
            return route.region.end_key.is_empty().then(|| route.clone());
        }
        let below: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Excluded(upper));
        let (_, route) = routes.range::<[u8], _>(below).next_back()?;
        reaches_up_to(&route.region, upper).then(|| route.clone())
    }

    /// Takes a route in, unless the cache holds the same region with a newer epoch.
    pub(crate) fn insert(&self, route: Route) -> Arc<Route> {
        let mut routes = self.routes.write();
        let start = route.region.start_key.clone();
        let end = route.region.end_key.clone();
        let first_overlap = {
            let upto: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Excluded(&start));
            routes
                .range::<[u8], _>(upto)
                .next_back()
                .filter(|(_, left)| left.region.end_key.is_empty() || left.region.end_key > start)
                .map(|(key, _)| key.clone())
        };
        let mut overlapping: Vec<Bytes> = first_overlap.into_iter().collect();
        overlapping.extend(
            routes
                .range(start.clone()..)
                .take_while(|(key, _)| end.is_empty() || **key < end)
                .map(|(key, _)| key.clone()),
        );
        for key in &overlapping {
            let old = &routes[key];
            if old.region.id == route.region.id && is_older(&route.region, &old.region) {
                return old.clone();
            }
        }
        for key in overlapping {
            routes.remove(&key);
        }
        let route = Arc::new(route);
        routes.insert(start, route.clone());
        route
    }

    /// Notes that another replica leads. No effect when the route has changed since.
    pub(crate) fn set_leader(&self, old: &Arc<Route>, leader: metapb::Peer) {
        let mut routes = self.routes.write();
        if let Some(current) = routes.get_mut(&old.region.start_key)
            && Arc::ptr_eq(current, old)
        {
            *current = Arc::new(Route {
                region: old.region.clone(),
                leader,
            });
        }
    }

    /// Forgets a route. No effect when it has changed since.
    pub(crate) fn forget(&self, old: &Arc<Route>) {
        let mut routes = self.routes.write();
        if routes
            .get(&old.region.start_key)
            .is_some_and(|current| Arc::ptr_eq(current, old))
        {
            routes.remove(&old.region.start_key);
        }
    }

    /// The address of a store.
    pub(crate) fn address(&self, store_id: u64) -> Option<Arc<str>> {
        self.addresses.read().get(&store_id).cloned()
    }

    /// Notes the address of a store.
    pub(crate) fn set_address(&self, store_id: u64, address: &str) -> Arc<str> {
        let address: Arc<str> = address.into();
        self.addresses.write().insert(store_id, address.clone());
        address
    }

    /// Forgets the address of a store.
    pub(crate) fn forget_address(&self, store_id: u64) {
        self.addresses.write().remove(&store_id);
    }
}

/// True when `candidate` describes an older state of a region than `known`.
fn is_older(candidate: &metapb::Region, known: &metapb::Region) -> bool {
    let epoch = |region: &metapb::Region| {
        let epoch = region.region_epoch.unwrap_or_default();
        (epoch.version, epoch.conf_ver)
    };
    let (candidate, known) = (epoch(candidate), epoch(known));
    candidate.0 < known.0 || (candidate.0 == known.0 && candidate.1 < known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(id: u64, start: &str, end: &str, version: u64) -> Route {
        Route {
            region: metapb::Region {
                id,
                start_key: Bytes::copy_from_slice(start.as_bytes()),
                end_key: Bytes::copy_from_slice(end.as_bytes()),
                region_epoch: Some(metapb::RegionEpoch {
                    conf_ver: 1,
                    version,
                }),
                ..Default::default()
            },
            leader: metapb::Peer {
                id: id * 10,
                store_id: 1,
                ..Default::default()
            },
        }
    }

    fn id(found: Option<Arc<Route>>) -> Option<u64> {
        found.map(|route| route.region.id)
    }

    #[test]
    fn a_key_finds_the_region_that_holds_it() {
        let cache = Cache::default();
        cache.insert(route(2, "", "h", 1));
        cache.insert(route(4, "p", "", 1));
        assert_eq!(id(cache.route(b"")), Some(2));
        assert_eq!(id(cache.route(b"g\xff")), Some(2));
        assert_eq!(id(cache.route(b"h")), None, "the end is excluded");
        assert_eq!(id(cache.route(b"p")), Some(4));
        assert_eq!(id(cache.route(b"\xff\xff")), Some(4));
    }

    #[test]
    fn the_region_below_a_bound_ends_there_or_holds_it() {
        let cache = Cache::default();
        cache.insert(route(2, "", "h", 1));
        cache.insert(route(3, "h", "p", 1));
        assert_eq!(id(cache.route_below(b"h")), Some(2));
        assert_eq!(id(cache.route_below(b"h\0")), Some(3));
        assert_eq!(id(cache.route_below(b"p")), Some(3));
        assert_eq!(id(cache.route_below(b"q")), None);
        assert_eq!(id(cache.route_below(b"")), None, "the last is not known");
        cache.insert(route(4, "p", "", 1));
        assert_eq!(id(cache.route_below(b"")), Some(4));
    }

    #[test]
    fn a_newer_region_removes_what_it_overlaps() {
        let cache = Cache::default();
        cache.insert(route(2, "", "h", 1));
        cache.insert(route(3, "h", "p", 1));
        cache.insert(route(9, "c", "k", 2));
        assert_eq!(id(cache.route(b"a")), None);
        assert_eq!(id(cache.route(b"d")), Some(9));
        assert_eq!(id(cache.route(b"j")), Some(9));
        assert_eq!(id(cache.route(b"m")), None);
    }

    #[test]
    fn an_older_epoch_of_the_same_region_is_not_taken() {
        let cache = Cache::default();
        cache.insert(route(2, "", "h", 5));
        assert_eq!(cache.insert(route(2, "", "z", 4)).region.end_key, "h");
        assert_eq!(cache.insert(route(2, "", "z", 6)).region.end_key, "z");
    }

    #[test]
    fn a_repair_of_a_changed_route_does_nothing() {
        let cache = Cache::default();
        let old = cache.insert(route(2, "", "h", 1));
        let leader = metapb::Peer {
            id: 21,
            store_id: 2,
            ..Default::default()
        };
        cache.set_leader(&old, leader);
        assert_eq!(cache.route(b"a").unwrap().leader, leader);
        cache.forget(&old);
        assert_eq!(id(cache.route(b"a")), Some(2), "the patched route stays");
    }
}
