//! What a node knows of the other nodes: ids, addresses, and channels to them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::config::{Config, TransportConfig};

/// This node's identity and its address book.
pub(crate) struct Cluster {
    pub(crate) cluster_id: u64,
    pub(crate) store_id: u64,
    pub(crate) incarnation: u64,
    /// Seconds since 1970 when this process started.
    pub(crate) start_timestamp: i64,
    /// For how long replicas here keep from voting after word from a leader.
    pub(crate) election_timeout: Duration,
    transport: TransportConfig,
    nodes: Mutex<BTreeMap<u64, Node>>,
}

struct Node {
    address: String,
    /// Opened when it is first needed; reconnects by itself.
    channel: Option<Channel>,
}

impl Cluster {
    pub(crate) fn new(
        cluster_id: u64,
        store_id: u64,
        incarnation: u64,
        start_timestamp: i64,
        addresses: BTreeMap<u64, String>,
        config: &Config,
    ) -> Self {
        let nodes = addresses
            .into_iter()
            .map(|(id, address)| {
                let channel = None;
                (id, Node { address, channel })
            })
            .collect();
        Cluster {
            cluster_id,
            store_id,
            incarnation,
            start_timestamp,
            election_timeout: config.raft.election_timeout(),
            transport: config.transport.clone(),
            nodes: Mutex::new(nodes),
        }
    }

    /// The address of a store, if it is known.
    pub(crate) fn address(&self, store_id: u64) -> Option<String> {
        let nodes = self.nodes.lock();
        nodes.get(&store_id).map(|node| node.address.clone())
    }

    /// All known addresses by store id, this store's own among them.
    pub(crate) fn addresses(&self) -> BTreeMap<u64, String> {
        let nodes = self.nodes.lock();
        nodes
            .iter()
            .map(|(id, node)| (*id, node.address.clone()))
            .collect()
    }

    /// Ids of the other stores.
    pub(crate) fn others(&self) -> Vec<u64> {
        let nodes = self.nodes.lock();
        nodes
            .keys()
            .copied()
            .filter(|id| *id != self.store_id)
            .collect()
    }

    /// True if the store belongs to the cluster.
    pub(crate) fn is_member(&self, store_id: u64) -> bool {
        self.nodes.lock().contains_key(&store_id)
    }

    /// A store said where it can be reached. Unknown stores and the own one are left alone.
    pub(crate) fn set_address(&self, store_id: u64, address: &str) {
        if store_id == self.store_id || address.is_empty() {
            return;
        }
        if let Some(node) = self.nodes.lock().get_mut(&store_id)
            && node.address != address
        {
            node.address = address.to_owned();
            node.channel = None;
        }
    }

    /// A shared channel for unary calls to a store; `None` if the store is unknown or its
    /// address is no address.
    pub(crate) fn channel(&self, store_id: u64) -> Option<Channel> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get_mut(&store_id)?;
        if node.channel.is_none() {
            let endpoint = endpoint(&node.address, &self.transport)?;
            node.channel = Some(endpoint.connect_lazy());
        }
        node.channel.clone()
    }
}

/// How a store is connected to.
pub(crate) fn endpoint(address: &str, config: &TransportConfig) -> Option<Endpoint> {
    const WINDOW_BYTES: u32 = 4 << 20;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    Some(
        endpoint
            .connect_timeout(config.handshake_time)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .http2_keep_alive_interval(config.keepalive)
            .keep_alive_timeout(config.keepalive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_what_stores_say() {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let cluster = Cluster::new(9, 1, 7, 0, addresses, &Config::default());
        cluster.set_address(2, "c:1");
        cluster.set_address(1, "d:1");
        cluster.set_address(3, "e:1");
        assert_eq!(cluster.address(2).as_deref(), Some("c:1"));
        assert_eq!(cluster.address(1).as_deref(), Some("a:1"));
        assert!(!cluster.is_member(3));
        assert_eq!(cluster.others(), [2]);
    }
}
