//! From the global flags to a client.

use crate::args::Global;
use crate::exit::Failure;
use std::time::Duration;
use strata_client::{Options, RawClient, Scheduler};

/// A wrong endpoint is noticed sooner than a slow cluster is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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
    connect_with(global, options(global)).await
}

/// As [`connect`], with settings of the caller's own.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(global: &Global, options: Options) -> Result<RawClient, Failure> {
    let hasty = Options {
        operation_timeout: options.operation_timeout.min(CONNECT_TIMEOUT),
        ..options.clone()
    };
    match Scheduler::connect(&global.endpoints, hasty).await {
        Ok(_) => Ok(RawClient::connect(&global.endpoints, options).await?),
        Err(strata_client::Error::Exhausted { last, .. }) => Err(Failure::error(format!(
            "no node answers at {} ({last}): start a cluster with `strata up`, or name its nodes with --endpoints",
            global.endpoints.join(",")
        ))),
        Err(error) => Err(error.into()),
    }
}
