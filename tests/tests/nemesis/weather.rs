//! Packet loss and delay.

use rand::Rng;
use std::time::Duration;
use strata_tests::Weather;
use strata_tests::nemesis::{NemesisOptions, run_nemesis};
use strata_tests::network::{Needs, between};

fn with_weather() -> NemesisOptions {
    NemesisOptions {
        needs: Needs::Weather,
        ..NemesisOptions::default()
    }
}

#[test]
fn nemesis_loss_and_delay() {
    run_nemesis(with_weather(), async |nemesis| {
        for (delay, loss) in [(5, 0.0), (30, 0.02), (2, 0.10), (60, 0.05), (120, 0.0)] {
            nemesis.weather(Weather {
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(delay),
                loss,
            });
            nemesis.last(Duration::from_millis(1500)).await;
            nemesis.break_connections();
            nemesis.progress(30).await;
        }
        nemesis.finish().await;
    });
}

/// Short cuts of changing pairs: bursts of lost packets, where the kernel knows no other
/// loss.
#[test]
fn nemesis_loss_in_bursts() {
    run_nemesis(NemesisOptions::default(), async |nemesis| {
        for _ in 0..25 {
            let order = nemesis.shuffled();
            nemesis.cut("a pair", &between(&order[..1], &order[1..2]));
            let burst = nemesis.random.random_range(30..400);
            nemesis.last(Duration::from_millis(burst)).await;
            nemesis.mend();
            nemesis.last(Duration::from_millis(50)).await;
        }
        nemesis.finish().await;
    });
}
