//! Proxies on the loopback: one for each node and each other node that it speaks to.
//!
//! A node knows nothing of them. It connects to the other's port, and the preloaded library
//! (`node_shim`) takes it to the proxy of the pair. A proxy's bytes travel over the
//! [`Link`]s of the two directions, whoever opened the connection.

use super::Cuts;
use crate::ReservedPort;
use crate::proxy::{Link, Proxy, Weather};
use std::collections::BTreeMap;

/// Proxies for a cluster.
#[derive(Debug)]
pub struct Proxies {
    ports: Vec<ReservedPort>,
    links: BTreeMap<(u64, u64), Link>,
    proxies: BTreeMap<(u64, u64), Proxy>,
}

impl Proxies {
    /// Starts them, in a runtime that outlives them.
    ///
    /// # Panics
    /// When the system has no ports left.
    pub async fn create(nodes: u64) -> Self {
        let ports: Vec<ReservedPort> = (0..nodes)
            .map(|_| ReservedPort::any().expect("a free port"))
            .collect();
        let pairs = (1..=nodes).flat_map(|a| (1..=nodes).map(move |b| (a, b)));
        let pairs: Vec<(u64, u64)> = pairs.filter(|(a, b)| a != b).collect();
        let links: BTreeMap<(u64, u64), Link> =
            pairs.iter().map(|pair| (*pair, Link::default())).collect();
        let mut proxies = BTreeMap::new();
        for (from, to) in pairs {
            let target = ports[to as usize - 1].address();
            let (forth, back) = (links[&(from, to)].clone(), links[&(to, from)].clone());
            proxies.insert((from, to), Proxy::between(target, forth, back).await);
        }
        Self {
            ports,
            links,
            proxies,
        }
    }

    pub(super) fn address(&self, id: u64) -> String {
        self.ports[id as usize - 1].address()
    }

    pub(super) fn roads(&self, id: u64) -> BTreeMap<u16, u16> {
        let own = self.proxies.iter().filter(|((from, _), _)| *from == id);
        own.map(|((_, to), proxy)| {
            let (_, port) = proxy.address().rsplit_once(':').expect("HOST:PORT");
            let port = port.parse().expect("a port");
            (self.ports[*to as usize - 1].number(), port)
        })
        .collect()
    }

    pub(super) fn cut(&mut self, cuts: &Cuts) {
        for (pair, link) in &self.links {
            link.set_closed(cuts.contains(pair));
        }
    }

    pub(super) fn set_weather(&mut self, weather: Weather) {
        for link in self.links.values() {
            link.set_weather(weather);
        }
    }

    pub(super) fn break_connections(&self) {
        for proxy in self.proxies.values() {
            proxy.cut();
        }
    }
}
