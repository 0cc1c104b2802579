//! The network between the nodes of a cluster, which a test cuts and slows down.
//!
//! Two kinds, with one set of faults:
//! * [`Namespaces`]: each node has a network namespace of its own, joined by a bridge. Cut
//!   is cut at the packet: what a node sends there reaches nobody.
//! * [`Proxies`]: where this user may make no namespaces. All nodes are on the loopback, and
//!   each connection between two of them goes through a proxy of that pair.
//!
//! Either way clients reach every node, whatever is cut between the nodes.
//!
//! Invariant: faults are declared, not added up. What [`Network::cut`] does not name is
//! whole again.

mod namespaces;
mod proxies;

use crate::proxy::Weather;
pub use namespaces::Namespaces;
pub(crate) use namespaces::enter_thread;
pub use proxies::Proxies;
use std::collections::BTreeSet;

/// Directions in which nothing arrives: (from, to), both store ids.
pub type Cuts = BTreeSet<(u64, u64)>;

/// Variable that chooses: `namespaces`, `proxies`, or whatever is possible.
const CHOICE: &str = "NEMESIS_NETWORK";

/// The network of a cluster.
#[derive(Debug)]
pub enum Network {
    /// Packets between namespaces.
    Namespaces(Namespaces),
    /// Connections through proxies.
    Proxies(Proxies),
}

/// What a test needs of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Only cuts.
    Cuts,
    /// Delay and loss too, which not every kernel has for namespaces.
    Weather,
}

/// Namespaces, if they were made; else proxies must do.
pub(crate) fn choose(needs: Needs, nodes: u64) -> Option<Namespaces> {
    let wanted = std::env::var(CHOICE).unwrap_or_default();
    if wanted == "proxies" {
        println!("network: proxies, as {CHOICE} says");
        return None;
    }
    match Namespaces::create(nodes) {
        Ok(namespaces) if needs == Needs::Weather && !namespaces.has_netem() => {
            println!("network: proxies, as this kernel has no netem");
            None
        }
        Ok(namespaces) => {
            println!("network: namespaces");
            Some(namespaces)
        }
        Err(reason) => {
            assert_ne!(wanted, "namespaces", "{CHOICE}, but: {reason}");
            println!("network: proxies, as there are no namespaces: {reason}");
            None
        }
    }
}

impl Network {
    /// Where a node listens.
    pub fn address(&self, id: u64) -> String {
        match self {
            Self::Namespaces(namespaces) => namespaces.address(id),
            Self::Proxies(proxies) => proxies.address(id),
        }
    }

    /// Words in front of a node's command by which it joins its network.
    pub fn enter(&self, id: u64) -> Vec<String> {
        match self {
            Self::Namespaces(namespaces) => namespaces.enter(id),
            Self::Proxies(_) => Vec::new(),
        }
    }

    /// For each port that a node reaches through another one, that one.
    pub fn roads(&self, id: u64) -> std::collections::BTreeMap<u16, u16> {
        match self {
            Self::Namespaces(_) => Default::default(),
            Self::Proxies(proxies) => proxies.roads(id),
        }
    }

    /// Cuts these directions and mends all others.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn cut(&mut self, cuts: &Cuts) {
        match self {
            Self::Namespaces(namespaces) => namespaces.cut(cuts),
            Self::Proxies(proxies) => proxies.cut(cuts),
        }
    }

    /// True if [`Network::set_weather`] is possible.
    pub fn has_weather(&self) -> bool {
        match self {
            Self::Namespaces(namespaces) => namespaces.has_netem(),
            Self::Proxies(_) => true,
        }
    }

    /// Delays and loses what the nodes send.
    ///
    /// # Panics
    /// When the kernel cannot.
    pub fn set_weather(&mut self, weather: Weather) {
        match self {
            Self::Namespaces(namespaces) => namespaces.set_weather(weather),
            Self::Proxies(proxies) => proxies.set_weather(weather),
        }
    }

    /// Breaks the connections between nodes that are open, where that is possible.
    pub fn break_connections(&self) {
        match self {
            // Packets know no connections.
            Self::Namespaces(_) => {}
            Self::Proxies(proxies) => proxies.break_connections(),
        }
    }
}

/// Both directions between each of `left` and each of `right`.
pub fn between(left: &[u64], right: &[u64]) -> Cuts {
    let pairs = left
        .iter()
        .flat_map(|a| right.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

/// What `from` sends to any of `to`.
pub fn one_way(from: u64, to: &[u64]) -> Cuts {
    to.iter().map(|to| (from, *to)).collect()
}

/// Everything but what neighbours in a circle send to each other.
pub fn ring(nodes: &[u64]) -> Cuts {
    let count = nodes.len();
    let mut cuts = Cuts::new();
    for (a, from) in nodes.iter().enumerate() {
        for (b, to) in nodes.iter().enumerate() {
            let apart = a.abs_diff(b);
            if apart > 1 && apart != count - 1 {
                cuts.insert((*from, *to));
            }
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nemesis_ring_leaves_two_neighbours_to_each() {
        let nodes = [1, 2, 3, 4, 5];
        let cuts = ring(&nodes);
        for node in nodes {
            assert_eq!(cuts.iter().filter(|(from, _)| *from == node).count(), 2);
            assert_eq!(cuts.iter().filter(|(_, to)| *to == node).count(), 2);
        }
        assert!(cuts.contains(&(1, 3)) && !cuts.contains(&(1, 5)) && !cuts.contains(&(1, 2)));
        assert!(ring(&[1, 2, 3]).is_empty());
        assert_eq!(between(&[1], &[2, 3]).len(), 4);
        assert_eq!(one_way(1, &[2, 3]), Cuts::from([(1, 2), (1, 3)]));
    }
}
