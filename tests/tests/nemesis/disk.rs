//! Small disks that run full under load.

use std::collections::BTreeMap;
use std::time::Duration;
use strata_tests::eventually_sync;
use strata_tests::nemesis::{ClientsOptions, NemesisOptions, run_nemesis};

const MIB: u64 = 1 << 20;
const DISK: u64 = 512 * MIB;
/// What must stay free; less, and a leader refuses writes.
const RESERVE: u64 = 16 * MIB;

fn small_disks() -> NemesisOptions {
    let environment = [
        ("STRATA_STORE_RESERVE_SPACE", "16MiB"),
        ("STRATA_STORE_SPACE_CHECK_INTERVAL", "50ms"),
        // Files of the log go soon.
        ("STRATA_STORAGE_LOG_FILE_SIZE", "4MiB"),
    ];
    let own = environment.map(|(key, value)| (key.to_string(), value.to_string()));
    NemesisOptions {
        small_disks: BTreeMap::from([1, 2, 3].map(|id| (id, DISK))),
        environment: own.to_vec(),
        clients: ClientsOptions {
            value_padding: 2048,
            ..ClientsOptions::default()
        },
        ..NemesisOptions::default()
    }
}

/// One node's disk runs full under it, which ends it; the others go on, and it comes back
/// when there is room. Then one is nearly full: writes that its leaders take are refused,
/// and taken again without a restart.
#[test]
fn nemesis_disk_full_under_load() {
    run_nemesis(small_disks(), async |nemesis| {
        for _ in 0..2 {
            let leader = nemesis.leader().await;
            let others = nemesis.others(&[leader]);
            let follower = nemesis.pick(&others);
            nemesis.fill_disk(follower, 0);
            nemesis.progress(200).await;
            eventually_sync("the node with the full disk to end", || {
                nemesis.is_out(follower).then_some(()).ok_or("it runs")
            })
            .await;
            nemesis.disk(follower).empty();
            nemesis.start_all();
            nemesis.cluster.wait_ready().await;

            let leader = nemesis.leader().await;
            nemesis.fill_disk(leader, RESERVE / 2);
            nemesis.last(Duration::from_millis(700)).await;
            nemesis.disk(leader).empty();
            nemesis.progress(100).await;
        }
        nemesis.finish().await;
    });
}
