//! From the global flags to a client.

use crate::args::Global;
use crate::exit::Failure;
use std::time::Duration;
use strata_client::{Options, RawClient};

/// Settings of the client as the flags have them.
pub fn options(global: &Global) -> Options {
    let operation_timeout = Duration::from_secs_f64(global.timeout);
    let defaults = Options::default();
    Options {
        operation_timeout,
        attempt_timeout: defaults.attempt_timeout.min(operation_timeout),
        seed: u64::from(std::process::id()),
        ..defaults
    }
}

/// A client of the cluster that the flags name.
///
/// # Errors
/// A wrong command line for a wrong endpoint, else an error that names the endpoints.
pub async fn connect(global: &Global) -> Result<RawClient, Failure> {
    match RawClient::connect(&global.endpoints, options(global)).await {
        Ok(client) => Ok(client),
        Err(strata_client::Error::Exhausted { last, .. }) => Err(Failure::error(format!(
            "no node answers at {} ({last}): start a cluster with `strata up`, or name its nodes with --endpoints",
            global.endpoints.join(",")
        ))),
        Err(error) => Err(error.into()),
    }
}
