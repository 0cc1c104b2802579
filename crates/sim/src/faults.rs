//! What goes wrong while clients work, drawn from the seed.
//!
//! Rows    At random intervals one of the chosen kinds strikes ([`Faults`]). What it breaks
//!         stays so until another strike mends it.
//! Plans   Every strike has its time and its own seed ([`Strike`]), so that one can be left
//!         out and the others stay as they are. What it breaks is mended after a while.
//!
//! Elsewhere: which kinds there are (`fault_kind`).
//!
//! Crashed stores start again by themselves. [`Cluster::heal`] ends it all, after which the
//! cluster has to come to rest.

use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::RequestBody;
use strata_storage::Fault;
use strata_storage::snapshot::FileFault;

use crate::clock::RATE_ONE;
use crate::cluster::{Cluster, Event};
use crate::disk::{Crash, Disk};
use crate::fault_kind::{FaultKind, Strike};
use crate::network::{Weather, between};

/// When what a plan's strike has broken is mended.
const MEND_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(4));
/// How long a store is down, as a rule.
const SHORT_OUTAGE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(1_500));
/// How long it is down when others shall go on without it.
const LONG_OUTAGE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// How long a process stands still, as a rule.
const SHORT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// How long a virtual machine stands still.
const LONG_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long raft shards stand still.
const STALL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// When a store that installs a snapshot loses its power: many installs last so long.
const INSTALL_TIME: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(6));
/// How long requests are held back.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(6));

/// Faults that wait for their moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Armed {
    /// Streams of snapshots that are going to break.
    pub streams: u32,
    /// Installs in which the store is going to lose its power.
    pub installs: u32,
}

/// What is mended some time after a strike.
#[derive(Clone, Debug)]
pub(crate) enum Mend {
    Links(Vec<(u64, u64)>),
    Disk(u64),
    Weather,
    Requests,
    Clock(u64),
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
        self.armed = Armed::default();
        self.healed = true;
        self.options.held_requests = None;
        self.options.short_deadlines = 0.0;
        self.network.heal();
        self.network.set_weather(Weather::fair());
        self.options.client_loss = 0.0;
        let now = self.queue.now();
        for id in self.store_ids() {
            let store = self.store_mut(id);
            store.disk = Disk::good();
            store.clock.set_rate(now, RATE_ONE);
            store.stalled_until = now;
            store.paused_until = store.paused_until.min(now);
            store.engines.raft.forget_faults();
            store.engines.kv.forget_faults();
            store.files.forget_faults();
            let life = store.life;
            self.on_resume(id, life);
            if self.store(id).is_up() {
                self.schedule_step(id);
                // One that was put off while the shards stood still comes later.
                self.queue
                    .push(Duration::ZERO, Event::Step { store: id, life });
            } else {
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

    /// Lets one fault strike now. What it breaks stays broken until another one, or
    /// [`Cluster::heal`], mends it.
    pub fn strike(&mut self, kind: FaultKind) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.rng.random());
        self.strike_by(kind, &mut rng);
    }

    /// Enters the strikes of a plan; those whose time comes after [`Cluster::heal`] do not
    /// happen.
    pub fn plan_strikes(&mut self, strikes: &[Strike]) {
        let now = self.queue.now();
        self.healed = false;
        for strike in strikes {
            let delay = Duration::from_millis(strike.at_ms).saturating_sub(now);
            self.queue.push(delay, Event::Strike { strike: *strike });
        }
    }

    pub(crate) fn on_strike(&mut self, strike: Strike) {
        if self.healed {
            return;
        }
        let now = self.queue.now();
        self.trace
            .note(now, "fault", [strike.kind as u64, strike.salt, 0, 0]);
        let mut rng = ChaCha8Rng::seed_from_u64(strike.salt);
        if let Some(mend) = self.strike_by(strike.kind, &mut rng) {
            let delay = between(&mut rng, MEND_AFTER);
            let mend = Box::new(mend);
            self.queue.push(delay, Event::Mend { mend });
        }
    }

