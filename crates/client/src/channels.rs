//! Connections to nodes, by address.
//!
//! A [`Connection`] opens when it is first used and again after it broke, so an entry never
//! has to be replaced; several for one address are used in turn.

use crate::scheduler::first_line;
use crate::{Connection, Error, Options, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::codegen::http::Uri;

/// Requests and answers may hold a whole batch; the stores' own limits are far below.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// All connections of one client.
pub(crate) struct Channels {
    by_address: Mutex<BTreeMap<String, Vec<Connection>>>,
    turn: AtomicUsize,
    per_address: usize,
    connect_timeout: Duration,
}

impl Channels {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            by_address: Mutex::default(),
            turn: AtomicUsize::new(0),
            per_address: options.connections_per_store.max(1),
            connect_timeout: options.connect_timeout,
        }
    }

    /// A connection to `address`, which is `HOST:PORT`.
    pub(crate) fn to(&self, address: &str) -> Result<Connection> {
        let mut by_address = self.by_address.lock();
        if !by_address.contains_key(address) {
            let connections = (0..self.per_address)
                .map(|_| Connection::new(address, self.connect_timeout))
                .collect::<std::result::Result<_, _>>();
            let connections = connections.map_err(|error| Error::BadEndpoint {
                endpoint: address.into(),
                reason: error.to_string(),
            })?;
            by_address.insert(address.into(), connections);
        }
        let connections = &by_address[address];
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Ok(connections[turn % connections.len()].clone())
    }
}

/// Strips what users write before `HOST:PORT`, and checks the rest.
pub(crate) fn normalize(endpoint: &str) -> Result<String> {
    let bad = |reason: &str| Error::BadEndpoint {
        endpoint: endpoint.into(),
        reason: reason.into(),
    };
    let trimmed = endpoint.trim();
    let address = trimmed
        .strip_prefix("http://")
        .unwrap_or(trimmed)
        .trim_end_matches('/');
    if address.contains("://") {
        return Err(bad("only http:// may stand before it"));
    }
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| bad("the port is missing"))?;
    if host.is_empty() {
        return Err(bad("the host is missing"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => match format!("http://{address}").parse::<Uri>() {
            Ok(uri) if uri.authority().is_some_and(|place| place == address) => Ok(address.into()),
            _ => Err(bad("the host is none")),
        },
        _ => Err(bad("the port is not a number from 1 to 65535")),
    }
}

/// True when a call failed because no connection could be opened: the request never left.
pub(crate) fn was_never_sent(status: &tonic::Status) -> bool {
    is_caused_by::<tonic::ConnectError>(status)
}

/// True when HTTP/2 ended the call, or the connection with all calls on it: its code stands for that
/// and is no word of the service, and the call may have been executed.
pub(crate) fn was_broken_off(status: &tonic::Status) -> bool {
    is_caused_by::<h2::Error>(status)
}

fn is_caused_by<E: std::error::Error + 'static>(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// One line for a status.
pub(crate) fn describe(status: &tonic::Status) -> String {
    let mut text = first_line(status.message());
    if text.is_empty() {
        text = format!("{:?}", status.code());
    }
    if status.code() == tonic::Code::Unknown || status.code() == tonic::Code::Unavailable {
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            let words = error.to_string();
            if error.source().is_none() && !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            cause = error.source();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked_and_stripped() {
        assert_eq!(normalize(" http://a:1/ ").unwrap(), "a:1");
        assert_eq!(normalize("[::1]:2379").unwrap(), "[::1]:2379");
        for bad in [
            "",
            "a",
            ":1",
            "a:",
            "a:0",
            "a:70000",
            "https://a:1",
            "a b:1",
            "a/b:1",
            "a\n:1",
            "a?:1",
        ] {
            assert!(
                matches!(normalize(bad), Err(Error::BadEndpoint { .. })),
                "{bad:?} was taken"
            );
        }
    }

    #[tokio::test]
    async fn a_refused_connection_was_never_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let channel = Channels::new(&Options::default()).to(&address).unwrap();
        let mut client = strata_proto::pdpb::pd_client::PdClient::new(channel);
        let status = client
            .get_members(strata_proto::pdpb::GetMembersRequest::default())
            .await
            .unwrap_err();
        assert!(was_never_sent(&status), "{status:?}");
        assert!(!was_never_sent(&tonic::Status::unavailable(
            "a server said so"
        )));
    }
}
