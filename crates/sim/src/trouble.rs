//! Faults that come together: many bugs need two or three at the right moment.
//!
//! Region    Links between the members of one region are cut or slow, each direction for
//!           itself, while hand-overs, short pauses and quick restarts hit them. A region that
//!           has just got a member is chosen more often, and so is that member.
//! Loop      A process ends again and again, as one that dies soon after its start, and is
//!           back within milliseconds.
//!
//! What each act hits and when follows from the strike's salt.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_raftstore::RequestBody;

use crate::cluster::{Cluster, Event};
use crate::disk::Crash;
use crate::faults::Mend;
use crate::network::between;

/// Within which time the acts on a region begin.
const TROUBLE: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(2));
/// How long a member stands still.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(900));
/// How long a process is gone.
const RESTART: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(120));
/// How long a process in a crash loop is gone, and how long it then lives.
const LOOP_RESTART: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));
const LOOP_LIFE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(600));

/// One of several small faults.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// A leadership is handed over.
    Transfer { region_id: u64, to_store_id: u64 },
    /// A process stands still.
    Pause { store_id: u64, length: Duration },
    /// A process ends and is started again.
    Restart {
        store_id: u64,
        crash: Crash,
        outage: Duration,
    },
    /// The same, of the store with the region's latest member then.
    RestartNewest {
        region_id: u64,
        crash: Crash,
        outage: Duration,
    },
    /// The region's members change.
    Move { region_id: u64, salt: u64 },
}

impl Cluster {
    /// Lets several faults hit the members of one region.
    pub(crate) fn trouble_region(&mut self, rng: &mut ChaCha8Rng) -> Option<Mend> {
        let any = self.regions[rng.random_range(0..self.regions.len())].id;
        let youngest = self.regions.iter().map(|region| region.id);
        let youngest = youngest.max_by_key(|id| self.newest_member(*id).0);
        let region_id = if rng.random_bool(0.4) { youngest? } else { any };
        let region = self.present_region(region_id);
        let members: Vec<u64> = region.peers.iter().map(|peer| peer.store_id).collect();
        // The store of a member to come, where they come.
        let moves = self.options.peers_move && rng.random_bool(0.6);
        let stores = if moves {
            self.store_ids()
        } else {
            members.clone()
        };
        let (cut, slow) = (rng.random_range(0.0..0.4), rng.random_range(0.0..0.5));
        let mut links = Vec::new();
        for from in &stores {
            for to in stores.iter().filter(|to| *to != from) {
                if rng.random_bool(cut) {
                    self.network.cut(*from, *to);
                    links.push((*from, *to));
                } else if rng.random_bool(slow) {
                    let least = Duration::from_millis(rng.random_range(20..400));
                    self.network.slow_down(*from, *to, (least, least * 3 / 2));
                    links.push((*from, *to));
                }
            }
        }
        if moves {
            let salt = rng.random();
            let act = Act::Move { region_id, salt };
            self.queue.push(Duration::ZERO, Event::Act { act });
        }
        for _ in 0..rng.random_range(1..=6) {
            let store_id = members[rng.random_range(0..members.len())];
            let act = match rng.random_range(0..6) {
                5 if moves => Act::RestartNewest {
                    region_id,
                    crash: draw_crash(rng),
                    outage: between(rng, RESTART),
                },
                0 | 1 => Act::Transfer {
                    region_id,
                    to_store_id: store_id,
                },
                2 => Act::Pause {
                    store_id,
                    length: between(rng, PAUSE),
                },
                _ => Act::Restart {
                    store_id,
                    crash: draw_crash(rng),
                    outage: between(rng, RESTART),
                },
            };
            let at = between(rng, TROUBLE);
            self.queue.push(at, Event::Act { act });
        }
        Some(Mend::Links(links))
    }

    /// The latest peer of a region and its store.
    fn newest_member(&self, region_id: u64) -> (u64, u64) {
        let region = self.present_region(region_id);
        let peers = region.peers.iter().map(|peer| (peer.id, peer.store_id));
        peers.max().unwrap_or_default()
    }

    /// Lets a process end and come back some times.
    pub(crate) fn begin_crash_loop(&mut self, store_id: u64, rng: &mut ChaCha8Rng) {
        let mut at = Duration::ZERO;
        for _ in 0..rng.random_range(3..=10) {
            let outage = between(rng, LOOP_RESTART);
            let act = Act::Restart {
                store_id,
                crash: draw_crash(rng),
                outage,
            };
            self.queue.push(at, Event::Act { act });
            at += outage + between(rng, LOOP_LIFE);
        }
    }

    pub(crate) fn on_act(&mut self, act: Act) {
        if self.healed {
            return;
        }
        match act {
            Act::Transfer {
                region_id,
                to_store_id,
            } => {
                if let Some(leader) = self.leader_of(region_id) {
                    let body = RequestBody::TransferLeader { to_store_id };
                    self.call_unheard(leader, region_id, None, body);
                }
            }
            Act::Pause { store_id, length } => self.pause_store(store_id, length),
            Act::Restart {
                store_id,
                crash,
                outage,
            } => self.restart(store_id, crash, outage),
            Act::RestartNewest {
                region_id,
                crash,
                outage,
            } => self.restart(self.newest_member(region_id).1, crash, outage),
            Act::Move { region_id, salt } => {
                self.move_region(region_id, &mut ChaCha8Rng::seed_from_u64(salt));
            }
        }
    }
}

impl Cluster {
    fn restart(&mut self, store_id: u64, crash: Crash, outage: Duration) {
        // The length is drawn already.
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        self.bounce(store_id, crash, (outage, outage), &mut rng);
    }
}

fn draw_crash(rng: &mut ChaCha8Rng) -> Crash {
    if rng.random() {
        Crash::Power
    } else {
        Crash::Kill
    }
}