    pub(crate) fn on_mend(&mut self, mend: Mend) {
        if self.healed {
            return;
        }
        match mend {
            Mend::Links(links) => {
                for (from, to) in links {
                    self.network.mend(from, to);
                }
            }
            Mend::Disk(id) => {
                self.store_mut(id).disk = self.options.disk;
            }
            Mend::Weather => {
                self.network.set_weather(Weather::fair());
                self.options.client_loss = 0.0;
            }
            Mend::Requests => self.options.held_requests = None,
            Mend::Clock(id) => {
                let now = self.queue.now();
                self.store_mut(id).clock.set_wall_offset(0);
                self.trace.note(now, "clock set", [id, 0, 0, 0]);
            }
        }
    }

    fn strike_by(&mut self, kind: FaultKind, rng: &mut ChaCha8Rng) -> Option<Mend> {
        let stores = self.store_ids();
        let one = stores[rng.random_range(0..stores.len())];
        let finds_something = match kind {
            FaultKind::PowerCut
            | FaultKind::Kill
            | FaultKind::LongOutage
            | FaultKind::Pause
            | FaultKind::LongPause
            | FaultKind::StuckShards
            | FaultKind::CrashLoop => self.store(one).is_up(),
            // Orders of an operator.
            FaultKind::Transfer | FaultKind::MovePeers => false,
            FaultKind::Wipe => !self.stores.values().any(|store| store.out),
            // Half of it is fair, see there.
            FaultKind::Weather => false,
            _ => true,
        };
        self.counters.faults += u64::from(finds_something);
        match kind {
            FaultKind::Partition
            | FaultKind::OneWay
            | FaultKind::CutLink
            | FaultKind::IsolateLeader
            | FaultKind::SlowLink => return self.strike_links(kind, one, rng),
            FaultKind::PowerCut => self.bounce(one, Crash::Power, SHORT_OUTAGE, rng),
            FaultKind::Kill => self.bounce(one, Crash::Kill, SHORT_OUTAGE, rng),
            FaultKind::LongOutage => self.bounce(one, Crash::Power, LONG_OUTAGE, rng),
            FaultKind::PowerCutEverywhere => {
                for id in stores {
                    self.bounce(id, Crash::Power, SHORT_OUTAGE, rng);
                }
            }
            FaultKind::Pause => self.pause_store(one, between(rng, SHORT_PAUSE)),
            FaultKind::LongPause => self.pause_store(one, between(rng, LONG_PAUSE)),
            FaultKind::StuckShards => self.stall_shards(one, between(rng, STALL)),
            FaultKind::WallStep => {
                let by = rng.random_range(-2_000..2_000);
                self.store_mut(one).clock.step_wall(by);
            }
            FaultKind::WallJump => {
                let by = draw_jump(rng);
                self.store_mut(one).clock.step_wall(by);
                return rng.random_bool(0.5).then_some(Mend::Clock(one));
            }
            FaultKind::Drift => self.draw_drift(one, rng),
            FaultKind::Transfer => self.draw_transfer(rng),
            FaultKind::SlowDisk => {
                let slow = rng.random();
                let usual = self.options.disk;
                self.store_mut(one).disk = if slow { Disk::slow() } else { usual };
                return Some(Mend::Disk(one));
            }
            FaultKind::LateWorkers => {
                self.store_mut(one).disk = Disk::late_workers();
                return Some(Mend::Disk(one));
            }
            FaultKind::FailedSync
            | FaultKind::FailedWrite
            | FaultKind::FailedDataSync
            | FaultKind::FailedRead
            | FaultKind::FailedFile => self.fail_disk(kind, one, rng),
            FaultKind::Weather => {
                self.draw_weather(rng);
                return Some(Mend::Weather);
            }
            FaultKind::HeldRequests => {
                let share = rng.random_range(0.02..0.2);
                self.options.held_requests = Some((share, HOLD));
                return Some(Mend::Requests);
            }
            FaultKind::BrokenStreams => self.armed.streams += rng.random_range(5..=25),
            FaultKind::CrashInstalling => self.armed.installs += rng.random_range(2..=6),
            FaultKind::Wipe => self.draw_wipe(one, rng),
            FaultKind::MovePeers => self.draw_move(rng),
            FaultKind::RegionTrouble => return self.trouble_region(rng),
            FaultKind::CrashLoop => self.begin_crash_loop(one, rng),
        }
        None
    }

