//! Clocks that jump and clocks that run at another speed.

use rand::Rng;
use std::time::Duration;
use strata_tests::nemesis::{ClientsOptions, NemesisOptions, run_nemesis};

const HOUR: i64 = 3600;
/// `raft.max-clock-drift` allows one clock to run 10 % faster than another: 4.5 % above and
/// below the true speed keeps within it.
const DRIFT_PPM: i64 = 45_000;

fn timed() -> NemesisOptions {
    NemesisOptions {
        clients: ClientsOptions {
            expiring: true,
            timestamps: true,
            ..ClientsOptions::default()
        },
        ..NemesisOptions::default()
    }
}

/// Wall clocks jump by hours, both ways, while values expire, sessions are in use and
/// timestamps are taken: no value comes back, no write runs twice, no timestamp goes back.
#[test]
fn nemesis_clock_jumps_of_the_wall_clock() {
    run_nemesis(timed(), async |nemesis| {
        for round in 0..8 {
            let id = match round % 2 {
                0 => nemesis.leader().await,
                _ => nemesis.shuffled()[0],
            };
            let hours = nemesis.random.random_range(-12..=12);
            nemesis.set_wall(id, hours * HOUR);
            nemesis.last(Duration::from_millis(700)).await;
            if round % 3 == 2 {
                // The next leader has another clock.
                let leader = nemesis.leader().await;
                nemesis.kill(leader);
                nemesis.progress(100).await;
                nemesis.start_all();
            }
            nemesis.progress(100).await;
        }
        nemesis.finish().await;
    });
}

/// The clock of the leases runs fast on one node and slow on another, within what is
/// allowed, while leaders are stopped and cut off.
#[test]
fn nemesis_clock_runs_fast_and_slow_within_the_drift() {
    run_nemesis(timed(), async |nemesis| {
        for _ in 0..4 {
            for id in nemesis.ids() {
                let rate = nemesis.random.random_range(-DRIFT_PPM..=DRIFT_PPM);
                nemesis.set_rate(id, rate);
            }
            let leader = nemesis.leader().await;
            // The worst for a lease: its holder is slow and the others are fast.
            nemesis.set_rate(leader, -DRIFT_PPM);
            for other in nemesis.others(&[leader]) {
                nemesis.set_rate(other, DRIFT_PPM);
            }
            nemesis.last(Duration::from_millis(500)).await;
            let others = nemesis.others(&[leader]);
            let cuts = strata_tests::network::between(&[leader], &others);
            nemesis.cut("the slow leader off", &cuts);
            nemesis.another_leads(leader).await;
            nemesis.progress(100).await;
            nemesis.last(Duration::from_millis(800)).await;
            nemesis.mend();
            nemesis.progress(100).await;
        }
        nemesis.finish().await;
    });
}
