//! What goes wrong while clients work, drawn from the seed.
//!
//! At random intervals one of the chosen kinds of fault strikes. Everything that is broken
//! is mended again later: crashed stores start again, cuts are replaced by other cuts or
//! heal. [`Cluster::heal`] ends it all, after which the cluster has to come to rest.

use std::time::Duration;

use rand::Rng;
use strata_raftstore::RequestBody;

use crate::calls::CallOptions;
use crate::clock::RATE_ONE;
use crate::cluster::{Cluster, Event};
use crate::disk::{Crash, Disk};
use crate::network::{Weather, between};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The stores fall into two groups that do not hear each other, or all hear all again.
    Partition,
    /// One direction of one link goes dead.
    OneWay,
    /// One link goes dead in both directions.
    CutLink,
    /// A leader is cut off from everybody.
    IsolateLeader,
    /// A store loses its power and starts again later.
    PowerCut,
    /// A store's process is killed and starts again later.
    Kill,
    /// All stores lose their power at once.
    PowerCutEverywhere,
    /// A store stands still for up to a second.
    Pause,
    /// A wall clock is stepped by up to two seconds.
    WallStep,
    /// A monotonic clock runs up to 4 % fast or slow, within the bound of the lease.
    Drift,
    /// A leadership is handed over.
    Transfer,
    /// A disk becomes slow, or good again.
    SlowDisk,
    /// The next sync of a store's raft engine fails.
    FailedSync,
    /// The network becomes unreliable, or fair again.
    Weather,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [FaultKind; 14] = [
        FaultKind::Partition,
        FaultKind::OneWay,
        FaultKind::CutLink,
        FaultKind::IsolateLeader,
        FaultKind::PowerCut,
        FaultKind::Kill,
        FaultKind::PowerCutEverywhere,
        FaultKind::Pause,
        FaultKind::WallStep,
        FaultKind::Drift,
        FaultKind::Transfer,
        FaultKind::SlowDisk,
        FaultKind::FailedSync,
        FaultKind::Weather,
    ];
}

/// Which faults strike, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Kinds to choose from.
    pub kinds: Vec<FaultKind>,
    /// Shortest and longest time between two.
    pub interval: (Duration, Duration),
    round: u64,
}

impl Faults {
    /// Faults of some kinds at intervals.
    #[must_use]
    pub fn new(kinds: &[FaultKind], interval: (Duration, Duration)) -> Self {
        Faults {
            kinds: kinds.to_vec(),
            interval,
            round: 0,
        }
    }
}

impl Cluster {
    /// Begins to let faults strike.
    pub fn start_faults(&mut self, faults: Faults) {
        let delay = between(&mut self.rng, faults.interval);
        let round = faults.round;
        self.faults = Some(faults);
        self.queue.push(delay, Event::Faults { round });
    }

    /// Ends all faults: stores start again, links work, disks and clocks are good.
    pub fn heal(&mut self) {
        self.faults = None;
        self.network.heal();
        self.network.set_weather(Weather::fair());
        self.options.client_loss = 0.0;
        let now = self.queue.now();
        for id in self.store_ids() {
            let store = self.store_mut(id);
            store.disk = Disk {
                lies: store.disk.lies,
                ..Disk::good()
            };
            store.clock.set_rate(now, RATE_ONE);
            if !store.is_up() {
                self.start_store(id);
            }
        }
    }

    pub(crate) fn on_faults(&mut self, round: u64) {
        let Some(mut faults) = self.faults.take().filter(|faults| faults.round == round) else {
            return;
        };
        let kind = faults.kinds[self.rng.random_range(0..faults.kinds.len())];
        let now = self.queue.now();
        self.trace.note(now, "fault", [kind as u64, round, 0, 0]);
        self.strike(kind);
        faults.round += 1;
        let delay = between(&mut self.rng, faults.interval);
        self.queue.push(
            delay,
            Event::Faults {
                round: faults.round,
            },
        );
        self.faults = Some(faults);
    }

    /// Lets one fault strike now.
    pub fn strike(&mut self, kind: FaultKind) {
        let stores = self.store_ids();
        let one = stores[self.rng.random_range(0..stores.len())];
        match kind {
            FaultKind::Partition => self.draw_partition(),
            FaultKind::OneWay => {
                let other = stores[self.rng.random_range(0..stores.len())];
                self.network.cut(one, other);
            }
            FaultKind::CutLink => {
                let other = stores[self.rng.random_range(0..stores.len())];
                self.network.cut_both(one, other);
            }
            FaultKind::IsolateLeader => {
                let region = self.rng.random_range(0..self.regions.len());
                if let Some(leader) = self.leader_of(self.regions[region].id) {
                    self.network.heal();
                    self.network.isolate(leader, &stores);
                }
            }
            FaultKind::PowerCut => self.bounce(one, Crash::Power),
            FaultKind::Kill => self.bounce(one, Crash::Kill),
            FaultKind::PowerCutEverywhere => {
                for id in stores {
                    self.bounce(id, Crash::Power);
                }
            }
            FaultKind::Pause => {
                let length = Duration::from_millis(self.rng.random_range(5..1_000));
                self.pause_store(one, length);
            }
            FaultKind::WallStep => {
                let by = self.rng.random_range(-2_000..2_000);
                self.store_mut(one).clock.step_wall(by);
            }
            FaultKind::Drift => {
                let rate = self
                    .rng
                    .random_range(RATE_ONE * 96 / 100..=RATE_ONE * 104 / 100);
                let now = self.queue.now();
                self.store_mut(one).clock.set_rate(now, rate);
            }
            FaultKind::Transfer => self.draw_transfer(),
            FaultKind::SlowDisk => {
                let slow = self.rng.random();
                self.store_mut(one).disk = if slow { Disk::slow() } else { Disk::good() };
            }
            FaultKind::FailedSync => {
                let engines = &self.store(one).engines;
                engines.raft.fail_next(strata_storage::Fault::Sync);
            }
            FaultKind::Weather => self.draw_weather(),
        }
    }

    fn draw_weather(&mut self) {
        let bad = self.rng.random();
        self.network.set_weather(if bad {
            Weather::unreliable()
        } else {
            Weather::fair()
        });
    }

    fn draw_partition(&mut self) {
        self.network.heal();
        if self.rng.random_bool(0.2) {
            return;
        }
        let mut groups = [Vec::new(), Vec::new()];
        for id in self.store_ids() {
            groups[usize::from(self.rng.random::<bool>())].push(id);
        }
        self.network.partition(&[&groups[0], &groups[1]]);
    }

    /// Crashes a store that is up and enters its restart.
    fn bounce(&mut self, id: u64, crash: Crash) {
        if !self.store(id).is_up() {
            return;
        }
        self.crash_store(id, crash);
        let delay = Duration::from_millis(self.rng.random_range(1..1_500));
        let life = self.store(id).life;
        self.queue.push(delay, Event::Restart { store: id, life });
    }

    fn draw_transfer(&mut self) {
        let region = self.regions[self.rng.random_range(0..self.regions.len())].clone();
        let Some(leader) = self.leader_of(region.id) else {
            return;
        };
        let to_store_id = region.peers[self.rng.random_range(0..region.peers.len())].store_id;
        let body = RequestBody::TransferLeader { to_store_id };
        self.call(leader, region.id, body, &CallOptions::default());
    }
}
