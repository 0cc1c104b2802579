//! kill -9 of random nodes.

use rand::Rng;
use std::time::Duration;
use strata_tests::nemesis::{NemesisOptions, run_nemesis};

/// One, two or all three nodes die at a time, and come back.
#[test]
fn nemesis_kill_and_restart_of_random_nodes() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for _ in 0..6 {
            let order = nemesis.shuffled();
            match nemesis.random.random_range(0..3) {
                0 => nemesis.kill(order[0]),
                1 => {
                    nemesis.kill(order[0]);
                    nemesis.kill(order[1]);
                }
                _ => nemesis.kill_all(),
            }
            nemesis.last(Duration::from_millis(400)).await;
            nemesis.start_all();
            nemesis.progress(200).await;
        }
        nemesis.finish().await;
    });
}

/// Leaders of five nodes die, two at a time: a majority goes on.
#[test]
fn nemesis_kill_two_leaders_of_five() {
    let options = NemesisOptions {
        nodes: 5,
        ..NemesisOptions::default()
    };
    run_nemesis(options, async |nemesis| {
        for _ in 0..4 {
            let first = nemesis.leader().await;
            nemesis.kill(first);
            // Its successor dies as soon as there is one.
            let second = nemesis.another_leads(first).await;
            nemesis.kill(second);
            nemesis.progress(300).await;
            nemesis.start_all();
            nemesis.last(Duration::from_millis(500)).await;
        }
        nemesis.finish().await;
    });
}
