//! Cuts between nodes; clients reach all of them.

use std::time::Duration;
use strata_tests::nemesis::{NemesisOptions, run_nemesis};
use strata_tests::network::{between, one_way, ring};

const CUT: Duration = Duration::from_millis(1500);

fn five() -> NemesisOptions {
    NemesisOptions {
        nodes: 5,
        ..NemesisOptions::default()
    }
}

#[test]
fn nemesis_partition_into_majority_and_minority() {
    run_nemesis(five(), async |nemesis| {
        for _ in 0..3 {
            let order = nemesis.shuffled();
            nemesis.cut("two from three", &between(&order[..2], &order[2..]));
            // The majority goes on.
            nemesis.progress(200).await;
            nemesis.last(CUT).await;
            nemesis.mend();
            nemesis.progress(200).await;
        }
        nemesis.finish().await;
    });
}

/// A leader that speaks to nobody and is spoken to by nobody, while clients reach it.
#[test]
fn nemesis_partition_cuts_the_leader_off() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for _ in 0..3 {
            let leader = nemesis.leader().await;
            let others = nemesis.others(&[leader]);
            nemesis.cut("the leader off", &between(&[leader], &others));
            nemesis.another_leads(leader).await;
            nemesis.progress(200).await;
            nemesis.last(CUT).await;
            nemesis.mend();
            nemesis.progress(200).await;
        }
        nemesis.finish().await;
    });
}

/// What one node sends arrives nowhere, or what is sent to it.
#[test]
fn nemesis_partition_one_way() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for round in 0..6 {
            let leader = nemesis.leader().await;
            let others = nemesis.others(&[leader]);
            let cuts = match round % 3 {
                0 => one_way(leader, &others),
                1 => {
                    let back = others.iter().flat_map(|from| one_way(*from, &[leader]));
                    back.collect()
                }
                _ => one_way(others[0], &[leader]),
            };
            nemesis.cut("one way", &cuts);
            nemesis.last(CUT).await;
            nemesis.mend();
            nemesis.progress(200).await;
        }
        nemesis.finish().await;
    });
}

/// Each of five sees its two neighbours only, in changing order.
#[test]
fn nemesis_partition_ring() {
    run_nemesis(five(), async |nemesis| {
        for _ in 0..4 {
            let order = nemesis.shuffled();
            nemesis.cut("ring", &ring(&order));
            nemesis.last(CUT).await;
            nemesis.mend();
            nemesis.progress(200).await;
        }
        nemesis.finish().await;
    });
}
