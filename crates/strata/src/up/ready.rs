//! When a local cluster is ready: every node answers, every region has a leader, and a
//! put and a get through the scheduler's look-ups succeeded on the first and last region.

use crate::spread;
use std::time::Duration;
use strata_client::{Options, RawClient, RegionInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How often stderr says what is still missing.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Returns when the cluster is ready.
pub async fn wait(addresses: Vec<String>, options: Options) {
    let options = Options {
        operation_timeout: Duration::from_secs(2),
        ..options
    };
    let mut complain = tokio::time::Instant::now() + COMPLAIN_EVERY;
    loop {
        let missing = match check(&addresses, &options).await {
            Ok(()) => return,
            Err(missing) => missing,
        };
        if tokio::time::Instant::now() >= complain {
            eprintln!("not ready yet: {missing}");
            complain += COMPLAIN_EVERY;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn check(addresses: &[String], options: &Options) -> Result<(), String> {
    for (id, address) in (1..).zip(addresses) {
        if !answers(address).await {
            let id: u64 = id;
            return Err(format!("node {id} does not answer on {address}"));
        }
    }
    let client = RawClient::connect(addresses, options.clone())
        .await
        .map_err(|error| error.to_string())?;
    let regions = client
        .scheduler()
        .all_regions()
        .await
        .map_err(|error| error.to_string())?;
    if let Some(info) = regions.iter().find(|info| info.leader.is_none()) {
        return Err(format!("region {} has no leader", info.region.id));
    }
    let (Some(first), Some(last)) = (regions.first(), regions.last()) else {
        return Err("the scheduler knows no region".into());
    };
    probe(&client, first).await?;
    probe(&client, last).await
}

/// Puts, gets and removes a key in a region.
async fn probe(client: &RawClient, info: &RegionInfo) -> Result<(), String> {
    let name = format!("strata-up-probe-{}", std::process::id());
    let place = format!("region {}", info.region.id);
    let key = spread::key_in(&info.region, &name)
        .ok_or_else(|| format!("{place} is too narrow for a key"))?;
    let met = |error: strata_client::Error| format!("{place}: {error}");
    client.put(&key, name.clone()).await.map_err(met)?;
    let value = client.get(&key).await.map_err(met)?;
    client.delete(&key).await.map_err(met)?;
    if value.as_deref() != Some(name.as_bytes()) {
        return Err(format!("{place} does not return what was written"));
    }
    Ok(())
}

/// True when `GET /healthz` is answered with 200.
async fn answers(address: &str) -> bool {
    let asked = tokio::time::timeout(Duration::from_millis(500), healthz(address)).await;
    matches!(asked, Ok(Ok(true)))
}

async fn healthz(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.") && head.ends_with(b" 200"))
}
