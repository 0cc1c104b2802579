//! Everything at once, as a seed draws it.

use rand::Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use strata_tests::Weather;
use strata_tests::nemesis::{ClientsOptions, Nemesis, NemesisOptions, run_nemesis};
use strata_tests::network::{Needs, between, one_way, ring};

/// Length of the longer row.
const RUN: Duration = Duration::from_secs(30);
const DISK: u64 = 512 << 20;
/// The node with the small disk.
const SMALL: u64 = 5;

fn everything(needs: Needs) -> NemesisOptions {
    NemesisOptions {
        nodes: 5,
        needs,
        clients: ClientsOptions {
            expiring: true,
            timestamps: true,
            ..ClientsOptions::default()
        },
        small_disks: BTreeMap::from([(SMALL, DISK)]),
        environment: vec![("STRATA_STORE_RESERVE_SPACE".into(), "16MiB".into())],
        ..NemesisOptions::default()
    }
}

/// Nodes that are down or stopped.
fn out(nemesis: &mut Nemesis) -> Vec<u64> {
    let mut ids = nemesis.ids();
    ids.retain(|id| nemesis.is_out(*id));
    ids
}

fn random_cut(nemesis: &mut Nemesis) {
    let order = nemesis.shuffled();
    let size = nemesis.random.random_range(1..=2);
    match nemesis.random.random_range(0..4) {
        0 => nemesis.cut("ring", &ring(&order)),
        1 => nemesis.cut("one way", &one_way(order[0], &order[1..])),
        2 => nemesis.cut("a pair", &between(&order[..1], &order[1..2])),
        _ => nemesis.cut("two parts", &between(&order[..size], &order[size..])),
    }
}

/// One step of the run.
fn strike(nemesis: &mut Nemesis) {
    let out = out(nemesis);
    let running = nemesis.others(&out);
    let may_lose = out.len() < 2;
    match nemesis.random.random_range(0..12) {
        0 | 1 if may_lose => {
            let id = nemesis.pick(&running);
            nemesis.kill(id);
        }
        2 | 3 if may_lose => {
            let id = nemesis.pick(&running);
            nemesis.pause(id);
        }
        4 => {
            nemesis.kill_all();
            nemesis.start_all();
        }
        5 | 6 => random_cut(nemesis),
        7 => {
            let ids = nemesis.ids();
            let id = nemesis.pick(&ids);
            let minutes = nemesis.random.random_range(-600..=600);
            nemesis.set_wall(id, minutes * 60);
        }
        8 => {
            for id in nemesis.ids() {
                let rate = nemesis.random.random_range(-45_000..=45_000);
                nemesis.set_rate(id, rate);
            }
        }
        9 if nemesis.has_weather() => {
            let delay = Duration::from_millis(nemesis.random.random_range(0..60));
            let loss = nemesis.random.random_range(0.0..0.08);
            nemesis.weather(Weather {
                delay,
                jitter: delay,
                loss,
            });
        }
        10 if may_lose && running.contains(&SMALL) => {
            let left = nemesis.random.random_range(0..12) << 20;
            nemesis.fill_disk(SMALL, left);
        }
        _ => nemesis.break_connections(),
    }
    // Whatever is broken may be mended in between.
    match nemesis.random.random_range(0..4) {
        0 => nemesis.mend(),
        1 => nemesis.resume_all(),
        2 => {
            nemesis.disk(SMALL).empty();
            // One that ended by itself counts as down from here on.
            nemesis.is_out(SMALL);
            nemesis.start_all();
        }
        _ => {}
    }
}

fn run(needs: Needs, time: Duration) {
    run_nemesis(everything(needs), async move |nemesis| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            strike(nemesis);
            nemesis.last(Duration::from_millis(300)).await;
        }
        nemesis.disk(SMALL).empty();
        nemesis.finish().await;
    });
}

#[test]
fn nemesis_all_faults_at_random() {
    run(Needs::Cuts, RUN);
}

/// With loss and delay among them.
#[test]
fn nemesis_all_faults_at_random_in_bad_weather() {
    run(Needs::Weather, RUN / 2);
}
