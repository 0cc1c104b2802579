//! `strata region`: look at regions and operate them.

mod replica;

use crate::args::{Global, RegionCommand};
use crate::connect::connect;
use crate::exit::{Failure, Outcome};
use crate::{output, text};
use replica::Replica;
use serde_json::{Value, json};
use strata_client::{RegionInfo, Scheduler};

/// Runs one subcommand.
pub async fn run(global: &Global, command: RegionCommand) -> Outcome {
    // The key is checked before anything is asked of the cluster.
    let key = match &command {
        RegionCommand::Find { key, hex } => Some(text::parse(key, *hex)?),
        _ => None,
    };
    let client = connect(global).await?;
    match command {
        RegionCommand::List => {
            let regions = client.scheduler().all_regions().await?;
            let json = json!(regions.iter().map(to_json).collect::<Vec<_>>());
            output::print(global.format, &json, || table(&regions))
        }
        RegionCommand::Show { id } => match client.scheduler().region_by_id(id).await {
            Ok(region) => show(global, client.scheduler(), &region).await,
            Err(strata_client::Error::NotFound(_)) => Err(Failure::No(missing(id))),
            Err(error) => Err(error.into()),
        },
        RegionCommand::Find { .. } => {
            let key = key.unwrap_or_default();
            print_one(global, &client.scheduler().region(&key).await?)
        }
        RegionCommand::TransferLeader { id, to } => {
            match client.admin().transfer_leader(id, to).await {
                Err(strata_client::Error::NotFound(_)) => {
                    return Err(Failure::error(missing(id)));
                }
                moved => moved?,
            }
            let json = json!({ "region_id": id, "leader_store_id": to });
            output::print(global.format, &json, || {
                format!("region {id} is led by store {to}")
            })
        }
    }
}

fn missing(id: u64) -> String {
    format!("region {id} does not exist: see `strata region list`")
}

/// The row of the list, and what each of the region's stores says of its own replica.
async fn show(global: &Global, scheduler: &Scheduler, region: &RegionInfo) -> Outcome {
    let replicas = replica::ask_all(global, scheduler, region).await?;
    let mut json = to_json(region);
    json["replicas"] = json!(replicas.iter().map(Replica::to_json).collect::<Vec<_>>());
    output::print(global.format, &json, || {
        format!(
            "{}\n\n{}",
            table(std::slice::from_ref(region)),
            replica::table(&replicas)
        )
    })
}

fn print_one(global: &Global, region: &RegionInfo) -> Outcome {
    output::print(global.format, &to_json(region), || {
        table(std::slice::from_ref(region))
    })
}

fn to_json(info: &RegionInfo) -> Value {
    let peer = |peer: &strata_proto::metapb::Peer| json!({ "peer_id": peer.id, "store_id": peer.store_id });
    let epoch = info.region.region_epoch.unwrap_or_default();
    json!({
        "region_id": info.region.id,
        "start_key_hex": text::hex(&info.region.start_key),
        "end_key_hex": text::hex(&info.region.end_key),
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "peers": info.region.peers.iter().map(peer).collect::<Vec<_>>(),
        "leader": info.leader.as_ref().map(peer),
    })
}

fn table(regions: &[RegionInfo]) -> String {
    let rows: Vec<Vec<String>> = regions
        .iter()
        .map(|info| {
            let epoch = info.region.region_epoch.unwrap_or_default();
            let stores: Vec<String> = info
                .region
                .peers
                .iter()
                .map(|peer| peer.store_id.to_string())
                .collect();
            vec![
                info.region.id.to_string(),
                bound(&info.region.start_key, "first"),
                bound(&info.region.end_key, "last"),
                match &info.leader {
                    Some(leader) => leader.store_id.to_string(),
                    None => "none".into(),
                },
                stores.join(","),
                format!("{}.{}", epoch.conf_ver, epoch.version),
            ]
        })
        .collect();
    output::table(
        &["region", "start", "end", "leader", "stores", "epoch"],
        &rows,
    )
}

/// A boundary for people; an empty one is the edge of the key space.
fn bound(key: &[u8], edge: &str) -> String {
    if key.is_empty() {
        format!("({edge})")
    } else {
        text::escape(key)
    }
}