    /// Cuts or slows links; those that it has changed, to be mended later.
    fn strike_links(&mut self, kind: FaultKind, one: u64, rng: &mut ChaCha8Rng) -> Option<Mend> {
        let stores = self.store_ids();
        let others: Vec<u64> = stores.iter().copied().filter(|id| *id != one).collect();
        // A store alone has no links.
        let other = *others.choose(rng)?;
        let links = match kind {
            FaultKind::Partition => self.draw_partition(rng),
            FaultKind::OneWay => vec![(one, other)],
            FaultKind::CutLink => vec![(one, other), (other, one)],
            FaultKind::SlowLink => {
                let least = Duration::from_millis(rng.random_range(50..300));
                self.network.slow_down(one, other, (least, least * 2));
                return Some(Mend::Links(vec![(one, other)]));
            }
            _ => {
                let region = rng.random_range(0..self.regions.len());
                let leader = self.leader_of(self.regions[region].id)?;
                self.network.heal();
                let others = stores.iter().filter(|store| **store != leader);
                others
                    .flat_map(|other| [(leader, *other), (*other, leader)])
                    .collect()
            }
        };
        for (from, to) in &links {
            self.network.cut(*from, *to);
        }
        Some(Mend::Links(links))
    }

    /// Runs a clock at any rate that the lease allows for, its bounds above all: what a
    /// leader's slow clock measures as the lease is no more than what a follower's fast one
    /// measures as an election timeout.
    fn draw_drift(&mut self, id: u64, rng: &mut ChaCha8Rng) {
        let percent = u64::from(self.options.store.max_clock_drift_percent);
        let slowest = RATE_ONE * (100 - percent) / 100;
        let rate = match rng.random_range(0..4) {
            0 | 1 => slowest,
            2 => RATE_ONE,
            _ => rng.random_range(slowest..=RATE_ONE),
        };
        let now = self.queue.now();
        self.store_mut(id).clock.set_rate(now, rate);
    }

    fn fail_disk(&mut self, kind: FaultKind, id: u64, rng: &mut ChaCha8Rng) {
        let raft = rng.random::<bool>();
        // Where the store is down its next start meets it.
        let store = self.store(id);
        if !store.is_up() && kind == FaultKind::FailedFile {
            return;
        }
        let engine = if raft {
            &store.engines.raft
        } else {
            &store.engines.kv
        };
        match kind {
            FaultKind::FailedSync => store.engines.raft.fail_next(Fault::Sync),
            FaultKind::FailedDataSync => store.engines.kv.fail_next(Fault::Sync),
            FaultKind::FailedWrite => engine.fail_next(Fault::Write),
            FaultKind::FailedRead => engine.fail_next(Fault::Read),
            _ => {
                let faults = [
                    FileFault::DiskFull,
                    FileFault::Sync,
                    FileFault::Read,
                    FileFault::Rename,
                ];
                store
                    .files
                    .fail_next(faults[rng.random_range(0..faults.len())]);
            }
        }
    }

    fn draw_weather(&mut self, rng: &mut ChaCha8Rng) {
        let bad: bool = rng.random();
        self.counters.faults += u64::from(bad);
        // Clients have a network of their own.
        self.options.client_loss = match bad {
            true => rng.random_range(0.0..0.4),
            false => 0.0,
        };
        self.network.set_weather(if !bad {
            Weather::fair()
        } else if rng.random() {
            Weather::unreliable()
        } else {
            Weather {
                delay: (
                    Duration::from_micros(100),
                    Duration::from_micros(rng.random_range(1_000..60_000)),
                ),
                lost: rng.random_range(0.0..0.3),
                doubled: rng.random_range(0.0..0.3),
                overtaken: rng.random_range(0.0..0.5),
                detour: Duration::from_millis(rng.random_range(1..400)),
            }
        });
    }

