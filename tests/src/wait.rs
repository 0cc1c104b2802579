//! Waiting for conditions.

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest time that a test waits for one condition.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, and returns what it holds.
///
/// # Panics
/// After [`DEADLINE`], with what was waited for and the last `Err`.
pub async fn eventually<T, E, F, Fut>(what: &str, mut ask: F) -> T
where
    E: std::fmt::Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let until = Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if Instant::now() >= until => {
                panic!("waited {DEADLINE:?} for {what}; last: {last:?}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// As [`eventually`], for an answer that needs no waiting itself.
///
/// # Panics
/// As [`eventually`].
pub async fn eventually_sync<T, E: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    eventually(what, || std::future::ready(ask())).await
}
