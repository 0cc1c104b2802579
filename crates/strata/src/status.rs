//! `strata status`: the whole cluster at a glance.

use crate::args::Global;
use crate::connect::connect;
use crate::exit::Outcome;
use crate::output;
use serde_json::{Value, json};
use strata_client::RegionInfo;
use strata_proto::metapb::StoreState;
use strata_proto::stratapb::StoreStatus;

/// A store that has not reported for this long is called silent: two reports are missing.
const SILENT_AFTER_MS: u64 = 11_000;

/// Prints stores, leaders, regions and health.
pub async fn run(global: &Global) -> Outcome {
    let client = connect(global).await?;
    let status = client.admin().status().await?;
    let regions = client.scheduler().all_regions().await?;
    let leaderless = regions.iter().filter(|info| info.leader.is_none()).count();
    let silent = status
        .stores
        .iter()
        .filter(|store| health(store) != "up")
        .count();
    let json = json!({
        "cluster_id": status.cluster_id,
        "scheduler_store_id": status.scheduler_store_id,
        "healthy": leaderless == 0 && silent == 0,
        "stores": status.stores.iter().map(store_json).collect::<Vec<_>>(),
        "regions": {
            "count": regions.len(),
            "without_leader": leaderless,
            "leaders_by_store": leaders(&regions),
        },
    });
    output::print(global.format, &json, || {
        let health = match (leaderless, silent) {
            (0, 0) => "healthy".to_string(),
            (0, 1) => "1 store is not up".to_string(),
            (0, silent) => format!("{silent} stores are not up"),
            (1, _) => "1 region has no leader".to_string(),
            (leaderless, _) => format!("{leaderless} regions have no leader"),
        };
        format!(
            "cluster {}: {health}; {} regions; scheduler on store {}\n\n{}",
            status.cluster_id,
            regions.len(),
            status.scheduler_store_id,
            store_table(&status.stores)
        )
    })
}

fn leaders(regions: &[RegionInfo]) -> Value {
    let mut by_store = std::collections::BTreeMap::<u64, u64>::new();
    for leader in regions.iter().filter_map(|info| info.leader.as_ref()) {
        *by_store.entry(leader.store_id).or_default() += 1;
    }
    json!(by_store)
}

/// One word on a store.
fn health(status: &StoreStatus) -> &'static str {
    let state = status.store.as_ref().map(|store| store.state());
    match (state, status.last_report_ago_ms) {
        (Some(StoreState::Tombstone), _) => "removed",
        (Some(StoreState::Offline), _) => "leaving",
        (_, None) => "never seen",
        (_, Some(ago)) if ago >= SILENT_AFTER_MS => "silent",
        _ => "up",
    }
}

/// One store for programs.
pub fn store_json(status: &StoreStatus) -> Value {
    let store = status.store.clone().unwrap_or_default();
    let stats = status.stats.unwrap_or_default();
    json!({
        "store_id": store.id,
        "address": store.address,
        "health": health(status),
        "leaders": status.leader_count,
        "regions": stats.region_count,
        "disk_capacity_bytes": stats.capacity,
        "disk_available_bytes": stats.available,
        "last_report_ago_ms": status.last_report_ago_ms,
    })
}

/// Stores for people.
pub fn store_table(stores: &[StoreStatus]) -> String {
    let rows: Vec<Vec<String>> = stores
        .iter()
        .map(|status| {
            let store = status.store.clone().unwrap_or_default();
            let stats = status.stats.unwrap_or_default();
            vec![
                store.id.to_string(),
                store.address,
                health(status).into(),
                status.leader_count.to_string(),
                stats.region_count.to_string(),
                output::bytes(stats.available),
                output::bytes(stats.capacity),
                match status.last_report_ago_ms {
                    Some(ago) => format!("{:.1} s ago", ago as f64 / 1000.0),
                    None => "never".into(),
                },
            ]
        })
        .collect();
    output::table(
        &[
            "store", "address", "health", "leaders", "regions", "free", "disk", "report",
        ],
        &rows,
    )
}