    /// The links between two groups of stores; none now and then, and all are mended.
    fn draw_partition(&mut self, rng: &mut ChaCha8Rng) -> Vec<(u64, u64)> {
        self.network.heal();
        if rng.random_bool(0.2) {
            return Vec::new();
        }
        let mut groups = [Vec::new(), Vec::new()];
        for id in self.store_ids() {
            groups[usize::from(rng.random::<bool>())].push(id);
        }
        let [ones, others] = &groups;
        let pairs = ones
            .iter()
            .flat_map(|one| others.iter().map(|other| (*one, *other)));
        pairs
            .flat_map(|(one, other)| [(one, other), (other, one)])
            .collect()
    }

    /// A store is about to install a snapshot.
    pub(crate) fn on_install_job(&mut self, id: u64) {
        if self.armed.installs == 0 {
            return;
        }
        self.armed.installs -= 1;
        let life = self.store(id).life;
        let delay = between(&mut self.rng, INSTALL_TIME);
        self.queue.push(delay, Event::PowerCut { store: id, life });
    }

    /// A power cut that was waiting for its moment.
    pub(crate) fn on_power_cut(&mut self, id: u64, life: u64) {
        if self.is_live(id, life) && !self.healed {
            let mut rng = ChaCha8Rng::seed_from_u64(self.rng.random());
            self.bounce(id, Crash::Power, SHORT_OUTAGE, &mut rng);
        }
    }

    /// True if the stream that has just carried a chunk is to break.
    pub(crate) fn breaks_stream(&mut self) -> bool {
        let breaks = self.armed.streams > 0 && self.rng.random_bool(0.6);
        self.armed.streams -= u32::from(breaks);
        breaks
    }

    /// Crashes a store that is up and enters its restart.
    pub(crate) fn bounce(
        &mut self,
        id: u64,
        crash: Crash,
        outage: (Duration, Duration),
        rng: &mut ChaCha8Rng,
    ) {
        if !self.store(id).is_up() {
            return;
        }
        self.crash_store(id, crash);
        let delay = between(rng, outage);
        let life = self.store(id).life;
        self.queue.push(delay, Event::Restart { store: id, life });
    }

    /// A store loses its folder, the only one of the run: what a quorum has promised must
    /// not hang on it alone.
    fn draw_wipe(&mut self, id: u64, rng: &mut ChaCha8Rng) {
        if self.stores.values().any(|store| store.out) {
            return;
        }
        if self.store(id).is_up() {
            self.crash_store(id, Crash::Power);
        }
        self.wipe_store(id);
        let now = self.queue.now();
        self.trace.note(now, "wipe", [id, 0, 0, 0]);
        let life = self.store(id).life;
        let delay = between(rng, SHORT_OUTAGE);
        self.queue.push(delay, Event::Restart { store: id, life });
    }

    fn draw_transfer(&mut self, rng: &mut ChaCha8Rng) {
        let region_id = self.regions[rng.random_range(0..self.regions.len())].id;
        let Some(leader) = self.leader_of(region_id) else {
            return;
        };
        let region = self.present_region(region_id);
        let to_store_id = region.peers[rng.random_range(0..region.peers.len())].store_id;
        let body = RequestBody::TransferLeader { to_store_id };
        self.call_unheard(leader, region_id, None, body);
    }
}

/// By how much a wall clock is set wrong, in milliseconds.
fn draw_jump(rng: &mut ChaCha8Rng) -> i64 {
    const MINUTE_MS: i64 = 60_000;
    let most = [5, 24 * 60, 366 * 24 * 60, 20 * 366 * 24 * 60][rng.random_range(0..4)];
    let by = rng.random_range(MINUTE_MS..=most * MINUTE_MS);
    if rng.random() { by } else { -by }
}
